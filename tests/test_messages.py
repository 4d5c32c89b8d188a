"""Reading what models write, contested or broken; and rendering pieces that join to the template's conversation."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcpm_kit.agent.messages import (
    ParsedMessage,
    Renderer,
    ToolCall,
    assistant_message,
    extract_answer,
    first_messages,
    parse_tool_calls,
    split_thinking,
)
from agentcpm_kit.errors import KitError
from agentcpm_kit.micro.tokenizer import CHAT_TEMPLATE
from agentcpm_kit.profile import repo_root
from agentcpm_kit.world import tool_schemas

READ = ToolCall("s", {"q": 1})
WHOLE = '<tool_call>{"name": "s", "arguments": {"q": 1}}</tool_call>'
BROKEN = '<tool_call>{"name": "s", </tool_call>'


def block(body: str) -> str:
    return f"<tool_call>{body}</tool_call>"


def with_arguments(arguments: str) -> str:
    return block(f'{{"name": "s", "arguments": {arguments}}}')


# input, what we read (calls, number of errors), what vLLM 0.32 reads (name and arguments as sent; None: no calls, all is text)
CONTESTED = {
    "several": (WHOLE * 2, [READ, READ], 0, [("s", '{"q": 1}')] * 2),
    "one broken": (WHOLE + BROKEN + WHOLE, [READ, READ], 1, None),
    "truncated": ('<tool_call>{"name": "s", "argu', [], 1, None),
    "no closing tag": (WHOLE.removesuffix("</tool_call>"), [READ], 0, [("s", '{"q": 1}')]),
    "no closing tag before the next": (WHOLE.removesuffix("</tool_call>") + WHOLE, [READ, READ], 0, None),
    "no opening tag": (WHOLE.removeprefix("<tool_call>"), [], 0, None),
    "a brace too few": (block('{"name": "s", "arguments": {"q": 1}'), [], 1, None),
    "a brace too many": (block('{"name": "s", "arguments": {"q": 1}}}'), [READ], 0, None),
    "two objects": (block('{"name": "s", "arguments": {"q": 1}}{"name": "t", "arguments": {}}'), [READ], 0, None),
    "arguments as a string": (with_arguments('"{\\"q\\": 1}"'), [READ], 0, [("s", '"{\\"q\\": 1}"')]),
    "arguments as a list": (with_arguments("[1]"), [], 1, [("s", "[1]")]),
    "arguments null": (with_arguments("null"), [], 1, [("s", "null")]),
    "no arguments": (block('{"name": "s"}'), [ToolCall("s", {})], 0, None),
    "empty name": (block('{"name": "", "arguments": {}}'), [], 1, [("", "{}")]),
    "name is a number": (block('{"name": 1, "arguments": {}}'), [], 1, None),
    "duplicate key": (with_arguments('{"q": 2, "q": 1}'), [READ], 0, [("s", '{"q": 1}')]),
    "infinite": (with_arguments('{"q": Infinity}'), [ToolCall("s", {"q": float("inf")})], 0, [("s", '{"q": Infinity}')]),
    "huge integer": (with_arguments('{"q": ' + "1" * 5000 + "}"), [], 1, None),
    "lone surrogate": (with_arguments('{"q": "\\ud800"}'), [], 1, [("s", '{"q": "\ud800"}')]),
    "deep": (with_arguments('{"q": ' + "[" * 150 + "]" * 150 + "}"), [], 1, [("s", '{"q": ' + "[" * 150 + "]" * 150 + "}")]),
    "code": (block('{"name": "s", "arguments": {}}\n<code>\nprint(1)\n</code>'), [ToolCall("s", {"code": "print(1)"})], 0, None),
    "tag in a string": (with_arguments('{"q": "</tool_call>"}'), [ToolCall("s", {"q": "</tool_call>"})], 0, None),
    "line break in a string": (with_arguments('{"q": "a\nb"}'), [], 1, None),
    "single quotes": (block("{'name': 's', 'arguments': {}}"), [], 1, None),
    "Markdown": (block('```json\n{"name": "s", "arguments": {}}\n```'), [], 1, None),
    "empty": (block(""), [], 1, None),
    "no object": (block("[1, 2]"), [], 1, None),
    "in the thinking": (f"<think>{WHOLE}</think>b", [], 0, None),
    "in thinking that the prompt opened": (f"a{WHOLE}</think>b{WHOLE}", [READ], 0, [("s", '{"q": 1}')]),
    "in thinking without end": (f"<think>a{WHOLE}", [], 0, None),
    "before a second thinking": (f"<think>a</think>{WHOLE}<think>b</think>c", [READ], 0, [("s", '{"q": 1}')]),
    "in a second thinking": (f"<think>a</think>b<think>{WHOLE}</think>c", [], 0, [("s", '{"q": 1}')]),
    "before a second end of thinking": (f"<think>a</think>{WHOLE}</think>c", [], 0, [("s", '{"q": 1}')]),
    "thinking tag in a string": ("<think>a</think>" + with_arguments('{"q": "</think>"}'),
                                 [ToolCall("s", {"q": "</think>"})], 0, [("s", '{"q": "</think>"}')]),
}
contested = pytest.mark.parametrize("case", CONTESTED)


@contested
def test_contested_calls(case):
    text, calls, errors, _ = CONTESTED[case]
    parsed = parse_tool_calls(text)
    assert parsed.tool_calls == calls and len(parsed.errors) == errors


@pytest.fixture(scope="module")
def hermes():
    """vLLM's reading of a text: the reasoning parser where there is a thinking tag, then the hermes parser."""
    pytest.importorskip("vllm", reason="vllm is not installed: its side of the table is checked where it is")
    from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser
    from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

    class Vocabulary:  # all that the parsers ask of a tokenizer
        def get_vocab(self):
            return {"<think>": 0, "</think>": 1}

    def read(text: str):
        if "think>" in text:
            text = DeepSeekR1ReasoningParser(Vocabulary()).extract_reasoning(text, None)[1] or ""
        return Hermes2ProToolParser(Vocabulary()).extract_tool_calls(text, None)
    return read


@contested
def test_contested_calls_in_vllm(hermes, case):
    text, _, _, expected = CONTESTED[case]
    read = hermes(text)
    assert read.tools_called == (expected is not None)
    assert [(call.function.name, call.function.arguments) for call in read.tool_calls] == (expected or [])


@pytest.mark.parametrize("text,thinking,content", [
    ("a", "", "a"),
    ("<think> a </think> b", "a", "b"),
    ("a</think>b", "a", "b"),  # the prompt opened the thinking
    ("<think>a", "a", ""),
    ("<think>a<think>b</think>c</think>d", "a<think>b</think>c", "d"),
    ("<think>a</think>b<think>c</think>d", "a\nc", "b\nd"),
    (f"a {WHOLE} b {WHOLE}{BROKEN} c", "", "a\nb\nc"),
    (f"<tool_{WHOLE}call>{{}}</tool_call>", "", "<tool_\ncall>{}</tool_call>"),  # no tag out of two halves
    ("</think>", "", ""), ("<think>", "", ""), ("", "", "")])
def test_thinking_and_content(text, thinking, content):
    parsed = parse_tool_calls(text)
    assert (parsed.thinking, parsed.content) == (thinking, content)
    assert split_thinking(text)[0] == thinking


@pytest.mark.parametrize("text,answer", [
    ("<think>a</think><answer> x </answer>", "x"), ("<answer>a</answer><answer>b</answer>", "b"),
    ("<answer>I say <answer>b</answer></answer>", "b"), ("<answer></answer>", ""), ("<answer>open", "open"), ("x", None),
    ("<think><answer>a</answer></think>", None), (f"<answer>a</answer>{WHOLE}", None), (f"<answer>a</answer>{BROKEN}", "a"),
    (f"<answer>{WHOLE}</answer>", None), ("<think>a</think>b<think><answer>a</answer></think>", None)])
def test_answer(text, answer):
    assert extract_answer(parse_tool_calls(text)) == answer


@pytest.mark.parametrize("unit", [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "<think></think>", "<answer>", "<answer></answer>", "<code>",
    '<tool_call>"', '<tool_call>["\\"', '<tool_call>{"a":"', '</tool_call>","', '<tool_call>{"name":"s"}<code>', "<tool_call>\n",
    "<", " ", "[", '{"a":', '"', "\\", "1", "\ud800", WHOLE, BROKEN])
@pytest.mark.parametrize("start", ["", '<tool_call>{"name": "s", "arguments": {"a": "'])
def test_time_grows_with_the_length_only(unit, start):
    """Two megabytes of any tag must not hang a worker: quadratic time would be minutes."""
    text = start + unit * (2_000_000 // len(unit))
    started = time.process_time()
    extract_answer(parse_tool_calls(text))
    assert time.process_time() - started < 5


# --- properties, on generated texts; the same ones in each run ---

generated = settings(max_examples=150, derandomize=True, deadline=None, database=None)
PARTS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>", "<code>", "</code>", '{"name": "s"', '"',
         '"arguments":', "{", "}", "[", "]", ",", "\\", "\\ud800", "NaN", "9" * 5000, "[" * 2000, "\0", "\ud800", "\n",
         WHOLE, BROKEN)
any_text = st.text(st.characters(exclude_categories=()), max_size=60)  # lone surrogates as well
tagged = st.lists(st.sampled_from(PARTS) | any_text, max_size=16).map("".join)
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=40)  # no tags
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) |
                      st.sampled_from(PARTS[:8]), lambda inner: st.lists(inner, max_size=3) |
                      st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8)
calls = st.builds(ToolCall, st.text(min_size=1, max_size=12).filter(str.strip),
                  st.dictionaries(st.text(max_size=8), values, max_size=4))


def rendered(call: ToolCall, ascii_only: bool = False) -> str:
    body = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=ascii_only)
    return f"<tool_call>\n{body}\n</tool_call>"


@generated
@given(tagged)
def test_any_text_is_read(text):
    parsed = parse_tool_calls(text)
    extract_answer(parsed)
    assert all(isinstance(call.name, str) and call.name.strip() for call in parsed.tool_calls)
    assert all(isinstance(call.arguments, dict) for call in parsed.tool_calls)
    assert len(parsed.tool_calls) + len(parsed.errors) <= text.count("<tool_call>")
    json.dumps([vars(call) for call in parsed.tool_calls], ensure_ascii=False).encode()  # a trajectory can be written


@generated
@given(tagged)
def test_content_is_read_as_itself(text):
    """Nothing is left in the content that a second reading would take for thinking or a call."""
    content = parse_tool_calls(text).content
    assert not any(tag in content for tag in ("<think>", "</think>", "<tool_call>"))
    assert parse_tool_calls(content) == ParsedMessage(content=content)


@generated
@given(plain, plain, st.lists(calls, max_size=4), st.booleans())
def test_what_is_rendered_is_read_back(thinking, content, written, ascii_only):
    """Whatever the arguments hold, tags included: JSON strings are whole, and the thinking came before."""
    text = "\n".join([f"<think>\n{thinking}\n</think>\n\n{content}", *(rendered(call, ascii_only) for call in written)])
    assert parse_tool_calls(text) == ParsedMessage(thinking.strip(), content.strip(), written)


@generated
@given(st.lists(st.tuples(st.sampled_from(["text", "thinking", "good", "broken"]), plain, calls), max_size=8))
def test_each_call_outside_the_thinking_counts_once(parts):
    """Each opened call is a tool call or an error; those in the thinking are neither."""
    written = {"text": lambda words, call: words, "thinking": lambda words, call: f"<think>{words}{WHOLE}</think>",
               "good": lambda words, call: rendered(call), "broken": lambda words, call: block("not JSON " + words)}
    parsed = parse_tool_calls("".join(written[kind](words, call) for kind, words, call in parts))
    kinds = [kind for kind, _, _ in parts]
    assert parsed.tool_calls == [call for kind, _, call in parts if kind == "good"]
    assert len(parsed.errors) == kinds.count("broken")


def test_benchmark_of_the_parser(tmp_path):
    command = [sys.executable, "benchmarks/parser.py", "--texts", "300", "--out", str(tmp_path / "parser.json")]
    assert subprocess.run(command, cwd=repo_root(), capture_output=True).returncode == 0
    written = json.loads((tmp_path / "parser.json").read_text())
    assert written["exceptions"] == 0 and written["calls"] and written["errors"] and written["median_ms"] < 1


# --- Qwen3's own template, and the renderer ---

@pytest.fixture(scope="session")
def qwen3_template():
    from importlib.util import find_spec

    if find_spec("trl") is None:
        pytest.skip("trl is not installed, which ships Qwen3's chat template")
    return (Path(find_spec("trl").origin).parent / "chat_templates/qwen3.jinja").read_text()


def test_qwen3_template_is_read_back(tokenizer, qwen3_template):
    """Calls side by side, and a string as arguments, as the template prints them."""
    message = assistant_message("Why.", "Two calls.", ToolCall("s", {"q": "</tool_call>"}))
    message["tool_calls"] += [{"type": "function", "function": {"name": "s", "arguments": '{"q": 1}'}}]
    messages = [{"role": "user", "content": "x"}, message]
    text = tokenizer.apply_chat_template(messages, chat_template=qwen3_template, tokenize=False)
    said = text.split("<|im_start|>assistant\n")[1].removesuffix("<|im_end|>\n")
    assert parse_tool_calls(said) == ParsedMessage("Why.", "Two calls.", [ToolCall("s", {"q": "</tool_call>"}), READ])


@pytest.mark.parametrize("text,content", [
    ("<think>a</think>b", "b"), ("a</think>b", "b"), ("<think>a<think>b</think>c</think>d", "d"), ("a", "a")])
def test_content_is_what_qwen3_template_keeps(tokenizer, qwen3_template, text, content):
    """Given a raw message, the template splits off the thinking by itself."""
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": text}]
    shown = tokenizer.apply_chat_template(messages, chat_template=qwen3_template, tokenize=False)
    assert shown.split("</think>\n\n")[-1] == content + "<|im_end|>\n"
    assert parse_tool_calls(text).content == content


def test_pieces_join_to_what_the_template_renders(tokenizer):
    """Piece by piece must equal rendering the conversation as a whole."""
    renderer = Renderer(tokenizer, tool_schemas())
    message = assistant_message("Find the home.", call=ToolCall("search", {"query": ["Pulmak"]}))
    ids = renderer.prompt("What is the home of Pulmak?")
    ids += [*renderer.encode(renderer.assistant_text(message)), renderer.end_id] + renderer.tool_results(["No results found."])
    whole = tokenizer.apply_chat_template(
        [*first_messages("What is the home of Pulmak?"), message, {"role": "tool", "content": "No results found."}],
        tools=tool_schemas(), tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(ids) == whole and tokenizer(whole, add_special_tokens=False).input_ids == ids


@pytest.mark.parametrize("change", ["", " | trim", ".strip('\\n')", ".strip(' ')", " | tojson", ".upper()"])
def test_a_template_may_change_contents(tokenizer, change):
    """What it writes around them is asked for once, but only where it writes contents as they are."""
    changed = CHAT_TEMPLATE.replace("~ message.content ~", f"~ (message.content{change}) ~")
    assert changed.count(f"content{change}") >= 2
    core = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, chat_template=changed)
    renderer, contents = Renderer(core, tool_schemas()), ["\n Pulmak has home Oslo. \n", "\nmore "]
    assert renderer.prompt(contents[0]) == renderer.conversation(first_messages(contents[0]))
    call = assistant_message("x", call=ToolCall("search", {"query": ["x"]}))
    whole = [*first_messages("x"), call, *({"role": "tool", "content": content} for content in contents)]
    assert renderer.conversation(whole)[-len(found := renderer.tool_results(contents)):] == found
    assert (None in renderer._frames.values()) == bool(change)


def test_a_template_without_tools_is_refused(tokenizer):
    for written, lost in {"if tools": "if false", "call.function.name": "'x'"}.items():
        assert written in CHAT_TEMPLATE
        toolless = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer,
                                       chat_template=CHAT_TEMPLATE.replace(written, lost))
        with pytest.raises(KitError, match="template writes no tools or no calls"):
            Renderer(toolless, tool_schemas()).require_tools()
    Renderer(tokenizer, tool_schemas()).require_tools()


def test_every_schema_is_rendered(tokenizer):
    text = Renderer(tokenizer, tool_schemas())._text([{"role": "user", "content": "x"}])
    assert "search(query)" in text and "fetch_url(url, purpose)" in text
