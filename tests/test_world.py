import hashlib
import json

import pytest

from agentcpm_kit.errors import KitError
from agentcpm_kit.world import FaultPlan, Task, ToolFault, Tools, WorldSpec, make_tasks, make_world, world_seeds
from agentcpm_kit.world.atlas import SPLITS
from agentcpm_kit.world.plain.facts import name_pool


def test_same_seed_same_bytes():
    """Any change here changes every result: it must be deliberate."""
    world = make_world(7, 60, 3)
    content = json.dumps([[p.url, p.text] for p in world.pages.values()]) + json.dumps(
        [[t.task_id, t.question, t.answer, t.evidence, t.pages] for t in make_tasks("test", 30, 3, 5, 60, 3)])
    content += json.dumps(name_pool())
    assert hashlib.sha256(content.encode()).hexdigest() == "79523fd8dd43910be3716ad641154ea56914b8eebfbd9f0f144402c8ae0788fd"


def test_splits_share_no_world():
    seeds = {split: set(world_seeds(split, 1000)) for split in SPLITS}
    assert sum(map(len, seeds.values())) == len(set.union(*seeds.values()))
    with pytest.raises(KitError, match="did you mean 'test'"):
        world_seeds("tset", 1)


def test_redundancy_changes_pages_and_no_fact():
    plain, crowded = make_world(3, 60, 0), make_world(3, 60, 8)
    assert plain.facts == crowded.facts
    for url, page in crowded.pages.items():
        assert len(page.text.split("\n")) == len(plain.pages[url].text.split("\n")) + 8


def test_every_answer_follows_from_the_facts():
    for hops in (1, 2, 3):
        for task in make_tasks("test", 50, hops, 5, 60, 4):
            world, at = task.open_world(), task.path[0]
            assert world.entity(at).alias == task.alias
            for relation in task.relations:
                at = world.facts[at, relation].object
            assert at == task.answer and len(set(task.path)) == hops + 1
            for url, line in zip(task.pages, task.evidence[1:], strict=True):
                assert line in world.pages[url].text


def test_the_alias_is_found_among_the_hits_at_any_redundancy():
    for redundancy in (0, 4, 12, 40):
        world = make_world(11, 60, redundancy)
        for entity in world.entities:
            assert f"(atlas/{entity.name})" in Tools(world).call("search", {"query": [entity.alias]})


def test_same_questions_at_every_redundancy():
    pairs = zip(make_tasks("test", 40, 2, 4, 60, 0), make_tasks("test", 40, 2, 4, 60, 9), strict=True)
    assert all((a.question, a.answer, a.path) == (b.question, b.answer, b.path) for a, b in pairs)


def test_tools_answer_mistakes_and_raise_faults():
    world = make_world(0)
    tools = Tools(world)
    assert tools.call("fetch_url", {"url": ["atlas/Nowhere"], "purpose": "x"}) == "Error: page not found."
    assert tools.call("search", {"query": ["zzz"]}) == "No results found."
    assert "=======" in tools.call("search", {"query": ["zzz", "zzz"]})
    for name, arguments in [("serach", {}), ("search", {}), ("fetch_url", {"url": 3}), ("search", {"query": []})]:
        with pytest.raises(ValueError):
            tools.call(name, arguments)
    with pytest.raises(ToolFault):
        Tools(world, FaultPlan(outage=1.0), "e").call("search", {"query": ["a"]})


def test_faults_are_seeded_by_episode():
    world = make_world(0)
    down = [Tools(world, FaultPlan(outage=0.5), str(i)).down for i in range(400)]
    assert down == [Tools(world, FaultPlan(outage=0.5), str(i)).down for i in range(400)]
    assert 150 < sum(down) < 250


def test_a_task_survives_its_file():
    task = make_tasks("test", 1, 2, 1, 60, 2)[0]
    record = json.loads(json.dumps(task.record()))
    assert {"task_id", "Question", "Final answer"} <= set(record)
    assert Task.from_record({k: v for k, v in record.items() if k not in ("alias", "path", "relations")}).steps == task.steps


def test_a_spec_survives_its_text():
    for text in ("", "edition=plain", "seed=1000003, language=zh", "conflicts=True,redundancy=0,number=7"):
        spec = WorldSpec.parse(text)
        assert WorldSpec.parse(str(spec)) == spec
    assert WorldSpec.parse("edition=plain") == make_world(2_000_000).spec


@pytest.mark.parametrize("text, message", [("pages=3", "entities"), ("entities=x", "a whole number"), ("split=tset", "test"),
                                           ("language=de", "language"), ("conflicts=1", "true or false"),
                                           ("entities=-1", "a whole number"),
                                           ("number=1000000", "up to number"), ("edition=plain,language=zh", "in English")])
def test_a_world_that_cannot_be_is_refused_by_name(text, message):
    with pytest.raises(KitError, match=message):
        WorldSpec.parse(text)


@pytest.mark.parametrize("count", [7, 161])
def test_impossible_worlds_are_refused(count):
    with pytest.raises(KitError, match="8 to 160"):
        make_world(0, count)
