import pytest

from agentcpm_kit.agent.trajectory import EndReason, Trajectory
from agentcpm_kit.evaluate.scorers import gaia_match, score
from agentcpm_kit.world import make_tasks


@pytest.mark.parametrize("prediction,truth,right", [
    ("Pulmak", "pulmak", True), (" Pul mak.", "Pulmak", True), ("Pulmok", "Pulmak", False), ("$1,874", "1874", True),
    ("1874.0", "1874", True), ("about 1874", "1874", False), ("50%", "50", True), ("a, b", "a,b", True),
    ("a; b", "a, b", True), ("b, a", "a, b", False), ("a", "a, b", False), ("1, two", "1.0;two", True),
    (None, "None", True), ("", "x", False)])
def test_gaia_match(prediction, truth, right):
    assert gaia_match(prediction, truth) is right


@pytest.mark.parametrize("reason,answer,correct", [
    (EndReason.ANSWERED, "right", True), (EndReason.ANSWERED, "x", False), (EndReason.TURN_LIMIT, None, False),
    (EndReason.TOOL_FAULT, None, None), (EndReason.ENGINE_FAULT, None, None)])
def test_faults_are_not_wrong_answers(reason, answer, correct):
    task = make_tasks("test", 1, 1, 1, 20, 0)[0]
    answer = task.answer if answer == "right" else answer
    trajectory = Trajectory(task_id="t", question="q", answer=answer, end_reason=reason)
    assert score(trajectory, task).correct is correct
