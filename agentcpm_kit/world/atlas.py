"""A world: facts, their pages and the index, all from one seed. Splits never share a world."""

import random
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache

from .facts import Entity, Fact, draw_entities, draw_facts
from .index import Index
from .pages import Page, url_of, write_page

# First world seed of each split. Ranges never meet (asserted in `world_seeds`), hence no world in two splits.
# "pretrain" feeds the recipe of micro-base and nothing else.
SPLITS = {"train": 0, "validation": 1_000_000, "test": 2_000_000, "pretrain": 3_000_000}
SPLIT_SIZE = 1_000_000


@dataclass(frozen=True)
class World:
    seed: int
    redundancy: int
    entities: tuple[Entity, ...]
    facts: dict[tuple[str, str], Fact]  # (subject, relation) -> fact
    pages: dict[str, Page]  # url -> page

    @cached_property
    def index(self) -> Index:
        return Index([f"{page.title}\n{page.text}" for page in self.pages.values()])

    def page_of(self, name: str) -> Page:
        return self.pages[url_of(name)]

    def entity(self, name: str) -> Entity:
        return next(e for e in self.entities if e.name == name)


@lru_cache(maxsize=512)
def make_world(seed: int, entities: int = 60, redundancy: int = 2) -> World:
    """Draw the world of a seed.

    Facts depend on the seed and the number of entities alone, so the same world can be read at any redundancy.
    """
    rng = random.Random(f"atlas facts {seed}")
    drawn = draw_entities(rng, entities)
    facts = {(f.subject, f.relation): f for f in draw_facts(rng, drawn)}
    writer, confused = random.Random(f"atlas pages {seed} {redundancy}"), Counter()
    pages = [write_page(writer, e, [f for f in facts.values() if f.subject == e.name],
                        [o for o in drawn if o != e], facts, redundancy, confused) for e in drawn]
    return World(seed, redundancy, tuple(drawn), facts, {p.url: p for p in pages})


def world_seeds(split: str, count: int) -> list[int]:
    """Seeds of the first `count` worlds of a split.

    Raises:
        ValueError: unknown split, or more worlds than a split may have.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    if not 0 <= count <= SPLIT_SIZE:
        raise ValueError(f"a split has at most {SPLIT_SIZE} worlds, not {count}")
    return list(range(SPLITS[split], SPLITS[split] + count))
