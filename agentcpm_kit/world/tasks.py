"""A task of any family: question, answer, and the proof that it can be solved and has one answer only.

Every task carries its gold tool path (`steps`): what to call, and what the result must contain for the next step to be
possible. The scripted oracle follows it. Files are in the reference's format (``task_id``, ``Question``, ``Final
answer``) with our fields beside.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import KitError, unknown
from ..profile import repo_root
from .atlas import World, WorldSpec
from .tools import WORLD_TOOLS

FAMILIES = {  # family -> the benchmark that it stands in for, the skill
    "assist": ("GAIA-text", "mixed steps, some arithmetic with the code tool"),
    "constraints": ("BrowseComp", "find the one entity that meets several indirect constraints"),
    "constraints_zh": ("BrowseComp-ZH", "the same in Chinese"),
    "reason": ("HLE-text", "little search, much reasoning over given facts"),
    "multihop": ("FRAMES", "combine several pages, compare numbers and dates"),
    "navigate": ("WebWalkerQA", "follow links from a start page; search is off"),
    "conflict": ("SEAL-0", "sources contradict: trust, dates, false premises"),
    "deep": ("xbench-DeepSearch", "long chains through lists, many distractors"),
}


@dataclass(frozen=True)
class GoldStep:
    """One call of the gold path. `thought` precedes it; `evidence` are the passages that its result must contain."""

    tool: str
    arguments: dict
    evidence: tuple[str, ...]
    thought: str = ""


@dataclass(frozen=True)
class Task:
    """`aliases` are other right answers; `tools` are those that the agent is offered; `conclusion` is the last thought.

    A task from elsewhere has no `world`, and whoever plays it brings the tools.
    """

    task_id: str
    question: str
    answer: str
    family: str
    level: int
    world: WorldSpec | None
    aliases: tuple[str, ...] = ()
    tools: tuple[str, ...] = WORLD_TOOLS
    steps: tuple[GoldStep, ...] = ()
    conclusion: str = ""
    why_unique: str = ""

    @property
    def evidence(self) -> tuple[str, ...]:
        """Gold passages in the order in which they are needed."""
        return tuple(passage for step in self.steps for passage in step.evidence)

    @property
    def pages(self) -> tuple[str, ...]:
        """Urls of the gold pages in the order in which they are read."""
        return tuple(dict.fromkeys(url for step in self.steps for url in step.arguments.get("url", ())))

    def open_world(self) -> World:
        """
        Raises:
            KitError: the task is not of the atlas.
        """
        self.require_world()
        return self.world.open()

    def require_world(self) -> None:
        if self.world is None:
            raise KitError(f"task {self.task_id!r} has no world of its own; it needs --tools (see "
                           "profiles/tools/web.yaml)")

    def record(self) -> dict:
        """The task as a line of a task file."""
        fields = asdict(self)
        return {"task_id": fields.pop("task_id"), "Question": fields.pop("question"),
                "Final answer": fields.pop("answer"), **fields}

    @classmethod
    def from_record(cls, record: dict) -> "Task":
        names = {"Question": "question", "Final answer": "answer"}
        fields = {names.get(key, key): tuple(value) if isinstance(value, list) else value for key, value in record.items()}
        steps = tuple(GoldStep(**{**step, "evidence": tuple(step["evidence"])}) for step in fields.pop("steps"))
        return cls(**{**fields, "world": WorldSpec(**fields["world"]), "steps": steps})


def data_folder() -> Path:
    return repo_root() / "data" / "world"


def _listed() -> dict[str, tuple[int, str]]:
    """File -> (rows, SHA-256), from the table of the data README."""
    rows = [line.strip("| ").split(" | ") for line in (data_folder() / "README.md").read_text().splitlines()
            if line.startswith("| `") and ".jsonl" in line]
    return {name.strip("`"): (int(count), digest.strip("` ")) for name, count, digest in rows}


def load_family(family: str, split: str) -> list[Task]:
    """The tasks of ``data/world/<family>-<split>.jsonl``.

    Raises:
        KitError: no such file, or its rows or SHA-256 are not those that the data README lists.
    """
    name, listed = f"{family}-{split}.jsonl", _listed()
    if name not in listed:
        raise unknown("task file", name, listed)
    data, (rows, digest) = (data_folder() / name).read_bytes(), listed[name]
    if hashlib.sha256(data).hexdigest() != digest or len(data.splitlines()) != rows:
        raise KitError(f"data/world/{name} is not the file that data/world/README.md lists; git checkout data/world")
    return [Task.from_record(json.loads(line)) for line in data.splitlines()]
