"""The tools over MCP: the same bytes as in process, the same failures, and nothing that a client sends ends the server."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx
import psutil
import pytest

from agentcpm_kit.errors import KitError
from agentcpm_kit.profile import repo_root
from agentcpm_kit.world.atlas import WorldSpec
from agentcpm_kit.world.faults import TOOLS, FaultPlan
from agentcpm_kit.world.mcp import RemoteTools
from agentcpm_kit.world.mcp.config import fill_in, hide, read_servers
from agentcpm_kit.world.tools import SEPARATOR, ToolFault, Tools, tool_schemas

WORLD = "edition=plain,number=1,entities=60"
FAULTS = "search.timeout=0.3,fetch_url.http_5xx=0.2,PythonInterpreter.empty=0.5"
SERVE = [sys.executable, "-c", "from agentcpm_kit.cli import main; main()", "serve-tools", "--world", WORLD]
KEY = "sk-secret-0123456789/+abc"
FOREIGN = '''
import os, sys, time
from fastmcp import FastMCP
from fastmcp.exceptions import McpError, ToolError
from fastmcp.tools.base import ToolResult
from fastmcp.utilities.types import Image
from fastmcp.server.middleware import Middleware
from starlette.middleware import Middleware as HTTPMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response

class Reject(Middleware):
    async def on_call_tool(self, context, call_next):
        if "reject" in str(context.message.arguments):
            raise McpError(code=-32602, message="bad words")
        return await call_next(context)

server = FastMCP("foreign", middleware=[Reject()])

@server.tool
def word_count(text: str) -> int:
    "Count words."
    return len(text.split())

@server.tool
def shout(words: list[str], mark: str = "!") -> str:
    if words == ["boom"]:
        raise ToolError("no shouting: " + os.environ.get("SHOUT_KEY", ""))
    if words == ["die"]:
        os._exit(3)
    if words == ["sleep"]:
        time.sleep(2)
    return "" if words == ["nothing"] else " ".join(words).upper() + mark

@server.tool
def photo() -> list:
    return ["a cat", Image(data=b"0" * 12_345, format="png")]

@server.tool
def table() -> ToolResult:
    return ToolResult(content=[], structured_content={"rows": 2})

async def refuse(request, go_on):
    return Response(status_code=503) if b"overload" in await request.body() else await go_on(request)

if len(sys.argv) > 1:
    server.run("http", host="127.0.0.1", port=int(sys.argv[1]), show_banner=False, log_level="critical",
               middleware=[HTTPMiddleware(BaseHTTPMiddleware, dispatch=refuse)])
else:
    server.run(show_banner=False, log_level="critical")
'''


class Process:
    """A server in a process of its own, waiting until it says or shows that it is there."""

    def __init__(self, command, env=None):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True, cwd=repo_root(), env=os.environ | (env or {}))

    def stop(self, number=signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        self.process.wait(30)  # before communicate() closes its stdin, which is another way to end it
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


class KitServer(Process):
    def __init__(self, *options, port=0, env=None):
        super().__init__([*SERVE, "--http", str(port), *options], env)
        self.said = self.process.stderr.readline()
        self.url = re.search(r"http://\S+/mcp", self.said)[0]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def kit():
    server = KitServer("--faults", FAULTS, "--seed", "7")
    yield server
    code, errors = server.stop()
    assert (code, errors) == (0, "")  # whatever the tests sent: no traceback, no noise


@pytest.fixture(scope="module")
def remote(kit):
    with RemoteTools(kit.url, episode="e") as tools:
        yield tools


@pytest.fixture(scope="module")
def world():
    return WorldSpec.parse(WORLD).open()


@pytest.fixture(scope="module")
def works(remote, world):
    """Whether the server still answers rightly, asked over a session that was open before."""
    numbers = iter(range(1_000))

    def ask() -> bool:
        call, episode = ("search", {"query": ["mayor"]}), f"works {next(numbers)}"
        return outcome(remote.for_episode(episode), *call) == outcome(
            Tools(world, FaultPlan.parse(FAULTS), f"7/{episode}", TOOLS), *call)

    return ask


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Path of a FastMCP server that knows nothing of the kit."""
    path = tmp_path_factory.mktemp("foreign") / "foreign.py"
    path.write_text(FOREIGN)
    return str(path)


def start_foreign(path: str, port: int, env=None) -> Process:
    server = Process([sys.executable, path, str(port)], env)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.05)
    raise AssertionError(server.stop())


def outcome(tools, name: str, arguments: dict) -> tuple[str, str]:
    try:
        return "answer", tools.call(name, arguments)
    except (ToolFault, ValueError) as error:
        return type(error).__name__, str(error)


def calls(world) -> list[tuple[str, dict]]:
    urls = list(world.urls)
    return [
        *[("search", {"query": [world.page(url).title, "mayor"]}) for url in urls[:12]],
        *[("fetch_url", {"url": urls[i:i + 2], "purpose": "read"}) for i in range(12)],
        ("search", {"query": "home"}), ("search", {"query": ["zzz ümläut 北京 \U0001f600 \u2028"]}), ("search", {"query": []}),
        ("search", {"query": 5}), ("search", {}), ("fetch_url", {"url": [None], "purpose": ""}), ("nonsense", {"a": 1}),
        ("fetch_url", {"url": ["https://example.org"], "purpose": "x", "more": {"a": [1.5, None, True]}}),
        ("PythonInterpreter", {"code": "print('\\u2028 \\r\\n\\x00 é \U0001f600')"}), ("PythonInterpreter", {"code": "1/0"}),
        ("PythonInterpreter", {"code": "pass"}), ("PythonInterpreter", {"code": " "}), ("PythonInterpreter", {}),
    ]


# ---------------------------------------------------------------------------------------------- the same as in process
def test_over_http_all_is_as_in_process(remote, world):
    local = Tools(world, FaultPlan.parse(FAULTS), "7/e", TOOLS)
    assert json.dumps(remote.schemas) == json.dumps(tool_schemas(TOOLS))  # the template renders them: order counts, too
    seen = set()
    for name, arguments in calls(world) * 2:
        there, here = outcome(remote, name, arguments), outcome(local, name, arguments)
        assert there == here
        seen.add(here[0])
    assert seen == {"answer", "ToolFault", "ValueError"}


def test_over_stdio_all_is_as_in_process(world):
    with RemoteTools([*SERVE, "--stdio", "--faults", FAULTS, "--seed", "7"], episode="e") as remote:
        local = Tools(world, FaultPlan.parse(FAULTS), "7/e", TOOLS)
        assert json.dumps(remote.schemas) == json.dumps(tool_schemas(TOOLS))
        assert [outcome(remote, *c) for c in calls(world)] == [outcome(local, *c) for c in calls(world)]


def test_clients_of_the_older_protocol_read_the_same(kit, world):
    import asyncio

    from fastmcp import Client

    async def ask() -> list:
        async with Client(kit.url, mode="legacy") as client:
            return [await client.call_tool_mcp(name, arguments, meta={"agentcpm-kit/episode": "old"})
                    for name, arguments in calls(world) if name != "nonsense"]

    local = Tools(world, FaultPlan.parse(FAULTS), "7/old", TOOLS)
    for result, (name, arguments) in zip(asyncio.run(ask()), [c for c in calls(world) if c[0] != "nonsense"], strict=True):
        kind, text = outcome(local, name, arguments)
        assert (result.is_error, result.content[0].text) == (kind != "answer", text)


def test_faults_are_the_episodes_own_and_the_same_for_concurrent_callers(remote, world):
    some = [c for c in calls(world)[:24] for _ in range(3)]
    fates = {}
    for episode in ("a", "b"):
        tools = remote.for_episode(episode)
        with ThreadPoolExecutor(16) as pool:
            fates[episode] = sorted(pool.map(lambda c, tools=tools: outcome(tools, *c), some))
        local = Tools(world, FaultPlan.parse(FAULTS), f"7/{episode}", TOOLS)
        assert fates[episode] == sorted(outcome(local, *c) for c in some)
    assert fates["a"] != fates["b"]


@pytest.mark.parametrize("arguments", [{"query": ["\ud800"]}, {"query": [float("nan")]}, {"query": {1}}])
def test_what_is_no_json_is_the_callers_mistake_and_breaks_nothing(remote, works, arguments):
    with pytest.raises(ValueError, match="cannot be sent as JSON"):
        remote.call("search", arguments)
    assert works()


# ------------------------------------------------------------------------------------------------- nothing ends the server
def post(url: str, content: bytes, **headers) -> httpx.Response:
    modern = {"content-type": "application/json", "accept": "application/json, text/event-stream",
              "mcp-protocol-version": "2026-07-28"}
    return httpx.post(url, content=content, headers=modern | headers, timeout=20)


def rpc(method: str, **params) -> bytes:
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params | {"_meta": meta}}).encode()


@pytest.mark.parametrize("body,headers,status,code", [
    (b"not json", {}, 400, -32700), (b"\xff\xfe\x00\x9d" * 99, {}, 400, -32700), (b"", {}, 400, -32700),
    (b"[" * 100_000, {}, 400, -32700), (b"[1, 2]", {}, 400, -32600), (b'{"jsonrpc": "1.0", "id": 1}', {}, 400, -32600),
    (b'{"jsonrpc": "2.0", "id": {}, "method": 5}', {}, 400, -32600),
    (rpc("tools/dance"), {"mcp-method": "tools/dance"}, 404, -32601),
    (rpc("tools/call", name="nonsense", arguments={"a": 1}), {"mcp-method": "tools/call", "mcp-name": "nonsense"}, 400, -32602),
    (rpc("tools/call", name="search", arguments="x"), {"mcp-method": "tools/call", "mcp-name": "search"}, 400, -32602),
    (rpc("tools/call", name="search", arguments={"query": ["a"]}), {"mcp-method": "tools/call", "mcp-name": "other"}, 400, None),
    (rpc("tools/list"), {"content-type": "text/plain"}, 400, None), (rpc("tools/list"), {"host": "evil.example"}, 421, None),
    (rpc("tools/list"), {"origin": "https://evil.example"}, 403, None), (b"x" * 5_000_000, {}, 413, None)])
def test_malformed_requests_get_errors_and_the_server_lives_on(kit, works, body, headers, status, code):
    reply = post(kit.url, body, **headers)
    assert reply.status_code == status
    if code is not None:
        assert reply.json()["error"]["code"] == code
    assert works()


def test_a_wrong_type_that_only_the_tool_can_see_is_an_error_result(kit):
    result = post(kit.url, rpc("tools/call", name="search", arguments={"query": 5}),
                  **{"mcp-method": "tools/call", "mcp-name": "search"}).json()["result"]
    assert result["isError"] and result["content"][0]["text"] == "search needs query"
    assert result["_meta"]["agentcpm-kit/outcome"] == "mistake"


def test_garbage_and_half_open_connections_leave_the_server_alone(kit, works):
    port = httpx.URL(kit.url).port
    opened = []
    for first in (b"", b"\x00\xff garbage \r\n\r\n", b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-le",
                  b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 500\r\n\r\n{") * 20:
        opened.append(socket.create_connection(("127.0.0.1", port)))
        opened[-1].sendall(first)
    assert works()
    for each in opened:
        each.close()
    assert httpx.get(f"http://127.0.0.1:{port}/other").status_code == 404


def test_a_body_without_a_length_is_bounded_too(kit):
    reply = httpx.post(kit.url, content=(b"x" * 100_000 for _ in range(60)), headers={"content-type": "application/json"})
    assert reply.status_code == 413


def test_slow_python_does_not_hold_up_a_search():
    server = KitServer()
    try:
        with RemoteTools(server.url) as tools, ThreadPoolExecutor(12) as pool:
            slow = [pool.submit(tools.call, "PythonInterpreter", {"code": "import time; time.sleep(1)"}) for _ in range(3)]
            time.sleep(0.3)
            started = time.monotonic()
            tools.call("search", {"query": ["mayor"]})
            assert time.monotonic() - started < 0.9 and not all(each.done() for each in slow)
            assert all("printed nothing" in each.result() for each in slow)
    finally:
        assert server.stop() == (0, "")


# -------------------------------------------------------------------------------------------------- the command itself
def kit_command(*options) -> subprocess.CompletedProcess:
    return subprocess.run([*SERVE[:4], *options], capture_output=True, text=True, cwd=repo_root(), timeout=60)


@pytest.mark.parametrize("options,hint", [
    ([], "--http PORT"), (["--http", "0", "--stdio"], "--http PORT"), (["--stdio", "--world", "entitys=5"], "entities"),
    (["--stdio", "--faults", "serch.timeout=1"], "search"), (["--http", "0", "--host", "nowhere.invalid"], "nowhere.invalid")])
def test_mistakes_at_the_command_are_one_line(options, hint):
    done = kit_command(*options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ") and hint in done.stderr


def test_a_port_in_use_is_one_line(kit):
    done = kit_command("--http", str(httpx.URL(kit.url).port))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "in use" in done.stderr


def test_it_listens_on_loopback_only_unless_told_otherwise(kit, monkeypatch, capsys):
    from agentcpm_kit.world.mcp import server

    listening = [c.laddr.ip for c in psutil.Process(kit.process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"] and "number=1" in kit.said
    real = socket.create_server
    monkeypatch.setattr(socket, "create_server", lambda address, **more: real(("127.0.0.1", 0), **more))  # stay inside
    server._listen("127.0.0.1", 0).close()
    assert capsys.readouterr().err == ""
    server._listen("0.0.0.0", 0).close()
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and warning.count("\n") == 1 and "Python" in warning


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@pytest.mark.parametrize("how", ["http", "stdio"])
def test_signals_end_it_cleanly_also_while_python_runs(how, number, code, tmp_path):
    run = {"name": "PythonInterpreter", "arguments": {"code": "import time; time.sleep(1)"}}
    folder = {"TMPDIR": str(tmp_path)}
    if how == "http":
        server = KitServer(env=folder)
        threading.Thread(target=outcome, args=(RemoteTools(server.url), *run.values())).start()
    else:
        server = Process([*SERVE, "--stdio"], folder)
        assert server.process.stderr.readline().startswith("serving the tools over stdio")
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        for i, (method, params) in enumerate([("initialize", hello), ("tools/call", run)]):
            message = {"jsonrpc": "2.0", "id": i, "method": method, "params": params}
            print(json.dumps(message), file=server.process.stdin, flush=True)
    deadline = time.monotonic() + 10
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:  # the sandbox's folder: now it runs
        time.sleep(0.02)
    assert list(tmp_path.iterdir())
    assert server.stop(number) == (code, "")
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------- servers that are not ours
def test_a_foreign_server_by_command(foreign):
    with RemoteTools([sys.executable, foreign]) as tools:
        assert [s["function"]["name"] for s in tools.schemas] == ["word_count", "shout", "photo", "table"]
        assert tools.schemas[0]["function"]["description"] == "Count words."
        assert tools.call("word_count", {"text": "one two three"}) == "3"
        assert tools.call("shout", {"words": "hey"}) == "HEY!"  # repaired
        assert tools.call("photo", {}) == "a cat\n[image, 12 kB]"
        assert tools.call("table", {}) == '{"rows": 2}'
        assert tools.call("shout", {"words": ["boom"]}) == "Error: no shouting: "
        assert tools.call("word_count", {"text": 5}).startswith("Error")  # FastMCP reports it as a result
        for words, error, text in (("nothing", ToolFault, "empty answer"), ("die", ToolFault, "server"),
                                   ("reject", ValueError, "^bad words$")):
            with pytest.raises(error, match=text):
                tools.call("shout", {"words": [words]})
        with pytest.raises(ValueError, match="unknown tool scream"):
            tools.call("scream", {})
        assert tools.call("shout", {"words": ["back"]}) == "BACK!"  # it died, and was started again


def test_time_is_bounded_and_others_go_on(foreign):
    with RemoteTools([sys.executable, foreign], timeout_s=1) as tools, ThreadPoolExecutor() as pool:
        started = time.monotonic()
        slow = pool.submit(outcome, tools, "shout", {"words": ["sleep"]})
        time.sleep(0.2)
        assert tools.call("word_count", {"text": "a b"}) == "2"
        assert slow.result() == ("ToolFault", "MCP server 'server': timeout after 1 s") and time.monotonic() - started < 1.9
        assert tools.call("word_count", {"text": "a b c"}) == "3"


def test_a_killed_server_is_a_fault_and_found_again_when_it_is_back(foreign):
    port = free_port()
    for start in (lambda: KitServer(port=port), lambda: start_foreign(foreign, port)):  # the second keeps sessions
        server = start()
        with RemoteTools(f"http://127.0.0.1:{port}/mcp") as tools:
            name, arguments = ("search", {"query": ["mayor"]}) if "search" in str(tools.schemas) else ("photo", {})
            right = tools.call(name, arguments)
            server.process.kill()
            server.process.communicate()
            for _ in range(2):
                with pytest.raises(ToolFault, match="MCP server 'server': "):
                    tools.call(name, arguments)
            server = start()
            try:
                assert [outcome(tools, name, arguments) for _ in range(2)][-1] == ("answer", right)
            finally:
                server.process.kill()
                server.process.communicate()


def test_no_server_is_one_line_that_says_where(tmp_path):
    for source, hint in ((f"http://127.0.0.1:{free_port()}/mcp", "is it running"), ("no-such-command --x", "no-such-command"),
                         ([sys.executable, "-c", "import sys; sys.exit('kaputt: no network')"], "kaputt"), ("", "which tools")):
        with pytest.raises(KitError, match=hint) as error:
            RemoteTools(source, timeout_s=10)
        assert "\n" not in str(error.value)


def test_http_errors_of_a_call_are_faults_with_their_status(foreign):
    port = free_port()
    server = start_foreign(foreign, port)
    try:
        with RemoteTools(f"http://127.0.0.1:{port}/mcp") as tools:
            with pytest.raises(ToolFault, match="^MCP server 'server': http 503 service unavailable"):
                tools.call("shout", {"words": ["overload"]})
            assert tools.call("shout", {"words": ["fine"]}) == "FINE!"
    finally:
        server.process.kill()
        server.process.communicate()


@pytest.mark.parametrize("status", [401, 404, 429, 503])
def test_http_errors_at_the_start_are_told_with_their_status(status):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def refuse() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.recv(100_000)
                connection.sendall(f"HTTP/1.1 {status} Nope\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
                connection.close()

        threading.Thread(target=refuse, daemon=True).start()
        with pytest.raises(KitError, match=f"http {status}"):
            RemoteTools(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", timeout_s=10)


# ------------------------------------------------------------------------------------------------------- the config file
def write(tmp_path, servers: dict):
    path = tmp_path / "tools.yaml"
    path.write_text(json.dumps({"servers": servers}))  # JSON is YAML
    return path


def test_several_servers_are_joined_and_mapped(tmp_path, foreign, kit):
    mapped = {"search": {"tool": "shout", "arguments": {"query": "words"}, "fixed": {"mark": "?"}, "description": "Look."},
              "fetch_url": {"tool": "word_count", "arguments": {"url": "text"}, "each": "url"}}
    ours = {"run": {"tool": "PythonInterpreter"}}
    path = write(tmp_path, {"web": {"command": sys.executable, "args": [foreign], "tools": mapped},
                            "kit": {"url": kit.url, "tools": ours}})
    with RemoteTools(path, episode="calm") as tools:
        names = [s["function"]["name"] for s in tools.schemas]
        assert names == ["search", "fetch_url", "run"]
        wanted = tool_schemas(("search",))[0]["function"]
        assert tools.schemas[0]["function"] == wanted | {"description": "Look."}
        assert tools.call("search", {"query": ["a", "b"], "purpose": "dropped"}) == "A B?"
        assert tools.call("fetch_url", {"url": ["a b", "c"], "purpose": "x"}) == f"2{SEPARATOR}1"
        assert tools.call("fetch_url", {"url": "a b c"}) == "3"
        for wrong in ({}, {"url": []}, {"url": [5]}, {"url": {}}):
            with pytest.raises(ValueError, match="^fetch_url needs url$"):
                tools.call("fetch_url", wrong)


@pytest.mark.parametrize("servers,hint", [
    ({}, "servers"), ({"a": {}}, "either url or command"), ({"a": {"url": "ftp://x"}}, "http://"),
    ({"a": {"ulr": "http://x"}}, "a.url"), ({"a": {"url": "http://x", "tools": {"search": {"tol": "y"}}}}, "search.tool"),
    ({"a": {"url": "http://x", "tools": {"search": {"tool": "y", "each": "query"}}}}, "each"),
    ({"a": {"url": "http://x", "headers": {"key": ["${NO_SUCH_KEY}"]}}}, "headers.key")])
def test_a_wrong_file_is_told_by_key(tmp_path, servers, hint):
    with pytest.raises(KitError, match=re.escape(hint)) as error:
        read_servers(write(tmp_path, servers))
    assert "\n" not in str(error.value) and "tools.yaml" in str(error.value)


@pytest.mark.parametrize("tools,hint", [({"count": {"tool": "word_cont"}}, "word_count"),
                                        ({"count": {"tool": "word_count", "arguments": {"a": "text"}}}, "the kit's own")])
def test_a_tool_that_is_not_there_is_told_by_name(tmp_path, foreign, tools, hint):
    with pytest.raises(KitError, match=hint):
        RemoteTools(write(tmp_path, {"a": {"command": sys.executable, "args": [foreign], "tools": tools}}))


def test_two_servers_with_a_tool_of_one_name_are_told_apart(tmp_path, foreign):
    one = {"command": sys.executable, "args": [foreign]}
    with pytest.raises(KitError, match="'a' and 'b' both have a tool 'word_count'"):
        RemoteTools(write(tmp_path, {"a": one, "b": one}))


def test_missing_files_and_keys_are_named(tmp_path, monkeypatch):
    with pytest.raises(KitError, match="nowhere.yaml cannot be read"):
        read_servers(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(KitError, match="bad.yaml is not YAML"):
        read_servers(tmp_path / "bad.yaml")
    monkeypatch.delenv("BRAVE_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)  # found in the repository from anywhere
    assert list(read_servers("profiles/tools/web.yaml")) == ["brave", "fetch"]
    with pytest.raises(KitError, match="BRAVE_API_KEY"):
        RemoteTools("profiles/tools/web.yaml")


def test_keys_are_hidden_also_where_they_are_encoded(monkeypatch):
    monkeypatch.setenv("KIT_TEST_KEY", KEY)
    monkeypatch.setenv("SHORT", "en")
    secrets = set()
    assert fill_in("Bearer ${KIT_TEST_KEY} ${SHORT}", "a", secrets) == f"Bearer {KEY} en"
    for text in (KEY, quote(KEY), quote(KEY, safe="")):
        assert hide(f"no key {text} then", secrets) == "no key *** then"  # "en" is too short to be one


def test_keys_are_in_no_text_and_no_log(tmp_path, foreign, monkeypatch, caplog):
    monkeypatch.setenv("KIT_TEST_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    texts = []
    port = free_port()
    address = {"url": f"http://127.0.0.1:{port}/mcp?key=${{KIT_TEST_KEY}}", "headers": {"x-api-key": "${KIT_TEST_KEY}"}}
    command = {"command": sys.executable, "args": [foreign], "env": {"SHOUT_KEY": "${KIT_TEST_KEY}"}}
    server = start_foreign(foreign, port, {"SHOUT_KEY": KEY})
    try:
        for servers in ({"a": address}, {"a": command}):
            with RemoteTools(write(tmp_path, servers), timeout_s=10) as tools:
                texts += [repr(tools), tools.call("shout", {"words": ["boom"]}), str(read_servers(tmp_path / "tools.yaml"))]
                if "url" in servers["a"]:
                    server.process.kill()
                for _ in range(2):
                    try:
                        texts.append(tools.call("shout", {"words": ["die"]}))
                    except ToolFault:
                        texts.append(traceback.format_exc())
        broken = {"command": sys.executable, "args": ["-c", "import sys; sys.exit(sys.argv[1])", "bad key ${KIT_TEST_KEY}"]}
        for wrong in (address, broken):
            try:
                RemoteTools(write(tmp_path, {"a": wrong}), timeout_s=10)
            except KitError:
                texts.append(traceback.format_exc())
    finally:
        server.process.kill()
        server.process.communicate()
    assert "no shouting: ***" in texts[1] and "***" in texts[-1] and len(texts) == 12
    for secret in (KEY, "sk-secret-0123456789%2F%2Babc", "sk-secret"):
        assert secret not in "".join(texts) and secret not in caplog.text


# ------------------------------------------------------------------------------------------------------------------- load
def load(*options) -> tuple[int, dict]:
    done = subprocess.run([sys.executable, "benchmarks/mcp_load.py", "--clients", "50", "--seconds", "3", *options],
                          capture_output=True, text=True, cwd=repo_root(), timeout=120)
    return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.stdout else done.stderr


def test_fifty_clients_at_once_get_right_answers():
    code, result = load("--world", WORLD)
    assert code == 0 and result["calls"] > 50 and (result["wrong"], result["lost"], result["errors"]) == (0, 0, 0), result


def test_the_load_test_sees_wrong_and_lost_answers(kit):
    code, result = load("--world", "edition=plain,number=2,entities=60", "--url", kit.url, "--seconds", "1", "--clients", "4")
    assert code == 1 and result["wrong"] > 0 and result["lost"] > 0
