"""The one scorer: rewards and scores come from here, so they mean the same thing."""

import math
import re
import string
import unicodedata
from collections.abc import Sequence

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
DRESS = re.compile(r"^(?:[\s*_\"'`“”‘’。]|\.(?!\d))+|[\s*_\"'`“”‘’。.]+$")  # a full stop before digits is a number's


def is_right(answer: str, task: Task) -> bool:
    """Whether an answer is the gold one or one of its aliases, by GAIA's rule or but for how it is dressed.

    Dress is Markdown, quotation marks and other punctuation of any script, and the article before a name.
    """
    bare = _undressed(answer)
    return any(gaia_match(bare, truth) or bool(_letters(bare)) and _letters(bare) == _letters(truth)
               for truth in (task.answer, *task.aliases))


def _undressed(answer: str) -> str:
    return DRESS.sub("", LINK.sub(r"\1", answer))


def _letters(text: str) -> str:
    """A text without case, spaces, punctuation and leading article; "" for a number, which is compared by value."""
    text = unicodedata.normalize("NFKC", text).lower().strip()
    if _is_number(text.replace(",", "")):
        return ""
    return "".join(c for c in text.removeprefix("the ") if c.isalnum())


def numeric_match(prediction: str, truth: str, relative: float = 0.0, absolute: float = 0.0) -> bool:
    """Whether two numbers are equal within a tolerance; False where one of them is no finite number. Unit marks are taken off."""
    one, two = _number(prediction), _number(truth)
    return math.isfinite(one) and math.isfinite(two) and math.isclose(one, two, rel_tol=relative, abs_tol=absolute)


def normal_form(answer: str | None) -> str | None:
    """The same text for answers that `is_right` takes for the same: what a majority is counted by. None for no answer."""
    if answer is None:
        return None
    bare = _undressed(answer)
    value = _number(bare)
    return repr(value) if math.isfinite(value) else _letters(bare) or bare


def by_rule(pairs: Sequence[tuple[Trajectory, Task]], tolerance: float = 0.0) -> list[bool]:
    """Whether each answer is right; no answer is wrong. For trajectories that did not end as faults.

    By `is_right`, or as a number within a relative `tolerance`; GAIA's own tasks by GAIA's own rule alone.
    """
    def right(answer: str, task: Task) -> bool:
        if task.family == "gaia":
            return gaia_match(answer, task.answer)
        return is_right(answer, task) or tolerance > 0 and numeric_match(_undressed(answer), task.answer, tolerance)

    return [t.answer is not None and right(t.answer, task) for t, task in pairs]


def score(trajectory: Trajectory, task: Task) -> Trajectory:
    """Set `correct`. Faults stay unscored (None): a broken tool is not a wrong answer."""
    if trajectory.end_reason.is_fault:
        trajectory.correct = None
    else:
        trajectory.correct = by_rule([(trajectory, task)])[0]
    return trajectory
