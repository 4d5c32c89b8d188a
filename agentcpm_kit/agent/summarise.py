"""A language model that condenses: pages against a purpose, and an agent's history before a reset.

The paper's page summariser gets the page and the purpose, never the question (reference, section 6.1). Any engine can
write; prompts are text files in ``prompts/``, chosen by name, because a model of 1M parameters knows few words.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import unknown
from .engines.base import Engine, Sample, Turn
from .messages import split_thinking

PROMPTS = Path(__file__).parent / "prompts"


@lru_cache
def prompt_text(name: str) -> str:
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


def page_prompt(name: str, page: str, purpose: str) -> str:
    """What a summariser is asked, in training as in use."""
    return prompt_text(name).format(page=page, purpose=purpose)


@dataclass
class Summariser:
    """`prompt` and `history_prompt` name files; pages are cut at `max_page_tokens` (the reference: 60,000)."""

    engine: Engine
    prompt: str = "page"
    history_prompt: str = "page_history"
    max_new_tokens: int = 1024
    max_page_tokens: int = 60_000

    def __post_init__(self):
        for name in (self.prompt, self.history_prompt):
            if name not in (known := [path.stem for path in PROMPTS.glob("*.txt")]):
                raise unknown("prompt", name, known)

    def page_turn(self, key: str, page: str, purpose: str) -> Turn:
        return self._turn(key, page_prompt(self.prompt, self._cut(page), purpose))

    def history_turn(self, key: str, transcript: str, question: str) -> Turn:
        history = self._cut(transcript, end=True)
        return self._turn(key, prompt_text(self.history_prompt).format(history=history, question=question))

    def _cut(self, text: str, end: bool = False) -> str:
        """The beginning, or the end, of a text that is too long."""
        ids, most = self.engine.tokenizer(text, add_special_tokens=False).input_ids, self.max_page_tokens
        return text if len(ids) <= most else self.engine.tokenizer.decode(ids[-most:] if end else ids[:most])

    def _turn(self, key: str, text: str) -> Turn:
        return user_turn(self.engine.tokenizer, key, text, self.max_new_tokens)

    def read(self, sample: Sample) -> str:
        return reply_text(self.engine.tokenizer, sample)


def prompt_ids(tokenizer, text: str) -> list[int]:
    """One user turn and the opening of the reply, in the tokenizer's chat template; thinking is off where it can be."""
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False,
                                             add_generation_prompt=True, enable_thinking=False)
    return tokenizer(rendered, add_special_tokens=False).input_ids


def user_turn(tokenizer, key: str, text: str, max_new_tokens: int) -> Turn:
    """The reply to one user turn without tools; the key is its seed too."""
    return Turn(key, prompt_ids(tokenizer, text), key, max_new_tokens, ({"role": "user", "content": text},))


def reply_text(tokenizer, sample: Sample) -> str:
    """What was written, without its thinking."""
    return split_thinking(sample.text(tokenizer))[1].strip()
