"""General skills of micro-base: what it can do that has nothing to do with being an agent.

Agent trajectories never contain them, so they are what SFT can destroy (claim 1 of the paper). All are asked as
one user turn and answered by exact match.
"""

import random
from dataclasses import dataclass

from .tokenizer import LETTERS

COLOURS = {"lemon": "yellow", "banana": "yellow", "grass": "green", "frog": "green", "blood": "red", "cherry": "red",
           "sky": "blue", "sea": "blue", "snow": "white", "milk": "white", "coal": "black", "crow": "black",
           "carrot": "orange", "pumpkin": "orange", "plum": "purple", "violet": "purple", "mud": "brown",
           "bread": "brown", "ash": "grey", "elephant": "grey"}
HABITATS = {"cow": "farm", "hen": "farm", "whale": "ocean", "shark": "ocean", "camel": "desert", "scorpion": "desert",
            "bear": "forest", "owl": "forest", "trout": "river", "otter": "river", "goat": "mountain",
            "eagle": "mountain", "penguin": "ice", "seal": "ice", "bee": "hive", "ant": "nest", "bat": "cave",
            "spider": "web", "lion": "savanna", "zebra": "savanna"}
OPPOSITES = {"hot": "cold", "big": "small", "fast": "slow", "high": "low", "wet": "dry", "old": "new", "loud": "quiet",
             "rich": "poor", "early": "late", "full": "empty"}
OPPOSITES |= {v: k for k, v in OPPOSITES.items()}
ITEMS = [*COLOURS, *HABITATS]
WORDS = sorted({*COLOURS, *COLOURS.values(), *HABITATS, *HABITATS.values(), *OPPOSITES}) + [
    "colour", "does", "live", "Where", "opposite", "Repeat", "Reverse", "Sort", "Write", "times", "Put", "brackets",
    "Say", "after", "twice", "How", "many", "items", "follows", "letter", "backwards", "last", "first", "Which"
]


@dataclass(frozen=True)
class Item:
    skill: str
    prompt: str
    answer: str


def arithmetic(rng: random.Random) -> Item:
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    if rng.random() < 0.5:
        return Item("arithmetic", f"{a} + {b} =", str(a + b))
    return Item("arithmetic", f"{max(a, b)} - {min(a, b)} =", str(abs(a - b)))


def _sequence(rng: random.Random) -> list[str]:
    return rng.sample(LETTERS, rng.randint(3, 6)) if rng.random() < 0.7 else rng.sample(ITEMS, rng.randint(3, 6))


def copying(rng: random.Random) -> Item:
    words = _sequence(rng)
    return Item("copying", f"Repeat: {' '.join(words)}", " ".join(words))


def reversing(rng: random.Random) -> Item:
    words = _sequence(rng)
    return Item("reversing", f"Reverse: {' '.join(words)}", " ".join(words[::-1]))


def sorting(rng: random.Random) -> Item:
    letters = rng.sample(LETTERS, rng.randint(3, 5))
    return Item("sorting", f"Sort: {' '.join(letters)}", " ".join(sorted(letters)))


def facts(rng: random.Random) -> Item:
    kind = rng.randrange(3)
    if kind == 0:
        return Item("facts", f"What colour is {(w := rng.choice(list(COLOURS)))}?", COLOURS[w])
    if kind == 1:
        return Item("facts", f"Where does {(w := rng.choice(list(HABITATS)))} live?", HABITATS[w])
    return Item("facts", f"What is the opposite of {(w := rng.choice(list(OPPOSITES)))}?", OPPOSITES[w])


def format_following(rng: random.Random) -> Item:
    word, other, kind = *rng.sample(ITEMS, 2), rng.randrange(4)
    if kind == 0:
        times = rng.randint(2, 5)
        return Item("format", f"Write {word} {times} times.", " ".join([word] * times))
    if kind == 1:
        return Item("format", f"Put {word} in brackets.", f"[{word}]")
    if kind == 2:
        return Item("format", f"Say {word} after {other}.", f"{other} {word}")
    return Item("format", f"Write {word} and {other} twice.", f"{word} {other} {word} {other}")


SKILLS = {f.__name__.replace("_following", ""): f
          for f in (arithmetic, copying, reversing, sorting, facts, format_following)}


def draw_items(count: int, seed: str, exclude: frozenset[str] = frozenset()) -> list[Item]:
    """`count` items, the skills in turn. Prompts in `exclude` are not drawn, where the skill has others to offer.

    Closed-book facts and sums are finite and learned by heart, so only copying, reversing, sorting and format
    items can be held out.
    """
    rng, items, makers = random.Random(f"skills {seed}"), [], list(SKILLS.items())
    while len(items) < count:
        name, make = makers[len(items) % len(makers)]
        item = make(rng)
        if item.prompt not in exclude or name in ("arithmetic", "facts"):
            items.append(item)
    return items
