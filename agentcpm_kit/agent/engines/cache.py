"""A key-value cache of slots: each conversation owns one row, filled from its left end without holes.

Position i of a row always holds token i, whoever shares the batch. So a row can be taken up again turns later, cut back to a
shared beginning, or be fed beside rows of any other length. And what is added up for a token is added up in the same
order in every batch: see `transformers.ALIGN`.
"""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


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
        """Store the new states at the positions of this pass, and return all that its rows may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        owner = self.owner
        self.keys[owner.rows[:, None], :, owner.positions] = key_states.transpose(1, 2)
        self.values[owner.rows[:, None], :, owner.positions] = value_states.transpose(1, 2)
        if owner.leading:  # a view: copying all rows at each token would cost more than the attention itself
            return self.keys[: len(owner.rows), :, : owner.width], self.values[: len(owner.rows), :, : owner.width]
        return self.keys[owner.rows, :, : owner.width], self.values[owner.rows, :, : owner.width]

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.width, 0

    def get_max_length(self) -> int:
        return self.owner.capacity


class SlotCache(Cache):
    """`slots` rows that hold `capacity` tokens each; both may grow."""

    def __init__(self, layers: int, slots: int, capacity: int):
        self.slots, self.capacity, self.width = slots, capacity, 0
        super().__init__(layers=[SlotLayer(self) for _ in range(layers)])

    def place(self, rows, positions, width: int, leading: bool) -> None:
        """Where the next pass writes: row i of the batch in slot `rows[i]`, its tokens at `positions[i]`.

        `width` keys are looked at. `leading`: the rows are the first slots, in order.
        """
        self.rows, self.positions, self.width, self.leading = rows, positions, width, leading

    def grow(self, slots: int, capacity: int) -> None:
        """Make room; what is stored stays."""
        more = (max(slots, self.slots) - self.slots, max(capacity, self.capacity) - self.capacity)
        self.slots, self.capacity = self.slots + more[0], self.capacity + more[1]
        for layer in self.layers:
            if layer.is_initialized and any(more):
                pad = (0, 0, 0, more[1], 0, 0, 0, more[0])
                layer.keys = torch.nn.functional.pad(layer.keys, pad)
                layer.values = torch.nn.functional.pad(layer.values, pad)

    def permute(self, order: list[int]) -> None:
        """Move slot `order[i]` to slot i; slots that are not named keep their place and must not be among the targets."""
        source = torch.tensor(order)
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys[: len(order)] = layer.keys[source.to(layer.keys.device)]
                layer.values[: len(order)] = layer.values[source.to(layer.values.device)]
