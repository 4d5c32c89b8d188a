"""How one pass lays out its tokens: those of all rows one after the other, and the parts that attention takes together.

Matrix products treat tokens in groups, and the last, incomplete group by other instructions that round otherwise. Without
incomplete groups a conversation's tokens and log-probs are the same bits in any company (measured on x86 CPUs; GPUs choose
their algorithms by shape and promise no such thing). So contexts and passes are filled up to multiples of `ALIGN`.
"""

from dataclasses import dataclass, field

ALIGN = 16
KEYS = 64  # tokens look at a multiple of so many keys, for the same reason
IN_VAIN = 256  # keys that rows may read in vain to be read together: as dear as one more call


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@dataclass
class Part:
    """`count` rows of neighbouring slots, from `slot` on, with `tokens` tokens each, from place `first` of the pass on."""

    first: int
    count: int
    tokens: int
    slot: int
    keys: int  # that its tokens look at


@dataclass
class Layout:
    """By place: `tokens`, and the `slots` and `positions` that they are stored at.

    `complete` are the rows whose context ends in this pass, `last` the places to sample after, theirs first.
    """

    tokens: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    complete: list = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    pieces: list[list[int]] = field(default_factory=list)  # the tokens of each row, without filling


def lay_out(rows: list, filler: int, nowhere: int) -> Layout:
    """A pass over rows in the order of their slots. Filling is stored at the position `nowhere`, which nobody looks at."""
    plan = Layout()
    for row in rows:
        piece, first, start = row.coming(), len(plan.tokens), len(row.cached)
        tokens = 1 if row.ids else round_up(len(piece), ALIGN)
        plan.pieces.append(piece)
        plan.tokens += piece
        plan.positions += range(start, start + len(piece))
        plan.slots += [row.slot] * len(piece)
        _fill(plan, filler, nowhere, row.slot, tokens - len(piece))
        keys = round_up(start + len(piece), KEYS)
        _add_part(plan.parts, Part(first, 1, tokens, row.slot, keys))
        if start + len(piece) >= len(row.turn.ids):
            plan.complete.append(row)
            plan.last.append(first + len(piece) - 1)
    _fill(plan, filler, nowhere, 0, -len(plan.tokens) % ALIGN)
    plan.last += [0] * (round_up(max(len(plan.last), 1), ALIGN) - len(plan.last))
    return plan


def _fill(plan: Layout, filler: int, nowhere: int, slot: int, count: int) -> None:
    plan.tokens += [filler] * count
    plan.positions += [nowhere] * count
    plan.slots += [slot] * count


def _add_part(parts: list[Part], part: Part) -> None:
    """Single tokens of neighbours of about the same length are one part."""
    before = parts[-1] if parts else None
    if before and before.tokens == part.tokens == 1 and part.slot == before.slot + before.count:
        most = max(before.keys, part.keys)
        if (most - before.keys) * before.count + most - part.keys <= IN_VAIN:
            before.count, before.keys = before.count + 1, most
            return
    parts.append(part)
