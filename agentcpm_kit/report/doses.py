"""Reads and draws the trials of ``benchmarks/rl_trials.py``: what reward noise costs RL, and what denoising returns.

Seeds share questions, sampling and test tasks. Settings with several seeds are compared seed by seed; how far a single run may
lie off by chance, `spread` takes from the controls, one number for each learning rate. At the larger one some of these collapse
on some seeds: a common spread is too narrow for these and too wide for the others. All cells of a rate are compared with the same
clean runs, and err together where those are lucky.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..evaluate.metrics import Estimate, mean, paired_difference, paired_ratio
from .spread import ENOUGH, Fit

HALF = 0.5  # a run whose policy solves less than this share of what the start solves has collapsed; our assumption
ARMS = ("undenoised", "denoised")
CONTROLS = ("rules", "collapse")  # the experiments that have them, one for each learning rate
CONTROLS_OF = {"clean": "no rule", "clean, more questions": "no rule, more questions", "clean, all rules": "clean"}


def trials(rows: Sequence[dict], experiment: str | None = None) -> pd.DataFrame:
    """Rows of one experiment, or of all, with what the start of the same seed solves, and whether a run collapsed or learned."""
    wanted = {experiment} if experiment else {r["experiment"] for r in rows} - {"start"}
    frame = pd.DataFrame([{"rate": 1.0} | r for r in rows if r["experiment"] in wanted])
    starts = {r["seed"]: r for r in rows if r["experiment"] == "start"}
    frame["start"] = frame.seed.map({seed: r["score"] for seed, r in starts.items()})
    frame["start_outcomes"] = frame.seed.map({seed: r["outcomes"] for seed, r in starts.items()})
    frame["key"] = frame.experiment + ": " + frame.trial
    frame["unmoved"] = frame.outcomes == frame.start_outcomes  # nothing was learned: it still is the start
    frame["collapsed"] = ~(frame.score >= HALF * frame.start)  # weights that were lost have no score
    return frame


def by_trial(rows: Sequence[dict], experiment: str) -> dict[str, pd.DataFrame]:
    """Name -> runs of each trial of an experiment, those with most seeds first."""
    found = dict(tuple(trials(rows, experiment).groupby("trial", sort=False)))
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def outcomes(runs: pd.DataFrame) -> dict[int, np.ndarray]:
    """Seed -> share of its runs that solve a test task, for each task; a run without a score has solved none."""
    found = [[int(c) for c in run.outcomes] if isinstance(run.outcomes, str) else [0] * run.n for run in runs.itertuples()]
    return {seed: np.mean([found[i] for i in places], axis=0)
            for seed, places in runs.reset_index(drop=True).groupby("seed").groups.items()}


def fits(rows: Sequence[dict]) -> dict[float, Fit]:
    """Learning rate (times the profile's) -> all runs at that rate; the spread is that of the controls."""
    found = trials(rows)
    return {rate: Fit.of(runs) for rate, runs in found.assign(control=found.experiment.isin(CONTROLS)).groupby("rate")}


def difference(after: pd.DataFrame, before: pd.DataFrame, fit: Fit) -> Estimate:
    """Score of one trial (or mean of several) minus that of another.

    Over tasks alone, and too sure, where no trial has several seeds.
    """
    if fit.freedom:
        return fit.difference(list(after.key.unique()), list(before.key.unique()))
    return paired_difference(*_paired(after, before))


def _share(part: tuple[pd.DataFrame, pd.DataFrame], whole: tuple[pd.DataFrame, pd.DataFrame], fit: Fit) -> Estimate:
    if fit.freedom:
        return fit.ratio(*([list(runs.key.unique()) for runs in pair] for pair in (part, whole)))
    (one, two), (three, four) = _paired(*part), _paired(*whole)
    return paired_ratio(one - two, three - four)


def _paired(after: pd.DataFrame, before: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    one, two = outcomes(after), outcomes(before)
    seeds = sorted(one.keys() & two.keys())
    return np.concatenate([one[s] for s in seeds]), np.concatenate([two[s] for s in seeds])


def score(trial: pd.DataFrame, fit: Fit) -> Estimate:
    """Share of test tasks that a trial's own runs solve, on average over its seeds."""
    found = list(outcomes(trial).values())
    if not fit.freedom:
        return mean(np.concatenate(found)).of_share()
    if len(found) >= ENOUGH:
        return mean([each.mean() for each in found]).of_share()
    value, half = float(np.mean([each.mean() for each in found])), fit.reach(1 / len(found))
    return Estimate(value, len(found), value - half, value + half).of_share()


def baseline(experiment: str, trial: str) -> str:
    """The trial of an experiment that another one is compared with: it differs in the one thing that is asked about."""
    if experiment in CONTROLS:
        return CONTROLS_OF.get(trial, "all rules")
    first, _, last = trial.rpartition(", ")
    return f"{first}, corrected" if experiment == "published" else f"grpo, {last}"


def cell(frame: pd.DataFrame, source: str, dose: float, rate: float, arm: str) -> pd.DataFrame:
    """The trials of one cell of the map, all seeds; dose 0 is the same for every source."""
    source = source if dose else "none"
    return frame[(frame.source == source) & (frame.dose == dose) & (frame.rate == rate) & (frame.arm == arm)]


def harms(rows: Sequence[dict]) -> pd.DataFrame:
    """A line per learning rate, dose and source: what noise costs the undenoised arm, what denoising returns, who collapses.

    `harm` is clean minus noisy, `returned` denoised minus noisy, `share` the second over the first where noise hurts for sure.
    Where the denoised arm is `unmoved`, the rules dropped all, and returned is what not to learn returns. The source "none" is
    the control: what the rules do to clean rewards, which is no denoising. `seeds` counts the runs behind each side of a
    difference, those of other experiments that are the same run included; `collapsed` is of the map's own runs.
    """
    frame, fit_at, lines = trials(rows, "dose"), fits(rows), []
    for (source, dose, rate), _ in frame.groupby(["source", "dose", "rate"], sort=False):
        fit, clean = fit_at[rate], cell(frame, source, 0.0, rate, "undenoised")
        noisy, denoised = (cell(frame, source, dose, rate, arm) for arm in ARMS)
        if min(map(len, (clean, noisy, denoised))):
            lines.append({"source": source, "dose": dose, "rate": rate, "noisy": score(noisy, fit),
                          "denoised": score(denoised, fit)} | _harm(clean, noisy, denoised, fit))
    return pd.DataFrame(lines).sort_values(["rate", "dose"], kind="stable")  # rows come as they were finished


def _harm(clean: pd.DataFrame, noisy: pd.DataFrame, denoised: pd.DataFrame, fit: Fit) -> dict:
    harm, returned = difference(clean, noisy, fit), difference(denoised, noisy, fit)
    hurts = harm.ci_low > 0
    return {"harm": harm, "returned": returned, "hurts": hurts,
            "share": _share((denoised, noisy), (clean, noisy), fit) if hurts else None,
            "collapsed": noisy.collapsed.mean(), "collapsed_denoised": denoised.collapsed.mean(),
            "unmoved": denoised.unmoved.mean(),
            "seeds": min(harm.n, returned.n) if fit.freedom else noisy.seed.nunique()}


def by_source(rows: Sequence[dict]) -> pd.DataFrame:
    """A line per source and learning rate, on average over its doses: the columns of `harms`, and from which dose on it hurts.

    `hurts_from` is the lowest dose at which, and at all higher ones, the interval of the harm lies above 0.
    """
    frame, table, fit_at, lines = trials(rows, "dose"), harms(rows), fits(rows), []
    for (source, rate), cells in table[table.dose > 0].groupby(["source", "rate"], sort=False):
        runs = frame[(frame.source == source) & (frame.rate == rate) & frame.dose.isin(cells.dose)]
        arms = [runs[runs.arm == arm] for arm in ARMS]
        cells = cells.sort_values("dose", ascending=False)
        begin = cells.dose[cells.hurts.cumprod().astype(bool)].min()  # nan where the highest dose does not hurt
        lines.append({"source": source, "rate": rate, "hurts_from": begin}
                     | _harm(cell(frame, source, 0.0, rate, "undenoised"), *arms, fit_at[rate]))
    return pd.DataFrame(lines)


def draw_map(rows: Sequence[dict], rate: float):
    """Small multiples, a panel per source: score after RL by dose, undenoised and denoised.

    Returns the figure. Means over seeds with 95% intervals; the dashed line is the model before RL. Crosses mark cells where
    runs collapsed, hollow marks those where nothing was learned.
    """
    from .figures import new_figure

    frame, fit = trials(rows, "dose"), fits(rows)[rate]
    doses = sorted(frame.dose.unique())
    figure, panels = new_figure(3, rows=3, figsize=(9.6, 8.0), sharex=True, sharey=True)
    for axes, source in zip(panels.flat, dict.fromkeys(frame.source[frame.dose > 0]), strict=False):
        for j, arm in enumerate(ARMS):
            found = [(x + 0.12 * (j - 0.5), c) for x, d in enumerate(doses) if len(c := cell(frame, source, d, rate, arm))]
            _draw_arm(axes, found, fit, j + 1, arm)
        axes.axhline(frame.start.mean(), color="grey", linestyle="--", linewidth=1)
        axes.set_title(source.replace("_", " "), fontsize=10)
        axes.set_xticks(range(len(doses)), [f"{d:g}" for d in doses])
    for axes in panels[-1]:
        axes.set_xlabel("dose: share of those hit that can be")
    for axes in panels[:, 0]:
        axes.set_ylabel("test tasks solved")
    panels.flat[0].set_ylim(bottom=0)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), ncols=2, loc="outside upper center")
    return figure


def _draw_arm(axes, found: list[tuple[float, pd.DataFrame]], fit: Fit, style: int, name: str) -> None:
    """One arm of a panel: its cells with their places."""
    from .figures import COLOURS, MARKS, interval

    colour, mark, scores = COLOURS[style], MARKS[style], [score(runs, fit) for _, runs in found]
    arms = list(zip(*(interval(s.fields()) for s in scores), strict=True))
    axes.errorbar([x for x, _ in found], [s.value for s in scores], yerr=arms, color=colour, marker=mark, markersize=4, capsize=2,
                  label=name)
    for (x, runs), s in zip(found, scores, strict=True):
        if runs.collapsed.any():
            axes.plot(x, s.value, "x", color="black", markersize=9, zorder=4)
        if runs.unmoved.any():
            axes.plot(x, s.value, mark, color=colour, mfc="white", markersize=7, zorder=4)


def draw_trials(rows: Sequence[dict], experiment: str):
    """Each trial's score after RL minus that of the one it is compared with (`baseline`), with 95% intervals."""
    from .figures import COLOURS, interval, new_figure

    fit_at, by_name = fits(rows), by_trial(rows, experiment)
    names = [name for name in by_name if name != baseline(experiment, name)][::-1]
    found = [difference(by_name[name], by_name[baseline(experiment, name)], fit_at[by_name[name].rate.iloc[0]])
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
