"""An evaluation in the terminal: a bar while it plays, and the table that it ends with."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..agent.trajectory import Trajectory
from .harness import Plan, endings
from .metrics import Estimate


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


def print_metrics(metrics: dict) -> None:
    """Of metrics.json: what was evaluated and its rates with intervals, then what is behind them: runs, and what is not known."""
    from rich.console import Console
    from rich.table import Table

    console, runs, outcomes = Console(), metrics["accuracy_by_run"], metrics["outcomes"]
    rates = Table("metric", "value [95% interval over tasks]", title=f"{metrics['tasks']} tasks x {metrics['runs']} runs")
    for name, rate in metrics["rates"].items():
        rates.add_row(name, f"{rate['value']:.3f} [{rate['ci_low']:.3f}, {rate['ci_high']:.3f}]")
    console.print(metrics["about"], soft_wrap=True, highlight=False, markup=False)
    console.print(rates)
    console.print(f"accuracy by run: lowest {min(runs):.3f}, highest {max(runs):.3f}")
    told = ", ".join(f"{name} {count}" for name, count in outcomes.items())
    console.print(f"{told} of {sum(outcomes.values())} runs; unscored and missing count as misses", soft_wrap=True)
    for kind, count in metrics["faults"].items():
        console.print(f"  unscored by a fault, {kind}: {count}", style="yellow")


def print_comparison(differences: Mapping[str, Estimate], name: Path) -> None:
    from rich.console import Console

    for metric, difference in differences.items():
        Console().print(f"{metric} minus that of {name}, paired by task: {difference}", soft_wrap=True)
