"""Rollouts per second: the kit's loop beside a naive script, plain batching, TRL's own tool loop and vLLM.

    python benchmarks/rollout.py --out results/reference/benchmarks/rollout

Every arm plays the same test tasks with micro-merge, greedily; the arms take turns for `--rounds` rounds and medians count.
What differs is named in `ARMS`. `one by one` and `batched` are engines under the kit's own loop: only the generation
differs. `TRL` is GRPOTrainer's own loop (see `rollout_arms.TRLLoop`). vLLM, which needs `make setup-vllm`, has a process of
its own, because it changes how torch computes in the process that it is loaded into; all others share one.

`raw` replays the turns that the kit's run made with the same engine, and nothing else: no parsing, no tools, no
trajectories. (kit - raw) / raw is what the harness costs. Where the kit's time goes comes from one more run with
stopwatches around its functions, as exclusive seconds of the main thread; tools run in other threads at the same time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
from rollout_arms import GenerateEngine, Outcome, Recorder, Replayer, TRLLoop, measure_parts, play, replay

from agentcpm_kit.agent.engines import TransformersEngine, load_model
from agentcpm_kit.agent.engines.loading import load_tokenizer
from agentcpm_kit.environment import describe
from agentcpm_kit.evaluate.runner import suite
from agentcpm_kit.evaluate.scorers import is_right
from agentcpm_kit.files import write_json
from agentcpm_kit.profile import Profile, load_profile, repo_root, set_seed
from agentcpm_kit.world import Task

MODEL = repo_root() / "data/models/micro-merge"
ARMS = {"one by one": "Hugging Face generate, one episode at a time, every context computed anew",
        "batched": "the same in left-padded batches, turn by turn, a fixed batch at a time; ended episodes leave it",
        "TRL": "GRPOTrainer's tool loop over its own generate, a fixed batch at a time",
        "kit, vLLM": "the kit's loop over vLLM, in a process of its own",
        "kit": "the kit's loop over its engine for transformers",
        "raw": "the kit's engine for transformers alone, on the turns of the kit's run"}


def mixed_tasks(profile: Profile, count: int) -> list[Task]:
    """Test tasks with the numbers of hops in turn, so that any beginning of the list is a fair sample."""
    hops = profile.evaluation.hops
    suites = [suite(profile, "test", -(-count // len(hops)), [h]) for h in hops]
    return [task for group in zip(*suites, strict=True) for task in group][:count]


def warm_up(tasks: list[Task]) -> None:
    """Open the worlds and their indexes, which live longer than an episode."""
    for task in tasks:
        task.open_world().search(task.question, 1)


def play_vllm(tasks: list[Task], batch: int, profile: Profile) -> Outcome:
    from agentcpm_kit.agent.engines.vllm import VLLMEngine

    tokenizer = load_tokenizer(MODEL)
    with VLLMEngine(MODEL, tokenizer, 0.0, batch, profile.limits.max_context_tokens) as engine:
        play(tasks[:batch], engine, profile.limits)  # its first turns are slow
        engine._engine.reset_prefix_cache()
        return play(tasks, engine, profile.limits)


def in_own_process(tasks: int, batch: int, threads: int) -> Outcome:
    """`play_vllm`, by this script."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "outcome.json"
        subprocess.run([sys.executable, __file__, "--tasks", str(tasks), "--batch", str(batch), "--threads", str(threads),
                        "--vllm-outcome", str(out)], check=True, stdout=subprocess.DEVNULL)
        return Outcome(**json.loads(out.read_text()))


class Bench:
    """The arms over one list of tasks; `few` are for the slowest."""

    def __init__(self, tasks: list[Task], few: int, batch: int, profile: Profile):
        self.tasks, self.few, self.batch, self.limits = tasks, tasks[:few], batch, profile.limits
        self.model, self.tokenizer = load_model(MODEL)
        recorder = Recorder(self.model, self.tokenizer, 0.0, batch)
        self.answers = play(tasks, recorder, self.limits).answers
        self.conversations, self.said = recorder.conversations, recorder.said
        self.trl = TRLLoop(MODEL, tasks, batch, self.limits)
        self.wrong_tokens = 0

    def run(self) -> dict[str, Outcome]:
        """One round: every arm once."""
        found = {"one by one": play(self.few, GenerateEngine(self.model, self.tokenizer, 1), self.limits),
                 "batched": play(self.tasks, GenerateEngine(self.model, self.tokenizer, self.batch), self.limits, self.batch),
                 "TRL": self.trl.play()}
        if find_spec("vllm"):
            found["kit, vLLM"] = in_own_process(len(self.tasks), self.batch, torch.get_num_threads())
        found["kit"] = play(self.tasks, TransformersEngine(self.model, self.tokenizer, 0.0, self.batch), self.limits)
        replayer = Replayer(self.model, self.tokenizer, 0.0, self.batch, said=self.said)
        found["raw"] = Outcome(replay(replayer, self.conversations), found["kit"].tokens, found["kit"].answers)
        self.wrong_tokens += replayer.wrong
        if replayer.forced != found["kit"].tokens:
            sys.exit(f"error: {replayer.forced} tokens were replayed of {found['kit'].tokens}")
        return found

    def row(self, arm: str, outcomes: list[Outcome], rounds: list[dict[str, Outcome]]) -> dict:
        """Medians over the rounds; `speedup` is the median of the kit's speed over this arm's, round by round."""
        last, rates = outcomes[-1], [len(o.answers) / o.seconds for o in outcomes]
        kit = [len(r["kit"].answers) / r["kit"].seconds for r in rounds]
        tasks = {task.task_id: task for task in self.tasks}
        right = sum(answer is not None and is_right(answer, tasks[key]) for key, answer in last.answers.items())
        same = sum(answer == self.answers[key] for key, answer in last.answers.items())
        return {"arm": arm, "what": ARMS[arm], "episodes": len(last.answers), "seconds": [round(o.seconds, 2) for o in outcomes],
                "episodes_per_s": round(median(rates), 3),
                "tokens_per_s": round(median(o.tokens / o.seconds for o in outcomes), 1),
                "kit_is_faster": round(median(k / r for k, r in zip(kit, rates, strict=True)), 2),
                "equal_answers": round(same / len(last.answers), 4), "right": round(right / len(last.answers), 4)}


def summary(bench: Bench, rounds: list[dict[str, Outcome]]) -> dict:
    kit, raw = (median(r[arm].seconds for r in rounds) for arm in ("kit", "raw"))
    engine = TransformersEngine(bench.model, bench.tokenizer, 0.0, bench.batch)
    parts, outcome = measure_parts(bench.tasks, engine, bench.limits)
    shares = [{"part": part, "seconds": round(s, 3), "share": round(s / outcome.seconds, 4)} for part, s in parts.items()]
    return {"tasks": len(bench.tasks), "batch_size": bench.batch, "rounds": len(rounds),
            "rows": [bench.row(arm, [r[arm] for r in rounds], rounds) for arm in ARMS if arm in rounds[0]],
            "overhead": round((kit - raw) / raw, 4),
            "overhead_by_round": [round(r["kit"].seconds / r["raw"].seconds - 1, 4) for r in rounds],
            "replay_differs": bench.wrong_tokens, "parts": shares, "parts_total_s": round(outcome.seconds, 2),
            "tool_threads_s": round(outcome.tools_s, 3)}


def show(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("arm", "episodes", "episodes/s", "tokens/s", "kit is faster by", "equal answers", "right")
    for r in result["rows"]:
        table.add_row(r["arm"], str(r["episodes"]), f"{r['episodes_per_s']:.2f}", f"{r['tokens_per_s']:.0f}",
                      f"{r['kit_is_faster']:.2f}x", f"{r['equal_answers']:.1%}", f"{r['right']:.1%}")
    parts = Table("part of the kit's time", "seconds", "share")
    for p in result["parts"]:
        parts.add_row(p["part"], f"{p['seconds']:.2f}", f"{p['share']:.1%}")
    console = Console(width=100)
    console.print(table, parts)
    console.print(f"harness overhead {result['overhead']:.1%} (rounds {result['overhead_by_round']}); "
                  f"tools took {result['tool_threads_s']} s in their threads")


def draw(result: dict, path: Path) -> None:
    """Speeds, and where the kit's time goes."""
    from agentcpm_kit.report.figures import COLOURS, new_figure, save_figure

    figure, (left, right) = new_figure(2, figsize=(9.6, 3.2))
    rows = [r for r in result["rows"] if r["arm"] != "raw"]
    left.barh([r["arm"] for r in rows], [r["episodes_per_s"] for r in rows],
              color=[COLOURS[r["arm"].startswith("kit")] for r in rows])
    for r in rows:
        rates = [r["episodes"] / seconds for seconds in r["seconds"]]
        left.plot(rates, [r["arm"]] * len(rates), "k.", markersize=4)
        left.annotate(f"{r['episodes_per_s']:.1f}", (max(rates), r["arm"]), (6, 0), textcoords="offset points", va="center")
    left.set(xlabel=f"episodes per second (batch {result['batch_size']}; dots: rounds)")
    left.margins(x=0.15)
    parts = result["parts"][::-1]
    bars = right.barh([p["part"] for p in parts], [100 * p["share"] for p in parts], color=COLOURS[2])
    right.bar_label(bars, [f"{100 * p['share']:.1f}" for p in parts], padding=3)
    right.set(xlabel="share of the kit's time (%)")
    right.margins(x=0.12)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1024, help="episodes of each arm")
    parser.add_argument("--few", type=int, default=48, help="episodes of `one by one`, the first of the same tasks")
    parser.add_argument("--batch", type=int, default=256, help="episodes at once")
    parser.add_argument("--rounds", type=int, default=3, help="how often each arm runs")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--out", type=Path, help="folder for rollout.json and rollout.png")
    parser.add_argument("--vllm-outcome", type=Path, help="play with vLLM alone, and write its outcome to this file")
    args = parser.parse_args()
    profile, env = load_profile("micro"), describe(0)
    set_seed(0, args.threads)
    tasks = mixed_tasks(profile, args.tasks)
    warm_up(tasks)
    if args.vllm_outcome:
        return write_json(args.vllm_outcome, asdict(play_vllm(tasks, args.batch, profile)))
    if not find_spec("vllm"):
        print("vLLM is not installed and is left out; `make setup-vllm` installs it for a CPU", file=sys.stderr)
    bench = Bench(tasks, args.few, args.batch, profile)
    rounds = []
    for number in range(args.rounds):
        rounds.append(bench.run())
        print(json.dumps({"round": number, "seconds": {arm: round(o.seconds, 2) for arm, o in rounds[-1].items()}}), flush=True)
    result = summary(bench, rounds)
    show(result)
    if args.out:
        write_json(args.out / "rollout.json", result | {"threads": args.threads, "command": " ".join(sys.argv), "env": env})
        draw(result, args.out / "rollout.png")


if __name__ == "__main__":
    main()
