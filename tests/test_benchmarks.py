"""The benchmarks of the agent loop run, and count what they say they count. No time is asserted."""

import itertools
import json
import math
import subprocess
import sys

import pytest

from agentcpm_kit.agent.trajectory import Context, EndReason, Step, Trajectory, write_trajectories
from agentcpm_kit.environment import commit
from agentcpm_kit.files import jsonl
from agentcpm_kit.profile import load_profile, repo_root

from .test_openai_engine import free_port


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(repo_root() / "benchmarks")


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, "--threads", "1", *map(str, arguments)])
    return module.main()


def test_rollout_compares_all_arms(monkeypatch, tmp_path):
    import rollout

    monkeypatch.setattr(rollout, "find_spec", lambda name: None)  # vLLM takes long to start
    run(rollout, monkeypatch, "--tasks", 4, "--few", 1, "--batch", 3, "--rounds", 1, "--out", tmp_path)
    result = json.loads((tmp_path / "rollout.json").read_text())
    rows = {row["arm"]: row for row in result["rows"]}
    assert rows.keys() == rollout.ARMS.keys() - {"kit, vLLM"} and result["replay_differs"] == 0
    assert {arm: row["episodes"] for arm, row in rows.items()} == dict.fromkeys(rows, 4) | {"one by one": 1}
    assert all(row["equal_answers"] == 1.0 for row in rows.values())
    assert math.isclose(sum(part["share"] for part in result["parts"]), 1, abs_tol=0.001)
    assert (tmp_path / "rollout.png").stat().st_size < 100_000 and result["env"]["packages"]["trl"]


@pytest.mark.parametrize("part,history", [("script", "discard_tools"), ("model", "discard_tools"), ("model", "discard_all")])
def test_horizon_loses_nothing(monkeypatch, tmp_path, part, history):
    import horizon
    import horizon_parts

    micro, out = load_profile("micro"), tmp_path / "horizon.json"
    narrow = micro.model_copy(update={"limits": micro.limits.model_copy(update={"max_context_tokens": 320})})
    monkeypatch.setattr(horizon_parts, "load_profile", lambda name: narrow)  # so that few turns fill it
    monkeypatch.setattr(horizon, "AGAIN", {7: 2})
    code = run(horizon, monkeypatch, "--part", part, "--episodes", 3, "--turns", 8, "--faults", 0.2, "--batch", 2,
               "--history", history, "--out", out)
    result = json.loads(out.read_text())[part]
    assert code == 0 and not any(result[key] for key in ("lost", "twice", "wrong_reasons"))
    assert sum(result["end_reasons"].values()) == 3 and [row["episodes"] for row in result["again"]] == [2]
    if part == "model":
        assert result["contexts"] > 3 and result["end_reasons"].keys() <= {"turn_limit", "tool_fault"}


def test_horizon_notices_a_reason_that_the_tools_did_not_see(monkeypatch):
    import horizon_parts

    part = horizon_parts.script_part(1, 3, 0.1)
    trajectory = Trajectory(episode="e", task_id="long-0", question="", end_reason=EndReason.TOOL_FAULT,
                            steps=[Step(status="tool_failed")])
    assert not part.is_right(trajectory, part.tasks[0])
    part.watches["e"].given_up = 1
    assert part.is_right(trajectory, part.tasks[0])
    trajectory.end_reason = EndReason.ANSWERED
    assert not part.is_right(trajectory, part.tasks[0])


def test_a_trial_of_twice_the_records_has_as_many_steps(smoke):
    import sft_settings

    once, twice = (sft_settings.records(name, smoke, 0) for name in ("profile", sft_settings.TWICE))
    assert load_profile("micro").sft.epochs == 2 * sft_settings.TRIALS[sft_settings.TWICE]["epochs"]
    assert len(twice) == 2 * len(once)


def test_a_fingerprint_sees_the_last_bit():
    import horizon

    def marked(logprob):
        return horizon.fingerprint(Trajectory(task_id="t", question="", contexts=[Context(token_ids=[5], logprobs=[logprob])]))

    assert marked(-0.5) == marked(-0.5) != marked(math.nextafter(-0.5, 0))


def test_expected_faults():
    """Two calls, each given up with 0.5 ** 3: 1 - (7 / 8) ** 2 = 15 / 64."""
    import horizon
    import horizon_parts

    part = horizon_parts.Part([], [2, 2], None, None, None, horizon_parts.fault_plan(0.5))
    assert horizon.expected_faults(part, 1)["expected_share"] == round(15 / 64, 4)


def test_a_stopwatch_counts_seconds_once(monkeypatch):
    """Each look at the clock takes a second: the inner call takes 1, the outer one 3 with the inner one in it."""
    import rollout_arms

    monkeypatch.setattr(rollout_arms.time, "perf_counter", itertools.count().__next__)
    watch = rollout_arms.Stopwatch()
    inner = watch.around(lambda: None, "inner")
    watch.around(inner, "outer")()
    assert watch.seconds == {"inner": 1, "outer": 2}


def test_sft_is_killed_and_resumed(monkeypatch, tmp_path):
    import sft

    monkeypatch.setattr(sft, "LIMIT_S", 10_000)  # tests assert no speed
    monkeypatch.setattr(sys, "argv", ["sft.py", "--profile", "smoke", "--records", "48", "--out", str(tmp_path / "sft.json")])
    assert sft.main() == 0
    result = json.loads((tmp_path / "sft.json").read_text())
    assert result["unbroken"]["steps"] == result["resumed"]["steps"] == 3 and result["relative_difference"] <= 0.01


def test_a_training_that_fails_is_told(monkeypatch):
    import sft

    with pytest.raises(SystemExit, match="ended without a result"):
        sft.run(["--profile", "nonsense"])


def test_settings_are_tried_once_and_measured_merged(monkeypatch, tmp_path, smoke):
    import sft_settings

    monkeypatch.setattr(sft_settings, "load_profile", lambda name: smoke.model_copy(update={"sft": smoke.sft.model_copy(
        update={"backend": "trl"})}))
    arguments = ["--profile", "smoke", "--tasks", "2", "--trials", "profile", "--out", tmp_path / "out", "--work", tmp_path / "w"]
    monkeypatch.setattr(sys, "argv", ["sft_settings.py", *map(str, arguments)])
    assert sft_settings.main() == 0 and sft_settings.main() == 0
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    assert len(rows) == 1 and rows[0]["n"] == 6 and 0 < (tmp_path / "out/settings.png").stat().st_size < 100_000
    assert {f"{kind}{what}" for kind in ("", "linear: ", "by parts: ") for what in ("success", "general")} <= set(rows[0])


def test_rl_trials_resume_and_draw(tmp_path):
    """Two trials of one step: rows with an outcome per task; again, nothing is left to do."""
    options = ["--steps", 1, "--tests", 3, "--seeds", 0, "--workers", 1, "--experiments", "losses", "--only", "grpo, noisy",
               "--out", tmp_path, "--work", tmp_path / "work"]
    # a process of its own: the pool leaves a helper behind in the one that starts it, until that one ends
    command = [sys.executable, repo_root() / "benchmarks/rl_trials.py", *map(str, options)]
    subprocess.run(command, check=True, cwd=repo_root())
    text = (tmp_path / "rows.jsonl").read_text()
    start, trial = map(json.loads, text.splitlines())
    assert (start["trial"], trial["trial"], trial["loss"]) == ("before RL", "grpo, noisy", "grpo")
    assert len(trial["outcomes"]) == trial["n"] == 3
    assert start["commit"] == trial["commit"] and trial["commit"].removesuffix("-dirty") == (commit() or "unknown")[:7]
    assert trial["score"] == pytest.approx(trial["outcomes"].count("1") / 3, abs=1e-4)
    assert (tmp_path / "losses.png").stat().st_size < 100_000 and not list((tmp_path / "work").rglob("*.safetensors"))
    subprocess.run(command, check=True, cwd=repo_root())
    assert (tmp_path / "rows.jsonl").read_text() == text


@pytest.mark.parametrize("mistake, told", [
    (["--only", "drop_fault5"], "no trial of rules holds the text 'drop_fault5'"), (["--profile", "smok"], "smok"),
    (["--model", "nowhere"], "no model in nowhere")])
def test_rl_trials_says_what_is_wrong(mistake, told, monkeypatch, tmp_path, capsys):
    import rl_trials

    monkeypatch.setattr(sys, "argv", ["rl_trials.py", "--experiments", "rules", "--out", str(tmp_path), *mistake])
    with pytest.raises(SystemExit):
        rl_trials.main()
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_map_has_every_source_alone_and_all_together():
    import rl_experiments

    micro = load_profile("micro")
    found = list(rl_experiments.dose_trials(micro))
    cells = 1 + len(rl_experiments.DOSES) * (1 + len(rl_experiments.SOURCES))
    assert len({t.name for t in found}) == len(found) == 2 * 2 * cells
    strongest = next(t for t in found if t.name == "lucky_answer 0.8, denoised, 2.5 x")
    assert [name for name, dose in strongest.noise if dose] == ["lucky_answer"]
    assert {t.labels["rate"] for t in rl_experiments.collapse_trials(micro)} == {2.5}
    assert strongest.changes == {"learning_rate": pytest.approx(2.5 * micro.rl.learning_rate)}


def test_rl_step_splits_the_time_of_a_step(monkeypatch, tmp_path):
    import rl_step

    monkeypatch.setattr(rl_step, "load_profile", lambda name: load_profile("smoke"))
    run(rl_step, monkeypatch, "--steps", 3, "--rounds", 1, "--out", tmp_path / "rl_step.json")
    result = json.loads((tmp_path / "rl_step.json").read_text())
    for mode in rl_step.MODES:
        parts = result[mode]
        assert parts["steps"] == 2 and 0 < parts["rollout_model_s"] < parts["rollout_s"]
        assert 0 < parts["train_s"] + parts["optimiser_s"] < parts["step_s"]
    assert result["speed_up"] > 0 and 0 < result["synchronous"]["model_share"] <= 1


def test_harness_counts_its_requests(tmp_path):
    """In a process of its own: it starts a server and threads."""
    out = tmp_path / "harness.json"
    command = [sys.executable, repo_root() / "benchmarks/harness.py", "--tasks", 3, "--runs", 2, "--out", out]
    subprocess.run([*map(str, command), "--port", str(free_port())], check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert found["requests"] == 12 and found["requests_per_s"] > 0 and 0 <= found["correct"] <= 6


@pytest.mark.parametrize("broken", [None, "lost", "doubled", "class", "bytes"])
def test_resume_notices_what_differs(tmp_path, broken):
    import resume

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    rows = [{"outcome": "correct"}, {"outcome": "unscored", "fault": "timeout" if broken != "class" else "tool"}]
    scored = {"lost": [], "doubled": ["0/0/0/a"] * 2}.get(broken, ["0/0/0/a"])
    for folder in (whole, killed):
        folder.mkdir()
        for name in resume.REPORTS:
            (folder / name).write_text("same")
        (folder / "rows.jsonl").write_text(jsonl(rows))
        fault = Trajectory(episode="0/1/0/a", task_id="a", question="q", end_reason=EndReason.ENGINE_FAULT)
        write_trajectories(folder / "transcripts.jsonl", [
            *(Trajectory(episode=name, task_id="a", question="q", end_reason=EndReason.ANSWERED) for name in scored), fault])
    if broken == "bytes":
        (killed / "tasks.csv").write_text("other")
    found = resume.compared(tmp_path, {"timeout": 1})
    fine = [found["faults_in_their_class"], found["nothing_lost_or_doubled"], all(found["same_bytes"].values())]
    assert fine == [broken != "class", broken not in ("lost", "doubled"), broken != "bytes"]
