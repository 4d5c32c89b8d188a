"""A head start for micro-base: its first two layers begin as induction heads.

A model that was pretrained on trillions of tokens has them (Olsson et al. 2022, "In-context Learning and Induction
Heads"): one head copies the previous token's content to a token, a later one looks for the token that carries the
content of the current one, and copies it. From random weights, a model of this size first settles for copying any of
the values in sight and leaves that plateau after millions of tokens or never; from this start it looks facts up after
0.7 million. Our assumption; everything remains trainable.
"""

import math

OFFSETS = (1, 1, 2, 3)  # how far back each head of layer 0 looks
PAIR_WEIGHTS = (0.6, 0.3, 0.1)  # of the three fastest rotary pairs: together they peak at one distance
SLOW = 0.012  # rotary pairs slower than this (radians per token) compare content nearly the same at any distance
GAIN = 2.0  # size of what a head writes, as a multiple of an embedding


def add_induction_heads(model) -> None:
    """Change layers 0 and 1 of a freshly drawn Qwen3 with 4 heads in place."""
    import torch

    config = model.config
    width, head_dim, heads = config.hidden_size, config.head_dim, config.num_attention_heads
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    # What is written has `GAIN` times the size of an embedding; normalised input has the size sqrt(width).
    written = _orthogonal(width) * config.initializer_range * GAIN
    content = _orthogonal_to_constant(width)
    with torch.no_grad():
        model.model.embed_tokens.weight += config.initializer_range  # a constant that positions can be read from
        for head in range(heads):
            rows = slice(head * head_dim, (head + 1) * head_dim)
            read = content[torch.randperm(width - 1)[:head_dim]]
            _look_back(first, rows, OFFSETS[head], head_dim, _frequencies(config))
            first.v_proj.weight[rows], first.o_proj.weight[:, rows] = read, written[:, rows]
            if head < 2:  # these look one token back: two heads of layer 1 match on what each of them wrote
                for matcher in (head, head + 2):
                    _match(second, matcher, read, written[:, rows].T, _frequencies(config))
        copied = _orthogonal(width)
        second.v_proj.weight[:], second.o_proj.weight[:] = copied, copied.T * config.initializer_range * GAIN


def _frequencies(config):
    """Radians per token of each rotary pair (i, i + head_dim / 2)."""
    import torch

    half = config.head_dim // 2
    return config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)


def _look_back(attention, rows: slice, offset: int, head_dim: int, frequencies) -> None:
    """Queries and keys that are the same for every token, turned so that they agree at distance `offset`."""
    import torch

    size = torch.tensor(PAIR_WEIGHTS).sqrt()
    angles, pairs, half = offset * frequencies[: len(size)], len(size), head_dim // 2
    query, key = torch.zeros(head_dim), torch.zeros(head_dim)
    key[:pairs] = size
    query[:pairs], query[half: half + pairs] = size * angles.cos(), -size * angles.sin()
    constant = 4 / attention.q_proj.in_features  # well above the random rest
    attention.q_proj.weight[rows] += constant * query[:, None]
    attention.k_proj.weight[rows] += constant * key[:, None]


def _match(attention, head: int, read, wrote, frequencies) -> None:
    """Query: the content of this token. Key: the content that the layer below wrote there, of the token before."""
    import torch

    slow = torch.nonzero(frequencies < SLOW)[:, 0]
    dims = torch.cat([slow, slow + len(frequencies)])
    rows = head * len(read) + dims
    attention.q_proj.weight[rows] += read[dims]
    attention.k_proj.weight[rows] += torch.nn.functional.normalize(wrote[dims], dim=1)


def _orthogonal(width: int):
    import torch

    return torch.linalg.qr(torch.randn(width, width))[0]


def _orthogonal_to_constant(width: int):
    """`width - 1` orthonormal rows, each orthogonal to the constant vector."""
    import torch

    start = torch.cat([torch.full((width, 1), 1 / math.sqrt(width)), torch.randn(width, width - 1)], 1)
    return torch.linalg.qr(start)[0].T[1:]
