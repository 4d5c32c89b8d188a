"""The scripted oracle: an engine that follows each task's gold path and writes what it read.

It plays through the same loop and tools as every other engine. It goes on only if the evidence it needs is in what
the tool returned, so solving 100% proves that tasks, pages and tools fit together.
"""

from dataclasses import dataclass

from ..micro.reading import thoughts
from ..world.pages import URL_PREFIX
from ..world.tasks import Task, chain_text
from ..world.tools import tool_schemas
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
    """Turn `step` of the script: search the alias, fetch a page per hop, answer. `read` is the last tool result."""
    if step == 0:
        sought = chain_text(task.relations, task.alias)
        return assistant_message(f"Find {sought}. Search {task.alias}.", call=ToolCall("search", {"query": [task.alias]}))
    if task.evidence[step - 1] not in read:
        return assistant_message("No evidence found.", "<answer>unknown</answer>")
    thinking = thoughts(task)[step - 1]
    if step > task.hops:
        return assistant_message(thinking, f"<answer>{task.answer}</answer>")
    entity, relation = task.path[step - 1], task.relations[step - 1]
    call = ToolCall("fetch_url", {"url": [URL_PREFIX + entity], "purpose": f"{relation} of {entity}"})
    return assistant_message(thinking, call=call)
