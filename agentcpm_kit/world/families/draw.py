"""Draws questions: for every family and level a tree of `query`, kept only if brute force finds exactly one answer.

| family | level 1 | level 2 | level 3 |
| --- | --- | --- | --- |
| assist | two counts, one sum | a chain, then a mean or percentage | a whole list added up |
| constraints(_zh) | a place and one trait | a place to be found first, two traits | two places, two traits |
| | no condition can be left out | no condition can be left out | neither place can be left out |
| reason | order of 3 | order of 4 | order of 5, and one hop more |
| multihop | 2 hops | 3 hops | compare two, then hop on |
| navigate | 2 clicks | 3 clicks | through a list |
| conflict | a count that sources dispute | an office that they dispute, and a hop | the same behind a claim that may be false |
| deep | one list on the way | two lists | three lists |
"""

import random
from collections.abc import Callable
from datetime import date

from ..encyclopedia.schema import RELATIONS, SHARES, Relation, lists_of, relations_of
from ..encyclopedia.world import Encyclopedia
from . import query as q

LIST_SIZES = range(2, 9)  # of lists that have to be read through
PLACES = {1: 3, 2: 4, 3: 5}  # how many stand in the ranking of `reason`


class Unlucky(Exception):
    """This draw led nowhere (no list of a fit size, a tie, the start again); the next may."""


class Draw:
    """Random choices in one world."""

    def __init__(self, world: Encyclopedia, rng: random.Random):
        self.world, self.facts, self.rng = world, world.facts, rng

    def entity(self, *kinds: str) -> int:
        return self.rng.choice(self.facts.ranges[self.rng.choice(kinds or list(SHARES))])

    def alias(self, *kinds: str) -> q.Alias:
        return q.Alias(self.entity(*kinds))

    def relation(self, kind: str, *kinds: str) -> Relation:
        """A relation of a type; what sources dispute is asked for in `conflict` alone."""
        return self.rng.choice([r for r in relations_of(kind, *kinds) if not self.world.disputes(r)])

    def hop(self, node: q.Node) -> q.Get:
        return q.Get(self.relation(q.asked(node, self.world), "entity").key, node)

    def hops(self, node: q.Node, count: int) -> q.Node:
        for _ in range(count):
            node = self.hop(node)
        return node

    def end(self, node: q.Node) -> q.Get:
        """The last hop: to an entity, a year, a date or a count. Categories are few, so they could be guessed."""
        return q.Get(self.relation(q.asked(node, self.world), "entity", "year", "date", "count").key, node)

    def count(self, node: q.Node) -> q.Get:
        kind = q.asked(node, self.world)
        if not relations_of(kind, "count"):
            raise Unlucky
        return q.Get(self.relation(kind, "count").key, node)

    def pick(self, node: q.Node) -> q.Pick:
        """One of those listed on the page of a node."""
        options = [r for r in lists_of(q.asked(node, self.world)) if relations_of(r.subject, "year", "date", "count")]
        if not options:
            raise Unlucky
        listed = self.rng.choice(options)
        self.members(listed, node)
        by = self.relation(listed.subject, "year", "date", "count")
        return q.Pick(listed.key, node, by.key, self.rng.random() < 0.5)

    def members(self, listed: Relation, node: q.Node) -> list[int]:
        found = self.facts.subjects(listed, self.only(node))
        if len(found) not in LIST_SIZES:
            raise Unlucky
        return found

    def only(self, node: q.Node) -> int:
        """The one answer of a node so far."""
        if len(q.solve(node, self.world)) != 1:
            raise Unlucky
        return q.the(node, self.world)


def multihop(draw: Draw, level: int) -> q.Node:
    if level < 3:
        return draw.end(draw.hops(draw.alias(), level))
    first = draw.hop(draw.alias())
    kind = q.asked(first, draw.world)
    second = draw.hop(draw.alias())
    attributes = relations_of(kind, "year", "date", "count")
    if q.asked(second, draw.world) != kind or not attributes:
        raise Unlucky
    return draw.end(q.Either(first, second, draw.rng.choice(attributes).key, draw.rng.random() < 0.5))


def assist(draw: Draw, level: int) -> q.Node:
    if level == 3:
        country = q.Get("city.country", draw.hop(draw.alias()) if draw.rng.random() < 0.5 else draw.alias("city"))
        if q.asked(country.of, draw.world) != "city":
            raise Unlucky
        draw.members(RELATIONS["city.country"], country)
        total = q.Total("city.country", country, "city.population")
        return q.Calc(draw.rng.choice(("sum", "difference")), total, q.Get("city.population", draw.alias("city")))
    first = draw.count(draw.alias() if level == 1 else draw.hop(draw.alias()))
    kind = first.relation.partition(".")[0]
    second = q.Get(first.relation, draw.alias(kind))
    operation = draw.rng.choice(("sum", "difference") if level == 1 else ("mean", "percent"))
    if operation == "percent" and draw.only(q.Calc(operation, first, second)) <= 100:
        first, second = second, first  # small percentages are few, and so could be guessed
    return q.Calc(operation, first, second)


def constraints(draw: Draw, level: int) -> q.Node:
    target = draw.entity("person", "company", "book", "city", "school")
    kind = draw.facts.kind(target)
    listed = draw.rng.choice([r for r in relations_of(kind, "entity") if r.listed])
    place = q.Alias(draw.facts.value(target, listed))
    draw.members(listed, place)
    conditions = [q.Condition(listed.key, "is", node=place if level == 1 else _way_to(draw, place.entity))]
    if level == 3:
        other = draw.rng.choice([r for r in relations_of(kind, "entity") if r != listed])
        conditions.append(q.Condition(other.key, "is", node=q.Alias(draw.facts.value(target, other))))
    traits = draw.rng.sample(relations_of(kind, "year", "date", "count", "category"), min(level, 2))
    find = q.Find(kind, tuple(conditions + [_trait(draw, target, r) for r in traits]))
    for condition in conditions if level == 3 else find.conditions:
        without = tuple(c for c in find.conditions if c != condition)
        if len(q.solve(q.Find(kind, without), draw.world)) < 2:
            raise Unlucky  # it would not be needed
    return find


def _way_to(draw: Draw, entity: int) -> q.Get:
    """A one-hop description of an entity: whose birthplace, employer, capital … it is."""
    kind = draw.facts.kind(entity)
    ways = [(r.key, s) for r in RELATIONS.values() if r.object == kind and r.kind == "entity"
            for s in draw.facts.ranges[r.subject] if draw.facts.value(s, r) == entity]
    if not ways:
        raise Unlucky
    key, subject = draw.rng.choice(ways)
    return q.Get(key, q.Alias(subject))


def _trait(draw: Draw, entity: int, relation: Relation) -> q.Condition:
    """A vague truth about an entity: the decade instead of the year, a bound instead of the number."""
    value = draw.facts.value(entity, relation)
    if relation.kind == "category":
        return q.Condition(relation.key, "within", value)
    if relation.kind == "count":
        above = draw.rng.random() < 0.5
        bound = value * 4 // 5 if above else value * 6 // 5 + 1
        return q.Condition(relation.key, "above" if above else "below", _round(bound, up=not above))
    year = value if relation.kind == "year" else date.fromordinal(value).year
    if year // 10 % 10 == 0:
        raise Unlucky  # "the 1900s" may be read as a century
    return q.Condition(relation.key, "within", year // 10 * 10)


def _round(number: int, up: bool) -> int:
    """To two digits, away from the value that the bound was made from."""
    step = 10 ** max(0, len(str(number)) - 2)
    return -(-number // step) * step if up else number // step * step


def reason(draw: Draw, level: int) -> q.Node:
    kind = draw.rng.choice(("person", "city", "company", "book", "school"))
    order = draw.rng.sample(draw.facts.ranges[kind], PLACES[level])
    place = draw.rng.randint(1, len(order))
    pool = [q.Clue(name, a, b) for i, a in enumerate(order) for j, b in enumerate(order)
            for name in ("before", "next", "apart") if i != j and q.AGREES[name](i + 1, j + 1, len(order))]
    pool += [q.Clue(name, a) for i, a in enumerate(order) for name in ("not_first", "not_last", "even")
             if q.AGREES[name](i + 1, 0, len(order))]
    draw.rng.shuffle(pool)
    names = tuple(draw.rng.sample(order, len(order)))
    clues: tuple[q.Clue, ...] = ()
    left = q.orders(names, clues)
    for clue in pool:  # only those that rule something out
        if (fewer := q.orders(names, (*clues, clue))) < left:
            clues, left = (*clues, clue), fewer
    if left != 1:
        raise Unlucky
    puzzle = q.Puzzle(names, clues, place)
    return draw.end(draw.hop(puzzle) if level == 3 else puzzle)


def navigate(draw: Draw, level: int) -> q.Node:
    start = q.Address(draw.entity())
    if level < 3:
        return draw.end(draw.hops(start, level))
    return draw.end(draw.pick(draw.hop(start)))


def conflict(draw: Draw, level: int) -> q.Node:
    """A disputed fact; at level 2 and 3 a disputed office, and a hop from its holder."""
    kind = draw.rng.choice(("city", "company", "school") if level == 1 else ("city", "company", "school", "country"))
    wanted = "count" if level == 1 else "entity"
    disputed = draw.rng.choice([r for r in relations_of(kind, wanted) if r.disputed])
    node = q.Get(disputed.key, draw.alias(kind))
    return node if level == 1 else draw.end(node)


def deep(draw: Draw, level: int) -> q.Node:
    node: q.Node = draw.alias("person")
    for _ in range(level):
        node = draw.pick(draw.hop(node))
        if q.asked(node, draw.world) != "person":
            node = draw.hop(node)
    return draw.end(node)


FAMILIES: dict[str, Callable[[Draw, int], q.Node]] = {
    "assist": assist, "constraints": constraints, "constraints_zh": constraints, "reason": reason, "multihop": multihop,
    "navigate": navigate, "conflict": conflict, "deep": deep}


def draw_query(family: str, level: int, world: Encyclopedia, rng: random.Random) -> q.Node:
    """Draw until a question has one answer and names nobody twice."""
    while True:
        try:
            node = FAMILIES[family](Draw(world, rng), level)
        except Unlucky:
            continue
        if len(q.solve(node, world)) == 1 and not _circular(node, world) and not _odd(node):
            return node


def _odd(node: q.Node) -> bool:
    """Whether common sense would answer otherwise: who heads a company or a school is taken to be employed there."""
    return any(isinstance(part, q.Get) and part.relation == "person.employer" and isinstance(part.of, q.Get)
               and part.of.relation in ("company.chief executive", "company.founder", "school.rector") for part in q.parts(node))


def _circular(node: q.Node, world: Encyclopedia) -> bool:
    """Whether the way to the answer comes past one entity twice, or past a tie."""
    seen: list[int] = []
    for part in q.parts(node):
        if len(q.solve(part, world)) != 1:
            return True
        if isinstance(part, q.Puzzle):
            seen += part.entities
        elif isinstance(q.asked(part, world), str) and not isinstance(part, q.Either):  # that is one of its two parts
            seen.append(q.the(part, world))
    return len(set(seen)) < len(seen)
