"""Task files: read whole, checked line by line, and known by the hash of their bytes.

Lines are in the reference's format (``task_id``, ``Question``, ``Final answer``; optional ``Level``, ``aug_answers``), ours
beside it in those of the atlas's families. What is wrong with a file is told with its line, before anything is played.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from ..errors import KitError, unknown
from ..files import jsonl
from ..profile import load_profile
from ..world.plain.chains import ChainTask
from ..world.tasks import FAMILIES, Task, data_folder, load_family
from .benchmark_files import load
from .benchmarks import BENCHMARKS
from .runner import suite

PLAIN = "plain"
SPLITS = ("train", "validation", "test")
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Line(BaseModel):
    """A line of a task file that is not of the atlas. Numbers may stand where text is wanted."""

    model_config = {"coerce_numbers_to_str": True}

    task_id: Text
    question: Text = Field(alias="Question")
    answer: Text = Field(alias="Final answer")
    level: int = Field(0, alias="Level")
    aliases: list[Text] | Text | None = Field(None, alias="aug_answers")
    file_name: str | None = None

    def task(self, family: str) -> Task:
        aliases = [self.aliases] if isinstance(self.aliases, str) else self.aliases or []
        return Task(self.task_id, self.question, self.answer, family, self.level, None, tuple(aliases), tools=())


@dataclass(frozen=True)
class Suite:
    """Tasks that are scored together. `digest` is the SHA-256 of the file that they come from.

    `public`: their text may stand in reports; that of real benchmarks may not.
    """

    name: str
    tasks: tuple[Task, ...]
    digest: str
    public: bool = True

    @classmethod
    def of(cls, name: str, tasks: Sequence[Task]) -> "Suite":
        """Tasks that are drawn, not read: their digest is that of their records."""
        return cls(name, tuple(tasks), hashlib.sha256(jsonl(task.record() for task in tasks).encode()).hexdigest())

    def first(self, count: int) -> "Suite":
        """Its first tasks alone, which are another suite; 0: all."""
        if not 0 < count < len(self.tasks):
            return self
        return replace(self, tasks=self.tasks[:count], digest=f"{self.digest}, the first {count}")


def load_suite(source: str) -> Suite:
    """The tasks of a file, of a benchmark that was added, or of a family of the atlas.

    ``multihop`` are a family's test tasks, ``multihop-validation`` those of another split; ``plain`` are the questions of one to
    three hops in the plain edition, which the micro model can read.

    Raises:
        KitError: no such file, benchmark or family, no tasks in it, a line that is none, or the same task twice.
    """
    if source.endswith(".jsonl"):
        return _of_file(Path(source))
    if source in BENCHMARKS:
        tasks, digest = load(source)
        return Suite(source, tuple(tasks), digest, public=False)
    family, _, split = source.partition("-")
    split = split or "test"
    if family not in (*FAMILIES, PLAIN) or split not in SPLITS:
        if Path(source).is_file():
            raise KitError(f"{source}: a file of tasks has a name that ends in .jsonl, a JSON object per line")
        known = [*FAMILIES, PLAIN, *BENCHMARKS, *(f"{name}-{each}" for name in (*FAMILIES, PLAIN) for each in SPLITS)]
        raise unknown("tasks (no family, benchmark or .jsonl file)", source, known)
    if family == PLAIN:
        return Suite.of(f"plain-{split}", _plain(split))
    data = (data_folder() / f"{family}-{split}.jsonl").read_bytes()
    return Suite(f"{family}-{split}", tuple(load_family(family, split)), hashlib.sha256(data).hexdigest())


def _plain(split: str) -> list[Task]:
    """With the sizes of the profile `micro`; numbers of hops take turns, so that the first tasks are of every kind."""
    profile = load_profile("micro")
    by_hops = [suite(profile, split, hops=[hops]) for hops in profile.evaluation.hops]
    return [task for several in zip(*by_hops, strict=True) for task in several]


def _of_file(path: Path) -> Suite:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KitError(f"{path} cannot be read: {error.strerror}") from error
    lines = [(number, line) for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1) if line.strip()]
    if not lines:
        raise KitError(f"{path} holds no tasks; it wants one JSON object per line, with task_id, Question and Final answer")
    tasks = [_task(path, number, line) for number, line in lines]
    first: dict[str, int] = {}
    for (number, _), task in zip(lines, tasks, strict=True):
        if task.task_id in first:
            raise KitError(f"{path}, line {number}: task_id {task.task_id!r} stands in line {first[task.task_id]} already")
        first[task.task_id] = number
    return Suite(path.stem, tuple(tasks), hashlib.sha256(data).hexdigest())


def _task(path: Path, number: int, line: bytes) -> Task:
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
        json.dumps(record, ensure_ascii=False).encode()  # lone surrogates are no text
        if "world" in record:
            return (ChainTask if "relations" in record else Task).from_record(record)
        found = Line.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        raise KitError(f"{path}, line {number}: {first['loc'][0]!r}: {first['msg'].lower()}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise KitError(f"{path}, line {number}: not a task ({str(error) or type(error).__name__})") from error
    if found.file_name:
        raise KitError(f"{path}, line {number}: the task comes with a file ({found.file_name}), and no tool of the agent's opens "
                       "one; keep the tasks without files")
    return found.task(path.stem)
