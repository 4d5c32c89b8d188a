"""Attention over a key-value cache in blocks, for rows of any length side by side.

On two cores most of a token's time goes into reading keys and values. So those that decode read theirs where they lie: all
blocks in use at once, each against the query of its owner; what the blocks of one row give is then added up in their order.
Rows that prefill gather their blocks. Either way, what is added up for a token is added up in the same order in any
company: see `layout`.
"""

from contextlib import contextmanager

import torch
from transformers import AttentionInterface

from .layout import Layout, Prefill

ATTENTION = "agentcpm_kit_blocks"
BLOCK = 64  # tokens
NOBODYS = 0  # the block where filling is stored
IN_VAIN = 3  # blocks are gathered, not read where they lie, when so many times more would have to be read
NEVER = -1e30  # the score of a key that must not be looked at; finite, so that a block of such keys counts for nothing
LEAST = -80.0  # exp() of less is nothing beside 1, and slow where it is no normal float32


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK)


class AttentionPlan:
    """What all layers of a pass share: the `blocks` and `offsets` that its tokens are stored at, and what they look at."""

    def __init__(self, layout: Layout, positions: torch.Tensor):
        device, owned = positions.device, [row.blocks for row in layout.rows] + [[]]
        width = max(map(len, owned))
        table = torch.tensor([blocks + [NOBODYS] * (width - len(blocks)) for blocks in owned], device=device)
        self.blocks = table[torch.tensor(layout.owners, device=device), positions // BLOCK]
        self.offsets = positions % BLOCK
        self.prefills = [(prefill, table[number, : blocks_for(prefill.keys)], _causal(prefill, device))
                         for number, prefill in enumerate(layout.prefills, layout.decoding)]
        count = layout.decoding
        width = max(map(len, owned[:count]), default=0)  # not that of the rows that prefill
        self.decode = Decode(table[:count, :width], positions[:count] + 1) if count else None


def _causal(prefill: Prefill, device) -> torch.Tensor:
    """0 at the keys up to each token and -inf beyond, (tokens, keys filled up to whole blocks)."""
    shape = prefill.count, blocks_for(prefill.keys) * BLOCK
    return torch.full(shape, float("-inf"), device=device).triu_(prefill.start + 1)


class Decode:
    """Attention of rows with one token each; `table` is (rows, blocks), of which the first `lengths` keys are filled."""

    def __init__(self, table: torch.Tensor, lengths: torch.Tensor):
        self.gathered, table = _gathered(table)
        device, width = table.device, table.shape[1]
        self.rows, self.shape, self.table = len(table), table.shape, table.flatten()
        self.count = int(table.max()) + 1
        owners = torch.arange(self.rows, device=device).repeat_interleave(width)
        filled = (lengths[:, None] - BLOCK * torch.arange(width, device=device)).clamp(0, BLOCK).flatten()
        self.owners, filled = map(self._by_block, (owners, filled))
        never = torch.arange(BLOCK, device=device) >= filled[:, None]
        self.mask = torch.zeros(never.shape, device=device).masked_fill_(never, NEVER)[:, None, None]

    def _by_block(self, numbers):
        """Numbers of (row, block), in the order of the table, as one for each block; 0 where a block is nobody's."""
        return numbers.new_zeros(self.count).scatter_(0, self.table, numbers)

    def _by_row(self, found):
        """What the blocks gave, (rows, blocks, ...), in the order of the table."""
        return found.index_select(0, self.table).unflatten(0, self.shape)

    def attend(self, query, key, value, scaling: float):
        """(rows, heads, size) for `query` of that shape; `key` and `value` are (blocks, key heads, BLOCK, size)."""
        if self.gathered is not None:
            key, value = key.index_select(0, self.gathered), value.index_select(0, self.gathered)
        key, value = key[: self.count], value[: self.count]
        query = (query * scaling).unflatten(1, (key.shape[1], -1)).index_select(0, self.owners)
        scores = (query @ key.transpose(-1, -2)).float().add_(self.mask)
        top = scores.amax(-1, keepdim=True)
        weights = scores.sub_(top).clamp_(min=LEAST).exp_()
        found = (weights.to(value.dtype) @ value).float()
        top, found = map(self._by_row, (top, torch.cat([found, weights.sum(-1, keepdim=True)], -1)))
        found = _added_up(found.mul_((top - top.amax(1, keepdim=True)).exp_()))
        return (found[..., :-1] / found[..., -1:]).flatten(1, 2)


def _added_up(found):
    """Over the blocks, (rows, blocks, ...), which are used up. Blocks of zeros at the end change no bit, unlike with sum()."""
    while (width := found.shape[1]) > 1:
        half = 1 << (width - 1).bit_length() - 1
        found[:, : width - half] += found[:, half:]
        found = found[:, :half]
    return found[:, 0]


def _gathered(table: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The blocks of a table that are worth gathering, and the table of those; (None, the same) where they are not."""
    if IN_VAIN * table.count_nonzero() > table.max():
        return None, table
    return table.unique(return_inverse=True)


def block_attention(module, query, key, value, attention_mask, scaling=None, plan: AttentionPlan = None, **kwargs):
    """Attention of transformers' interface over the layers of a `BlockCache`; (1, tokens, heads, size).

    `query` is (1, heads, tokens, size). Filling gets whatever comes.
    """
    tokens = query[0].transpose(0, 1).to(key.dtype)
    out = query.new_zeros(*tokens.shape[:2], value.shape[-1])
    if plan.decode:
        out[: plan.decode.rows] = plan.decode.attend(tokens[: plan.decode.rows], key, value, scaling)
    for prefill, blocks, mask in plan.prefills:
        own = slice(prefill.first, prefill.first + prefill.count)
        found = torch.nn.functional.scaled_dot_product_attention(
            tokens[own].transpose(0, 1)[None], _contiguous(key, blocks), _contiguous(value, blocks),
            attn_mask=mask.to(key.dtype), scale=scaling, enable_gqa=tokens.shape[1] != key.shape[1])
        out[own] = found[0].transpose(0, 1)
    return out[None], None


def _contiguous(stored, blocks):
    """The blocks one after the other, (1, heads, keys, size)."""
    return stored.index_select(0, blocks).transpose(0, 1).flatten(1, 2)[None]


AttentionInterface.register(ATTENTION, block_attention)


@contextmanager
def attending_blocks(model):
    """The model computes attention with `block_attention` in this block, and as before after it."""
    before = model.config._attn_implementation
    model.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = before
