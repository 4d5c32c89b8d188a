"""Pages that read like pages: lead, sections of prose with links, a table, lists of the way back, redundant paragraphs.

`redundancy` counts sentences about look-alike entities: members of the same family, neighbours, things of the same type.
They are true; they only stand in the way, which is what the paper says redundant context does. Where worlds have
conflicts, disputed facts are stated by several sources, dated and of unequal trust, instead of once.
"""

import random

from ..atlas import Page
from .schema import RELATIONS, Relation, lists_of, relations_of
from .voice import capital

FIRST_EDITION = 1960  # later than every source that is quoted
PARAGRAPH = 4  # redundant sentences about one look-alike, at most
NEIGHBOURS = (-2, -1, 1, 2)  # only so few pages may mention an alias: with its own page they fit into one search


class PageWriter:
    """Writes the pages of one world."""

    def __init__(self, world):
        self.world, self.facts, self.voice = world, world.facts, world.voice
        texts = self.voice.texts
        self.told = {kind: {heading: [RELATIONS[f"{kind}.{name}"] for name in names] for heading, names in sections.items()}
                     for kind, sections in texts["sections"].items()}
        prose = {r.key for sections in self.told.values() for rs in sections.values() for r in rs}
        self.tabled = {kind: [r for r in relations_of(kind) if r.key not in prose] for kind in texts["types"]}

    def write(self, entity: int) -> Page:
        world, kind, evidence = self.world, self.facts.kind(entity), {}
        blocks = self._sections(entity, kind, evidence)
        table = self._table(entity, kind, evidence)
        if table:
            blocks.append(table)
        blocks += self._lists(entity, kind)
        rng = random.Random(f"page {world.spec.seed} {world.spec.redundancy} {entity}")
        for paragraph in self._redundant(rng, entity, kind):
            blocks.insert(rng.randint(0, len(blocks)), paragraph)
        revised = FIRST_EDITION + entity % 10
        text = "\n\n".join([self.lead(entity, kind), *blocks, self.voice.texts["revised"].format(v=revised)])
        return Page(world.url(entity), world.name(entity), text, evidence, self.voice.texts["source"].format(v=revised))

    def lead(self, entity: int, kind: str) -> str:
        """The first line. It says whose the alias is; besides, only the warnings on pages of neighbours do."""
        forms = self.voice.texts["types"][kind]["intro"]
        return capital(forms[entity % len(forms)].format(s=f"**{self.world.name(entity)}**", alias=self.world.alias(entity)))

    def _sections(self, entity: int, kind: str, evidence: dict) -> list[str]:
        blocks = []
        for heading, relations in self.told[kind].items():
            plain = [r for r in relations if not self.world.disputes(r)]
            for relation in plain:
                evidence[relation.name] = self.statement(entity, relation)
            if plain:
                blocks.append(f"## {heading}\n" + self.voice.joint.join(evidence[r.name] for r in plain))
        disputed = [line for r in relations_of(kind) if self.world.disputes(r) for line in self._sources(entity, r, evidence)]
        if disputed:
            blocks.append(f"## {self.voice.texts['headings']['disputed']}\n" + "\n".join(disputed))
        return blocks

    def _sources(self, entity: int, relation: Relation, evidence: dict) -> list[str]:
        """What each source says, a line each; the evidence is the line that the rule trusts."""
        lines, trusted = [], self.facts.trusted(entity, relation)
        for said in self.facts.statements(entity, relation):
            forms = self.voice.texts["statements"][said.source]
            line = forms[said.year % len(forms)].format(year=said.year, sentence=self.statement(entity, relation, said.value))
            lines.append(line)
            if said == trusted:
                evidence[relation.name] = line
        return lines

    def statement(self, entity: int, relation: Relation, value: int | None = None) -> str:
        """The sentence of a fact, with its object as a link; `value` is another object than the true one."""
        value = self.facts.value(entity, relation) if value is None else value
        shown = self.world.link(value) if relation.kind == "entity" else self.voice.value(relation, value)
        return self.voice.sentence(relation, entity, self.world.name(entity), shown)

    def _table(self, entity: int, kind: str, evidence: dict) -> str:
        relations = [r for r in self.tabled[kind] if not self.world.disputes(r)]
        for relation in relations:
            evidence[relation.name] = self.voice.row(relation, self.facts.value(entity, relation))
        heads = self.voice.texts["headings"]
        rows = "\n".join(evidence[r.name] for r in relations)
        return f"## {heads['table']}\n| {heads['item']} | {heads['value']} |\n| --- | --- |\n{rows}" if relations else ""

    def _lists(self, entity: int, kind: str) -> list[str]:
        blocks = []
        for relation in lists_of(kind):
            if subjects := self.facts.subjects(relation, entity):
                heading = self.voice.relation(relation)["list"]
                blocks.append(f"## {heading}\n" + "\n".join(f"- {self.world.link(s)}" for s in subjects))
        return blocks

    def _redundant(self, rng: random.Random, entity: int, kind: str) -> list[str]:
        """Paragraphs with `redundancy` sentences in all, each paragraph about one look-alike."""
        blocks, left, own = [], self.world.spec.redundancy, self.facts.ranges[kind]
        while left > 0:
            near = rng.random() < 0.5
            step = rng.choice(NEIGHBOURS) if near else rng.randrange(1, len(own))
            other = own.start + (entity - own.start + step) % len(own)
            lines = self._about(rng, entity, other, near)[: min(left, PARAGRAPH)]
            blocks.append(f"## {self.voice.texts['headings']['similar']}\n" + self.voice.joint.join(lines))
            left -= len(lines)
        return blocks

    def _about(self, rng: random.Random, entity: int, other: int, near: bool) -> list[str]:
        world, texts, lines = self.world, self.voice.texts, []
        if near:
            lines.append(texts["confusion"].format(s=world.name(entity), o=world.link(other), alias=world.alias(other)))
        kind = self.facts.kind(other)
        for relation in rng.sample(relations_of(kind), PARAGRAPH - len(lines)):
            if world.disputes(relation):
                lines.append(rng.choice(self._sources(other, relation, {})))
            else:
                lines.append(rng.choice(texts["redundant"]).format(sentence=self.statement(other, relation)))
        return lines
