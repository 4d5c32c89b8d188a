"""An evaluation's folder: nothing is lost, doubled or left out of a rate, whatever fails and whenever it is killed."""

import csv
import json
import random
import threading
from dataclasses import replace

import pytest

from agentcpm_kit.agent.engines import EngineFault
from agentcpm_kit.agent.episode import play_episodes
from agentcpm_kit.agent.trajectory import Trajectory
from agentcpm_kit.errors import KitError
from agentcpm_kit.evaluate.accounts import account, cost, used_by_task
from agentcpm_kit.evaluate.harness import Plan, endings, faults, generate, opened, rule, score, transcripts
from agentcpm_kit.evaluate.reports import used, write_reports
from agentcpm_kit.evaluate.scorers import normal_form, numeric_match
from agentcpm_kit.evaluate.summary import by_task, compare, ks, per_run, summarise
from agentcpm_kit.evaluate.tasks import Suite, load_suite
from agentcpm_kit.evaluate.throttle import throttled
from agentcpm_kit.files import read_jsonl
from agentcpm_kit.world import make_tasks

from .test_episode import ANSWER, LIMITS, PAGES, Script, box, turn_number

TASKS = tuple(make_tasks("test", 5, 2, 3, 60, 2))
TOOLS = box(lambda _: "found")


def plan(runs=3, **settings):
    return Plan(Suite("some", TASKS, "digest"), runs, 0, {"model": "m", **settings})


def gold(turn):
    """Every episode: a page, then the right answer in runs 0 and 1, a wrong one in run 2."""
    run, position = map(int, turn.key.split("/")[1:3])
    return PAGES[0] if turn_number(turn) == 0 else f"<answer>{TASKS[position].answer if run < 2 else 'Oslo'}</answer>"


def rows_of(out, engine, made=None):
    made = made or plan()
    with opened(out, made):
        generate(out, made, engine, TOOLS, LIMITS)
    return score(out, made, rule())


def reports(out, rows):
    write_reports(out, plan(), rows, {"rule": "r"})
    return {name: (out / name).read_bytes() for name in ("rows.jsonl", "metrics.json", "tasks.csv", "transcripts.html")}


def test_rows_are_those_of_the_plan_in_its_order(tokenizer, tmp_path):
    rows = rows_of(tmp_path, Script(tokenizer, gold))
    assert [(r["task_id"], r["run"]) for r in rows] == [(t.task_id, run) for t in TASKS for run in range(3)]
    assert [r["outcome"] for r in rows] == ["correct", "correct", "wrong"] * 5
    assert rows[0]["turns"] == 2 and rows[0]["tool_calls"] == {"fetch_url": 1} and rows == read_jsonl(tmp_path / "rows.jsonl")


def test_killed_at_any_moment_the_same_command_ends_in_the_same_bytes(tokenizer, tmp_path):
    """Five times, after a number of episodes drawn at random and with a torn last line; nothing is played twice."""
    whole = reports(tmp_path / "whole", rows_of(tmp_path / "whole", Script(tokenizer, gold)))
    broken, asked, rng = tmp_path / "broken", [], random.Random(0)

    class Killed(Exception):
        pass

    for left in [rng.randint(1, 4) for _ in range(5)] + [100]:
        engine = Script(tokenizer, gold)

        def die(trajectory, counter=[left]):  # noqa: B006
            counter[0] -= 1
            if not counter[0]:
                raise Killed

        try:
            with opened(broken, plan()):
                generate(broken, plan(), engine, TOOLS, LIMITS, on_end=die)
        except Killed:
            with open(broken / "transcripts.jsonl", "ab") as file:
                file.write(b'{"episode": "torn')
        asked += [turn.key for turn in engine.asked if turn_number(turn) == 1]
    assert reports(broken, score(broken, plan(), rule())) == whole
    names = [t.episode for t in transcripts(broken).values()]
    assert len(names) == len(set(names)) == 15 and len(asked) < 15 + 2 * 5  # at most those under way were begun again


def test_a_fault_is_played_again_then_unscored_and_a_miss(tokenizer, tmp_path):
    """Task 0 always meets a full server, task 1 once a cut stream; both in their class, and in every denominator."""
    met = []

    def lines(turn):
        position = int(turn.key.split("/")[2])
        if position == 0:
            return EngineFault("too many", "rate_limit")
        if position == 1 and met.count(turn.key) < 3:  # the episode's own three tries
            met.append(turn.key)
            return EngineFault("cut", "connection")
        return gold(turn)

    rows = rows_of(tmp_path, Script(tokenizer, lines))
    table = by_task(rows)
    assert faults(rows) == {"rate_limit": 3} and table.unscored.tolist() == [3, 0, 0, 0, 0]
    assert summarise(rows)["pass@1"].value == pytest.approx(4 / 5 * 2 / 3) and per_run(rows) == [0.8, 0.8, 0.0]
    healed = rows_of(tmp_path, Script(tokenizer, gold))
    assert faults(healed) == {} and summarise(healed)["pass@1"].value == pytest.approx(2 / 3)


def test_what_was_refused_is_asked_again_by_the_next_command_alone(tokenizer, tmp_path):
    engine = Script(tokenizer, lambda turn: EngineFault("wrong key", "refused", again=False))
    assert faults(rows_of(tmp_path, engine)) == {"refused": 15} and len(engine.asked) == 15
    assert faults(rows_of(tmp_path, Script(tokenizer, gold))) == {}


def test_what_was_never_played_is_a_miss_with_a_row_of_its_own(tokenizer, tmp_path):
    rows_of(tmp_path, Script(tokenizer, gold), plan(1))
    rows = score(tmp_path, plan(2), rule())
    assert [r["outcome"] for r in rows] == ["correct", "missing"] * 5 and summarise(rows)["pass@1"].value == 0.5


def begin(out, made):
    with opened(out, made):
        pass


def test_a_folder_goes_on_only_under_its_own_settings_and_alone(tokenizer, tmp_path):
    begin(tmp_path, plan(model="wrong"))  # nothing was played: no harm
    rows_of(tmp_path, Script(tokenizer, gold))
    begin(tmp_path, plan(runs=9))  # more runs of the same
    with pytest.raises(KitError, match="begun with model 'm', not 'other'; give another --out"):
        begin(tmp_path, plan(model="other"))
    with pytest.raises(KitError, match="begun with other tasks"):
        begin(tmp_path, Plan(Suite("some", TASKS, "tampered"), 3, 0, {"model": "m"}))
    with opened(tmp_path, plan()), pytest.raises(KitError, match="another process is at work"):
        begin(tmp_path, plan())
    for broken in ("{", None):
        (tmp_path / "config.json").unlink() if broken is None else (tmp_path / "config.json").write_text(broken)
        with pytest.raises(KitError, match="no config.json that tells of what"):
            begin(tmp_path, plan())


def test_rates_by_hand(tokenizer, tmp_path):
    """Two of three runs right everywhere: pass@1 2/3, pass@2 1, pass^2 1/3, pass^3 0, and the majority is right."""
    rates = summarise(rows_of(tmp_path, Script(tokenizer, gold)))
    assert {name: round(rate.value, 4) for name, rate in rates.items()} == {
        "pass@1": 0.6667, "pass@2": 1.0, "pass@3": 1.0, "pass^2": 0.3333, "pass^3": 0.0, "maj@3": 1.0}
    assert ks(1) == [1] and ks(8) == [1, 2, 4, 8] and ks(5) == [1, 2, 4, 5] and ks(100) == [1, 2, 4, 8, 16, 32, 64]


def test_two_evaluations_are_compared_task_by_task(tokenizer, tmp_path):
    one, two = rows_of(tmp_path / "a", Script(tokenizer, gold)), rows_of(tmp_path / "b", Script(tokenizer, [ANSWER]))
    assert compare(one, two)["pass@1"].value == pytest.approx(2 / 3)
    with pytest.raises(KitError, match=r"other tasks \(5 and 4, 4 in common\)"):
        compare(one, [row for row in two if row["task_id"] != TASKS[0].task_id])


def test_reports_are_of_the_rows(tokenizer, tmp_path):
    rows = rows_of(tmp_path, Script(tokenizer, gold))
    found = reports(tmp_path, rows)
    metrics = json.loads(found["metrics.json"])
    assert metrics["outcomes"] == {"correct": 10, "wrong": 5, "unscored": 0, "missing": 0}
    assert metrics["used"]["turns"] == 30 and metrics["used"]["tool_calls"] == {"fetch_url": 15}
    assert [line["correct"] for line in csv.DictReader(found["tasks.csv"].decode().splitlines())] == ["2"] * 5


def test_what_scores_are_made_from_holds_no_texts(tokenizer, tmp_path):
    rows_of(tmp_path, Script(tokenizer, gold))
    whole, light = transcripts(tmp_path), endings(tmp_path)
    assert {name: account(t) for name, t in whole.items()} == {name: account(t) for name, t in light.items()}
    assert all(step.results for step in whole["0/0/0/" + TASKS[0].task_id].steps[:1])
    assert not any(step.results or step.thinking or step.content for t in light.values() for step in t.steps)


def test_hostile_text_stays_text(tokenizer, tmp_path):
    evil = "</pre></details><script>alert(1)</script><img src=x onerror=alert(1)>"
    made = plan(1)
    generate(tmp_path, made, Script(tokenizer, [PAGES[0], ANSWER]), box(lambda _: evil), LIMITS)
    rows = score(tmp_path, made, rule())
    rows[0]["family"] = '"><script>alert(2)</script>'
    write_reports(tmp_path, made, rows, {})
    page = (tmp_path / "transcripts.html").read_text()
    shown = next(iter(transcripts(tmp_path).values()))._repr_html_()
    assert "<script" not in shown and "<img" not in shown and "&lt;script" in shown
    assert page.count("<script") == 1 and "<img" not in page and "onerror=alert(1)&gt;" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_accounts_by_hand(tokenizer, tmp_path):
    trajectory = next(play_episodes(TASKS[:1], Script(tokenizer, [PAGES[0], ANSWER]), TOOLS, LIMITS))
    found, mask = account(trajectory), trajectory.context.loss_mask
    first = trajectory.context.prompt_length
    second = len(mask) - mask[::-1].index(1) - trajectory.steps[1].tokens_generated
    assert found["tokens_read"] == first + second and found["tokens_written"] == sum(mask)
    assert cost("gpt-4.1", [{"tokens_read": 1_000_000, "tokens_written": 500_000}]) == pytest.approx(2 + 4)
    assert cost("unpriced", [{"tokens_read": 1}]) is None
    priced = {"model": {"name": "gpt-4.1"}, "counted_in": "tokens"}
    assert used([{"tokens_read": 1_000_000}], priced)["dollars"] == 2
    assert used([], priced | {"counted_in": "bytes"})["dollars"] is None


def test_a_servers_own_counts_are_priced_also_where_text_is_counted_in_bytes(tokenizer, tmp_path):
    trajectory = next(play_episodes(TASKS[:1], Script(tokenizer, [PAGES[0], ANSWER]), TOOLS, LIMITS))
    trajectory.steps[0].billed = 700, 20
    alone = account(trajectory)
    assert alone["billed"] is None  # not told of every turn
    trajectory.steps[1].billed = 1300, 30
    row, settings = account(trajectory), {"model": {"name": "gpt-4.1"}, "counted_in": "bytes"}
    assert row["billed"] == [2000, 50] and row["tokens_read"] == alone["tokens_read"]
    found = used([row, {"outcome": "missing"}], settings)
    assert found["counted_in"] == "tokens of the server" and found["dollars"] == pytest.approx(2000 * 2e-6 + 50 * 8e-6)
    mixed = used([row, alone], settings)  # what the server counts is not added to what the kit does
    assert mixed["counted_in"] == "bytes" and mixed["dollars"] is None and mixed["tokens_read"] == 2 * alone["tokens_read"]


def test_accounts_of_a_task_are_those_of_its_runs():
    rows = [{"task_id": "a", "turns": 2, "tokens_read": 1_000_000, "tokens_written": 10, "tool_calls": {"search": 1, "visit": 2}},
            {"task_id": "b", "outcome": "missing"}, {"task_id": "a", "turns": 1, "tokens_read": 0, "tokens_written": 0}]
    table = used_by_task(rows, "gpt-4.1")
    assert list(table.index) == ["a", "b"] and table.loc["a"].tolist() == [3, 1_000_000, 10, 3, pytest.approx(2.00008)]
    assert table.loc["b"].tolist() == [0] * 5 and used_by_task(rows, "unpriced").dollars.isna().all()


def test_tools_are_called_so_many_at_once():
    """Three wait for each other, which two could not; none of the others is let in meanwhile."""
    together, lock, now, most = threading.Barrier(3), threading.Lock(), 0, 0

    def work(_):
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        together.wait(10)
        with lock:
            now -= 1
        return "found"

    factory = throttled(box(work), 3)
    calls = [threading.Thread(target=factory(task, "e").call, args=("search", {})) for task in TASKS for _ in range(3)]
    for each in calls:
        each.start()
    for each in calls:
        each.join()
    assert most == 3 and throttled(TOOLS, 0) is TOOLS


@pytest.mark.parametrize("one, two, equal", [
    ("The Oslo", "oslo", True), ("**Oslo**", "Oslo.", True), ("1,000", "1000", True), ("$5", "5.0", True),
    ("Oslo", "Paris", False), ("5", "five", False), ("[Oslo](https://a.org)", "Oslo", True), ("北京", "北京。", True),
    ("1812", "1813", False)])
def test_votes_are_for_the_same_answer_in_any_dress(one, two, equal):
    assert (normal_form(one) == normal_form(two)) == equal and normal_form(None) is None


@pytest.mark.parametrize("prediction, truth, tolerance, right", [
    ("3.14", "3.1416", {"absolute": 0.01}, True), ("3.1", "3.1416", {"absolute": 0.01}, False),
    ("102", "100", {"relative": 0.02}, True), ("$1,020", "1000", {"relative": 0.02}, True),
    ("103", "100", {"relative": 0.02}, False), ("100", "100", {}, True),
    ("many", "100", {"relative": 9}, False), ("inf", "inf", {"relative": 1}, False), ("nan", "nan", {}, False)])
def test_numbers_within_a_tolerance(prediction, truth, tolerance, right):
    assert numeric_match(prediction, truth, **tolerance) is right


def test_a_tolerance_is_the_rules():
    task = replace(TASKS[0], answer="1000")
    found = Trajectory(task_id="a", question="q", answer="**1,004**", end_reason="answered")
    assert rule()([(found, task)]) == [(False, "")] and rule(0.01)([(found, task)]) == [(True, "")]
    assert rule(0.01)([(found, replace(task, family="gaia"))]) == [(False, "")]


# -- task files


def line(**fields):
    return json.dumps({"task_id": "a", "Question": "What?", "Final answer": "this", **fields})


@pytest.mark.parametrize("text, hint", [
    ("", "holds no tasks"), ("\n\n", "holds no tasks"), ("{", "line 1: not a task"),
    ("[1]", "line 1: not a task \\(not a JSON object"),
    (line(Question=" "), "line 1: 'Question': string should have at least 1"),
    ('{"task_id": "a"}', "'Question': field required"),
    (line(**{"Final answer": None}), "line 1: 'Final answer': input should be a valid string"),
    (line(Level="hard"), "line 1: 'Level': input should be a valid integer"),
    (line(aug_answers={"a": 1}), "line 1: 'aug_answers'"),
    (line(Question="\ud800"), "line 1: not a task"), ("[" * 100_000, "line 1: not a task"),
    (line() + "\n" + line(task_id="b") + "\n" + line(), "line 3: task_id 'a' stands in line 1 already"),
    (line(file_name="x.png"), "line 1: the task comes with a file"),
    (line(world={"split": 1}), "line 1: not a task")])
def test_a_bad_task_file_is_told_with_its_line(tmp_path, text, hint):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(KitError, match=hint):
        load_suite(str(tmp_path / "t.jsonl"))


def test_task_files_and_families(tmp_path):
    (tmp_path / "mine.jsonl").write_text(line(Level=2, aug_answers=["that"]) + "\n" + json.dumps(TASKS[0].record()) + "\n")
    own, of_atlas = load_suite(str(tmp_path / "mine.jsonl")).tasks
    assert (own.family, own.level, own.aliases, own.world) == ("mine", 2, ("that",), None) and of_atlas == TASKS[0]
    with pytest.raises(KitError, match="needs --tools"):
        own.open_world()
    assert len(load_suite("deep-validation").tasks) == 60 and load_suite("deep").name == "deep-test"
    assert [task.hops for task in load_suite("plain").first(6).tasks] == [1, 2, 3, 1, 2, 3]
    assert load_suite("plain").digest != load_suite("plain-validation").digest
    assert load_suite("plain").first(6).digest != load_suite("plain").digest == load_suite("plain").first(10**6).digest
    for unknown in ("dep", "deep-tset", "nowhere.jsonl"):
        with pytest.raises(KitError):
            load_suite(unknown)
