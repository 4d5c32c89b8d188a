"""Trajectories: plain records of what happened in an episode, appended to jsonl as they end."""

from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel


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
    """One turn. `tokens_read` counts what the tools returned, `tokens_shown` what the context policy let through."""

    thinking: str = ""
    content: str = ""
    calls: list[dict[str, Any]] = []
    results: list[str] = []
    status: str = "completed"  # or tool_failed, format_error, repeat_error (reference, section 7)
    tokens_generated: int = 0
    tokens_read: int = 0
    tokens_shown: int = 0
    tool_seconds: float = 0.0


class Trajectory(BaseModel):
    """An episode. `token_ids`, `loss_mask` (1 on sampled tokens) and `logprobs` (0.0 elsewhere) have equal length.

    `prompt_length` tokens of them are the prompt.
    """

    task_id: str
    run: int = 0
    question: str
    answer: str | None = None
    end_reason: EndReason = EndReason.TURN_LIMIT
    correct: bool | None = None  # None: not scored, or a fault
    steps: list[Step] = []
    prompt_length: int = 0
    token_ids: list[int] = []
    loss_mask: list[int] = []
    logprobs: list[float] = []
    message: str = ""  # the fault's own words

    @property
    def turns(self) -> int:
        return len(self.steps)

    @property
    def tokens_generated(self) -> int:
        return sum(self.loss_mask)

    def append(self, ids: list[int], learned: bool, logprobs: list[float] | None = None) -> None:
        """Add tokens; `learned` ones were sampled."""
        self.token_ids += ids
        self.loss_mask += [int(learned)] * len(ids)
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(ids)


def write_trajectories(path: Path, trajectories: list[Trajectory]) -> None:
    """Append to a jsonl file, one line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(t.model_dump_json() + "\n" for t in trajectories)


def read_trajectories(path: Path) -> list[Trajectory]:
    """All complete lines; a torn last line of a killed run is dropped.

    Raises:
        ValueError: a line before the last is not a trajectory; names the line.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Trajectory.model_validate_json(line))
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(f"{path.name}, line {number}: not a trajectory") from error
    return found
