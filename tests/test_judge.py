"""A judge over HTTP: asked again when it cannot be read, silent when it is out, and never asked twice for what is known."""

import gc
import json
import time
from concurrent.futures import Future

import pytest

from agentcpm_kit.agent.engines import servers
from agentcpm_kit.errors import KitError
from agentcpm_kit.evaluate.judge import FORMATS, Judge, JudgeSettings, in_a_thread
from agentcpm_kit.evaluate.verdicts import read_verdict
from agentcpm_kit.files import read_jsonl

from .test_openai_engine import AT_ONCE, SECRET, serve, slow  # noqa: F401

ASKED = [("What?", "this", "that"), ("Who?", "she", "he")]


def says(text, finish="stop"):
    return 200, {}, {"id": "1", "object": "chat.completion", "created": 1, "model": "j", "usage": {"prompt_tokens": 50,
                     "completion_tokens": 2, "total_tokens": 52}, "choices": [{"index": 0, "finish_reason": finish, "message": {
                         "role": "assistant", "content": text}}]}


OUT = 500, AT_ONCE, {"error": {"message": "down"}}


def judge(server, tmp_path, offline=False, **settings):
    settings = {"model": "j", "url": server.url, "concurrency": 1} | settings
    return Judge(JudgeSettings(**settings), tmp_path / "verdicts.jsonl", offline)


def verdicts(rows):
    return [row["verdict"] for row in rows]


def test_verdicts_are_kept_and_nothing_is_asked_twice(serve, tmp_path):  # noqa: F811
    server = serve(says("Correct"), says("Incorrect"))
    assert verdicts(judge(server, tmp_path)(ASKED)) == [True, False]
    assert verdicts(judge(server, tmp_path)([*ASKED, *ASKED])) == [True, False] * 2 and len(server.seen) == 2
    assert verdicts(judge(server, tmp_path, offline=True)([*ASKED, ("New?", "a", "b")])) == [True, False, None]
    assert len(server.seen) == 2
    prompt = server.seen[0]["body"]["messages"][0]["content"]
    assert "What?" in prompt and "this" in prompt and "that" in prompt


def test_an_unreadable_reply_is_asked_again_then_there_is_no_verdict(serve, tmp_path):  # noqa: F811
    server = serve(says("Hm."), says("**Correct**"), says("perhaps"))
    assert verdicts(judge(server, tmp_path)(ASKED)) == [True, None]
    first, second = read_jsonl(tmp_path / "verdicts.jsonl")
    assert first["replies"] == ["Hm.", "**Correct**"] and (first["tokens_read"], first["tokens_written"]) == (100, 4)
    assert second["fault"] == "unreadable" and len(second["replies"]) == 3
    told = judge(server, tmp_path, offline=True)
    told(ASKED[:1])
    assert told.account() == {"questions": 1, "verdicts": 1, "tokens_read": 100, "tokens_written": 4, "dollars": None}
    assert told.settings.identity()["url"] == server.url
    assert JudgeSettings("j", url="http://user:secret@a.b/v1").identity()["url"] == "http://a.b/v1"
    again = server.seen[1]["body"]["messages"]
    assert [m["role"] for m in again] == ["user", "assistant", "user"] and again[2]["content"].startswith("Reply with one word")
    server.answers = [says("Incorrect")]
    assert verdicts(judge(server, tmp_path)(ASKED)) == [True, False]  # only what has no verdict is asked for later
    told = judge(server, tmp_path, offline=True)
    told(ASKED)
    assert told.account()["tokens_read"] == 6 * 50  # those that led to nothing, too


def test_a_judge_that_is_out_is_no_wrong_answer(serve, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    server = serve(OUT)
    assert [(row["verdict"], row["fault"]) for row in judge(server, tmp_path)(ASKED[:1])] == [(None, "server_error")]
    assert server.seen[0]["key"] == f"Bearer {SECRET}" and SECRET not in (tmp_path / "verdicts.jsonl").read_text()


@pytest.mark.parametrize("answer", [
    says(None), (200, {}, b"{"), (200, {}, {"choices": []}), says(""), says("Correct", "length"), says("\ud800")])
def test_broken_replies_are_no_verdict(serve, tmp_path, answer, monkeypatch):  # noqa: F811
    monkeypatch.setattr(servers, "FIRST_WAIT_S", 0.0)
    server = serve(answer)
    assert verdicts(judge(server, tmp_path)(ASKED[:1])) == verdicts(judge(server, tmp_path, offline=True)(ASKED[:1])) == [None]


def test_another_judge_prompt_or_answer_is_another_verdict():
    settings = JudgeSettings("j")
    keys = {settings.key("q", "t", "a"), settings.key("q", "t", "b"), settings.key("q", "ta", ""), settings.key("qt", "", "a"),
            JudgeSettings("k").key("q", "t", "a"), JudgeSettings("j", "gaia").key("q", "t", "a"),
            JudgeSettings("j", url="http://127.0.0.1:9").key("q", "t", "a")}
    assert len(keys) == 7
    with pytest.raises(KitError, match="did you mean 'gaia'"):
        JudgeSettings("j", "gaya")


def test_braces_in_a_question_are_text(serve, tmp_path):  # noqa: F811
    server = serve(says("Correct"))
    assert verdicts(judge(server, tmp_path)([("What is {answer}?", "{}", "{truth}")])) == [True]
    assert "What is {answer}?" in server.seen[0]["body"]["messages"][0]["content"]


def test_it_works_where_a_loop_is_running(serve, tmp_path):  # noqa: F811
    import asyncio

    async def cell():
        return verdicts(judge(serve(says("Correct")), tmp_path)(ASKED[:1]))

    assert asyncio.run(cell()) == [True] and json.loads((tmp_path / "verdicts.jsonl").read_text())["verdict"] is True


@pytest.mark.parametrize("finish", ["stop", "end_turn", "eos_token", None])
def test_a_reply_that_came_to_its_end_may_say_so_in_any_word(serve, tmp_path, finish):  # noqa: F811
    assert verdicts(judge(serve(says("Correct", finish)), tmp_path)(ASKED[:1])) == [True]


def test_a_verdict_that_todays_reader_does_not_read_is_unreadable(serve, tmp_path):  # noqa: F811
    server = serve(says("Hm."))
    judge(server, tmp_path, tries=1)(ASKED[:1])
    store = tmp_path / "verdicts.jsonl"
    store.write_text(store.read_text().replace('"verdict": null', '"verdict": true').replace('"unreadable"', '""'))
    [row] = judge(server, tmp_path, offline=True)(ASKED[:1])
    assert (row["verdict"], row["fault"]) == (None, "unreadable")


def test_a_stored_reply_is_read_by_todays_reader(serve, tmp_path):  # noqa: F811
    """A verdict that an older reader got wrong is mended without asking."""
    server = serve(says("Not correct"))
    assert verdicts(judge(server, tmp_path)(ASKED[:1])) == [False]
    store = tmp_path / "verdicts.jsonl"
    store.write_text(store.read_text().replace('"verdict": false', '"verdict": true'))
    assert verdicts(judge(server, tmp_path)(ASKED[:1])) == [False] and len(server.seen) == 1


def test_the_servers_own_temperature_unless_told(serve, tmp_path):  # noqa: F811
    server = serve(says("Correct"))
    judge(server, tmp_path)(ASKED[:1])
    judge(server, tmp_path, temperature=0.0)(ASKED[:1])
    assert ["temperature" in request["body"] for request in server.seen] == [False, True]


def test_an_interrupt_ends_it_quietly_and_keeps_what_is_known(serve, tmp_path, monkeypatch, capfd):  # noqa: F811
    """The second question hangs; the first one's verdict is stored."""
    server = serve(says("Correct"), slow(30, says("Correct")))
    work = judge(server, tmp_path)._ask_all({str(i): asked for i, asked in enumerate(ASKED)}, None)

    def interrupted(self, timeout=None):
        while len(server.seen) < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("concurrent.futures.Future.result", interrupted_once(interrupted))
        with pytest.raises(KeyboardInterrupt):
            in_a_thread(work)
    gc.collect()
    assert capfd.readouterr().err == "" and [row["key"] for row in read_jsonl(tmp_path / "verdicts.jsonl")] == ["0"]


def interrupted_once(interrupt):
    """`Future.result` that is interrupted where it is called first, and works as ever after that."""
    result, calls = Future.result, []

    def patched(self, timeout=None):
        calls.append(self)
        return interrupt(self) if len(calls) == 1 else result(self, timeout)

    return patched


@pytest.mark.parametrize("prompt", FORMATS)
def test_every_prompt_has_its_fields_and_its_format_can_be_read(prompt):
    text = JudgeSettings("j", prompt).text
    assert all(f"{{{field}}}" in text for field in ("question", "truth", "answer"))
    assert read_verdict(JudgeSettings("j", prompt).family, text) is None  # a judge that repeats its prompt says nothing
