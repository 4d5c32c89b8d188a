"""An evaluation's traffic, recorded: what engine and tools answered, so that it can be played again with the network off.

traffic.jsonl holds a line per episode that ended: all answers, each under a hash of what was asked. Of an episode that was played
several times (it met a fault, or the process was killed) the last line counts, as its transcript does. Judges need no
recording: their verdicts are in verdicts.jsonl anyway.
"""

import hashlib
import json
import threading
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path

from ..agent.engines.base import Closing, Ended, Engine, EngineFault, Sample, Turn
from ..agent.episode import ToolFactory
from ..agent.trajectory import EndReason, Trajectory
from ..errors import KitError
from ..files import append_jsonl, read_jsonl
from ..world.faults import ToolFault
from ..world.tools import ToolSet

TRAFFIC = "traffic.jsonl"


def _hash(*asked) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


def _of_turn(turn: Turn) -> str:
    return _hash("turn", turn.seed, turn.max_new_tokens, turn.ids)


def _of_call(name: str, arguments: dict) -> str:
    return _hash("call", name, arguments)


class Record:
    """What is answered, by episode, until the episode ends. Tools answer in threads of their own."""

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        self.answers: dict[str, list[dict]] = defaultdict(list)
        self.schemas: dict[str, list[dict]] = {}

    def note(self, episode: str, asked: str, answer: dict) -> None:
        with self.lock:
            self.answers[episode].append({"asked": asked, **answer})

    def end(self, trajectory: Trajectory) -> None:
        """Write what an episode was answered. A fault of time alone, which nobody answered, is noted as what it was."""
        name, kind = trajectory.episode, "engine" if trajectory.end_reason == EndReason.ENGINE_FAULT else "tool"
        last = {"who": kind, "words": trajectory.message, "kind": trajectory.fault} if trajectory.end_reason.is_fault else None
        with self.lock:
            append_jsonl(self.path, {"episode": name, "schemas": self.schemas.pop(name, []),
                                     "answers": self.answers.pop(name, []), "fault": last})

    def engine(self, engine: Engine) -> "RecordingEngine":
        return RecordingEngine(engine, self)

    def tools(self, factory: ToolFactory) -> ToolFactory:
        def opened(task, episode: str) -> ToolSet:
            tools = factory(task, episode)
            self.schemas[episode] = tools.schemas
            return RecordingTools(tools, self, episode)
        return opened


class RecordingEngine(Closing):
    """An engine, every answer of which is noted."""

    def __init__(self, engine: Engine, record: Record):
        self.inner, self.record, self.asked = engine, record, {}
        self.tokenizer, self.batch_size = engine.tokenizer, engine.batch_size

    def submit(self, turn: Turn) -> None:
        self.asked[turn.key] = _of_turn(turn)
        self.inner.submit(turn)

    def poll(self) -> Ended:
        ended = self.inner.poll()
        for key, result in ended:
            said = {"fault": str(result), "kind": result.kind} if isinstance(result, EngineFault) else vars(result)
            self.record.note(key, self.asked.pop(key), said)
        return ended

    def release(self, key: str) -> None:
        self.asked.pop(key, None)
        self.inner.release(key)

    def close(self) -> None:
        self.inner.close()


@dataclass
class RecordingTools:
    tools: ToolSet
    record: Record
    episode: str

    @property
    def schemas(self) -> list[dict]:
        return self.tools.schemas

    def call(self, name: str, arguments: dict) -> str:
        asked = _of_call(name, arguments)
        try:
            result = self.tools.call(name, arguments)
        except (ToolFault, ValueError) as error:
            self.record.note(self.episode, asked, {"fault" if isinstance(error, ToolFault) else "mistake": str(error)})
            raise
        self.record.note(self.episode, asked, {"result": result})
        return result


class Traffic:
    """What was recorded, by episode. `missing` tells what was asked in vain: a fault to the loop, an error in the end."""

    def __init__(self, path: Path):
        if not path.is_file():
            raise KitError(f"{path.parent} holds no recorded traffic; play it with --record first")
        self.episodes = {row["episode"]: row for row in read_jsonl(path)}
        self.left: dict[str, dict[str, deque]] = {}
        self.missing: list[str] = []

    def next(self, episode: str, asked: str, who: str) -> dict:
        """The next answer to what an episode asks."""
        row = self.episodes.get(episode)
        if episode not in self.left:
            self.left[episode] = defaultdict(deque)
            for answer in row["answers"] if row else []:
                self.left[episode][answer["asked"]].append(answer)
        if self.left[episode][asked]:
            return self.left[episode][asked].popleft()
        if row and row["fault"] and row["fault"]["who"] == who:  # nobody had answered when its time was up
            return {"fault": row["fault"]["words"], "kind": row["fault"]["kind"]}
        self.missing.append(f"{who} of episode {episode}")
        return {"fault": "never recorded", "kind": "engine"}

    def require_all(self) -> None:
        if self.missing:
            raise KitError(f"{len(self.missing)} answers were never recorded ({self.missing[0]}): other tasks, runs, limits or "
                           "code than those of the recording")

    def tools(self, task, episode: str) -> "ReplayedTools":
        if episode not in self.episodes:
            raise KitError(f"episode {episode} was never recorded: other tasks or runs than those of the recording")
        self.left.pop(episode, None)  # an episode that is played again hears the same again
        return ReplayedTools(self, episode, self.episodes[episode]["schemas"])


class ReplayedEngine(Closing):
    """An engine that answers from the record."""

    def __init__(self, traffic: Traffic, tokenizer, batch_size: int):
        self.traffic, self.tokenizer, self.batch_size = traffic, tokenizer, batch_size
        self.waiting: dict[str, Turn] = {}

    def submit(self, turn: Turn) -> None:
        self.waiting[turn.key] = turn

    def poll(self) -> Ended:
        turns, self.waiting = self.waiting, {}
        return [(key, self._answer(turn)) for key, turn in turns.items()]

    def _answer(self, turn: Turn) -> Sample | EngineFault:
        row = self.traffic.next(turn.key, _of_turn(turn), "engine")
        if "fault" in row:
            return EngineFault(row["fault"], row["kind"])
        billed = tuple(row["billed"]) if row.get("billed") else None
        return Sample(row["ids"], row["logprobs"], row["stopped"], row["exact"], billed)

    def release(self, key: str) -> None:
        self.waiting.pop(key, None)


@dataclass
class ReplayedTools:
    traffic: Traffic
    episode: str
    schemas: list[dict]

    def call(self, name: str, arguments: dict) -> str:
        row = self.traffic.next(self.episode, _of_call(name, arguments), "tool")
        if "fault" in row:
            raise ToolFault(row["fault"])
        if "mistake" in row:
            raise ValueError(row["mistake"])
        return row["result"]
