"""What can be said of an entity: types, and relations with what they lead to.

Every relation has exactly one object, so a chain of relations has one answer; the way back (who was born in a city?)
may have many, and stands on the object's page where `listed`. Relations that people take to hold both ways (twin towns,
allies, rivals) are left out: their facts would need a second object.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["entity", "year", "date", "count", "category"]

# Shares of the entities. Ratios between types set how long lists of the way back are, at every size of a world.
SHARES = {"person": 0.34, "city": 0.18, "company": 0.16, "school": 0.08, "book": 0.16, "river": 0.04, "country": 0.04}
MINIMUM = 100  # entities of the smallest world: four of the rarest type


@dataclass(frozen=True)
class Relation:
    """`object` is a type of entity or the name of a list of categories; years lie from `low` to `high`, counts too.

    `follows` names the relation whose object's birth year a founding year follows: nobody founds before being born.
    """

    subject: str
    name: str
    kind: Kind
    object: str = ""
    listed: bool = False
    low: int = 0
    high: int = 0
    follows: str = ""
    disputed: bool = False  # sources may contradict each other about it, in worlds with conflicts

    @property
    def key(self) -> str:
        return f"{self.subject}.{self.name}"


def _entities(subject: str, **objects: str) -> list[Relation]:
    """`birthplace="city listed"`: the object's type, and what else holds."""
    made = []
    for name, words in objects.items():
        kind, *flags = words.split()
        made.append(Relation(subject, name.replace("_", " "), "entity", kind, "listed" in flags, disputed="disputed" in flags))
    return made


RELATIONS: dict[str, Relation] = {r.key: r for r in [
    Relation("person", "birth date", "date", low=1850, high=1889),
    Relation("person", "profession", "category", "professions"),
    *_entities("person", birthplace="city listed", home="city", alma_mater="school listed", employer="company listed",
               mentor="person listed", role_model="person"),
    Relation("city", "founding year", "year", low=1100, high=1499),
    Relation("city", "population", "count", low=2_000, high=900_000, disputed=True),
    Relation("city", "elevation", "count", low=11, high=1_900),
    *_entities("city", country="country listed", mayor="person disputed", river="river listed", market_town="city"),
    Relation("country", "founding year", "year", low=1500, high=1789),
    Relation("country", "area", "count", low=4_000, high=900_000),
    *_entities("country", capital="city", head_of_state="person disputed", protecting_power="country"),
    Relation("company", "founding year", "year", follows="founder"),
    Relation("company", "industry", "category", "industries"),
    Relation("company", "workforce", "count", low=40, high=90_000, disputed=True),
    *_entities("company", founder="person", chief_executive="person disputed", headquarters="city listed", supplier="company"),
    Relation("school", "founding year", "year", low=1500, high=1789),
    Relation("school", "enrolment", "count", low=120, high=30_000, disputed=True),
    *_entities("school", location="city listed", rector="person disputed"),
    Relation("book", "publication year", "year", follows="author"),
    Relation("book", "genre", "category", "genres"),
    Relation("book", "length", "count", low=90, high=1_400),
    *_entities("book", author="person listed", publisher="company listed", setting="city listed"),
    Relation("river", "length", "count", low=40, high=3_000),
    Relation("river", "basin area", "count", low=900, high=400_000),
    *_entities("river", mouth="city", explorer="person"),
]}


def relations_of(subject: str, *kinds: Kind) -> list[Relation]:
    """Relations of a type, of the given kinds or of all."""
    return [r for r in RELATIONS.values() if r.subject == subject and (not kinds or r.kind in kinds)]


def lists_of(object_type: str) -> list[Relation]:
    """Relations whose subjects are listed on the page of an object of this type."""
    return [r for r in RELATIONS.values() if r.listed and r.object == object_type]
