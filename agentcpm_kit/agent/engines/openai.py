"""The engine `openai`: one or more OpenAI-compatible servers. vLLM's server on many machines is how the kit scales out.

The API `completions` (vLLM, SGLang, llama.cpp) sends token ids. vLLM also returns the ids that it sampled, and their
log-probs, which RL needs; they are those of the sampling distribution at temperature 1 and top-p 1, or where the server runs
with ``--logprobs-mode processed_logprobs``. The API `chat` works anywhere, but there the server's own template builds the
prompt; replies are written back in Qwen3/Hermes form, so that the loop reads every model alike. For calls in a chat, vLLM
needs ``--enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser qwen3``.

Each turn has its seed. On a CPU, vLLM 0.32 dies of seeds as soon as it splits a prompt ("CPU Generator does not use offset"):
start it with ``--no-enable-chunked-prefill``, or leave the seeds out with ``extra_body={"seed": None}``.

Which requests are tried again, and what their failures are called, is told in `servers`.
"""

import asyncio
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from ...errors import KitError, one_line, unknown
from ..messages import Renderer, assistant_message
from .base import Closing, Ended, EngineFault, Sample, Turn, seed_number
from .servers import CONNECT_S, Servers, base_url, without_password

ROUTES = {"completions": "completions", "chat": "chat/completions"}
FINISHED = {"stop": True, "tool_calls": True, "length": False}
POLL_S = 0.05
# Whatever a request leaves out, vLLM takes from the model's generation_config.json and llama.cpp from defaults of its own
# (top-k 40): with these the distribution is the model's. The tags <think> and <tool_call> may be special tokens.
FIELDS = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "skip_special_tokens": False, "return_token_ids": True}


def require_servers(urls: Sequence[str]) -> None:
    """
    Raises:
        KitError: one of them does not answer anything at all.
    """
    import httpx2

    for url in urls:
        try:
            httpx2.get(f"{base_url(url)}/models", timeout=CONNECT_S)
        except (httpx2.TransportError, httpx2.InvalidURL, ImportError, ValueError) as error:  # the last two: of a proxy
            words = f"no server answers at {without_password(url)} ({type(error).__name__}: {one_line(error)})"
            raise KitError(f"{words}; start it, then run the same command again") from None


class OpenAIEngine(Closing):
    """Turns over HTTP, at most `concurrency` at once on each server; a thread of its own waits for all of them.

    `timeout_s` is for one try of one turn, `extra_body` for more fields of the request (``{"top_k": 20}``). `api_key`: by
    default the variable OPENAI_API_KEY. Close it, or use it in a ``with``: turns under way are then dropped.

    Raises:
        KitError: no URL, or an unknown API.
    """

    def __init__(self, urls: Sequence[str], model: str, tokenizer, temperature: float = 1.0, api: str = "completions",
                 concurrency: int = 16, max_retries: int = 6, timeout_s: float = 300.0, api_key: str | None = None,
                 top_p: float = 1.0, extra_body: dict | None = None):
        if not urls or isinstance(urls, str):
            raise KitError("the engine `openai` needs a list of server URLs, as http://localhost:8000/v1")
        if api not in ROUTES:
            raise unknown("api", api, ROUTES)
        self.model, self.tokenizer, self.api, self.extra_body = model, tokenizer, api, extra_body or {}
        self.sampling = {"temperature": temperature, "top_p": top_p}
        self.batch_size = concurrency * len(urls)
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.renderer = Renderer(tokenizer, [])
        key = api_key or os.environ.get("OPENAI_API_KEY") or ""
        self.servers = Servers(urls, ROUTES[api], key, concurrency, max_retries, timeout_s)
        self.active: dict[str, tuple[Turn, Future]] = {}
        # A loop, not a pool of threads: a turn that is released is cut off, so the server stops generating it, and nothing
        # keeps Python from exiting.
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="openai-engine", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Drop what is under way and close all connections."""
        if self.loop.is_closed():
            return
        for key in list(self.active):
            self.release(key)
        asyncio.run_coroutine_threadsafe(self._shut(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _shut(self) -> None:
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        await self.servers.close()

    # -- the engine's three calls

    def submit(self, turn: Turn) -> None:
        asked = self.servers.post(turn.key, self._request(turn))
        self.active[turn.key] = turn, asyncio.run_coroutine_threadsafe(asked, self.loop)

    def poll(self) -> Ended:
        """Wait up to `POLL_S` for a turn to end; all that have."""
        if self.active:
            wait([future for _, future in self.active.values()], POLL_S, FIRST_COMPLETED)
        ended = [key for key, (_, future) in self.active.items() if future.done()]
        return [(key, self._result(*self.active.pop(key))) for key in ended]

    def release(self, key: str) -> None:
        if key not in self.active:
            self.servers.homes.pop(key, None)
            return
        self.active.pop(key)[1].cancel()
        self.loop.call_soon_threadsafe(self.servers.homes.pop, key, None)  # after the request, which may yet look for a home

    # -- the request

    def _request(self, turn: Turn) -> dict:
        seed = seed_number(turn.seed, 31)  # the least that servers take
        common = {"model": self.model, "max_tokens": turn.max_new_tokens, "seed": seed, **self.sampling}
        if self.api == "chat":
            tools = {"tools": turn.schemas} if turn.schemas else {}
            return {"messages": turn.messages, **common, **tools, **self.extra_body}
        # vLLM stops at the id and returns it; other servers know only the text, and leave it out.
        return {"prompt": turn.ids, "stop": ["<|im_end|>"], "stop_token_ids": [self.end], "logprobs": 0, **common, **FIELDS,
                **self.extra_body}

    # -- the reply, read in the caller's thread: tokenizers are not made for two at once

    def _result(self, turn: Turn, future: Future) -> Sample | EngineFault:
        try:
            return self._read(turn, future.result())
        except EngineFault as error:
            fault = error
        except Exception as error:  # a server may send anything, and one turn's reply must not end the others
            fault = EngineFault(f"unreadable reply: {type(error).__name__}: {one_line(error)[:500]}", "bad_reply")
        return EngineFault(self.servers.hide(str(fault)), fault.kind, fault.again)

    def _read(self, turn: Turn, reply: dict) -> Sample:
        if not reply.get("choices"):
            raise EngineFault(f"a reply without choices {one_line(reply.get('error') or '')[:500]}".rstrip(), "bad_reply")
        choice = reply["choices"][0]
        if choice["finish_reason"] not in FINISHED:
            raise EngineFault(f"the turn ended with finish_reason {choice['finish_reason']!r}", "bad_reply")
        stopped, renderer = FINISHED[choice["finish_reason"]], self._renderer(list(turn.schemas))
        usage = reply.get("usage") or {}
        spent = usage.get("completion_tokens", turn.max_new_tokens)
        billed = usage.get("prompt_tokens"), usage.get("completion_tokens")
        billed = billed if all(isinstance(count, int) for count in billed) else None
        if not stopped and spent < turn.max_new_tokens:  # vLLM shortens such a turn without a word
            raise EngineFault(f"the server ended the turn after {spent} of {turn.max_new_tokens} tokens: its context is "
                              "full, or its own limit lower", "bad_reply")
        if self.api == "chat":
            text = _chat_text(choice["message"], stopped, renderer)
        else:
            ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
            # Ids that end otherwise (Qwen3 also stops at <|endoftext|>) are no turn as the loop and RL know it.
            if ids and logprobs and len(ids) == len(logprobs) and stopped == (ids[-1] == self.end):
                return Sample(list(ids), list(logprobs), stopped, billed=billed)
            text = choice["text"].removesuffix("<|im_end|>")
        ids = renderer.encode(text) + [self.end] * stopped
        return Sample(ids, [0.0] * len(ids), stopped, exact=False, billed=billed)

    def _renderer(self, schemas: list[dict]) -> Renderer:
        """The last one where the tools are the same: it remembers what the template adds."""
        if self.renderer.schemas != schemas:
            self.renderer = Renderer(self.tokenizer, schemas)
        return self.renderer


def _chat_text(message: dict, stopped: bool, renderer: Renderer) -> str:
    """The text that the model would have written for this message.

    Reasoning comes as `reasoning_content` (SGLang, llama.cpp) or `reasoning` (vLLM).
    """
    thinking, content = message.get("reasoning_content") or message.get("reasoning") or "", message.get("content") or ""
    calls = [{"type": "function", "function": {**call["function"], "arguments": _arguments(call["function"]["arguments"])}}
             for call in message.get("tool_calls") or []]
    text = renderer.assistant_text({**assistant_message(thinking, content.strip("\n")), "tool_calls": calls})
    if thinking and not (stopped or content or calls):  # cut while it thought: the template closed what was open
        text = text.rstrip().removesuffix("</think>")
    return text


def _arguments(arguments: str | dict) -> dict | str:
    """Decoded where that gives an object; else as they are, for the loop to call a format error."""
    try:
        decoded = json.loads(arguments)
    except (TypeError, ValueError):
        return arguments
    return decoded if isinstance(decoded, dict) else arguments
