"""Metrics with their intervals: rates, means over seeds, pass@k."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; `n` counts what the interval is over (tasks, seeds)."""

    value: float
    n: int
    ci_low: float
    ci_high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.ci_low:.3f}, {self.ci_high:.3f}] (n={self.n})"

    def fields(self) -> dict:
        return asdict(self)

    def of_share(self) -> "Estimate":
        """The same with its interval cut to [0, 1], where a share must lie."""
        return replace(self, ci_low=max(0.0, self.ci_low), ci_high=min(1.0, self.ci_high))


def rate(successes: int, n: int) -> Estimate:
    """Share of successes with Wilson's 95% interval. n = 0 is an error: there is no rate of nothing."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"no rate of {successes} successes in {n}")
    z = 1.959964
    p, scale = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    return Estimate(p, n, max(0.0, centre - half), min(1.0, centre + half))


def mean(values: Sequence[float]) -> Estimate:
    """Mean with Student's 95% interval; with one value the interval is unknown (nan)."""
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise ValueError("no mean of nothing")
    centre = float(values.mean())
    if values.size == 1:
        return Estimate(centre, 1, math.nan, math.nan)
    half = float(stats.t.ppf(0.975, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size))
    return Estimate(centre, values.size, centre - half, centre + half)


def paired_difference(after: Sequence[float], before: Sequence[float]) -> Estimate:
    """Mean of `after - before` over the same tasks (or seeds), in that order."""
    if len(after) != len(before):
        raise ValueError(f"cannot pair {len(after)} values with {len(before)}")
    return mean(np.asarray(after, dtype=float) - np.asarray(before, dtype=float))


def paired_ratio(part: Sequence[float], whole: Sequence[float], resamples: int = 2000) -> Estimate:
    """Mean of `part` over mean of `whole`, of the same tasks in the same order: what share of it is there?

    The interval is a percentile bootstrap over tasks, seeded. Where the whole is nothing, the share is 0 and its interval
    unknown (nan).
    """
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    if part.shape != whole.shape or part.size == 0:
        raise ValueError(f"cannot pair {part.size} values with {whole.size}")
    if whole.mean() <= 0:
        return Estimate(0.0, part.size, math.nan, math.nan)
    drawn = np.random.default_rng(0).integers(part.size, size=(resamples, part.size))
    means = whole[drawn].mean(1)
    ratios = part[drawn].mean(1)[means > 0] / means[means > 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Estimate(float(part.mean() / whole.mean()), part.size, float(low), float(high))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k runs, drawn from n of which c are correct, is correct.

    The unbiased estimator 1 - C(n-c, k) / C(n, k) (Chen et al. 2021), as a product so that nothing overflows.
    Undefined (nan) for n < k: with fewer runs than k there is no estimate.

    Raises:
        ValueError: an argument is negative or not an integer, or c > n.
    """
    n, c, k = _counts(n, c, k)
    if n < k:
        return math.nan
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def pass_hat_k(n: int, c: int, k: int) -> float:
    """Chance that all of k runs, drawn from n of which c are correct, are correct: pass^k, a measure of reliability.

    The unbiased estimator C(c, k) / C(n, k) (Yao et al. 2024, tau-bench); undefined (nan) for n < k.

    Raises:
        ValueError: as `pass_at_k`.
    """
    n, c, k = _counts(n, c, k)
    if n < k:
        return math.nan
    return float(np.prod(np.arange(c - k + 1, c + 1) / np.arange(n - k + 1, n + 1))) if c >= k else 0.0


def _counts(n: int, c: int, k: int) -> tuple[int, int, int]:
    """As Python's integers: numpy's small ones overflow."""
    if not all(isinstance(v, Integral) for v in (n, c, k)) or min(n, c, k) < 0 or c > n:
        raise ValueError(f"n runs, c of them correct, draw k: needs integers 0 <= c <= n and k >= 0, not n={n}, c={c}, k={k}")
    return int(n), int(c), int(k)


def majority(answers: Sequence[str | None], correct: Sequence[bool | None]) -> float:
    """Whether the most frequent of a task's answers is correct (maj@n): 1 or 0, and with a tie the share of the tied ones.

    `answers` are normal forms, the same text for what counts as the same answer; None (no answer) never wins a vote, and a
    task without any answer is a miss. Where verdicts on one answer differ, it counts by the share of those that say correct; a
    run without a verdict (None) has none to give.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    said = {answer: [v for a, v in zip(answers, correct, strict=True) if a == answer and v is not None] for answer in votes}
    return mean([mean(said[answer]).value if said[answer] else 0.0 for answer, count in votes.items() if count == most]).value


def share(values: Sequence[float]) -> Estimate:
    """Mean of shares, cut to [0, 1]; where all are 0 or all are 1, with Wilson's interval in the place of none."""
    if len(values) > 1 and set(values) in ({0.0}, {1.0}):
        return rate(round(sum(values)), len(values))
    return mean(values).of_share()


def mean_pass_at_k(correct: Sequence[int], runs: int, k: int) -> Estimate:
    """pass@k averaged over tasks; `correct[i]` of `runs` runs of task i are correct. The interval is over tasks."""
    return share([pass_at_k(runs, int(c), k) for c in correct])
