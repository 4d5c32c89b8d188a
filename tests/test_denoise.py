"""Every rule on groups worked out by hand, and what must hold for any group."""

import random
from dataclasses import replace

import pytest

from agentcpm_kit.agent.trajectory import EndReason
from agentcpm_kit.train.denoise import NO_RULES, Rollout, Rules, denoise_group, leave_one_out

FAULT, LIMIT = EndReason.TOOL_FAULT, EndReason.CONTEXT_LIMIT


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


def random_group(rng):
    ends = [EndReason.ANSWERED] * 5 + [FAULT, LIMIT]
    return [Rollout(rng.choice([0.0, 1.0, None]), rng.randint(1, 8), rng.choice(ends)) for _ in range(8)]


def test_advantages_of_what_is_kept_sum_to_zero_and_order_does_not_matter():
    rng, rules = random.Random(0), replace(Rules(), sign_clip=False)
    for _ in range(300):
        group = random_group(rng)
        result = denoise_group(group, rules)
        assert sum(result.advantages) == pytest.approx(0)
        order = rng.sample(range(8), 8)
        again = denoise_group([group[i] for i in order], rules)
        assert again.advantages == pytest.approx([result.advantages[i] for i in order])


def test_dropping_is_idempotent():
    rng = random.Random(1)
    for _ in range(300):
        group = random_group(rng)
        kept = [r for i, r in enumerate(group) if i not in denoise_group(group, Rules()).dropped]
        assert denoise_group(kept, Rules()).dropped == {}
