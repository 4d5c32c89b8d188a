"""Where the time of an RL step goes, and what rollouts beside the training (one step off) make of it.

    python benchmarks/rl_step.py --out results/reference/benchmarks/rl_step.json       # 5 minutes

Trains the shipped merge with clean rewards and the profile's settings (denoised steps play more), synchronously and
asynchronously in turn, for `--rounds` rounds of `--steps` steps each; the first step of a round, which also loads what is
needed, does not count. Seconds are medians over steps. `model_share` is the time inside the model: its forward passes while
rollouts are played, forward and backward of the training, and the optimiser; not the forward pass that measures the distance
to the start (`kl`). The rest of the rollouts is the loop: templates, tools, sampling, bookkeeping; `overhead` is what is left
of the step. In the asynchronous mode rollouts overlap with the training, so that parts do not add up to the step; `wait` is
what the trainer waits for them.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from agentcpm_kit.environment import describe
from agentcpm_kit.files import write_json
from agentcpm_kit.profile import Profile, load_profile, repo_root, set_seed

MODEL = repo_root() / "data/models/micro-merge"
MODES = {"synchronous": False, "asynchronous": True}


class Stopwatch:
    """Seconds inside the model while rollouts are played."""

    def __init__(self):
        self.seconds = self.began = 0.0

    def watch(self, engine):
        """The trainer calls the decoder and the head by themselves, so the whole model is called by the engine alone."""
        engine.model.register_forward_pre_hook(lambda *_: setattr(self, "began", time.perf_counter()))
        engine.model.register_forward_hook(self._add)
        return engine

    def _add(self, *_) -> None:
        self.seconds += time.perf_counter() - self.began

    def read(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def run(profile: Profile, asynchronous: bool, steps: int, seed: int) -> list[dict]:
    """The logged rows of a run but its first, each with `rollout_model_s`."""
    from agentcpm_kit.train import rl
    from agentcpm_kit.train.rollouts import arms, rl_tasks

    profile = profile.model_copy(update={"rl": profile.rl.changed(steps=steps, asynchronous=asynchronous, save_every=steps)})
    set_seed(seed, profile.threads)
    watch, rows, make = Stopwatch(), [], rl._rollout_engine
    rl._rollout_engine = lambda *arguments: watch.watch(make(*arguments))
    try:
        with tempfile.TemporaryDirectory() as folder:
            rl.train_rl(MODEL, rl_tasks(profile, seed), profile, Path(folder) / "out", arms(profile.noise)["clean"], seed, None,
                        lambda step, row: rows.append(row | {"rollout_model_s": watch.read()}))
    finally:
        rl._rollout_engine = make
    return rows[1:]


def summary(rows: list[dict]) -> dict:
    """Medians of the parts of a step, and, where none overlap, the share of the step that is inside the model."""
    def of(name: str) -> float:
        return median(r[name] for r in rows)
    model = [r["rollout_model_s"] + r["train_s"] + r["optimiser_s"] for r in rows]
    rest = [r["step_s"] - r["wait_s"] - r["train_s"] - r["optimiser_s"] - r["kl_s"] for r in rows]
    parts = ("step_s", "wait_s", "rollout_s", "rollout_model_s", "reward_s", "train_s", "optimiser_s", "kl_s")
    found = {"steps": len(rows), **{name: of(name) for name in parts}, "overhead_s": median(rest)}
    overlap = any(r["staleness"] for r in rows)
    return found if overlap else found | {"model_share": median(m / r["step_s"] for m, r in zip(model, rows, strict=True))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="micro", help="whose settings")
    parser.add_argument("--steps", type=int, default=8, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of torch; default: the profile's")
    parser.add_argument("--out", type=Path, help="file for the result, with command and machine")
    options = parser.parse_args()
    profile = load_profile(options.profile)
    if options.threads:
        profile = profile.model_copy(update={"threads": options.threads})
    rows: dict[str, list[dict]] = {mode: [] for mode in MODES}
    for number in range(options.rounds):
        for mode, asynchronous in MODES.items():
            rows[mode] += run(profile, asynchronous, options.steps, options.seed + number)
    result = {mode: {k: round(v, 4) for k, v in summary(found).items()} for mode, found in rows.items()}
    result["speed_up"] = round(result["synchronous"]["step_s"] / result["asynchronous"]["step_s"], 3)
    print(json.dumps(result, indent=1))
    if options.out:
        write_json(options.out, result | {"command": " ".join(sys.argv), "env": describe(options.seed)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
