"""Trajectories: plain records of what happened in an episode, appended to jsonl as they end."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..files import append_lines, whole_lines


class EndReason(StrEnum):
    """Why an episode ended. The last two are faults, not wrong answers: they are unscored, never rewarded 0."""

    ANSWERED = "answered"
    TURN_LIMIT = "turn_limit"
    CONTEXT_LIMIT = "context_limit"
    REPETITION = "repetition"
    FORMAT_ERROR = "format_error"
    TOOL_FAULT = "tool_fault"
    ENGINE_FAULT = "engine_fault"

    @property
    def is_fault(self) -> bool:
        return self in (EndReason.TOOL_FAULT, EndReason.ENGINE_FAULT)


class Step(BaseModel):
    """One turn, in tokens and seconds.

    `tokens_before` is the length of the context that the turn was sampled after. `tokens_read` counts what the tools returned,
    `tokens_shown` what the context policy let through, `condenser_read` and `condenser_written` what a summariser's model read
    and wrote for it. `context` tells in which context it was sampled.
    """

    thinking: str = ""
    content: str = ""
    calls: list[dict[str, Any]] = []
    errors: list[str] = []  # calls that could not be read
    results: list[str] = []
    status: str = "completed"  # or tool_failed, format_error, repeat_error (the reference's names)
    context: int = 0
    policy_version: int = 0  # in RL: how many steps the policy had learned when it sampled this turn
    tokens_before: int = 0
    tokens_generated: int = 0
    billed: tuple[int, int] | None = None  # tokens read and written as the server counts them, where it tells
    cut: bool = False  # the turn ran out of `max_new_tokens` before its end token
    tokens_read: int = 0
    tokens_shown: int = 0
    condenser_read: int = 0
    condenser_written: int = 0
    engine_seconds: float = 0.0
    tool_seconds: float = 0.0


class Context(BaseModel):
    """What the model saw, token by token. `loss_mask` is 1 on sampled tokens, `logprobs` is 0.0 elsewhere.

    `prompt_length` tokens of it came before the first turn sampled in it.
    """

    prompt_length: int = 0
    token_ids: list[int] = []
    loss_mask: list[int] = []
    logprobs: list[float] = []

    @classmethod
    def of_prompt(cls, ids: list[int]) -> "Context":
        context = cls(prompt_length=len(ids))
        context.append(ids)
        return context

    def append(self, ids: list[int], logprobs: list[float] | None = None) -> None:
        """Add tokens; those with log-probabilities were sampled."""
        self.token_ids += ids
        self.loss_mask += [int(logprobs is not None)] * len(ids)
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(ids)


class Trajectory(BaseModel):
    """An episode. A history reset begins a new context; what was sampled before it stays in the earlier ones."""

    episode: str = ""  # its name within a run: seed/run/position/task
    settings: str = ""  # which limits and context policy it was played under, as a hash
    task_id: str
    run: int = 0
    question: str
    answer: str | None = None
    end_reason: EndReason = EndReason.TURN_LIMIT
    correct: bool | None = None  # None: not scored, or a fault
    exact: bool = True  # false: some ids were made from text, not sampled
    steps: list[Step] = []
    contexts: list[Context] = []
    fault: str = ""  # of a fault: its kind (see `EngineFault`), or "tool"
    message: str = ""  # a fault's own words, or which limit it was

    def without_texts(self) -> "Trajectory":
        """A copy that a file of gigabytes can be counted by: how it ended, its answer, calls and tokens."""
        left = {"thinking": "", "content": "", "results": []}
        return self.model_copy(update={"steps": [step.model_copy(update=left) for step in self.steps], "contexts": []})

    @property
    def turns(self) -> int:
        return len(self.steps)

    @property
    def tokens_generated(self) -> int:
        return sum(step.tokens_generated for step in self.steps)

    def _repr_html_(self) -> str:
        """As a notebook shows it: see `report.view`."""
        from ..report.view import View

        return View(self)._repr_html_()

    @property
    def context(self) -> Context:
        """The last context: the only one of an episode without history resets."""
        return self.contexts[-1]


def write_trajectories(path: Path, trajectories: list[Trajectory]) -> None:
    """Append to a jsonl file, one line each."""
    append_lines(path, (t.model_dump_json().encode() for t in trajectories))


def read_trajectories(path: Path) -> list[Trajectory]:
    """All of `stream_trajectories` at once."""
    return list(stream_trajectories(path))


def stream_trajectories(path: Path) -> Iterator[Trajectory]:
    """All complete lines, one after the other; a torn last line of a killed run is dropped.

    Raises:
        ValueError: a line before the last is not a trajectory; names the line.
    """
    for number, line in enumerate(whole_lines(path), 1):
        try:
            yield Trajectory.model_validate_json(line)
        except ValueError as error:
            raise ValueError(f"{path.name}, line {number}: not a trajectory") from error
