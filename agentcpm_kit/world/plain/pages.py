"""Pages: the facts of one entity as prose, with redundant sentences about others mixed in.

`redundancy` counts those sentences per page. They are true statements about other entities, so they never
contradict the answer; they only stand in its way, which is what the paper says redundant context does.
"""

import random
from collections import Counter

from ..atlas import Page
from .facts import RELATIONS, Entity, Fact

URL_PREFIX = "atlas/"
CONFUSIONS = 2  # pages that may warn of one alias; with the right page they fill the three hits of a search


def url_of(name: str) -> str:
    return URL_PREFIX + name


def sentence(fact: Fact) -> str:
    """The relation stands right before its value: looking it up is then one step of induction for a tiny model."""
    return f"{fact.subject} has {fact.relation} {fact.object}."


def introduction(entity: Entity) -> str:
    return f"{entity.name} is a {entity.type}, also called {entity.alias}."


def confusion(entity: Entity, other: Entity) -> str:
    """The sentence that makes a search for an alias find a wrong page too."""
    return f"Do not confuse {entity.name} with {other.alias}."


def write_page(rng: random.Random, entity: Entity, facts: list[Fact], others: list[Entity], all_facts: dict,
               redundancy: int, confused: Counter) -> Page:
    """Write the page of `entity`: introduction first, then its facts and `redundancy` sentences, shuffled, a line each.

    `confused` counts the warnings of each alias over all pages of the world.
    """
    evidence = {fact.relation: sentence(fact) for fact in facts}
    lines = list(evidence.values()) + redundant_sentences(rng, entity, others, all_facts, redundancy, confused)
    rng.shuffle(lines)
    return Page(url_of(entity.name), entity.name, "\n".join([introduction(entity), *lines]), evidence)


def redundant_sentences(rng: random.Random, entity: Entity, others: list[Entity], all_facts: dict,
                        count: int, confused: Counter) -> list[str]:
    """`count` sentences about other entities: three in four share a relation with the page, one warns of an alias."""
    lines: list[str] = []
    while len(lines) < count:
        other = rng.choice(others)
        shared = [r for r in RELATIONS[other.type] if r in RELATIONS[entity.type]]
        if rng.random() < 0.25 and confused[other.alias] < CONFUSIONS:
            line = confusion(entity, other)
            confused[other.alias] += line not in lines
        elif shared:
            line = sentence(all_facts[other.name, rng.choice(shared)])
        else:
            continue
        if line not in lines:
            lines.append(line)
    return lines
