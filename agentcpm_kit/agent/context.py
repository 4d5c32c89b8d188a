"""Context refinement (claim 3 of the paper): what of a page the agent gets to see, given the purpose it stated.

`raw` shows all, `truncate` the first lines, `extract` the passages that BM25 finds nearest to the purpose. The
paper condenses pages with a second language model; extraction is the cheapest policy of the same kind.
"""

from dataclasses import dataclass, field

from ..errors import unknown
from ..world.index import Index

POLICIES = ("raw", "truncate", "extract")


@dataclass
class ContextPolicy:
    """Applied to the result of ``fetch_url``; searches are short as they are. `keep` counts passages (lines)."""

    name: str = "raw"
    keep: int = 3
    tools: tuple[str, ...] = field(default=("fetch_url",))

    def __post_init__(self):
        if self.name not in POLICIES:
            raise unknown("context policy", self.name, POLICIES)

    def refine(self, tool: str, arguments: dict, text: str) -> str:
        """The text that enters the context: the title line and at most `keep` lines, in the page's order."""
        head, *passages = text.split("\n")
        if self.name == "raw" or tool not in self.tools or len(passages) <= self.keep:
            return text
        if self.name == "truncate":
            return "\n".join([head, *passages[: self.keep]])
        purpose = arguments.get("purpose")
        best = Index(passages).top(purpose if isinstance(purpose, str) else "", self.keep)
        return "\n".join([head, *(passages[i] for i in sorted(best))])
