"""Figures of notebook 09 from stored rows (one for each model and task), without any model: pass@k, and who is solved how often.

    python -m agentcpm_kit.report.passk [--rows FILE] [--out FOLDER]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..errors import KitError
from ..evaluate.metrics import mean_pass_at_k
from ..evaluate.summary import ks
from ..files import read_jsonl
from ..profile import repo_root
from .figures import COLOURS, curve, new_figure, save_figure

PAPER_PASS_AT_64 = 0.9709  # GAIA-text, from the abstract: 100 of 103 tasks
REFERENCE = "results/reference/micro/seed0/09_passk/rows.jsonl"


def by_model(rows: Sequence[dict]) -> dict[str, pd.DataFrame]:
    """Model -> its tasks: `correct` of `runs` runs were.

    Raises:
        KitError: no such rows, or tasks of one model with other numbers of runs.
    """
    frame = pd.DataFrame([row for row in rows if row.get("kind") == "task"])
    if frame.empty or not {"model", "task_id", "runs", "correct"} <= set(frame):
        raise KitError("no rows of notebook 09 (kind `task`, with model, task_id, runs and correct)")
    found = dict(tuple(frame.groupby("model", sort=False)))
    if uneven := [name for name, tasks in found.items() if tasks.runs.nunique() > 1]:
        raise KitError(f"{uneven[0]} has tasks with other numbers of runs: pass@k of all of them is no one number")
    return found


def curves(models: dict[str, pd.DataFrame]) -> dict[str, list[dict]]:
    """Model -> pass@k with 95% intervals over tasks, for k = 1, 2, 4, ... as `x`."""
    return {name: [{"x": k, **mean_pass_at_k(tasks.correct.tolist(), int(tasks.runs.iloc[0]), k).fields()}
                   for k in ks(int(tasks.runs.iloc[0]))] for name, tasks in models.items()}


def draw_curves(points: dict[str, list[dict]]):
    """The counterpart of the paper's Figure 4. Its own number, on another benchmark, is a landmark and no rival."""
    figure, axes = new_figure()
    for i, (name, own) in enumerate(points.items()):
        curve(axes, own, name, i)
    axes.axhline(PAPER_PASS_AT_64, color="grey", linestyle="--", linewidth=1)
    axes.text(1, 0.98, "paper: GAIA-text, pass@64", fontsize=8, color="grey")
    x = [point["x"] for point in next(iter(points.values()))]
    axes.set_xscale("log", base=2)
    axes.set(xticks=x, xticklabels=x, xlabel="k", ylabel="pass@k", ylim=(0, 1.08))
    axes.legend(loc="lower right")
    return figure


def draw_stability(models: dict[str, pd.DataFrame]):
    """How many tasks are solved by which share of their runs."""
    figure, axes = new_figure(len(models), figsize=(9.6, 2.8), sharey=True, squeeze=False)
    for ax, (name, tasks) in zip(axes[0], models.items(), strict=True):
        ax.hist(tasks.correct / tasks.runs, bins=10, range=(0, 1), color=COLOURS[0])
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("runs that solve it")
    axes[0][0].set_ylabel("tasks")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, default=repo_root() / REFERENCE)
    parser.add_argument("--out", type=Path, default=Path("."))
    options = parser.parse_args()
    if not options.rows.is_file():
        raise KitError(f"there is no file {options.rows}")
    models = by_model(read_jsonl(options.rows))
    for name, points in curves(models).items():
        told = (f"pass@{p['x']} {p['value']:.3f} [{p['ci_low']:.3f}, {p['ci_high']:.3f}]" for p in points)
        print(name.ljust(10), "  ".join(told))
    for name, figure in (("passk", draw_curves(curves(models))), ("stability", draw_stability(models))):
        print(save_figure(figure, options.out / f"{name}.png"))


if __name__ == "__main__":
    try:
        main()
    except KitError as error:
        sys.exit(f"error: {error}")
