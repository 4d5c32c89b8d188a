"""The fine-tuned page summariser of the paper: from (page, purpose) to the evidence, by the same SFT as the agent's.

The paper trains its summariser on data that it does not publish. Ours learns from the world's gold evidence: a gold path
says which page is opened for which purpose, and which passages of it are needed. One pair in eight shows a page that does
not hold what is sought, so that the summariser learns to say so (our assumption). Pages of the training worlds only.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..agent.context import purpose_of
from ..agent.engines import open_engine
from ..agent.engines.loading import load_tokenizer
from ..agent.summarise import Summariser, page_prompt, prompt_ids
from ..agent.tokens import encode
from ..profile import Profile
from ..world import Task, Tools
from ..world.atlas import make_world, world_seeds
from ..world.plain.chains import make_task
from .data import IGNORED
from .sft import OnStep, Watchers, fine_tune

NOTHING = "No results found."
CHAINS = 3  # tasks from each world
MISSING = 8  # one pair in so many has a page without the evidence


@dataclass(frozen=True)
class Pair:
    """A page as the tool shows it, the purpose it was opened for, and what a good summary of it says."""

    page: str
    purpose: str
    evidence: str


def gold_pairs(tasks: Iterable[Task]) -> list[Pair]:
    """A pair for each page that the gold paths open; pages without any gold passage are left out."""
    pairs = []
    for task in tasks:
        tools = Tools(task.open_world(), names=task.tools)
        for step in task.steps:
            for url in step.arguments.get("url", ()):
                page = tools.call("fetch_url", {**step.arguments, "url": [url]})
                found = [passage for passage in step.evidence if passage in page]
                if found:
                    pairs.append(Pair(page, purpose_of(step.arguments), "\n".join(found)))
    return pairs


def unanswerable(pairs: list[Pair], rng: random.Random) -> list[Pair]:
    """The same pages, asked for what other pages were opened for: "seat of Ann" of Ann's page, where it says no such thing."""
    asked = [(pair, rng.choice(pairs).purpose.partition(" of ")[0], pair.purpose.partition(" of ")[2]) for pair in pairs]
    return [Pair(pair.page, f"{relation} of {entity}", NOTHING) for pair, relation, entity in asked
            if f"{entity} has {relation} " not in pair.page]


def with_missing(pairs: list[Pair], rng: random.Random) -> list[Pair]:
    """Every eighth page exchanged for one that does not hold the evidence.

    More of them, and harder ones, were tried on validation worlds: with half of 3,000 pairs `unanswerable` or exchanged,
    micro says so for .49 of the unanswerable (else none) but finds the evidence of .81 of the clean pages (else 1.00), and
    the agent that it serves solves fewer tasks (.34, else .43).
    """
    mixed = list(pairs)
    for i in range(0, len(pairs), MISSING):
        other = rng.choice(pairs).page
        if not any(line in other for line in pairs[i].evidence.split("\n")):
            mixed[i] = Pair(other, pairs[i].purpose, NOTHING)
    return mixed


def summary_tasks(profile: Profile, worlds: int) -> Iterator[Task]:
    """Long chains from `worlds` training worlds, their contamination at the profile's levels in turn.

    Few chains a world: 8,000 pairs from the agent's two hundred worlds were learned by heart (95% right on their pages, 57% on
    those of unseen worlds).
    """
    world, levels, rng = profile.world, profile.refine.redundancies, random.Random("summary tasks")
    for i, seed in enumerate(world_seeds("train", worlds)):
        opened = make_world(seed, world.entities, levels[i % len(levels)])
        yield from (make_task(rng, opened, max(profile.evaluation.hops), n) for n in range(CHAINS))


def summary_pairs(profile: Profile, seed: int = 0) -> list[Pair]:
    """The profile's number of pairs."""
    count = profile.refine.summariser.pairs
    pairs = gold_pairs(summary_tasks(profile, -(-count // (CHAINS * max(profile.evaluation.hops)))))
    rng = random.Random(f"summary pairs {seed}")
    rng.shuffle(pairs)
    return with_missing(pairs[:count], rng)


def summary_rows(pairs: list[Pair], tokenizer, prompt: str) -> list[dict]:
    """`input_ids` and `labels`: the prompt is given, the evidence and the end token are learned."""
    end, rows = tokenizer.convert_tokens_to_ids("<|im_end|>"), []
    for pair in pairs:
        given = prompt_ids(tokenizer, page_prompt(prompt, pair.page, pair.purpose))
        learned = [*encode(tokenizer, pair.evidence), end]
        rows.append({"input_ids": given + learned, "labels": [IGNORED] * len(given) + learned})
    return rows


def train_summariser(base: Path, profile: Profile, out: Path, seed: int = 0, on_step: OnStep | None = None) -> dict:
    """Fine-tune `base` on the profile's pairs and save it in `out`; as `sft.fine_tune`."""
    settings = profile.refine.summariser
    rows = summary_rows(summary_pairs(profile, seed), load_tokenizer(base), settings.prompt)
    own = settings.model_dump(include={"epochs", "batch_size", "learning_rate"}) | {"adam_epsilon": 1e-8}  # nothing to remember
    sft = profile.sft.changed(**own)
    return fine_tune(base, rows, profile, sft, out, seed, Watchers(on_step))


def open_summariser(model: Path, profile: Profile) -> Summariser:
    """A summariser over the model in a folder, greedy, with the profile's prompt."""
    settings = profile.refine.summariser
    room = profile.limits.max_context_tokens - settings.max_new_tokens
    return Summariser(open_engine(model, profile, temperature=0.0), settings.prompt, f"{settings.prompt}_history",
                      settings.max_new_tokens, room)


def is_exact(summariser: Summariser, pairs: list[Pair]) -> list[bool]:
    """For each pair, whether the summariser writes the evidence word for word and nothing else."""
    written = summariser.condense([(pair.page, pair.purpose) for pair in pairs])
    return [text == pair.evidence for text, pair in zip(written, pairs, strict=True)]
