"""General ability: fixed items, how they are judged, and what they leave for replay."""

import math

import pytest

from agentcpm_kit.errors import KitError
from agentcpm_kit.evaluate import general
from agentcpm_kit.evaluate.general import by_skill, is_right, load_items, load_prose, micro_items, prose_loss, replay_prompts
from agentcpm_kit.evaluate.general_small import candidates, facts
from agentcpm_kit.micro.skills import SKILLS, Item


def test_micro_items_are_fixed_balanced_and_drawn_by_the_kit():
    items = load_items()
    assert len(items) >= 500 and {i.skill for i in items} == set(SKILLS)
    assert items == list(dict.fromkeys(micro_items())) and len(load_items(12)) == 12


@pytest.mark.parametrize("suite", ["micro", "small"])
def test_halves_share_no_question_and_are_alike_in_every_skill(suite):
    items = load_items(suite=suite)
    first, second = general.halves(items)
    assert {*first, *second} == set(items) and {i.prompt for i in first}.isdisjoint(i.prompt for i in second)
    for skill in {i.skill for i in items}:
        assert abs(sum(i.skill == skill for i in first) - sum(i.skill == skill for i in second)) <= 1


def test_small_items_hold_three_kinds():
    items = load_items(suite="small")
    counts = {skill: sum(i.skill == skill for i in items) for skill in {i.skill for i in items}}
    assert set(counts) == {"arithmetic", "format", "facts"} and min(counts.values()) >= 40
    assert len({i.prompt for i in items}) == len(items)
    known = {i.prompt: i for i in [*facts(), *candidates("fixed", 800)]}
    assert all(known[i.prompt] == i for i in items)


@pytest.mark.parametrize("name", ["micro.jsonl", "small.jsonl", "prose.jsonl"])
def test_changed_files_are_refused(tmp_path, monkeypatch, name):
    (tmp_path / general.FOLDER).mkdir(parents=True)
    (tmp_path / general.FOLDER / name).write_text("{}\n")
    monkeypatch.setattr(general, "repo_root", lambda: tmp_path)
    with pytest.raises(KitError, match="SHA-256"):
        load_prose() if name == "prose.jsonl" else load_items(suite=name.removesuffix(".jsonl"))


@pytest.mark.parametrize("skill, answer, said, right", [
    ("facts", "Paris", "The capital of France is Paris.", True), ("facts", "Paris", "paris", True),
    ("facts", "Paris", "It is Parisian.", False), ("facts", "Paris", "Rome.\nNo, Paris.", False),
    ("facts", "Au", "The symbol is Australia", False), ("facts", "H2O", "Water is H2O.", True), ("facts", "Paris", "", False),
    ("arithmetic", "12", "7 plus 5 is 12.", True), ("arithmetic", "5", "5 times 1 is 6.", False),
    ("arithmetic", "12", "It is 112.", False), ("arithmetic", "12", "12", True),
    ("arithmetic", "1000", "That makes 1,000.", True),
    ("format", "lemon", "Lemon.", True), ("format", "lemon", "Here it is: lemon", False), ("format", "lemon", '"lemon"', True)])
def test_a_language_models_sentences_are_read(skill, answer, said, right):
    assert is_right(Item(skill, "?", answer), said, "small") is right


def test_micro_is_judged_word_for_word():
    assert is_right(Item("facts", "?", "web"), "web", "micro") and not is_right(Item("facts", "?", "web"), "a web", "micro")


def test_rates_by_skill_add_up():
    items = load_items(12)
    rates = by_skill(items, [i % 2 == 0 for i in range(12)])
    assert rates["all"].value == 0.5 and rates["all"].n == 12 and sum(r.n for s, r in rates.items() if s != "all") == 12


def test_prose_is_measured_passage_by_passage(smoke, tiny_model, tokenizer, tmp_path):
    tiny_model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    losses = prose_loss(tmp_path / "m", smoke)
    assert len(losses) == len(load_prose()) >= 16 and all(map(math.isfinite, losses))


def test_replay_asks_nothing_that_is_measured_where_there_is_a_choice(smoke):
    prompts = replay_prompts(smoke, 60, 0)
    asked = {i.prompt for i in load_items()}
    assert len(prompts) == 60 and asked.isdisjoint(prompts)
    small = smoke.model_copy(update={"evaluation": smoke.evaluation.model_copy(update={"general_suite": "small"})})
    prompts = replay_prompts(small, 50, 0)
    assert len(set(prompts)) == 50 and {i.prompt for i in load_items(suite="small")}.isdisjoint(prompts)
