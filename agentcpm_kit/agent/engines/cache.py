"""A key-value cache of slots: each conversation owns one row, filled from its left end without holes.

Position i of a row always holds token i, whoever shares the batch. So a row can be taken up again turns later, cut back to a
shared beginning, or be fed beside rows of any other length. And what is added up for a token is added up in the same
order in every batch: see `layout`. `slot_attention` reads the rows where they lie, as far as each is filled:
on two cores most of a token's time goes into reading keys and values.
"""

from contextlib import contextmanager

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from .layout import Part

ATTENTION = "agentcpm_kit_slots"


def slot_attention(module, query, key, value, attention_mask, scaling=None, slot_cache=None, **kwargs):
    """Attention of transformers' interface over whole layers of a `SlotCache`, part by part; (1, tokens, heads, size).

    `query` is (1, heads, tokens, size). Places that belong to no part are filling and get zeros.
    """
    out = query.new_zeros(query.shape[2], query.shape[1], value.shape[-1])
    for part, mask in zip(slot_cache.parts, slot_cache.masks, strict=True):
        places, own = slice(part.first, part.first + part.count * part.tokens), slice(part.slot, part.slot + part.count)
        found = torch.nn.functional.scaled_dot_product_attention(
            query[0, :, places].unflatten(1, (part.count, part.tokens)).transpose(0, 1), key[own, :, :part.keys],
            value[own, :, :part.keys], attn_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])
        out[places] = found.transpose(1, 2).flatten(0, 1)
    return out[None], None


AttentionInterface.register(ATTENTION, slot_attention)


@contextmanager
def attending_slots(model):
    """The model computes attention with `slot_attention` in this block, and as before after it."""
    before = model.config._attn_implementation
    model.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = before


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (slots, heads, capacity, head size)."""

    is_sliding = False

    def __init__(self, owner: "SlotCache"):
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states, value_states) -> None:
        owner, (_, heads, _, size) = self.owner, key_states.shape
        self.keys = key_states.new_zeros(owner.slots, heads, owner.capacity, size)
        self.values = value_states.new_zeros(owner.slots, heads, owner.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        """Store the new states at the positions of this pass; whole layers are returned, for `slot_attention`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        owner = self.owner
        self.keys[owner.rows, :, owner.positions] = key_states[0].transpose(0, 1)
        self.values[owner.rows, :, owner.positions] = value_states[0].transpose(0, 1)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.capacity, 0

    def get_max_length(self) -> int:
        return self.owner.capacity


class SlotCache(Cache):
    """`slots` rows that hold `capacity` tokens each; both may grow."""

    def __init__(self, layers: int, slots: int, capacity: int):
        self.slots, self.capacity = slots, capacity
        super().__init__(layers=[SlotLayer(self) for _ in range(layers)])

    def place(self, rows, positions, parts: list[Part], masks: list) -> None:
        """Where the next pass writes: token i in slot `rows[i]` at `positions[i]`; what its parts read, with their masks."""
        self.rows, self.positions, self.parts, self.masks = rows, positions, parts, masks

    def grow(self, slots: int, capacity: int) -> None:
        """Make room; what is stored stays."""
        more = (max(slots, self.slots) - self.slots, max(capacity, self.capacity) - self.capacity)
        self.slots, self.capacity = self.slots + more[0], self.capacity + more[1]
        for layer in self.layers:
            if layer.is_initialized and any(more):
                pad = (0, 0, 0, more[1], 0, 0, 0, more[0])
                layer.keys = torch.nn.functional.pad(layer.keys, pad)
                layer.values = torch.nn.functional.pad(layer.values, pad)
