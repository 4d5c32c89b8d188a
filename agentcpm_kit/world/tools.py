"""The agent's tools with the reference's names and argument schemas: `search`, `fetch_url`, `PythonInterpreter`.

A fault is raised as `ToolFault` (see `faults`). The caller's own mistakes are the caller's to notice: an unknown page is
an ordinary answer, wrong arguments are a `ValueError` that the loop tells the model. As in the reference, a bare string is
taken for a list of one, and a missing purpose is let pass. Any object with `schemas` and `call` can take the place of
`Tools`; `mcp.RemoteTools` puts an MCP server there.
"""

import json
import time
from typing import Protocol

from .atlas import Page, World
from .faults import KINDS, FaultDice, FaultPlan, ToolFault
from .index import best_passage
from .sandbox import run_python

SEPARATOR = "\n" + "=" * 7 + "\n"  # between the answers to several queries, as in the reference
WORLD_TOOLS = ("search", "fetch_url")
STRINGS = {"type": "array", "items": {"type": "string"}}


def _schema(name: str, description: str, properties: dict, required: list[str] | None = None) -> dict:
    required = list(properties) if required is None else required
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


SCHEMAS = {
    "search": _schema("search", "Search the atlas. Returns titles, urls and snippets.", {"query": STRINGS}),
    "fetch_url": _schema("fetch_url", "Read pages of the atlas.", {"url": STRINGS, "purpose": {"type": "string"}}),
    "PythonInterpreter": _schema(
        "PythonInterpreter", "Run Python code and read what it prints. Standard library only; nothing is kept between calls. "
        "The code is the argument `code`, or follows the JSON in <code> tags.", {"code": {"type": "string"}}, required=[]),
}


def tool_schemas(names: tuple[str, ...] = WORLD_TOOLS) -> list[dict]:
    """OpenAI-style schemas of tools, as the chat template renders them."""
    return [SCHEMAS[name] for name in names]


class ToolSet(Protocol):
    """What the loop needs of an episode's tools."""

    schemas: list[dict]

    def call(self, name: str, arguments: dict) -> str: ...


class Tools:
    """The tools named in `names` over one world, for one episode. `episode` seeds its faults."""

    def __init__(self, world: World, faults: FaultPlan | None = None, episode: str = "", names: tuple[str, ...] = WORLD_TOOLS):
        self.world, self.names, self.schemas = world, names, tool_schemas(names)
        self.plan = faults or FaultPlan()
        self.dice = FaultDice(self.plan, episode)

    @property
    def down(self) -> bool:
        """Whether every call of this episode fails."""
        return self.dice.down

    def call(self, name: str, arguments: dict) -> str:
        """Run a tool.

        Raises:
            ToolFault: the tool failed, through no fault of the caller's.
            ValueError: unknown tool, or a missing or wrong argument (the caller's mistake).
        """
        if name not in self.names:
            raise ValueError(f"unknown tool {name}")
        if not isinstance(arguments, dict):
            raise ValueError(f"{name} needs its arguments by name")
        values = _read_code(arguments) if name == "PythonInterpreter" else _read_list(name, arguments)
        fault = self.dice.draw(name, json.dumps(values))
        if fault == "slow":
            time.sleep(self.plan.slow_s)
        elif fault:
            raise ToolFault(KINDS[fault])
        if name == "PythonInterpreter":
            return run_python(values[0])
        answer = self._search if name == "search" else self._fetch
        return SEPARATOR.join(map(answer, values))

    def _search(self, query: str) -> str:
        hits = enumerate(self.world.search(query, self.world.hits), 1)
        return "\n".join(_hit(number, page, query) for number, page in hits) or "No results found."

    def _fetch(self, url: str) -> str:
        page = self.world.page(url.strip())
        if page is None:
            return "Error: page not found."
        return f"Page: {page.url}\n# {page.title}\n{page.text}" if page.source else f"# {page.title}\n{page.text}"


def _hit(number: int, page: Page, query: str) -> str:
    """Title, address, source and snippet, as the reference shows them; the plain edition does without a source."""
    source = [page.source] if page.source else []
    return "\n".join([f"{number}. [{page.title}]({page.url})", *source, best_passage(page, query)])


def _read_list(name: str, arguments: dict) -> list[str]:
    key = "query" if name == "search" else "url"
    items = arguments.get(key)
    items = [items] if isinstance(items, str) else items  # the reference repairs this too
    if not isinstance(items, list) or not items or not all(isinstance(i, str) for i in items):
        raise ValueError(f"{name} needs {key}")
    return items


def _read_code(arguments: dict) -> list[str]:
    code = arguments.get("code")
    if not isinstance(code, str) or not code.strip():
        raise ValueError('PythonInterpreter needs code, after the JSON: <tool_call>{"name": "PythonInterpreter", '
                         '"arguments": {}}<code>print(1 + 1)</code></tool_call>')
    return [code]
