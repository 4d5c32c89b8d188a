"""A language model that condenses: pages against a purpose, and an agent's history before a reset.

The paper's page summariser gets the page and the purpose, never the question (reference, section 6.1). Any engine can
write; prompts are text files in ``prompts/``, chosen by name, because a model of 1M parameters knows few words.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .engines.base import Engine, Sample, Turn
from .messages import split_thinking

PROMPTS = Path(__file__).parent / "prompts"


@lru_cache
def prompt_text(name: str) -> str:
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


@dataclass
class Summariser:
    """`prompt` and `history_prompt` name files; pages are cut at `max_page_tokens` (the reference: 60,000)."""

    engine: Engine
    prompt: str = "page"
    history_prompt: str = "page_history"
    max_new_tokens: int = 1024
    max_page_tokens: int = 60_000

    def page_turn(self, key: str, page: str, purpose: str) -> Turn:
        return self._turn(key, prompt_text(self.prompt).format(page=self._cut(page), purpose=purpose))

    def history_turn(self, key: str, transcript: str, question: str) -> Turn:
        return self._turn(key, prompt_text(self.history_prompt).format(history=transcript, question=question))

    def _cut(self, page: str) -> str:
        """The beginning of a page that is too long."""
        ids = self.engine.tokenizer(page, add_special_tokens=False).input_ids
        return page if len(ids) <= self.max_page_tokens else self.engine.tokenizer.decode(ids[: self.max_page_tokens])

    def _turn(self, key: str, text: str) -> Turn:
        messages = ({"role": "user", "content": text},)
        return Turn(key, prompt_ids(self.engine.tokenizer, text), key, self.max_new_tokens, messages)

    def read(self, sample: Sample) -> str:
        """What was written, without its thinking."""
        return split_thinking(sample.text(self.engine.tokenizer))[1].strip()


def prompt_ids(tokenizer, text: str) -> list[int]:
    """One user turn and the opening of the reply, in the tokenizer's chat template; thinking is off where it can be."""
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False,
                                             add_generation_prompt=True, enable_thinking=False)
    return tokenizer(rendered, add_special_tokens=False).input_ids
