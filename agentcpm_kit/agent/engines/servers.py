"""JSON requests to OpenAI-compatible servers: which of them, how many at once, what is tried again, and what a failure is called.

Tried again: refused and cut connections, silence for `timeout_s`, bodies that are no JSON, 408, 409, 429 and 5xx; other
statuses are not. The wait before is 0.5 s, doubling to 8 s, less up to 25% at random; a ``Retry-After`` up to 120 s is waited
out instead, and a longer one ends the tries at once. Redirects are not followed: a wrong address is told. HTTP_PROXY,
HTTPS_PROXY, ALL_PROXY and NO_PROXY are obeyed.

    kind of EngineFault   what came last
    rate_limit            429
    server_error          408, 409 and 5xx
    refused               another status, or a request that cannot be sent at all
    timeout               no whole reply in time
    connection            none, or cut off
    bad_reply             a body that is no JSON
"""

import asyncio
import base64
import json
import math
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from ...errors import KitError, one_line
from .base import EngineFault

ASIDE_S = 5.0  # how long a server that broke a connection is left alone
CONNECT_S = 10.0
KEEPALIVE_S = 2.0  # shorter than the 5 s of uvicorn (below vLLM), or a request meets a connection that is just closing
FIRST_WAIT_S, LONGEST_WAIT_S, LONGEST_RETRY_AFTER_S = 0.5, 8.0, 120.0


@dataclass(eq=False)
class Endpoint:
    url: str
    slots: asyncio.Semaphore
    aside_until: float = 0.0

    @cached_property
    def place(self) -> str:
        """Host and port."""
        return urlsplit(without_password(self.url)).netloc

    @cached_property
    def proxy(self) -> dict:
        """What aiohttp is told of the proxy; its own `trust_env` reads a file before every request.

        Raises:
            Failed: a proxy that speaks another language than HTTP.
        """
        proxies = getproxies()
        url = None if proxy_bypass(self.place) else proxies.get(urlsplit(self.url).scheme) or proxies.get("all")
        if url is None:
            return {}
        url = url if "://" in url else f"http://{url}"
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise Failed(f"{self.place}: a proxy of the kind {parts.scheme} is not supported", "refused", again=False)
        from aiohttp import BasicAuth  # apart from the URL, which stands in errors

        auth = {"proxy_auth": BasicAuth(unquote(parts.username), unquote(parts.password or ""))} if parts.username else {}
        return {"proxy": without_password(url), **auth}

    def put_aside(self) -> None:
        self.aside_until = time.monotonic() + ASIDE_S


class Failed(Exception):
    """A try that failed. `wait_s`: what the server asks to wait before the next one; None: it names no time."""

    def __init__(self, words: str, kind: str, again: bool = True, wait_s: float | None = None):
        super().__init__(words)
        self.kind, self.again, self.wait_s = kind, again, wait_s


class Servers:
    """One or more servers of the same model, at most `concurrency` requests at once to each.

    A conversation stays with its server, which has its beginning cached; new ones go where the fewest live. Every try, the
    first and the repeated ones, goes to the server that is best then. All of it belongs to one event loop.

    Raises:
        KitError: a URL that is none.
    """

    def __init__(self, urls: Sequence[str], route: str, key: str, concurrency: int, max_retries: int, timeout_s: float):
        self.endpoints = [Endpoint(base_url(url), asyncio.Semaphore(concurrency)) for url in urls]
        self.route, self.key, self.tries, self.timeout_s = route, key.strip(), max_retries + 1, timeout_s
        self.secrets = [self.key, *(secret for url in urls for secret in passwords(url))]
        self.homes: dict[str, Endpoint] = {}
        self.session = None

    async def post(self, conversation: str, body: dict):
        """What a server answers, read from JSON.

        Raises:
            EngineFault: what the last try met, without the key. `again` is false where more tries are in vain.
        """
        data, tries = json.dumps(body).encode(), 0
        while True:
            try:
                return await self._try(conversation, data)
            except Failed as failed:
                tries += 1
                if not failed.again or tries == self.tries:
                    words = f"{failed}, tried {tries} times" if tries > 1 else str(failed)
                    raise EngineFault(self.hide(words), failed.kind, failed.again) from failed
                await asyncio.sleep(backoff(tries) if failed.wait_s is None else failed.wait_s)

    def hide(self, words: str) -> str:
        """The words without the key, and without a URL's password."""
        for secret in filter(None, self.secrets):
            words = words.replace(secret, "***")
        return words

    async def close(self) -> None:
        if self.session:
            await self.session.close()

    async def _try(self, conversation: str, data: bytes):
        endpoint = self._home(conversation)
        async with endpoint.slots:
            status, headers, content = await self._send(conversation, endpoint, data)
        if not 200 <= status < 300:
            if status in (502, 503, 504):  # the server behind a gateway is down
                endpoint.put_aside()
            raise _refusal(endpoint.place, status, headers, self.hide(content.decode("utf-8", "replace")))
        try:
            return json.loads(content)
        except (ValueError, RecursionError):  # a cut body without a length passes HTTP's own checks
            raise Failed(f"{endpoint.place}: the reply is not JSON", "bad_reply") from None

    async def _send(self, conversation: str, endpoint: Endpoint, data: bytes):
        """Status, headers and body."""
        import aiohttp

        try:
            async with self._session().post(f"{endpoint.url}/{self.route}", data=data, headers=self._headers(endpoint),
                                            allow_redirects=False, **endpoint.proxy) as reply:
                return reply.status, reply.headers, await reply.read()
        except aiohttp.ClientHttpProxyError as error:
            raise Failed(f"{endpoint.place}: the proxy refuses: HTTP {error.status}", "connection") from None
        except (aiohttp.InvalidURL, ValueError) as error:  # of the address or the key; the words would show them
            raise Failed(f"{endpoint.place}: the request cannot be sent ({type(error).__name__}): is the address right, and the "
                         "key one line?", "refused", again=False) from None
        except aiohttp.ClientError as error:
            endpoint.put_aside()
            raise Failed(f"{endpoint.place}: no reply: {one_line(error) or type(error).__name__}", "connection") from error
        except TimeoutError:  # one slow turn says little about the server: only its conversation moves
            self._settle(conversation, other_than=endpoint)
            raise Failed(f"{endpoint.place}: no reply within {self.timeout_s:g} s", "timeout") from None

    def _session(self):
        import aiohttp

        if self.session is None:  # belongs to the loop that it is made in
            timeout = aiohttp.ClientTimeout(total=self.timeout_s, sock_connect=CONNECT_S)
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
            self.session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self.session

    def _headers(self, endpoint: Endpoint) -> dict[str, str]:
        """Of user and password in a URL, aiohttp makes the header that the key would have."""
        own = {} if "@" in urlsplit(endpoint.url).netloc else {"Authorization": f"Bearer {self.key or 'none'}"}
        return {"Content-Type": "application/json", **own}

    def _home(self, conversation: str) -> Endpoint:
        home = self.homes.get(conversation)
        return home if home and home.aside_until <= time.monotonic() else self._settle(conversation)

    def _settle(self, conversation: str, other_than: Endpoint | None = None) -> Endpoint:
        """Give the conversation the least busy healthy server; if none is, the one whose failure is oldest."""
        now, living = time.monotonic(), list(self.homes.values())
        healthy = [e for e in self.endpoints if e.aside_until <= now and e is not other_than]
        self.homes[conversation] = (min(healthy, key=living.count) if healthy
                                    else min(self.endpoints, key=lambda e: e.aside_until))
        return self.homes[conversation]


def base_url(url: str) -> str:
    """With the usual path, if it has none.

    Raises:
        KitError: it is no address of a server.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query + parts.fragment
    except ValueError:
        known = False
    if not known or "@" in parts.path:
        words = url.rpartition("@")[2].partition("?")[0]  # what stands before and after may be secret
        raise KitError(f"{words!r} is no address of a server, such as http://localhost:8000/v1")
    url = url.rstrip("/")
    return url if "/" in url.partition("://")[2] else f"{url}/v1"


def without_password(url: str) -> str:
    """For files and messages: without user, password, query and fragment."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def passwords(url: str) -> list[str]:
    """A URL's password as it stands there, decoded, and as it is sent: servers repeat them in their errors."""
    parts = urlsplit(url)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return [parts.password, password, base64.b64encode(f"{user}:{password}".encode()).decode()] if password else []


def backoff(tries: int) -> float:
    """Seconds to wait after so many tries."""
    return min(FIRST_WAIT_S * 2 ** (tries - 1), LONGEST_WAIT_S) * (1 - 0.25 * random.random())


def _refusal(place: str, status: int, headers, content: str) -> Failed:
    """What an HTTP error is, in the server's own words. `content` is its body, without the key."""
    kind = "rate_limit" if status == 429 else "server_error" if status >= 500 or status in (408, 409) else "refused"
    after, wait_s = headers.get("retry-after"), retry_after(headers)
    words = f"{place}: HTTP {status}: {said(content)}" + (f" (Retry-After: {after})" if after else "")
    return Failed(words, kind, kind != "refused" and (wait_s or 0) <= LONGEST_RETRY_AFTER_S, wait_s)


def retry_after(headers) -> float | None:
    """Seconds that a server asks to wait: a number, or a date; None where it says nothing that can be read, or no time at all."""
    readers = (("retry-after-ms", lambda said: float(said) / 1000), ("retry-after", float),
               ("retry-after", lambda said: parsedate_to_datetime(said).timestamp() - time.time()))
    for name, read in readers:
        with suppress(KeyError, ValueError, OverflowError):
            if (seconds := read(headers[name])) > 0 and math.isfinite(seconds):
                return seconds
    return None


def said(content: str) -> str:
    """The message in an error's body, on one line and not too long."""
    words = content
    with suppress(ValueError, AttributeError, RecursionError):
        words = json.loads(content)
        words = words.get("error") or words
        words = words.get("message") or words.get("detail") or words
    return one_line(words)[:500]
