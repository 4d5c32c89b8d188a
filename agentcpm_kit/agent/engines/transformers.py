"""The engine `transformers`: any Hugging Face causal model, batched, its cache kept across turns.

Continuous batching: a row that ends its turn leaves the batch at once, and a new turn joins it between two tokens. A
turn's context that begins with what the conversation's cache holds costs only the new tokens; any other (a history reset)
is cut back to the common beginning.
"""

import random
from dataclasses import dataclass, field

from .base import Closing, Ended, EngineFault, Sample, Turn
from .layout import lay_out

CHUNK = 1024  # tokens of one context that a pass feeds at most: bounds the memory of attention
PASS_TOKENS = 16_384  # tokens of all rows that a pass feeds at most


@dataclass
class Row:
    """A conversation: `cached` are the tokens whose keys are stored, in its `blocks`; the rest is the turn under way."""

    blocks: list[int] = field(default_factory=list)
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


class TransformersEngine(Closing):
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

    def close(self) -> None:
        self.forget()
        self.model = None

    def load_weights(self, model) -> None:
        """Go on with the weights of another model of the same shape."""
        self.model.load_state_dict(model.state_dict())

    def submit(self, turn: Turn) -> None:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit and len(turn.ids) + turn.max_new_tokens > limit:
            words = f"{len(turn.ids)} tokens and a turn of {turn.max_new_tokens} exceed the model's context of {limit}"
            self.ended.append((turn.key, EngineFault(words)))
        else:
            self.waiting[turn.key] = turn

    def release(self, key: str) -> None:
        self._drop(key)
        for known in (self.waiting, self.running):
            known.pop(key, None)
        self.ended = [(ended, result) for ended, result in self.ended if ended != key]

    def _drop(self, key: str) -> None:
        """Forget what is cached of a conversation."""
        if (row := self.rows.pop(key, None)) and self.cache is not None:
            self.cache.fit(row.blocks, 0)

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
        if self.running:
            self._feed(list(self.running.values()))

    def _fail(self, error: Exception) -> None:
        fault = EngineFault(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        if "memory" in f"{type(error).__name__} {error}".lower():
            self.batch_size = max(1, self.batch_size // 2)
        ended = self.ended + [(key, fault) for key in (*self.waiting, *self.running)]
        self.forget()
        self.ended = ended

    def _admit(self) -> dict[str, Row]:
        """Rows for as many waiting turns as this pass may feed; new conversations may take the place of resting ones."""
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
            self._drop(resting)
        return Row()

    def _feed(self, rows: list[Row]) -> None:
        """Run the tokens to come of each row through the model, and sample where a context is complete."""
        import torch

        from .attention import AttentionPlan, attending_blocks
        from .cache import BlockCache

        if self.cache is None:
            self.cache = BlockCache(self.model.config.num_hidden_layers)
        self.cache.compact([row.blocks for row in self.rows.values()])
        coming = [row.coming() for row in rows]
        for row, tokens in zip(rows, coming, strict=True):
            self.cache.fit(row.blocks, len(row.cached) + len(tokens))
        layout, device = lay_out(rows, self.end), self.model.device
        tokens, positions, last = (torch.tensor(numbers, device=device)
                                   for numbers in (layout.tokens, layout.positions, layout.last))
        self.cache.plan = AttentionPlan(layout, positions)
        with attending_blocks(self.model):
            logits = self.model(input_ids=tokens[None], attention_mask=positions[None, None, :, None],
                                position_ids=positions[None], past_key_values=self.cache, use_cache=True,
                                plan=self.cache.plan, logits_to_keep=last).logits[0]
        for row, tokens in zip(rows, coming, strict=True):
            row.cached += tokens
        if layout.complete:
            self._sample(layout.complete, logits[: len(layout.complete)])

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
