"""What reward noise costs RL and what denoising returns: a map over sources, doses and learning rates; and single trials.

    python benchmarks/rl_trials.py --out results/reference/benchmarks/rl_trials                     # hours; resumes
    python benchmarks/rl_trials.py --experiments losses --seeds 0 1 --out results/my-trials

Every trial trains the shipped merge on the questions of its seed with the profile's settings but for what its name says,
and plays the test tasks at the temperature of training. One line each in ``rows.jsonl``, with the outcome of every task;
figures are drawn from there. Trials run side by side, each on one thread, so that a trial repeats itself bit for bit; one
that was interrupted goes on from its last checkpoint. ``rl_experiments.py`` says what is compared.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

from rl_experiments import EXPERIMENTS, Trial

from agentcpm_kit.artefacts import file_sha256
from agentcpm_kit.environment import describe
from agentcpm_kit.errors import KitError
from agentcpm_kit.files import append_jsonl, read_jsonl, write_json
from agentcpm_kit.profile import Profile, load_profile, repo_root, set_seed
from agentcpm_kit.train.rollouts import Arm

LAST = 5  # steps of training of which a row keeps the mean of these:
KEPT = ("success", "reward", "entropy", "turns", "noise_share", "kl_to_start", "rollouts", "active", "learned")


def run_trial(trial: Trial, seed: int, model: Path, profile: Profile, tests: int, work: Path) -> dict:
    """Train, unless that was done before, play the test tasks, and say what came of it. Weights that are lost have no score."""
    from agentcpm_kit.train.rl import train_rl
    from agentcpm_kit.train.rl_watch import LostWeights
    from agentcpm_kit.train.rollouts import rl_tasks

    set_seed(seed, 1)
    settings = settings_hash(profile, model, tests)
    profile = profile.model_copy(update={"rl": profile.rl.changed(**trial.changes)})
    folder = work / settings / f"seed{seed}" / trial.experiment / trial.name
    folder.mkdir(parents=True, exist_ok=True)
    arm, out, log = Arm(trial.name, trial.noise, trial.rules), folder / "model", folder / "steps.jsonl"
    row = {"experiment": trial.experiment, "trial": trial.name, "seed": seed, "settings": settings, **trial.labels}
    try:
        if not (out / "SHA256SUMS").is_file():
            train_rl(model, rl_tasks(profile, seed), profile, out, arm, seed, None,
                     lambda step, logged: append_jsonl(log, {"step": step, **logged}))
        row |= last_steps(log) | test(out, seed, profile, tests)
    except LostWeights as error:
        row |= {"stopped": str(error), "n": tests * len(profile.rl.hops)}
    shutil.rmtree(folder)
    return row


def last_steps(log: Path) -> dict:
    """Means over the last steps, and why the run stopped, if it did. A step that a resumed run logged again counts once."""
    found = {row["step"]: row for row in read_jsonl(log)}
    last = [found[step] for step in sorted(found)][-LAST:]
    return {"stopped": last[-1].get("stopped", ""), "last_steps": {k: _mean(r[k] for r in last) for k in KEPT if k in last[-1]}}


def settings_hash(profile: Profile, model: Path, tests: int) -> str:
    """The same for trials that may be compared: settings, start and test."""
    parts = [profile.rl.model_dump(), profile.noise.model_dump(), profile.limits.model_dump(), profile.world.model_dump(), tests,
             file_sha256(model / "model.safetensors")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _mean(values: Iterable[float]) -> float:
    return round(mean(list(values)), 4)


def test(model: Path, seed: int, profile: Profile, tests: int) -> dict:
    """Play the test tasks at the temperature of training; every seed has the same tasks."""
    from agentcpm_kit.agent.engines import open_engine
    from agentcpm_kit.evaluate.runner import evaluate_agent, suite

    set_seed(seed, 1)
    tasks = suite(profile, "test", tests, profile.rl.hops, profile.rl.redundancy)
    with open_engine(model, profile, profile.rl.temperature) as engine:
        result = evaluate_agent(engine, tasks, profile, seed=seed)
    return {"n": len(tasks), "score": round(result.success.value, 4), "outcomes": "".join(map(str, result.outcomes)),
            "end_reasons": result.end_reasons}


def start_row(seed: int, model: Path, profile: Profile, tests: int) -> dict:
    row = {"experiment": "start", "trial": "before RL", "seed": seed, "settings": settings_hash(profile, model, tests)}
    return row | {"stopped": "", **test(model, seed, profile, tests)}


def work_list(options, profile: Profile) -> list[tuple[Trial | None, int]]:
    """What is still to be done, seed by seed: the first seed's map is whole before the second one's begins.

    Raises:
        KitError: no model, no such trial, or the rows that are there are of other settings.
    """
    if not (options.model / "model.safetensors").is_file():
        raise KitError(f"no model in {options.model}; --model takes the folder of one")
    rows = read_jsonl(options.out / "rows.jsonl")
    if {r["settings"] for r in rows} - {settings_hash(profile, options.model, options.tests)}:
        raise KitError(f"{options.out}/rows.jsonl holds trials of other settings; choose another --out")
    done = {(r["experiment"], r["trial"], r["seed"]) for r in rows}
    trials = [t for name in options.experiments for t in EXPERIMENTS[name](profile) if options.only in t.name]
    if not trials:
        raise KitError(f"no trial of {', '.join(options.experiments)} holds the text {options.only!r}; see rl_experiments.py")
    starts = [(None, seed) for seed in options.seeds if ("start", "before RL", seed) not in done]
    return starts + [(t, seed) for seed in options.seeds for t in trials if (t.experiment, t.name, seed) not in done]


def end_with_parent() -> None:
    """Let a worker end when the process that started it is killed: nobody would keep what it goes on to compute."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def made_by(env: dict) -> str:
    """The commit, of which each row tells: a map grows over days, and commits."""
    return (env["commit"] or "unknown")[:7] + "-dirty" * env["dirty"]


def run_all(todo: list[tuple[Trial | None, int]], options, profile: Profile, env: dict) -> int:
    """Run trials, `options.workers` at once, and append each row as it comes; how many of them failed."""
    began, failed, made_at = time.time(), 0, {"commit": made_by(env)}
    common = (options.model, profile, options.tests)
    pool = ProcessPoolExecutor(options.workers, mp_context=get_context("spawn"), initializer=end_with_parent)
    with pool:
        jobs = [pool.submit(run_trial, trial, seed, *common, options.work) if trial else
                pool.submit(start_row, seed, *common) for trial, seed in todo]
        for count, job in enumerate(as_completed(jobs), 1):
            if error := job.exception():
                failed, told = failed + 1, f"failed: {type(error).__name__}: {error}"
            else:
                row = job.result()
                append_jsonl(options.out / "rows.jsonl", row | made_at)
                told = f"{row['experiment']}: {row['trial']}, seed {row['seed']}: {row.get('score', 'no score')} {row['stopped']}"
            left = (time.time() - began) / count * (len(todo) - count) / 60
            print(f"[{count}/{len(todo)}] {told}  (about {left:.0f} min left)", flush=True)
    return failed


def draw_all(rows: list[dict], out: Path) -> None:
    from agentcpm_kit.report.doses import draw_map, draw_trials
    from agentcpm_kit.report.figures import save_figure

    known = {row["experiment"] for row in rows}
    if "dose" in known:
        for rate in {row["rate"] for row in rows if row["experiment"] == "dose"}:
            save_figure(draw_map(rows, rate), out / f"dose-{rate:g}x.png")
    for name in known - {"dose", "start"}:
        save_figure(draw_trials(rows, name), out / f"{name}.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="micro", help="whose settings")
    parser.add_argument("--experiments", nargs="*", default=list(EXPERIMENTS), choices=list(EXPERIMENTS), help="some of them")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of questions, sampling and noise")
    parser.add_argument("--tests", type=int, default=300, help="test tasks per number of hops")
    parser.add_argument("--steps", type=int, help="of RL; default: the profile's")
    parser.add_argument("--workers", type=int, default=2, help="trials at once, each on one thread")
    parser.add_argument("--only", default="", help="trials whose name holds this text")
    parser.add_argument("--model", type=Path, default=repo_root() / "data/models/micro-merge", help="the model to start from")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.jsonl; trials that it holds are not repeated")
    parser.add_argument("--work", type=Path, default=repo_root() / "results/rl_trials", help="folder for checkpoints")
    options = parser.parse_args()
    try:
        profile = load_profile(options.profile)
        if options.steps:
            profile = profile.model_copy(update={"rl": profile.rl.changed(steps=options.steps)})
        todo = work_list(options, profile)
    except KitError as error:
        parser.error(str(error))
    print(f"{len(todo)} trials to do, {options.workers} at once; micro's take two to four minutes each on a core", flush=True)
    settings, env = {"rl": profile.rl.model_dump(), "noise": profile.noise.model_dump()}, describe(0)
    write_json(options.out / "env.json", {"command": " ".join(sys.argv), "settings": settings, "env": env})
    try:
        return 1 if run_all(todo, options, profile, env) else 0
    finally:  # also of a part of the map, where the rest is left for another time
        draw_all(read_jsonl(options.out / "rows.jsonl"), options.out)


if __name__ == "__main__":
    sys.exit(main())
