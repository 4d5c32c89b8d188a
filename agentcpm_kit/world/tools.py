"""The agent's tools with the reference's names and argument schemas: ``search`` and ``fetch_url``.

A fault (time-out, refused request) is raised as `ToolFault`, never returned as an empty success: the loop must
be able to tell a broken tool from a page that says nothing. The arguments' own mistakes (an unknown page) are
ordinary answers, since they are the agent's to notice.
"""

import random
from dataclasses import dataclass

from .atlas import World
from .index import best_sentence

SEPARATOR = "\n" + "=" * 7 + "\n"  # between the answers to several queries, as in the reference
HITS = 3


class ToolFault(Exception):
    """The tool itself failed; the text names the fault ("timeout")."""


@dataclass(frozen=True)
class FaultPlan:
    """Seeded faults. `outage` is the share of episodes in which every call fails, `call` the share of single calls."""

    outage: float = 0.0
    call: float = 0.0


def tool_schemas() -> list[dict]:
    """OpenAI-style schemas of the tools, as the chat template renders them."""
    strings = {"type": "array", "items": {"type": "string"}}
    search = {"name": "search", "description": "Search the atlas. Returns titles, urls and snippets.",
              "parameters": {"type": "object", "properties": {"query": strings}, "required": ["query"]}}
    fetch = {"name": "fetch_url", "description": "Read pages of the atlas.",
             "parameters": {"type": "object", "properties": {"url": strings, "purpose": {"type": "string"}},
                            "required": ["url", "purpose"]}}
    return [{"type": "function", "function": search}, {"type": "function", "function": fetch}]


class Tools:
    """The tools over one world, for one episode. `episode` seeds its faults."""

    def __init__(self, world: World, faults: FaultPlan | None = None, episode: str = ""):
        self.world = world
        self.faults = faults or FaultPlan()
        self.rng = random.Random(f"faults {episode}")
        self.down = self.rng.random() < self.faults.outage

    def call(self, name: str, arguments: dict) -> str:
        """Run a tool.

        Raises:
            ToolFault: the tool failed, through no fault of the caller's.
            ValueError: unknown tool, or a missing or wrong argument (the caller's mistake).
        """
        if name not in ("search", "fetch_url"):
            raise ValueError(f"unknown tool {name}")
        key = "query" if name == "search" else "url"
        items = arguments.get(key)
        items = [items] if isinstance(items, str) else items  # the reference repairs this too
        if not isinstance(items, list) or not items or not all(isinstance(i, str) for i in items):
            raise ValueError(f"{name} needs {key}")
        if self.down or self.rng.random() < self.faults.call:
            raise ToolFault("timeout")
        return SEPARATOR.join(self._search(i) if name == "search" else self._fetch(i) for i in items)

    def _search(self, query: str) -> str:
        pages = list(self.world.pages.values())
        hits = [pages[i] for i in self.world.index.top(query, HITS)]
        lines = [f"{n}. [{p.title}]({p.url})\n{best_sentence(p, query)}" for n, p in enumerate(hits, 1)]
        return "\n".join(lines) or "No results found."

    def _fetch(self, url: str) -> str:
        page = self.world.pages.get(url.strip())
        return f"# {page.title}\n{page.text}" if page else "Error: page not found."
