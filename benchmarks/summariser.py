"""The fine-tuned page summariser of a real language model beside the same model untrained, on pages of unseen worlds.

    python benchmarks/summariser.py --out results/reference/benchmarks/summariser.json      # after `make setup-small`

Training is that of notebook 08 with the profile `small`; a checkpoint that is there already (`--model`) is measured as it
is. Both models get the same prompt, greedily, for the same pages of the test worlds at each contamination:

`exact`: nothing but the evidence, word for word; `held`: the evidence is among what was written; `absent`: says that there
is nothing where the page lacks what it is asked for; `length`: characters written for each character of the page.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

from agentcpm_kit.agent.summarise import Summariser
from agentcpm_kit.environment import describe
from agentcpm_kit.evaluate.metrics import mean, rate
from agentcpm_kit.evaluate.runner import suite
from agentcpm_kit.files import write_json
from agentcpm_kit.profile import Profile, load_profile, repo_root, results_root, set_seed
from agentcpm_kit.train.summariser import Pair, gold_pairs, is_exact, open_summariser, train_summariser, unanswerable


def train(profile: Profile, out: Path, seed: int) -> dict:
    """`train_summariser` with a line per tenth of the work; killed, it goes on after its last whole epoch."""
    started = time.monotonic()

    def tell(step: int, steps: int, values: dict) -> None:
        if step % max(1, steps // 10) == 0:
            print(f"step {step} of {steps}, loss {values['loss']:.3f}, {time.monotonic() - started:.0f} s", file=sys.stderr)

    result = train_summariser(repo_root() / profile.model.base, profile, out, seed, tell)
    return result | {"seconds": round(time.monotonic() - started)}


def shares(summariser: Summariser, pairs: list[Pair], seed: int) -> dict:
    """The four measures over the pairs; a fault of the engine counts as nothing written."""
    written = summariser.condense([(pair.page, pair.purpose) for pair in pairs])
    both = [(text if isinstance(text, str) else "", pair) for text, pair in zip(written, pairs, strict=True)]
    denied = is_exact(summariser, unanswerable(pairs, random.Random(seed)))
    found = {"exact": rate(sum(text == pair.evidence for text, pair in both), len(both)),
             "held": rate(sum(pair.evidence in text for text, pair in both), len(both)),
             "absent": rate(sum(denied), len(denied)),
             "length": mean([len(text) / len(pair.page) for text, pair in both])}
    return {name: estimate.fields() for name, estimate in found.items()}


def measure(model: Path, profile: Profile, pages: int, seed: int) -> list[dict]:
    """A row for each contamination."""
    rows = []
    with open_summariser(model, profile) as summariser:
        for redundancy in profile.refine.redundancies:
            tasks = suite(profile, "test", pages, [max(profile.evaluation.hops)], redundancy)
            pairs = random.Random(seed).sample(gold_pairs(tasks), pages)
            rows.append({"redundancy": redundancy} | shares(summariser, pairs, seed))
            print(model.name, json.dumps(rows[-1]), file=sys.stderr)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="small", help="whose model and settings")
    parser.add_argument("--pages", type=int, default=100, help="pages at each contamination")
    parser.add_argument("--model", type=Path, help="where the fine-tuned summariser is, or shall be")
    parser.add_argument("--seed", type=int, default=0, help="of the training and of the choice of pages")
    parser.add_argument("--out", type=Path, help="file for the result, with command and machine")
    options = parser.parse_args()
    profile = load_profile(options.profile)
    set_seed(options.seed, profile.threads)
    tuned = options.model or results_root() / options.profile / "summariser"
    trained = None if (tuned / "SHA256SUMS").is_file() else train(profile, tuned, options.seed)
    result = {"training": trained}
    for name, model in {"base": repo_root() / profile.model.base, "finetuned": tuned}.items():
        result[name] = measure(model, profile, options.pages, options.seed)
    print(json.dumps(result, indent=1))
    if options.out:
        write_json(options.out, result | {"command": " ".join(sys.argv), "env": describe(options.seed)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
