"""An evaluation against a server that fails in six ways: played whole, and killed with -9 at random moments.

Both must end in the same reports, and every fault that lasts in its class, as the server itself counts them.

    python benchmarks/resume.py --out results/reference/benchmarks/resume.json
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

from harness import tasks_with_gold
from mock_server import running

from agentcpm_kit.agent.trajectory import read_trajectories
from agentcpm_kit.environment import describe
from agentcpm_kit.files import read_jsonl, write_json

FAULTS = "429=0.08,500=0.08,cut=0.05,bad_json=0.05,hang=0.01,slow=0.05"
CLASS = {"429": "rate_limit", "500": "server_error", "cut": "connection", "bad_json": "bad_reply", "hang": "timeout"}
REPORTS = ("rows.jsonl", "metrics.json", "tasks.csv", "transcripts.html")


def evaluation(folder: Path, port: int, out: str, runs: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "agentcpm_kit.cli", "eval", "--tasks", folder / "mock.jsonl", "--out", folder / out,
               "--engine", "openai", "--model", "mock", "--base-url", f"http://127.0.0.1:{port}/v1", "--k", runs,
               "--concurrency", 64, "--timeout", 2, "--retries", 2]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)


def killed(folder: Path, port: int, runs: int, after: list[float]) -> list[int]:
    """How many transcripts were whole at each kill; then the evaluation goes on to its end."""
    found = []
    for seconds in after:
        process = evaluation(folder, port, "killed", runs)
        time.sleep(seconds)
        process.kill()
        process.wait()
        path = folder / "killed/transcripts.jsonl"
        found.append(path.read_bytes().count(b"\n") if path.is_file() else 0)
    if evaluation(folder, port, "killed", runs).wait():
        raise SystemExit("the evaluation that was killed did not come to its end")
    return found


def lasting(port: int) -> dict[str, int]:
    """Class -> requests that met such a fault at every try, as the server counts them."""
    met = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/lasting"))
    return {CLASS[name]: count for name, count in sorted(met.items()) if name in CLASS}


def compared(folder: Path, expected: dict[str, int]) -> dict:
    """What must hold: a row for every planned run, nothing scored twice, faults as the server counts them, equal reports."""
    rows = read_jsonl(folder / "whole/rows.jsonl")
    scored = Counter(t.episode for t in read_trajectories(folder / "killed/transcripts.jsonl") if not t.end_reason.is_fault)
    outcomes = Counter(row["outcome"] for row in rows)
    faults = Counter(row["fault"] for row in rows if row["outcome"] == "unscored")
    return {"rows": len(rows), "outcomes": dict(outcomes), "faults": dict(sorted(faults.items())),
            "faults_of_the_server": expected, "faults_in_their_class": dict(faults) == expected,
            "nothing_lost_or_doubled": len(scored) == outcomes["correct"] + outcomes["wrong"] and set(scored.values()) == {1},
            "same_bytes": {name: (folder / "whole" / name).read_bytes() == (folder / "killed" / name).read_bytes()
                           for name in REPORTS}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--lasting", type=float, default=0.02, help="share of requests that fail at every try")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--port", type=int, default=8125)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    misbehaving = running(options.port, "--faults", FAULTS, "--lasting", str(options.lasting))
    with misbehaving, tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        tasks_with_gold(folder / "mock.jsonl", options.tasks)
        if evaluation(folder, options.port, "whole", options.runs).wait():
            raise SystemExit("the evaluation did not come to its end")
        seconds, expected = time.perf_counter() - began, lasting(options.port)
        draw = random.Random(options.seed)
        moments = [round(draw.uniform(3, max(4, seconds / 4)), 1) for _ in range(options.kills)]
        stored = killed(folder, options.port, options.runs, moments)
        found = compared(folder, expected)
    found |= {"seconds": round(seconds, 1), "killed_after_s": moments, "transcripts_at_kills": stored, "server": FAULTS,
              "lasting": options.lasting, "env": describe(0)}
    print(json.dumps({k: v for k, v in found.items() if k != "env"}, indent=1))
    if options.out:
        write_json(options.out, found)
    if not (found["faults_in_their_class"] and found["nothing_lost_or_doubled"] and all(found["same_bytes"].values())):
        raise SystemExit("the two evaluations differ, or a fault is not in its class")


if __name__ == "__main__":
    main()
