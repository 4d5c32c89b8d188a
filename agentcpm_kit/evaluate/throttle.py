"""At most so many tool calls at once: a hosted search has limits of its own, and an MCP server a load that it bears."""

import threading
from dataclasses import dataclass

from ..agent.episode import ToolFactory
from ..world.tools import ToolSet


@dataclass
class Throttled:
    """Tools whose calls wait for a free slot.

    A call keeps its slot until it returns: a tool that hangs keeps it for good. The wait is part of the call, so it counts
    against an episode's `max_seconds`.
    """

    tools: ToolSet
    slots: threading.Semaphore

    @property
    def schemas(self) -> list[dict]:
        return self.tools.schemas

    def call(self, name: str, arguments: dict) -> str:
        with self.slots:
            return self.tools.call(name, arguments)


def throttled(tools: ToolFactory, calls: int) -> ToolFactory:
    """A factory whose tools share `calls` slots; 0: no limit."""
    if not calls:
        return tools
    slots = threading.Semaphore(calls)
    return lambda task, episode: Throttled(tools(task, episode), slots)
