"""Tasks of the eight families, and the files in ``data/world``: ``python -m agentcpm_kit.world.families.build``.

A task is drawn, worded, solved by brute force and given its gold path. The splits' worlds share no name and no fact
(`names`, `atlas.SPLITS`), so a test task cannot have been seen in training.
"""

import hashlib
import json
import random

from ...artefacts import write_checksums
from ...errors import KitError, unknown
from ...files import write_atomic
from ..atlas import ENTITIES, REDUNDANCY, WorldSpec, world_seeds
from ..encyclopedia.schema import RELATIONS, Relation
from ..encyclopedia.world import Encyclopedia
from ..faults import TOOLS
from ..tasks import FAMILIES, Task, data_folder
from ..tools import WORLD_TOOLS
from . import query as q
from .draw import draw_query
from .phrase import Wording
from .plan import Plan

LEVELS = (1, 2, 3)
SIZES = {"train": (10, 5), "validation": (5, 4), "test": (10, 5)}  # worlds, and tasks per world and level
OFFERED = {"navigate": ("fetch_url",), "assist": TOOLS, "reason": TOOLS}
TRUE_CLAIMS = 1 / 3  # of the claims in level 3 of `conflict`
CONTENT = """| file | tasks | sha256 |\n| --- | --- | --- |\n"""


def world_of(family: str, seed: int, entities: int = ENTITIES, redundancy: int = REDUNDANCY) -> WorldSpec:
    """The world in which a family's tasks are set: in Chinese, or with conflicting sources, where the family wants it."""
    return WorldSpec(seed, entities, redundancy, "encyclopedia", "zh" if family == "constraints_zh" else "en",
                     family == "conflict")


def make_task(family: str, level: int, spec: WorldSpec, number: int) -> Task:
    """Task `number` of a family and level in a world, the same on every machine.

    Raises:
        KitError: unknown family or level.
    """
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    if level not in LEVELS:
        raise KitError(f"a family has the levels 1 to 3, not {level}")
    world, rng = spec.open(), random.Random(f"task {family} {level} {spec.seed} {spec.entities} {number}")
    node, question, wording = None, None, None
    while question is None:
        node, wording = draw_query(family, level, world, rng), Wording(world, rng)
        question = _question(family, level, node, wording)
    plan = Plan(world, wording)
    answer, aliases = _answer(node, plan.reach(node), world)
    conclusion = world.voice.texts["queries"]["thoughts"]["answer"].format(value=answer)
    return Task(f"{family}-{level}-{spec.seed}-{number}", question, answer, family, level, spec, aliases,
                OFFERED.get(family, WORLD_TOOLS), tuple(plan.steps), conclusion, q.explain(node, world))


def _question(family: str, level: int, node: q.Node, wording: Wording) -> str | None:
    """The text of a question with what its family adds; None where the family cannot use this draw."""
    if family == "deep" or any(isinstance(p, q.Total) for p in q.parts(node)):
        return _in_steps(node, wording)
    question = wording.question(node)
    if family == "navigate":
        start = next(p for p in q.parts(node) if isinstance(p, q.Address))
        return wording.query("navigate", url=wording.world.url(start.entity), question=question)
    if family == "reason":
        ranking = wording.ranking(next(p for p in q.parts(node) if isinstance(p, q.Puzzle)))
        return wording.world.voice.joint.join([ranking, question])
    if family == "conflict":
        return _premise(node, question, wording) if level == 3 else wording.query("rule", question=question)
    return question


def _in_steps(node: q.Node, wording: Wording) -> str:
    """A long question told in sentences: what comes of each list gets a letter, and the next sentence starts there."""
    lists = [p for p in reversed(q.parts(node)) if isinstance(p, q.Pick | q.Total)]
    said = []
    for letter, part in zip("ABCDEFG", lists, strict=False):
        said.append(wording.query("let", letter=letter, np=wording.phrase(part)))
        wording.letters[part] = letter
    return wording.world.voice.joint.join([*said, wording.question(node)])


def _premise(node: q.Get, question: str, wording: Wording) -> str | None:
    """The question behind a claim that the register contradicts, or confirms one time in three.

    None where believing a wrong claim would give the same answer.
    """
    world, office = wording.world, node.of
    entity, relation = office.of.entity, RELATIONS[office.relation]
    truth = q.the(office, world)
    wrong = next(s.value for s in world.facts.statements(entity, relation) if s.value != truth)
    claimed = truth if wording.rng.random() < TRUE_CLAIMS else wrong
    if claimed != truth and world.facts.value(claimed, node.relation) in q.solve(node, world):
        return None
    claim = world.voice.sentence(relation, entity, world.alias(entity), world.name(claimed))
    return wording.query("premise", claim=claim, question=question)


def _answer(node: q.Node, value: int, world: Encyclopedia) -> tuple[str, tuple[str, ...]]:
    """The answer in words and its other forms.

    Raises:
        AssertionError: the gold path ends elsewhere than brute force.
    """
    assert q.solve(node, world) == {value}, "the gold path and brute force disagree"
    kind = q.asked(node, world)
    if isinstance(kind, Relation):
        return world.voice.answer(kind, value)
    return world.name(value), (world.alias(value),)


def make_family(family: str, split: str, worlds: int, per_level: int, entities: int = ENTITIES,
                redundancy: int = REDUNDANCY) -> list[Task]:
    """`worlds` x 3 levels x `per_level` tasks of a family, no question twice."""
    tasks: dict[str, Task] = {}
    for seed in world_seeds(split, worlds):
        spec = world_of(family, seed, entities, redundancy)
        for level in LEVELS:
            wanted, number = len(tasks) + per_level, 0
            while len(tasks) < wanted:
                task = make_task(family, level, spec, number)
                tasks.setdefault(task.question, task)
                number += 1
    return list(tasks.values())


def main() -> None:
    """Write all task files and the table of the data README."""
    from tqdm import tqdm

    readme = data_folder() / "README.md"
    table = [CONTENT]
    for family in tqdm(FAMILIES):
        for split, (worlds, per_level) in SIZES.items():
            lines = [json.dumps(t.record(), ensure_ascii=False) + "\n" for t in make_family(family, split, worlds, per_level)]
            data = "".join(lines).encode()
            write_atomic(data_folder() / f"{family}-{split}.jsonl", data)
            table.append(f"| `{family}-{split}.jsonl` | {len(lines)} | `{hashlib.sha256(data).hexdigest()}` |\n")
    head = readme.read_text().partition(CONTENT)[0]
    write_atomic(readme, head + "".join(table))
    write_checksums(data_folder())  # an input of every stage


if __name__ == "__main__":
    main()
