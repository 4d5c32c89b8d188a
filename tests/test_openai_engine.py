"""The engine `openai` against servers on loopback that answer, stall, cut and refuse as they are told."""

import json
import select
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agentcpm_kit.agent.engines import servers
from agentcpm_kit.agent.engines.base import EngineFault, Sample, Turn, generate_turns
from agentcpm_kit.agent.engines.openai import OpenAIEngine
from agentcpm_kit.agent.messages import parse_tool_calls
from agentcpm_kit.errors import KitError

SECRET = "sk-never-shown-0123456789"
AT_ONCE = {"retry-after-ms": "10"}
SCHEMAS = ({"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {
    "query": {"type": "array", "items": {"type": "string"}}}}}},)
MESSAGES = ({"role": "user", "content": "Search the home of Pulmak."},)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append({"time": time.monotonic(), "path": self.path, "body": body, "key": self.headers["Authorization"]})
            number, server.now = len(server.seen) - 1, server.now + 1
            server.most = max(server.most, server.now)
        answer = server.answers[min(number, len(server.answers) - 1)]
        status, headers, payload = answer(self) if callable(answer) else answer
        with server.lock:
            server.now -= 1
        self.reply(status, headers, payload if isinstance(payload, bytes) else json.dumps(payload).encode())

    def reply(self, status, headers, payload):
        headers = {"Content-Type": "application/json", "Content-Length": str(len(payload)), **headers}
        self.close_connection = headers["Content-Length"] != str(len(payload))
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)
        except OSError:  # the client has gone
            self.close_connection = True

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.seen, self.now, self.most = answers, [], 0, 0
        self.lock, self.hung_up = threading.Lock(), 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()


@pytest.fixture
def serve():
    """Start a server that gives these answers in turn, the last one for ever."""
    servers = []

    def start(*answers):
        servers.append(Server(answers))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def slow(seconds, answer):
    """An answer after some seconds, or when the client has hung up."""
    def wait(handler):
        readable, _, _ = select.select([handler.connection], [], [], seconds)
        handler.server.hung_up += len(readable)
        return answer
    return wait


def completion(text="The home is a.", finish="stop", logprobs=None, usage=None, **choice):
    choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": logprobs, **choice}
    return 200, {}, {"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def sampled(ids, finish="stop"):
    """As vLLM answers: ids, the log-prob of each, and their number."""
    return completion(finish=finish, token_ids=ids, logprobs={"token_logprobs": [-0.5] * len(ids), "tokens": ["x"] * len(ids)},
                      usage={"prompt_tokens": 1, "completion_tokens": len(ids), "total_tokens": 1 + len(ids)})


def chat(finish="tool_calls", calls=(), **message):
    calls = [{"id": f"c{i}", "type": "function", "function": {"name": n, "arguments": a}} for i, (n, a) in enumerate(calls)]
    message = {"role": "assistant", "content": None, "tool_calls": calls, **message}
    return 200, {}, {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
                     "choices": [{"index": 0, "finish_reason": finish, "message": message}]}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def refused():
    """URL of a port where nobody listens."""
    return f"http://127.0.0.1:{free_port()}/v1"


def turn(key="k", ids=(40, 41, 42), seed="0/0/a", limit=30):
    return Turn(key, list(ids), seed, limit, MESSAGES, SCHEMAS)


@pytest.fixture
def engine(tokenizer):
    """Open an engine over these URLs; closed after the test."""
    opened = []

    def make(*urls, **settings):
        opened.append(OpenAIEngine(urls, "m", tokenizer, **{"max_retries": 2, "timeout_s": 5, "api_key": SECRET, **settings}))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def play(engine, turns):
    """Submit all at once, and release none."""
    for one in turns:
        engine.submit(one)
    ended = []
    while len(ended) < len(turns):
        ended += engine.poll()
    return ended


def fault(engine, *turns):
    """Text of the only turn's fault; no fault may hold the key."""
    [result] = generate_turns(engine, turns or [turn()])
    assert isinstance(result, EngineFault), result
    assert SECRET not in str(result) and "\n" not in str(result)
    return str(result)


def test_ids_and_logprobs_are_those_of_the_server(serve, engine, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    server = serve(sampled([50, 51, end]))
    one = engine(server.url, temperature=0.5)
    assert generate_turns(one, [turn()]) == [Sample([50, 51, end], [-0.5] * 3, stopped=True, exact=True, billed=(1, 3))]
    request = server.seen[0]
    assert request["path"] == "/v1/completions" and request["key"] == f"Bearer {SECRET}"
    asked = {"model": "m", "prompt": [40, 41, 42], "max_tokens": 30, "temperature": 0.5, "top_p": 1.0, "top_k": -1,
             "stop_token_ids": [end], "return_token_ids": True, "skip_special_tokens": False}
    assert {name: request["body"][name] for name in asked} == asked


def test_the_seed_is_the_turns_own_and_the_same_in_every_run(serve, engine):
    server = serve(sampled([50], "length"))
    generate_turns(engine(server.url), [turn("a", seed="x", limit=1), turn("b", seed="y", limit=1)])
    # The first four bytes of SHA-256 of "x" and "y", halved.
    assert {s["body"]["seed"] for s in server.seen} == {0x2D711642 >> 1, 0xA1FCE436 >> 1}


def test_text_without_ids_is_encoded_and_not_exact(serve, engine, tokenizer):
    server = serve(completion("<think>Search the home.</think>\n<answer>a</answer>"))
    [sample] = generate_turns(engine(server.url), [turn()])
    assert tokenizer.decode(sample.ids) == "<think>Search the home.</think>\n<answer>a</answer><|im_end|>"
    assert sample.stopped and not sample.exact and sample.logprobs == [0.0] * len(sample.ids)


@pytest.mark.parametrize("answer", [sampled([50, 0]), completion("a b", token_ids=[50, 3])])
def test_ids_that_end_otherwise_or_lack_logprobs_are_not_exact(serve, engine, tokenizer, answer):
    [sample] = generate_turns(engine(serve(answer).url), [turn()])
    assert not sample.exact and sample.stopped
    assert sample.ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_token_limit_is_the_agents_and_a_full_server_is_not(serve, engine):
    one = engine(serve(sampled([50, 51], "length")).url)
    assert generate_turns(one, [turn(limit=2)]) == [Sample([50, 51], [-0.5] * 2, stopped=False, billed=(1, 2))]
    assert "after 2 of 3 tokens: its context is full" in fault(one, turn(limit=3))


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_chat_reply_becomes_the_text_that_the_model_would_have_written(serve, engine, tokenizer, field):
    calls = [("search", '{"query": ["Pulmak"]}'), ("search", '{"query": ["a", "b"]}')]
    server = serve(chat(calls=calls, content="\n\nSearch\n", **{field: "Find the home."}))
    [sample] = generate_turns(engine(server.url, api="chat"), [turn()])
    text = tokenizer.decode(sample.ids)
    parsed = parse_tool_calls(text.removesuffix("<|im_end|>"))
    assert (parsed.thinking, parsed.content, parsed.errors) == ("Find the home.", "Search", [])
    assert [c.arguments for c in parsed.tool_calls] == [{"query": ["Pulmak"]}, {"query": ["a", "b"]}]
    assert text.endswith("<|im_end|>") and "\n\n" not in text and sample.stopped and not sample.exact
    body = server.seen[0]["body"]
    assert (body["messages"], body["tools"]) == (list(MESSAGES), list(SCHEMAS))
    assert server.seen[0]["path"] == "/v1/chat/completions"


def test_a_call_that_the_model_got_wrong_stays_wrong(serve, engine, tokenizer):
    [sample] = generate_turns(engine(serve(chat(calls=[("search", '{"query": ["a"')])).url, api="chat"), [turn()])
    assert parse_tool_calls(tokenizer.decode(sample.ids)).errors


def test_thinking_that_was_cut_stays_open(serve, engine, tokenizer):
    [sample] = generate_turns(engine(serve(chat("length", reasoning="Find the")).url, api="chat"), [turn()])
    assert tokenizer.decode(sample.ids) == "<think>Find the" and not sample.stopped


def test_retry_after_is_waited_out(serve, engine):
    server = serve((429, {"Retry-After": "0.8"}, {"error": {"message": "busy"}}), completion())
    [sample] = generate_turns(engine(server.url), [turn()])
    assert isinstance(sample, Sample)
    assert server.seen[1]["time"] - server.seen[0]["time"] >= 0.8  # without the header, at most 0.5


def test_a_wait_of_more_than_two_minutes_is_a_fault_that_names_it(serve, engine):
    server = serve((429, {"Retry-After": "300"}, {"error": {"message": "quota used up"}}))
    text = fault(engine(server.url))
    assert "429" in text and "quota used up" in text and "Retry-After: 300" in text and len(server.seen) == 1


@pytest.mark.parametrize("broken", [(500, AT_ONCE, {"error": {"message": "oops"}}), (408, AT_ONCE, {}), (409, AT_ONCE, {}),
                                    (200, {"Content-Length": "9000"}, b'{"choices": ['), (200, {}, b'{"choices": [')])
def test_what_may_pass_is_tried_again(serve, engine, broken):
    server = serve(broken, completion())
    assert isinstance(generate_turns(engine(server.url), [turn()])[0], Sample)
    assert len(server.seen) == 2


def test_retries_end(serve, engine):
    server = serve((500, AT_ONCE, {"error": {"message": f"bad\nGPU, key {SECRET}"}}))
    text = fault(engine(server.url))
    assert "HTTP 500: bad GPU, key ***" in text and len(server.seen) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_other_refusals_are_told_in_the_servers_words_at_once(serve, engine, status):
    words = f"This model's maximum context length is 2048 tokens. {SECRET}"
    server = serve((status, {}, {"error": {"message": words, "type": "BadRequestError"}}))
    text = fault(engine(server.url))
    assert f"HTTP {status}" in text and "maximum context length is 2048" in text and len(server.seen) == 1


@pytest.mark.parametrize("answer", [
    completion(finish="content_filter"), completion(finish=None), completion(finish="abort"), (200, {}, {"choices": []}),
    (200, {}, {"error": {"message": f"no such model, {SECRET}"}}), (200, {}, []),
    completion(finish=SECRET), (200, {}, {"choices": [None]}), (200, {}, b"<html>"),
    (200, {"Content-Type": "text/html"}, b"<html>"), (200, {"Content-Length": "9000"}, b'{"choices": ['),
    completion(text=None), (200, {}, "text"), (200, {}, b"")])
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_no_broken_reply_becomes_an_answer(serve, engine, api, answer):
    assert fault(engine(serve(answer).url, api=api, max_retries=0))


def test_a_slow_server_is_a_fault_after_the_timeout(serve, engine):
    started = time.monotonic()
    text = fault(engine(serve(slow(30, completion())).url, timeout_s=0.2, max_retries=0))
    assert "no reply within 0.2 s" in text and time.monotonic() - started < 2


def test_a_turn_that_timed_out_moves_to_another_server(serve, engine):
    hung, good = serve(slow(30, completion())), serve(completion())
    ended = play(engine(hung.url, good.url, timeout_s=0.2), [turn("a"), turn("b")])  # one lives on each
    assert all(isinstance(sample, Sample) for _, sample in ended)
    assert (len(hung.seen), len(good.seen)) == (1, 2)


def test_a_server_that_refuses_is_left_aside(serve, engine):
    good = serve(completion())
    one = engine(refused(), good.url)
    assert all(isinstance(s, Sample) for s in generate_turns(one, [turn(f"k{i}") for i in range(6)]))
    started = time.monotonic()
    assert isinstance(generate_turns(one, [turn("later")])[0], Sample)
    assert time.monotonic() - started < 0.3  # no try at the dead one, so no backoff


def test_a_gateway_without_a_server_behind_it_is_left_aside(serve, engine):
    down, good = serve((503, AT_ONCE, {"error": {"message": "no upstream"}})), serve(completion())
    one = engine(down.url, good.url)
    for key in "abc":
        assert isinstance(generate_turns(one, [turn(key)])[0], Sample)
    assert (len(down.seen), len(good.seen)) == (1, 3)


def test_all_servers_down_is_a_fault(engine):
    assert "no reply" in fault(engine(refused(), refused(), max_retries=1))


def test_no_server_gets_more_than_its_share_at_once(serve, engine):
    servers = [serve(slow(0.03, completion())) for _ in range(2)]
    one = engine(*[s.url for s in servers], concurrency=3)
    assert one.batch_size == 6
    ended = play(one, [turn(f"k{i}") for i in range(20)])  # more than the batch size on purpose
    assert [s.most for s in servers] == [3, 3] and all(isinstance(s, Sample) for _, s in ended)


def test_conversations_spread_and_stay(serve, engine):
    servers = [serve(completion()) for _ in range(2)]
    one = engine(*[s.url for s in servers])
    for number in range(3):
        play(one, [turn(f"ключ {key}", ids=[key, number]) for key in range(6)])
    asked = [sorted({s["body"]["prompt"][0] for s in server.seen}) for server in servers]
    assert [len(a) for a in asked] == [3, 3] and sorted(sum(asked, [])) == list(range(6))
    assert [len(s.seen) for s in servers] == [9, 9]


def test_a_released_turn_is_cut_off_and_never_reported(serve, engine):
    server = serve(slow(30, completion("stale")), completion("a b"))
    one = engine(server.url, concurrency=1)
    one.submit(turn())
    while not server.seen:
        time.sleep(0.01)
    one.release("k")
    assert one.poll() == []
    started = time.monotonic()
    ended = play(one, [turn()])
    assert one.tokenizer.decode(ended[0][1].ids) == "a b<|im_end|>" and one.poll() == []
    assert time.monotonic() - started < 2 and server.hung_up == 1


def test_nothing_under_way_is_told_at_once_and_closing_waits_for_nobody(serve, engine):
    server = serve(slow(30, completion()))
    one = engine(server.url)
    started = time.monotonic()
    assert [one.poll() for _ in range(20)] == [[]] * 20
    one.submit(turn())
    assert one.poll() == []
    one.close()
    one.close()
    assert time.monotonic() - started < 1.5


def test_a_set_up_that_cannot_work_is_refused(tokenizer):
    with pytest.raises(KitError, match="URLs"):
        OpenAIEngine([], "m", tokenizer)
    with pytest.raises(KitError, match="chat"):
        OpenAIEngine(["http://localhost:1"], "m", tokenizer, api="chats")


def test_a_proxy_is_used_and_no_proxy_obeyed(serve, engine, monkeypatch):
    proxy, direct = serve(completion()), serve(completion())
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert isinstance(generate_turns(engine("http://model.invalid/v1"), [turn()])[0], Sample)
    assert isinstance(generate_turns(engine(direct.url), [turn()])[0], Sample)
    assert [request["path"] for request in proxy.seen] == ["http://model.invalid/v1/completions"] and len(direct.seen) == 1


def test_a_proxys_password_is_sent_and_never_told(serve, engine, monkeypatch):
    proxy = serve((407, {}, {}))
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", proxy.url.removesuffix("/v1").replace("//", "//puser:psecret@"))
        text = fault(engine(f"{scheme}://model.invalid/v1", max_retries=0))
        told = "HTTP 407" if scheme == "http" else "the proxy refuses: HTTP 501"  # this one knows no CONNECT
        assert told in text and "psecret" not in text and "puser" not in text
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    assert "kind socks5 is not supported" in fault(engine("http://model.invalid/v1"))


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "ftp://a.b/v1", "http://[::1/v1", "http://u:secret@a.b:99999/v1",
                                 "http://a.b/v1?key=secret", "http://u:se/secret@a.b/v1"])
def test_what_is_no_address_is_a_mistake(engine, url):
    with pytest.raises(KitError, match="is no address of a server") as told:
        engine(url)
    assert "secret" not in str(told.value)


def test_a_key_that_cannot_be_sent_is_refused_and_never_told(serve, engine):
    text = fault(engine(serve(completion()).url, api_key="sk-one\nsk-two"))
    assert "the request cannot be sent" in text and "sk-" not in text


def test_a_redirect_is_not_followed(serve, engine):
    other = serve(completion())
    server = serve((307, {"Location": f"{other.url}/completions"}, {}))
    assert "HTTP 307" in fault(engine(server.url)) and not other.seen and len(server.seen) == 1


def test_user_and_password_of_a_url_are_sent_and_never_told(serve, engine):
    server = serve((400, {}, {"error": {"message": "no secret and no dXNlcjpzZWNyZXQ="}}))
    text = fault(engine(server.url.replace("//", "//user:secret@")))
    assert server.seen[0]["key"] == "Basic dXNlcjpzZWNyZXQ=" and "secret" not in text and "HTTP 400" in text


@pytest.mark.parametrize("headers, seconds", [
    ({}, None), ({"retry-after": "3"}, 3), ({"retry-after-ms": "250"}, 0.25), ({"retry-after": "-1"}, None),
    ({"retry-after": "0"}, None), ({"retry-after": "nan"}, None), ({"retry-after": "inf"}, None), ({"retry-after": "soon"}, None),
    ({"retry-after-ms": "soon", "retry-after": "3"}, 3), ({"retry-after": "Fri, 27 Nov 2026 00:00:30 GMT"}, 30),
    ({"retry-after": "Sat, 01 Jan 99999999999 00:00:00 GMT"}, None),
    ({"retry-after": "Thu, 26 Nov 2026 00:00:00 GMT"}, None), ({"retry-after-ms": "soon"}, None)])
def test_what_a_server_asks_to_wait(headers, seconds, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1795737600.0)  # that day's beginning
    assert servers.retry_after(headers) == seconds


def test_the_wait_doubles_to_eight_seconds():
    for tries, longest in enumerate([0.5, 1, 2, 4, 8, 8, 8], 1):
        assert 0.75 * longest <= servers.backoff(tries) <= longest
