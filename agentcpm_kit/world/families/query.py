"""What a question means, as a small tree, and its answers by brute force over the fact base.

`Get("city.mayor", Get("person.birthplace", Alias(7)))` is the mayor of the birthplace of the person whom entity 7's
alias names. `solve` finds every answer by scanning all entities: it shares nothing with the way questions are drawn,
so one answer means that the question is unambiguous.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from itertools import permutations

from ..encyclopedia.facts import SOURCES
from ..encyclopedia.schema import RELATIONS, Relation
from ..encyclopedia.world import Encyclopedia


@dataclass(frozen=True)
class Alias:
    """An entity named by its alias, which has to be looked up."""

    entity: int


@dataclass(frozen=True)
class Address:
    """An entity named by the address of its page."""

    entity: int


@dataclass(frozen=True)
class Get:
    relation: str
    of: "Node"


@dataclass(frozen=True)
class Pick:
    """Of the entities whose `listed` relation leads to `of`, the one with most (or least) of the attribute `by`."""

    listed: str
    of: "Node"
    by: str
    most: bool


@dataclass(frozen=True)
class Either:
    """Of two, the one with most (or least) of the attribute `by`."""

    first: "Node"
    second: "Node"
    by: str
    most: bool


@dataclass(frozen=True)
class Condition:
    """`test`: `is` (an object, given as a node), `within` (a decade or category), `above` or `below` (a count)."""

    relation: str
    test: str
    value: int = 0
    node: "Node | None" = None


@dataclass(frozen=True)
class Find:
    """The entity of a type that meets all conditions. The first is on a listed relation: a place to start from."""

    kind: str
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Total:
    """Sum of the count `by` over the entities whose `listed` relation leads to `of`."""

    listed: str
    of: "Node"
    by: str


@dataclass(frozen=True)
class Calc:
    """`difference`, `sum`, `percent` (first of second, rounded half up) or `mean` (rounded down) of two numbers."""

    operation: str
    first: "Node"
    second: "Node"


@dataclass(frozen=True)
class Clue:
    """`before`, `next` (right before), `apart` (one between), `not_first`, `not_last`, `even`, about entities' places."""

    kind: str
    first: int
    second: int = -1


@dataclass(frozen=True)
class Puzzle:
    """The entity at `place` (from 1) of the only order of `entities` that agrees with the clues."""

    entities: tuple[int, ...]
    clues: tuple[Clue, ...]
    place: int


Node = Alias | Address | Get | Pick | Either | Find | Total | Calc | Puzzle

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "difference": lambda a, b: abs(a - b), "sum": lambda a, b: a + b, "mean": lambda a, b: (a + b) // 2,
    "percent": lambda a, b: (200 * a + b) // (2 * b)}
CODE = {"difference": "abs({a} - {b})", "sum": "{a} + {b}", "mean": "({a} + {b}) // 2",
        "percent": "(200 * {a} + {b}) // (2 * {b})"}
AGREES: dict[str, Callable[[int, int, int], bool]] = {  # places of the two, counted from 1, and how many there are
    "before": lambda a, b, n: a < b, "next": lambda a, b, n: b == a + 1, "apart": lambda a, b, n: abs(a - b) == 2,
    "not_first": lambda a, b, n: a != 1, "not_last": lambda a, b, n: a != n, "even": lambda a, b, n: a % 2 == 0}


def asked(node: Node, world: Encyclopedia) -> str | Relation:
    """What a node gives: a type of entity, or the relation whose value it is."""
    match node:
        case Get(relation, _) if RELATIONS[relation].kind == "entity":
            return RELATIONS[relation].object
        case Get(relation, _) | Total(_, _, relation):
            return RELATIONS[relation]
        case Pick(listed, _, _, _):
            return RELATIONS[listed].subject
        case Find(kind, _):
            return kind
        case Calc(_, first, _) | Either(first, _, _, _):
            return asked(first, world)
        case Puzzle(entities, _, _):
            return world.facts.kind(entities[0])
    return world.facts.kind(node.entity)


@lru_cache(maxsize=20_000)
def solve(node: Node, world: Encyclopedia) -> frozenset[int]:
    """All answers of a question: entities, years, days, counts or categories, as numbers."""
    return frozenset(_solutions(node, world))


def the(node: Node, world: Encyclopedia) -> int:
    """The one answer of a question.

    Raises:
        ValueError: it has none, or several.
    """
    (answer,) = solve(node, world)
    return answer


def _solutions(node: Node, world: Encyclopedia) -> set[int] | frozenset[int]:
    match node:
        case Alias(entity):
            return _named(world, world.alias(entity))
        case Address(entity):
            return {world.numbers[world.url(entity)]}
        case Get(relation, of):
            return {_object(world, e, relation) for e in solve(of, world)}
        case Pick(listed, of, by, most):
            return _extremes(world, _leading_to(world, listed, solve(of, world)), by, most)
        case Either(first, second, by, most):
            return _extremes(world, solve(first, world) | solve(second, world), by, most)
        case Find(kind, conditions):
            return frozenset.intersection(*(meeting(world, kind, c) for c in conditions))
        case Total(listed, of, by):
            return {sum(_object(world, e, by) for e in _leading_to(world, listed, {o})) for o in solve(of, world)}
        case Calc(operation, first, second):
            return {OPERATIONS[operation](a, b) for a in solve(first, world) for b in solve(second, world)}
    return {order[node.place - 1] for order in permutations(node.entities) if _consistent(order, node.clues)}


def meeting(world: Encyclopedia, kind: str, condition: Condition) -> frozenset[int]:
    """All entities of a type that meet a condition."""
    wanted = solve(condition.node, world) if condition.node else frozenset()
    return frozenset(e for e in world.facts.ranges[kind] if _meets(world, e, condition, wanted))


def _meets(world: Encyclopedia, entity: int, condition: Condition, wanted: frozenset[int]) -> bool:
    value, relation = _object(world, entity, condition.relation), RELATIONS[condition.relation]
    if condition.test == "is":
        return value in wanted
    if condition.test == "within":
        year = date.fromordinal(value).year if relation.kind == "date" else value
        return value == condition.value if relation.kind == "category" else year // 10 * 10 == condition.value
    return value > condition.value if condition.test == "above" else value < condition.value


def _named(world: Encyclopedia, text: str) -> set[int]:
    return {e for e in range(world.spec.entities) if text in (world.alias(e), world.name(e))}


def _object(world: Encyclopedia, entity: int, key: str) -> int:
    """Object of a fact; where sources contradict each other, what the most trusted says, the newest of equals."""
    relation = RELATIONS[key]
    if not world.disputes(relation):
        return world.facts.value(entity, relation)
    said = world.facts.statements(entity, relation)
    best = min(SOURCES.index(s.source) for s in said)
    return sorted((s.year, s.value) for s in said if SOURCES.index(s.source) == best)[-1][1]


def _leading_to(world: Encyclopedia, key: str, objects: set[int] | frozenset[int]) -> set[int]:
    return {e for e in world.facts.ranges[RELATIONS[key].subject] if _object(world, e, key) in objects}


def _extremes(world: Encyclopedia, entities: set[int] | frozenset[int], by: str, most: bool) -> set[int]:
    values = {e: _object(world, e, by) for e in entities}
    best = (max if most else min)(values.values(), default=None)
    return {e for e, value in values.items() if value == best}


def orders(entities: tuple[int, ...], clues: tuple[Clue, ...]) -> int:
    """How many orders of the entities agree with the clues."""
    return sum(_consistent(order, clues) for order in permutations(entities))


def _consistent(order: tuple[int, ...], clues: tuple[Clue, ...]) -> bool:
    place = {e: i for i, e in enumerate(order, 1)}
    return all(AGREES[c.kind](place[c.first], place.get(c.second, 0), len(order)) for c in clues)


def parts(node: Node) -> list[Node]:
    """The node and all below it, itself first."""
    match node:
        case Get(_, of) | Pick(_, of, _, _) | Total(_, of, _):
            below = [of]
        case Either(first, second, _, _) | Calc(_, first, second):
            below = [first, second]
        case Find(_, conditions):
            below = [c.node for c in conditions if c.node]
        case _:
            below = []
    return [node, *(part for child in below for part in parts(child))]


def explain(node: Node, world: Encyclopedia) -> str:
    """Why there is one answer, in words, with the counts that brute force found."""
    match node:
        case Alias(_):
            return f"{len(solve(node, world))} of {world.spec.entities} entities bears the alias {world.alias(node.entity)}"
        case Find(kind, conditions):
            left, counts = frozenset(world.facts.ranges[kind]), [f"{len(world.facts.ranges[kind])} candidates of type {kind}"]
            for condition in conditions:
                left &= meeting(world, kind, condition)
                counts.append(f"{len(left)} left after {condition.relation} {condition.test}")
            return ", ".join(counts)
        case Puzzle(entities, clues, _):
            return f"{orders(entities, clues)} order of {len(entities)} agrees with all {len(clues)} clues"
        case Pick(listed, of, by, most):
            among = len(_leading_to(world, listed, solve(of, world)))
            return f"{explain(of, world)}; 1 of {among} has the {'largest' if most else 'smallest'} {by.partition('.')[2]}"
        case Either(first, second, _, _) | Calc(_, first, second):
            return f"{explain(first, world)}; {explain(second, world)}"
        case Get(relation, of):
            if not world.disputes(RELATIONS[relation]):
                return explain(of, world)
            said = world.facts.statements(the(of, world), RELATIONS[relation])
            register = [s.year for s in said if s.source == "register"]
            return (f"{explain(of, world)}; {register.count(max(register))} of {len(said)} statements is the newest entry "
                    "of the register")
        case Total(_, of, _):
            return explain(of, world)
    return "the address names one page"
