"""What an evaluation leaves to read: metrics.json, tasks.csv, transcripts.html. No times, so that the same results give the same
bytes, and no text of tasks that are not public."""

from collections import Counter
from pathlib import Path

from ..files import write_atomic, write_json
from ..report.transcripts import build_transcripts, first_runs
from .accounts import COUNTED, as_billed, cost, used_by_task
from .harness import Outcome, Plan, faults, transcripts
from .summary import by_task, per_run, summarise


def write_reports(out: Path, plan: Plan, rows: list[dict], scorer: dict, judging: dict | None = None,
                  show_text: bool = False) -> None:
    """`scorer` names what the verdicts come from, `judging` what a judge used.

    `show_text` writes transcripts.html of tasks that are not public as well.
    """
    title, about = f"{plan.suite.name}, {plan.runs} runs", described(plan, scorer)
    counts = Counter(row["outcome"] for row in rows)
    write_json(out / "metrics.json", {
        "suite": plan.suite.name, "tasks": len(plan.suite.tasks), "runs": plan.runs, "about": about, "scorer": scorer,
        "outcomes": {outcome.value: counts[outcome.value] for outcome in Outcome}, "faults": faults(rows),
        "rates": {name: estimate.fields() for name, estimate in summarise(rows).items()}, "accuracy_by_run": per_run(rows),
        "used": {**used(rows, plan.settings), "judge": judging}})
    counted, of_server = as_billed(rows)
    model = priced_model(plan.settings, of_server)
    write_atomic(out / "tasks.csv", by_task(rows).join(used_by_task(counted, model)).to_csv())
    if plan.suite.public or show_text:
        shown = {(row["task_id"], row["run"]) for row in first_runs(rows)}
        there = {(t.task_id, t.run): t for t in transcripts(
            out, lambda t: t if (t.task_id, t.run) in shown else t.without_texts()).values()}
        golds = {task.task_id: task.answer for task in plan.suite.tasks}
        build_transcripts(out / "transcripts.html", title, about, rows, there, golds)


def described(plan: Plan, scorer: dict) -> str:
    """A line that tells one evaluation of the same tasks from another."""
    told = {key: plan.settings[key] for key in ("temperature", "tools") if key in plan.settings}
    judge = {key: scorer[key] for key in ("judge", "prompt", "rule", "tolerance") if scorer.get(key)}
    return ", ".join([_name(plan.settings), *(f"{key} {value}" for key, value in told.items())]) + "; scored by " + ", ".join(
        f"{key} {value}" for key, value in judge.items())


def _name(settings: dict) -> str:
    model = settings.get("model", "")
    return model["name"] if isinstance(model, dict) else model


def used(rows: list[dict], settings: dict) -> dict:
    """Tokens, turns and tool calls of all runs, and what they cost: None where nobody knows the model's price.

    Not in it: turns that were asked for again after a fault, episodes that a kill cut off, and the judge, who stands beside it.
    """
    calls = Counter()
    for row in rows:
        calls.update(row.get("tool_calls", {}))
    counted, of_server = as_billed(rows)
    return {**{what: sum(row.get(what, 0) for row in counted) for what in COUNTED},
            "counted_in": "tokens of the server" if of_server else settings.get("counted_in", "tokens"),
            "tool_calls": dict(sorted(calls.items())), "dollars": cost(priced_model(settings, of_server), counted)}


def priced_model(settings: dict, of_server: bool) -> str:
    """The name that a price is looked up by; none where the kit counted bytes, since a price is for tokens."""
    return _name(settings) if of_server or settings.get("counted_in") != "bytes" else ""
