"""The gold tool path of a question: what to call, and what each result must contain for the next call to be possible.

A page that was read for one purpose is opened again for another: with context refinement on, the first reading showed
what served its purpose only.
"""

from ..encyclopedia.schema import RELATIONS, Relation
from ..encyclopedia.world import Encyclopedia
from ..tasks import GoldStep
from . import query as q
from .phrase import Wording

BATCH = 3  # urls in one call, the reference's advisory limit


class Plan:
    """Steps towards the value of a node. Page texts decide the evidence, so the path is only as good as the pages."""

    def __init__(self, world: Encyclopedia, wording: Wording):
        self.world, self.wording, self.voice = world, wording, world.voice
        self.steps: list[GoldStep] = []
        self.said = self.voice.texts["queries"]["thoughts"]

    def reach(self, node: q.Node) -> int:
        """Append the steps that find a node's value; the value."""
        match node:
            case q.Alias(entity):
                alias, link = self.world.alias(entity), self.world.link(entity)
                self._step("search", {"query": [alias]}, (link, alias), self._seek(alias))
                return entity
            case q.Address(entity):
                return entity
            case q.Get(relation, of):
                return self._read(self.reach(of), RELATIONS[relation])
            case q.Pick(listed, of, by, most):
                found = self._gather(listed, self.reach(of), by)
                return (max if most else min)(found, key=found.get)
            case q.Either(first, second, by, most):
                pair = [self.reach(first), self.reach(second)]
                values = {e: self._read(e, RELATIONS[by]) for e in pair}
                return (max if most else min)(values, key=values.get)
            case q.Find():
                return self._find(node)
            case q.Total(listed, of, by):
                values = self._gather(listed, self.reach(of), by).values()
                return self._compute(f"print(sum([{', '.join(map(str, values))}]))", sum(values))
            case q.Calc(operation, first, second):
                a, b = self.reach(first), self.reach(second)
                return self._compute(f"print({q.CODE[operation].format(a=a, b=b)})", q.OPERATIONS[operation](a, b))
        return self._arrange(node)

    def _seek(self, sought: str) -> str:
        """The thought before a step that looks for something."""
        return self.said["next" if self.steps else "first"].format(np=sought)

    def _step(self, tool: str, arguments: dict, evidence: tuple[str, ...], thought: str) -> None:
        self.steps.append(GoldStep(tool, arguments, evidence, thought))

    def _read(self, entity: int, relation: Relation) -> int:
        """Open an entity's page for one of its relations; its object."""
        label = self.voice.relation(relation)["nouns"][0].format(x=self.world.name(entity))
        url = self.world.url(entity)
        evidence = (self.world.page(url).evidence[relation.name],)
        self._step("fetch_url", {"url": [url], "purpose": label}, evidence, self._seek(label))
        return q.the(q.Get(relation.key, q.Address(entity)), self.world)

    def _gather(self, listed: str, of: int, by: str) -> dict[int, int]:
        """Open the page with the list, then all pages on it; each one's attribute."""
        members = self._list(listed, of)
        self._open(members, {e: [by] for e in members}, self.voice.relation(RELATIONS[by])["label"])
        return {e: self.world.facts.value(e, by) for e in members}

    def _list(self, listed: str, of: int) -> list[int]:
        members = self.world.facts.subjects(listed, of)
        heading = self.voice.relation(RELATIONS[listed])["list"]
        lines = tuple(f"- {self.world.link(e)}" for e in members)
        label = f"{heading}: {self.world.name(of)}"
        self._step("fetch_url", {"url": [self.world.url(of)], "purpose": label}, lines, self._seek(label))
        return members

    def _open(self, entities: list[int], wanted: dict[int, list[str]], purpose: str) -> None:
        """Read pages, a few in a call, for the evidence of the relations that are wanted of each."""
        for start in range(0, len(entities), BATCH):
            part = entities[start: start + BATCH]
            evidence = tuple(self.world.page(self.world.url(e)).evidence[RELATIONS[key].name]
                             for e in part for key in wanted.get(e, ()))
            self._step("fetch_url", {"url": [self.world.url(e) for e in part], "purpose": purpose}, evidence, self.said["read"])

    def _find(self, node: q.Find) -> int:
        """From the first condition's object to its list, the other objects, then every candidate's page."""
        target = q.the(node, self.world)
        first, *others = node.conditions
        members = self._list(first.relation, self.reach(first.node))
        for condition in others:
            if condition.node:
                self.reach(condition.node)
        self._open(members, {target: [c.relation for c in node.conditions]}, self.wording.condition(others[-1]))
        return target

    def _compute(self, code: str, result: int) -> int:
        self._step("PythonInterpreter", {"code": code}, (str(result),), self.said["compute"])
        return result

    def _arrange(self, puzzle: q.Puzzle) -> int:
        """Try all orders in code, then look the right one up."""
        names = {e: self.world.alias(e) for e in puzzle.entities}
        code = TRY_ALL.format(names=list(names.values()), at=puzzle.place - 1,
                              checks=" and ".join(_check(c, names) for c in puzzle.clues))
        entity = q.the(puzzle, self.world)
        self._step("PythonInterpreter", {"code": code}, (names[entity],), self._seek(self.wording.phrase(puzzle)))
        return self.reach(q.Alias(entity))


TRY_ALL = """from itertools import permutations

names = {names}
for order in permutations(names):
    at = order.index
    if {checks}:
        print(order[{at}])"""
CHECKS = {"before": "at({a}) < at({b})", "next": "at({b}) == at({a}) + 1", "apart": "abs(at({a}) - at({b})) == 2",
          "not_first": "at({a}) != 0", "not_last": "at({a}) != len(names) - 1", "even": "at({a}) % 2 == 1"}


def _check(clue: q.Clue, names: dict[int, str]) -> str:
    return CHECKS[clue.kind].format(a=repr(names[clue.first]), b=repr(names.get(clue.second, "")))
