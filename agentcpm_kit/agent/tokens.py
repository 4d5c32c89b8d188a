"""Text to token ids and back, as it stands: nothing added, nothing cut; and which of them an assistant wrote.

A fast tokenizer's Rust core is asked directly: transformers' own calls take twice as long, and the loop makes ten an episode.
"""

from collections.abc import Sequence

ASSISTANT, END = "<|im_start|>assistant\n", "<|im_end|>"


def encode(tokenizer, text: str) -> list[int]:
    core = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    if core is None or core.truncation or core.padding:  # settings that another caller left behind; transformers sets its own
        return tokenizer(text, add_special_tokens=False).input_ids
    return core.encode_batch_fast([text], add_special_tokens=False)[0].ids


def decode(tokenizer, ids: list[int]) -> str:
    if tokenizer.is_fast and not tokenizer.clean_up_tokenization_spaces:
        return tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
    return tokenizer.decode(ids)


def assistant_mask(tokenizer, ids: Sequence[int]) -> list[int]:
    """1 on the tokens of assistant turns, their end token included, 0 elsewhere: read from the chat markup alone.

    It knows nothing of what was sampled, so it can be held against the loop's own mask.
    """
    head, end = encode(tokenizer, ASSISTANT), tokenizer.convert_tokens_to_ids(END)
    mask, inside = [], False
    for i, token in enumerate(ids):
        mask.append(int(inside))
        if inside and token == end:
            inside = False
        elif list(ids[max(0, i + 1 - len(head)): i + 1]) == head:
            inside = True
    return mask
