"""The engine `vllm` against the engine `transformers` under the kit's loop: how fast, and how often the same greedy answer.

    python benchmarks/engines.py --out results/reference/benchmarks/engines.json      # after a run of `small`

Both play the same test tasks, in turns for `--rounds` rounds, each time in a process of its own (vLLM changes how torch computes
in the process that it is loaded into), and the start of the engine is timed apart. The model is the merge of a run of `small`
where there is one, else the shipped micro-merge, which is fast with either.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from rollout_arms import Outcome, play

from agentcpm_kit.agent.engines import open_engine
from agentcpm_kit.environment import describe
from agentcpm_kit.evaluate.runner import suite
from agentcpm_kit.evaluate.scorers import is_right
from agentcpm_kit.files import write_json
from agentcpm_kit.profile import load_profile, repo_root, set_seed
from agentcpm_kit.stage import stage_folder
from agentcpm_kit.world import Task

ENGINES = ("transformers", "vllm")


def default_model() -> tuple[str, Path]:
    """Profile and model."""
    merged = stage_folder("small", 0, "05_merge") / "checkpoints/merged"
    return ("small", merged) if merged.is_dir() else ("micro", repo_root() / "data/models/micro-merge")


def tasks_of(args) -> list[Task]:
    return suite(load_profile(args.profile), "test", args.tasks, [2])


def play_alone(args) -> None:
    """One engine, in this process: its outcome and the seconds of its start go to a file."""
    profile = load_profile(args.profile)
    profile = profile.model_copy(update={"model": profile.model.changed(engine=args.engine)})
    set_seed(0, profile.threads)
    tasks, started = tasks_of(args), time.perf_counter()
    with open_engine(args.model, profile, temperature=0.0) as engine:
        play(tasks[:2], engine, profile.limits)  # the first turns are slow
        start_s = time.perf_counter() - started
        write_json(args.outcome, {"start_s": start_s, **asdict(play(tasks, engine, profile.limits))})


def play_apart(args, engine: str) -> tuple[float, Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "outcome.json"
        same = ["--profile", args.profile, "--model", str(args.model), "--tasks", str(args.tasks)]
        subprocess.run([sys.executable, __file__, *same, "--engine", engine, "--outcome", str(out)], check=True,
                       stdout=subprocess.DEVNULL)
        found = json.loads(out.read_text())
        return found.pop("start_s"), Outcome(**found)


def rows(args, rounds: list[dict[str, tuple[float, Outcome]]]) -> list[dict]:
    """Medians over the rounds; speeds are compared round by round, answers in the last."""
    tasks, table = {task.task_id: task for task in tasks_of(args)}, []
    first = {name: rounds[-1][name][1].answers for name in ENGINES}
    for name in ENGINES:
        outcomes = [each[name][1] for each in rounds]
        ratio = median(each["transformers"][1].seconds / each[name][1].seconds for each in rounds)
        same = sum(answer == first["transformers"][key] for key, answer in first[name].items())
        right = sum(answer is not None and is_right(answer, tasks[key]) for key, answer in first[name].items())
        table.append({"engine": name, "episodes": len(tasks), "seconds": [round(o.seconds, 2) for o in outcomes],
                      "start_s": round(median(each[name][0] for each in rounds), 1),
                      "episodes_per_s": round(median(len(tasks) / o.seconds for o in outcomes), 3),
                      "tokens_per_s": round(median(o.tokens / o.seconds for o in outcomes), 1), "faster_by": round(ratio, 2),
                      "equal_answers": round(same / len(tasks), 4), "right": round(right / len(tasks), 4)})
    return table


def show(profile: str, found: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("engine", "episodes/s", "tokens/s", "faster by", "equal answers", "right", title=f"profile {profile}")
    for r in found:
        table.add_row(r["engine"], f"{r['episodes_per_s']:.2f}", f"{r['tokens_per_s']:.0f}", f"{r['faster_by']:.2f}x",
                      f"{r['equal_answers']:.1%}", f"{r['right']:.1%}")
    Console(width=100).print(table)


def main() -> None:
    profile, model = default_model()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default=profile)
    parser.add_argument("--model", type=Path, default=model)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--engine", choices=ENGINES, help="play with one alone, and write its --outcome to a file")
    parser.add_argument("--outcome", type=Path)
    args = parser.parse_args()
    if args.engine:
        return play_alone(args)
    if not find_spec("vllm"):
        print("vLLM is not installed, so there is nothing to compare; `make setup-vllm` installs it for a CPU", file=sys.stderr)
        return None
    found = rows(args, [{engine: play_apart(args, engine) for engine in ENGINES} for _ in range(args.rounds)])
    show(args.profile, found)
    if args.out:
        write_json(args.out, {"profile": args.profile, "model": args.model.name, "rows": found, "command": " ".join(sys.argv),
                              "env": describe(0)})


if __name__ == "__main__":
    main()
