"""`agentcpm-kit eval` from outside: against a server that misbehaves, killed, resumed, and told nonsense."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from agentcpm_kit.agent.trajectory import read_trajectories
from agentcpm_kit.evaluate import command as command_module
from agentcpm_kit.evaluate.command import evaluate
from agentcpm_kit.evaluate.options import Options, tools_named
from agentcpm_kit.files import read_jsonl
from agentcpm_kit.profile import repo_root

from .test_judge import says
from .test_openai_engine import AT_ONCE, free_port, refused, serve  # noqa: F401

OFFLINE = os.environ | {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
EVAL = [sys.executable, "-m", "agentcpm_kit.cli", "eval"]
REPORTS = ("rows.jsonl", "metrics.json", "tasks.csv", "transcripts.html")


@pytest.fixture(scope="module")
def mock():
    """URL of a server that refuses, breaks off, sends nonsense or stalls for a third of all requests; for some, always."""
    port = free_port()
    sys.path.insert(0, str(repo_root() / "benchmarks"))
    from mock_server import running

    faults = "429=0.08,500=0.08,cut=0.05,bad_json=0.05,hang=0.02,slow=0.05"
    with running(port, "--hang", "2", "--lasting", "0.02", "--faults", faults):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    sys.path.insert(0, str(repo_root() / "benchmarks"))
    from harness import tasks_with_gold

    path = tmp_path_factory.mktemp("tasks") / "mock.jsonl"
    tasks_with_gold(path, 20)
    return path


def command(tasks, url, out, runs=6):
    return [*EVAL, "--tasks", str(tasks), "--engine", "openai", "--model", "mock",
            "--base-url", url, "--out", str(out), "--k", str(runs), "--concurrency", "32", "--timeout", "1", "--retries", "1"]


def lines(out):
    path = out / "transcripts.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.mark.slow
def test_killed_five_times_it_ends_in_the_same_report(mock, tasks, tmp_path):
    """kill -9 after so many transcripts; in the end nothing is lost or doubled, and every fault is in its class."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = subprocess.run(command(tasks, mock, whole), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for enough in (1, 25, 50, 75, 100):
        process = subprocess.Popen(command(tasks, mock, broken), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while lines(broken) < enough and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command(tasks, mock, broken), capture_output=True).returncode == 0
    for name in REPORTS:
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    scored = [t.episode for t in read_trajectories(broken / "transcripts.jsonl") if not t.end_reason.is_fault]
    rows = read_jsonl(broken / "rows.jsonl")
    assert len(scored) == len(set(scored)) == sum(row["outcome"] in ("correct", "wrong") for row in rows) and len(rows) == 120
    known = {"rate_limit", "server_error", "connection", "bad_reply", "timeout"}
    assert {row["fault"] for row in rows if row["outcome"] == "unscored"} <= known


def test_a_recorded_evaluation_plays_again_with_nobody_there(mock, tasks, tmp_path):
    """The same reports byte for byte, from the record alone; and what was not recorded is told."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert subprocess.run([*command(tasks, mock, one, 2), "--record"], capture_output=True).returncode == 0
    dead = command(tasks, refused(), two, 2)  # a server may be elsewhere, and here is nowhere
    assert subprocess.run([*dead, "--replay", str(one)], capture_output=True, env=OFFLINE).returncode == 0
    for name in REPORTS:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    more = subprocess.run([*command(tasks, mock, tmp_path / "three", 3), "--replay", str(one)], capture_output=True, text=True)
    assert more.returncode == 2 and "never recorded" in more.stderr
    hot = [*command(tasks, mock, tmp_path / "four", 2), "--temperature", "0.5", "--replay", str(one)]
    other = subprocess.run(hot, capture_output=True, text=True)
    assert other.returncode == 2 and "begun with temperature 1.0, not 0.5; replay it with the options" in other.stderr
    assert "--replay plays into a folder of its own" in subprocess.run(
        [*command(tasks, mock, one, 2), "--replay", str(one)], capture_output=True, text=True).stderr
    assert subprocess.run(command(tasks, mock, one, 3), capture_output=True).returncode == 0  # what is recorded goes on so
    assert subprocess.run([*command(tasks, refused(), two, 3), "--replay", str(one)], capture_output=True).returncode == 0
    late = subprocess.run([*dead, "--record"], capture_output=True, text=True)
    assert late.returncode == 2 and "was begun without it" in late.stderr


def test_a_judge_scores_what_is_stored_and_is_named(mock, tasks, tmp_path, serve):  # noqa: F811
    """By rule, by a judge that likes everything, by one that says nonsense, and by one that is out, on the same transcripts."""
    out = tmp_path / "out"
    assert subprocess.run(command(tasks, mock, out, 2), capture_output=True).returncode == 0
    played, by_rule = lines(out), read_jsonl(out / "rows.jsonl")
    again = ["--tasks", tasks, "--out", out, "--k", 2, "--score-only", "--judge", "m", "--judge-url"]
    before = (out / "metrics.json").read_bytes()
    code, told = run(*again, serve((500, AT_ONCE, {"error": {"message": "no more money"}})).url)
    assert code == 2 and "no more money" in told and (out / "metrics.json").read_bytes() == before
    assert run(*again, serve(says("Hm.")).url) == (0, "")
    assert "mock" in (out / "transcripts.html").read_text().partition("<form")[0]
    silent = json.loads((out / "metrics.json").read_text())
    assert "scored by judge m, prompt equivalence" in silent["about"] and silent["used"]["judge"]["verdicts"] == 0
    answered = sum(row["outcome"] in ("correct", "wrong") for row in by_rule)
    assert silent["faults"]["judge: unreadable"] == answered and silent["outcomes"]["correct"] == 0
    url = serve(says("**Correct**")).url
    assert run(*again, url) == (0, "")
    kind = json.loads((out / "metrics.json").read_text())
    assert kind["outcomes"]["correct"] == answered and kind["scorer"]["judge"] == "m" and lines(out) == played
    assert run(*again, url, "--offline") == (0, "")
    assert json.loads((out / "metrics.json").read_text()) == kind
    before = (out / "metrics.json").read_bytes()
    code, told = run(*again[:-3], "--judge", "another", "--offline")
    assert code == 2 and "not asked" in told and (out / "metrics.json").read_bytes() == before


def test_limits_reach_the_tools_and_the_judge(mock, tasks, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(command_module, "throttled", lambda tools, calls: seen.append(calls) or tools)
    options = Options(str(tasks), tmp_path, "openai", "mock", mock, limit=1, runs=1, tool_calls=3, judge="m", judge_concurrency=2)
    evaluate(replace(options, judge=""))
    assert seen == [3] and options.resolved().judging().concurrency == 2


def test_two_evaluations_are_compared(mock, tasks, tmp_path):
    for name in "ab":
        assert subprocess.run(command(tasks, mock, tmp_path / name, 2), capture_output=True).returncode == 0
    scored = ["--tasks", tasks, "--out", tmp_path / "a", "--k", 2, "--score-only", "--against"]
    done = subprocess.run([*EVAL, *map(str, [*scored, tmp_path / "b"])], capture_output=True, text=True)
    assert done.returncode == 0 and "paired by task: 0.000" in done.stdout and "scored by rule exact match" in done.stdout
    assert json.loads((tmp_path / "a/comparison.json").read_text())["pass@1"]["value"] == 0
    code, told = run(*scored, tmp_path / "b", "--tolerance", "0.1")
    assert code == 2 and "score both alike" in told
    assert "holds no scored evaluation" in run(*scored, tmp_path / "nothing")[1]


def run(*arguments):
    done = subprocess.run([*EVAL, *map(str, arguments)], capture_output=True, text=True, cwd=repo_root())
    return done.returncode, done.stderr.strip()


@pytest.mark.parametrize("arguments, hint", [
    (["--tasks", "multihpo"], "did you mean 'multihop'"), (["--tasks", "none.jsonl"], "cannot be read"),
    (["--tasks", "deep", "--engine", "openai"], "needs --base-url"),
    (["--tasks", "deep", "--engine", "opnai"], "did you mean 'openai'"),
    (["--tasks", "deep", "--base-url", "http://127.0.0.1:9/v1"], "--base-url is for --engine openai"),
    (["--tasks", "deep", "--out", "/proc/none"], "cannot be written"),
    (["--tasks", "deep", "--judge-prompt", "gaia"], "name its model with --judge"),
    (["--tasks", "deep", "--offline"], "name its model with --judge"),
    (["--tasks", "pyproject.toml"], "ends in .jsonl"), (["--tasks", "deep", "--blocked", "/none"], "is no list of"),
    (["--tasks", "deep", "--judge", "m", "--tolerance", "0.1"], "is for scoring by rule"),
    (["--tasks", "deep", "--judge", "m", "--judge-url", "localhost:9"], "is no address of a server"),
    (["--tasks", "deep", "--engine", "openai", "--model", "m", "--base-url", "user:secret@a.b:9/v1"], "'a.b:9/v1' is no address"),
    (["--tasks", "gaia"], "data add gaia FILE"), (["--tasks", "deep", "--score-only"], "holds no transcripts to score"),
    (["--tasks", "deep", "--judge", "m", "--judge-prompt", "gaya"], "did you mean 'gaia'")])
def test_a_mistake_is_one_line(tmp_path, arguments, hint):
    code, told = run("--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out/config.json").is_file() or "secret" not in (tmp_path / "out/config.json").read_text()
    assert code == 2 and hint in told and len(told.splitlines()) == 1 and told.startswith("error: ")


def test_scoring_again_plays_nothing_and_more_runs_than_stored_are_refused(mock, tasks, tmp_path):
    out = tmp_path / "out"
    assert subprocess.run(command(tasks, mock, out, 2), capture_output=True).returncode == 0
    before = {name: (out / name).read_bytes() for name in REPORTS}
    played = lines(out)
    assert run("--tasks", tasks, "--out", out, "--k", 2, "--score-only") == (0, "")
    assert {name: (out / name).read_bytes() for name in REPORTS} == before and lines(out) == played
    code, told = run("--tasks", tasks, "--out", out, "--k", 3, "--score-only")
    assert code == 2 and "3 runs of each task are asked for, 2 are stored" in told
    path = tmp_path / "tampered.jsonl"
    path.write_text(tasks.read_text().replace("[", "[ ", 1))
    code, told = run("--tasks", path, "--out", out, "--k", 2, "--score-only")
    assert code == 2 and "begun with other tasks" in told
    assert json.loads(before["metrics.json"])["runs"] == 2


def test_tools_are_told_apart_without_what_may_be_secret(tmp_path):
    names = [tools_named(f"http://user:secret@a.b/mcp?key={key}") for key in ("secret", "other")]
    command, file = tools_named("/usr/bin/search --key secret"), tmp_path / "tools.yaml"
    file.write_text("a: 1")
    before = tools_named(str(file))
    file.write_text("a: 2")
    assert names[0] != names[1] and names[0].startswith("http://a.b/mcp ") and command.startswith("search ")
    assert not any("secret" in name for name in (*names, command))
    assert tools_named(str(file)) != before and tools_named("") == "atlas"
