"""The one scorer: rewards and scores come from here, so they mean the same thing."""

import re
import string
import unicodedata

from ..agent.trajectory import Trajectory
from ..world.tasks import Task


def gaia_match(prediction: str, truth: str) -> bool:
    """GAIA's quasi-exact match: numbers by value, comma- or semicolon-separated lists item by item, else text.

    Text is compared without case, white space and punctuation; items of a list keep their punctuation.
    """
    prediction = "None" if prediction is None else str(prediction)
    if _is_number(truth):
        return _number(prediction) == float(truth)
    if any(mark in truth for mark in ",;"):
        items, wanted = re.split("[,;]", prediction), re.split("[,;]", truth)
        return len(items) == len(wanted) and all(map(_item_match, items, wanted))
    return _plain(prediction) == _plain(truth)


def _item_match(item: str, wanted: str) -> bool:
    if _is_number(wanted):
        return _number(item) == float(wanted)
    return re.sub(r"\s", "", item).lower() == re.sub(r"\s", "", wanted).lower()


def _is_number(text: str) -> bool:
    try:
        float(text)
        return True
    except ValueError:
        return False


def _number(text: str) -> float:
    """Value of a number with unit marks ($ % ,) removed; infinity where there is none, so that it equals nothing."""
    for mark in "$%,":
        text = text.replace(mark, "")
    return float(text) if _is_number(text) else float("inf")


def _plain(text: str) -> str:
    return re.sub(r"\s", "", text).lower().translate(str.maketrans("", "", string.punctuation))


LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def is_right(answer: str, task: Task) -> bool:
    """Whether an answer is the gold one or one of its aliases, by GAIA's rule or but for how it is dressed.

    Dress is Markdown, quotation marks and other punctuation of any script, and the article before a name.
    """
    bare = LINK.sub(r"\1", answer).strip(" \n*_\"'`“”‘’。.")
    return any(gaia_match(bare, truth) or bool(_letters(bare)) and _letters(bare) == _letters(truth)
               for truth in (task.answer, *task.aliases))


def _letters(text: str) -> str:
    """A text without case, spaces, punctuation and leading article; "" for a number, which is compared by value."""
    text = unicodedata.normalize("NFKC", text).lower().strip()
    if _is_number(text.replace(",", "")):
        return ""
    return "".join(c for c in text.removeprefix("the ") if c.isalnum())


def score(trajectory: Trajectory, task: Task) -> Trajectory:
    """Set `correct`. Faults stay unscored (None): a broken tool is not a wrong answer."""
    if trajectory.end_reason.is_fault:
        trajectory.correct = None
    else:
        trajectory.correct = trajectory.answer is not None and is_right(trajectory.answer, task)
    return trajectory
