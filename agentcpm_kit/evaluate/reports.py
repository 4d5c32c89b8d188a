"""What an evaluation leaves to read: metrics.json, tasks.csv, transcripts.html. No times, so that the same results give the same
bytes, and no text of tasks that are not public."""

from collections import Counter
from pathlib import Path

from ..files import write_atomic, write_json
from ..report.transcripts import build_transcripts, first_runs
from .accounts import COUNTED, cost, used_by_task
from .harness import Outcome, Plan, faults, transcripts
from .summary import by_task, per_run, summarise


def write_reports(out: Path, plan: Plan, rows: list[dict], scorer: dict, show_text: bool = False) -> None:
    """`scorer` names what the verdicts come from. `show_text` writes transcripts.html of tasks that are not public as well."""
    counts = Counter(row["outcome"] for row in rows)
    write_json(out / "metrics.json", {
        "suite": plan.suite.name, "tasks": len(plan.suite.tasks), "runs": plan.runs, "scorer": scorer,
        "outcomes": {outcome.value: counts[outcome.value] for outcome in Outcome}, "faults": faults(rows),
        "rates": {name: estimate.fields() for name, estimate in summarise(rows).items()}, "accuracy_by_run": per_run(rows),
        "used": used(rows, plan.settings)})
    write_atomic(out / "tasks.csv", by_task(rows).join(used_by_task(rows, priced_model(plan.settings))).to_csv())
    if plan.suite.public or show_text:
        shown = {(row["task_id"], row["run"]) for row in first_runs(rows)}
        there = {(t.task_id, t.run): t for t in transcripts(
            out, lambda t: t if (t.task_id, t.run) in shown else t.without_texts()).values()}
        golds = {task.task_id: task.answer for task in plan.suite.tasks}
        build_transcripts(out / "transcripts.html", f"{plan.suite.name}, {plan.runs} runs", rows, there, golds)


def used(rows: list[dict], settings: dict) -> dict:
    """Tokens, turns and tool calls of all runs, and what they cost: None where nobody knows the model's price.

    Not in it: turns that were asked for again after a fault, episodes that a kill cut off, and the judge: see `scorer`.
    """
    calls = Counter()
    for row in rows:
        calls.update(row.get("tool_calls", {}))
    return {**{what: sum(row.get(what, 0) for row in rows) for what in COUNTED},
            "counted_in": settings.get("counted_in", "tokens"), "tool_calls": dict(sorted(calls.items())),
            "dollars": cost(priced_model(settings), rows)}


def priced_model(settings: dict) -> str:
    """The name that a price is looked up by; none where bytes were counted, since a price is for tokens."""
    return settings["model"]["name"] if settings.get("counted_in") == "tokens" and isinstance(settings.get("model"), dict) else ""
