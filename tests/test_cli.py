"""A user's mistake: one line, the nearest valid name, exit code 2, nothing written."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from agentcpm_kit.errors import KitError
from agentcpm_kit.profile import repo_root


def kit(*arguments, out=None):
    environment = os.environ | ({"AGENTCPM_KIT_RESULTS": str(out)} if out else {})
    command = [sys.executable, "-c", "from agentcpm_kit.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=repo_root(), env=environment, timeout=120)


@pytest.mark.parametrize("command", [[], ["doctor"], ["run"], ["report"], ["ask"], ["serve-tools"]])
def test_every_command_has_help(command):
    done = kit(*command, "--help")
    assert done.returncode == 0 and "Usage" in done.stdout


@pytest.mark.parametrize("arguments,hint", [
    (["run", "--profile", "mirco"], "micro"),
    (["run", "--profile", "smoke", "--stages", "sfft"], "sft"),
    (["run", "--profile", "smoke", "--stages", "44"], "04"),
    (["run", "--profile", "smoke", "--stages", "06-04"], "after"),
    (["run", "--profile", "smoke", "--stages", "04", "-p", "epocs=2"], "epochs"),
    (["run", "--profile", "smoke", "--stages", "04", "-p", "epochs=many"], "int"),
    (["run", "--profile", "smoke", "--stages", "04", "-p", "epochs"], "name=value"),
    (["report", "--profile", "smoke"], "run"),
    (["ask", "What is Berlin?"], "Berlin"),
    (["ask", "What is the home of Tamex?", "--tools", "http://127.0.0.1:9/mcp"], "is it running"),
    (["serve-tools"], "--http"),
    (["serve-tools", "--stdio", "--world", "pages=3"], "entities"),
    (["serve-tools", "--stdio", "--faults", "serch.timeout=1"], "search"),
    (["ask"], "--examples")])
def test_mistakes_are_one_line_and_write_nothing(arguments, hint, tmp_path):
    done = kit(*arguments, out=tmp_path / "results")
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and hint in lines[0]
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("arguments,near", [(["rnu"], "'run'"), (["run", "--stagess", "04"], "--stages")])
def test_a_wrong_command_or_option_names_the_nearest(arguments, near, tmp_path):
    done = kit(*arguments, out=tmp_path / "results")
    assert done.returncode == 2 and near in done.stderr and "Traceback" not in done.stderr


def test_a_reader_that_closes_early_gets_no_traceback():
    import os

    reader, writer = os.pipe()
    os.close(reader)
    code = "from agentcpm_kit.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "doctor", "--json"], stdout=writer, stderr=subprocess.PIPE, text=True,
                          cwd=repo_root(), timeout=120)
    os.close(writer)
    assert done.returncode != 0 and "Traceback" not in done.stderr


def test_debug_shows_the_traceback():
    assert "Traceback" in kit("--debug", "run", "--profile", "mirco").stderr


def test_unwritable_results_are_told_before_work(tmp_path):
    (tmp_path / "file").write_text("")
    done = kit("run", "--profile", "smoke", "--stages", "11", out=tmp_path / "file" / "results")
    assert done.returncode == 2 and "cannot write" in done.stderr


def test_doctor_json():
    done = kit("doctor", "--json")
    report = json.loads(done.stdout)
    assert {p["profile"] for p in report["profiles"]} == {"smoke", "micro", "small", "paper"}
    assert done.returncode == (0 if report["ready"] else 1)
    assert all(c["ok"] or c["fix"] for c in report["checks"])


@pytest.mark.parametrize("name, message", [("model.safetensors", "cannot be read"), ("tokenizer.json", "no tokenizer in")])
def test_ask_tells_of_a_broken_model_in_one_line(tmp_path, micro_base, name, message):
    model = shutil.copytree(micro_base, tmp_path / "model", ignore=shutil.ignore_patterns("SHA256SUMS"))
    os.truncate(model / name, 100) if name.startswith("model") else (model / name).unlink()
    done = kit("ask", "Find the home of Tamex.", "--model", str(model))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr


def test_ask_fails_where_the_engine_does(monkeypatch, micro_base):
    from agentcpm_kit import ask
    from agentcpm_kit.agent.trajectory import EndReason, Trajectory

    failed = Trajectory(task_id="ask", question="q", end_reason=EndReason.ENGINE_FAULT, message="no memory")
    monkeypatch.setattr(ask, "run_episodes", lambda *_, **__: [failed])
    with pytest.raises(KitError, match="the engine failed: no memory"):
        ask.ask("Find the home of Tamex.", micro_base, 0, 0)


def test_ask_prints_a_transcript():
    done = kit("ask", "--examples", "1")
    question = done.stdout.split("   (answer")[0]
    transcript = kit("ask", question)
    assert transcript.returncode == 0, transcript.stderr
    # What the agent does is its own affair; the transcript shows the question, each turn and how it ended.
    assert question in transcript.stdout and "1." in transcript.stdout and "turns" in transcript.stdout
    assert transcript.stderr == ""
    server = shlex.join([sys.executable, "-c", "from agentcpm_kit.cli import main; main()", "serve-tools", "--stdio", "--world",
                         "edition=plain,entities=60"])
    remote = kit("ask", question, "--tools", server)
    assert remote.returncode == 0 and remote.stderr == ""
    assert "tools of" in remote.stdout and "search(query=" in remote.stdout


def test_the_readme_asks_what_the_world_can_answer():
    import re

    from agentcpm_kit.ask import example_tasks

    asked = set(re.findall(r'agentcpm-kit ask[^"]*"([^"]+)"', (repo_root() / "README.md").read_text()))
    assert asked and asked <= {task.question for task in example_tasks(0, 50)}
