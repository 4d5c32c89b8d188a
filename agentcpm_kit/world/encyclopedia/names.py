"""Names of any number of entities, computed from their numbers: nothing is stored, none is used twice.

A stem is a number written in syllables. Splits use disjoint residues of that number, so no name of a test world has
ever been seen in training. Relatives share a stem (four persons a family name, two towns a stem): look-alikes.
"""

import math
import random
from functools import cached_property

from ..atlas import SPLITS, WorldSpec

FAMILY = {"person": 4, "city": 2}  # so many entities share a stem
MULTIPLIER = 805_306_457  # prime: consecutive numbers give unlike stems


class Names:
    """Names of a world's entities. `starts` holds the first number of each type, `parts` a language's syllables.

    The digits of a stem come from `parts["stem"]`, a list of lists; `parts["inner"]` are those that may be repeated in
    the middle when a world needs more stems than the short ones.
    """

    def __init__(self, spec: WorldSpec, starts: dict[str, int], size: int, parts: dict):
        self.spec, self.starts, self.parts = spec, starts, parts
        self.size = size
        self.digits = self._digits(2 * size)
        self.shift = random.Random(f"names {spec.seed}").randrange(self.space)

    def _digits(self, needed: int) -> list[list[str]]:
        digits, inner = list(self.parts["stem"]), self.parts["inner"]
        middle = self.parts["inner_at"]
        while math.prod(map(len, digits)) // len(SPLITS) < needed:
            digits[middle:middle] = inner
        return digits

    @cached_property
    def space(self) -> int:
        """Stems that one split may use."""
        return math.prod(map(len, self.digits)) // len(SPLITS)

    def stem(self, number: int) -> str:
        """Stem of a number below `space`; another number gives another stem."""
        at = (number * MULTIPLIER + self.shift) % self.space
        at = at * len(SPLITS) + list(SPLITS).index(self.spec.split)
        places = []
        for options in reversed(self.digits):
            at, place = divmod(at, len(options))
            places.append(place)
        # The last syllable depends on all others, or a split would know a quarter of the endings only.
        places[0] = sum(places) % len(self.digits[-1])
        return "".join(options[place] for options, place in zip(self.digits, reversed(places), strict=True))

    def name(self, kind: str, number: int) -> str:
        """Name of entity `number`, which is of type `kind`."""
        group, member = divmod(number - self.starts[kind], FAMILY.get(kind, 1))
        stem = self.stem(self.starts[kind] + group).capitalize()
        forms = self.parts["names"][kind]
        # Members of one family differ: their forms are neighbours, starting at a place of the family's own.
        return forms[(group * 7 + member) % len(forms)].format(stem=stem)

    def alias(self, kind: str, number: int) -> str:
        """The other name of an entity, of a stem that is used for nothing else."""
        forms = self.parts["aliases"][kind]
        return forms[number % len(forms)].format(stem=self.stem(self.size + number).capitalize())
