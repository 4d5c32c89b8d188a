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
from ..micro.skills import Item, draw_items
from ..profile import Profile, repo_root
from .metrics import Estimate, rate

FOLDER = "data/general"
SHA256 = {"micro.jsonl": "f4cf2423b5c3aeaedcf312e1bf8559a6eeaf77756239552d5c626674e2885d9d",
          "small.jsonl": "a26fdb7f6a250a2559a90b9a1972e85ca8786ab73000d99876ee5a399143c580",
          "prose.jsonl": "d2a132bc6c88072950d43d3a36c18445e12efcc0bb071aa4a40cee3c056b25f5"}


def load_items(count: int | None = None, suite: str = "micro") -> list[Item]:
    """The first `count` fixed items of a suite (all of them by default), its skills in turn.

    Raises:
        KitError: the file is not the one that the kit ships.
    """
    return [Item(**row) for row in _rows(f"{suite}.jsonl")[:count]]


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
    path.write_text("".join(json.dumps(item.__dict__, ensure_ascii=False) + "\n" for item in items))


def micro_items(count: int = 600) -> list[Item]:
    """How micro.jsonl was drawn; the recipe of micro-base leaves its prompts out where it can."""
    return draw_items(count, "held out")


def is_right(item: Item, said: str, suite: str) -> bool:
    """Whether what was `said` answers an item, judged as its suite is.

    micro: word for word. small: format items but for case and marks at the ends, lines after the last wanted one left out;
    the others if the answer stands in the first line as a word of its own, since a language model answers in sentences.
    """
    if suite == "micro":
        return said == item.answer
    wanted = item.answer.lower()
    said = "\n".join(said.strip().lower().splitlines()[: wanted.count("\n") + 1])
    if item.skill == "format":
        return said.strip(" .\"'") == wanted
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
    """`count` prompts of the suite's kinds that none of its items asks, where a kind has others to offer."""
    suite = profile.evaluation.general_suite
    if suite == "micro":
        asked = frozenset(item.prompt for item in load_items())
        return [item.prompt for item in draw_items(count, f"replay {seed}", asked)]
    from .general_small import candidates

    asked = {item.prompt for item in load_items(suite=suite)}
    prompts = [item.prompt for item in candidates(f"replay {seed}", 4 * count) if item.prompt not in asked]
    return list(dict.fromkeys(prompts))[:count]
