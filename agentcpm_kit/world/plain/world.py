"""A plain world: facts, their pages and the index, all from one seed."""

import random
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from ..atlas import Page, WorldSpec
from ..index import Index
from .facts import Entity, Fact, draw_entities, draw_facts
from .pages import url_of, write_page


@dataclass(frozen=True)
class PlainWorld:
    spec: WorldSpec
    entities: tuple[Entity, ...]
    facts: dict[tuple[str, str], Fact]  # (subject, relation) -> fact
    pages: dict[str, Page]  # url -> page
    hits: int = 3  # the context of a model of 1M parameters is short

    @property
    def seed(self) -> int:
        return self.spec.seed

    @property
    def urls(self) -> list[str]:
        return list(self.pages)

    @cached_property
    def index(self) -> Index:
        return Index([f"{page.title}\n{page.text}" for page in self.pages.values()])

    def page(self, url: str) -> Page | None:
        return self.pages.get(url)

    def search(self, query: str, k: int) -> list[Page]:
        pages = list(self.pages.values())
        return [pages[i] for i in self.index.top(query, k)]

    def page_of(self, name: str) -> Page:
        return self.pages[url_of(name)]

    def entity(self, name: str) -> Entity:
        return next(e for e in self.entities if e.name == name)


def draw_world(spec: WorldSpec) -> PlainWorld:
    """Facts depend on the seed and the number of entities alone; redundancy changes pages only."""
    rng = random.Random(f"atlas facts {spec.seed}")
    drawn = draw_entities(rng, spec.entities)
    facts = {(f.subject, f.relation): f for f in draw_facts(rng, drawn)}
    writer, confused = random.Random(f"atlas pages {spec.seed} {spec.redundancy}"), Counter()
    pages = [write_page(writer, e, [f for f in facts.values() if f.subject == e.name],
                        [o for o in drawn if o != e], facts, spec.redundancy, confused) for e in drawn]
    return PlainWorld(spec, tuple(drawn), facts, {p.url: p for p in pages})
