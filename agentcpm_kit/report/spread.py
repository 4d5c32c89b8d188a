"""How far two settings lie apart, where some have several seeds and others one.

Settings that share `ENOUGH` seeds are compared seed by seed, with Student's interval: their runs may spread as they like. For the
others, single runs and controls are fitted as trial + seed + spread (least squares), which takes the spread from the controls'
several seeds and gives it to every single run. That it is the same everywhere is an assumption, of ours, and poor where some runs
collapse.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from ..evaluate.metrics import Estimate, mean

Trials = Sequence[str]  # by their keys
ENOUGH = 3  # seeds


def same_runs(runs: pd.DataFrame) -> dict[str, str]:
    """Trial -> the one that stands for it: another whose runs hold all of its runs, outcome for outcome, or itself.

    What never acted changes nothing, and two trials then are one run. Runs that solve nothing are not told apart by it.
    """
    found = {name: dict(zip(some.seed, some.outcomes, strict=True)) for name, some in runs.groupby("key", sort=False)}
    stands: dict[str, str] = {}
    for name in sorted(found, key=lambda n: -len(found[n])):
        told = all(isinstance(o, str) and "1" in o for o in found[name].values())
        kept = (other for other, alias in stands.items() if other == alias and found[name].items() <= found[other].items())
        stands[name] = next(kept, name) if told else name
    return stands


@dataclass(frozen=True)
class Fit:
    """Least squares of the score of runs on trial and seed. `spread` is the standard deviation that is left."""

    scores: dict[str, dict[int, float]]  # trial -> seed -> score
    columns: dict[str, int]  # trial -> its coefficient
    coefficients: np.ndarray
    inverse: np.ndarray  # of the normal equations: covariance of the coefficients is spread^2 times this
    known: np.ndarray  # projection on what the runs tell
    spread: float
    freedom: int

    @classmethod
    def of(cls, runs: pd.DataFrame) -> "Fit":
        """`runs` has the columns key, seed, score (none: 0), outcomes, and control: whether it counts for the spread.

        Other trials of `ENOUGH` seeds speak for themselves, and are left out of the fit. Without a control of several seeds,
        `freedom` is 0.
        """
        stands = same_runs(runs)
        everyone = runs.assign(trial=runs.key.map(stands), score=runs.score.fillna(0.0))
        controls, everyone = set(everyone.trial[everyone.control]), everyone.drop_duplicates(["trial", "seed"])
        found = {name: dict(zip(some.seed, some.score, strict=True)) for name, some in everyone.groupby("trial")}
        unique = everyone[everyone.trial.map(lambda name: name in controls or len(found[name]) < ENOUGH)]
        trials, seeds = (pd.get_dummies(unique[name], dtype=float) for name in ("trial", "seed"))
        design = np.hstack([trials.to_numpy(), seeds.to_numpy()])
        normal = design.T @ design
        inverse = np.linalg.pinv(normal)
        coefficients = inverse @ design.T @ unique.score.to_numpy()
        freedom = len(unique) - np.linalg.matrix_rank(design)
        left = float(((unique.score - design @ coefficients) ** 2).sum())
        places = {name: i for i, name in enumerate(trials.columns)}
        return cls({key: found[trial] for key, trial in stands.items()},
                   {key: places[trial] for key, trial in stands.items() if trial in places},
                   coefficients, inverse, inverse @ normal, math.sqrt(left / freedom) if freedom else math.nan, int(freedom))

    def reach(self, variance: float) -> float:
        """Half a 95% interval of what varies `variance` times as much as one run: 2 for the difference of two."""
        return float(stats.t.ppf(0.975, self.freedom)) * self.spread * math.sqrt(max(0.0, variance))

    def contrast(self, after: Trials, before: Trials) -> np.ndarray:
        """Weights of the coefficients for the mean of some trials minus that of others."""
        weights = np.zeros(len(self.coefficients))
        for sign, keys in ((1, after), (-1, before)):
            for key in keys:
                weights[self.columns[key]] += sign / len(keys)
        return weights

    def by_seed(self, after: Trials, before: Trials) -> dict[int, float]:
        """Seed -> mean score of some trials minus that of others, of the seeds that all of them have."""
        seeds = set.intersection(*(set(self.scores[key]) for key in (*after, *before)))
        one, two = ({seed: np.mean([self.scores[key][seed] for key in keys]) for seed in seeds} for keys in (after, before))
        return {seed: float(one[seed] - two[seed]) for seed in sorted(seeds)}

    def difference(self, after: Trials, before: Trials) -> Estimate:
        """Mean score of some trials minus that of others; `n` is the least number of seeds of any.

        Unknown (nan) where no seed, not even by way of other trials, links the two.
        """
        if len(seeds := self.by_seed(after, before)) >= ENOUGH:
            return mean(list(seeds.values()))
        weights = self.contrast(after, before)
        linked = np.allclose(weights @ self.known, weights, atol=1e-6)
        value, half = float(weights @ self.coefficients) if linked else math.nan, self.reach(weights @ self.inverse @ weights)
        return Estimate(value, self._seeds(after, before), value - half, value + half)

    def ratio(self, part: tuple[Trials, Trials], whole: tuple[Trials, Trials]) -> Estimate:
        """One difference over another, with its 95% interval (Fieller): unknown (nan) where the whole may be 0."""
        seeds = [self.by_seed(*pair) for pair in (part, whole)]
        if len(common := seeds[0].keys() & seeds[1].keys()) >= ENOUGH:
            values = np.array([[each[seed] for seed in common] for each in seeds])
            t, n = stats.t.ppf(0.975, len(common) - 1), len(common)
            return fieller(*values.mean(1), t * t * np.cov(values) / n, n)
        both = np.stack([self.contrast(*part), self.contrast(*whole)])
        reach = self.reach(1.0) ** 2 * both @ self.inverse @ both.T
        return fieller(*(both @ self.coefficients), reach, self._seeds(*part, *whole))

    def _seeds(self, *groups: Trials) -> int:
        return min(len(self.scores[key]) for keys in groups for key in keys)


def fieller(part: float, whole: float, reach: np.ndarray, n: int) -> Estimate:
    """`part` over `whole` with Fieller's interval; `reach` is their 2 x 2 covariance times the squared quantile of t."""
    square, middle, low = whole * whole - reach[1, 1], part * whole - reach[0, 1], part * part - reach[0, 0]
    root = math.sqrt(max(0.0, middle * middle - square * low)) if square > 0 else math.nan
    return Estimate(float(part / whole), n, float((middle - root) / square), float((middle + root) / square))
