"""What the rows of an evaluation add up to. Rates are over all planned runs; what is not known is a miss, and counted apart."""

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from ..errors import KitError
from .metrics import Estimate, majority, mean_pass_at_k, paired_difference, pass_hat_k, share
from .scorers import normal_form


def by_task(rows: Sequence[dict]) -> pd.DataFrame:
    """A line per task: its family and level, its runs, how many are correct, unscored and missing, and its majority vote."""
    tasks: dict[str, list[dict]] = {}
    for row in rows:
        tasks.setdefault(row["task_id"], []).append(row)
    return pd.DataFrame([_of_task(runs) for runs in tasks.values()]).set_index("task_id")


def _of_task(runs: list[dict]) -> dict:
    counts = Counter(row["outcome"] for row in runs)
    known = {"correct": True, "wrong": False}
    vote = majority([normal_form(row.get("answer")) for row in runs], [known.get(row["outcome"]) for row in runs])
    return {**{name: runs[0][name] for name in ("task_id", "family", "level")}, "runs": len(runs),
            **{name: counts[name] for name in ("correct", "wrong", "unscored", "missing")}, "majority": vote}


def ks(runs: int) -> list[int]:
    """1, 2, 4, ... up to 64, as far as there are runs; the last is `runs` itself if that is less."""
    return sorted({min(2**i, runs) for i in range(7)})


def summarise(rows: Sequence[dict]) -> dict[str, Estimate]:
    """Rates of an evaluation with 95% intervals clustered by task: a task's runs are one observation.

    `pass@1` is the mean over runs, which is Avg@n; `pass@k` some and `pass^k` all of k runs correct (unbiased); `maj@n` the
    majority vote of all runs.
    """
    table = by_task(rows)
    runs = int(table.runs.iloc[0])
    found = {f"pass@{k}": mean_pass_at_k(table.correct.tolist(), runs, k) for k in ks(runs)}
    found |= {f"pass^{k}": share([pass_hat_k(runs, c, k) for c in table.correct]) for k in ks(runs)[1:]}
    if runs > 1:
        found[f"maj@{runs}"] = share(table.majority.tolist())
    return found


def per_run(rows: Sequence[dict]) -> list[float]:
    """Accuracy of each run over all tasks; their mean is Avg@n."""
    frame = pd.DataFrame(rows)
    return (frame.outcome == "correct").groupby(frame.run).mean().tolist()


def compare(after: Sequence[dict], before: Sequence[dict]) -> dict[str, Estimate]:
    """Difference in pass@1 of two evaluations of the same tasks, paired by task.

    Raises:
        KitError: not the same tasks.
    """
    one, two = by_task(after), by_task(before)
    require_same_tasks(list(one.index), list(two.index))
    return {"pass@1": paired_difference(one.correct / one.runs, two.correct / two.runs)}


def require_same_tasks(one: Sequence[str], two: Sequence[str]) -> None:
    if list(one) != list(two):
        common = len(set(one) & set(two))
        raise KitError(f"the two evaluations are of other tasks ({len(one)} and {len(two)}, {common} in common): they cannot be "
                       "compared task by task")
