"""Any MCP server's tools in place of `Tools`: the kit's own server, or web search and page readers made by others.

`RemoteTools("http://127.0.0.1:8765/mcp")`, `RemoteTools("uvx mcp-server-fetch")` or `RemoteTools("profiles/tools/web.yaml")`
has what the agent loop needs, `schemas` and `call`, and fails as `Tools` does. What MCP leaves open is decided here: a
server that does not answer, breaks off, answers with an HTTP error or with nothing is a `ToolFault`, so that it is tried
again and never scored as a wrong answer; an error that the tool itself reports is an answer ("Error: ...") for the agent
to read; refused parameters are the caller's mistake (`ValueError`). Nothing is retried here: the loop does that.
"""

import asyncio
import atexit
import copy
import json
import logging
import os
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import KitError, unknown
from ..faults import ToolFault
from ..tools import SCHEMAS, SEPARATOR
from .config import ToolConfig, read_servers
from .protocol import ANSWER, FAULT, MISTAKE
from .session import Outcome, ServerSession, close_all

LOGGERS = ("fastmcp", "mcp", "httpx2", "httpcore2")
END_S = 10  # for sessions that are still open when the process ends


class RemoteTools:
    """The tools of one or several MCP servers, for many threads at once; a context manager.

    `source` is a URL, a command or a YAML file (`config.read_servers`); `timeout_s` bounds each request to a server,
    `connect_timeout_s` the start of a session, in which a command may have much to load. `episode` seeds the faults of a
    server of the kit's.

    Raises:
        KitError: a server that cannot be reached, a tool that it does not have, a tool of that name at two servers.
    """

    def __init__(self, source: str | Path | Sequence[str], timeout_s: float = 30, connect_timeout_s: float = 60,
                 episode: str = ""):
        import fastmcp  # noqa: F401  here and not in the event loop, which a second of importing would hold up

        self.episode = episode
        secrets: set[str] = set()
        self._servers = [ServerSession(name, config, timeout_s, connect_timeout_s, secrets)
                         for name, config in read_servers(source).items()]
        self._tools: dict[str, RemoteTool] = {}
        if secrets:  # the libraries' logs would tell URLs and headers
            for logger in LOGGERS:
                logging.getLogger(logger).setLevel(logging.CRITICAL + 1)
        try:
            for server in self._servers:
                self._add(server)
        except BaseException:
            self.close()
            raise
        self.schemas = [tool.schema for tool in self._tools.values()]

    def _add(self, server: ServerSession) -> None:
        """Take in the tools of a server: all of them, or those that its config names."""
        found = {tool.name: tool for tool in self._run(server.list_tools())}
        for name, config in (server.config.tools or {name: ToolConfig(tool=name) for name in found}).items():
            if config.tool not in found:
                raise unknown(f"tool of MCP server {server.name!r}:", config.tool, found)
            if name in self._tools:
                both = f"{self._tools[name].server.name!r} and {server.name!r}"
                raise KitError(f"MCP servers {both} both have a tool {name!r}; name one differently under `tools:`")
            self._tools[name] = RemoteTool(server, name, config, found[config.tool])

    def call(self, name: str, arguments: dict) -> str:
        """As `Tools.call`.

        Raises:
            ToolFault: the tool or the way to it failed.
            ValueError: unknown tool, or arguments that the server refuses.
        """
        if name not in self._tools:
            raise ValueError(f"unknown tool {name}")
        outcome, text = self._run(self._tools[name].call(arguments, self.episode))
        if outcome == FAULT:
            raise ToolFault(text)
        if outcome == MISTAKE:
            raise ValueError(text)
        return text

    def for_episode(self, episode: str) -> "RemoteTools":
        """The same tools over the same connections, for another episode."""
        other = copy.copy(self)
        other.episode = episode
        return other

    def close(self) -> None:
        """End the sessions, and the servers that were started by command. A later call connects again."""
        for server in self._servers:
            self._run(server.close())

    def __enter__(self) -> "RemoteTools":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _run(self, work: Coroutine) -> Any:
        """Run in the background loop; an interrupt of the caller's ends the work as well."""
        future = asyncio.run_coroutine_threadsafe(work, _LOOP.get())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


class _Loop:
    """The event loop that all connections of this process share, in a thread of its own, started when it is needed."""

    def __init__(self):
        self.lock, self.loop, self.process = threading.Lock(), None, 0

    def get(self) -> asyncio.AbstractEventLoop:
        with self.lock:
            if self.process != os.getpid():  # none yet, or left behind by a fork, which threads do not survive
                self.loop, self.process = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=self.loop.run_forever, name="mcp-client", daemon=True).start()
            return self.loop

    def end(self) -> None:
        if self.process == os.getpid():
            with suppress(Exception):
                asyncio.run_coroutine_threadsafe(close_all(), self.loop).result(END_S)


_LOOP = _Loop()
atexit.register(_LOOP.end)


class RemoteTool:
    """One tool as the agent sees it, and how to ask its server for it."""

    def __init__(self, server: ServerSession, name: str, config: ToolConfig, listed):
        self.server, self.name, self.config = server, name, config
        parameters = listed.input_schema
        if config.arguments is not None:
            if name not in SCHEMAS:
                raise KitError(f"MCP server {server.name!r}, tool {name!r}: arguments can only be mapped for the kit's own "
                               f"tools {', '.join(SCHEMAS)}")
            parameters = SCHEMAS[name]["function"]["parameters"]
        function = {"name": name, "description": config.description or listed.description or "", "parameters": parameters}
        self.schema = {"type": "function", "function": function}

    async def call(self, arguments: dict, episode: str) -> Outcome:
        """Ask once, or once for each element; the first outcome that is no answer counts for all."""
        try:
            requests = self._requests(_repair(arguments, self.schema["function"]["parameters"]))
            _check_json(requests)
        except ValueError as mistake:
            return MISTAKE, str(mistake)
        texts = []
        for request in requests:
            outcome, text = await self.server.call(self.config.tool, request, episode)
            if outcome != ANSWER:
                return outcome, text
            texts.append(text)
        return ANSWER, SEPARATOR.join(texts)

    def _requests(self, arguments: dict) -> list[dict]:
        """The arguments in the server's words: one request, or one for each element."""
        config = self.config
        if config.arguments is None:
            return [arguments | config.fixed]
        for key in self.schema["function"]["parameters"]["required"]:
            if key in config.arguments and not arguments.get(key):
                raise ValueError(f"{self.name} needs {key}")
        return [{theirs: (arguments | element)[ours] for ours, theirs in config.arguments.items() if ours in arguments}
                | config.fixed for element in self._elements(arguments)]

    def _elements(self, arguments: dict) -> list[dict]:
        key = self.config.each
        items = arguments.get(key) if key else []
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ValueError(f"{self.name} needs {key}")
        return [{key: item} for item in items] or [{}]


def _check_json(requests: list[dict]) -> None:
    """What is no JSON (NaN, half a surrogate pair) would break the connection, for all who use it."""
    try:
        json.dumps(requests, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        raise ValueError(f"arguments that cannot be sent as JSON: {error}") from None


def _repair(arguments: dict, parameters: dict) -> dict:
    """A bare string where a list is wanted becomes a list of one, as in the reference."""
    kinds = parameters.get("properties") or {}
    return {key: [value] if isinstance(value, str) and (kinds.get(key) or {}).get("type") == "array" else value
            for key, value in arguments.items()}
