"""Long-horizon stress: hundreds of episodes of a hundred turns, in which one tool call in ten fails.

    python benchmarks/horizon.py --out results/reference/benchmarks/horizon.json
    python benchmarks/horizon.py --part script --episodes 50     # one part, fewer episodes

`script`: the oracle plays the gold paths of many encyclopedia tasks in a row, with real calls and real evidence. `model`:
micro-merge, greedy. Left alone it answers after three calls, so its tokens are guided: it may think, must then read one of
the pages it knows of, and can never answer; when the context is full, the history is reset (`--history`).

Each part is streamed once, nothing is kept, and the process's memory is sampled. Then the first episodes are played again
at batch sizes 1, 7 and 48 and compared with the stream, token by token and log-prob by log-prob. The tools keep their own
record of what failed, and every end reason is held against it. Exits with 1 if an episode was lost, came out of order,
ended for a wrong reason or differs. `growth_mb` is the memory's median in the last quarter less that in the second.
"""

import argparse
import hashlib
import json
import math
import random
import statistics
import sys
import threading
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentcpm_kit.agent.context import ContextPolicy
from agentcpm_kit.agent.engines import Engine, TransformersEngine, load_model
from agentcpm_kit.agent.episode import TOOL_RETRIES, episode_names, play_episodes, run_episodes
from agentcpm_kit.agent.oracle import OracleEngine
from agentcpm_kit.agent.trajectory import EndReason, Trajectory
from agentcpm_kit.environment import describe
from agentcpm_kit.evaluate.runner import suite
from agentcpm_kit.evaluate.scorers import score
from agentcpm_kit.files import write_json
from agentcpm_kit.micro.tokenizer import CHAT_TEMPLATE, SPECIALS
from agentcpm_kit.profile import Limits, load_profile, repo_root, set_seed
from agentcpm_kit.world import FaultPlan, Task, Tools, load_family
from agentcpm_kit.world.faults import KINDS, TOOLS, ToolFault
from agentcpm_kit.world.plain.facts import name_pool

FAMILIES = ("deep", "multihop", "constraints", "navigate", "assist")  # they share their worlds
SLOW, SLOW_S = 0.02, 0.02  # share of calls that are slow, and by how many seconds
THOUGHT = 8  # tokens that the model thinks at most
AGAIN = {48: 48, 7: 48, 1: 4}  # batch size -> how many of the episodes are played again
SAMPLE_S = 0.1


@dataclass
class Watch:
    """What the tools saw of one episode."""

    calls: int = 0  # repeated ones counted too
    faults: int = 0
    in_a_row: int = 0
    given_up: int = 0


class WatchedTools(Tools):
    def __init__(self, task: Task, plan: FaultPlan, episode: str, watch: Watch):
        super().__init__(task.open_world(), plan, episode, task.tools)
        self.watch = watch

    def call(self, name: str, arguments: dict) -> str:
        self.watch.calls += 1
        try:
            result = super().call(name, arguments)
        except ToolFault:
            self.watch.faults += 1
            self.watch.in_a_row += 1
            self.watch.given_up += self.watch.in_a_row > TOOL_RETRIES
            raise
        self.watch.in_a_row = 0
        return result


@dataclass
class Part:
    """`steps` are the calls that each task makes if none is given up; `ends_right` judges an episode that met no fault."""

    tasks: list[Task]
    steps: list[int]
    engine: Callable[[int], Engine]  # of a batch size
    limits: Limits
    ends_right: Callable[[Trajectory, Task], bool]
    plan: FaultPlan
    policy: ContextPolicy = field(default_factory=ContextPolicy)
    watches: dict[str, Watch] = field(default_factory=lambda: defaultdict(Watch))

    def tools(self, task: Task, episode: str) -> WatchedTools:
        return WatchedTools(task, self.plan, episode, self.watches[episode])

    def is_right(self, trajectory: Trajectory, task: Task) -> bool:
        """Whether the end reason is what the tools saw."""
        faulty = trajectory.end_reason == EndReason.TOOL_FAULT
        if faulty:
            return self.watches[trajectory.episode].given_up == 1 and trajectory.steps[-1].status == "tool_failed"
        return self.watches[trajectory.episode].given_up == 0 and self.ends_right(trajectory, task)


def fault_plan(share: float) -> FaultPlan:
    """All kinds that fail, equally often; on every tool."""
    kinds = [kind for kind in KINDS if kind != "slow"]
    rates = {kind: share / len(kinds) for kind in kinds} | {"slow": SLOW}
    return FaultPlan(rates=dict.fromkeys(TOOLS, rates), slow_s=SLOW_S)


def long_task(name: str, tasks: list[Task], steps: int) -> Task:
    """Tasks of one world in a row, in an order drawn by `name`, with at least so many steps; the last answer counts."""
    chosen: list[Task] = []
    for task in random.Random(name).sample(tasks, len(tasks)):
        if sum(len(t.steps) for t in chosen) < steps:
            chosen.append(task)
    thoughts = [step for task in chosen for step in task.steps]
    gold = tuple(replace(step, thought=f"Step {i}. {step.thought}") for i, step in enumerate(thoughts, 1))
    question = " ".join(f"{i}. {task.question}" for i, task in enumerate(chosen, 1))
    return replace(chosen[-1], task_id=name, question=f"Answer the last question.\n{question}", tools=TOOLS, steps=gold)


def page_tokenizer(tasks: list[Task]):
    """Byte pairs of a world's pages: every text can be written in it, unlike in the vocabulary of micro-qwen3."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    world, core = tasks[0].open_world(), Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=2000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator((world.page(url).text for url in world.urls), trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False)


def script_part(episodes: int, turns: int, faults: float) -> Part:
    worlds = defaultdict(list)
    for task in (task for family in FAMILIES for task in load_family(family, "test")):
        worlds[task.world].append(task)
    groups = list(worlds.values())
    tasks = [long_task(f"long-{i}", groups[i % len(groups)], turns) for i in range(episodes)]
    tokenizer = page_tokenizer(tasks)
    return Part(tasks, [len(task.steps) for task in tasks], lambda size: OracleEngine(tokenizer, tasks, size),
                Limits(max_turns=10 * turns, max_new_tokens=10_000, max_context_tokens=10_000_000),
                lambda t, task: score(t, task).correct is True and t.turns == len(task.steps) + 1, fault_plan(faults))


class Explorer(TransformersEngine):
    """Up to `THOUGHT` tokens of thinking, then a call that is given but for the page: one the context names, not read yet."""

    def __init__(self, model, tokenizer, batch_size: int):
        super().__init__(model, tokenizer, 0.0, batch_size)
        before, after = map(self._encode, ('\n<tool_call>{"name": "fetch_url", "arguments": {"url": ["atlas/',
                                           '"], "purpose": "read"}}</tool_call>'))
        self.script, self.url = [*before, None, *after, self.end], before[-2]
        self.close = tokenizer.convert_tokens_to_ids("</think>")
        self.thinking = [i for i in range(len(tokenizer)) if tokenizer.convert_ids_to_tokens(i) not in SPECIALS or i == self.close]
        self.names = {self._encode(name)[0] for name in name_pool()}

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _sample(self, rows, logits):
        mask = logits.new_full(logits.shape, float("-inf"))
        for i, row in enumerate(rows):
            mask[i, self._allowed(row)] = 0
        return super()._sample(rows, logits + mask)

    def _allowed(self, row) -> list[int]:
        if self.close not in row.ids:
            return self.thinking if len(row.ids) < THOUGHT else [self.close]
        token = self.script[len(row.ids) - row.ids.index(self.close) - 1]
        return self._pages(row.turn.ids) if token is None else [token]

    def _pages(self, ids: list[int]) -> list[int]:
        read = {ids[i + 2] for i, token in enumerate(ids[:-2]) if token == self.url}
        return sorted(self.names.intersection(ids) - read) or sorted(self.names)


def model_part(episodes: int, turns: int, faults: float, history: str) -> Part:
    profile = load_profile("micro")
    hops = profile.evaluation.hops
    tasks = [t for group in zip(*(suite(profile, "test", -(-episodes // len(hops)), [h]) for h in hops), strict=True) for t in group]
    model, tokenizer = load_model(repo_root() / "data/models/micro-merge")
    limits = profile.limits.model_copy(update={"max_turns": turns, "max_repetitions": 10**9})
    return Part(tasks[:episodes], [turns] * episodes, lambda size: Explorer(model, tokenizer, size), limits,
                lambda t, _: t.end_reason == EndReason.TURN_LIMIT and t.turns == turns, fault_plan(faults),
                ContextPolicy(history=history))


class Memory:
    """Samples the process's resident memory while it is entered."""

    def __enter__(self):
        self.mb, self.over = [], threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def _sample(self) -> None:
        import psutil

        while not self.over.wait(SAMPLE_S):
            self.mb.append(psutil.Process().memory_info().rss / 2**20)

    def __exit__(self, *_) -> None:
        self.over.set()
        self.thread.join()

    def summary(self) -> dict:
        quarters = [self.mb[len(self.mb) * i // 4: len(self.mb) * (i + 1) // 4] or [0.0] for i in range(4)]
        medians = list(map(statistics.median, quarters))
        return {"memory_mb": [round(m) for m in medians], "peak_mb": round(max(self.mb or [0.0])),
                "growth_mb": round(medians[3] - medians[1], 1)}


def fingerprint(trajectory: Trajectory) -> str:
    """Changes with any bit of any token or log-prob."""
    digest = hashlib.sha256(f"{trajectory.end_reason} {trajectory.answer}".encode())
    for context in trajectory.contexts:
        digest.update(array("q", context.token_ids).tobytes() + array("d", context.logprobs).tobytes())
    return digest.hexdigest()


def stream(part: Part, size: int) -> tuple[dict, dict[str, str]]:
    """Play all once; the summary, and each episode's fingerprint."""
    tasks = dict(zip(episode_names(part.tasks, 0, 0), part.tasks, strict=True))
    prints: dict[str, str] = {}
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


def play_again(part: Part, prints: dict[str, str]) -> list[dict]:
    rows = []
    for size, count in AGAIN.items():
        part.watches.clear()
        tasks = part.tasks[:count]
        found = run_episodes(tasks, part.engine(size), part.tools, part.limits, part.policy)
        moved = sum(t.episode != name for t, name in zip(found, episode_names(tasks, 0, 0), strict=True))
        differ = sum(fingerprint(t) != prints.get(t.episode) for t in found)
        rows.append({"batch_size": size, "episodes": len(found), "out_of_order": moved, "differ": differ})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=300, help="of each part")
    parser.add_argument("--turns", type=int, default=110, help="calls of an episode at least (script), turns (model)")
    parser.add_argument("--faults", type=float, default=0.1, help="share of calls that fail")
    parser.add_argument("--batch", type=int, default=64, help="episodes at once in the stream")
    parser.add_argument("--history", default="discard_tools", choices=("discard_tools", "discard_all"), help="reset (model)")
    parser.add_argument("--part", choices=("script", "model"), help="only this one")
    parser.add_argument("--threads", type=int, default=2, help="of the model")
    parser.add_argument("--out", type=Path, help="file for the summary, with command and machine")
    args = parser.parse_args()
    set_seed(0, args.threads)
    sizes = args.episodes, args.turns, args.faults
    makers = {"script": lambda: script_part(*sizes), "model": lambda: model_part(*sizes, args.history)}
    result, env = {}, describe(0)
    for name in [args.part] if args.part else makers:
        part = makers[name]()
        summary, prints = stream(part, args.batch)
        result[name] = summary | {"again": play_again(part, prints)}
        print(json.dumps({name: result[name]}), flush=True)
    if args.out:
        write_json(args.out, result | {"command": " ".join(sys.argv), "env": env})
    bad = sum(r[key] for r in result.values() for key in ("lost", "twice", "wrong_reasons"))
    bad += sum(row[key] for r in result.values() for row in r["again"] for key in ("out_of_order", "differ"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
