"""Keeps pages that carry benchmark answers from the agent: hosts and patterns in data/blocked.yaml, or a file of your own.

A blocked address is refused in any argument of any tool that reads (however it is written: encoded, behind a proxy's, without
scheme), and a search hit that names one is left out. Both are logged. What a server does behind an address that is not blocked,
such as a redirect, is not seen here. The reference drops URLs of huggingface.co; on its JSON path its filter does nothing.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import yaml

from ..agent.episode import ToolFactory
from ..errors import KitError, one_line
from ..profile import repo_root
from ..world.tools import ToolSet

HOST = re.compile(r"[\w-]+(\.[\w-]+)+")
HIT = re.compile(r"^(?=\d+\. )", re.M)  # hits of a search result are numbered
REFUSED = "This page is blocked: it may carry answers of a benchmark."
NO_READING = ("search", "PythonInterpreter")  # their arguments are words and code; the sandbox has no network


@dataclass(frozen=True)
class Blocklist:
    """`hosts` with all that is below them (`huggingface.co` blocks `cdn.huggingface.co`), `patterns` anywhere in a text."""

    hosts: tuple[str, ...]
    patterns: tuple[re.Pattern, ...]

    @classmethod
    def read(cls, path: Path | None = None) -> "Blocklist":
        """
        Raises:
            KitError: the file cannot be read, holds anything but lists of `hosts` and `patterns`, or a host that is none.
        """
        path = path or repo_root() / "data/blocked.yaml"
        try:
            found = yaml.safe_load(path.read_text()) or {}
            hosts, patterns = found.pop("hosts", []), found.pop("patterns", [])
            if found or not isinstance(hosts, list) or not isinstance(patterns, list):
                raise ValueError(f"unknown {', '.join(found)}" if found else "lists are wanted")
            if wrong := [host for host in hosts if not HOST.fullmatch(host)]:
                raise ValueError(f"{wrong[0]!r} is no host such as huggingface.co")
            return cls(tuple(host.lower() for host in hosts), tuple(re.compile(pattern, re.I) for pattern in patterns))
        except (OSError, yaml.YAMLError, TypeError, AttributeError, ValueError, re.error) as error:
            raise KitError(f"{path} is no list of `hosts` and `patterns`: {one_line(error)}") from error

    def blocks(self, text: str) -> bool:
        """Whether a blocked address stands in a text, in any of the ways in which it can be written."""
        text = plain(text)
        return (any(re.search(rf"(?<![\w-]){re.escape(host)}(?![\w-]|\.\w)", text) for host in self.hosts)
                or any(pattern.search(text) for pattern in self.patterns))


def plain(text: str) -> str:
    """Without percent-encoding, escapes and full-width letters, in lower case."""
    for _ in range(3):
        text = unquote(text)
    return unicodedata.normalize("NFKC", text).lower().replace("\\", "/").replace("。", ".")


def strings(value) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings(each)


@dataclass
class Guarded:
    """Tools behind a blocklist; `note` is called with the tool and the address, or the hit, that is kept away."""

    tools: ToolSet
    blocklist: Blocklist
    note: Callable[[str, str], None]

    @property
    def schemas(self) -> list[dict]:
        return self.tools.schemas

    def call(self, name: str, arguments: dict) -> str:
        """As the tools behind. Of several pages the blocked ones are refused, and the others read."""
        if name in NO_READING:
            return self._filtered(name, self.tools.call(name, arguments))
        blocked = [text for text in strings(arguments) if self.blocklist.blocks(text)]
        if not blocked:
            return self.tools.call(name, arguments)
        for text in blocked:
            self.note(name, text)
        refusals = [f"{text}\n{REFUSED}" for text in blocked]
        pages = arguments.get("url")
        allowed = [page for page in pages if page not in blocked] if isinstance(pages, list) else []
        elsewhere = any(text in blocked for text in strings({k: v for k, v in arguments.items() if k != "url"}))
        read = [self.tools.call(name, {**arguments, "url": allowed})] if allowed and not elsewhere else []
        return "\n\n".join([*read, *refusals])

    def _filtered(self, name: str, text: str) -> str:
        """A result without the hits that name a blocked address; JSON without such items."""
        if name != "search" or not self.blocklist.blocks(text):
            return text
        try:
            return json.dumps(self._pruned(name, json.loads(text)), ensure_ascii=False)
        except ValueError:
            return "".join(part for part in HIT.split(text) if not self._drop(name, part))

    def _pruned(self, name: str, value):
        if isinstance(value, list):
            return [self._pruned(name, each) for each in value if isinstance(each, list) or not self._drop(name, *strings(each))]
        return {key: self._pruned(name, each) for key, each in value.items()} if isinstance(value, dict) else value

    def _drop(self, name: str, *texts: str) -> bool:
        if named := next(filter(self.blocklist.blocks, texts), None):
            self.note(name, one_line(named)[:200])
        return named is not None


def guarded(tools: ToolFactory, blocklist: Blocklist, log: Callable[[str, str, str], None]) -> ToolFactory:
    """A factory whose tools are behind the blocklist; `log` is called with (episode, tool, address)."""
    return lambda task, episode: Guarded(tools(task, episode), blocklist, lambda tool, text: log(episode, tool, text))
