"""Verdicts by rule, and a report whose numbers all come from files."""

import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest

from agentcpm_kit.errors import KitError
from agentcpm_kit.report.claims import all_above_zero, denoising, judge_claims, load_claims, merge


def metric(value, low, high):
    return {"value": value, "ci_low": low, "ci_high": high, "n": 100, "unit": "share"}


@pytest.mark.parametrize("metrics,verdict", [
    ([metric(0.1, 0.05, 0.15)], "reproduced"), ([metric(0.1, -0.05, 0.25)], "partly"),
    ([metric(-0.1, -0.2, 0.0)], "not reproduced"),
    ([metric(0.1, 0.05, 0.15), metric(-0.1, -0.2, 0.0)], "partly"), ([metric(0.1, None, None)], "partly"),
    ([metric(0.1, 0.05, 0.15), metric(0.1, 0.01, 0.2)], "reproduced")])
def test_all_above_zero(metrics, verdict):
    assert all_above_zero(metrics) == verdict


@pytest.mark.parametrize("regained, recovered, kept, verdict", [
    (metric(0.2, 0.1, 0.3), 0.7, 0.95, "reproduced"), (metric(0.2, 0.1, 0.3), 0.69, 0.99, "partly"),
    (metric(0.2, 0.1, 0.3), 0.9, 0.94, "partly"), (metric(0.1, -0.1, 0.3), 0.9, 1.0, "not reproduced")])
def test_merge_rule(regained, recovered, kept, verdict):
    assert merge([regained, metric(recovered, None, None), metric(kept, None, None)]) == verdict


@pytest.mark.parametrize("harm, gain, verdict", [
    (metric(0.12, 0.05, 0.2), metric(0.08, 0.02, 0.14), "reproduced"),
    (metric(0.12, 0.05, 0.2), metric(0.07, 0.02, 0.14), "partly"),  # 58% come back
    (metric(0.07, 0.05, 0.2), metric(0.08, 0.02, 0.14), "partly"),  # little to repair
    (metric(0.12, 0.05, 0.2), metric(0.08, -0.02, 0.2), "partly"),
    (metric(0.12, -0.05, 0.3), metric(0.08, 0.02, 0.14), "not reproduced")])
def test_denoising_rule(harm, gain, verdict):
    assert denoising([harm, gain]) == verdict


def write_metrics(folder, **values):
    folder.mkdir(parents=True)
    rows = {n: {"value": v, "n": 200, "ci_low": v - 0.1, "ci_high": v + 0.1, "unit": "share"} for n, v in values.items()}
    (folder / "metrics.json").write_text(json.dumps(rows))


def test_metrics_over_seeds_by_hand(tmp_path):
    from agentcpm_kit.report.claims import metric_text
    from agentcpm_kit.report.results import finished_stages, over_seeds

    for seed, value in enumerate((0.1, 0.2, 0.3)):
        write_metrics(tmp_path / f"seed{seed}/05_merge", both=value)
    write_metrics(tmp_path / "seed0/07_rl", alone=0.5)
    found = over_seeds(finished_stages(tmp_path))
    both = found["05_merge"]["both"]
    assert (both["value"], both["n"]) == (pytest.approx(0.2), 3)
    assert both["ci_high"] - 0.2 == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-3)  # Student's t with 2 degrees of freedom
    assert metric_text(both) == "0.20 [-0.05, 0.45], n=3 seeds"
    assert metric_text(found["07_rl"]["alone"]) == "0.50 [0.40, 0.60], n=200"


def test_claims_without_results_are_not_attempted():
    assert {c["verdict"] for c in judge_claims(lambda stage: {})} == {"not attempted"}
    assert all({"id", "claim", "source", "paper", "stage", "rule", "metrics"} <= set(c) for c in load_claims())


class Page(HTMLParser):
    """Sourced texts, and all visible text that has no source."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.sourced, self.plain, self.skip = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "span" and "data-source" in dict(attrs):
            self.sources.append(dict(attrs)["data-source"])
            self.sourced.append("")
            self.inside = True
        self.skip += tag in ("style", "script")

    def handle_endtag(self, tag):
        self.skip -= tag in ("style", "script")
        if tag == "span":
            self.inside = False

    inside = False

    def handle_data(self, data):
        if self.skip:
            return
        if self.inside:
            self.sourced[-1] += data
        else:
            self.plain.append(data)


def lookup(folder, source):
    """The value that a data-source names."""
    name, _, path = source.partition("#")
    text = (folder / name).read_text()
    if name.endswith("jsonl"):
        line, _, path = path.partition(".")
        value = json.loads(text.splitlines()[int(line)])
    else:
        value = json.loads(text)
    if name.endswith("metrics.json") and path in value:
        return path  # the metric's own name
    for key in [k for k in path.split(".") if k] if not name.endswith("captions.json") else [path]:
        value = value[key]
    return value


def check_report(folder):
    page = Page((folder / "report.html").read_text())
    assert len(page.sources) > 10
    for source, text in zip(page.sources, page.sourced, strict=True):
        value = lookup(folder, source)
        plain = f"{value:.3f}" if isinstance(value, float) else str(value)
        expected = json.dumps(value, indent=1) if isinstance(value, dict) else plain
        assert unescape(text) == expected, source
    assert not re.search(r"\d", "".join(page.plain).replace("agentcpm-kit", "")), re.findall(r".{20}\d.{20}", "".join(page.plain))


def test_every_number_of_a_report_comes_from_a_file(results):
    from agentcpm_kit.report.html import build_report
    from agentcpm_kit.stage import open_stage

    for seed in (0, 1):
        stage = open_stage("01_world", "smoke", seed)
        stage.metric("success", 0.123456, 40, 0.1, 0.2, "share")
        stage.finish()
        claims = open_stage("10_claims", "smoke", seed)
        claims.row("claim", id="x", claim="<b>hostile</b> 12", paper="63.9", stage="01_world",
                   verdict="partly", metrics=["success"])
        claims.metric("claims_partly", 1, 1)
        claims.finish()
    path = build_report(results / "smoke")
    assert "<b>hostile" not in path.read_text() and "Not a result" in path.read_text()
    check_report(results / "smoke")


def test_a_hand_written_number_would_be_found(results):
    from agentcpm_kit.report.html import build_report
    from agentcpm_kit.stage import open_stage

    stage = open_stage("01_world", "smoke")
    for i in range(8):
        stage.metric(f"m{i}", 0.5, 4)
    stage.finish()
    path = build_report(results / "smoke")
    path.write_text(path.read_text().replace("0.500", "0.501", 1))
    with pytest.raises(AssertionError):
        check_report(results / "smoke")


def test_the_readme_tables_are_made_from_committed_evidence():
    from agentcpm_kit.report.reference import with_tables
    from agentcpm_kit.report.results import reference_folder
    from agentcpm_kit.report.tables import claims_table
    from agentcpm_kit.stage import notebooks, repo_root

    committed = {p.parent.name for p in reference_folder("micro").glob("seed0/*/metrics.json")}
    assert committed == set(notebooks())
    text = (repo_root() / "README.md").read_text()
    assert with_tables(text, "micro") == text
    assert "not attempted" not in claims_table("micro").rsplit("\n", 1)[0]


def test_outputs_of_other_code_are_refused(tmp_path, monkeypatch):
    """A notebook gets the outputs of a run of the very same code, injected parameters aside."""
    import nbformat

    from agentcpm_kit.report.reference import with_outputs
    from agentcpm_kit.stage import notebooks

    monkeypatch.setenv("AGENTCPM_KIT_RESULTS", str(tmp_path))
    name, path = next(iter(notebooks().items()))
    run = nbformat.read(path, as_version=4)
    places = [i for i, c in enumerate(run.cells) if c.cell_type == "code"]
    run.cells[places[-1]].outputs = [nbformat.v4.new_output("stream", text="of the run")]
    run.cells.insert(places[0] + 1, nbformat.v4.new_code_cell("seed = 3", metadata={"tags": ["injected-parameters"]}))
    folder = tmp_path / "micro/seed0" / name
    folder.mkdir(parents=True)
    nbformat.write(run, folder / "notebook.ipynb")
    stored = with_outputs("micro")[path]
    assert stored.cells[places[-1]].outputs[0].text == "of the run" and len(stored.cells) == len(run.cells) - 1
    run.cells[places[-1] + 1].source += " "
    nbformat.write(run, folder / "notebook.ipynb")
    with pytest.raises(KitError, match=f"{name}.ipynb has other code than its run"):
        with_outputs("micro")


def test_keeping_a_seed_leaves_the_others_as_they_were(tmp_path, monkeypatch):
    from agentcpm_kit.report import reference

    monkeypatch.setattr(reference, "reference_folder", lambda profile: tmp_path / "kept" / profile)
    monkeypatch.setenv("AGENTCPM_KIT_RESULTS", str(tmp_path / "results"))
    for seed, stage, value in ((0, "05_merge", 0.1), (1, "05_merge", 0.2), (1, "07_rl", 0.3)):
        write_metrics(tmp_path / f"kept/micro/seed{seed}/{stage}", both=value)
    write_metrics(tmp_path / "results/micro/seed1/07_rl", both=0.9)
    reference.keep_run("micro")
    kept = {p.parent.relative_to(tmp_path / "kept/micro").as_posix(): json.loads(p.read_text())["both"]["value"]
            for p in (tmp_path / "kept/micro").glob("seed*/*/metrics.json")}
    assert kept == {"seed0/05_merge": 0.1, "seed1/05_merge": 0.2, "seed1/07_rl": 0.9}


def test_runs_of_this_machine_stand_before_the_committed_ones(results):
    from agentcpm_kit.report.results import with_reference

    write_metrics(results / "micro/seed0/07_rl", both=0.9)
    write_metrics(results / "micro/seed7/07_rl", both=0.8)
    found = [s for s in with_reference("micro") if s.name == "07_rl"]
    assert [s.seed for s in found] == [f"seed{n}" for n in (0, 1, 2, 3, 4, 7)]
    assert [s.seed for s in found if results in s.folder.parents] == ["seed0", "seed7"]
