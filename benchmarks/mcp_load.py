"""Load on the MCP server: many clients at once, every answer compared with the one in process.

    python benchmarks/mcp_load.py --clients 200 --seconds 60

Starts `agentcpm-kit serve-tools` in a process of its own on a free loopback port (or takes `--url`), and gives each client
a session and a thread of its own; a client asks again as soon as it has its answer. Prints one line of JSON:
`wrong` answers differ from those in process, `lost` calls got none in time, `errors` are exceptions that no caller expects.
Exits with 1 if there was any of these, or if nothing was asked. Ctrl-C stops it and counts what was done.
"""

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from agentcpm_kit.environment import describe
from agentcpm_kit.files import write_json
from agentcpm_kit.world.atlas import WorldSpec
from agentcpm_kit.world.mcp import RemoteTools
from agentcpm_kit.world.tools import ToolFault, Tools

SERVE = [sys.executable, "-c", "from agentcpm_kit.cli import main; main()", "serve-tools", "--http", "0"]
MIX = {"search": 60, "fetch_url": 38, "PythonInterpreter": 2}  # percent of the calls; the last starts a process each time
KINDS = 100  # different calls of each tool
START_S, TIMEOUT_S = 60, 30


def known_calls(world: str) -> dict[str, list[tuple[dict, str]]]:
    """tool -> pairs of arguments and right answer."""
    opened, rng = WorldSpec.parse(world).open(), random.Random(0)
    tools = Tools(opened, names=tuple(MIX))
    urls = list(opened.urls)
    pages = [opened.page(rng.choice(urls)) for _ in range(KINDS)]
    queries = [" ".join(rng.sample(page.text.split(), 3)) for page in pages]
    arguments = {"search": [{"query": [query, page.title]} for query, page in zip(queries, pages, strict=True)],
                 "fetch_url": [{"url": [page.url, rng.choice(urls)], "purpose": "read"} for page in pages],
                 "PythonInterpreter": [{"code": f"print(sum(range({n})))"} for n in range(10)]}
    return {name: [(each, tools.call(name, each)) for each in calls] for name, calls in arguments.items()}


class Load:
    """What the clients do and count."""

    def __init__(self, url: str, calls: dict[str, list[tuple[dict, str]]]):
        self.url, self.calls = url, calls
        self.counts, self.latencies = Counter(), []
        self.go, self.stop, self.lock = threading.Event(), threading.Event(), threading.Lock()

    def run(self, clients: int, seconds: float) -> dict:
        """Connect all, let them work for so long, wait for the answers still due, and sum up."""
        threads = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(clients)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 2 * TIMEOUT_S
        while self.counts["connected"] + self.counts["errors"] < clients and time.monotonic() < deadline:
            self.stop.wait(0.05)
        started = time.monotonic()
        self.go.set()
        self.stop.wait(seconds)
        self.stop.set()
        deadline = time.monotonic() + 2 * TIMEOUT_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.counts["lost"] += sum(thread.is_alive() for thread in threads)
        return self._summary(clients, time.monotonic() - started)

    def _work(self, number: int) -> None:
        rng = random.Random(number)
        try:
            with RemoteTools(self.url, timeout_s=TIMEOUT_S, episode=str(number)) as tools:
                self._count("connected")
                self.go.wait()
                while not self.stop.is_set():
                    name = rng.choices(list(MIX), list(MIX.values()))[0]
                    self._ask(tools, name, *rng.choice(self.calls[name]))
        except Exception as error:
            self._count("errors", str(error))

    def _ask(self, tools: RemoteTools, name: str, arguments: dict, right: str) -> None:
        started = time.monotonic()
        try:
            answer = tools.call(name, arguments)
        except ToolFault as fault:
            return self._count("lost", str(fault))
        with self.lock:
            self.latencies.append(time.monotonic() - started)
        self._count("calls")
        if answer != right:
            self._count("wrong", f"{name} {arguments}: {answer[:200]!r}")

    def _count(self, what: str, example: str = "") -> None:
        with self.lock:
            self.counts[what] += 1
            if example and self.counts[what] == 1:
                print(f"{what}: {example}", file=sys.stderr)

    def _summary(self, clients: int, seconds: float) -> dict:
        times, counts = sorted(self.latencies) or [0.0], self.counts
        return {"clients": clients, "connected": counts["connected"], "seconds": round(seconds, 1), "calls": counts["calls"],
                "calls_per_s": round(counts["calls"] / seconds, 1), "wrong": counts["wrong"], "lost": counts["lost"],
                "errors": counts["errors"], "p50_ms": round(1000 * times[len(times) // 2], 1),
                "p99_ms": round(1000 * times[min(len(times) - 1, len(times) * 99 // 100)], 1)}


def start_server(world: str) -> tuple[subprocess.Popen, str]:
    """The server's process, and the URL that it tells on stderr."""
    server = subprocess.Popen([*SERVE, "--world", world], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
                              start_new_session=True)  # Ctrl-C is for us: the server stops when the answers are in
    watchdog = threading.Timer(START_S, server.kill)
    watchdog.start()
    said = server.stderr.readline()
    watchdog.cancel()
    found = re.search(r"http://\S+?/mcp", said)
    if not found:
        server.kill()
        sys.exit(f"error: the server did not start: {said.strip() or 'no word in time'}")
    return server, found[0]


def stop_server(server: subprocess.Popen) -> int:
    server.terminate()
    try:
        server.communicate(timeout=START_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.communicate()
    return server.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200, help="sessions at once")
    parser.add_argument("--seconds", type=float, default=60, help="how long they keep asking")
    parser.add_argument("--world", default="split=test,number=0,entities=300", help="as in serve-tools --world")
    parser.add_argument("--out", type=Path, help="file for the summary, with command and machine")
    parser.add_argument("--url", help="a running server of the same world, instead of one of our own")
    options = parser.parse_args()
    calls = known_calls(options.world)
    server, url = (None, options.url) if options.url else start_server(options.world)
    load = Load(url, calls)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: load.stop.set())
    try:
        summary = load.run(options.clients, options.seconds)
    finally:
        code = stop_server(server) if server else 0
    print(json.dumps(summary | {"server_exit": code}))
    if options.out:
        write_json(options.out, summary | {"server_exit": code, "command": " ".join(sys.argv), "env": describe(0)})
    bad = summary["wrong"] + summary["lost"] + summary["errors"]
    return 1 if bad or code or not summary["calls"] else 0


if __name__ == "__main__":
    sys.exit(main())
