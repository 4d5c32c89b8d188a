"""Context refinement (claim 5 of the paper): what of a page the agent gets to see, given the purpose it stated.

`raw` shows all, `truncate` the first lines, `extract` the passages that BM25 finds nearest to the purpose. `summarise` has
a language model write what matters, as the paper does, and `finetuned` one that was trained to (`train.summariser`).
`oracle` shows the gold evidence alone: the ceiling. Rules as in the reference: pages are condensed one by
one; pages below `min_tokens` and purposes that ask for the full text are let through.
"""

import re
from dataclasses import dataclass, fields

from ..errors import KitError, unknown
from ..profile import Profile
from ..world.index import Index
from ..world.tasks import Task
from ..world.tools import SEPARATOR
from .history import RESETS
from .summarise import Summariser

POLICIES = ("raw", "truncate", "extract", "summarise", "finetuned", "oracle")
FULL = re.compile(r"\b(full|complete|raw|entire)\b", re.IGNORECASE)


@dataclass
class ContextPolicy:
    """Applied to the results of `tools`; searches are short as they are. `keep` counts passages (lines).

    `history`: what is done when the context is full or the agent repeats itself (see `history`). `keep_thinking`: whether
    earlier turns keep their thinking. `summariser` writes for `summarise` and `finetuned`, and the summaries of
    `discard_all`; without one, those are made by extraction (our assumption).
    """

    name: str = "raw"
    keep: int = 3
    history: str = "none"
    keep_thinking: bool = True
    summariser: Summariser | None = None
    min_tokens: int = 0
    tools: tuple[str, ...] = ("fetch_url",)

    def __post_init__(self):
        if self.name not in POLICIES:
            raise unknown("context policy", self.name, POLICIES)
        if self.history not in RESETS:
            raise unknown("history reset", self.history, RESETS)
        if self.writes and self.summariser is None:
            raise KitError(f"context policy {self.name} needs a summariser: ContextPolicy({self.name!r}, summariser=…)")

    @classmethod
    def of(cls, profile: Profile) -> "ContextPolicy":
        """The one that a profile names under ``context``."""
        return cls(**profile.context.model_dump())

    def settings(self) -> dict:
        """What tells it from other policies, without the summariser's model."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "summariser"}
        own["class"] = type(self).__qualname__
        return own | ({"summariser": self.summariser.settings()} if self.summariser else {})

    def applies(self, tool: str, arguments: dict, tokens: int) -> bool:
        """Whether a result of so many tokens is condensed."""
        full = FULL.search(purpose_of(arguments))
        return self.name != "raw" and tool in self.tools and tokens >= self.min_tokens and not full

    @property
    def writes(self) -> bool:
        """Whether a model writes what is shown."""
        return self.name in ("summarise", "finetuned")

    def refine(self, arguments: dict, text: str, task: Task | None = None) -> str:
        """The text that enters the context, for the policies that need no model."""
        pages = map(split_page, text.split(SEPARATOR))
        return SEPARATOR.join("\n".join([p.heading, *self._kept(p.passages, purpose_of(arguments), task)]) for p in pages)

    def _kept(self, passages: list[str], purpose: str, task: Task | None) -> list[str]:
        if self.name == "oracle":
            return gold_passages(passages, task)
        if len(passages) <= self.keep:
            return passages
        return passages[: self.keep] if self.name == "truncate" else best_passages(passages, purpose, self.keep)

    def summary_by_extraction(self, transcript: str, question: str) -> str:
        """The passages of a transcript nearest to the question: a reset without a summariser."""
        return "\n".join(best_passages(transcript.split("\n"), question, 4 * self.keep))


@dataclass
class PageText:
    """A page as a tool shows it. The heading (address, source, title) is never condensed away."""

    text: str
    heading: str
    passages: list[str]


def split_page(text: str) -> PageText:
    """Heading and passages (lines); the heading ends with the title line, or is the first line."""
    lines = text.split("\n")
    title = next((i for i, line in enumerate(lines[:3]) if line.startswith("# ")), 0)
    passages: list[str] = []
    for line in filter(str.strip, lines[title + 1:]):  # a section's heading belongs to its first line
        joins = passages and passages[-1].startswith("#") and "\n" not in passages[-1]
        passages[-1:] = [f"{passages[-1]}\n{line}"] if joins else [*passages[-1:], line]
    return PageText(text, "\n".join(lines[: title + 1]), passages)


def purpose_of(arguments: dict) -> str:
    purpose = arguments.get("purpose")
    return purpose if isinstance(purpose, str) else ""


def best_passages(passages: list[str], purpose: str, keep: int) -> list[str]:
    """At most `keep` passages, nearest to the purpose by BM25, in their own order."""
    best = Index(passages).top(purpose, keep) if passages else []
    return [passages[i] for i in sorted(best)]


def gold_passages(passages: list[str], task: Task | None) -> list[str]:
    """The lines that hold evidence of the task's gold path."""
    evidence = task.evidence if task else ()
    return [line for line in passages if any(gold in line for gold in evidence)]
