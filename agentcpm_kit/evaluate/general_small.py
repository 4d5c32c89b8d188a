"""How ``data/general/small.jsonl`` was made: ``python -m agentcpm_kit.evaluate.general_small`` (after `make setup-small`).

Candidates of three kinds are put to SmolLM2-135M-Instruct, greedily; those that it gets right are kept, so the base model
starts at about 1 and what is measured afterwards is loss. Another processor rounds differently and may lose an item or two.
"""

import csv
import random
from itertools import zip_longest

from ..micro.skills import COLOURS, HABITATS, Item
from ..profile import load_profile, repo_root
from .general import FIXED, FOLDER, is_right, write_items

WORDS = sorted({*COLOURS, *HABITATS})
OPERATIONS = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "times": lambda a, b: a * b}


def facts() -> list[Item]:
    with open(repo_root() / FOLDER / "facts.csv", newline="") as file:
        return [Item("facts", row["question"], row["answer"]) for row in csv.DictReader(file)]


def arithmetic(rng: random.Random) -> Item:
    name, operation = rng.choice(list(OPERATIONS.items()))
    b, a = sorted((rng.randint(1, 12), rng.randint(1, 12)))
    return Item("arithmetic", f"What is {a} {name} {b}?", str(operation(a, b)))


def format_following(rng: random.Random) -> Item:
    """Forms that so small a model can follow at all; most others it does not ("Count from 1 to 5.")."""
    one, two, three, kind = *rng.sample(WORDS, 3), rng.randrange(4)
    sentence = rng.choice(["I see a {} and a {}.", "The {} is near the {}.", "My {} likes your {}."]).format(one, two)
    return Item("format", *[
        (f"Repeat the following sentence: {sentence}", sentence.rstrip(".")),
        (f'Write a Python line that prints "{one}".', f'print("{one}")'),
        (f"Make a numbered list: {one}, {two}, {three}", f"1. {one}\n2. {two}\n3. {three}"),
        (f'Repeat the following words: "{one} {two} {three}"', f"{one} {two} {three}")][kind])


def candidates(seed: str, count: int) -> list[Item]:
    """Arithmetic and format items, `count` in all, in turn."""
    rng = random.Random(f"small items {seed}")
    return [(arithmetic, format_following)[i % 2](rng) for i in range(count)]


def main() -> None:
    from ..agent.engines import open_engine
    from .runner import answer_items

    profile = load_profile("small")
    items = list({item.prompt: item for item in [*facts(), *candidates("fixed", FIXED)]}.values())
    with open_engine(repo_root() / profile.model.base, profile, temperature=0.0) as engine:
        said = answer_items(engine, items, profile.evaluation.general_tokens)
    good = [item for item, text in zip(items, said, strict=True) if is_right(item, text, "small")]
    kinds = {skill: [item for item in good if item.skill == skill][:100] for skill in ("arithmetic", "format", "facts")}
    print({skill: (len(kept), sum(i.skill == skill for i in items)) for skill, kept in kinds.items()}, "kept, of candidates")
    turns = [item for row in zip_longest(*kinds.values()) for item in row if item]
    write_items(repo_root() / FOLDER / "small.jsonl", turns)


if __name__ == "__main__":
    main()
