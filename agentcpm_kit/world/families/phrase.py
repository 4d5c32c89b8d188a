"""How a question is worded: noun phrases for the nodes of `query`, in any language that has a file of texts.

Every relation has at least four noun phrases and every question six frames, so that one question can be worded in two
dozen ways and its wording gives nothing away.
"""

import random

from ..encyclopedia.schema import RELATIONS, Relation
from ..encyclopedia.voice import capital
from ..encyclopedia.world import Encyclopedia
from . import query as q


class Wording:
    """Words questions about one world; `rng` chooses among the forms. `letters` names nodes that were introduced before."""

    def __init__(self, world: Encyclopedia, rng: random.Random):
        self.world, self.rng, self.texts = world, rng, world.voice.texts
        self.letters: dict[q.Node, str] = {}

    def choose(self, *path: str) -> str:
        options = self.texts
        for key in path:
            options = options[key]
        return self.rng.choice(options) if isinstance(options, list) else options

    def query(self, form: str, **fields) -> str:
        return self.choose("queries", form).format(**fields)

    def question(self, node: q.Node) -> str:
        """A whole question."""
        answer = q.asked(node, self.world)
        if isinstance(node, q.Find) and node not in self.letters:
            return self.choose("frames", "find").format(**self._find(node))
        kind = answer.kind if isinstance(answer, Relation) else "person" if answer == "person" else "entity"
        noun = "" if isinstance(answer, Relation) else self.world.voice.noun(answer)
        return self.choose("frames", kind).format(np=self.phrase(node), noun=noun)

    def phrase(self, node: q.Node) -> str:
        """A noun phrase."""
        if node in self.letters:
            return self.letters[node]
        match node:
            case q.Alias(entity):
                return self.world.alias(entity)
            case q.Address(entity):
                return self.query("address", url=self.world.url(entity))
            case q.Get(relation, of):
                return self._noun(relation, self.phrase(of))
            case q.Pick(listed, of, by, most):
                return self.query("pick", most=self._extreme(by, most), among=self._among(listed, of), **self._names(node))
            case q.Either(first, second, by, most):
                return self.query("either", most=self._extreme(by, most), first=self.phrase(first),
                                  second=self.phrase(second), **self._names(node))
            case q.Total(listed, of, by):
                each = self._noun(by, self.texts["queries"]["each"])
                return self.query("total", among=self._among(listed, of), noun=each)
            case q.Calc(operation, first, second):
                return self.query(operation, first=self.phrase(first), second=self.phrase(second))
        return self.query("ranked", place=node.place)

    def _names(self, node: q.Node) -> dict[str, str]:
        return {"noun": self.world.voice.noun(q.asked(node, self.world))}

    def _noun(self, relation: str, subject: str) -> str:
        return self.choose("relations", relation, "nouns").format(x=subject)

    def _extreme(self, by: str, most: bool) -> str:
        return self.choose("relations", by, "most" if most else "least")

    def _among(self, listed: str, of: q.Node) -> str:
        return self.choose("relations", listed, "among").format(x=self.phrase(of))

    def _find(self, node: q.Find) -> dict[str, str]:
        comma, last = self.texts["queries"]["and"]
        *head, tail = [self.condition(c) for c in node.conditions]
        that = self.texts["queries"]["that"]
        return {"noun": self.world.voice.noun(node.kind), "that": that.get(node.kind, that["other"]),
                "conditions": comma.join(head) + last + tail if head else tail}

    def condition(self, condition: q.Condition) -> str:
        """A predicate, such as "was founded in the 1870s"."""
        relation = RELATIONS[condition.relation]
        if condition.test == "is":
            return self.choose("relations", relation.key, "within").format(v=self.phrase(condition.node))
        value = str(condition.value) if condition.test == "within" and relation.kind != "category" else \
            self.world.voice.value(relation, condition.value)
        return self.choose("relations", relation.key, condition.test).format(v=value)

    def ranking(self, puzzle: q.Puzzle) -> str:
        """The clues of a puzzle, in sentences."""
        comma, last = self.texts["queries"]["and"]
        names = {e: self.world.alias(e) for e in puzzle.entities}
        *head, tail = names.values()
        lines = [self.query("contest", names=comma.join(head) + last + tail, count=len(names))]
        for clue in puzzle.clues:
            form = self.texts["queries"]["clues"][clue.kind]
            lines.append(form.format(first=names[clue.first], second=names.get(clue.second, "")))
        return self.world.voice.joint.join(map(capital, lines))
