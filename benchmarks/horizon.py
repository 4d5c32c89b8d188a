"""Long-horizon stress: hundreds of episodes of a hundred turns, in which one tool call in ten fails.

    python benchmarks/horizon.py --out results/reference/benchmarks/horizon.json
    python benchmarks/horizon.py --part script --episodes 50     # one part, fewer episodes

`script`: the oracle plays the gold paths of many encyclopedia tasks in a row, with real calls and real evidence. `model`:
micro-merge, greedy. Left alone it answers after three calls, so its tokens are guided: it may think, must then read a page
of its choice, and can never answer; when the context is full, the history is reset (`--history`).

Each part is streamed once, nothing is kept, and the process's memory is sampled. Then the first episodes are played again
at batch sizes 1, 7 and 48 and compared with the stream, token by token and log-prob by log-prob. The tools keep their own
record of what failed, and every end reason is held against it. Exits with 1 if an episode was lost, came out of order,
ended for a wrong reason or differs. `memory_mb` holds the memory's median in each quarter of the time, `growth_mb` is the
last one less the second; the worlds are in memory before.
"""

import argparse
import ctypes
import hashlib
import json
import math
import statistics
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from horizon_parts import Part, model_part, script_part

from agentcpm_kit.agent.episode import TOOL_RETRIES, episode_names, play_episodes, run_episodes
from agentcpm_kit.agent.trajectory import EndReason, Trajectory
from agentcpm_kit.environment import describe
from agentcpm_kit.files import write_json
from agentcpm_kit.profile import set_seed

BATCH = {"script": 16, "model": 64}  # at once: with few, many come and go while the memory is watched
AGAIN = {48: 48, 7: 48, 1: 4}  # batch size -> how many of the episodes are played again
SAMPLE_S = 0.5


class Memory:
    """Samples the process's resident memory while it is entered."""

    def __enter__(self):
        self.mb, self.over = [], threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def _sample(self) -> None:
        import psutil

        give_back = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)  # glibc keeps what was freed, in holes
        while not self.over.wait(SAMPLE_S):
            give_back(0)
            self.mb.append(psutil.Process().memory_info().rss / 2**20)

    def __exit__(self, *_) -> None:
        self.over.set()
        self.thread.join()

    def summary(self) -> dict:
        quarters = [self.mb[len(self.mb) * i // 4: len(self.mb) * (i + 1) // 4] or self.mb or [0.0] for i in range(4)]
        medians = list(map(statistics.median, quarters))
        return {"memory_mb": [round(m) for m in medians], "peak_mb": round(max(self.mb or [0.0])),
                "growth_mb": round(medians[3] - medians[1], 1)}


def fingerprint(trajectory: Trajectory) -> str:
    """Changes with any bit of any token or log-prob."""
    digest = hashlib.sha256(f"{trajectory.end_reason} {trajectory.answer}".encode())
    for context in trajectory.contexts:
        digest.update(array("q", context.token_ids).tobytes() + array("d", context.logprobs).tobytes())
    return digest.hexdigest()


def read_worlds(part: Part) -> None:
    """Open every page and every index once: worlds keep them, whoever plays."""
    for world in {task.world: task.open_world() for task in part.tasks}.values():
        for url in world.urls:
            world.page(url)
        world.search("first", 1)


def stream(part: Part, size: int) -> tuple[dict, dict[str, str]]:
    """Play all once; the summary, and each episode's fingerprint."""
    tasks = dict(zip(episode_names(part.tasks, 0, 0), part.tasks, strict=True))
    prints: dict[str, str] = {}
    read_worlds(part)
    ends, counts, started = Counter(), Counter(), time.perf_counter()
    with Memory() as memory:
        for t in play_episodes(part.tasks, part.engine(size), part.tools, part.limits, part.policy):
            counts.update(turns=t.turns, tokens=t.tokens_generated, contexts=len(t.contexts), twice=t.episode in prints)
            counts["wrong"] += not part.is_right(t, tasks[t.episode])
            ends[t.end_reason.value] += 1
            prints[t.episode] = fingerprint(t)
    seconds = time.perf_counter() - started
    counts.update({key: sum(getattr(w, key) for w in part.watches.values()) for key in ("calls", "faults")})
    return {"episodes": len(tasks), "batch_size": size, "seconds": round(seconds, 1), "end_reasons": dict(ends),
            "lost": len(tasks.keys() - prints.keys()), "twice": counts["twice"], "wrong_reasons": counts["wrong"],
            **expected_faults(part, ends[EndReason.TOOL_FAULT.value]), "calls": counts["calls"], "failed_calls": counts["faults"],
            "turns": counts["turns"], "tokens": counts["tokens"], "contexts": counts["contexts"],
            "episodes_per_s": round(len(tasks) / seconds, 2), "turns_per_s": round(counts["turns"] / seconds, 1),
            **memory.summary()}, prints


def expected_faults(part: Part, found: int) -> dict:
    """A call is given up when it fails three times. `sigmas`: how far the count of faulty episodes lies from the mean."""
    rates = part.plan.rates["fetch_url"]
    given_up = (sum(rates.values()) - rates["slow"]) ** (TOOL_RETRIES + 1)
    shares = [1 - (1 - given_up) ** steps for steps in part.steps]
    spread = math.sqrt(sum(share * (1 - share) for share in shares))
    return {"tool_fault_share": round(found / len(shares), 4), "expected_share": round(statistics.mean(shares), 4),
            "sigmas": round((found - sum(shares)) / spread, 2) if spread else 0.0}


def play_again(part: Part, prints: dict[str, str], size: int, count: int) -> dict:
    """The first `count` episodes at another batch size, beside what they were."""
    part.watches.clear()
    tasks = part.tasks[:count]
    found = run_episodes(tasks, part.engine(size), part.tools, part.limits, part.policy)
    moved = sum(t.episode != name for t, name in zip(found, episode_names(tasks, 0, 0), strict=True))
    differ = sum(fingerprint(t) != prints.get(t.episode) for t in found)
    return {"batch_size": size, "episodes": len(found), "out_of_order": moved, "differ": differ}


def run_part(part: Part, size: int) -> Iterator[dict]:
    """What is known of a part, growing."""
    summary, prints = stream(part, size)
    yield (result := summary | {"again": []})
    for again in AGAIN.items():
        result["again"].append(play_again(part, prints, *again))
        yield result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=300, help="of each part")
    parser.add_argument("--turns", type=int, default=110, help="calls of an episode at least (script), turns (model)")
    parser.add_argument("--faults", type=float, default=0.1, help="share of calls that fail")
    parser.add_argument("--batch", type=int, help="episodes at once in the stream (default: 16 script, 64 model)")
    parser.add_argument("--history", default="discard_tools", choices=("discard_tools", "discard_all"), help="reset (model)")
    parser.add_argument("--part", choices=("script", "model"), help="only this one")
    parser.add_argument("--threads", type=int, default=2, help="of the model")
    parser.add_argument("--out", type=Path, help="file for the summary, with command and machine")
    args = parser.parse_args()
    set_seed(0, args.threads)
    sizes = args.episodes, args.turns, args.faults
    makers = {"script": lambda: script_part(*sizes), "model": lambda: model_part(*sizes, args.history)}
    result, about = {}, {"command": " ".join(sys.argv), "env": describe(0)}
    for name in [args.part] if args.part else makers:
        for known in run_part(makers[name](), args.batch or BATCH[name]):
            result[name] = known
            if args.out:
                write_json(args.out, result | about)
        print(json.dumps({name: result[name]}), flush=True)
    bad = sum(r[key] for r in result.values() for key in ("lost", "twice", "wrong_reasons"))
    bad += sum(row[key] for r in result.values() for row in r["again"] for key in ("out_of_order", "differ"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
