"""General ability: fixed items on what the base could do and SFT never trains, for two kinds of model.

`micro` holds the six skills that micro-base was taught. `small` holds questions that a real language model answers:
arithmetic, format following and short facts, those that SmolLM2-135M-Instruct got right (`general_small`); and passages of
public-domain prose, measured as cross-entropy. Files, origins and hashes: ``data/README.md``.
"""

import hashlib
import json
import re
from pathlib import Path

from ..errors import KitError
from ..files import jsonl
from ..micro.skills import Item, draw_items
from ..profile import Profile, repo_root
from .metrics import Estimate, rate

FOLDER = "data/general"
FIXED = 800  # sums and forms that were candidates for small.jsonl
SHA256 = {"micro.jsonl": "f4cf2423b5c3aeaedcf312e1bf8559a6eeaf77756239552d5c626674e2885d9d",
          "small.jsonl": "eacf85ef5f320f6d85cf42d91792064e1b6dd32599c8f5d8c0a69aa93998b560",
          "prose.jsonl": "d2a132bc6c88072950d43d3a36c18445e12efcc0bb071aa4a40cee3c056b25f5"}


def load_items(count: int | None = None, suite: str = "micro") -> list[Item]:
    """The first `count` fixed items of a suite (all of them by default), its skills in turn; each question once.

    Raises:
        KitError: the file is not the one that the kit ships.
    """
    return list(dict.fromkeys(Item(**row) for row in _rows(f"{suite}.jsonl")))[:count]


def halves(items: list[Item]) -> tuple[list[Item], list[Item]]:
    """Two halves without a common question, equal in every skill: one to choose by, one to report on."""
    by_kind = [[item for item in items if item.skill == skill] for skill in dict.fromkeys(item.skill for item in items)]
    return [item for kind in by_kind for item in kind[::2]], [item for kind in by_kind for item in kind[1::2]]


def load_prose() -> list[str]:
    """Passages of *Alice's Adventures in Wonderland* (1865), some hundred words each.

    Raises:
        KitError: as `load_items`.
    """
    return [row["text"] for row in _rows("prose.jsonl")]


def _rows(name: str) -> list[dict]:
    content = (repo_root() / FOLDER / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise KitError(f"{FOLDER}/{name} was changed: its SHA-256 differs; get it back with `git checkout {FOLDER}/{name}`")
    return [json.loads(line) for line in content.splitlines()]


def write_items(path: Path, items: list[Item]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(jsonl(item.__dict__ for item in items))


def micro_items(count: int = 600) -> list[Item]:
    """How micro.jsonl was drawn; the recipe of micro-base leaves its prompts out where it can."""
    return draw_items(count, "held out")


def is_right(item: Item, said: str, suite: str) -> bool:
    """Whether what was `said` answers an item, judged as its suite is.

    micro: word for word. small: format items but for case and marks at the ends, lines after the last wanted one left out;
    sums by the last number of the first line; facts if the answer stands in the first line as a word of its own, since a
    language model answers in sentences.
    """
    if suite == "micro":
        return said == item.answer
    wanted = item.answer.lower()
    said = "\n".join(said.strip().lower().splitlines()[: wanted.count("\n") + 1])
    if item.skill == "format":
        return said.strip(" .\"'") == wanted
    if item.skill == "arithmetic":  # the question's own numbers may be repeated before
        return re.findall(r"\d+", said.replace(",", ""))[-1:] == [wanted]
    return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", said.replace(",", "")) is not None


def by_skill(items: list[Item], right: list[bool]) -> dict[str, Estimate]:
    """Rate for each skill, and "all"."""
    skills = {item.skill: [r for i, r in zip(items, right, strict=True) if i.skill == item.skill] for item in items}
    return {name: rate(sum(values), len(values)) for name, values in {**skills, "all": right}.items()}


def prose_loss(model: Path, profile: Profile) -> list[float]:
    """Cross-entropy of each passage of prose, in nats per token; exp of it is the perplexity."""
    import torch

    from ..agent.engines import load_model

    loaded, tokenizer = load_model(model, profile.model.dtype)
    losses = []
    for text in load_prose():
        ids = torch.tensor([tokenizer(text).input_ids], device=loaded.device)
        with torch.inference_mode():
            losses.append(loaded(input_ids=ids, labels=ids).loss.item())
    return losses


def replay_prompts(profile: Profile, count: int, seed: int) -> list[str]:
    """`count` prompts of the suite's kinds, none of which is an item or was a candidate for one.

    Sums and facts are few, and all of them are: replay has none of these.
    """
    if profile.evaluation.general_suite == "micro":
        asked, drawn = load_items(), draw_items(4 * count, f"replay {seed}")
    else:
        from .general_small import candidates

        asked, drawn = [*load_items(suite="small"), *candidates("fixed", FIXED)], candidates(f"replay {seed}", 8 * count)
    taken = {item.prompt for item in asked}
    closed = ("arithmetic", "facts")
    return list(dict.fromkeys(i.prompt for i in drawn if i.prompt not in taken and i.skill not in closed))[:count]
