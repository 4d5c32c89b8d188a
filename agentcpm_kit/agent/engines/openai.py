"""The engine `openai`: one or more OpenAI-compatible servers. vLLM's server on many machines is how the kit scales out.

The API `completions` (vLLM, SGLang, llama.cpp) sends token ids. vLLM also returns the ids that it sampled, and their
log-probs, which RL needs; they are those of the sampling distribution at temperature 1 and top-p 1, or where the server runs
with ``--logprobs-mode processed_logprobs``. The API `chat` works anywhere, but there the server's own template builds the
prompt; replies are written back in Qwen3/Hermes form, so that the loop reads every model alike. For calls in a chat, vLLM
needs ``--enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser qwen3``.

Each turn has its seed. On a CPU, vLLM 0.32 dies of seeds as soon as it splits a prompt ("CPU Generator does not use offset"):
start it with ``--no-enable-chunked-prefill``, or leave the seeds out with ``extra_body={"seed": None}``.

Requests go over aiohttp; retries and backoff are those of the `openai` package: connection errors, cut or unreadable bodies,
timeouts, 408, 409, 429 and 5xx are tried again after 0.5 s, doubling to 8 s, less up to 25% at random. A ``Retry-After`` up
to 120 s is waited out instead; a longer one ends the tries at once (`_calculate_retry_timeout` and `_should_retry` in openai
3.54), and the fault names it. Other 4xx are not tried again.
"""

import asyncio
import json
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextvars import ContextVar
from dataclasses import dataclass

from ...errors import KitError, one_line, unknown
from ..messages import Renderer, assistant_message
from .base import Closing, Ended, EngineFault, Sample, Turn, seed_number

ROUTES = {"completions": "completions", "chat": "chat/completions"}
FINISHED = {"stop": True, "tool_calls": True, "length": False}
NOT_JSON = "the reply is not JSON"
POLL_S = 0.05
ASIDE_S = 5.0  # how long a server that broke a connection is left alone
CONNECT_S = 10.0
KEEPALIVE_S = 2.0  # shorter than the 5 s of uvicorn (below vLLM), or a request meets a connection that is just closing
# Whatever a request leaves out, vLLM takes from the model's generation_config.json and llama.cpp from defaults of its own
# (top-k 40): with these the distribution is the model's. The tags <think> and <tool_call> may be special tokens.
FIELDS = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "skip_special_tokens": False, "return_token_ids": True}
CONVERSATION: ContextVar[str] = ContextVar("conversation")


@dataclass(eq=False)
class Endpoint:
    url: str
    slots: asyncio.Semaphore
    aside_until: float = 0.0


def require_servers(urls: Sequence[str]) -> None:
    """
    Raises:
        KitError: one of them does not answer anything at all.
    """
    import httpx2

    for url in urls:
        try:
            httpx2.get(f"{_base(url)}/models", timeout=CONNECT_S)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise KitError(f"no server answers at {url} ({error}); start it, then run the same command again") from error


class Spread:
    """The transport below the openai client: every try, the first and the repeated ones, goes to the server that is best now.

    A conversation stays with its server, which has its beginning cached. New ones go where the fewest live.
    """

    def __init__(self, urls: Sequence[str], route: str, concurrency: int, timeout_s: float):
        self.endpoints = [Endpoint(_base(url), asyncio.Semaphore(concurrency)) for url in urls]
        self.route, self.timeout_s = route, timeout_s
        self.homes: dict[str, Endpoint] = {}
        self.session = None

    async def aclose(self) -> None:
        if self.session:
            await self.session.close()

    async def handle_async_request(self, request):
        """Send to the conversation's server when that has a free slot; the response, with its body.

        Raises:
            httpx2.TransportError: connection refused or cut, no complete reply in `timeout_s`, or a body that is not JSON.
        """
        import httpx2

        key = CONVERSATION.get()
        endpoint = self._home(key)
        request.url = httpx2.URL(f"{endpoint.url}/{self.route}")
        request.headers["Host"] = request.url.netloc.decode()
        async with endpoint.slots:
            try:
                async with asyncio.timeout(self.timeout_s):
                    response = await self._send(request)
            except TimeoutError:  # one slow turn says little about the server: only its conversation moves
                self._settle(key, other_than=endpoint)
                raise httpx2.ReadTimeout("no reply", request=request) from None
            except httpx2.TransportError:
                endpoint.aside_until = time.monotonic() + ASIDE_S
                raise
        if response.status_code in (502, 503, 504):  # the server behind a gateway is down
            endpoint.aside_until = time.monotonic() + ASIDE_S
        _check_json(response, request)
        return response

    async def _send(self, request):
        """Over aiohttp, which takes a fifth of the time on a core that httpx2 takes. It obeys HTTPS_PROXY as well."""
        import aiohttp
        import httpx2

        if self.session is None:  # belongs to the loop that it is made in
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
            self.session = aiohttp.ClientSession(connector=connector, trust_env=True, auto_decompress=False,
                                                 timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S))
        try:
            async with self.session.request(request.method, str(request.url), data=request.content,
                                            headers=list(request.headers.items())) as reply:
                content, headers = await reply.read(), list(reply.headers.items())
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
            raise httpx2.ConnectError(str(error), request=request) from error
        except aiohttp.ClientError as error:
            raise httpx2.RemoteProtocolError(str(error) or type(error).__name__, request=request) from error
        return httpx2.Response(reply.status, headers=headers, content=content, request=request)

    def _home(self, key: str) -> Endpoint:
        home = self.homes.get(key)
        return home if home and home.aside_until <= time.monotonic() else self._settle(key)

    def _settle(self, key: str, other_than: Endpoint | None = None) -> Endpoint:
        """Give the conversation the least busy healthy server; if none is, the one whose failure is oldest."""
        now, living = time.monotonic(), list(self.homes.values())
        healthy = [e for e in self.endpoints if e.aside_until <= now and e is not other_than]
        self.homes[key] = (min(healthy, key=living.count) if healthy
                           else min(self.endpoints, key=lambda e: e.aside_until))
        return self.homes[key]


def _base(url: str) -> str:
    """Base URL, with the usual path if it has none."""
    url = url.rstrip("/")
    return url if "/" in url.partition("://")[2] else f"{url}/v1"


def _check_json(response, request) -> None:
    """A cut body without a length passes HTTP's own checks; as an error of the connection it is tried again."""
    import httpx2

    if response.is_success:
        try:
            json.loads(response.content)
        except ValueError:
            raise httpx2.RemoteProtocolError(NOT_JSON, request=request) from None


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
        self.tries, self.timeout_s = max_retries + 1, timeout_s
        self.key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self.active: dict[str, tuple[Turn, Future]] = {}
        self._open(Spread(urls, ROUTES[api], concurrency, timeout_s), max_retries)

    def _open(self, spread: Spread, max_retries: int) -> None:
        import httpx2
        from openai import AsyncOpenAI

        self.spread = spread
        self.client = AsyncOpenAI(api_key=self.key, base_url="http://spread", max_retries=max_retries,
                                  timeout=httpx2.Timeout(None, connect=CONNECT_S),
                                  http_client=httpx2.AsyncClient(transport=spread))
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
        await self.client.close()

    # -- the engine's three calls

    def submit(self, turn: Turn) -> None:
        self.active[turn.key] = turn, asyncio.run_coroutine_threadsafe(self._post(turn), self.loop)

    def poll(self) -> Ended:
        """Wait up to `POLL_S` for a turn to end; all that have."""
        if self.active:
            wait([future for _, future in self.active.values()], POLL_S, FIRST_COMPLETED)
        ended = [key for key, (_, future) in self.active.items() if future.done()]
        return [(key, self._result(*self.active.pop(key))) for key in ended]

    def release(self, key: str) -> None:
        if key in self.active:
            self.active.pop(key)[1].cancel()
        self.loop.call_soon_threadsafe(self.spread.homes.pop, key, None)

    # -- the request

    async def _post(self, turn: Turn):
        CONVERSATION.set(turn.key)
        seed = seed_number(turn.seed, 31)  # the least that servers take
        common = {"model": self.model, "max_tokens": turn.max_new_tokens, "seed": seed, **self.sampling}
        if self.api == "chat":
            tools = {"tools": list(turn.schemas)} if turn.schemas else {}
            return await self.client.chat.completions.create(messages=list(turn.messages), **common, **tools,
                                                             extra_body=self.extra_body)
        # vLLM stops at the id and returns it; other servers know only the text, and leave it out.
        extra = {**FIELDS, "stop_token_ids": [self.end], **self.extra_body}
        return await self.client.completions.create(prompt=turn.ids, stop=["<|im_end|>"], logprobs=0, **common,
                                                    extra_body=extra)

    # -- the reply, read in the caller's thread: tokenizers are not made for two at once

    def _result(self, turn: Turn, future: Future) -> Sample | EngineFault:
        try:
            return self._read(turn, future.result())
        except Exception as error:  # a server may send anything, and one turn's reply must not end the others
            words = self._words(error)
            return EngineFault(words.replace(self.key, "***") if self.key != "none" else words, fault_kind(error))

    def _read(self, turn: Turn, reply) -> Sample:
        if not reply.choices:
            raise EngineFault(f"a reply without choices {_one_line(getattr(reply, 'error', None) or '')}".rstrip(), "bad_reply")
        choice = reply.choices[0]
        if choice.finish_reason not in FINISHED:
            raise EngineFault(f"the turn ended with finish_reason {choice.finish_reason!r}", "bad_reply")
        stopped, renderer = FINISHED[choice.finish_reason], Renderer(self.tokenizer, list(turn.schemas))
        spent = reply.usage.completion_tokens if reply.usage else turn.max_new_tokens
        if not stopped and spent < turn.max_new_tokens:  # vLLM shortens such a turn without a word
            raise EngineFault(f"the server ended the turn after {spent} of {turn.max_new_tokens} tokens: its context is "
                              "full, or its own limit lower", "bad_reply")
        if self.api == "chat":
            text = _chat_text(choice.message, stopped, renderer)
        else:
            ids, logprobs = getattr(choice, "token_ids", None), getattr(choice.logprobs, "token_logprobs", None)
            # Ids that end otherwise (Qwen3 also stops at <|endoftext|>) are no turn as the loop and RL know it.
            if ids and logprobs and len(ids) == len(logprobs) and stopped == (ids[-1] == self.end):
                return Sample(list(ids), list(logprobs), stopped)
            text = choice.text.removesuffix("<|im_end|>")
        ids = renderer.encode(text) + [self.end] * stopped
        return Sample(ids, [0.0] * len(ids), stopped, exact=False)

    def _words(self, error: Exception) -> str:
        """One line on what failed, with the server's own words where there are some."""
        import openai

        if isinstance(error, EngineFault):
            return str(error)
        if not isinstance(error, openai.APIError):
            return f"unreadable reply: {type(error).__name__}: {_one_line(error)}"
        where = error.request.url.netloc.decode()  # without a password that the URL may hold
        if isinstance(error, openai.APIStatusError):
            after = error.response.headers.get("retry-after")
            return (f"{where}: HTTP {error.status_code}: {_one_line(error.body or error.message)}"
                    + (f" (Retry-After: {after})" if after else ""))
        if isinstance(error, openai.APITimeoutError):
            return f"{where}: no reply within {self.timeout_s:g} s, tried {self.tries} times"
        return f"{where}: no reply: {_one_line(error.__cause__ or error)}, tried {self.tries} times"


def fault_kind(error: Exception) -> str:
    """What to count a failed request as, whose tries are used up: see `EngineFault`."""
    import openai

    if isinstance(error, EngineFault):
        return error.kind
    if isinstance(error, openai.APITimeoutError):
        return "timeout"
    if isinstance(error, openai.APIConnectionError):
        return "bad_reply" if str(error.__cause__) == NOT_JSON else "connection"
    if isinstance(error, openai.APIStatusError):
        return "rate_limit" if error.status_code == 429 else "server_error" if error.status_code >= 500 else "refused"
    return "bad_reply"


def _one_line(words: object) -> str:
    """The message in an error's body, without line breaks and not too long."""
    if isinstance(words, dict):
        words = words.get("message") or words.get("detail") or words
    return one_line(words)[:500]


def _chat_text(message, stopped: bool, renderer: Renderer) -> str:
    """The text that the model would have written for this message.

    Reasoning comes as `reasoning_content` (SGLang, llama.cpp) or `reasoning` (vLLM).
    """
    thinking = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None) or ""
    calls = [{"type": "function", "function": {"name": c.function.name, "arguments": _arguments(c.function.arguments)}}
             for c in message.tool_calls or []]
    text = renderer.assistant_text({**assistant_message(thinking, (message.content or "").strip("\n")), "tool_calls": calls})
    if thinking and not (stopped or message.content or calls):  # cut while it thought: the template closed what was open
        text = text.rstrip().removesuffix("</think>")
    return text


def _arguments(arguments: str | dict) -> dict | str:
    """Decoded where that gives an object; else as they are, for the loop to call a format error."""
    try:
        decoded = json.loads(arguments)
    except (TypeError, ValueError):
        return arguments
    return decoded if isinstance(decoded, dict) else arguments
