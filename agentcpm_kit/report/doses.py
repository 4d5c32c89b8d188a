"""Reads and draws the trials of ``benchmarks/rl_trials.py``: what reward noise costs RL, and what denoising returns.

Differences are paired: the same questions, sampling and test tasks in both trials of a seed. What separates two trials of one
setting is mostly how far runs spread, not which tasks they are tested on. That spread is estimated once for each learning rate,
from the controls, which have several seeds (analysis of variance: trial + seed + spread), and taken to hold for every trial of
the rate, those with one seed too; it is an assumption, of ours. Intervals are not corrected for how many there are: of a hundred
cells without any effect, two or three lie surely below 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from ..evaluate.metrics import Estimate, mean, paired_difference

CONTROLS = ("rules", "collapse")  # experiments whose trials with every seed tell how far runs spread, one by learning rate
HALF = 0.5  # a run whose policy solves less than this share of what the start solves has collapsed; our assumption


def trials(rows: Sequence[dict], experiment: str) -> pd.DataFrame:
    """One experiment's rows, with what the start of the same seed solves and whether the run collapsed."""
    frame = pd.DataFrame([{"rate": 1.0} | r for r in rows if r["experiment"] == experiment])
    starts = {r["seed"]: r for r in rows if r["experiment"] == "start"}
    frame["start"] = frame.seed.map({seed: r["score"] for seed, r in starts.items()})
    frame["start_outcomes"] = frame.seed.map({seed: r["outcomes"] for seed, r in starts.items()})
    frame["collapsed"] = ~(frame.score >= HALF * frame.start)  # weights that were lost have no score
    return frame


def outcomes(runs: pd.DataFrame) -> dict[int, np.ndarray]:
    """Seed -> share of its runs that solve a test task, for each task; a run without a score has solved none."""
    found = [[int(c) for c in run.outcomes] if isinstance(run.outcomes, str) else [0] * run.n for run in runs.itertuples()]
    return {seed: np.mean([found[i] for i in places], axis=0)
            for seed, places in runs.reset_index(drop=True).groupby("seed").groups.items()}


@dataclass(frozen=True)
class Spread:
    """Standard deviation of a score between runs, trial and seed taken off, and its degrees of freedom."""

    value: float = math.nan
    freedom: int = 0

    @classmethod
    def of(cls, runs: pd.DataFrame) -> "Spread":
        """Over all trials that have every seed; unknown where there is one seed."""
        table = runs.assign(score=runs.score.fillna(0.0)).pivot_table(index="trial", columns="seed", values="score").dropna()
        if min(table.shape) < 2:
            return cls()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        rest = table.sub(table.mean(axis=1), axis=0).sub(table.mean(axis=0) - table.to_numpy().mean(), axis=1)
        return cls(math.sqrt((rest.to_numpy() ** 2).sum() / freedom), freedom)

    def interval(self, values: Sequence[float], runs: float) -> Estimate:
        """Mean of `values`, one per seed, with its 95% interval.

        A value's variance is that of a run's score times `runs`: 2 for the difference of two, 1 / k for the mean of k.
        """
        half = float(stats.t.ppf(0.975, self.freedom)) * self.value * math.sqrt(runs / len(values))
        centre = sum(values) / len(values)
        return Estimate(centre, len(values), centre - half, centre + half)


def spreads(rows: Sequence[dict]) -> dict[float, Spread]:
    """Learning rate (times the profile's) -> spread of the controls at that rate; without them, of what has several seeds."""
    frame = pd.concat([trials(rows, name) for name in dict.fromkeys(r["experiment"] for r in rows) if name != "start"])
    frame["trial"] = frame.experiment + ": " + frame.trial
    found = {}
    for rate, runs in frame.groupby("rate"):
        controls = Spread.of(runs[runs.experiment.isin(CONTROLS)])
        found[rate] = controls if controls.freedom else Spread.of(runs)
    return found


def _trials_each(runs: pd.DataFrame) -> float:
    return len(runs) / runs.seed.nunique()


def difference(after: pd.DataFrame, before: pd.DataFrame, spread: Spread) -> Estimate:
    """Score of one trial (or mean of several) minus that of another, paired by seed and task.

    Over tasks alone, and too sure, where nothing is known of the spread between runs.
    """
    one, two = outcomes(after), outcomes(before)
    seeds = sorted(one.keys() & two.keys())
    if not spread.freedom:
        return paired_difference(*(np.concatenate([each[s] for s in seeds]) for each in (one, two)))
    runs = 1 / _trials_each(after) + 1 / _trials_each(before)
    return spread.interval([one[s].mean() - two[s].mean() for s in seeds], runs)


def score(trial: pd.DataFrame, spread: Spread) -> Estimate:
    """Share of test tasks solved, over seeds."""
    found = outcomes(trial).values()
    estimate = spread.interval([each.mean() for each in found], 1) if spread.freedom else mean(np.concatenate(list(found)))
    return replace(estimate, ci_low=max(0.0, estimate.ci_low), ci_high=min(1.0, estimate.ci_high))


def gain(trial: pd.DataFrame, spread: Spread) -> Estimate:
    """Score minus that of the start, paired by seed and task."""
    return difference(trial, trial.assign(outcomes=trial.start_outcomes), spread)


def baseline(experiment: str, trial: str) -> str:
    """The trial of an experiment that another one is compared with: it differs in the one thing that is asked about."""
    if experiment in ("rules", "collapse"):
        return "all rules"
    first, _, last = trial.rpartition(", ")
    return f"{first}, corrected" if experiment == "published" else f"grpo, {last}"


def cell(frame: pd.DataFrame, source: str, dose: float, rate: float, arm: str) -> pd.DataFrame:
    """The trials of one cell of the map, all seeds; dose 0 is the same for every source."""
    source = source if dose else "none"
    return frame[(frame.source == source) & (frame.dose == dose) & (frame.rate == rate) & (frame.arm == arm)]


def harms(rows: Sequence[dict]) -> pd.DataFrame:
    """A line per source, dose and learning rate: what noise costs the undenoised arm, what denoising returns, who collapses.

    `harm` is clean minus noisy, `returned` denoised minus noisy, `share` the second over the first where noise hurts for sure.
    The source "none" is the control: what the rules do to clean rewards, which is no denoising.
    """
    frame, spread_at, lines = trials(rows, "dose"), spreads(rows), []
    for (source, dose, rate), _ in frame.groupby(["source", "dose", "rate"], sort=False):
        spread, clean = spread_at[rate], cell(frame, source, 0.0, rate, "undenoised")
        noisy, denoised = (cell(frame, source, dose, rate, arm) for arm in ("undenoised", "denoised"))
        if min(map(len, (clean, noisy, denoised))):
            lines.append({"source": source, "dose": dose, "rate": rate, "noisy": score(noisy, spread),
                          "denoised": score(denoised, spread)} | _harm(clean, noisy, denoised, spread))
    return pd.DataFrame(lines)


def _harm(clean: pd.DataFrame, noisy: pd.DataFrame, denoised: pd.DataFrame, spread: Spread) -> dict:
    harm, returned = difference(clean, noisy, spread), difference(denoised, noisy, spread)
    hurts = harm.ci_low > 0
    return {"harm": harm, "returned": returned, "hurts": hurts, "share": returned.value / harm.value if hurts else math.nan,
            "collapsed": noisy.collapsed.mean(), "collapsed_denoised": denoised.collapsed.mean(), "seeds": noisy.seed.nunique()}


def by_source(rows: Sequence[dict]) -> pd.DataFrame:
    """A line per source and learning rate, on average over its doses: the columns of `harms`, and from which dose on it hurts.

    `hurts_from` is the lowest dose at which, and at all higher ones, the interval of the harm lies above 0.
    """
    frame, table, spread_at, lines = trials(rows, "dose"), harms(rows), spreads(rows), []
    for (source, rate), cells in table[table.dose > 0].groupby(["source", "rate"], sort=False):
        runs = frame[(frame.source == source) & (frame.rate == rate) & frame.dose.isin(cells.dose)]
        arms = [runs[runs.arm == arm] for arm in ("undenoised", "denoised")]
        cells = cells.sort_values("dose", ascending=False)
        begin = cells.dose[cells.hurts.cumprod().astype(bool)].min()  # nan where the highest dose does not hurt
        lines.append({"source": source, "rate": rate, "hurts_from": begin}
                     | _harm(cell(frame, source, 0.0, rate, "undenoised"), *arms, spread_at[rate]))
    return pd.DataFrame(lines)


def draw_map(rows: Sequence[dict], rate: float):
    """Small multiples, a panel per source: score after RL by dose, undenoised and denoised; crosses where runs collapsed.

    Returns the figure. Means over seeds with 95% intervals; the dashed line is the model before RL.
    """
    from .figures import COLOURS, MARKS, interval, new_figure

    frame = trials(rows, "dose")
    spread = spreads(rows)[rate]
    sources = list(dict.fromkeys(frame.source[frame.dose > 0]))
    doses = sorted(frame.dose.unique())
    figure, panels = new_figure(3, rows=3, figsize=(9.6, 8.0), sharex=True, sharey=True)
    for axes, source in zip(panels.flat, sources, strict=False):
        for j, arm in enumerate(("undenoised", "denoised")):
            cells = [(x, c) for x, d in enumerate(doses) if len(c := cell(frame, source, d, rate, arm))]
            points = [(x + 0.12 * (j - 0.5), score(c, spread)) for x, c in cells]
            arms = list(zip(*(interval(p.fields()) for _, p in points), strict=True))
            axes.errorbar([x for x, _ in points], [p.value for _, p in points], yerr=arms, color=COLOURS[j + 1],
                          marker=MARKS[j + 1], markersize=4, capsize=2, label=arm)
            lost = [(x, p.value) for (x, p), (_, c) in zip(points, cells, strict=True) if c.collapsed.any()]
            axes.plot([x for x, _ in lost], [y for _, y in lost], "x", color="black", markersize=9)
        axes.axhline(frame.start.mean(), color="grey", linestyle="--", linewidth=1)
        axes.set_title(source.replace("_", " "), fontsize=10)
        axes.set_xticks(range(len(doses)), [f"{d:g}" for d in doses])
    for axes in panels[-1]:
        axes.set_xlabel("dose: share of those hit that can be")
    for axes in panels[:, 0]:
        axes.set_ylabel("test tasks solved")
    panels.flat[0].set_ylim(bottom=0)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=2, loc="outside upper center")
    return figure


def draw_trials(rows: Sequence[dict], experiment: str):
    """Each trial's score after RL minus that of the one it is compared with (`baseline`), paired, with 95% intervals."""
    from .figures import COLOURS, interval, new_figure

    frame = trials(rows, experiment)
    spread_at, by_name = spreads(rows), dict(tuple(frame.groupby("trial", sort=False)))
    names = [name for name in by_name if name != baseline(experiment, name)][::-1]
    found = [difference(by_name[name], by_name[baseline(experiment, name)], spread_at[by_name[name].rate.iloc[0]])
             for name in names]
    figure, axes = new_figure(figsize=(7.2, 1.0 + 0.3 * len(names)))
    arms = list(zip(*(interval(p.fields()) for p in found), strict=True))
    axes.errorbar([p.value for p in found], range(len(names)), xerr=arms, fmt="o", color=COLOURS[0], capsize=3)
    axes.axvline(0, color="grey", linestyle="--", linewidth=1)
    seeds = [f", {count} seeds" if (count := len(by_name[name])) > 1 else "" for name in names]
    labels = [f"{name}\n- {baseline(experiment, name)}{told}" for name, told in zip(names, seeds, strict=True)]
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("difference in test tasks solved after RL")
    return figure
