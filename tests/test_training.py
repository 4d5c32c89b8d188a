"""What SFT and RL train on: masks, filters, and no world that a test uses."""

import pytest

from agentcpm_kit.agent.oracle import OracleEngine
from agentcpm_kit.agent.trajectory import EndReason, Trajectory
from agentcpm_kit.evaluate.runner import evaluate_agent
from agentcpm_kit.train.data import IGNORED, keep_good, training_rows, training_tasks
from agentcpm_kit.train.rollouts import rl_tasks


def test_labels_are_the_sampled_tokens_and_nothing_else(tokenizer, smoke):
    tasks = training_tasks(smoke, 9)
    found = evaluate_agent(OracleEngine(tokenizer, tasks), tasks, smoke).trajectories
    for trajectory, row in zip(found, training_rows(found), strict=True):
        learned = [label for label in row["labels"] if label != IGNORED]
        text = tokenizer.decode(learned)
        assert text.count("<|im_end|>") == trajectory.turns and "<tool_response>" not in text
        assert all(label in (IGNORED, i) for label, i in zip(row["labels"], row["input_ids"], strict=True))
    with pytest.raises(ValueError, match="no sampled token"):
        training_rows([Trajectory(task_id="x", question="q")])


def test_filters_are_named_and_counted(tokenizer, smoke):
    tasks = training_tasks(smoke, 4)
    found = evaluate_agent(OracleEngine(tokenizer, tasks), tasks, smoke).trajectories
    found[0].correct = False
    found[1].end_reason = EndReason.TURN_LIMIT
    found[2].steps[0].status = "repeat_error"
    result = keep_good([*found, found[3]])
    assert result.kept == [found[3]]
    assert result.dropped == {"wrong": 1, "turn_limit": 1, "faulty_step": 1, "duplicate": 1}


def test_training_and_test_tasks_share_no_world(smoke):
    from agentcpm_kit.evaluate.runner import suite

    trained = {t.world for t in training_tasks(smoke, 50)} | {t.world for t in rl_tasks(smoke)}
    assert trained.isdisjoint(t.world for split in ("validation", "test") for t in suite(smoke, split))
