"""Ways to answer without doing the work. None may score well, or the family measures something else than research.

`closed_book` sees the question and what the training tasks teach about answers, but no tool. `first_hit` searches
the question as it stands and answers from the first result.
"""

import random
import re
from collections import Counter

from ..world import Task
from ..world.index import best_passage
from .scorers import is_right

NAME = re.compile(r"(?:the |Das )?(?:[A-Z][\w&]+ (?:of |& |by )?)*[A-Z]\w+|《[^》]+》|[\u4e00-\u9fff]+·[\u4e00-\u9fff]+")
LINK = re.compile(r"\[([^\]]+)\]")
NUMBER = re.compile(r"\d[\d,]*")


def closed_book(tasks: list[Task], known: list[Task], seed: int = 0) -> dict[str, list[bool]]:
    """Guesses from the question's own words, from the answers of `known` tasks (most frequent, or one of the same form)."""
    rng, kinds = random.Random(f"guess {seed}"), {}
    for task in known:
        kinds.setdefault(_form(task.answer), []).append(task.answer)
    found: dict[str, list[bool]] = {"a name in the question": [], "a frequent answer": [], "an answer of that form": []}
    for task in tasks:
        names = NAME.findall(task.question) or [""]
        pool = kinds.get(_form(task.answer), [""])
        found["a name in the question"].append(is_right(rng.choice(names), task))
        found["a frequent answer"].append(is_right(Counter(pool).most_common(1)[0][0], task))
        found["an answer of that form"].append(is_right(rng.choice(pool), task))
    return found


def _form(answer: str) -> str:
    """Year, number, date or name: more than a question tells, so the guesser is better informed than is fair."""
    if answer.isdigit():
        return "year" if len(answer) == 4 and answer < "1961" else "number"
    return "date" if answer[:1].isdigit() else "name"


def first_hit(tasks: list[Task]) -> dict[str, list[bool]]:
    """Title of the first result of a search for the question, and the last link and number of its snippet."""
    found: dict[str, list[bool]] = {"title": [], "link in the snippet": [], "number in the snippet": []}
    for task in tasks:
        title, snippet = _first(task)
        for name, answer in zip(found, (title, _last(LINK, snippet), _last(NUMBER, snippet)), strict=True):
            found[name].append(is_right(answer.replace(",", ""), task))
    return found


def _first(task: Task) -> tuple[str, str]:
    """Title and snippet of the first result; search is on, even where the family's agent has none."""
    hits = task.open_world().search(task.question, 1)
    return (hits[0].title, best_passage(hits[0], task.question)) if hits else ("", "")


def _last(pattern: re.Pattern, text: str) -> str:
    return (pattern.findall(text) or [""])[-1]
