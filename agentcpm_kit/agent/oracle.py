"""The scripted oracle: an engine that follows each task's gold path and writes what it read.

It plays through the same loop and tools as every other engine. It goes on only if the evidence it needs is in what
the tool returned, so solving 100% proves that tasks, pages and tools fit together.
"""

import re

from ..world.tasks import Task
from ..world.tools import ToolSet, tool_schemas
from .engines.base import Ended, Sample, Turn
from .messages import Renderer, ToolCall, assistant_message
from .tokens import decode


class OracleEngine:
    """Engine over a known list of tasks, told apart by their ids, which end the keys."""

    def __init__(self, tokenizer, tasks: list[Task], batch_size: int = 256):
        self.tokenizer, self.batch_size = tokenizer, batch_size
        # The script writes assistant turns only, and those are rendered the same whatever tools there are.
        self.renderer = Renderer(tokenizer, tool_schemas())
        self.tasks = {task.task_id: task for task in tasks}
        self.seen: dict[str, tuple[int, list[int]]] = {}  # key -> turns written, tokens known
        self.turns: list[Turn] = []

    def submit(self, turn: Turn) -> None:
        self.turns.append(turn)

    def release(self, key: str) -> None:
        self.seen.pop(key, None)
        self.turns = [turn for turn in self.turns if turn.key != key]

    def poll(self) -> Ended:
        """All turns that were asked for. The script knows its length: `max_new_tokens` is not a limit here."""
        turns, self.turns = self.turns, []
        return [(turn.key, self._write(turn)) for turn in turns]

    def _write(self, turn: Turn) -> Sample:
        step, known = self.seen.get(turn.key, (0, []))
        new = turn.ids[len(known):] if turn.ids[: len(known)] == known else turn.ids  # all, where it was rendered again
        task = self.tasks[turn.key.rsplit("/", 1)[-1]]
        text = self.renderer.assistant_text(oracle_message(task, step, decode(self.tokenizer, new)))
        ids = [*self.renderer.encode(text), self.renderer.end_id]
        self.seen[turn.key] = step + 1, turn.ids + ids
        return Sample(ids, [0.0] * len(ids), True)


def oracle_message(task: Task, step: int, read: str) -> dict:
    """Turn `step` of the script: the next call of the gold path, or the answer. `read` is the last tool result."""
    if step and not all(passage in read for passage in task.steps[step - 1].evidence):
        return assistant_message("No evidence found.", "<answer>unknown</answer>")
    if step == len(task.steps):
        return assistant_message(task.conclusion, f"<answer>{task.answer}</answer>")
    gold = task.steps[step]
    return assistant_message(gold.thought, call=ToolCall(gold.tool, gold.arguments))


def follow_path(task: Task, tools: ToolSet) -> str:
    """Play the gold path with the tools alone, without a model's loop.

    The answer, or "unknown" where evidence lacks, or where no result holds the answer itself.
    """
    results = []
    for step in task.steps:
        results.append(tools.call(step.tool, step.arguments))
        if not all(passage in results[-1] for passage in step.evidence):
            return "unknown"
    shown = re.sub(r"(?<=\d),(?=\d{3})", "", "\n".join(results))  # pages write 48,200
    return task.answer if task.answer in shown else "unknown"
