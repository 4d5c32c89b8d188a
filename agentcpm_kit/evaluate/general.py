"""General ability: fixed items on what the base could do and SFT never trains (`data/general/micro.jsonl`)."""

import hashlib
import json
from pathlib import Path

from ..errors import KitError
from ..micro.skills import Item, draw_items
from ..profile import repo_root

ITEMS_FILE = "data/general/micro.jsonl"
ITEMS_SHA256 = "f4cf2423b5c3aeaedcf312e1bf8559a6eeaf77756239552d5c626674e2885d9d"


def load_items(count: int | None = None) -> list[Item]:
    """The first `count` fixed items (all of them by default), the six skills in turn.

    Raises:
        KitError: the file is not the one that the kit ships.
    """
    content = (repo_root() / ITEMS_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() != ITEMS_SHA256:
        raise KitError(f"{ITEMS_FILE} was changed: its SHA-256 differs; get it back with `git checkout {ITEMS_FILE}`")
    items = [Item(**json.loads(line)) for line in content.splitlines()]
    return items[:count]


def write_items(path: Path, count: int = 600) -> None:
    """How the file was made; the recipe of micro-base leaves its prompts out where it can."""
    lines = [json.dumps(item.__dict__) for item in draw_items(count, "held out")]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
