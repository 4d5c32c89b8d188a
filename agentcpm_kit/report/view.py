"""A trajectory as a person would like to read it, in the terminal (`print_trajectory`) and in a notebook (`View`), and
a task's gold path (`GoldPath`)."""

import json
from html import escape

from ..agent.trajectory import Trajectory
from ..world import Task

CSS = ("<style>.kit{font:13px/1.45 sans-serif;border-left:3px solid #0072B2;padding:2px 10px;max-width:760px}"
       ".kit pre{white-space:pre-wrap;background:rgba(128,128,128,.12);padding:6px;margin:4px 0;font-size:12px}"
       ".kit .t{opacity:.7;font-style:italic}</style>")


def verdict(trajectory: Trajectory) -> str:
    return {True: "correct", False: "wrong", None: "not scored"}[trajectory.correct]


def call_text(call: dict) -> str:
    arguments = ", ".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in call["arguments"].items())
    return f"{call['name']}({arguments})"


class View:
    """HTML of one trajectory: thinking in italics, calls and results folded out. All text is escaped."""

    def __init__(self, trajectory: Trajectory, open_results: bool = True):
        self.trajectory, self.open = trajectory, " open" if open_results else ""

    def __repr__(self) -> str:
        t = self.trajectory
        return f"{t.question} -> {t.answer} ({verdict(t)}, {t.end_reason.value}, {t.turns} turns)"

    def _repr_html_(self) -> str:
        t = self.trajectory
        parts = [CSS, '<div class="kit">', f"<b>{escape(t.question)}</b>"]
        for number, step in enumerate(t.steps, 1):
            parts.append(f'<p><b>{number}.</b> <span class="t">{escape(step.thinking)}</span> {escape(step.content)}</p>')
            for call, result in zip(step.calls, [*step.results, *[""] * len(step.calls)], strict=False):
                parts.append(f"<details{self.open}><summary><code>{escape(call_text(call))}</code></summary>"
                             f"<pre>{escape(result)}</pre></details>")
        parts.append(f"<p><b>{escape(t.answer or 'no answer')}</b> · {verdict(t)} · {t.end_reason.value}</p></div>")
        return "".join(parts)


class GoldPath:
    """HTML of a task's gold path: each call, and the passages that its result must contain."""

    def __init__(self, task: Task):
        self.task = task

    def __repr__(self) -> str:
        return f"{self.task.question} -> {self.task.answer} ({len(self.task.steps)} calls)"

    def _repr_html_(self) -> str:
        t = self.task
        parts = [CSS, '<div class="kit">', f"<b>{t.family}, level {t.level}</b>: {escape(t.question)}"]
        for number, step in enumerate(t.steps, 1):
            call = escape(call_text({"name": step.tool, "arguments": step.arguments}))
            found = escape("\n".join(step.evidence))
            parts.append(f"<details><summary>{number}. <code>{call}</code></summary><pre>{found}</pre></details>")
        return "".join([*parts, f"<p><b>{escape(t.answer)}</b> · one answer: {escape(t.why_unique)}</p></div>"])


def print_trajectory(trajectory: Trajectory, console=None) -> None:
    """The same in a terminal."""
    from rich.console import Console
    from rich.markup import escape as quote

    console = console or Console(highlight=False)
    console.print(f"\n[bold]{quote(trajectory.question)}[/bold]")
    for number, step in enumerate(trajectory.steps, 1):
        console.print(f"\n[bold]{number}.[/bold] [italic dim]{quote(step.thinking)}[/italic dim]")
        if step.content:
            console.print(f"   {quote(step.content)}")
        for call, result in zip(step.calls, [*step.results, *[""] * len(step.calls)], strict=False):
            console.print(f"   [cyan]{quote(call_text(call))}[/cyan]")
            console.print("\n".join(f"   │ {quote(line)}" for line in result.splitlines()))
    console.print(f"\n[bold green]{quote(trajectory.answer or 'no answer')}[/bold green]  "
                  f"({trajectory.end_reason.value}, {trajectory.turns} turns, {trajectory.tokens_generated} tokens)")


def masked_html(tokens: list[str], mask: list[int]) -> str:
    """Tokens with the learned ones coloured, for looking at a loss mask."""
    spans = [f'<span style="background:{"#0072B240" if m else "transparent"}" title="{"learned" if m else "given"}">'
             f"{escape(t)}</span>" for t, m in zip(tokens, mask, strict=True)]
    return f'<div style="white-space:pre-wrap;font:12px monospace;max-width:760px">{" ".join(spans)}</div>'
