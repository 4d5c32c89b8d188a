"""Text to token ids and back, as it stands: nothing added, nothing cut.

A fast tokenizer's Rust core is asked directly: transformers' own calls take twice as long, and the loop makes ten an episode.
"""


def encode(tokenizer, text: str) -> list[int]:
    core = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    if core is None or core.truncation or core.padding:  # settings that another caller left behind; transformers sets its own
        return tokenizer(text, add_special_tokens=False).input_ids
    return core.encode_batch_fast([text], add_special_tokens=False)[0].ids


def decode(tokenizer, ids: list[int]) -> str:
    if tokenizer.is_fast and not tokenizer.clean_up_tokenization_spaces:
        return tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
    return tokenizer.decode(ids)
