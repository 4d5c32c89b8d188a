"""Transcripts to read. ``transcripts.md``: a few tasks as several models play them, for the repository's web view.

transcripts.html: every run of an evaluation on one page that needs no server, no network and no other file.

Filters by family, verdict, end reason and text; thinking and tool results are folded. Nothing of a transcript is read as HTML or
run as a script: all text is escaped by the template, and the page's own policy lets no script run but its own.
"""

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..agent.trajectory import Trajectory
from ..files import write_atomic
from .view import call_text, print_trajectory

TEMPLATE = Path(__file__).with_name("transcripts.html.j2")
SCRIPT = """
const form = document.forms[0], runs = [...document.querySelectorAll('article')], count = document.getElementById('count');
function show() {
  let shown = 0;
  for (const run of runs) {
    const fits = ['family', 'outcome', 'end'].every(key => !form[key].value || run.dataset[key] === form[key].value)
      && run.textContent.toLowerCase().includes(form.text.value.toLowerCase());
    run.hidden = !fits;
    shown += fits;
  }
  count.textContent = `${shown} of ${runs.length} runs`;
}
form.addEventListener('input', show);
form.addEventListener('submit', event => event.preventDefault());
show();
"""


MOST_RUNS, MOST_TEXT = 1000, 4000  # shown of an evaluation, and characters of each text; transcripts.jsonl has all


def _short(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} … ({len(text):,} characters)"


def first_runs(rows: Sequence[dict]) -> list[dict]:
    """The rows that are shown: of many, the first runs of each task."""
    return sorted(rows, key=lambda row: row["run"])[:MOST_RUNS]


def build_transcripts(path: Path, title: str, about: str, rows: Sequence[dict], transcripts: dict[tuple[str, int], Trajectory],
                      golds: Mapping[str, str]) -> None:
    """Write the page: a block for a row, with its transcript (by task and run) where there is one, and the reference answer."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined)
    environment.filters["short"] = _short
    full = [{"end_reason": "", "fault": "", **row} for row in first_runs(rows)]
    choices = {name: sorted({row[key] for row in full} - {""})
               for name, key in (("family", "family"), ("outcome", "outcome"), ("end", "end_reason"))}
    runs = [(row, transcripts.get((row["task_id"], row["run"])), golds[row["task_id"]]) for row in full]
    hashed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    page = environment.from_string(TEMPLATE.read_text())
    write_atomic(path, page.render(title=title, about=about, runs=runs, total=len(rows), choices=choices, call_text=call_text,
                                   script=SCRIPT, script_sha256=hashed))


def beside_each_other(title: str, played: Mapping[str, Sequence[Trajectory]], golds: Mapping[str, str]) -> str:
    """Markdown: for each task what every model did, folded. All of what a model wrote stands in code blocks, as it is."""
    parts = [f"# {title}\n"]
    for number, same in enumerate(zip(*played.values(), strict=True), 1):
        parts.append(f"## {number}. {same[0].question}\n\nReference answer: **{golds[same[0].task_id]}**\n")
        parts += [_folded(model, trajectory) for model, trajectory in zip(played, same, strict=True)]
    return "\n".join(parts)


def _folded(model: str, trajectory: Trajectory) -> str:
    from rich.console import Console

    text = io.StringIO()
    print_trajectory(trajectory, Console(file=text, width=110, color_system=None, highlight=False))
    told = text.getvalue().strip("\n")
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", told))]))
    ending = trajectory.end_reason.value.replace("_", " ")
    return (f"<details><summary>{model}: {ending} after {trajectory.turns} turns</summary>\n\n{fence}text\n{told}\n{fence}\n\n"
            "</details>\n")
