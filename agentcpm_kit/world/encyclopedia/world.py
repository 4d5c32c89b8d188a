"""A world of the encyclopedia: facts, names and a language; pages are written when they are read.

Nothing is kept but the fact arrays, the addresses, the search index and a few hundred recent pages, so 10^5 pages fit a
laptop.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache

from ..atlas import Page, WorldSpec
from ..index import Index
from .facts import facts_of
from .names import Names
from .pages import PageWriter
from .schema import Relation
from .voice import voice

PREFIX = "atlas/"
LINK_TARGET = re.compile(r"\]\([^)]*\)")
PROGRESS_FROM = 20_000  # pages; smaller worlds are ready before a progress bar is worth looking at


class Encyclopedia:
    """Entities are numbers from 0 to `spec.entities` - 1; each has one page."""

    hits = 10  # of a search, as in the reference

    def __init__(self, spec: WorldSpec):
        self.spec, self.facts, self.voice = spec, facts_of(spec.seed, spec.entities), voice(spec.language)
        self.names = Names(spec, self.facts.starts, spec.entities, self.voice.texts)
        self.writer = PageWriter(self)
        self.read = lru_cache(maxsize=512)(self.writer.write)

    def disputes(self, relation: Relation) -> bool:
        """Whether sources contradict each other about a relation here."""
        return relation.disputed and self.spec.conflicts

    def name(self, entity: int) -> str:
        return self.names.name(self.facts.kind(entity), entity)

    def alias(self, entity: int) -> str:
        return self.names.alias(self.facts.kind(entity), entity)

    def url(self, entity: int) -> str:
        return PREFIX + re.sub(r"\W+", "-", self.name(entity).lower()).strip("-")

    def link(self, entity: int) -> str:
        return f"[{self.name(entity)}]({self.url(entity)})"

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Url -> entity."""
        return {self.url(entity): entity for entity in range(self.spec.entities)}

    @property
    def urls(self) -> Sequence[str]:
        return list(self.numbers)

    def page(self, url: str) -> Page | None:
        entity = self.numbers.get(url)
        return None if entity is None else self.read(entity)

    @cached_property
    def index(self) -> Index:
        return Index(self._texts())

    def _texts(self) -> Iterator[str]:
        """Title and text of every page without link targets, which would count each name twice."""
        from tqdm import tqdm

        count = self.spec.entities
        for entity in tqdm(range(count), desc="write and index pages", disable=count < PROGRESS_FROM):
            page = self.writer.write(entity)
            yield f"{page.title}\n{LINK_TARGET.sub('', page.text)}"

    def search(self, query: str, k: int) -> list[Page]:
        return [self.read(entity) for entity in self.index.top(query, k)]
