"""Ids and text are those of transformers' own calls, whatever others left set on the tokenizer."""

import pytest

from agentcpm_kit.agent.tokens import decode, encode

TEXTS = ("", "Pulmak has home Talin.", '<think>a</think>\n<tool_call>{"name": "x"}</tool_call><|im_end|>\n', "  é 上海 \n\n")


@pytest.mark.parametrize("text", TEXTS)
def test_the_same_as_transformers(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert encode(tokenizer, text) == ids and decode(tokenizer, ids) == tokenizer.decode(ids)


def test_nothing_is_cut_or_padded(tokenizer):
    """A trainer that pads and truncates leaves those settings in the tokenizer's core."""
    whole = encode(tokenizer, TEXTS[1])
    for settings in ({"truncation": True, "max_length": 2}, {"padding": "max_length", "max_length": 50}):
        tokenizer(TEXTS[1], **settings)
        assert encode(tokenizer, TEXTS[1]) == whole


def test_bytes_stand_in_for_a_tokenizer_that_nobody_knows(tokenizer):
    """What is encoded comes back; special tokens are one each; the chat is micro's."""
    from agentcpm_kit.agent.tokens import ByteTokenizer

    counting, text = ByteTokenizer(), "<think>Oslo, 法国</think>\n<answer>x</answer><|im_end|>"
    ids = encode(counting, text)
    assert decode(counting, ids) == text and len(ids) == len("Oslo, 法国".encode()) + 2 + 1 + 3 + 1
    assert ids[-1] == counting.convert_tokens_to_ids("<|im_end|>")
    chat = ([{"role": "user", "content": "hi"}],), {"tokenize": False, "add_generation_prompt": True}
    assert counting.apply_chat_template(*chat[0], **chat[1]) == tokenizer.apply_chat_template(*chat[0], **chat[1])
