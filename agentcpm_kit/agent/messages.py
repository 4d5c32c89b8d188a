"""Messages in Qwen3/Hermes form: the prompt, reading tool calls, reading the answer.

How contested input is read. Sources: vLLM 0.32 (its hermes parser, after the deepseek_r1 reasoning parser where there is
thinking), Qwen3's chat template, and the reference's two parsers (one for training, one for evaluation). Where they
agree, so do we; where not, each line says which way we go. `tests/test_messages.py` holds a table with vLLM's outcomes.

Calls
- several calls: all are read, in order (vLLM, template, train; eval runs the first only)
- a broken call among good ones: one error, and the good ones stand, as in train; vLLM drops them all
- JSON cut short, also by a single brace: an error (vLLM, train). Eval adds the brace; we guess nothing, so that a policy
  has a reason to close what it opens. Single quotes and trailing commas are errors too (vLLM, eval; train reads JSON5),
  and so are bare line breaks in strings and Markdown fences (eval reads fences)
- text after the JSON object, such as an extra brace or a second object: ignored, as by train's brace matching, because
  the first object is whole and unambiguous; vLLM and eval refuse the call
- `<code>...</code>` after the object: the argument `code`, unless the object has one; the reference's form for
  PythonInterpreter, unknown to vLLM. The code cannot contain the message's own tags
- no closing tag: the call ends before the next tag, or with the text; vLLM reads it at the end of the text only
- tags within a JSON string: part of the string, as the template prints them; vLLM cuts there and refuses the call
- `arguments` as a JSON string: decoded once, because the template prints such a string as it is; vLLM passes it on.
  Missing or empty `arguments` are {} (PythonInterpreter has none), refused by vLLM; a list or null is an error, which
  vLLM passes on
- no name, an empty one, or one that is not text: an error (train); vLLM passes an empty one on
- duplicate keys: the last counts. NaN and Infinity are read; an integer of more than 4,300 digits is an error. All this
  as Python's json does it, and so vLLM
- arguments deeper than MAX_DEPTH, or with a lone surrogate: an error, where vLLM reads them. Our assumption: what cannot
  be sent to a tool or stored is no call

Thinking and content
- calls in the thinking: ignored (vLLM, template, train). vLLM's qwen3 reasoning parser would end the thinking there
- thinking that the prompt opened: from the start to `</think>`. A further `</think>` without an opening makes all before
  it thinking, calls included (template, train; vLLM keeps to the first)
- thinking without its closing tag: to the end of the text (vLLM). Text without any thinking tag is content: only the
  caller knows whether the prompt opened the thinking
- a later `<think>...</think>`: thinking too, but a call before it stands, as in vLLM. Template and train would forget
  that call, and keep what the model imagined after it
- text before, between and after calls: content, in lines of its own; vLLM keeps what stands before the first call

Answers
- the last `<answer>` of the content, up to its closing tag or the end (eval)
- in the thinking: none, it is a draft (train counts it; eval too, if there is no other)
- beside calls: none, because the results are not read yet (eval; train ends there). Beside broken calls alone: it counts
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from ..errors import KitError
from .tokens import encode

SYSTEM_PROMPT = "You are a research agent. Use the tools, then answer in this form:\n<answer></answer>"
MAX_DEPTH = 100  # our assumption: no tool takes deeper arguments, and dataclasses.asdict gives up below 500 levels

# None of these patterns looks twice at the same text, so that a message of a million tags takes no longer than its length.
START = re.compile(r"</?think>|<tool_call>\s*")
TAG = re.compile(r"</?think>|</?tool_call>")
WHOLE_STRINGS = re.compile(r'(?:[^"<\\]++|"(?:[^"\\]++|\\.)*+"|<(?!/?think>|/?tool_call>))*+', re.DOTALL)
CODE = re.compile(r"<code>(.*?)(?:</code>|\Z)", re.DOTALL)
DECODER = json.JSONDecoder()
CONTROL = re.compile(r"<\|(\w+)\|>")
THINKING, CALL, CONTENT = "thinking", "call", "content"


@dataclass
class ToolCall:
    name: str
    arguments: dict


@dataclass
class ParsedMessage:
    thinking: str = ""
    content: str = ""  # what is neither thinking nor a call
    tool_calls: list[ToolCall] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def parse_tool_calls(text: str) -> ParsedMessage:
    """Split an assistant's text into thinking, content and tool calls. Never raises, whatever the text.

    Every call that opens in the content gives either a tool call or an error.
    """
    spans = _spans(text)
    parsed = ParsedMessage(_join(text, spans, THINKING), _join(text, spans, CONTENT))
    for kind, start, end in spans:
        if kind == CALL:
            try:
                parsed.tool_calls.append(_read_call(text[start:end]))
            except (ValueError, RecursionError) as error:  # RecursionError: deeply nested JSON
                parsed.errors.append(f"tool call: {error}")
    return parsed


def split_thinking(text: str) -> tuple[str, str]:
    """Thinking, and all the text outside it, calls included."""
    spans = _spans(text)
    return _join(text, spans, THINKING), "".join(text[start:end] for kind, start, end in spans if kind != THINKING)


def _spans(text: str) -> list[tuple[str, int, int]]:
    """The message's parts in order, as (kind, start, end); `</think>` is in none of them."""
    spans, position = [], 0
    while tag := START.search(text, position):
        if tag.start() > position:
            spans.append((CONTENT, position, tag.start()))
        if tag[0] == "</think>":  # without an opening: all so far was thinking
            spans, position = [(THINKING, 0, tag.start())], tag.end()
        elif tag[0] == "<think>":
            end = text.find("</think>", tag.end())
            spans.append((THINKING, tag.start(), end if end >= 0 else len(text)))
            position = end + len("</think>") if end >= 0 else len(text)
        else:
            position = _call_end(text, tag.end())
            spans.append((CALL, tag.start(), position))
    return [*spans, (CONTENT, position, len(text))]


def _call_end(text: str, start: int) -> int:
    """End of the call whose JSON starts at `start`: after its closing tag, before any other tag, or the text's end."""
    tag = TAG.search(text, start)
    if tag and tag.start() > start:
        end = WHOLE_STRINGS.match(text, start).end()
        if end > tag.start():  # the tag may be part of a string, as in a query for "</tool_call>"; only JSON can tell
            with suppress(ValueError, RecursionError):
                tag = TAG.search(text, start + DECODER.raw_decode(text[start:end])[1])
    if not tag:
        return len(text)
    return tag.end() if tag[0] == "</tool_call>" else tag.start()


def _join(text: str, spans: list[tuple[str, int, int]], wanted: str) -> str:
    """Text of one kind; line breaks between the pieces, lest two halves make a tag."""
    pieces = (text[start:end].strip().removeprefix("<think>").strip() for kind, start, end in spans if kind == wanted)
    return "\n".join(piece for piece in pieces if piece)


def _read_call(block: str) -> ToolCall:
    body = block.removeprefix("<tool_call>").removesuffix("</tool_call>").strip()
    if not body.startswith("{"):
        raise ValueError("no JSON object")
    call, end = DECODER.raw_decode(body)
    name, arguments = call.get("name"), call.get("arguments", {})
    if not isinstance(name, str) or not name.strip():
        raise ValueError("no name")
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    if not isinstance(arguments, dict):
        raise ValueError("arguments are not an object")
    code = CODE.search(body, end)
    if code and "code" not in arguments:
        arguments = {**arguments, "code": code[1].strip("\n")}
    _refuse_unstorable(name)
    _refuse_unstorable(arguments)
    return ToolCall(name, arguments)


def _refuse_unstorable(value, levels: int = MAX_DEPTH) -> None:
    """Raise ValueError where a trajectory with this value could not be written."""
    if isinstance(value, str):
        value.encode()  # UnicodeEncodeError on a lone surrogate
    elif isinstance(value, dict | list):
        if not levels:
            raise ValueError(f"arguments are nested deeper than {MAX_DEPTH} levels")
        for each in chain(value, value.values()) if isinstance(value, dict) else value:
            _refuse_unstorable(each, levels - 1)


def extract_answer(parsed: ParsedMessage) -> str | None:
    """Text of the last ``<answer>`` outside the thinking; None without one, or in a turn that also calls tools."""
    _, opened, rest = parsed.content.rpartition("<answer>")
    return rest.partition("</answer>")[0].strip() if opened and not parsed.tool_calls else None


def without_control_tokens(text: str) -> str:
    """A tool's text in which nothing reads as ``<|im_end|>`` or the like: a web page must not open a turn of its own."""
    return CONTROL.sub(r"<| \1 |>", text)


def first_messages(question: str) -> list[dict]:
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]


def assistant_message(thinking: str, content: str = "", call: ToolCall | None = None) -> dict:
    """A message for the chat template, as the scripted oracle writes it."""
    calls = [{"type": "function", "function": {"name": call.name, "arguments": call.arguments}}] if call else []
    return {"role": "assistant", "reasoning_content": thinking, "content": content, "tool_calls": calls}


class Renderer:
    """Turns messages into token ids piece by piece, so that what was sampled is never tokenised again."""

    def __init__(self, tokenizer, schemas: list[dict]):
        self.tokenizer, self.schemas = tokenizer, schemas
        self.end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._frames: dict[tuple[str, int], list[str] | None] = {}

    def _text(self, messages: list[dict], generation: bool = False) -> str:
        return self.tokenizer.apply_chat_template(messages, tools=self.schemas, tokenize=False,
                                                  add_generation_prompt=generation)

    def encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)

    def require_tools(self) -> None:
        """
        Raises:
            KitError: the chat template leaves out tools or calls, as those of models do that were never trained on any.
        """
        name = self.schemas[0]["function"]["name"] if self.schemas else "search"
        call = self.assistant_text(assistant_message("", call=ToolCall(name, {})))
        toolless = Renderer(self.tokenizer, [])._text(first_messages("x"))
        if name not in call or self.schemas and self._text(first_messages("x")) == toolless:
            raise KitError("the model's chat template writes no tools or no calls; give it one in Qwen3's form, such as "
                           "agentcpm_kit.micro.tokenizer.CHAT_TEMPLATE")

    def prompt(self, question: str) -> list[int]:
        """Ids of the first prompt: system prompt, tools, question, and the opening of the first turn."""
        return self.encode(self._around("question", [question], first_messages, ""))

    def conversation(self, messages: list[dict]) -> list[int]:
        """Ids of a whole conversation and the opening of the next turn."""
        return self.encode(self._text(messages, generation=True))

    def tool_results(self, results: list[str]) -> list[int]:
        """Ids from the end of the assistant's turn (``<|im_end|>`` excluded) to the next generation prompt.

        The template renders a whole conversation, so the piece is what it adds to one that ends with a call.
        """
        return self.encode(self._around("tool", results, _with_results, self._head))

    @cached_property
    def _head(self) -> str:
        return self._text(_with_results()).rstrip("\n")

    def _around(self, kind: str, contents: list[str], messages, head: str) -> str:
        """What the template makes of `messages(*contents)` after `head`; it is asked once for each number of contents.

        Templates write contents as they are, or they are asked every time.
        """
        key = kind, len(contents)
        if key not in self._frames:
            spaces = "\n ", " \n"  # a template may strip either
            frames = [self._frame(space, len(contents), messages, head) for space in spaces]
            self._frames[key] = frames[0] if frames[0] == frames[1] else None
        frame = self._frames[key]
        if frame is None:
            return self._text(messages(*contents), generation=True)[len(head):]
        return frame[0] + "".join(content + after for content, after in zip(contents, frame[1:], strict=True))

    def _frame(self, space: str, count: int, messages, head: str) -> list[str] | None:
        """The texts before, between and after contents; None where the template changes contents that are in such space."""
        marks = [f"{space}<Mark {i}>{space[::-1]}" for i in range(count)]
        text = self._text(messages(*marks), generation=True)[len(head):]
        frame = re.split("|".join(map(re.escape, marks)), text)
        return frame if len(frame) == count + 1 else None

    def assistant_text(self, message: dict) -> str:
        """The text which an engine would have generated for this message, without ``<|im_end|>``."""
        return self._text([*first_messages("x"), message])[self._start:].rstrip("\n").removesuffix("<|im_end|>")

    @cached_property
    def _start(self) -> int:
        return len(self._text(first_messages("x"), generation=True))


def _with_results(*results: str) -> list[dict]:
    """A conversation that ends with a call and its results."""
    call = assistant_message("x", call=ToolCall("search", {"query": ["x"]}))
    return [*first_messages("x"), call, *({"role": "tool", "content": result} for result in results)]
