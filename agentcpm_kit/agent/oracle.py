"""The scripted oracle: an engine that follows each task's gold path and writes what it read.

It plays through the same loop and tools as every other engine. It goes on only if the evidence it needs is in what
the tool returned, so solving 100% proves that tasks, pages and tools fit together.
"""

import re
from dataclasses import dataclass

from ..world.tasks import Task
from ..world.tools import ToolSet, tool_schemas
from .engines import Sample
from .messages import Renderer, ToolCall, assistant_message


@dataclass
class OracleEngine:
    """Engine over a known list of tasks, told apart by their ids."""

    tokenizer: object
    tasks: list[Task]
    batch_size: int = 256

    def begin(self, prompts: list[list[int]], seeds: list[str]) -> "OracleBatch":
        known = {task.task_id: task for task in self.tasks}
        # The script writes assistant turns only, and those are rendered the same whatever tools there are.
        return OracleBatch(Renderer(self.tokenizer, tool_schemas()), [known[s.rsplit("/", 1)[-1]] for s in seeds])


class OracleBatch:
    def __init__(self, renderer: Renderer, tasks: list[Task]):
        self.renderer, self.tasks, self.read, self.step = renderer, tasks, [""] * len(tasks), 0

    def generate(self, max_new_tokens: int) -> list[Sample]:
        """The scripted turn of every row. `max_new_tokens` is not a limit here: the script knows its length."""
        samples = []
        for task, read in zip(self.tasks, self.read, strict=True):
            text = self.renderer.assistant_text(oracle_message(task, self.step, read))
            ids = [*self.renderer.encode(text), self.renderer.end_id]
            samples.append(Sample(ids, [0.0] * len(ids), True))
        self.step += 1
        return samples

    def extend(self, keep: list[int], pieces: list[list[int]]) -> None:
        self.tasks = [self.tasks[i] for i in keep]
        self.read = [self.renderer.tokenizer.decode(piece) for piece in pieces]


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
