"""Seeded faults of the tools: what goes wrong on the live web, on demand and the same on every machine.

The paper blames part of RL's noise on the environment; its taxonomy is unpublished, so the kinds here are our
assumption. A fault is raised as `ToolFault`, never returned as an empty success: the loop must be able to tell a
broken tool from a page that says nothing.
"""

import random
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import KitError, unknown

# kind -> what the caller is told. `slow` is no failure: the answer is right, but late.
KINDS = {"timeout": "timeout", "http_429": "http 429: too many requests", "http_5xx": "http 503: service unavailable",
         "empty": "empty answer", "truncated": "truncated answer", "malformed": "malformed answer", "slow": ""}
TOOLS = ("search", "fetch_url", "PythonInterpreter")


class ToolFault(Exception):
    """The tool itself failed; the text names the fault ("timeout")."""


@dataclass(frozen=True)
class FaultPlan:
    """Seeded faults.

    `outage` is the share of episodes in which every call times out; `rates` gives tool -> kind -> share of calls.
    A slow call takes `slow_s` seconds longer.
    """

    outage: float = 0.0
    rates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    slow_s: float = 0.2

    def __post_init__(self):
        for tool, kinds in self.rates.items():
            if tool not in TOOLS:
                raise unknown("tool", tool, TOOLS)
            for kind in kinds:
                if kind not in KINDS:
                    raise unknown("kind of fault", kind, KINDS)
            if not (all(rate >= 0 for rate in kinds.values()) and sum(kinds.values()) <= 1):
                raise KitError(f"faults of {tool}: shares must not be negative nor add up to more than 1")

    @classmethod
    def parse(cls, text: str) -> "FaultPlan":
        """`"search.timeout=0.1,*.slow=0.05"` as a plan; `*` stands for every tool.

        Raises:
            KitError: not in that form, an unknown tool or kind, or shares that cannot be.
        """
        rates: dict[str, dict[str, float]] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, _, share = part.partition("=")
            tool, dot, kind = name.partition(".")
            try:
                value = float(share if dot else "")
            except ValueError:
                raise KitError(f"faults are tool.kind=share, not {part!r}") from None
            for each in TOOLS if tool == "*" else (tool,):
                rates.setdefault(each, {})[kind] = value
        return cls(rates=rates)


class FaultDice:
    """Draws the faults of one episode.

    A call's fate depends on the episode, on the call and on how often the same call was made before, not on the
    order of different calls: concurrent callers meet the same faults, and trying again may succeed.
    """

    def __init__(self, plan: FaultPlan, episode: str):
        self.plan, self.episode = plan, episode
        self.tries: Counter[int] = Counter()  # by hash: a server that runs for days must not keep every argument
        self.lock = threading.Lock()
        self.down = random.Random(f"faults {episode}").random() < plan.outage

    def draw(self, tool: str, arguments: str) -> str | None:
        """The kind of fault that meets this call, or None."""
        if self.down:
            return "timeout"
        if not self.plan.rates.get(tool):
            return None
        key = f"{tool} {arguments}"
        with self.lock:
            self.tries[hash(key)] += 1
            time = self.tries[hash(key)]
        at = random.Random(f"fault {self.episode} {key} {time}").random()
        for kind, share in self.plan.rates[tool].items():
            at -= share
            if at < 0:
                return kind
        return None
