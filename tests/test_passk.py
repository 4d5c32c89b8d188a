"""The figures of notebook 09 come from stored rows, without any model."""

import json
import subprocess
import sys

import pytest

from agentcpm_kit.errors import KitError
from agentcpm_kit.files import jsonl
from agentcpm_kit.profile import repo_root
from agentcpm_kit.report.passk import by_model, curves

REFERENCE = repo_root() / "results/reference/micro/seed0/09_passk"


def test_curves_by_hand():
    """Two tasks of four runs, of which 4 and 1 are right: pass@1 5/8; of two runs one is right in 1 and 1/2."""
    rows = [{"kind": "task", "model": "a", "task_id": str(i), "runs": 4, "correct": c} for i, c in enumerate((4, 1))]
    points = curves(by_model([{"kind": "other"}, *rows]))["a"]
    assert [(p["x"], p["value"], p["n"]) for p in points] == [(1, 0.625, 2), (2, 0.75, 2), (4, 1.0, 2)]


def test_the_committed_rows_give_the_committed_metrics_and_figures_without_a_model(tmp_path):
    code = "import sys; from agentcpm_kit.report.passk import main; main(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((REFERENCE / "metrics.json").read_text())
    for model in ("SFT", "RL"):
        shown = next(line for line in done.stdout.splitlines() if line.startswith(model.ljust(10)))
        for k in (1, 8, 64):
            m = metrics[f"{model.lower()}_pass_at_{k}"]
            assert f"pass@{k} {m['value']:.3f} [{m['ci_low']:.3f}, {m['ci_high']:.3f}]" in shown
    assert {path.name for path in tmp_path.iterdir()} == {"passk.png", "stability.png"}


@pytest.mark.parametrize("rows, words", [
    ([{"task_id": "a", "run": 0, "outcome": "correct"}], "no rows of notebook 09"), ([], "no rows of notebook 09"),
    ([{"kind": "task", "model": "m", "task_id": str(n), "runs": n, "correct": 1} for n in (1, 2)], "other numbers of runs")])
def test_rows_that_make_no_curve(rows, words):
    with pytest.raises(KitError, match=words):
        by_model(rows)


def test_rows_of_your_own(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(jsonl([{"kind": "task", "model": "mine", "task_id": "t", "runs": 1, "correct": 1}]))
    command = [sys.executable, "-m", "agentcpm_kit.report.passk", "--rows", rows, "--out", tmp_path]
    assert "mine       pass@1 1.000" in subprocess.run(command, capture_output=True, text=True).stdout
