"""Numbers worked out by hand."""

import math
from itertools import combinations

import pytest

from agentcpm_kit.evaluate.metrics import majority, mean, mean_pass_at_k, paired_difference, pass_at_k, pass_hat_k, rate, share


@pytest.mark.parametrize("n,c,k,expected", [
    (10, 3, 2, 1 - 21 / 45), (4, 0, 4, 0.0), (4, 4, 1, 1.0), (5, 1, 5, 1.0), (5, 1, 1, 0.2), (3, 2, 2, 1.0)])
def test_pass_at_k_by_hand(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected)


def test_pass_at_k_equals_counting_all_subsets():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([1] * c + [0] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(any(d) for d in draws) / len(draws))


def test_pass_at_k_of_too_few_runs_is_undefined_not_one():
    """The reference returns 1 here, which inflates incomplete runs."""
    assert math.isnan(pass_at_k(2, 1, 4))


def test_pass_at_k_is_stable_for_large_n():
    assert 0 < pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [(-1, 0, 1), (4, -1, 1), (4, 1, -1), (4, 5, 1), (4.0, 1, 1), (4, "1", 1), (4, 1, 1.5)])
def test_pass_at_k_refuses_nonsense(bad):
    with pytest.raises(ValueError):
        pass_at_k(*bad)


def test_wilson_interval_by_hand():
    estimate = rate(8, 10)
    assert (estimate.value, estimate.n) == (0.8, 10)
    assert (estimate.ci_low, estimate.ci_high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))
    with pytest.raises(ValueError):
        rate(0, 0)


def test_mean_interval_by_hand():
    estimate = mean([1.0, 2.0, 3.0])
    assert estimate.value == 2.0 and estimate.ci_high - 2.0 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)
    assert math.isnan(mean([1.0]).ci_low)


def test_paired_difference_needs_pairs():
    assert paired_difference([1, 1], [0, 1]).value == 0.5
    with pytest.raises(ValueError, match="pair"):
        paired_difference([1], [1, 2])


def test_mean_pass_at_k_averages_over_tasks():
    assert mean_pass_at_k([0, 4], 4, 1).value == 0.5


def test_paired_ratio_by_hand_and_its_interval():
    from agentcpm_kit.evaluate.metrics import paired_ratio

    part, whole = [1, 1, 0, 0] * 50, [1, 1, 1, 0] * 50
    found = paired_ratio(part, whole)
    assert found.value == pytest.approx(2 / 3) and found.n == 200
    assert found.ci_low < 2 / 3 < found.ci_high and found.ci_high - found.ci_low < 0.2
    assert paired_ratio(part, whole) == found  # seeded
    assert paired_ratio([0, 1], [0, 0]).value == 0.0
    with pytest.raises(ValueError, match="cannot pair"):
        paired_ratio([1], [1, 0])


def test_pass_hat_k_equals_counting_all_subsets():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([1] * c + [0] * (n - c), k))
                assert pass_hat_k(n, c, k) == pytest.approx(sum(all(d) for d in draws) / len(draws))
    assert math.isnan(pass_hat_k(2, 2, 3)) and 0 < pass_hat_k(100_000, 99_999, 50_000) == pytest.approx(0.5)


@pytest.mark.parametrize("answers, correct, expected", [
    ("aab", [1, 1, 0], 1.0), ("abb", [1, 0, 0], 0.0), ("ab", [1, 0], 0.5), (["a", None, None], [1, 0, 0], 1.0), ([], [], 0.0),
    ("aabbc", [1, 1, 0, 0, 1], 0.5), ([None], [0], 0.0)])
def test_majority_by_hand(answers, correct, expected):
    assert majority(list(answers), list(map(bool, correct))) == expected


def test_verdicts_that_differ_or_are_missing_weigh_a_vote():
    assert majority(["a", "a", "a"], [True, True, None]) == 1.0  # the judge was out once
    assert majority(["a", "a", "a"], [False, False, True]) == pytest.approx(1 / 3)
    assert majority(["a", "a", "b"], [None, None, True]) == 0.0


def test_a_share_of_nothing_or_all_has_an_interval():
    assert share([0.0] * 20).ci_high == pytest.approx(0.161, abs=1e-3)
    assert share([1.0] * 20).ci_low == pytest.approx(0.839, abs=1e-3)
    assert share([0.0, 0.5]).value == 0.25
