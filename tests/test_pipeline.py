"""The runner on tiny notebooks in a tree of its own: order, skipping, failing, resuming, refusing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from agentcpm_kit.errors import KitError
from agentcpm_kit.pipeline import refuse_impossible
from agentcpm_kit.profile import repo_root
from agentcpm_kit.stage import MARKER, is_done, previous_folder, set_aside, take_back

CELL = """from agentcpm_kit.stage import open_stage
stage = open_stage("{name}", profile, seed, size=size)
"""
WORK = """import time
for i in range(len(stage.rows("unit")), size):
    stage.row("unit", i=i)
    stage.progress(i + 1, size, "units")
    time.sleep(pause)
stage.metric("units", len(stage.rows("unit")), size)
stage.finish()
"""


def write_notebook(root, name, work=WORK, reads=(), pause=0.0):
    cells = [nbformat.v4.new_code_cell('profile = "smoke"\nseed = 0\nsize = 5  # units', metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell(CELL.format(name=name)), nbformat.v4.new_code_cell(f"pause = {pause}\n{work}")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "agentcpm": {"reads": list(reads)}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), root / f"notebooks/{name}.ipynb")


STUB = """import os
assert os.environ.get("JPY_PARENT_PID"), "the runner itself must not load torch: it takes seconds"
def manual_seed(seed): pass
def set_num_threads(threads): pass
"""


@pytest.fixture
def tree(tmp_path):
    """A checkout with two tiny notebooks; torch, which only seeds here, is a stub that loads at once."""
    root = tmp_path / "kit"
    (root / "notebooks").mkdir(parents=True)
    for name in ("profiles", "data/paper"):
        shutil.copytree(repo_root() / name, root / name)
    (root / "pyproject.toml").touch()
    (root / "stubs").mkdir()
    (root / "stubs/torch.py").write_text(STUB)
    (root / "agentcpm_kit").symlink_to(repo_root() / "agentcpm_kit")
    write_notebook(root, "00_one")
    write_notebook(root, "01_two", reads=["00_one"])
    return root


def variables(root):
    return {"AGENTCPM_KIT_ROOT": str(root), "AGENTCPM_KIT_RESULTS": str(root / "results"),
            "PYTHONPATH": f"{root / 'stubs'}{os.pathsep}{repo_root()}"}


def command(root, *arguments, **extra):
    environment = os.environ | variables(root) | extra
    return {"args": [sys.executable, "-c", "from agentcpm_kit.cli import main; main()", "run", "--profile", "smoke", *arguments],
            "cwd": root, "env": environment, "text": True}


def run(root, *arguments, **extra):
    return subprocess.run(**command(root, *arguments, **extra), capture_output=True, timeout=120)


def start(root, *arguments, **pipes):
    pipes = pipes or {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # A shell starts background jobs with SIGINT ignored, and tests that run in one would hand that down.
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    return subprocess.Popen(**command(root, *arguments), **pipes, **heed)


def stage_files(root, name):
    return root / "results/smoke/seed0" / name


def test_runs_in_order_skips_what_is_done_and_redoes_what_changed(tree):
    first = run(tree)
    assert first.returncode == 0, first.stdout + first.stderr
    for name in ("00_one", "01_two"):
        folder = stage_files(tree, name)
        assert {"config.json", "env.json", "rows.jsonl", "metrics.json", "notebook.ipynb", "DONE"} <= {
            p.name for p in folder.iterdir()}
        assert json.loads((folder / "metrics.json").read_text())["units"] == {
            "value": 5.0, "n": 5, "ci_low": None, "ci_high": None, "unit": ""}
        assert str(tree) not in (folder / "notebook.ipynb").read_text()
    assert (tree / "results/smoke/report.html").is_file()
    assert run(tree).stdout.count("skipped") == 2
    changed = run(tree, "-p", "size=6").stdout
    assert "skipped" not in changed
    write_notebook(tree, "01_two", WORK + "print('changed')\n", ["00_one"])
    assert run(tree, "-p", "size=6").stdout.count("skipped") == 1
    assert "skipped" not in run(tree, "-p", "size=6", "--stages", "01", "--force").stdout
    log = [json.loads(line) for line in (tree / "results/smoke/seed0/run.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in log] == [False] * 2 + [True] * 2 + [False] * 2 + [True, False, False]
    assert log[0]["stage"] == "00_one" and log[0]["seconds"] > 0 and log[0]["peak_memory_gb"] > 0


def test_a_run_that_fails_gives_the_finished_result_back(tree):
    write_notebook(tree, "00_one", "assert size != 6, 'no such size'\n" + WORK)
    assert run(tree, "--stages", "00").returncode == 0
    before = (stage_files(tree, "00_one") / "metrics.json").read_bytes()
    for _ in range(2):  # the second failure has no finished result to set aside, and drops none
        failed = run(tree, "--stages", "00", "-p", "size=6")
        assert failed.returncode == 1 and ".previous/00_one until there is a new one" in failed.stderr, failed.stderr
    again = run(tree, "--stages", "00")
    assert again.stdout.count("skipped") == 1 and (stage_files(tree, "00_one") / "metrics.json").read_bytes() == before
    assert run(tree, "--stages", "00", "-p", "size=4").returncode == 0
    assert not any((tree / "results/smoke/seed0/.previous").iterdir())


def test_what_was_set_aside_comes_back_only_where_no_newer_work_on_it_is(tmp_path):
    folder = tmp_path / "04_sft"

    def begin(**files):
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (folder / {"done": "DONE", "inputs": MARKER}[name]).write_text(text)

    begin(done="a", inputs="a")
    set_aside(folder)
    for kept in ({"inputs": "a"}, {"done": "b"}):  # begun anew and interrupted; another result
        begin(**kept)
        take_back(folder, "a")
        assert not is_done(folder, "a")
        shutil.rmtree(folder)
    begin(inputs="b")
    take_back(folder, "c")
    assert not is_done(folder, "c") and previous_folder(folder).is_dir()
    take_back(folder, "a")
    assert is_done(folder, "a") and not previous_folder(folder).exists()


def test_the_report_tells_parameters_and_what_is_out_of_date(tree):
    write_notebook(tree, "02_three", reads=["01_two"])  # out of date by way of the second
    assert run(tree).returncode == 0
    page = tree / "results/smoke/report.html"
    assert "out of date" not in page.read_text() and "Run with" not in page.read_text()
    changed = run(tree, "--stages", "00", "-p", "size=3")
    assert page.read_text().count("out of date") == 2 and re.search("Run with size = <span[^>]*>3</span>", page.read_text())
    assert "earlier stage have changed: 01_two (seed 0), 02_three (seed 0)" in changed.stdout


def test_code_edited_during_a_run_is_run_again(tree):
    """DONE holds the inputs as they were at the start, not those that came while the notebook was running."""
    new = "import json, os, pathlib\npath = pathlib.Path(os.environ['AGENTCPM_KIT_ROOT']) / 'notebooks/00_one.ipynb'\n"
    new += "path.write_text(path.read_text().replace('pause = 0.0', 'pause = 0.00'))\n"
    write_notebook(tree, "00_one", new + WORK)
    assert run(tree, "--stages", "00").returncode == 0
    assert "skipped" not in run(tree, "--stages", "00").stdout


def test_the_kernel_is_this_interpreter_whatever_the_user_has_installed(tree):
    spec = tree / "jupyter/kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "broken", "language": "python"}))
    done = run(tree, "--stages", "00", JUPYTER_PATH=str(tree / "jupyter"))
    assert done.returncode == 0, done.stderr


def test_profiles_and_parameters_are_checked_before_anything_is_written(tree):
    for arguments, hint in [(["--stages", "tow"], "'two'"), (["-p", "siez=3"], "'size'"), (["-p", "size=many"], "int"),
                            (["-p", "size=true"], "int"), (["--profile", "smokee"], "'smoke'")]:
        done = run(tree, *arguments)
        assert done.returncode == 2 and hint in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    path = tree / "profiles/smoke.yaml"
    path.write_text(path.read_text() + "threds: 2\n")
    done = run(tree)
    assert done.returncode == 2 and "'threads'" in done.stderr
    assert not (tree / "results").exists()


@pytest.mark.parametrize("section, values, stages, hint", [
    ("model", {"engine": "openai"}, ["04_sft", "05_merge", "07_rl"], "05_merge and 07_rl: .*--stages"),
    ("context", {"history": "discard_all"}, ["02_episode", "07_rl"], "history: none")])
def test_what_a_stage_would_refuse_is_refused_before_the_first(smoke, section, values, stages, hint):
    profile = smoke.model_copy(update={section: getattr(smoke, section).model_copy(update=values)})
    with pytest.raises(KitError, match=hint):
        refuse_impossible(profile, stages)
    refuse_impossible(profile, stages[:1])


def test_stages_are_chosen_by_number_or_name(tree):
    assert run(tree, "--stages", "two").returncode == 0
    assert not stage_files(tree, "00_one").exists() and stage_files(tree, "01_two").exists()


def test_a_failing_notebook_names_itself_the_cell_and_the_error(tree):
    write_notebook(tree, "01_two", "x = 1\nraise RuntimeError('the pump is broken')\n")
    done = run(tree)
    assert done.returncode == 1
    for part in ("notebooks/01_two.ipynb", "cell 3", "RuntimeError", "the pump is broken"):
        assert part in done.stderr
    assert (tree / "results/smoke/seed0/failed/01_two.ipynb").is_file()
    assert {p.name for p in stage_files(tree, "01_two").iterdir()}.isdisjoint({"DONE", "notebook.ipynb", "partial.ipynb"})
    assert "Traceback" not in done.stderr
    write_notebook(tree, "01_two")
    assert run(tree).stdout.count("skipped") == 1


def test_a_kernel_that_dies_is_told_with_its_cell(tree):
    write_notebook(tree, "00_one", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    done = run(tree)
    assert done.returncode == 1 and "cell 3 (pause = 0.0): the kernel died" in done.stderr
    assert "Traceback" not in done.stderr and not (stage_files(tree, "00_one") / "DONE").exists()


def test_a_notebook_without_results_is_not_done(tree):
    write_notebook(tree, "00_one", "print('no finish')\n")
    done = run(tree)
    assert done.returncode == 1 and "stage.finish()" in done.stderr
    assert not (stage_files(tree, "00_one") / "DONE").exists()


def wait_for_rows(root, name, count, seconds=60):
    rows = stage_files(root, name) / "rows.jsonl"
    end = time.time() + seconds
    while time.time() < end:
        if rows.is_file() and len(rows.read_text().splitlines()) >= count:
            return
        time.sleep(0.1)
    raise AssertionError("the stage did not get going")


def kernels_of(root):
    return [p for p in psutil.process_iter(["cmdline", "environ"]) if "ipykernel" in " ".join(p.info["cmdline"] or [])
            and (p.info["environ"] or {}).get("AGENTCPM_KIT_ROOT") == str(root)]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_kernel_and_say_how_to_go_on(tree, kind):
    write_notebook(tree, "00_one", pause=0.4)
    process = start(tree, "-p", "size=100", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_rows(tree, "00_one", 2)
    assert kernels_of(tree)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and errors.splitlines() == ["interrupted; the same command resumes"]
    assert not kernels_of(tree)
    assert len((stage_files(tree, "00_one") / "rows.jsonl").read_text().splitlines()) >= 2


def test_kill_and_resume(tree):
    """kill -9 in the middle: no kernel stays behind, and the same command goes on from the rows that are there."""
    write_notebook(tree, "00_one", pause=0.4)
    process = start(tree, "-p", "size=12")
    wait_for_rows(tree, "00_one", 4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.time() + 15
    while kernels_of(tree) and time.time() < end:
        time.sleep(0.2)
    assert not kernels_of(tree)
    before = (stage_files(tree, "00_one") / "rows.jsonl").read_text()
    assert run(tree, "-p", "size=12").returncode == 0
    after = (stage_files(tree, "00_one") / "rows.jsonl").read_text()
    assert after.startswith(before) and [json.loads(r)["i"] for r in after.splitlines()] == list(range(12))


def test_two_runs_on_the_same_results_are_refused(tree):
    write_notebook(tree, "00_one", pause=0.4)
    process = start(tree, "-p", "size=100")
    try:
        wait_for_rows(tree, "00_one", 1)
        second = run(tree)
        assert second.returncode == 2 and "another run" in second.stderr
    finally:
        process.terminate()
        process.wait()


def test_plain_papermill_works_too(tree, monkeypatch):
    import papermill

    for name, value in variables(tree).items():
        monkeypatch.setenv(name, value)
    papermill.execute_notebook(str(tree / "notebooks/00_one.ipynb"), str(tree / "out.ipynb"), {"size": 3},
                               kernel_name="python3", progress_bar=False)
    assert (stage_files(tree, "00_one") / "DONE").is_file()
