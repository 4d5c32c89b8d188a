"""What the loop asks of an engine: the next turn of many conversations, whichever ends first.

A `Turn` carries the whole context, so an engine needs no memory of its own; one that keeps a cache under `key` computes
only what is new. A fault (dead server, cut stream, context overflow) is an `EngineFault`, never an answer.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from ..tokens import decode


class EngineFault(Exception):
    """The engine failed on a turn, through no fault of the agent's; the text says how, `kind` what to call it in a count.

    Kinds of servers: see `servers`; ``bad_reply`` is also a reply that is not what the API promises. ``engine``: an engine in
    this process failed. `again`: whether the same turn may fare better when it is asked once more.
    """

    def __init__(self, words: str, kind: str = "engine", again: bool = True):
        super().__init__(words)
        self.kind, self.again = kind, again


@dataclass(frozen=True)
class Turn:
    """One turn to generate.

    `key` names the conversation: one turn of it at a time. `ids` are all tokens before the turn, `seed` its own random
    stream. `messages` and `schemas` are the same context for engines that speak chat (OpenAI's format, with tool ids).
    """

    key: str
    ids: list[int]
    seed: str
    max_new_tokens: int
    messages: tuple[dict, ...] = ()
    schemas: tuple[dict, ...] = ()


@dataclass
class Sample:
    """A generated turn. `logprobs` are those of the sampling distribution (greedy: of the model's), one for each id.

    `stopped`: it ended by itself (``<|im_end|>`` is then the last id), not by its token limit. `exact`: the ids are those
    that were sampled; otherwise they were made from text, and RL must not train on them. `billed`: tokens read and written, as
    a server counts them.
    """

    ids: list[int]
    logprobs: list[float]
    stopped: bool
    exact: bool = True
    billed: tuple[int, int] | None = None

    def text(self, tokenizer) -> str:
        """What was written, without the end token."""
        return decode(tokenizer, self.ids[:-1] if self.stopped else self.ids)


def seed_number(seed: str, bits: int) -> int:
    """A turn's seed for engines that take numbers: the same in every run, which Python's hash() is not."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()) >> (256 - bits)


Ended = list[tuple[str, Sample | EngineFault]]


class Engine(Protocol):
    """Small on purpose: the three engines, the scripted oracle and the tests' scripts are all of this kind."""

    tokenizer: object
    batch_size: int  # conversations worth having under way at once

    def submit(self, turn: Turn) -> None:
        """Ask for a turn. Never blocks for long and never raises for what is wrong with one turn."""

    def poll(self) -> Ended:
        """Work, or wait, for a moment; the turns that ended since. Empty when nothing is under way."""

    def release(self, key: str) -> None:
        """Forget a conversation; a turn of it under way is dropped and never reported."""


class Closing:
    """An engine that is opened in a ``with`` gives its memory and connections back at the end."""

    def close(self) -> None: ...

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


def generate_turns(engine: Engine, turns: Iterable[Turn]) -> list[Sample | EngineFault]:
    """All turns, at most `batch_size` at once; each conversation is forgotten after its turn. In the turns' order."""
    waiting, active, found = list(turns), set(), {}
    order = [turn.key for turn in waiting]
    try:
        while waiting or active:
            while waiting and len(active) < engine.batch_size:
                turn = waiting.pop(0)
                active.add(turn.key)
                engine.submit(turn)
            for key, sample in engine.poll():
                found[key] = sample
                active.discard(key)
                engine.release(key)
    finally:  # interrupted, the same keys may be asked for again
        for key in active:
            engine.release(key)
    return [found[key] for key in order]
