"""results/<profile>/report.html: one self-contained page. Every number carries the file that it was read from.

A number is written as ``<span data-source="seed0/04_sft/metrics.json#sft_general.value">``; a test reads the page
back and compares each with its file.
"""

import base64
import json
from html import escape
from pathlib import Path

from ..errors import KitError
from ..files import write_atomic
from ..profile import load_profile
from .claims import side_by_side
from .results import REPORTED, StageResult, committed, finished_stages, out_of_date, over_seeds

CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; font-size: 14px }
th, td { text-align: left; padding: 4px 10px; border-bottom: 1px solid #e5e5e5; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
img { max-width: 100% } figure { margin: 1rem 0 } figcaption { font-size: 13px; color: #555 }
.v { border-radius: 4px; padding: 1px 7px; white-space: nowrap }
.reproduced { background: #cdeadf } .partly { background: #fbeac2 } .not-reproduced { background: #f6d3c6 }
.not-attempted { background: #e8e8e8 } .warn { background: #f6d3c6; padding: 8px 12px; border-radius: 4px }
nav a { margin-right: .8em } details { font-size: 13px } code { font-size: 13px }
"""


def number(source: str, value: float | int | str) -> str:
    """A value with its file and key; text such as a caption is sourced in the same way."""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return f'<span data-source="{escape(source)}">{escape(text)}</span>'


def build_report(profile_folder: Path) -> Path:
    """Write report.html for one profile, all of its seeds.

    Raises:
        KitError: no stage has finished yet.
    """
    stages = finished_stages(profile_folder)
    if not stages:
        raise KitError(f"nothing to report: no finished stage in {profile_folder}; `agentcpm-kit run` makes them")
    profile = load_profile(profile_folder.name)
    body = [f"<h1>agentcpm-kit: {escape(profile.name)}</h1>", f"<p>{_description(stages[0])}</p>"]
    if not profile.is_result:
        body.append('<p class="warn">This profile checks that everything runs. Not a result.</p>')
    body += [_navigation(stages), "<h2>The paper's claims beside ours</h2>", *_claims(stages, profile.name)]
    old = out_of_date(stages)
    body += [_section(name, [s for s in stages if s.name == name], old) for name in dict.fromkeys(s.name for s in stages)]
    page = (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>agentcpm-kit: {escape(profile.name)}</title><style>{CSS}</style>{''.join(body)}</html>")
    path = profile_folder / "report.html"
    write_atomic(path, page)
    return path


def _description(stage: StageResult) -> str:
    return number(f"{stage.path}/config.json#profile.description", stage.read("config.json")["profile"]["description"])


def _navigation(stages: list[StageResult]) -> str:
    first = {s.name: s for s in reversed(stages)}
    links = [f'<a href="#{name}">{_title(first[name])}</a>' for name in sorted(first)]
    return f"<nav>{' '.join(links)}</nav>"


def _title(stage: StageResult) -> str:
    return number(f"{stage.path}/config.json#stage", stage.name)


def _claims(stages: list[StageResult], profile: str) -> list[str]:
    """One table per seed that has verdicts: the claim, what the paper reports, what was measured, the verdict.

    Beside it the verdicts on the committed runs of the other profiles.
    """
    tables = []
    known = {name: metrics for name in REPORTED if name != profile and (metrics := over_seeds(committed(name)))}
    others = {name: {row["claim"]: row[f"verdict on {name}"] for row in side_by_side({name: metrics})}
              for name, metrics in known.items()}
    more = "".join(f"<th>verdict on {name}, as committed</th>" for name in others)
    for verdicts in (s for s in stages if s.name.startswith("10")):
        rows = [json.loads(line) for line in (verdicts.folder / "rows.jsonl").read_text().splitlines()]
        cells = [_claim(i, row, verdicts, stages, [other.get(row["claim"], "not attempted") for other in others.values()])
                 for i, row in enumerate(rows) if row["kind"] == "claim"]
        tables.append("<table><tr><th>claim</th><th>paper</th><th>measured here: value [interval], n</th><th>verdict</th>"
                      f"{more}</tr>{''.join(cells)}</table><p>{number(f'{verdicts.path}/env.json#seed', _seed(verdicts))}"
                      " is the seed. Intervals cover the true value in nineteen of twenty cases.</p>")
    return tables or ["<p>No table yet: <code>agentcpm-kit run --stages claims</code> makes it.</p>"]


def _seed(stage: StageResult) -> int:
    return stage.read("env.json")["seed"]


def _claim(line: int, row: dict, verdicts: StageResult, stages: list[StageResult], others: list[str]) -> str:
    source = f"{verdicts.path}/rows.jsonl#{line}"
    measured = []
    for name in row["metrics"]:
        found = [s for s in stages if (s.seed, s.name) == (verdicts.seed, row["stage"]) and name in s.metrics]
        value = _metric(f"{found[0].path}/metrics.json#{name}", found[0].metrics[name]) if found else "of the reference run"
        measured.append(f"{escape(name)}: {value}")
    return (f"<tr><td>{number(f'{source}.claim', row['claim'])}</td><td>{number(f'{source}.paper', row['paper'])}</td>"
            f"<td>{'<br>'.join(measured)}</td>{''.join(map(_mark, [row['verdict'], *others]))}</tr>")


def _mark(verdict: str) -> str:
    return f'<td><span class="v {verdict.replace(" ", "-")}">{verdict}</span></td>'


def _metric(source: str, m: dict) -> str:
    text = number(f"{source}.value", m["value"])
    if m["ci_low"] is not None and m["ci_high"] is not None:
        text += f" [{number(f'{source}.ci_low', m['ci_low'])}, {number(f'{source}.ci_high', m['ci_high'])}]"
    return f"{text}, {number(f'{source}.n', m['n'])}"


def _section(name: str, stages: list[StageResult], old: list[StageResult]) -> str:
    parts = [f'<h2 id="{name}">{_title(stages[0])}</h2>']
    for stage in stages:
        if len(stages) > 1:
            parts.append(f"<h3>seed {number(f'{stage.path}/env.json#seed', _seed(stage))}</h3>")
        parts += _remarks(stage, stage in old)
        rows = "".join(f"<tr><td>{number(f'{stage.path}/metrics.json#{key}', key)}</td><td class=n>"
                       f"{_metric(f'{stage.path}/metrics.json#{key}', m)}</td><td>{escape(m['unit'])}</td></tr>"
                       for key, m in stage.metrics.items())
        parts.append(f"<table><tr><th>metric</th><th>value [interval], n</th><th>unit</th></tr>{rows}</table>")
        parts += [_figure(stage, path) for path in stage.figures]
        env = stage.read("env.json")
        parts.append(f"<details><summary>made in {number(f'{stage.path}/env.json#wall_s', env['wall_s'])} s</summary><pre>"
                     f"{number(f'{stage.path}/env.json', json.dumps(env, indent=1))}</pre></details>")
    return "".join(parts)


def _remarks(stage: StageResult, is_old: bool) -> list[str]:
    """What tells this stage from a standard run of today's kit."""
    told = [f"{escape(name)} = {number(f'{stage.path}/config.json#parameters.{name}', value)}"
            for name, value in stage.parameters.items()]
    found = [f"<p>Run with {', '.join(told)}.</p>"] if told else []
    old = "This is unfinished or out of date: code, settings or an earlier stage have changed since; the same run makes it anew."
    return [*found, f'<p class="warn">{old}</p>'] if is_old else found


def _figure(stage: StageResult, path: Path) -> str:
    caption = stage.read("figures/captions.json").get(path.stem, "")
    data = base64.b64encode(path.read_bytes()).decode()
    return (f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}"><figcaption>'
            f"{number(f'{stage.path}/figures/captions.json#{path.stem}', caption)}</figcaption></figure>")
