"""What an evaluation used: tokens and calls per run, and what they cost at the prices of data/prices.yaml."""

from collections import Counter
from collections.abc import Iterable

import pandas as pd
import yaml

from ..agent.trajectory import Trajectory
from ..profile import repo_root

COUNTED = ("turns", "tokens_read", "tokens_written")


def account(trajectory: Trajectory) -> dict:
    """Tokens and calls of one run.

    `tokens_read` adds up the whole context before every turn, which is what APIs charge for, cached or not; `tokens_written` are
    those sampled. Both are the server's counts where it told them of every turn, else the kit's (`counted_by`). Neither holds
    what a turn cost that was asked for again after a fault.
    """
    steps = trajectory.steps
    calls = Counter(call["name"] for step in steps for call in step.calls)
    of_server = bool(steps) and all(step.billed for step in steps)
    counts = [step.billed if of_server else (step.tokens_before, step.tokens_generated) for step in steps]
    return {"turns": trajectory.turns, "tokens_read": sum(read for read, _ in counts),
            "tokens_written": sum(written for _, written in counts), "counted_by": "server" if of_server else "kit",
            "tool_calls": dict(sorted(calls.items()))}


def used_by_task(rows: Iterable[dict], model: str) -> pd.DataFrame:
    """A line per task: turns, tokens and tool calls of all its runs, and dollars where the model has a price."""
    table = pd.DataFrame([{**{what: row.get(what, 0) for what in COUNTED}, "task_id": row["task_id"],
                           "tool_calls": sum(row.get("tool_calls", {}).values())} for row in rows])
    table = table.groupby("task_id", sort=False).sum()
    return table.assign(dollars=[cost(model, [task]) for task in table.to_dict("records")])


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
