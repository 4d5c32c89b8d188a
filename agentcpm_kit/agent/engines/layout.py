"""How one pass lays out its tokens: those of all rows one after the other, in `Layout`.

Matrix products treat tokens in groups, and the last, incomplete group by other instructions that round otherwise. Without
incomplete groups a conversation's tokens and log-probs are the same bits in any company (measured on x86 CPUs; GPUs choose
their algorithms by shape and promise no such thing). So contexts and passes are filled up to multiples of `ALIGN`.
"""

from dataclasses import dataclass, field

ALIGN = 16


@dataclass
class Prefill:
    """Tokens of one row's context: `count` of them, with filling, from place `first` of the pass on.

    `start` is the position of the first one, `keys` how many are looked at: those before them, and they themselves.
    """

    first: int
    count: int
    start: int
    keys: int


@dataclass
class Layout:
    """By place: `tokens`, the row (`owners`, by its number in `rows`) and the position that they are stored at.

    First come the rows that decode, one token each, then those that prefill; `rows` is in this order. Filling belongs to
    no row: its number is that after the last. `complete` are the rows to sample for, after the places in `last`; that is
    filled up too.
    """

    rows: list
    decoding: int = 0  # how many of the rows
    tokens: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    prefills: list[Prefill] = field(default_factory=list)
    complete: list = field(default_factory=list)
    last: list[int] = field(default_factory=list)

    def add(self, owner: int, tokens: list[int], start: int) -> None:
        self.tokens += tokens
        self.owners += [owner] * len(tokens)
        self.positions += range(start, start + len(tokens))

    def fill(self, filler: int) -> None:
        """Up to the next multiple of ALIGN."""
        for _ in range(-len(self.tokens) % ALIGN):
            self.add(len(self.rows), [filler], 0)


def lay_out(rows: list, filler: int) -> Layout:
    """A pass over what is coming of each row."""
    decoding, prefilling = [row for row in rows if row.ids], [row for row in rows if not row.ids]
    layout = Layout(decoding + prefilling, len(decoding))
    for number, row in enumerate(decoding):
        layout.add(number, row.coming(), len(row.cached))
    layout.complete, layout.last = decoding, list(range(len(decoding)))
    layout.fill(filler)
    for number, row in enumerate(prefilling, len(decoding)):
        _add_prefill(layout, number, row, filler)
    layout.last += [0] * (-len(layout.last) % ALIGN or ALIGN * (not layout.last))
    return layout


def _add_prefill(layout: Layout, number: int, row, filler: int) -> None:
    tokens, first, start = row.coming(), len(layout.tokens), len(row.cached)
    layout.add(number, tokens, start)
    layout.fill(filler)
    layout.prefills.append(Prefill(first, len(layout.tokens) - first, start, start + len(tokens)))
    if start + len(tokens) >= len(row.turn.ids):
        layout.complete.append(row)
        layout.last.append(first + len(tokens) - 1)
