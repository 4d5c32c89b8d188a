import random

import pytest

from agentcpm_kit.agent.messages import Renderer, ToolCall, assistant_message, extract_answer, parse_tool_calls
from agentcpm_kit.world import tool_schemas

CALL = '<tool_call>{"name": "search", "arguments": {"query": ["a"]}}</tool_call>'
READ = ToolCall("search", {"query": ["a"]})


@pytest.mark.parametrize("text,calls,errors", [
    (CALL, [READ], 0),
    (CALL + CALL, [READ, READ], 0),
    (f"<think>{CALL}</think>", [], 0),  # calls inside the thinking do not count
    (f"{CALL}</think>{CALL}", [READ], 0),  # thinking opened by the template
    (f"<think>never closed {CALL}", [], 0),
    (CALL + '<tool_call>{"name": "sea', [READ], 1),  # a broken call beside a good one
    (CALL.removesuffix("</tool_call>"), [READ], 0),  # unclosed, but whole
    ('<tool_call>{"name": "s", "arguments": "{\\"q\\": 1}"}</tool_call>', [ToolCall("s", {"q": 1})], 0),
    ('<tool_call>{"name": "s", "arguments": [1]}</tool_call>', [], 1),
    ('<tool_call>{"arguments": {}}</tool_call>', [], 1),
    ('<tool_call>[1, 2]</tool_call>', [], 1),
    ('<tool_call></tool_call>', [], 1),
    ('<tool_call>{"name": "py", "arguments": {}}\n<code>\nprint(1)\n</code></tool_call>',
     [ToolCall("py", {"code": "print(1)"})], 0),
    ("<tool_call>" + "[" * 100_000, [], 1),  # deep nesting must not overflow the stack
    ("", [], 0)])
def test_contested_calls(text, calls, errors):
    parsed = parse_tool_calls(text)
    assert parsed.tool_calls == calls and len(parsed.errors) == errors


def test_parser_never_raises():
    rng = random.Random(0)
    parts = [CALL, "<think>", "</think>", "<tool_call>", "</tool_call>", '{"name":', "}", "\\", "<answer>", "é", "\0", "[" * 50]
    for _ in range(3000):
        text = "".join(rng.choice(parts) for _ in range(rng.randint(0, 12)))
        cut = rng.randint(0, len(text))
        parse_tool_calls(text[:cut] + text[cut + 1:])


@pytest.mark.parametrize("text,answer", [
    ("<think>a</think><answer> x </answer>", "x"), ("<answer>a</answer><answer>b</answer>", "b"),
    ("<think><answer>a</answer></think>", None), (f"<answer>a</answer>{CALL}", None), ("<answer>open", "open"), ("x", None)])
def test_answer(text, answer):
    assert extract_answer(parse_tool_calls(text)) == answer


def test_pieces_join_to_what_the_template_renders(tokenizer):
    """Piece by piece must equal rendering the conversation as a whole."""
    renderer = Renderer(tokenizer, tool_schemas())
    message = assistant_message("Find the home.", call=ToolCall("search", {"query": ["Pulmak"]}))
    ids = renderer.prompt("What is the home of Pulmak?")
    ids += [*renderer.encode(renderer.assistant_text(message)), renderer.end_id] + renderer.tool_results(["No results found."])
    from agentcpm_kit.agent.messages import first_messages

    whole = tokenizer.apply_chat_template(
        [*first_messages("What is the home of Pulmak?"), message, {"role": "tool", "content": "No results found."}],
        tools=tool_schemas(), tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(ids) == whole and tokenizer(whole, add_special_tokens=False).input_ids == ids


def test_every_schema_is_rendered(tokenizer):
    text = Renderer(tokenizer, tool_schemas())._text([{"role": "user", "content": "x"}])
    assert "search(query)" in text and "fetch_url(url, purpose)" in text
