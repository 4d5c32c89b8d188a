"""What determines a world, and the splits: train, validation and test never share one.

Two editions of the atlas exist. `encyclopedia` has pages that read like pages and all eight task families; `plain`
says everything in sentences like "Ann has home Oslo.", the only prose that a model of 1M parameters can learn to read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal, Protocol

from ..errors import KitError, unknown

# First world seed of each split. Ranges never meet, since none is longer than SPLIT_SIZE, hence no world is in two splits.
# "pretrain" feeds the recipe of micro-base and nothing else.
SPLITS = {"train": 0, "validation": 1_000_000, "test": 2_000_000, "pretrain": 3_000_000}
SPLIT_SIZE = 1_000_000
ENTITIES, REDUNDANCY = 300, 4  # of the encyclopedia, unless told otherwise; so are the worlds of data/world
EDITIONS, LANGUAGES = ("plain", "encyclopedia"), ("en", "zh")


@dataclass(frozen=True)
class Page:
    url: str
    title: str
    text: str
    evidence: dict[str, str]  # relation -> the passage that states it
    source: str = ""  # shown with a search result; pages of the plain edition have none


class World(Protocol):
    """What tools and tasks need of a world, whichever its edition."""

    hits: int  # results of one search

    @property
    def spec(self) -> "WorldSpec": ...

    @property
    def urls(self) -> Sequence[str]: ...

    def page(self, url: str) -> Page | None: ...

    def search(self, query: str, k: int) -> list[Page]: ...


@dataclass(frozen=True)
class WorldSpec:
    """All that determines a world's bytes.

    `entities` is the number of pages; `redundancy` the number of redundant sentences per page (contamination);
    with `conflicts`, some statements contradict each other, with dates and sources.
    """

    seed: int
    entities: int = 60
    redundancy: int = 2
    edition: Literal["plain", "encyclopedia"] = "plain"
    language: Literal["en", "zh"] = "en"
    conflicts: bool = False

    def __post_init__(self):
        if self.edition not in EDITIONS:
            raise unknown("edition", self.edition, EDITIONS)
        if self.language not in LANGUAGES:
            raise unknown("language", self.language, LANGUAGES)
        if self.redundancy < 0:
            raise KitError(f"redundancy is 0 or more, not {self.redundancy}")
        if not 0 <= self.seed < max(SPLITS.values()) + SPLIT_SIZE:
            raise KitError(f"no split has a world with seed {self.seed}")
        if self.edition == "plain" and (self.language != "en" or self.conflicts):
            raise KitError("the plain edition is in English and without conflicts")

    @property
    def split(self) -> str:
        return next(name for name, start in SPLITS.items() if start <= self.seed < start + SPLIT_SIZE)

    def __str__(self) -> str:
        parts = {"split": self.split, "number": self.seed - SPLITS[self.split]}
        parts |= {f.name: getattr(self, f.name) for f in fields(self) if f.name != "seed"}
        return ",".join(f"{key}={str(value).lower()}" for key, value in parts.items())

    def open(self) -> World:
        return open_world(self)

    @classmethod
    def parse(cls, text: str) -> "WorldSpec":
        """`"split=test,number=3,entities=1000,language=zh"` as a spec; all parts are optional.

        Without more, it is the encyclopedia in the size and redundancy of the task files. `seed` may stand in place of
        `split` and `number`. `str(spec)` gives such a text back.

        Raises:
            KitError: an unknown key or a value that cannot be.
        """
        given = dict([side.strip() for side in part.partition("=")[::2]] for part in text.split(",") if part.strip())
        kinds = {f.name: f.type for f in fields(cls)} | {"split": str, "number": int}
        sizes = {} if given.get("edition") == "plain" else {"entities": ENTITIES, "redundancy": REDUNDANCY}
        values: dict = {**sizes, "edition": "encyclopedia", "split": "test", "number": 0}
        for key, value in given.items():
            if key not in kinds:
                raise unknown("key of a world", key, kinds)
            values[key] = _read(key, value, kinds[key])
        number, split = values.pop("number"), values.pop("split")
        if "seed" in values:
            return cls(**values)
        if number >= SPLIT_SIZE:
            raise KitError(f"a split has worlds up to number {SPLIT_SIZE - 1}, not {number}")
        return cls(seed=world_seeds(split, number + 1)[number], **values)


def _read(key: str, text: str, kind: type):
    if kind is int and text.isdecimal():
        return int(text)
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in (int, bool):
        raise KitError(f"{key} of a world is {'a whole number' if kind is int else 'true or false'}, not {text!r}")
    return text


@lru_cache(maxsize=512)
def open_world(spec: WorldSpec) -> World:
    """Draw the world of a spec. Facts depend on the seed and the number of entities alone, so the same world can be
    read at any redundancy."""
    if spec.edition == "plain":
        from .plain.world import draw_world

        return draw_world(spec)
    from .encyclopedia.world import Encyclopedia

    return Encyclopedia(spec)


def make_world(seed: int, entities: int = 60, redundancy: int = 2) -> World:
    """The plain world of a seed."""
    return open_world(WorldSpec(seed, entities, redundancy))


def world_seeds(split: str, count: int) -> list[int]:
    """Seeds of the first `count` worlds of a split.

    Raises:
        KitError: unknown split.
        ValueError: more worlds than a split may have.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if not 0 <= count <= SPLIT_SIZE:
        raise ValueError(f"a split has at most {SPLIT_SIZE} worlds, not {count}")
    return list(range(SPLITS[split], SPLITS[split] + count))
