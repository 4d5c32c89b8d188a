"""The engine `transformers`: any Hugging Face causal model, batched, its cache kept across turns.

Continuous batching: a row that ends its turn leaves the batch at once, and a new turn joins it between two tokens. A
turn's context that begins with what the conversation's cache holds costs only the new tokens; any other (a history reset)
is cut back to the common beginning.
"""

import random
from dataclasses import dataclass, field

from .base import Ended, EngineFault, Sample, Turn

# Rows and widths of every pass are multiples of this. Matrix products treat rows in groups, and the last, incomplete group
# by other instructions that round otherwise. Without incomplete groups a conversation's tokens and log-probs are the same
# bits in any company (measured on x86 CPUs; GPUs choose their algorithms by shape and promise no such thing).
ALIGN = 16
KEYS = 512  # prompts look at a multiple of so many keys, for the same reason: attention works in blocks of them
KEYS_OF_ONE = 64  # a single token may look at fewer
IN_VAIN = 256  # keys that rows may read in vain to be read together: as dear as one more call
CHUNK = 1024  # tokens of one row that a pass feeds at most: bounds the memory of attention
PREFILL_TOKENS = 16_384  # tokens of all rows that a pass feeds at most
PATIENCE = 8  # new prompts wait until there is one for eight turns that run


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@dataclass
class Row:
    """A conversation in a slot: `cached` are the tokens whose keys are stored; the rest is the turn under way."""

    slot: int
    cached: list[int] = field(default_factory=list)
    turn: Turn | None = None
    stream: random.Random = field(default_factory=random.Random)
    ids: list[int] = field(default_factory=list)  # sampled; the last one is not fed yet
    logprobs: list[float] = field(default_factory=list)

    def take(self, turn: Turn) -> list[int]:
        """Begin a turn; the tokens that must be fed, at least one. What is cached beyond the common beginning is void."""
        self.turn, self.stream, self.ids, self.logprobs = turn, random.Random(turn.seed), [], []
        shared = shared_length(self.cached, turn.ids[:-1])
        del self.cached[shared:]
        return turn.ids[shared:]


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
        """One pass through the model: prompts when there are some together or nothing else to do, then a token each."""
        import torch

        try:
            with torch.inference_mode():
                self._pass()
        except Exception as error:  # after any error, what the rows hold cannot be trusted
            self._fail(error)
        ended, self.ended = self.ended, []
        return ended

    def _pass(self) -> None:
        patient = len(self.waiting) * PATIENCE < len(self.running)
        if rows := {} if patient else self._admit():
            self._prefill(rows)
        elif self.running:
            self._decode()

    def _fail(self, error: Exception) -> None:
        fault = EngineFault(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        if "memory" in f"{type(error).__name__} {error}".lower():
            self.batch_size = max(1, self.batch_size // 2)
        ended = self.ended + [(key, fault) for key in (*self.waiting, *self.running)]
        self.forget()
        self.ended = ended

    def _prefill(self, rows: dict[str, Row]) -> None:
        """Feed the contexts of waiting turns, and sample the first token of each."""
        pieces = [row.take(self.waiting.pop(key)) for key, row in rows.items()]
        self.running |= rows
        self._make_room(max(len(row.turn.ids) + row.turn.max_new_tokens for row in rows.values()))
        fed = list(zip(rows.values(), pieces, strict=True))
        for start in range(0, max(map(len, pieces)), CHUNK):
            part = [(row, piece[start: start + CHUNK]) for row, piece in fed if len(piece) > start]
            logits = self._feed([row for row, _ in part], [piece for _, piece in part])
            last = [i for i, (row, _) in enumerate(part) if len(row.cached) == len(row.turn.ids)]
            self._sample([part[i][0] for i in last], logits[last])

    def _admit(self) -> dict[str, Row]:
        """Rows for as many waiting turns as one pass may feed; new conversations may take the slots of resting ones."""
        chosen: dict[str, Row] = {}
        width = 0
        for key, turn in list(self.waiting.items()):
            row = self.rows.pop(key, None) or self._new_row()
            if row is None:
                continue
            self.rows[key] = row  # now the last one used
            width = max(width, len(turn.ids) - shared_length(row.cached, turn.ids))
            if chosen and (len(chosen) + 1) * min(width, CHUNK) > PREFILL_TOKENS:
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
        return Row(next(slot for slot in range(len(taken) + 1) if slot not in taken))

    def _make_room(self, tokens: int) -> None:
        slots = round_up(max(row.slot for row in self.rows.values()) + 1, ALIGN)
        capacity = round_up(tokens + 1, KEYS)  # the last place is nobody's: padding goes there
        if self.cache is None:
            from .cache import SlotCache

            self.cache = SlotCache(self.model.config.num_hidden_layers, slots, capacity)
        if capacity > self.cache.capacity:  # by half at least: growing copies everything
            capacity = max(capacity, round_up(self.cache.capacity * 3 // 2, KEYS))
        self.cache.grow(slots, capacity)

    def _feed(self, rows: list[Row], pieces: list[list[int]]):
        """Run new tokens through the model; logits after the last one of each row, (rows, vocabulary)."""
        width = round_up(max(map(len, pieces)), ALIGN)
        parts = [([row], round_up(len(piece), ALIGN), round_up(len(row.cached) + len(piece), KEYS))
                 for row, piece in zip(rows, pieces, strict=True)]
        kept = sorted({len(piece) - 1 for piece in pieces})
        padded = kept + kept[-1:] * (round_up(len(kept), ALIGN) - len(kept))
        logits = self._forward(rows, [piece + [self.end] * (width - len(piece)) for piece in pieces], parts, padded)
        for row, piece in zip(rows, pieces, strict=True):
            row.cached += piece
        return logits[list(range(len(rows))), [kept.index(len(piece) - 1) for piece in pieces]]

    def _decode(self) -> None:
        """One more token for every running turn."""
        rows = sorted(self.running.values(), key=lambda row: row.slot)
        filling = rows[:1] * (round_up(len(rows), ALIGN) - len(rows))
        tokens = [row.ids[-1:] for row in rows + filling]
        logits = self._forward(rows + filling, tokens, neighbours(rows), [0], real=len(rows))
        for row in rows:
            row.cached.append(row.ids[-1])
        self._sample(rows, logits[: len(rows), 0])

    def _forward(self, rows: list[Row], tokens: list[list[int]], parts: list[tuple], kept: list[int], real: int | None = None):
        """Logits at the places `kept` of each row's new tokens, (rows, kept, vocabulary).

        `parts`: (neighbouring rows, new tokens, keys) that attention takes together. Rows from `real` on only fill the
        batch up: what they write goes to a place that nobody looks at.
        """
        import torch

        from .cache import attending_slots

        device, nowhere = self.model.device, self.cache.capacity - 1
        starts = torch.tensor([len(row.cached) for row in rows], device=device)
        starts[real:] = nowhere if real is not None else starts[real:]
        positions = (starts[:, None] + torch.arange(len(tokens[0]), device=device)).clamp(max=nowhere)
        slots = torch.tensor([row.slot for row in rows], device=device)
        self.cache.place(slots, positions, self._parts(parts, positions))
        with attending_slots(self.model):
            return self.model(input_ids=torch.tensor(tokens, device=device), attention_mask=positions[:, None, :, None],
                              position_ids=positions, past_key_values=self.cache, use_cache=True, slot_cache=self.cache,
                              logits_to_keep=torch.tensor(kept, device=device)).logits

    def _parts(self, parts: list[tuple], positions) -> list:
        """What attention reads, with masks that hide what comes later."""
        import torch

        from .cache import Part

        found, first = [], 0
        for rows, tokens, keys in parts:
            later = torch.arange(keys, device=positions.device) > positions[first: first + len(rows), None, :tokens, None]
            mask = torch.zeros(later.shape, dtype=self.model.dtype, device=positions.device).masked_fill(later, float("-inf"))
            found.append(Part(first, rows[0].slot, mask))
            first += len(rows)
        return found

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


def neighbours(rows: list[Row]) -> list[tuple[list[Row], int, int]]:
    """Rows in the order of their slots as parts for one new token each: neighbours of about the same length."""
    parts: list[tuple[list[Row], int, int]] = []
    for row in rows:
        keys = round_up(len(row.cached) + 1, KEYS_OF_ONE)
        if parts:
            members, _, known = parts[-1]
            most = max(known, keys)
            in_vain = (most - known) * len(members) + most - keys
            if row.slot == members[-1].slot + 1 and in_vain <= IN_VAIN:
                parts[-1] = ([*members, row], 1, most)
                continue
        parts.append(([row], 1, keys))
    return parts


def shared_length(first: list[int], second: list[int]) -> int:
    """Number of equal tokens at the beginning of both."""
    if second[: len(first)] == first:
        return len(first)
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
