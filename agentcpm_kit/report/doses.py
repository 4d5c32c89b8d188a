"""Reads and draws the trials of ``benchmarks/rl_trials.py``: what reward noise costs RL, and what denoising returns.

Differences are paired: the same questions, sampling and test tasks in both trials of a seed. Intervals are Student's over seeds
where there are several, else over tasks.
"""

from collections.abc import Sequence

import pandas as pd

from ..evaluate import metrics
from ..evaluate.metrics import Estimate, mean, paired_difference

HALF = 0.5  # a run whose policy solves less than this share of what the start solves has collapsed, stopped or not
CELL = ["source", "dose", "rate", "arm"]


def trials(rows: Sequence[dict], experiment: str) -> pd.DataFrame:
    """One experiment's rows, with what the start of the same seed solves and whether the run collapsed."""
    frame = pd.DataFrame([r for r in rows if r["experiment"] == experiment])
    starts = {r["seed"]: r for r in rows if r["experiment"] == "start"}
    frame["start"] = frame.seed.map({seed: r["score"] for seed, r in starts.items()})
    frame["start_outcomes"] = frame.seed.map({seed: r["outcomes"] for seed, r in starts.items()})
    frame["collapsed"] = (frame.stopped != "") | ~(frame.score >= HALF * frame.start)
    return frame


def outcomes(rows: pd.DataFrame) -> dict[int, list[int]]:
    """Seed -> 1 or 0 for each test task; a run without a score has solved none."""
    return {row.seed: [int(c) for c in row.outcomes] if isinstance(row.outcomes, str) else [0] * row.n
            for row in rows.itertuples()}


def difference(after: pd.DataFrame, before: pd.DataFrame) -> Estimate:
    """Score of one trial minus that of another, paired by seed and task."""
    one, two = outcomes(after), outcomes(before)
    seeds = sorted(one.keys() & two.keys())
    if len(seeds) == 1:
        return paired_difference(one[seeds[0]], two[seeds[0]])
    return mean([sum(one[s]) / len(one[s]) - sum(two[s]) / len(two[s]) for s in seeds])


def score(trial: pd.DataFrame) -> Estimate:
    """Share of test tasks solved, over seeds."""
    found = outcomes(trial)
    if len(found) == 1:
        only = next(iter(found.values()))
        return metrics.rate(sum(only), len(only))
    return mean([sum(each) / len(each) for each in found.values()])


def gain(trial: pd.DataFrame) -> Estimate:
    """Score minus that of the start, paired by seed and task."""
    return difference(trial, trial.assign(outcomes=trial.start_outcomes))


def cell(frame: pd.DataFrame, source: str, dose: float, rate: float, arm: str) -> pd.DataFrame:
    """The trials of one cell of the map, all seeds; dose 0 is the same for every source."""
    source = source if dose else "none"
    return frame[(frame.source == source) & (frame.dose == dose) & (frame.rate == rate) & (frame.arm == arm)]


def harms(rows: Sequence[dict]) -> pd.DataFrame:
    """A line per source, dose and learning rate: what noise costs the undenoised arm, what denoising returns, who collapses.

    `harm` is clean minus noisy, `returned` denoised minus noisy, `share` the second over the first where noise hurts for sure.
    """
    frame, lines = trials(rows, "dose"), []
    for (source, dose, rate), _ in frame[frame.dose > 0].groupby(["source", "dose", "rate"], sort=False):
        clean = cell(frame, source, 0.0, rate, "undenoised")
        noisy, denoised = (cell(frame, source, dose, rate, arm) for arm in ("undenoised", "denoised"))
        if min(map(len, (clean, noisy, denoised))) == 0:
            continue
        harm, returned = difference(clean, noisy), difference(denoised, noisy)
        lines.append({"source": source, "dose": dose, "rate": rate, "noisy": score(noisy), "denoised": score(denoised),
                      "harm": harm, "returned": returned, "hurts": harm.ci_low > 0,
                      "share": returned.value / harm.value if harm.ci_low > 0 else float("nan"),
                      "collapsed": noisy.collapsed.mean(), "collapsed_denoised": denoised.collapsed.mean(), "seeds": len(noisy)})
    return pd.DataFrame(lines)


def first_harm(table: pd.DataFrame) -> pd.DataFrame:
    """By source and learning rate: the lowest dose from which on noise hurts for sure (interval above 0), and the harm there
    and at the highest dose."""
    found = []
    for (source, rate), lines in table.groupby(["source", "rate"], sort=False):
        lines = lines.sort_values("dose")
        hurting = lines[lines.hurts]
        found.append({"source": source, "rate": rate, "hurts_from": hurting.dose.min() if len(hurting) else float("nan"),
                      "harm_there": str(hurting.harm.iloc[0]) if len(hurting) else "", "harm_at_most": str(lines.harm.iloc[-1])})
    return pd.DataFrame(found)


def draw_map(rows: Sequence[dict], rate: float):
    """Small multiples, a panel per source: score after RL by dose, undenoised and denoised; crosses where runs collapsed.

    Returns the figure. Means over seeds with 95% intervals; the dashed line is the model before RL.
    """
    from matplotlib import pyplot

    from .figures import COLOURS, MARKS, STYLE, interval

    frame = trials(rows, "dose")
    sources = list(dict.fromkeys(frame.source[frame.dose > 0]))
    doses = sorted(frame.dose.unique())
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(3, 3, figsize=(9.6, 8.0), sharex=True, sharey=True, layout="constrained")
    for axes, source in zip(panels.flat, sources, strict=False):
        for j, arm in enumerate(("undenoised", "denoised")):
            cells = [(x, c) for x, d in enumerate(doses) if len(c := cell(frame, source, d, rate, arm))]
            points = [(x + 0.12 * (j - 0.5), score(c)) for x, c in cells]
            arms = list(zip(*(interval(p.fields()) for _, p in points), strict=True))
            axes.errorbar([x for x, _ in points], [p.value for _, p in points], yerr=arms, color=COLOURS[j], marker=MARKS[j],
                          markersize=4, capsize=2, label=arm)
            lost = [(x, p.value) for (x, p), (_, c) in zip(points, cells, strict=True) if c.collapsed.any()]
            axes.plot([x for x, _ in lost], [y for _, y in lost], "x", color="black", markersize=9)
        axes.axhline(frame.start.mean(), color="grey", linestyle="--", linewidth=1)
        axes.set_title(source.replace("_", " "), fontsize=10)
        axes.set_xticks(range(len(doses)), [f"{d:g}" for d in doses])
    for axes in panels[-1]:
        axes.set_xlabel("dose: share of episodes hit")
    for axes in panels[:, 0]:
        axes.set_ylabel("test tasks solved")
    panels.flat[0].set_ylim(bottom=0)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=2, loc="outside upper center")
    return figure


def draw_trials(rows: Sequence[dict], experiment: str):
    """Score after RL of each trial of an experiment, with intervals; the dashed line is the model before RL."""
    from .figures import COLOURS, interval, new_figure

    frame = trials(rows, experiment)
    names = list(dict.fromkeys(frame.trial))[::-1]
    found = [score(frame[frame.trial == name]) for name in names]
    figure, axes = new_figure(figsize=(6.8, 0.9 + 0.3 * len(names)))
    arms = list(zip(*(interval(p.fields()) for p in found), strict=True))
    axes.errorbar([p.value for p in found], range(len(names)), xerr=arms, fmt="o", color=COLOURS[0], capsize=3)
    axes.axvline(frame.start.mean(), color="grey", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("test tasks solved after RL (dashed: before)")
    axes.set_xlim(left=0)
    return figure
