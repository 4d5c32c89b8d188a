"""The conversation of one episode, as messages and as tokens, and the resets that shorten it (as in the reference).

Tokens are appended as they were sampled. Only a reset, or dropping earlier thinking, renders messages again: that begins
a new `Context`, in which nothing of the old turns is trained on a second time.
"""

import json
from dataclasses import dataclass

from .messages import ParsedMessage, Renderer, first_messages, split_thinking
from .trajectory import Context

DROP_LAST = 15  # messages that `discard_tools` drops at most, …
KEEP_FIRST = 10  # … and those that it never drops
RESETS = ("none", "discard_tools", "discard_all")


@dataclass
class Message:
    """`text` is what the template renders, thinking and calls as the model wrote them; `chat` is OpenAI's form of it."""

    role: str
    text: str
    chat: dict

    @classmethod
    def plain(cls, role: str, text: str) -> "Message":
        return cls(role, text, {"role": role, "content": text})


class History:
    """What the agent has said and been told, and the tokens of it that it sees now."""

    def __init__(self, renderer: Renderer, question: str, keep_thinking: bool = True):
        self.renderer, self.keep_thinking = renderer, keep_thinking
        self.messages = [Message.plain(m["role"], m["content"]) for m in first_messages(question)]
        self.contexts = [Context.of_prompt(renderer.prompt(question))]

    @property
    def ids(self) -> list[int]:
        return self.contexts[-1].token_ids

    def add_turn(self, ids: list[int], logprobs: list[float], text: str, parsed: ParsedMessage) -> None:
        """A sampled turn; `text` is what its ids say."""
        self.contexts[-1].append(ids, logprobs)
        self.messages.append(Message("assistant", text, self._chat(parsed)))

    def _chat(self, parsed: ParsedMessage) -> dict:
        number = len(self.messages)
        calls = [{"id": f"call-{number}-{i}", "type": "function",
                  "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}}
                 for i, call in enumerate(parsed.tool_calls)]
        thinking = {"reasoning_content": parsed.thinking} if parsed.thinking else {}
        return {"role": "assistant", **thinking, "content": parsed.content, **({"tool_calls": calls} if calls else {})}

    def add_results(self, results: list[str], stopped: bool, room: int) -> bool:
        """Add what the tools returned and open the next turn. `stopped`: the turn before had its end token.

        False when the context would have more than `room` tokens; then the messages are added, the tokens are not.
        """
        calls = self.messages[-1].chat.get("tool_calls", [])
        for i, result in enumerate(results):
            # Without a call, as where none could be read, servers take no message of a tool.
            form = {"role": "tool", "tool_call_id": calls[i]["id"]} if i < len(calls) else {"role": "user"}
            self.messages.append(Message("tool", result, {**form, "content": result}))
        if not self.keep_thinking:
            return self._render_again(room)
        piece = ([] if stopped else [self.renderer.end_id]) + self.renderer.tool_results(results)
        if len(self.ids) + len(piece) > room:
            return False
        self.contexts[-1].append(piece)
        return True

    @property
    def said(self) -> list[str]:
        """Texts of the assistant's messages that are still in the context."""
        return [m.text for m in self.messages if m.role == "assistant"]

    def discard_tools(self) -> None:
        """Drop all tool results, and then the last min(15, max(0, n - 10)) of the n messages that are left."""
        left = [_without_calls(m) for m in self.messages if m.role != "tool"]
        drop = min(DROP_LAST, max(0, len(left) - KEEP_FIRST))
        self.messages = left[: len(left) - drop]
        self._render_again()

    def discard_all(self, summary: str) -> None:
        """Keep the system prompt and the question; one message of the assistant's, a summary, stands for the rest."""
        self.messages = [*self.messages[:2], Message.plain("assistant", summary)]
        self._render_again()

    def transcript(self) -> str:
        """All that was said and returned after the question, uncut: what a summary is made from."""
        return "\n".join(m.text for m in self.messages[2:])

    def _render_again(self, room: int | None = None) -> bool:
        """A new context from the messages; not if it has more than `room` tokens."""
        ids = self.renderer.conversation([{"role": m.role, "content": self._shown(m)} for m in self.messages])
        if room is not None and len(ids) > room:
            return False
        self.contexts.append(Context.of_prompt(ids))
        return True

    def _shown(self, message: Message) -> str:
        if message.role != "assistant" or self.keep_thinking:
            return message.text
        return split_thinking(message.text)[1].strip()

    def chat(self) -> tuple[dict, ...]:
        if self.keep_thinking:
            return tuple(m.chat for m in self.messages)
        return tuple({k: v for k, v in m.chat.items() if k != "reasoning_content"} for m in self.messages)


def _without_calls(message: Message) -> Message:
    """The calls as text: servers refuse calls whose results are gone."""
    if message.role != "assistant":
        return message
    chat = {k: v for k, v in message.chat.items() if k != "tool_calls"}
    return Message("assistant", message.text, {**chat, "content": split_thinking(message.text)[1].strip()})
