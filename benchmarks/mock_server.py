"""A chat server that answers at once, and misbehaves as it is told: for tests of the harness and for its speed.

    python benchmarks/mock_server.py --port 8123 --faults 429=0.1,500=0.1,cut=0.05

What a request meets is drawn from a hash of its own words and of how often it was asked: the same in every run, whatever the
order. The agent that it plays searches, and then answers, right with the given share.
"""

import argparse
import asyncio
import hashlib
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

FAULTS = ("429", "500", "hang", "cut", "bad_json", "slow")


class MockServer:
    """An ASGI application of one route, /v1/chat/completions (and /v1/models).

    /v1/lasting tells how many different requests met a fault that lasts, by fault: an evaluation has to come to the same counts.
    """

    def __init__(self, faults: dict[str, float], right: float = 0.6, hang_s: float = 3600.0, slow_s: float = 0.5,
                 lasting: float = 0.0):
        self.faults, self.right, self.hang_s, self.slow_s, self.lasting = faults, right, hang_s, slow_s, lasting
        self.tries, self.lasted = Counter(), {}

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while (event := await receive()).get("more_body"):
            body += event["body"]
        body += event.get("body", b"")
        if scope["path"].endswith("/models"):
            return await reply(send, 200, b'{"object": "list", "data": []}')
        if scope["path"].endswith("/lasting"):
            return await reply(send, 200, json.dumps(Counter(self.lasted.values())).encode())
        request = json.loads(body)
        key = hashlib.sha256(json.dumps([request["messages"], request.get("seed")]).encode()).hexdigest()
        self.tries[key] += 1
        await self.answer(request, key, send)

    async def answer(self, request: dict, key: str, send) -> None:
        met = self.fault(key)
        if met in ("429", "500"):
            return await reply(send, int(met), json.dumps({"error": {"message": f"mock {met}"}}).encode())
        if met in ("hang", "slow"):
            await asyncio.sleep(self.hang_s if met == "hang" else self.slow_s)
        if met == "bad_json":
            return await reply(send, 200, b'{"choices": [')
        content = json.dumps(completion(request, share(key, "right") < self.right)).encode()
        await reply(send, 200, content, cut=met == "cut")

    def fault(self, key: str) -> str:
        """What this try meets. A `lasting` share of the requests meets the same fault every time."""
        lasts = share(key, "lasting") < self.lasting
        drawn, total = share(key, "fault" if lasts else f"fault {self.tries[key]}"), 0.0
        if lasts:
            drawn *= sum(self.faults.values())
        for name, rate in self.faults.items():
            total += rate
            if drawn < total:
                if lasts:
                    self.lasted[key] = name
                return name
        return ""


def share(key: str, what: str) -> float:
    """A number in [0, 1) drawn from the two texts."""
    return int.from_bytes(hashlib.sha256(f"{key} {what}".encode()).digest()[:6]) / 2**48


async def reply(send, status: int, body: bytes, cut: bool = False) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body[: len(body) // 2] if cut else body})


def completion(request: dict, right: bool) -> dict:
    """A search, and after its result an answer: the gold one stands in the question's last brackets."""
    question = next(m["content"] for m in request["messages"] if m["role"] == "user")
    if not any(m["role"] == "tool" for m in request["messages"]):
        call = {"name": "search", "arguments": json.dumps({"query": [question]})}
        message = {"role": "assistant", "content": "", "tool_calls": [{"id": "call_0", "type": "function", "function": call}]}
        return finished(message, "tool_calls")
    gold = question.rpartition("[")[2].rstrip("]")
    return finished({"role": "assistant", "content": f"<answer>{gold if right else 'something else'}</answer>"}, "stop")


def finished(message: dict, reason: str) -> dict:
    return {"id": "mock", "object": "chat.completion", "created": 0, "model": "mock",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}}


@contextmanager
def running(port: int | str, *options: str) -> Iterator[None]:
    """The server in a process of its own, from the moment it listens. It is killed: it would wait for requests that hang."""
    server = subprocess.Popen([sys.executable, __file__, "--port", str(port), *options])
    try:
        listening = False
        while not listening:
            time.sleep(0.1)
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), timeout=1):
                listening = True
            if server.poll() is not None:
                raise RuntimeError(f"the mock server did not start at port {port}; is another one there?")
        yield
    finally:
        server.kill()
        server.wait()


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--faults", default="", help=f"share of requests by kind, such as 429=0.1,cut=0.05: {', '.join(FAULTS)}")
    parser.add_argument("--lasting", type=float, default=0.0, help="share of requests that meet the same fault at every try")
    parser.add_argument("--hang", type=float, default=3600.0, help="seconds that a hanging request takes")
    options = parser.parse_args()
    faults = {name: float(rate) for name, _, rate in (part.partition("=") for part in filter(None, options.faults.split(",")))}
    app = MockServer(faults, hang_s=options.hang, lasting=options.lasting)
    uvicorn.run(app, port=options.port, log_level="critical", access_log=False)


if __name__ == "__main__":
    main()
