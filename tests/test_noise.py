"""Reward noise: each source does what it says, alone, and the same draws meet every arm."""

import random

import pytest

from agentcpm_kit.agent.episode import run_episodes, world_tools
from agentcpm_kit.agent.oracle import OracleEngine
from agentcpm_kit.agent.trajectory import EndReason, Trajectory
from agentcpm_kit.errors import KitError
from agentcpm_kit.evaluate.scorers import score
from agentcpm_kit.sections import Noise
from agentcpm_kit.train.data import training_tasks
from agentcpm_kit.train.noise import CLEAN, alone, cut, judge, scaled, truncate, turn_ends, turns_within

ALL = Noise(tool_outage=0.25, judge_outage=0.1, judge_false_positive=0.2, judge_false_negative=0.1, lucky_answer=0.5,
            format_slip=0.4, turn_limit=0.1, context_limit=0.1)


def episode(correct, turns=4, answer="x", end_reason=EndReason.ANSWERED):
    return Trajectory(task_id="t", question="q", answer=answer, correct=correct, steps=[{}] * turns, end_reason=end_reason)


def rewards(trajectory, noise, n=4000):
    rng = random.Random(0)
    return [judge(trajectory, noise, rng) for _ in range(n)]


def share(trajectory, noise):
    return sum(rewards(trajectory, noise)) / 4000


def test_without_noise_the_reward_is_the_truth():
    assert share(episode(True), CLEAN) == 1.0 and share(episode(False), CLEAN) == 0.0
    assert judge(episode(None), CLEAN, random.Random(0)) is None


@pytest.mark.parametrize("source,trajectory,expected", [
    ("judge_false_negative", episode(True), 0.9),
    ("judge_false_positive", episode(False), 0.2),
    ("lucky_answer", episode(False, turns=1), 0.5),
    ("lucky_answer", episode(False, turns=2), 0.0),
    ("judge_false_positive", episode(False, answer=None), 0.0),
    ("format_slip", episode(False, answer=None, end_reason=EndReason.FORMAT_ERROR), 0.4),
    ("format_slip", episode(False, answer=None, end_reason=EndReason.TURN_LIMIT), 0.0),
    ("turn_limit", episode(True), 1.0)])
def test_each_judge_alone(source, trajectory, expected):
    assert share(trajectory, alone(ALL, source)) == pytest.approx(expected, abs=0.03)


def test_a_judge_that_is_out_gives_no_reward():
    found = rewards(episode(True), alone(ALL, "judge_outage"))
    assert set(found) == {None, 1.0} and found.count(None) / 4000 == pytest.approx(0.1, abs=0.02)


def test_dialling_one_source_leaves_the_draws_of_the_others():
    """Without outages, the rewards that are given are the very same: only the missing ones differ."""
    wrong = episode(False)
    with_outages, without = rewards(wrong, ALL), rewards(wrong, ALL.changed(judge_outage=0.0))
    assert [b for a, b in zip(with_outages, without, strict=True) if a is not None] == [a for a in with_outages if a is not None]


def test_scaling_and_bounds():
    assert scaled(ALL, 0) == CLEAN and scaled(ALL, 4).lucky_answer == 1.0
    with pytest.raises(KitError, match="tool_outage = 1.5"):
        ALL.changed(tool_outage=1.5)


@pytest.fixture(scope="module")
def played(tokenizer, smoke):
    tasks = training_tasks(smoke, 12)

    def play(**limits):
        engine = OracleEngine(tokenizer, tasks)
        found = run_episodes(tasks, engine, world_tools(), smoke.limits.model_copy(update=limits))
        return [score(t, task) for t, task in zip(found, tasks, strict=True)]
    return play


def test_a_cut_trajectory_is_the_one_that_the_limit_would_have_made(played):
    for turns in (1, 2):
        for whole, limited in zip(played(), played(max_turns=turns), strict=True):
            found = cut(whole, turns, EndReason.TURN_LIMIT)
            assert found.contexts == limited.contexts and found.end_reason == limited.end_reason == EndReason.TURN_LIMIT
            for each in (found, limited):
                assert (each.answer, each.correct, each.turns) == (None, False, turns)
            assert whole.correct  # what it was cut from is as it was


def test_limits_as_noise(played):
    found = played()
    for source, reason in (("turn_limit", EndReason.TURN_LIMIT), ("context_limit", EndReason.CONTEXT_LIMIT)):
        rng, noise = random.Random(0), Noise(**{source: 0.3})
        after = [truncate(t, noise, rng) for _ in range(200) for t in found]
        hit = [t for t in after if t.end_reason == reason]
        assert len(hit) / len(after) == pytest.approx(0.3, abs=0.03)
        assert all(t.turns > 0 and t.correct is False for t in hit)
    assert [truncate(t, CLEAN, random.Random(0)) for t in found] == found


def test_tokens_within_a_share(played):
    whole = played()[0]
    ends = turn_ends(whole.context)
    assert len(ends) == whole.turns and ends[-1] == len(whole.context.token_ids)
    assert turns_within(whole, 0.0) == 1 and turns_within(whole, 1.0) == whole.turns - 1


def test_short_episodes_and_faults_are_not_cut():
    everything = Noise(turn_limit=1.0, context_limit=1.0)
    for trajectory in (episode(False, turns=1), episode(None)):
        assert truncate(trajectory, everything, random.Random(0)) is trajectory


def test_noise_cannot_be_scaled_below_zero():
    with pytest.raises(KitError, match="noise_scale is -1"):
        scaled(ALL, -1)
