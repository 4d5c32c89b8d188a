"""A language model that condenses: pages against a purpose, and an agent's history before a reset.

The paper's page summariser gets the page and the purpose, never the question (as in the reference). Any engine can
write; prompts are text files in ``prompts/``, chosen by name, because a model of 1M parameters knows few words.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from ..errors import unknown
from .engines.base import Closing, Engine, EngineFault, Sample, Turn, generate_turns
from .messages import split_thinking
from .tokens import decode, encode

PROMPTS = Path(__file__).parent / "prompts"
SEAM = 4  # tokens that a text may gain where it is cut and put between others


@lru_cache
def prompt_text(name: str) -> str:
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


def page_prompt(name: str, page: str, purpose: str) -> str:
    """What a summariser is asked, in training as in use."""
    return prompt_text(name).format(page=page, purpose=purpose)


@dataclass
class Summariser(Closing):
    """`prompt` and `history_prompt` name files. Pages and histories, not purposes, are cut until the prompt has no more than
    `max_prompt_tokens`.

    The reference cuts pages at 60,000 tokens.
    """

    engine: Engine
    prompt: str = "page"
    history_prompt: str = "page_history"
    max_new_tokens: int = 1024
    max_prompt_tokens: int = 60_000

    def __post_init__(self):
        for name in (self.prompt, self.history_prompt):
            if name not in (known := [path.stem for path in PROMPTS.glob("*.txt")]):
                raise unknown("prompt", name, known)

    def settings(self) -> dict:
        """All but the model."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "engine"}

    def page_turn(self, key: str, page: str, purpose: str) -> Turn:
        return self._turn(key, page, lambda text: page_prompt(self.prompt, text, purpose))

    def history_turn(self, key: str, transcript: str, question: str) -> Turn:
        ask = prompt_text(self.history_prompt)
        return self._turn(key, transcript, lambda text: ask.format(history=text, question=question), keep_end=True)

    def _turn(self, key: str, text: str, ask: Callable[[str], str], keep_end: bool = False) -> Turn:
        """The beginning, or the end, of a text that is too long is asked about."""
        turn = user_turn(self.engine.tokenizer, key, ask(text), self.max_new_tokens)
        if len(turn.ids) <= self.max_prompt_tokens:
            return turn
        around = len(prompt_ids(self.engine.tokenizer, ask("")))
        ids = encode(self.engine.tokenizer, text)
        room = max(1, self.max_prompt_tokens - around - SEAM)
        short = decode(self.engine.tokenizer, ids[-room:] if keep_end else ids[:room])
        return user_turn(self.engine.tokenizer, key, ask(short), self.max_new_tokens)

    def read(self, sample: Sample) -> str:
        return reply_text(self.engine.tokenizer, sample)

    def condense(self, pages: list[tuple[str, str]]) -> list[str | EngineFault]:
        """What is written for each (page, purpose)."""
        turns = [self.page_turn(f"page {i}", page, purpose) for i, (page, purpose) in enumerate(pages)]
        return [s if isinstance(s, EngineFault) else self.read(s) for s in generate_turns(self.engine, turns)]

    def close(self) -> None:
        self.engine.close()


def prompt_ids(tokenizer, text: str) -> list[int]:
    """One user turn and the opening of the reply, in the tokenizer's chat template; thinking is off where it can be."""
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False,
                                             add_generation_prompt=True, enable_thinking=False)
    return encode(tokenizer, rendered)


def user_turn(tokenizer, key: str, text: str, max_new_tokens: int) -> Turn:
    """The reply to one user turn without tools; the key is its seed too."""
    return Turn(key, prompt_ids(tokenizer, text), key, max_new_tokens, ({"role": "user", "content": text},))


def reply_text(tokenizer, sample: Sample) -> str:
    """What was written, without its thinking."""
    return split_thinking(sample.text(tokenizer))[1].strip()
