"""The engine `transformers`: any Hugging Face causal model, batched, its cache kept across turns.

Continuous batching: a row that ends its turn leaves the batch at once, and a new turn joins it between two tokens. A
turn's context that begins with what the conversation's cache holds costs only the new tokens; any other (a history reset)
is cut back to the common beginning.
"""

import random
from dataclasses import dataclass, field

from .base import Ended, EngineFault, Sample, Turn
from .layout import ALIGN, KEYS, lay_out, round_up

CHUNK = 1024  # tokens of one context that a pass feeds at most: bounds the memory of attention
PASS_TOKENS = 16_384  # tokens of all rows that a pass feeds at most


@dataclass
class Row:
    """A conversation in a slot: `cached` are the tokens whose keys are stored; the rest is the turn under way."""

    slot: int
    cached: list[int] = field(default_factory=list)
    turn: Turn | None = None
    stream: random.Random = field(default_factory=random.Random)
    ids: list[int] = field(default_factory=list)  # sampled; the last one is not fed yet
    logprobs: list[float] = field(default_factory=list)

    def take(self, turn: Turn) -> None:
        """Begin a turn. What is cached beyond the common beginning is void; at least one token is left to feed."""
        self.turn, self.stream, self.ids, self.logprobs = turn, random.Random(turn.seed), [], []
        del self.cached[shared_length(self.cached, turn.ids[:-1]):]

    def coming(self) -> list[int]:
        """The tokens to feed next: the one sampled last, or as much of the context as a pass takes."""
        return self.ids[-1:] or self.turn.ids[len(self.cached): len(self.cached) + CHUNK]


class TransformersEngine:
    """Every turn draws from its own random stream, so its tokens do not depend on who shares its batch.

    At most `batch_size` conversations are cached; beyond that, the one that rested longest is computed again when it
    comes back. When memory runs out, the turns under way end as faults and `batch_size` is halved.
    """

    def __init__(self, model, tokenizer, temperature: float = 1.0, batch_size: int = 128):
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.batch_size = temperature, batch_size
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.forget()

    def forget(self) -> None:
        """Drop everything under way and all that is cached."""
        self.rows: dict[str, Row] = {}  # in the order of their last use
        self.waiting: dict[str, Turn] = {}
        self.running: dict[str, Row] = {}
        self.ended: Ended = []  # not reported yet
        self.cache = None
        self.last_slot = -1  # slots are given out in a ring: neighbours are of one age, so of about one length

    def submit(self, turn: Turn) -> None:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit and len(turn.ids) + turn.max_new_tokens > limit:
            words = f"{len(turn.ids)} tokens and a turn of {turn.max_new_tokens} exceed the model's context of {limit}"
            self.ended.append((turn.key, EngineFault(words)))
        else:
            self.waiting[turn.key] = turn

    def release(self, key: str) -> None:
        for known in (self.waiting, self.running, self.rows):
            known.pop(key, None)
        self.ended = [(ended, result) for ended, result in self.ended if ended != key]

    def poll(self) -> Ended:
        """One pass through the model: a token of every turn under way, and contexts of new turns beside them."""
        import torch

        try:
            with torch.inference_mode():
                self._pass()
        except Exception as error:  # after any error, what the rows hold cannot be trusted
            self._fail(error)
        ended, self.ended = self.ended, []
        return ended

    def _pass(self) -> None:
        if rows := self._admit():
            for key in rows:
                del self.waiting[key]
            self.running |= rows
            self._make_room(max(len(row.turn.ids) + row.turn.max_new_tokens for row in rows.values()))
        if self.running:
            self._feed(sorted(self.running.values(), key=lambda row: row.slot))

    def _fail(self, error: Exception) -> None:
        fault = EngineFault(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        if "memory" in f"{type(error).__name__} {error}".lower():
            self.batch_size = max(1, self.batch_size // 2)
        ended = self.ended + [(key, fault) for key in (*self.waiting, *self.running)]
        self.forget()
        self.ended = ended

    def _admit(self) -> dict[str, Row]:
        """Rows for as many waiting turns as this pass may feed; new conversations may take the slots of resting ones."""
        chosen: dict[str, Row] = {}
        tokens = sum(len(row.coming()) for row in self.running.values()) if self.waiting else 0
        for key, turn in list(self.waiting.items()):
            row = self.rows.pop(key, None) or self._new_row()
            if row is None:
                continue
            self.rows[key] = row  # now the last one used
            row.take(turn)
            tokens += len(row.coming())
            if (chosen or self.running) and tokens > PASS_TOKENS:
                break
            chosen[key] = row
        return chosen

    def _new_row(self) -> Row | None:
        if len(self.rows) >= self.batch_size:
            resting = next((k for k in self.rows if k not in self.running and k not in self.waiting), None)
            if resting is None:
                return None
            del self.rows[resting]
        taken = {row.slot for row in self.rows.values()}
        size = max(len(taken) + 1, self.cache.slots if self.cache else 0)
        ring = ((self.last_slot + step) % size for step in range(1, size + 1))
        self.last_slot = next(slot for slot in ring if slot not in taken)
        return Row(self.last_slot)

    def _make_room(self, tokens: int) -> None:
        slots = round_up(max(row.slot for row in self.rows.values()) + 1, ALIGN)
        capacity = round_up(tokens + 1, KEYS)  # the last place is nobody's: padding goes there
        if self.cache is None:
            from .cache import SlotCache

            self.cache = SlotCache(self.model.config.num_hidden_layers, slots, capacity)
        if capacity > self.cache.capacity:  # by half at least: growing copies everything
            capacity = max(capacity, round_up(self.cache.capacity * 3 // 2, KEYS))
        self.cache.grow(slots, capacity)

    def _feed(self, rows: list[Row]) -> None:
        """Run the tokens to come of each row through the model, and sample where a context is complete."""
        import torch

        from .cache import attending_slots

        plan = lay_out(rows, self.end, self.cache.capacity - 1)
        tokens, positions, slots, last = (torch.tensor(numbers, device=self.model.device)
                                          for numbers in (plan.tokens, plan.positions, plan.slots, plan.last))
        self.cache.place(slots, positions, plan.parts, self._masks(plan, positions))
        with attending_slots(self.model):
            logits = self.model(input_ids=tokens[None], attention_mask=positions[None, None, :, None],
                                position_ids=positions[None], past_key_values=self.cache, use_cache=True,
                                slot_cache=self.cache, logits_to_keep=last).logits[0]
        for row, piece in zip(rows, plan.pieces, strict=True):
            row.cached += piece
        if plan.complete:
            self._sample(plan.complete, logits[: len(plan.complete)])

    def _masks(self, plan, positions) -> list:
        """For each part, what its tokens may look at."""
        ends = [part.first + part.count * part.tokens for part in plan.parts]
        return [self._mask(positions[part.first: end].view(part.count, part.tokens), part.keys)
                for part, end in zip(plan.parts, ends, strict=True)]

    def _mask(self, positions, keys: int):
        """0 at the keys up to each position and -inf beyond, (rows, 1, tokens, keys), for `positions` (rows, tokens)."""
        import torch

        later = torch.arange(keys, device=positions.device) > positions[:, None, :, None]
        return torch.zeros(later.shape, dtype=self.model.dtype, device=positions.device).masked_fill(later, float("-inf"))

    def _sample(self, rows: list[Row], logits) -> None:
        """Append a token to each row, and end the turns that end with it."""
        import torch

        if self.temperature == 0:
            logprobs = torch.log_softmax(logits.float(), -1)
            tokens = logprobs.argmax(-1)
        else:
            logprobs = torch.log_softmax(logits.float() / self.temperature, -1)
            sums = logprobs.exp().cumsum(-1)
            draws = torch.tensor([row.stream.random() for row in rows], device=logits.device) * sums[:, -1]  # about 1
            tokens = (sums < draws[:, None]).sum(-1)
        chosen = logprobs.gather(-1, tokens[:, None])[:, 0]
        if not chosen.isfinite().all():
            raise FloatingPointError("the model's logits are no numbers")
        for row, token, logprob in zip(rows, tokens.tolist(), chosen.tolist(), strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)
        for row in rows:
            stopped = row.ids[-1] == self.end
            if stopped or len(row.ids) >= row.turn.max_new_tokens:
                self.running.pop(row.turn.key, None)
                self.ended.append((row.turn.key, Sample(row.ids, row.logprobs, stopped)))


def shared_length(first: list[int], second: list[int]) -> int:
    """Number of equal tokens at the beginning of both."""
    if second[: len(first)] == first:
        return len(first)
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
