"""The kit's tools as an MCP server: `agentcpm-kit serve-tools --http 8765`, or `--stdio` for a client that starts it.

The same `Tools` as in process, hence the same bytes. The server keeps no sessions (MCP 2026-07-28 has none, and older
clients are served without): it survives restarts and any number of clients. What little state the faults need, how
often a call was made before, is kept per episode, which the client names in `_meta["agentcpm-kit/episode"]`; episode
"e" of a server with seed 7 meets the faults of `Tools(world, faults, "7/e")`.
"""

import logging
import os
import signal
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable

from ... import __version__
from ...errors import KitError
from ..atlas import World, WorldSpec
from ..faults import TOOLS, FaultPlan, ToolFault
from ..tools import Tools, tool_schemas
from .protocol import ANSWER, EPISODE, FAULT, MISTAKE, OUTCOME, PATH

WORLD_CALLS = 8  # at once, in threads of their own; more would only fight for Python's lock
PYTHON_CALLS = max(2, os.cpu_count() or 1)  # each is a process of its own
EPISODES = 10_000  # whose counts are remembered; the one not heard of for longest is forgotten
GRACE_S = 15  # for calls that are running when the server is told to stop
INVALID_PARAMS = -32602  # JSON-RPC
LOGGERS = ("fastmcp", "mcp", "uvicorn", "asyncio")


class Desk:
    """Takes calls off the event loop: threads run them, a bounded number at once."""

    def __init__(self, world: World, faults: FaultPlan | None = None, seed: int = 0):
        from anyio import CapacityLimiter

        self.world, self.faults, self.seed = world, faults, seed
        self.episodes: OrderedDict[str, Tools] = OrderedDict()
        self.world_calls, self.python_calls = CapacityLimiter(WORLD_CALLS), CapacityLimiter(PYTHON_CALLS)
        self.running = 0

    def tools(self, episode: str) -> Tools:
        """The tools of an episode, whose faults go on where they were."""
        if episode not in self.episodes:
            self.episodes[episode] = Tools(self.world, self.faults, f"{self.seed}/{episode}", TOOLS)
            if len(self.episodes) > EPISODES:
                self.episodes.popitem(last=False)
        self.episodes.move_to_end(episode)
        return self.episodes[episode]

    async def answer(self, name: str, arguments: dict, episode: str) -> tuple[str, str]:
        """Outcome and text of a call."""
        from anyio.to_thread import run_sync

        limiter = self.python_calls if name == "PythonInterpreter" else self.world_calls
        self.running += 1
        try:
            return await run_sync(_outcome, self.tools(episode).call, name, arguments, limiter=limiter)
        finally:
            self.running -= 1


def _outcome(call: Callable[[str, dict], str], name: str, arguments: dict) -> tuple[str, str]:
    try:
        return ANSWER, call(name, arguments)
    except ToolFault as fault:
        return FAULT, str(fault)
    except ValueError as mistake:
        return MISTAKE, str(mistake)
    except Exception as error:  # a bug of ours must not look like the world's answer
        print(f"{name} failed: {type(error).__name__}: {error}", file=sys.stderr)
        return FAULT, f"internal error: {type(error).__name__}"


def build_server(desk: Desk):
    """A FastMCP server whose tools are listed with the kit's own schemas and answered by `desk`."""
    from fastmcp import FastMCP
    from fastmcp.tools import Tool

    server = FastMCP("agentcpm-kit", version=__version__, middleware=[_answering(desk)])
    for schema in tool_schemas(TOOLS):
        server.add_tool(Tool(**schema["function"]))
    return server


def _answering(desk: Desk):
    """Middleware that answers calls itself, so that `Tools.call` alone judges arguments, in its own words."""
    from fastmcp.exceptions import McpError
    from fastmcp.server.middleware import Middleware
    from fastmcp.tools.base import ToolResult
    from mcp_types import TextContent

    class Answering(Middleware):
        async def on_call_tool(self, context, call_next):
            name = context.message.name
            if name not in TOOLS:  # MCP wants a protocol error here
                raise McpError(code=INVALID_PARAMS, message=f"unknown tool {name}")
            meta = context.fastmcp_context.request_context.meta or {}
            outcome, text = await desk.answer(name, context.message.arguments or {}, str(meta.get(EPISODE, "")))
            content = [TextContent(type="text", text=text)]
            return ToolResult(content=content, meta={OUTCOME: outcome}, is_error=outcome != ANSWER)

    return Answering()


def serve(world: str, faults: str, seed: int, host: str, port: int | None, verbose: bool) -> int:
    """Serve until told to stop, over HTTP at `port` (0: any free one) or over stdio without; the exit code.

    Raises:
        KitError: a world or faults that cannot be, or an address that cannot be had.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # until there is something to end properly
    spec, plan = WorldSpec.parse(world), FaultPlan.parse(faults)
    listener = None if port is None else _listen(host, port)
    _set_up_logs(verbose)
    opened = spec.open()
    opened.search("", 1), opened.urls  # builds the index now: a large world takes a while, and no client should wait for it
    desk, what = Desk(opened, plan, seed), f"world {spec}; faults {faults or 'none'}, seed {seed}"
    if listener:
        return _serve_http(desk, listener, what, verbose)
    return _serve_stdio(desk, what)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # stdout is the protocol's


def _set_up_logs(verbose: bool) -> None:
    import fastmcp  # noqa: F401  which sets its own level when it is imported

    if verbose:
        logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
    for name in LOGGERS:  # a client's garbage is answered to the client, not told to the terminal
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.CRITICAL)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise KitError(f"cannot listen on {host}:{port}: {_reason(error)}; choose another with --http or --host") from None
    # Accepted sockets inherit both: dead peers are noticed, and no answer waits 40 ms for the client's delayed ACK.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not address[0].startswith("127.") and address[0] != "::1":
        _say(f"warning: anyone who can reach {address[0]} can search and run code in the Python sandbox of this machine")
    return listener


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _serve_http(desk: Desk, listener: socket.socket, what: str, verbose: bool) -> int:
    import uvicorn

    app = build_server(desk).http_app(path=PATH, stateless_http=True, host_origin_protection="auto")
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=verbose, ws="none", lifespan="on",
                                           timeout_graceful_shutdown=2, timeout_keep_alive=30))
    got: list[int] = []
    for each in (signal.SIGINT, signal.SIGTERM):  # uvicorn stops first and raises the signal again when it is done
        signal.signal(each, lambda number, _: (got.append(number), setattr(server, "should_exit", True)))
    host, port = listener.getsockname()[:2]
    _say(f"serving the tools at http://{f'[{host}]' if ':' in host else host}:{port}{PATH}; {what}")
    server.run(sockets=[listener])
    return 130 if signal.SIGINT in got else 0


def _serve_stdio(desk: Desk, what: str) -> int:
    import anyio

    async def run() -> None:
        async with anyio.create_task_group() as group:
            await group.start(_stop_on_signal, desk)
            _say(f"serving the tools over stdio; {what}")
            await build_server(desk).run_stdio_async(show_banner=False)
            group.cancel_scope.cancel()

    anyio.run(run)
    return 0


async def _stop_on_signal(desk: Desk, *, task_status) -> None:
    """Let the calls that run end, and leave. A thread that reads stdin cannot be woken, hence `_exit`."""
    import anyio

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            with anyio.move_on_after(GRACE_S, shield=True):
                while desk.running:
                    await anyio.sleep(0.02)
            os._exit(130 if number == signal.SIGINT else 0)
