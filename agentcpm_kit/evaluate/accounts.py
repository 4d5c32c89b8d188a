"""What an evaluation used: tokens and calls per run, and what they cost at the prices of data/prices.yaml."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import pandas as pd
import yaml

from ..agent.trajectory import Trajectory
from ..profile import repo_root

COUNTED = ("turns", "tokens_read", "tokens_written")


def account(trajectory: Trajectory) -> dict:
    """Tokens and calls of one run.

    `tokens_read` adds up the whole context before every turn, which is what APIs charge for, cached or not; `tokens_written` are
    those sampled. `billed` is the same as the server counts it: None unless it told of every turn. None of them holds what a turn
    cost that was asked for again after a fault.
    """
    steps = trajectory.steps
    calls = Counter(call["name"] for step in steps for call in step.calls)
    told = all(step.billed for step in steps)
    billed = [sum(counts) for counts in zip(*(step.billed for step in steps), strict=True)] if told else None
    return {"turns": trajectory.turns, "tokens_read": sum(step.tokens_before for step in steps),
            "tokens_written": trajectory.tokens_generated, "billed": billed or None, "tool_calls": dict(sorted(calls.items()))}


def as_billed(rows: Sequence[dict]) -> tuple[list[dict], bool]:
    """The rows with the server's counts in the place of the kit's, if it told them of every run; and whether it did."""
    played = [row for row in rows if row.get("turns")]
    if not played or not all(row.get("billed") for row in played):
        return list(rows), False
    names = "tokens_read", "tokens_written"
    return [{**row, **dict(zip(names, row.get("billed") or (0, 0), strict=True))} for row in rows], True


def used_by_task(rows: Iterable[dict], model: str) -> pd.DataFrame:
    """A line per task: turns, tokens and tool calls of all its runs, and dollars where the model has a price."""
    table = pd.DataFrame([{**{what: row.get(what, 0) for what in COUNTED}, "task_id": row["task_id"],
                           "tool_calls": sum(row.get("tool_calls", {}).values())} for row in rows])
    table = table.groupby("task_id", sort=False).sum()
    return table.assign(dollars=[cost(model, [task]) for task in table.to_dict("records")])


@cache
def prices() -> dict[str, dict]:
    """Model -> its price in dollars per million tokens, `read` and `written`, with `date`."""
    return yaml.safe_load((repo_root() / "data/prices.yaml").read_text())


def cost(model: str, rows: Iterable[dict]) -> float | None:
    """Dollars for the tokens of all rows; None where the model has no price."""
    price = prices().get(model)
    if price is None:
        return None
    rows = list(rows)
    return sum(price[way] * row.get(f"tokens_{way}", 0) for row in rows for way in ("read", "written")) / 1e6
