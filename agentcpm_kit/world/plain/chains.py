"""The family `multihop` in plain worlds: a chain of relations that starts from an alias.

A question names its first entity by an alias that only one page explains, so it takes one search and then one
fetch per hop. The thoughts of the gold path restate what was read and what is still sought: without that a model of
1M parameters stalls at guessing among the facts of a page.
"""

import random
from dataclasses import dataclass

from ..atlas import make_world, world_seeds
from ..tasks import GoldStep, Task
from .facts import RELATIONS
from .pages import introduction, url_of
from .world import PlainWorld

QUESTIONS = ("What is {chain}?", "Find {chain}.", "Name {chain}.")


@dataclass(frozen=True)
class ChainTask(Task):
    """`path` holds the entities visited, from the start entity to the answer; `relations` the hops between them."""

    alias: str = ""
    path: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()

    @property
    def hops(self) -> int:
        return self.level


def chain_text(relations: tuple[str, ...] | list[str], start: str) -> str:
    """`["home", "mayor"], "Ann"` -> "the mayor of the home of Ann"."""
    return "".join(f"the {relation} of " for relation in reversed(relations)) + start


def thoughts(alias: str, path: list[str], relations: list[str], evidence: list[str]) -> list[str]:
    """What to think after reading page 0, 1, …: the fact found there and what is still sought.

    The first follows the search (alias resolved), number i the page of hop i.
    """
    lines = [f"{alias} is {path[0]}. Find {chain_text(relations, path[0])}."]
    for i, fact in enumerate(evidence[1:], 1):
        rest = relations[i:]
        lines.append(f"{fact} Find {chain_text(rest, path[i])}." if rest else fact)
    return lines


def make_task(rng: random.Random, world: PlainWorld, hops: int, number: int) -> ChainTask:
    """Draw one task: a chain of `hops` relations that visits no entity twice and whose answer is on its last page."""
    while True:
        path, relations = [rng.choice(world.entities).name], []
        for hop in range(hops):
            options = [r for r, kind in RELATIONS[world.entity(path[-1]).type].items()
                       if kind != "year" or hop == hops - 1]
            relations.append(rng.choice(options))
            path.append(world.facts[path[-1], relations[-1]].object)
        if len(set(path)) == len(path):
            return _task(rng, world, path, relations, number)


def _task(rng: random.Random, world: PlainWorld, path: list[str], relations: list[str], number: int) -> ChainTask:
    start = world.entity(path[0])
    evidence = [introduction(start)]
    evidence += [world.page_of(p).evidence[r] for p, r in zip(path, relations, strict=False)]
    thinking = thoughts(start.alias, path, relations, evidence)
    steps = [GoldStep("search", {"query": [start.alias]}, (evidence[0],),
                      f"Find {chain_text(relations, start.alias)}. Search {start.alias}.")]
    steps += [GoldStep("fetch_url", {"url": [url_of(p)], "purpose": f"{r} of {p}"}, (found,), thought)
              for p, r, found, thought in zip(path, relations, evidence[1:], thinking, strict=False)]
    question = rng.choice(QUESTIONS).format(chain=chain_text(relations, start.alias))
    return ChainTask(f"multihop-{len(relations)}-{world.seed}-{number}", question, path[-1], "multihop", len(relations),
                     world.spec, steps=tuple(steps), conclusion=thinking[-1], why_unique="every relation has one object",
                     alias=start.alias, path=tuple(path), relations=tuple(relations))


def make_tasks(split: str, count: int, hops: int, worlds: int, entities: int, redundancy: int,
               seed: int = 0) -> list[ChainTask]:
    """`count` tasks with `hops` hops, spread evenly over the first `worlds` worlds of a split.

    The same seed gives the same questions at every redundancy, so that contamination is the only difference.
    """
    seeds = world_seeds(split, worlds)
    rng = random.Random(f"tasks {split} {hops} {seed}")
    return [make_task(rng, make_world(seeds[i % worlds], entities, redundancy), hops, i) for i in range(count)]
