"""Every rule on groups worked out by hand, and what must hold for any group."""

import random
from dataclasses import replace

import pytest

from agentcpm_kit.agent.trajectory import EndReason
from agentcpm_kit.train.advantages import clip_sign, leave_one_out, step_advantages
from agentcpm_kit.train.denoise import (
    NO_RULES,
    Rollout,
    Rules,
    cut_off,
    denoise_group,
    faults,
    rank_shift,
    short,
    spread_too_small,
    unbalanced,
)

FAULT, LIMIT, TURNS = EndReason.TOOL_FAULT, EndReason.CONTEXT_LIMIT, EndReason.TURN_LIMIT
PUBLISHED = Rules(as_published=True)


def named(*rollouts):
    return [replace(r, key=str(i)) for i, r in enumerate(rollouts)]


def test_leave_one_out_by_hand():
    assert leave_one_out([1, 0, 0, 0]) == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    assert leave_one_out([1.0]) == [0.0]


def test_a_dropped_fault_leaves_the_baseline():
    group = [Rollout(1.0, 4), Rollout(0.0, 4), Rollout(None, 1, FAULT)]
    assert denoise_group(group, Rules()).advantages == [1.0, -1.0, 0.0]
    assert denoise_group(group, Rules()).dropped == {2: "fault"}


def test_as_published_keeps_it_in_the_baseline():
    group = [Rollout(1.0, 4), Rollout(0.0, 4), Rollout(None, 1, FAULT)]
    assert denoise_group(group, Rules(as_published=True)).advantages == [1.0, -0.5, 0.0]


def test_without_rules_a_fault_is_punished():
    group = [Rollout(1.0, 4), Rollout(None, 1, FAULT)]
    assert denoise_group(group, NO_RULES).advantages == [1.0, -1.0]


def test_lucky_short_answers_go():
    group = [Rollout(1.0, 1), Rollout(1.0, 4), Rollout(0.0, 1)]
    result = denoise_group(group, Rules())
    assert result.dropped == {0: "short"} and result.advantages == [0.0, 1.0, -1.0]


def test_cut_off_rollouts_go():
    assert denoise_group([Rollout(0.0, 8, LIMIT), Rollout(1.0, 4), Rollout(0.0, 4)], Rules()).dropped == {0: "limit"}


def test_variance_gate_looks_at_what_is_left():
    group = [Rollout(1.0, 4), Rollout(1.0, 4), Rollout(None, 1, FAULT)]
    assert set(denoise_group(group, Rules()).dropped.values()) == {"variance_gate", "fault"}
    # As published, the fault's 0 lets the group through the gate: a group that teaches nothing is trained on.
    assert "variance_gate" not in denoise_group(group, Rules(as_published=True)).dropped.values()


def test_sign_clip():
    group = [Rollout(0.4, 4), Rollout(0.0, 4), Rollout(1.0, 4)]
    clipped, free = denoise_group(group, Rules()), denoise_group(group, replace(Rules(), sign_clip=False))
    assert clipped.advantages == pytest.approx([-0.1, -0.7, 0.8]) and free.advantages == pytest.approx([-0.1, -0.7, 0.8])
    lucky = [Rollout(0.4, 4), Rollout(0.0, 4), Rollout(0.0, 4)]
    assert denoise_group(lucky, Rules()).advantages[0] == 0.0
    assert denoise_group(lucky, replace(Rules(), sign_clip=False)).advantages[0] > 0.0


def test_bad_steps_never_gain():
    group = [Rollout(1.0, 2, steps=("format_error", "completed")), Rollout(0.0, 2, steps=("repeat_error", "completed"))]
    assert denoise_group(group, Rules()).step_advantages == [[0.0, 1.0], [-1.0, -1.0]]


def test_each_rule_alone_on_one_group():
    """The group of notebook 06: each rule sees its own rollouts and no other's."""
    group = [Rollout(1.0, 4), Rollout(1.0, 1), Rollout(0.0, 1), Rollout(None, 1, FAULT), Rollout(None, 4), Rollout(0.0, 8, TURNS),
             Rollout(0.0, 5, LIMIT), Rollout(0.0, 4, EndReason.REPETITION)]
    assert faults(group) == {3, 4}
    assert faults(group, as_published=True) == {3}  # the judge's outage, rollout 4, is a wrong answer there
    assert short(group) == {1} and short(group, min_turns=4) == {0, 1}
    assert cut_off(group) == {5, 6}
    assert len(cut_off(named(*group), reserve=1)) == 1 and cut_off(group, reserve=2) == set()


def test_reserved_few_depend_on_seed_and_keys_alone():
    group = named(*[Rollout(0.0, 8, LIMIT)] * 6)
    kept = {seed: set(range(6)) - cut_off(group, 2, seed) for seed in range(20)}
    assert all(len(k) == 2 for k in kept.values()) and len({frozenset(k) for k in kept.values()}) > 5
    turned = cut_off(group[::-1], 2, seed=3)
    assert {5 - i for i in turned} == cut_off(group, 2, seed=3)


def test_a_judge_outage_is_no_reward_and_as_published_a_wrong_answer():
    group = [Rollout(1.0, 4), Rollout(0.0, 4), Rollout(None, 4)]
    assert denoise_group(group, Rules()).advantages == [1.0, -1.0, 0.0]
    assert denoise_group(group, PUBLISHED).advantages == [1.0, -0.5, -0.5]


def test_balance_by_hand():
    """Two wrong and six right: m = 2, so 3 of the wrong may stay (both do) and 4 of the right."""
    group = named(*[Rollout(0.0, 4)] * 2, *[Rollout(1.0, 4)] * 6)
    gone = unbalanced(group)
    assert len(gone) == 2 and min(gone) >= 2
    result = denoise_group(group, replace(Rules(), balance_sample=True))
    assert set(result.dropped) == gone and set(result.dropped.values()) == {"balance"}
    assert max(result.advantages) == pytest.approx(2 / 5)  # 4 right and 2 wrong are left: 1 - 3 / 5
    # As published, all eight stay in the baseline: 1 - 5 / 7.
    assert max(denoise_group(group, replace(PUBLISHED, balance_sample=True)).advantages) == pytest.approx(2 / 7)


def test_balance_turns_off_the_rules_after_it():
    group = named(Rollout(1.0, 1), Rollout(0.0, 8, LIMIT), Rollout(0.0, 4))
    assert denoise_group(group, replace(Rules(), balance_sample=True)).dropped == {}
    assert set(denoise_group(group, Rules()).dropped) == {0, 1, 2}  # one is left, and the gate takes it


def test_rank_shift_by_hand():
    """Right ones after 2, 4 and 4 turns: ranks 1, 2.5, 2.5, mean 2, so +0.1, -0.05, -0.05. Wrong after 3 and 7: -0.1, +0.1."""
    shifted = rank_shift([1, 1, 1, 0, 0], [2, 4, 4, 3, 7])
    assert shifted == pytest.approx([1.1, 0.95, 0.95, -0.1, 0.1])
    assert rank_shift([1, 0], [2, 9]) == [1, 0]  # nobody to compare with


def test_rank_shift_reaches_the_advantages_and_as_published_does_not():
    group = [Rollout(1.0, 2), Rollout(1.0, 4), Rollout(0.0, 4)]
    rules = replace(Rules(), efficient_rewarding=True)
    result = denoise_group(group, rules)
    assert result.scores == pytest.approx([1.1, 0.9, 0.0])
    assert result.advantages == pytest.approx([1.1 - 0.45, 0.9 - 0.55, -1.0])
    published = denoise_group(group, replace(rules, as_published=True))
    assert published.scores == result.scores and published.advantages == [0.5, 0.5, -1.0]


def test_efficient_rewarding_keeps_what_a_limit_ended():
    group = [Rollout(0.0, 8, LIMIT), Rollout(1.0, 4), Rollout(0.0, 4)]
    assert denoise_group(group, replace(Rules(), efficient_rewarding=True)).dropped == {}


def test_as_published_gate_comes_first_and_drops_all():
    group = [Rollout(0.0, 4), Rollout(None, 1, FAULT), Rollout(0.05, 8, LIMIT)]
    assert denoise_group(group, PUBLISHED).dropped == dict.fromkeys(range(3), "variance_gate")
    assert denoise_group(group, Rules()).dropped == {0: "variance_gate", 1: "fault", 2: "limit"}


def test_spread_by_hand():
    assert spread_too_small([0.5, 0.55], 0.1) and not spread_too_small([0.5, 0.65], 0.1) and spread_too_small([], 0.1)


def test_scaling_and_smallest_advantage():
    group = [Rollout(1.0, 4), Rollout(0.0, 4), Rollout(0.0, 4)]
    assert denoise_group(group, replace(Rules(), adv_scaling=2.0)).advantages == [2.0, -1.0, -1.0]
    only_gains = denoise_group([replace(r, steps=("completed",)) for r in group], replace(Rules(), minimal_advantage=0.0))
    assert only_gains.step_advantages == [[1.0], [0.0], [0.0]]


def test_steps_by_hand():
    statuses = ("completed", "format_error", "repeat_error", "tool_failed")
    assert step_advantages(statuses, 0.5) == [0.5, 0.0, 0.0, 0.5] and step_advantages(statuses, -0.5) == [-0.5] * 4
    assert step_advantages(statuses, 0.5, cap_bad_steps=False) == [0.5] * 4
    assert clip_sign(0.3, 0.5) == 0.0 and clip_sign(-0.3, 0.6) == 0.0 and clip_sign(0.3, 0.6) == 0.3


RULES = {"default": Rules(), "balance": Rules(balance_sample=True), "efficient": Rules(efficient_rewarding=True),
         "reserve": Rules(reserve_limits=1), "bad steps free": Rules(cap_bad_steps=False)}


def random_group(rng):
    ends = [EndReason.ANSWERED] * 5 + [FAULT, LIMIT]
    return [Rollout(rng.choice([0.0, 1.0, None]), rng.randint(1, 8), rng.choice(ends), key=str(rng.random())) for _ in range(8)]


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_advantages_of_what_is_kept_sum_to_zero_and_order_does_not_matter(rules):
    rng, rules = random.Random(0), replace(rules, sign_clip=False)
    for _ in range(300):
        group = random_group(rng)
        result = denoise_group(group, rules)
        assert sum(result.advantages) == pytest.approx(0)
        assert all(result.advantages[i] == 0 for i in result.dropped)
        order = rng.sample(range(8), 8)
        again = denoise_group([group[i] for i in order], rules)
        assert again.advantages == pytest.approx([result.advantages[i] for i in order])
        assert [again.dropped.get(j) for j in range(8)] == [result.dropped.get(i) for i in order]


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_dropping_is_idempotent(rules):
    rng = random.Random(1)
    for _ in range(300):
        group = random_group(rng)
        kept = [r for i, r in enumerate(group) if i not in denoise_group(group, rules).dropped]
        assert denoise_group(kept, rules).dropped == {}


def test_as_published_does_not_sum_to_zero():
    """Dropped rollouts lower the baseline of the others, who then gain in sum: the defect's cost in one number."""
    group = [Rollout(1.0, 4), Rollout(0.0, 4), Rollout(None, 1, FAULT), Rollout(None, 1, FAULT)]
    assert sum(denoise_group(group, PUBLISHED).advantages) == pytest.approx(2 / 3)  # 1 - 1/3
