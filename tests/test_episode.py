"""The loop, driven by a scripted engine: every end reason, and what a trajectory must record."""

from dataclasses import dataclass, field

import pytest

from agentcpm_kit.agent.context import ContextPolicy
from agentcpm_kit.agent.engines import Sample
from agentcpm_kit.agent.episode import run_episodes, world_tools
from agentcpm_kit.agent.oracle import OracleEngine
from agentcpm_kit.agent.trajectory import EndReason, read_trajectories, write_trajectories
from agentcpm_kit.errors import KitError
from agentcpm_kit.evaluate.runner import evaluate_agent, suite
from agentcpm_kit.profile import Limits
from agentcpm_kit.world import FaultPlan, make_tasks

LIMITS = Limits(max_turns=4, max_new_tokens=40, max_context_tokens=1024)
TASKS = make_tasks("test", 3, 2, 3, 60, 2)


def fetch(name):
    return f'<tool_call>{{"name": "fetch_url", "arguments": {{"url": ["atlas/{name}"], "purpose": "home"}}}}</tool_call>'


@dataclass
class Script:
    """An engine that says the same lines in every episode, one per turn."""

    tokenizer: object
    lines: list[str]
    batch_size: int = 2
    fail_at: int = -1
    turn: int = field(default=0)

    def begin(self, prompts, seeds):
        self.turn, self.rows = 0, len(prompts)
        return self

    def generate(self, max_new_tokens):
        if self.turn == self.fail_at:
            raise RuntimeError("out of memory")
        ids = self.tokenizer(self.lines[self.turn], add_special_tokens=False).input_ids
        self.turn += 1
        ids = [*ids, self.tokenizer.convert_tokens_to_ids("<|im_end|>")]
        return [Sample(list(ids), [-0.5] * len(ids), True) for _ in range(self.rows)]

    def extend(self, keep, pieces):
        self.rows = len(keep)


def play(tokenizer, lines, limits=LIMITS, faults=None, **options):
    return run_episodes(TASKS, Script(tokenizer, lines, **options), world_tools(faults), limits)


@pytest.mark.parametrize("lines,reason,turns", [
    (["<answer>Pulmak</answer>"], EndReason.ANSWERED, 1),
    ([fetch("Pulmak"), "<answer>Pulmak</answer>"], EndReason.ANSWERED, 2),
    (["Pulmak"], EndReason.FORMAT_ERROR, 1),
    ([fetch(n) for n in ("Pulmak", "Hishok", "Talin", "Gamak")], EndReason.TURN_LIMIT, 4),
    ([fetch("Pulmak")] * 3, EndReason.REPETITION, 3)])
def test_end_reasons(tokenizer, lines, reason, turns):
    for trajectory in play(tokenizer, lines):
        assert (trajectory.end_reason, trajectory.turns) == (reason, turns)


def test_tool_fault_ends_as_a_fault(tokenizer):
    for trajectory in play(tokenizer, [fetch("Pulmak")], faults=FaultPlan(outage=1.0)):
        assert trajectory.end_reason == EndReason.TOOL_FAULT and trajectory.answer is None
        assert trajectory.steps[0].status == "tool_failed" and trajectory.message == "timeout"


def test_a_dead_engine_is_a_fault_of_its_batch_only(tokenizer):
    """Batches of two: the engine dies in each at its second turn, and nothing is lost."""
    found = play(tokenizer, [fetch("Pulmak"), "x"], fail_at=1)
    assert [t.end_reason for t in found] == [EndReason.ENGINE_FAULT] * 3
    assert all(t.turns == 1 and "out of memory" in t.message for t in found)


def test_context_limit(tokenizer):
    small = Limits(max_turns=4, max_new_tokens=40, max_context_tokens=120)
    assert {t.end_reason for t in play(tokenizer, [fetch(TASKS[0].path[0])] * 4, small)} <= {
        EndReason.CONTEXT_LIMIT, EndReason.REPETITION}


def test_unreadable_call_is_told_to_the_agent(tokenizer):
    broken = '<tool_call>{"name": "search", "arguments": {"query": ["Pulmak"</tool_call>'
    step = play(tokenizer, [broken, "<answer>x</answer>"])[0].steps[0]
    assert step.status == "format_error" and "could not be read" in step.results[0]


def test_what_is_recorded(tokenizer):
    for t in play(tokenizer, [fetch("Pulmak"), "<answer>Pulmak</answer>"]):
        assert len(t.token_ids) == len(t.loss_mask) == len(t.logprobs)
        assert not any(t.loss_mask[: t.prompt_length])
        learned = [i for i, m in zip(t.token_ids, t.loss_mask, strict=True) if m]
        assert tokenizer.decode(learned) == f"{fetch('Pulmak')}<|im_end|><answer>Pulmak</answer><|im_end|>"
        assert all((p == -0.5) == bool(m) for p, m in zip(t.logprobs, t.loss_mask, strict=True))
        assert t.steps[0].tokens_read == t.steps[0].tokens_shown > 0


def test_results_keep_the_order_of_tasks_at_any_batch_size(tokenizer, smoke):
    tasks = suite(smoke, "test")
    for size in (1, 7, 100):
        found = evaluate_agent(OracleEngine(tokenizer, tasks, batch_size=size), tasks, smoke)
        assert [t.task_id for t in found.trajectories] == [t.task_id for t in tasks]
        assert found.success.value == 1.0


def test_oracle_needs_its_evidence(tokenizer, smoke):
    """Cut down to nothing, the pages no longer prove anything, and the oracle must not answer from memory."""
    tasks = suite(smoke, "test", redundancy=8)
    found = evaluate_agent(OracleEngine(tokenizer, tasks), tasks, smoke, ContextPolicy("truncate", keep=0))
    assert found.success.value == 0.0


def test_extraction_keeps_the_evidence_and_saves_tokens(tokenizer, smoke):
    tasks = suite(smoke, "test", redundancy=12)
    found = evaluate_agent(OracleEngine(tokenizer, tasks), tasks, smoke, ContextPolicy("extract", keep=3))
    fetches = [s for t in found.trajectories for s in t.steps if s.calls and s.calls[0]["name"] == "fetch_url"]
    assert found.success.value > 0.9 and sum(s.tokens_shown for s in fetches) < 0.5 * sum(s.tokens_read for s in fetches)


def test_unknown_policy_names_the_nearest():
    with pytest.raises(KitError, match="extract"):
        ContextPolicy("extrct")


def test_trajectories_survive_a_torn_last_line(tokenizer, tmp_path):
    found, path = play(tokenizer, ["<answer>x</answer>"]), tmp_path / "t.jsonl"
    write_trajectories(path, found)
    assert read_trajectories(path) == found
    path.write_text(path.read_text()[:-40])
    assert read_trajectories(path) == found[:2]
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1"):
        read_trajectories(path)
