"""Runs as trial + seed + spread: how far two settings lie apart where some have several seeds and others one.

Two runs of one setting differ by their seed alone, and more than their test tasks tell. Least squares over all runs, score =
trial + seed + spread, takes the spread from the trials with several seeds and gives it to every trial. That it is the same
everywhere is an assumption, of ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from ..evaluate.metrics import Estimate

Trials = Sequence[str]  # by their keys


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

    columns: dict[str, int]  # trial -> its coefficient
    seeds: dict[str, int]  # trial -> how many seeds it has
    coefficients: np.ndarray
    inverse: np.ndarray  # of the normal equations: covariance of the coefficients is spread^2 times this
    known: np.ndarray  # projection on what the runs tell
    spread: float
    freedom: int

    @classmethod
    def of(cls, runs: pd.DataFrame) -> "Fit":
        """`runs` has the columns key, seed, score (none: 0) and outcomes. Without a trial of several seeds, `freedom` is 0."""
        stands = same_runs(runs)
        unique = runs.assign(trial=runs.key.map(stands), score=runs.score.fillna(0.0)).drop_duplicates(["trial", "seed"])
        trials, seeds = (pd.get_dummies(unique[name], dtype=float) for name in ("trial", "seed"))
        design = np.hstack([trials.to_numpy(), seeds.to_numpy()])
        normal = design.T @ design
        inverse = np.linalg.pinv(normal)
        coefficients = inverse @ design.T @ unique.score.to_numpy()
        freedom = len(unique) - np.linalg.matrix_rank(design)
        left = float(((unique.score - design @ coefficients) ** 2).sum())
        places, counts = {name: i for i, name in enumerate(trials.columns)}, unique.trial.value_counts()
        return cls({key: places[trial] for key, trial in stands.items()}, {key: int(counts[t]) for key, t in stands.items()},
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

    def difference(self, after: Trials, before: Trials) -> Estimate:
        """Mean score of some trials minus that of others; `n` is the least number of seeds of any.

        Unknown (nan) where no seed, not even by way of other trials, links the two.
        """
        weights = self.contrast(after, before)
        linked = np.allclose(weights @ self.known, weights, atol=1e-6)
        value, half = float(weights @ self.coefficients) if linked else math.nan, self.reach(weights @ self.inverse @ weights)
        return Estimate(value, self._seeds(after, before), value - half, value + half)

    def ratio(self, part: tuple[Trials, Trials], whole: tuple[Trials, Trials]) -> Estimate:
        """One difference over another, with its 95% interval (Fieller): unknown (nan) where the whole may be 0."""
        one, two = self.contrast(*part), self.contrast(*whole)
        a, b = float(one @ self.coefficients), float(two @ self.coefficients)
        aa, ab, bb = (self.reach(1.0) ** 2 * float(x @ self.inverse @ y) for x, y in ((one, one), (one, two), (two, two)))
        square, middle, low = b * b - bb, a * b - ab, a * a - aa
        root = math.sqrt(max(0.0, middle * middle - square * low)) if square > 0 else math.nan
        return Estimate(a / b, self._seeds(*part, *whole), (middle - root) / square, (middle + root) / square)

    def _seeds(self, *groups: Trials) -> int:
        return min(self.seeds[key] for keys in groups for key in keys)
