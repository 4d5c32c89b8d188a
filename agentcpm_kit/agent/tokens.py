"""Text to token ids and back, as it stands: nothing added, nothing cut; and which of them an assistant wrote.

A fast tokenizer's Rust core is asked directly: transformers' own calls take twice as long, and the loop makes ten an episode.
"""

import re
from collections.abc import Sequence
from types import SimpleNamespace

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


class ByteTokenizer:
    """Each byte a token, special tokens above them, and micro's chat template: to count text by, where nobody knows the served
    model's own tokenizer. Four bytes or so are one token of a language model.
    """

    is_fast = False

    def __init__(self):
        from ..micro.tokenizer import CHAT_TEMPLATE, SPECIALS

        self.specials, self.chat_template = {special: 256 + i for i, special in enumerate(SPECIALS)}, CHAT_TEMPLATE
        self.names = {i: special.encode() for special, i in self.specials.items()}
        self.parts = re.compile(f"({'|'.join(map(re.escape, SPECIALS))})")

    def __call__(self, text: str, **_) -> SimpleNamespace:
        ids: list[int] = []
        for part in self.parts.split(text):
            ids += [self.specials[part]] if part in self.specials else part.encode("utf-8", "replace")
        return SimpleNamespace(input_ids=ids)

    def decode(self, ids: Sequence[int], **_) -> str:
        return b"".join(self.names.get(i) or bytes([i]) for i in ids).decode("utf-8", "replace")

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.specials[token]

    def apply_chat_template(self, messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False,
                            **_) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        return render_jinja_template([messages], tools=tools, chat_template=self.chat_template,
                                     add_generation_prompt=add_generation_prompt)[0][0]
