"""The eight families: solvable through the tools, not without, one answer each, the same bytes everywhere."""

import json
import random

import pytest

from agentcpm_kit.agent.episode import run_episodes, world_tools
from agentcpm_kit.agent.oracle import OracleEngine, follow_path
from agentcpm_kit.agent.trajectory import EndReason
from agentcpm_kit.errors import KitError
from agentcpm_kit.evaluate.scorers import is_right, score
from agentcpm_kit.evaluate.shortcuts import closed_book, first_hit
from agentcpm_kit.sections import Limits
from agentcpm_kit.world import FAMILIES, Task, Tools, WorldSpec, load_family
from agentcpm_kit.world import tasks as task_files
from agentcpm_kit.world.families import build
from agentcpm_kit.world.families import query as q
from agentcpm_kit.world.families.draw import Draw, _trait, draw_query

ROOMY = Limits(max_turns=40, max_new_tokens=10_000, max_context_tokens=1_000_000)


def tools_of(task):
    return Tools(task.open_world(), names=task.tools)


@pytest.fixture(scope="module")
def files():
    return {(family, split): load_family(family, split) for family in FAMILIES for split in build.SIZES}


def test_files_are_what_the_seeds_give(files):
    """The files can be made again, byte for byte; making them asserts that brute force finds one answer."""
    for family in FAMILIES:
        made = build.make_family(family, "validation", *build.SIZES["validation"])
        assert made == files[family, "validation"]


def test_files_have_every_level_and_no_question_twice(files):
    for (family, split), tasks in files.items():
        worlds, per_level = build.SIZES[split]
        assert [sum(t.level == level for t in tasks) for level in build.LEVELS] == [worlds * per_level] * 3
        assert len({t.question for t in tasks}) == len({t.task_id for t in tasks}) == len(tasks)
        assert {t.family for t in tasks} == {family} and {t.world.split for t in tasks} == {split}


def test_no_world_serves_two_splits(files):
    seeds = [{t.world.seed for f in FAMILIES for t in files[f, split]} for split in build.SIZES]
    assert sum(map(len, seeds)) == len(set.union(*seeds))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_solves_everything_through_the_tools(files, family):
    failed = [t.task_id for t in files[family, "test"] if follow_path(t, tools_of(t)) != t.answer]
    assert not failed


def test_the_oracle_fails_where_the_pages_lack_the_evidence(files):
    task = next(t for t in files["multihop", "test"] if t.level == 2)
    other = next(t for t in files["multihop", "test"] if t.world != task.world)
    assert follow_path(task, Tools(other.open_world())) == "unknown"


@pytest.mark.parametrize("family", FAMILIES)
def test_shortcuts_do_not_pay(files, family):
    tasks = files[family, "test"]
    for how, right in closed_book(tasks, files[family, "train"]).items():
        assert sum(right) / len(right) <= 0.05, how
    for how, right in first_hit(tasks).items():
        assert sum(right) / len(right) <= 0.30, how


def test_the_question_does_not_tell_the_answer_nor_the_names_behind_its_aliases(files):
    for family in FAMILIES:
        for task in files[family, "test"]:
            assert not any(text.lower() in task.question.lower() for text in (task.answer, *task.aliases) if len(text) > 4)
            first = task.steps[0]
            if first.tool == "search":
                name = first.evidence[0][1:].partition("]")[0]
                assert name not in task.question, task.task_id


def test_a_right_answer_may_be_dressed():
    task = Task("x", "", "The Vell Letters", "multihop", 1, WorldSpec(0), aliases=("the Vell Codex",))
    for answer in ("the vell letters", "**The Vell Letters**", "[The Vell Letters](atlas/x)", "Vell Codex", "“Vell Letters”.",
                   "Vell  Letters"):
        assert is_right(answer, task), answer
    for answer in ("Vell", "The Vell Letters or the Vell Songs", "", "The", "***"):
        assert not is_right(answer, task), answer
    book = Task("x", "", "《塔克里的灯火》", "constraints_zh", 1, WorldSpec(0), aliases=("艾达·塔克",))
    assert all(is_right(a, book) for a in ("塔克里的灯火", "《塔克里的灯火》。", "艾达•塔克")) and not is_right("塔", book)
    number = Task("x", "", "1234", "assist", 1, WorldSpec(0))
    assert all(is_right(a, number) for a in ("1,234", "**1234**", "1234."))
    assert not any(is_right(a, number) for a in ("123", "12345", "1.234"))


def test_families_offer_the_tools_that_they_are_about(files):
    assert {t.tools for t in files["navigate", "test"]} == {("fetch_url",)}
    with pytest.raises(ValueError, match="unknown tool search"):
        tools_of(files["navigate", "test"][0]).call("search", {"query": ["x"]})
    assert any(s.tool == "PythonInterpreter" for s in files["assist", "test"][0].steps)


@pytest.fixture(scope="module")
def byte_tokenizer():
    """Every text can be written in it, unlike in the vocabulary of micro-qwen3."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from agentcpm_kit.micro.tokenizer import CHAT_TEMPLATE, SPECIALS

    core = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False)


def test_every_family_and_level_is_solved_through_the_loop(files, byte_tokenizer):
    tasks = [next(t for t in files[f, "validation"] if t.level == level) for f in FAMILIES for level in build.LEVELS]
    found = run_episodes(tasks, OracleEngine(byte_tokenizer, tasks), world_tools(), ROOMY)
    for task, trajectory in zip(tasks, found, strict=True):
        assert trajectory.end_reason == EndReason.ANSWERED and score(trajectory, task).correct, task.task_id
        assert trajectory.turns == len(task.steps) + 1


def test_constraints_are_needed(files):
    """Levels 1 and 2 need every condition, level 3 both places."""
    world = build.world_of("constraints", 2_000_000).open()
    for level in build.LEVELS:
        for i in range(3):
            find = draw_query("constraints", level, world, random.Random(i))
            for condition in find.conditions[:2] if level == 3 else find.conditions:
                rest = tuple(c for c in find.conditions if c != condition)
                assert len(q.solve(q.Find(find.kind, rest), world)) >= 2


def test_brute_force_sees_what_is_ambiguous():
    world = build.world_of("constraints", 2_000_000).open()
    people = world.facts.ranges["person"]
    trait = _trait(Draw(world, random.Random(0)), people[0], q.RELATIONS["person.profession"])
    assert len(q.solve(q.Find("person", (trait,)), world)) > 1
    with pytest.raises(ValueError):
        q.the(q.Find("person", (trait,)), world)
    loose = q.Puzzle(tuple(people[:3]), (q.Clue("not_first", people[0]),), 1)
    assert q.solve(loose, world) == {people[1], people[2]}
    tight = q.Puzzle(tuple(people[:3]), (q.Clue("next", people[0], people[1]), q.Clue("not_last", people[2])), 2)
    assert q.solve(tight, world) == {people[0]}


@pytest.mark.parametrize("operation, a, b, result", [("difference", 3, 10, 7), ("sum", 3, 10, 13), ("mean", 3, 10, 6),
                                                     ("percent", 1, 8, 13), ("percent", 1, 3, 33), ("percent", 2, 3, 67)])
def test_arithmetic_by_hand(operation, a, b, result):
    assert q.OPERATIONS[operation](a, b) == result == eval(q.CODE[operation].format(a=a, b=b))


def test_a_changed_task_file_is_refused(tmp_path, monkeypatch):
    for file in task_files.data_folder().glob("reason-*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "README.md").write_text((task_files.data_folder() / "README.md").read_text())
    monkeypatch.setattr(task_files, "data_folder", lambda: tmp_path)
    assert load_family("reason", "test")
    changed = (tmp_path / "reason-test.jsonl").read_text().replace("the", "teh", 1)
    (tmp_path / "reason-test.jsonl").write_text(changed)
    with pytest.raises(KitError, match="reason-test.jsonl is not the file"):
        load_family("reason", "test")
    with pytest.raises(KitError, match="reason-test"):
        load_family("reson", "test")


def test_files_are_in_the_reference_format():
    for line in (task_files.data_folder() / "assist-test.jsonl").read_text().splitlines():
        assert {"task_id", "Question", "Final answer"} <= set(json.loads(line))
