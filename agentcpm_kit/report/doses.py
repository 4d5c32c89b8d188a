"""Reads and draws the trials of ``benchmarks/rl_trials.py``: what reward noise costs RL, and what denoising returns.

Differences are paired: the same questions, sampling and test tasks in both trials of a seed. Where two trials share several
seeds, intervals are over seeds, with the spread between runs estimated from all trials of an experiment that have every seed
(analysis of variance: trial + seed + spread), since a few seeds of one trial alone say little about it; in the map by learning
rate, since runs spread more at the larger one. With one seed they are over tasks, and say nothing about other seeds. They are
not corrected for how many there are: of a hundred cells without any effect, two or three lie surely below 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from ..evaluate import metrics
from ..evaluate.metrics import Estimate, paired_difference

HALF = 0.5  # a run whose policy solves less than this share of what the start solves has collapsed; our assumption


def trials(rows: Sequence[dict], experiment: str) -> pd.DataFrame:
    """One experiment's rows, with what the start of the same seed solves and whether the run collapsed."""
    frame = pd.DataFrame([r for r in rows if r["experiment"] == experiment])
    starts = {r["seed"]: r for r in rows if r["experiment"] == "start"}
    frame["start"] = frame.seed.map({seed: r["score"] for seed, r in starts.items()})
    frame["start_outcomes"] = frame.seed.map({seed: r["outcomes"] for seed, r in starts.items()})
    frame["collapsed"] = ~(frame.score >= HALF * frame.start)  # weights that were lost have no score
    return frame


def outcomes(rows: pd.DataFrame) -> dict[int, list[int]]:
    """Seed -> 1 or 0 for each test task; a run without a score has solved none."""
    return {row.seed: [int(c) for c in row.outcomes] if isinstance(row.outcomes, str) else [0] * row.n
            for row in rows.itertuples()}


@dataclass(frozen=True)
class Spread:
    """Standard deviation of a score between runs, trial and seed taken off, and its degrees of freedom."""

    value: float = math.nan
    freedom: int = 0

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "Spread":
        """Over all trials of an experiment; unknown where there is one seed."""
        table = frame.assign(score=frame.score.fillna(0.0)).pivot_table(index="trial", columns="seed", values="score").dropna()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        if freedom < 1:
            return cls()
        rest = table.sub(table.mean(axis=1), axis=0).sub(table.mean(axis=0) - table.to_numpy().mean(), axis=1)
        return cls(math.sqrt((rest.to_numpy() ** 2).sum() / freedom), freedom)

    def interval(self, values: Sequence[float], runs: int) -> Estimate:
        """Mean of `values`, one per seed, each a combination of `runs` scores (2: a difference), with its 95% interval."""
        half = float(stats.t.ppf(0.975, self.freedom)) * self.value * math.sqrt(runs / len(values))
        centre = sum(values) / len(values)
        return Estimate(centre, len(values), centre - half, centre + half)


def difference(after: pd.DataFrame, before: pd.DataFrame, spread: Spread) -> Estimate:
    """Score of one trial minus that of another, paired by seed and task."""
    one, two = outcomes(after), outcomes(before)
    seeds = sorted(one.keys() & two.keys())
    if len(seeds) == 1 or not spread.freedom:
        return paired_difference([o for s in seeds for o in one[s]], [o for s in seeds for o in two[s]])
    return spread.interval([sum(one[s]) / len(one[s]) - sum(two[s]) / len(two[s]) for s in seeds], runs=2)


def score(trial: pd.DataFrame, spread: Spread) -> Estimate:
    """Share of test tasks solved, over seeds."""
    found = outcomes(trial)
    if len(found) == 1 or not spread.freedom:
        return metrics.rate(sum(map(sum, found.values())), sum(map(len, found.values())))
    return spread.interval([sum(each) / len(each) for each in found.values()], runs=1)


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
    frame, lines = trials(rows, "dose"), []
    spreads = {rate: Spread.of(cells) for rate, cells in frame.groupby("rate")}
    for (source, dose, rate), _ in frame.groupby(["source", "dose", "rate"], sort=False):
        clean = cell(frame, source, 0.0, rate, "undenoised")
        noisy, denoised = (cell(frame, source, dose, rate, arm) for arm in ("undenoised", "denoised"))
        if min(map(len, (clean, noisy, denoised))) == 0:
            continue
        spread = spreads[rate]
        harm, returned = difference(clean, noisy, spread), difference(denoised, noisy, spread)
        lines.append({"source": source, "dose": dose, "rate": rate, "noisy": score(noisy, spread),
                      "denoised": score(denoised, spread), "harm": harm, "returned": returned, "hurts": harm.ci_low > 0,
                      "share": returned.value / harm.value if harm.ci_low > 0 else math.nan,
                      "collapsed": noisy.collapsed.mean(), "collapsed_denoised": denoised.collapsed.mean(), "seeds": len(noisy)})
    return pd.DataFrame(lines)


def first_harm(table: pd.DataFrame) -> pd.DataFrame:
    """By source and learning rate: the lowest dose at which, and at all higher ones, noise hurts (interval above 0), the harm
    there and at the highest dose."""
    found = []
    for (source, rate), lines in table[table.dose > 0].groupby(["source", "rate"], sort=False):
        lines = lines.sort_values("dose", ascending=False)
        hurting = lines[lines.hurts.cumprod().astype(bool)]
        found.append({"source": source, "rate": rate, "hurts_from": hurting.dose.min() if len(hurting) else math.nan,
                      "harm_there": str(hurting.harm.iloc[-1]) if len(hurting) else "",
                      "harm_at_highest_dose": str(lines.harm.iloc[0])})
    return pd.DataFrame(found)


def draw_map(rows: Sequence[dict], rate: float):
    """Small multiples, a panel per source: score after RL by dose, undenoised and denoised; crosses where runs collapsed.

    Returns the figure. Means over seeds with 95% intervals; the dashed line is the model before RL.
    """
    from .figures import COLOURS, MARKS, interval, new_figure

    frame = trials(rows, "dose")
    spread = Spread.of(frame[frame.rate == rate])
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
    spread, by_name = Spread.of(frame), dict(tuple(frame.groupby("trial", sort=False)))
    names = [name for name in by_name if name != baseline(experiment, name)][::-1]
    found = [difference(by_name[name], by_name[baseline(experiment, name)], spread) for name in names]
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
