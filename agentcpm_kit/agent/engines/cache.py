"""A key-value cache in blocks, as vLLM's: every conversation owns some blocks of tokens, in a list of its own.

Whoever needs room takes the lowest free block, and now and then the last blocks move into the gaps, so those in use lie
close together: `attention` reads them all at once.
"""

import weakref
from heapq import heappop, heappush

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from .attention import BLOCK, NOBODYS, AttentionPlan, blocks_for

GAPS = 8  # blocks move when there is more than one gap to so many of them


class BlockLayer(CacheLayerMixin):
    """Keys and values of one layer, (blocks, heads, BLOCK, size); `ready` blocks hold numbers.

    In float32 on a CPU, where sums of products of bfloat16 numbers would be rounded to bfloat16 and be no faster.
    """

    is_sliding = False

    def __init__(self, owner: "BlockCache"):
        super().__init__()
        self.owner, self.ready = weakref.proxy(owner), 0  # a circle would hold all keys and values until the collector comes

    def lazy_initialization(self, key_states, value_states) -> None:
        dtype = torch.float32 if key_states.device.type == "cpu" else key_states.dtype
        self.keys, self.values = (states.new_empty(0, states.shape[1], BLOCK, states.shape[-1], dtype=dtype)
                                  for states in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        """Store the new states in their places; all blocks are returned, for `block_attention`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        owner, plan = self.owner, self.owner.plan
        if self.ready < owner.used:
            self.keys, self.values = (_grown(stored, self.ready, owner) for stored in (self.keys, self.values))
            self.ready = owner.used
        for stored, states in (self.keys, key_states), (self.values, value_states):
            stored[plan.blocks, :, plan.offsets] = states[0].transpose(0, 1).to(stored.dtype)
        return self.keys, self.values

    def move(self, blocks: list[int], to: list[int]) -> None:
        if self.is_initialized:
            self.keys[to], self.values[to] = self.keys[blocks], self.values[blocks]

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.size * BLOCK, 0

    def get_max_length(self) -> int:
        return self.owner.size * BLOCK


def _grown(stored: torch.Tensor, ready: int, owner: "BlockCache") -> torch.Tensor:
    """Room for all blocks. Those used for the first time hold zeros, since what is masked must still be a number."""
    if len(stored) < owner.size:
        before, stored = stored, stored.new_empty(owner.size, *stored.shape[1:])
        stored[:ready] = before[:ready]
    stored[ready: owner.used] = 0
    return stored


class BlockCache(Cache):
    """Room for `size` blocks, which doubles when it does not suffice; those from `used` on are free.

    `plan` is that of the pass under way.
    """

    def __init__(self, layers: int):
        self.size = self.used = NOBODYS + 1
        self.free: list[int] = []  # a heap of those below `used`
        self.plan: AttentionPlan | None = None
        super().__init__(layers=[BlockLayer(self) for _ in range(layers)])

    def fit(self, blocks: list[int], tokens: int) -> None:
        """Let a conversation have as many blocks as `tokens` need, and no more."""
        count = blocks_for(tokens)
        while len(blocks) > count:
            heappush(self.free, blocks.pop())
        while len(blocks) < count:
            if not self.free:
                self.free.append(self.used)
                self.used += 1
            blocks.append(heappop(self.free))
        while self.size < self.used:
            self.size *= 2

    def compact(self, conversations: list[list[int]]) -> None:
        """Where there are many gaps, move the last blocks there. `conversations` are the lists of all who own blocks."""
        owned = sum(map(len, conversations))
        if self.used - 1 - owned <= owned // GAPS:
            return
        last = [(blocks, i) for blocks in conversations for i, block in enumerate(blocks) if block > owned]
        gaps = [block for block in self.free if block <= owned]
        for layer in self.layers:
            layer.move([blocks[i] for blocks, i in last], gaps)
        for (blocks, i), gap in zip(last, gaps, strict=True):
            blocks[i] = gap
        self.free, self.used = [], owned + 1
