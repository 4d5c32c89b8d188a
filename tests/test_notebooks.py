"""The main job under `smoke`: every notebook, headless, through the runner; and the solutions."""

import json
import os
import subprocess
import sys
import time

import nbformat
import pytest

from agentcpm_kit.profile import repo_root
from agentcpm_kit.report.reference import code_digest
from agentcpm_kit.stage import notebooks
from tests.test_report import check_report

ALL = [*notebooks().values(), *sorted((repo_root() / "notebooks/solutions").glob("*.ipynb"))]


def run_smoke(out, *arguments):
    command = [sys.executable, "-c", "from agentcpm_kit.cli import main; main()", "run", "--profile", "smoke", "--out", str(out)]
    environment = os.environ | {"AGENTCPM_KIT_WANDB": "1"}
    environment.pop("AGENTCPM_KIT_RESULTS", None)
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=1200, cwd=repo_root(), env=environment)


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("smoke")
    done = run_smoke(out)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def test_every_stage_leaves_its_files(smoke_run):
    for name in notebooks():
        folder = smoke_run / "smoke/seed0" / name
        files = {p.name for p in folder.iterdir()}
        assert {"config.json", "env.json", "metrics.json", "notebook.ipynb", "DONE"} <= files, name
        for metric in json.loads((folder / "metrics.json").read_text()).values():
            assert set(metric) == {"value", "n", "ci_low", "ci_high", "unit"}
        for figure in folder.glob("figures/*.png"):
            assert figure.stat().st_size <= 100_000, figure
        assert json.loads((folder / "env.json").read_text())["peak_memory_gb"] <= 4
    assert (smoke_run / "smoke/seed0/04_sft/rows.jsonl").is_file()


def test_every_number_in_the_report_comes_from_a_file(smoke_run):
    check_report(smoke_run / "smoke")


def test_again_nothing_runs(smoke_run):
    started = time.time()
    done = run_smoke(smoke_run)
    assert done.returncode == 0 and done.stdout.count("skipped") == len(notebooks())
    assert time.time() - started < 30


def test_training_stages_left_an_offline_wandb_run(smoke_run):
    for name in ("04_sft", "07_rl"):
        assert list((smoke_run / "smoke/seed0" / name).glob("wandb/offline-run-*/*.wandb")), name


@pytest.mark.parametrize("path", ALL, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_notebooks_read_well(path):
    """Short cells, text between them, a parameter cell, no stored error, no widget, no path of a machine."""
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert notebook.cells[0].cell_type == "markdown"
    assert max(len(c.source.splitlines()) for c in code) <= 20
    assert any("parameters" in c.metadata.get("tags", []) for c in code)
    outputs = [o for c in code for o in c.get("outputs", [])]
    assert not any(o.output_type == "error" for o in outputs)
    assert "application/vnd.jupyter.widget-view+json" not in path.read_text()


@pytest.mark.parametrize("path", [p for p in ALL if p.parent.name == "solutions"], ids=lambda p: p.stem)
def test_solutions_run(path, tmp_path):
    import papermill

    os.environ["AGENTCPM_KIT_RESULTS"] = str(tmp_path)
    papermill.execute_notebook(str(path), str(tmp_path / "out.ipynb"), {"profile": "smoke"}, kernel_name="python3",
                               progress_bar=False)


@pytest.mark.parametrize("path", notebooks().values(), ids=lambda p: p.stem)
def test_stored_outputs_are_those_of_the_code_above_them(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata["agentcpm"].get("outputs_of") == code_digest(notebook), f"run {path.stem}, then `make reference`"
