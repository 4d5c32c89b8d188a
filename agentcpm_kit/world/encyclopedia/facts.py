"""The fact base: one array per relation, drawn from the seed; entities are numbers, names come later.

Only integer draws of numpy's legacy generator are used, whose stream numpy guarantees never to change: the same seed
gives the same facts on every machine.
"""

import datetime
import random
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ...errors import KitError
from ..atlas import WorldSpec
from .schema import MINIMUM, RELATIONS, SHARES, Relation

CATEGORIES = 12  # entries of every list of categories
FOUNDING_AGE = (22, 51)
SOURCES_FROM, SOURCES_SPAN = 1911, 15  # years: office holders, born from 1850 to 1889, are grown up and alive
SOURCE_COUNTS = ((1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3))  # entries of the register, other sources
INSIDE = {"country.capital": "city.country", "river.mouth": "city.river"}  # one of the cities that lead to it
SOURCES = ("register", "directory", "rumour")  # most trusted first


@dataclass(frozen=True)
class Statement:
    """What one source says of a disputed relation; `year` is when it said so."""

    value: int
    year: int
    source: str


class Facts:
    """What is true: `column` gives the objects of a relation, `subjects` the way back."""

    def __init__(self, spec: WorldSpec):
        if spec.entities < MINIMUM:
            raise KitError(f"a world of the encyclopedia has at least {MINIMUM} entities, not {spec.entities}")
        self.spec = spec
        self.ranges = _ranges(spec.entities)
        self.starts = {kind: r.start for kind, r in self.ranges.items()}
        self.columns: dict[str, np.ndarray] = {}
        for key in RELATIONS:
            self.column(key)

    def column(self, key: str) -> np.ndarray:
        """Object of every entity of the relation's subject type. Drawn when first needed: some relations follow others."""
        if key not in self.columns:
            self.columns[key] = self._draw(RELATIONS[key])
        return self.columns[key]

    def kind(self, entity: int) -> str:
        return next(kind for kind, r in self.ranges.items() if entity in r)

    def value(self, entity: int, relation: Relation | str) -> int:
        """Object of a fact; an entity's number, a year, a day (proleptic ordinal), a count or a category's place."""
        key = relation if isinstance(relation, str) else relation.key
        return int(self.columns[key][entity - self.starts[key.partition(".")[0]]])

    def _draw(self, relation: Relation) -> np.ndarray:
        stream = np.random.RandomState(zlib.crc32(f"{self.spec.seed} {self.spec.entities} {relation.key}".encode()))
        count = len(self.ranges[relation.subject])
        if relation.kind == "entity":
            return self._inside(stream, relation) if relation.key in INSIDE else self._others(stream, relation, count)
        if relation.kind == "category":
            return _integers(stream, 0, CATEGORIES, count)
        if relation.kind == "date":
            first, last = (datetime.date(year, 1, 1).toordinal() for year in (relation.low, relation.high + 1))
            return _integers(stream, first, last, count)
        if relation.follows:
            people = self.column(f"{relation.subject}.{relation.follows}") - self.starts["person"]
            born = self.column("person.birth date")[people]
            years = np.array([datetime.date.fromordinal(int(day)).year for day in born], dtype=np.int64)
            return years + _integers(stream, *FOUNDING_AGE, count)
        if relation.kind == "year":
            return _integers(stream, relation.low, relation.high + 1, count)
        return _log_uniform(stream, relation.low, relation.high, count)

    def _others(self, stream, relation: Relation, count: int) -> np.ndarray:
        """Objects at random; nothing is related to itself."""
        objects = self.ranges[relation.object]
        if relation.object != relation.subject:
            return _integers(stream, objects.start, objects.stop, count)
        own = np.arange(count)
        steps = _integers(stream, 1, len(objects), count)
        return objects.start + (own + steps) % len(objects)

    def _inside(self, stream, relation: Relation) -> np.ndarray:
        """A city of the country itself, or on the river itself; where there is none, any city."""
        owner, cities = self.column(INSIDE[relation.key]), self.ranges["city"]
        order = stream.permutation(len(owner))
        chosen = _integers(stream, cities.start, cities.stop, len(self.ranges[relation.subject]))
        chosen[owner[order] - self.starts[relation.subject]] = cities.start + order
        return chosen

    @cached_property
    def backward(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Relation -> (subjects ordered by object, place where each object's subjects begin)."""
        found = {}
        for relation in RELATIONS.values():
            if relation.listed:
                column, objects = self.columns[relation.key], self.ranges[relation.object]
                order = np.argsort(column, kind="stable")
                bounds = np.searchsorted(column[order], np.arange(objects.start, objects.stop + 1))
                found[relation.key] = (order + self.starts[relation.subject], bounds)
        return found

    def subjects(self, relation: Relation | str, entity: int) -> list[int]:
        """The way back: entities whose `relation` leads to `entity`, in order."""
        key = relation if isinstance(relation, str) else relation.key
        ordered, bounds = self.backward[key]
        at = entity - self.starts[RELATIONS[key].object]
        return ordered[bounds[at]: bounds[at + 1]].tolist()

    def statements(self, entity: int, relation: Relation) -> list[Statement]:
        """What the sources say of a disputed fact: entries of the register, directories and rumours, of any age.

        The rule: what is more trusted outranks, and among equals what is newer. The fact itself is what it gives. How
        many there are, and whether the newest is to be trusted, differs: no place in the row of years is always right.
        """
        rng = random.Random(f"statements {self.spec.seed} {self.spec.entities} {entity} {relation.key}")
        founded = self.value(entity, f"{relation.subject}.founding year")
        first = max(SOURCES_FROM, founded + 1)  # nothing is said of a company before it is founded
        entries, talk = rng.choice(SOURCE_COUNTS)
        sources = ["register"] * entries + [rng.choice(("directory", "rumour")) for _ in range(talk)]
        years = rng.sample(range(first, first + SOURCES_SPAN), len(sources))
        newest, truth = max(years[:entries]), self.value(entity, relation)
        return [Statement(truth if (source, year) == ("register", newest) else self._another(rng, relation, truth), year, source)
                for source, year in rng.sample(list(zip(sources, years, strict=True)), len(sources))]

    def _another(self, rng: random.Random, relation: Relation, truth: int) -> int:
        """A wrong object of the kind that could be right: another person, another entity's count."""
        if relation.kind == "entity":
            objects = self.ranges[relation.object]
            return objects.start + (truth - objects.start + rng.randrange(1, len(objects))) % len(objects)
        column = self.columns[relation.key]
        return int(rng.choice(column[column != truth]))

    def trusted(self, entity: int, relation: Relation) -> Statement:
        """The statement that the rule chooses."""
        return max(self.statements(entity, relation), key=lambda s: (-SOURCES.index(s.source), s.year))


def _ranges(size: int) -> dict[str, range]:
    """Numbers of each type's entities, one after another; the first type takes what rounding leaves over."""
    counts = {kind: int(size * share) for kind, share in SHARES.items()}
    counts["person"] += size - sum(counts.values())
    ranges, start = {}, 0
    for kind, count in counts.items():
        ranges[kind] = range(start, start + count)
        start += count
    return ranges


def _integers(stream, low: int, high: int, count: int) -> np.ndarray:
    return stream.randint(low, high, size=count, dtype=np.int64)


def _log_uniform(stream, low: int, high: int, count: int) -> np.ndarray:
    """Counts that are small more often than large. Integers only: rounding of logarithms differs between machines."""
    doublings = _integers(stream, 0, max(1, (high // low).bit_length() - 1), count)
    floor = low << doublings
    return np.minimum(floor + stream.randint(0, 1 << 40, size=count, dtype=np.int64) % floor, high)


@lru_cache(maxsize=64)
def facts_of(seed: int, entities: int) -> Facts:
    """Facts depend on the seed and the number of entities alone, whatever the language or the redundancy."""
    return Facts(WorldSpec(seed, entities, edition="encyclopedia"))
