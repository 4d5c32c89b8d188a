"""The `multihop` task family (stands in for FRAMES): combine several pages, starting from an alias.

A question names its first entity by an alias that only one page explains, so it takes one search and then one
fetch per hop. Every task carries its gold answer, evidence and tool path; the scripted oracle follows that path.
"""

import random
from dataclasses import asdict, dataclass

from .atlas import World, make_world, world_seeds
from .facts import RELATIONS
from .pages import introduction, url_of

QUESTIONS = ("What is {chain}?", "Find {chain}.", "Name {chain}.")


@dataclass(frozen=True)
class Task:
    """`path` holds the entities visited, from the start entity to the answer; `relations` the hops between them."""

    task_id: str
    question: str
    answer: str
    family: str
    hops: int
    world: int
    redundancy: int
    entities: int  # size of the world
    alias: str
    path: tuple[str, ...]
    relations: tuple[str, ...]
    evidence: tuple[str, ...]  # gold sentences in the order in which they are needed
    pages: tuple[str, ...]  # gold urls

    def record(self) -> dict:
        """The task in the reference's file format (``task_id``, ``Question``, ``Final answer``), plus ours."""
        fields = asdict(self)
        return {"task_id": fields.pop("task_id"), "Question": fields.pop("question"),
                "Final answer": fields.pop("answer"), **fields}

    def open_world(self) -> World:
        return make_world(self.world, self.entities, self.redundancy)


def chain_text(relations: tuple[str, ...] | list[str], start: str) -> str:
    """`["home", "mayor"], "Ann"` -> "the mayor of the home of Ann"."""
    return "".join(f"the {relation} of " for relation in reversed(relations)) + start


def make_task(rng: random.Random, world: World, hops: int, number: int) -> Task:
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


def _task(rng: random.Random, world: World, path: list[str], relations: list[str], number: int) -> Task:
    start = world.entity(path[0])
    evidence = [introduction(start)]
    evidence += [world.page_of(p).evidence[r] for p, r in zip(path, relations, strict=False)]
    question = rng.choice(QUESTIONS).format(chain=chain_text(relations, start.alias))
    return Task(f"multihop-{len(relations)}-{world.seed}-{number}", question, path[-1], "multihop", len(relations),
                world.seed, world.redundancy, len(world.entities), start.alias, tuple(path), tuple(relations),
                tuple(evidence), tuple(url_of(p) for p in path[:-1]))


def make_tasks(split: str, count: int, hops: int, worlds: int, entities: int, redundancy: int, seed: int = 0) -> list[Task]:
    """`count` tasks with `hops` hops, spread evenly over the first `worlds` worlds of a split.

    The same seed gives the same questions at every redundancy, so that contamination is the only difference.
    """
    seeds = world_seeds(split, worlds)
    rng = random.Random(f"tasks {split} {hops} {seed}")
    return [make_task(rng, make_world(seeds[i % worlds], entities, redundancy), hops, i) for i in range(count)]
