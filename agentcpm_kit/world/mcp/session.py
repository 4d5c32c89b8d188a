"""The way to one MCP server: opens a session when there is none, so that a server that comes back is found again.

Runs in the event loop of `client`. What goes wrong comes back as an outcome and not as an exception: the exceptions of
the libraries refer to requests and headers, thus to keys, and must not travel in ours.
"""

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from ...errors import KitError
from .config import ServerConfig, fill_in, hide
from .protocol import ANSWER, EPISODE, FAULT, MISTAKE, read_result

REASON_CHARS = 300
LAST_WORDS_S = 0.3  # for the stderr of a command that has just died to arrive
CONNECTION_CLOSED, INVALID_REQUEST, REQUEST_TIMEOUT, INVALID_PARAMS = -32000, -32600, -32001, -32602  # of MCP errors
SESSION_OVER = (CONNECTION_CLOSED, INVALID_REQUEST, REQUEST_TIMEOUT)  # by the second, the SDK says "session terminated"
_http_errors: ContextVar[list[str]] = ContextVar("http_errors")  # of this request: the SDK does not tell the status
_background: set[asyncio.Task] = set()  # the loop itself holds on to no task
_open: set = set()  # clients that are not closed yet

Outcome = tuple[str, str]  # answer, fault or mistake; text


class _Session:
    """An open session. Once it is over, it is closed as soon as nobody waits for an answer from it."""

    def __init__(self, client):
        self.client, self.users, self.over = client, 0, False


class ServerSession:
    """One MCP server and the session with it. `secrets` collects the keys' values."""

    def __init__(self, name: str, config: ServerConfig, timeout_s: float, connect_timeout_s: float, secrets: set[str]):
        self.name, self.config, self.secrets = name, config, secrets
        self.timeout_s, self.connect_timeout_s = timeout_s, connect_timeout_s
        self._url = config.url and fill_in(config.url, name, secrets)
        self._headers = {key: fill_in(value, name, secrets) for key, value in config.headers.items()}
        self._args = [fill_in(arg, name, secrets) for arg in config.args]
        self._env = {key: fill_in(value, name, secrets) for key, value in config.env.items()}
        self._session: _Session | None = None
        self._lock = asyncio.Lock()
        self._last_words: deque[str] = deque(maxlen=1)  # of a command, on stderr

    async def list_tools(self) -> list:
        """The server's tools as MCP describes them.

        Raises:
            KitError: it cannot be reached, or does not list them.
        """
        outcome, listed = await self._ask(lambda client: client.list_tools())
        if outcome != ANSWER:
            raise KitError(f"{listed}; is it running, and is its address or command right?")
        return listed

    async def call(self, tool: str, arguments: dict, episode: str) -> Outcome:
        meta = {EPISODE: episode} if episode else None
        outcome, result = await self._ask(lambda client: client.call_tool_mcp(tool, arguments, meta=meta))
        if outcome == ANSWER:
            outcome, result = read_result(result)
        return outcome, hide(result, self.secrets)

    async def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await _close(session.client)

    async def _ask(self, request: Callable[[Any], Awaitable]) -> tuple[str, Any]:
        """The result of a request, or a fault or a mistake with its reason."""
        reasons: list[str] = []
        _http_errors.set(reasons)
        limit_s = self.connect_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                session = await self._find_session()
            limit_s = self.timeout_s
            async with asyncio.timeout(limit_s):
                return ANSWER, await self._in_session(session, request)
        except TimeoutError:
            reasons = [f"timeout after {limit_s:g} s"]
        except Exception as error:
            if getattr(error, "code", None) == INVALID_PARAMS:
                return MISTAKE, hide(_first_line(error), self.secrets)
            reasons = [*reasons[-1:], _first_line(error)]
            if self.config.command and _ends_session(error):
                await asyncio.sleep(LAST_WORDS_S)
                reasons += self._last_words
        return FAULT, hide(f"MCP server {self.name!r}: {'; '.join(reasons)}", self.secrets)

    async def _find_session(self) -> _Session:
        async with self._lock:
            if self._session is None:
                self._session = _Session(await self._connect())
            return self._session

    async def _in_session(self, session: _Session, request: Callable[[Any], Awaitable]) -> Any:
        session.users += 1
        try:
            return await request(session.client)
        except BaseException as error:
            if _ends_session(error):
                session.over = True
                self._session = None if self._session is session else self._session
            raise
        finally:
            session.users -= 1
            if session.over and not session.users:
                _in_background(_close(session.client))

    async def _connect(self):
        """A connected client that has listed the tools: the SDK checks results by their schemas."""
        from fastmcp import Client
        from fastmcp.client.transports import StdioTransport, StreamableHttpTransport

        if self._url:
            transport = StreamableHttpTransport(self._url, headers=self._headers, httpx_client_factory=self._http_client)
        else:
            transport = StdioTransport(self.config.command, self._args, self._env, keep_alive=False,
                                       log_file=_drain(self._last_words))
        client = Client(transport, init_timeout=self.connect_timeout_s, log_handler=_ignore)
        _open.add(client)
        try:
            await client.__aenter__()
            await client.list_tools()
        except BaseException:
            _in_background(_close(client))
            raise
        return client

    def _http_client(self, headers=None, auth=None, **_):
        """An HTTP client that notes error codes, waits for as long as we do, and lets any number of threads through."""
        import httpx2

        async def note(response: httpx2.Response) -> None:
            if response.status_code >= 400:
                _http_errors.get([]).append(f"http {response.status_code} {response.reason_phrase.lower()}")

        longest = max(self.timeout_s, self.connect_timeout_s)
        return httpx2.AsyncClient(headers=headers, auth=auth, timeout=longest, event_hooks={"response": [note]}, verify=_tls(),
                                  limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20))


def _ends_session(error: BaseException) -> bool:
    """Whether another request in the same session is pointless. An error without a code is not MCP's: the way broke."""
    return getattr(error, "code", CONNECTION_CLOSED) in SESSION_OVER


async def _ignore(message) -> None:
    """Servers may send their log; it is theirs."""


@lru_cache
def _tls():
    """Reading the certificates takes 20 ms, so it is done once and not for each client."""
    import httpx2

    return httpx2.create_ssl_context()


async def close_all() -> None:
    """Close what the process leaves open at its end, or asyncio complains and commands are not waited for."""
    for client in list(_open):
        await _close(client)


async def _close(client) -> None:
    try:
        await client.close()
    except Exception as error:  # it is over anyway
        logging.getLogger(__name__).debug("closing: %s", type(error).__name__)
    _open.discard(client)


def _in_background(work: Coroutine) -> None:
    task = asyncio.ensure_future(work)
    _background.add(task)
    task.add_done_callback(_background.discard)


def _drain(lines: deque[str]):
    """A file for a command's stderr, of which `lines` keeps the last: enough to tell why a server did not start."""
    reader, writer = os.pipe()

    def read() -> None:
        with os.fdopen(reader, encoding="utf-8", errors="replace") as pipe:
            lines.extend(line.strip()[:REASON_CHARS] for line in pipe if line.strip())

    threading.Thread(target=read, name="mcp-stderr", daemon=True).start()
    return os.fdopen(writer, "w")


def _first_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return next(iter(str(error).splitlines()), type(error).__name__)[:REASON_CHARS]
