"""Messages in Qwen3/Hermes form: the prompt, reading tool calls, reading the answer.

How contested input is read, where vLLM's hermes parser, Qwen3's template and the reference agree:

- several ``<tool_call>`` blocks: all are read, in order; a broken one is an error beside the good ones
- truncated JSON: an error; nothing is guessed. A block without its closing tag is read to the end of the text
- ``arguments`` as a JSON string: decoded; anything that is not an object in the end is an error
- calls and answers inside the thinking: ignored. Thinking without its opening tag (Qwen3-Thinking's template
  opens it in the prompt) reaches to ``</think>``; thinking without its closing tag reaches to the end
- ``<code>…</code>`` after the JSON becomes the argument ``code``, as in the reference's PythonInterpreter
"""

import json
import re
from dataclasses import dataclass, field

SYSTEM_PROMPT = "You are a research agent. Use the tools, then answer in this form:\n<answer></answer>"
CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
CODE = re.compile(r"<code>(.*?)(?:</code>|\Z)", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
DECODER = json.JSONDecoder()


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
    """Split an assistant's text into thinking, content and tool calls. Never raises, whatever the text."""
    thinking, rest = split_thinking(text)
    parsed = ParsedMessage(thinking=thinking, content=CALL.sub("", rest).strip())
    for body in CALL.findall(rest):
        try:
            parsed.tool_calls.append(_read_call(body.strip()))
        except (ValueError, RecursionError) as error:  # RecursionError: deeply nested JSON
            parsed.errors.append(f"tool call: {error}")
    return parsed


def split_thinking(text: str) -> tuple[str, str]:
    """Thinking, and all the text outside it."""
    before, opened, after = text.partition("<think>")
    if opened:
        thinking, _, rest = after.partition("</think>")
        return thinking.strip(), before + rest
    thinking, closed, rest = text.partition("</think>")
    return (thinking.strip(), rest) if closed else ("", text)


def _read_call(body: str) -> ToolCall:
    call, end = DECODER.raw_decode(body)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        raise ValueError("no name")
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    if not isinstance(arguments, dict):
        raise ValueError("arguments are not an object")
    code = CODE.search(body, end)
    if code and "code" not in arguments:
        arguments = {**arguments, "code": code.group(1).strip("\n")}
    return ToolCall(call["name"], arguments)


def extract_answer(parsed: ParsedMessage) -> str | None:
    """Text of the last ``<answer>`` outside the thinking; None without one, or in a turn that also calls tools."""
    found = ANSWER.findall(parsed.content)
    return found[-1].strip() if found and not parsed.tool_calls else None


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

    def _text(self, messages: list[dict], generation: bool = False) -> str:
        return self.tokenizer.apply_chat_template(messages, tools=self.schemas, tokenize=False,
                                                  add_generation_prompt=generation)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def prompt(self, question: str) -> list[int]:
        return self.encode(self._text(first_messages(question), generation=True))

    def tool_results(self, results: list[str]) -> list[int]:
        """Ids from the end of the assistant's turn (``<|im_end|>`` excluded) to the next generation prompt.

        The template renders a whole conversation, so the piece is what it adds to one that ends with a call.
        """
        call = assistant_message("x", call=ToolCall("search", {"query": ["x"]}))
        head = [*first_messages("x"), call]
        tail = [{"role": "tool", "content": result} for result in results]
        before, after = self._text(head), self._text(head + tail, generation=True)
        return self.encode(after[len(before.rstrip("\n")):])

    def assistant_text(self, message: dict) -> str:
        """The text which an engine would have generated for this message, without ``<|im_end|>``."""
        head = first_messages("x")
        start = len(self._text(head, generation=True))
        return self._text([*head, message])[start:].rstrip("\n").removesuffix("<|im_end|>")
