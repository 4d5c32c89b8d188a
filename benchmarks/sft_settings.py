"""Which settings of SFT make the best agent, which forget least, and what a merge returns of it: the trials behind a profile.

    python benchmarks/sft_settings.py --out results/reference/benchmarks/sft_settings      # 40 minutes, resumes

Every setting trains on the same records of notebook 03 (oracle alone; one on twice as many) from the same seed, and is
measured on validation worlds and on the half of the general items that choices may see, as is; merged linearly with the
base at a weight of 0.9; and merged by parts (the first recipe of the profile). One row each in ``rows.jsonl``, drawn in
``settings.png``; test worlds stay closed.
"""

import argparse
import shutil
import sys
from pathlib import Path

from agentcpm_kit.environment import describe
from agentcpm_kit.evaluate.general import halves, load_items
from agentcpm_kit.evaluate.runner import measure, suite
from agentcpm_kit.files import append_jsonl, read_jsonl, write_json
from agentcpm_kit.profile import Profile, load_profile, repo_root, set_seed

TWICE = "1 epoch of twice the records"
TRIALS = {  # what differs from the profile's own settings; with more epochs, more tokens (TWICE has as many)
    "profile": {},
    "1e-4": {"learning_rate": 1e-4},
    "1e-4, batches of 2": {"learning_rate": 1e-4, "batch_size": 2},
    "1.4e-4, batches of 2": {"learning_rate": 1.4e-4, "batch_size": 2},
    "1.4e-4, 3 epochs, batches of 4": {"learning_rate": 1.4e-4, "epochs": 3, "batch_size": 4},
    "1.4e-4, 4 epochs, batches of 8": {"learning_rate": 1.4e-4, "epochs": 4, "batch_size": 8},
    "3.5e-4, 3 epochs, batches of 8": {"learning_rate": 3.5e-4, "epochs": 3, "batch_size": 8},
    TWICE: {"epochs": 1},
    "epsilon 1e-8": {"adam_epsilon": 1e-8},
    "epsilon 1e-4": {"adam_epsilon": 1e-4},
    "LoRA of rank 32, 5e-4": {"lora_rank": 32, "learning_rate": 5e-4},
    "LoRA of rank 32, 3e-4": {"lora_rank": 32, "learning_rate": 3e-4},
    "LoRA of rank 32, 2e-4": {"lora_rank": 32, "learning_rate": 2e-4},
    "LoRA of rank 32, 1e-4": {"lora_rank": 32, "learning_rate": 1e-4},
}


def records(name: str, profile: Profile, seed: int) -> list[dict]:
    """The oracle's records that a trial trains on."""
    from agentcpm_kit.agent.engines.loading import load_tokenizer
    from agentcpm_kit.train.data import keep_good, oracle_trajectories, training_rows, training_tasks

    count = profile.trajectories.oracle * (2 if name == TWICE else 1)
    tokenizer = load_tokenizer(repo_root() / profile.model.base)
    oracle = oracle_trajectories(training_tasks(profile, count, 2 * seed), tokenizer, profile)
    return training_rows(keep_good(oracle.trajectories).kept)


def trial(name: str, profile: Profile, tasks: list, items: list, folder: Path, seed: int) -> dict:
    """Train one setting, unless its checkpoint is there, and measure it alone and merged."""
    from agentcpm_kit.train.merge import merge
    from agentcpm_kit.train.merge_grid import Candidate, candidate_config
    from agentcpm_kit.train.sft import Watchers, fine_tune

    base, model = repo_root() / profile.model.base, folder / name.replace(" ", "-").replace(",", "")
    settings = profile.sft.changed(checks=0, **TRIALS[name])
    if not (model / "SHA256SUMS").is_file():
        tell = Watchers(lambda step, n, log: print(f"\r{name}: step {step} of {n} ", end="", file=sys.stderr))
        fine_tune(base, records(name, profile, seed), profile, settings, model, seed, tell)
    candidates = {"linear": Candidate("linear", 0.9), "by parts": Candidate("ties", parts=next(iter(profile.merge.parts)))}
    row = {"trial": name, **settings.model_dump(), "n": len(tasks), **_scores("", model, profile, tasks, items)}
    for kind, candidate in candidates.items():
        out = merge(candidate_config(candidate, base, [model], profile.merge, profile.model.dtype), folder / "merged", seed)
        row |= _scores(f"{kind}: ", out, profile, tasks, items)
        shutil.rmtree(out)
    return row


def _scores(prefix: str, model: Path, profile: Profile, tasks: list, items: list) -> dict:
    m = measure(model, tasks, items, profile)
    return {f"{prefix}success": round(m.agent.success.value, 4), f"{prefix}general": round(m.general["all"].value, 4)}


def draw(rows: list[dict], path: Path) -> None:
    """What each setting makes of agent and memory, as is and merged."""
    from agentcpm_kit.report.figures import COLOURS, MARKS, new_figure, save_figure

    figure, panels = new_figure(2, sharey=True, figsize=(8.6, 0.8 + 0.36 * len(rows)))
    ways = {"": "as is", "linear: ": "merged linearly, weight 0.9", "by parts: ": "merged by parts"}
    names = [row["trial"] for row in rows][::-1]
    for axes, what, label in zip(panels, ("success", "general"), ("validation tasks solved", "general ability"), strict=True):
        for (prefix, way), mark, colour in zip(ways.items(), MARKS, COLOURS, strict=False):
            axes.plot([row[prefix + what] for row in rows][::-1], names, mark, color=colour, label=way)
        axes.set(xlabel=label)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, loc="outside upper center", fontsize=9)
    save_figure(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="micro", help="whose model and settings")
    parser.add_argument("--tasks", type=int, default=100, help="validation tasks per number of hops")
    parser.add_argument("--trials", nargs="*", default=list(TRIALS), choices=list(TRIALS), metavar="NAME", help="some of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.jsonl; trials that it holds are not repeated")
    parser.add_argument("--work", type=Path, default=Path("results/sft_settings"), help="folder for checkpoints")
    options = parser.parse_args()
    profile = load_profile(options.profile)
    set_seed(options.seed, profile.threads)
    tasks = suite(profile, "validation", options.tasks)
    seen, _ = halves(load_items(profile.evaluation.general_items, profile.evaluation.general_suite))
    done = {row["trial"] for row in read_jsonl(options.out / "rows.jsonl")}
    for name in options.trials:
        if name not in done:
            row = trial(name, profile, tasks, seen, options.work / f"{profile.name}-seed{options.seed}", options.seed)
            append_jsonl(options.out / "rows.jsonl", row)
            print(row)
    rows = sorted(read_jsonl(options.out / "rows.jsonl"), key=lambda row: [*TRIALS, row["trial"]].index(row["trial"]))
    draw(rows, options.out / "settings.png")
    write_json(options.out / "env.json", {"command": " ".join(sys.argv), "env": describe(options.seed)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
