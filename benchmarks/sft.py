"""How long SFT takes, and whether a run that is killed half way ends where an unbroken one does.

    python benchmarks/sft.py --out results/reference/benchmarks/sft.json

Trains on the oracle's records and the profile's settings as notebook 04 does, without its checks of the agent: once
unbroken, and once killed with SIGKILL at half of the steps and started again. Each run is a process of its own, since
Unsloth patches the libraries it trains with; `seconds` are those of `fine_tune`, the start of Unsloth included.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from agentcpm_kit.artefacts import file_sha256
from agentcpm_kit.environment import describe
from agentcpm_kit.files import write_json
from agentcpm_kit.profile import load_profile, repo_root, set_seed

LIMIT_S, TOLERANCE = 180, 0.01  # what the kit promises of micro on two cores


def train(name: str, seed: int, records: int, out: Path) -> None:
    """The child: one line for each step, then the summary."""
    from agentcpm_kit.agent.engines.loading import load_tokenizer
    from agentcpm_kit.train.data import keep_good, oracle_trajectories, training_rows, training_tasks
    from agentcpm_kit.train.sft import Watchers, fine_tune

    profile = load_profile(name)
    set_seed(seed, profile.threads)
    base = repo_root() / profile.model.base
    tasks = training_tasks(profile, records, 2 * seed)
    rows = training_rows(keep_good(oracle_trajectories(tasks, load_tokenizer(base), profile).trajectories).kept)
    started = time.monotonic()
    tell = Watchers(lambda step, steps, log: print(f"step {step} {steps}", flush=True))
    done = fine_tune(base, rows, profile, profile.sft, out, seed, tell)
    print("done", json.dumps(done | {"records": len(rows), "seconds": round(time.monotonic() - started, 1)}), flush=True)


def run(arguments: list[str], kill_at: float = 2.0) -> dict | None:
    """Start a child and read it to its end, or kill it at a share of its steps; its summary, None if it was killed."""
    child = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in child.stdout:
        word, _, rest = line.partition(" ")
        if word == "done":
            return json.loads(rest)
        if word == "step" and int(rest.split()[0]) >= kill_at * int(rest.split()[1]):
            child.send_signal(signal.SIGKILL)
            child.wait()
            return None
    raise SystemExit(f"the training ended without a result (exit status {child.wait()})")


def measure(profile: str, seed: int, records: int, folder: Path) -> dict:
    common = ["--profile", profile, "--seed", str(seed), "--records", str(records), "--child"]
    whole = run([*common, str(folder / "whole")])
    print(json.dumps({"unbroken": whole}), file=sys.stderr)
    run([*common, str(folder / "broken")], kill_at=0.5)
    resumed = run([*common, str(folder / "broken")])
    same = file_sha256(folder / "whole/model.safetensors") == file_sha256(folder / "broken/model.safetensors")
    difference = abs(resumed["final_loss"] / whole["final_loss"] - 1)
    return {"unbroken": whole, "resumed": resumed, "relative_difference": round(difference, 6), "same_weights": same}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="micro", help="whose model and settings")
    parser.add_argument("--records", type=int, default=0, help="oracle's records (default: the profile's number and a tenth)")
    parser.add_argument("--seed", type=int, default=0, help="of records and order")
    parser.add_argument("--out", type=Path, help="file for the result, with command and machine")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    records = options.records or round(1.1 * load_profile(options.profile).trajectories.oracle)
    if options.child:
        train(options.profile, options.seed, records, options.child)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options.profile, options.seed, records, Path(folder))
    print(json.dumps(result))
    if options.out:
        write_json(options.out, result | {"command": " ".join(sys.argv), "env": describe(options.seed)})
    return 0 if result["relative_difference"] <= TOLERANCE and result["unbroken"]["seconds"] <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
