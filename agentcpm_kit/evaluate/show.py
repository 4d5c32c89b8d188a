"""An evaluation in the terminal: a bar while it plays, and the table that it ends with."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..agent.trajectory import Trajectory
from .harness import Plan, endings, faults
from .metrics import Estimate
from .summary import by_task, per_run, summarise


@contextmanager
def progress(plan: Plan, out: Path) -> Iterator[Callable[[Trajectory], None]]:
    """A bar over all planned runs; what is stored already counts as done. Yields what to call with each that ends."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    names, there = plan.names, endings(out)
    ended = Counter(t.end_reason.value for name, t in there.items() if name in names and not t.end_reason.is_fault)
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  TextColumn("{task.fields[ended]}")) as bar:
        task = bar.add_task(plan.suite.name, total=len(names), completed=ended.total(), ended="")

        def tell(trajectory: Trajectory) -> None:
            ended[trajectory.end_reason.value] += 1
            words = ", ".join(f"{reason} {count}" for reason, count in ended.most_common())
            bar.update(task, advance=not trajectory.end_reason.is_fault, ended=words)

        yield tell


@contextmanager
def judging(total: int) -> Iterator[Callable[[dict], None]]:
    """A bar over the verdicts that are asked for."""
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("judge", total=total)
        yield lambda row: bar.update(task, advance=1)


def print_rows(rows: Sequence[dict], about: str) -> None:
    """What was evaluated (`about`) and its rates with intervals, then what is behind them: runs, and what is not known."""
    from rich.console import Console
    from rich.table import Table

    table, console = by_task(rows), Console()
    counts = Counter(row["outcome"] for row in rows)
    rates = Table("metric", "value [95% interval over tasks]", title=f"{len(table)} tasks x {int(table.runs.iloc[0])} runs")
    for name, estimate in summarise(rows).items():
        rates.add_row(name, f"{estimate.value:.3f} [{estimate.ci_low:.3f}, {estimate.ci_high:.3f}]")
    console.print(about, soft_wrap=True, highlight=False, markup=False)
    console.print(rates)
    runs = per_run(rows)
    console.print(f"accuracy by run: lowest {min(runs):.3f}, highest {max(runs):.3f}")
    told = ", ".join(f"{name} {counts[name]}" for name in ("correct", "wrong", "unscored", "missing"))
    console.print(f"{told} of {len(rows)} runs; unscored and missing count as misses", soft_wrap=True)
    for kind, count in faults(rows).items():
        console.print(f"  unscored by a fault, {kind}: {count}", style="yellow")


def print_comparison(differences: Mapping[str, Estimate], name: Path) -> None:
    from rich.console import Console

    for metric, difference in differences.items():
        Console().print(f"{metric} minus that of {name}, paired by task: {difference}", soft_wrap=True)
