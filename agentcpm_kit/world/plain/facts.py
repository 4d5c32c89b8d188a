"""Facts: entities with typed relations and years, drawn from a seed.

Every world shares the pool of names but redraws which of them exist, of which type they are and how they are
related. A name therefore says nothing about a fact, and nothing can be answered from memory.
"""

import random
from dataclasses import dataclass
from functools import lru_cache

from ...errors import KitError

# subject type -> relation -> object type. Every relation has exactly one object, so every chain has one answer.
RELATIONS: dict[str, dict[str, str]] = {
    "person": {"birthplace": "city", "home": "city", "mentor": "person", "rival": "person", "employer": "company",
               "birth year": "year"},
    "city": {"mayor": "person", "country": "country", "twin": "city", "founding year": "year"},
    "country": {"capital": "city", "ruler": "person", "ally": "country", "founding year": "year"},
    "company": {"owner": "person", "seat": "city", "partner": "company", "founding year": "year"},
}
SHARES = {"person": 0.4, "city": 0.25, "country": 0.15, "company": 0.2}
YEARS = range(1800, 1900)
NAME_POOL = 320


@dataclass(frozen=True)
class Fact:
    subject: str
    relation: str
    object: str  # a name, or a year in digits


@dataclass(frozen=True)
class Entity:
    name: str
    type: str
    alias: str  # the only name by which questions call it: it has to be looked up


@lru_cache
def name_pool(size: int = NAME_POOL) -> tuple[str, ...]:
    """`size` distinct pronounceable names, the same on every machine."""
    rng = random.Random("atlas names")
    starts, vowels, middles = "BDFGHKLMNPRSTVZ", "aeiou", ["l", "m", "n", "r", "v", "rk", "nd", "st", "lm", "sh"]
    ends = ["", "n", "r", "s", "k", "th", "x"]
    names: list[str] = []
    while len(names) < size:
        name = rng.choice(starts) + rng.choice(vowels) + rng.choice(middles) + rng.choice(vowels) + rng.choice(ends)
        if name not in names:
            names.append(name)
    return tuple(names)


def draw_entities(rng: random.Random, count: int) -> list[Entity]:
    """`count` entities with distinct names and aliases; at least two of each type, so every relation has an object.

    Raises:
        KitError: fewer than 8 entities, or more than the pool has names for (an alias needs one too).
    """
    if not 8 <= count <= NAME_POOL // 2:
        raise KitError(f"a plain world has 8 to {NAME_POOL // 2} entities, not {count}")
    names = rng.sample(name_pool(), 2 * count)
    types = [t for t in SHARES for _ in range(2)]
    types += rng.choices(list(SHARES), weights=list(SHARES.values()), k=count - len(types))
    return [Entity(name, kind, alias) for name, kind, alias in zip(names, types, names[count:], strict=False)]


def draw_facts(rng: random.Random, entities: list[Entity]) -> list[Fact]:
    """One fact for every entity and every relation of its type; nothing is related to itself."""
    by_type = {t: [e.name for e in entities if e.type == t] for t in RELATIONS}
    facts = []
    for entity in entities:
        for relation, kind in RELATIONS[entity.type].items():
            pool = [str(y) for y in YEARS] if kind == "year" else [n for n in by_type[kind] if n != entity.name]
            facts.append(Fact(entity.name, relation, rng.choice(pool)))
    return facts
