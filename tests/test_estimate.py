"""The estimate of a long run: its work is counted, its speeds are timed, and both are shown beside the truth."""

import json

import pytest

from agentcpm_kit import estimate as module
from agentcpm_kit import pipeline
from agentcpm_kit.errors import KitError
from agentcpm_kit.estimate import Speed, Work, calibrate, estimate, planned
from agentcpm_kit.monitor import Monitor
from agentcpm_kit.profile import load_profile
from agentcpm_kit.stage import notebooks, stage_folder

from .test_rl import changed


def test_work_costs_what_its_parts_cost():
    assert Work(rows=2, adapted=3, episodes=5, models=7).seconds(Speed(1.0, 10.0, 100.0, 1000.0)) == 7532


def test_work_is_counted_from_the_profile(smoke):
    """smoke by hand: 2 steps of RL with 16 rollouts in three arms, half of them learned from; 8 x 2 sampled episodes."""
    work = planned(smoke)
    assert set(work) <= set(notebooks())
    assert work["03_trajectories"] == Work(rows=30, episodes=16, models=2)
    assert work["07_rl"].rows == 3 * 2 * 8 and work["07_rl"].adapted == 0
    adapted = planned(changed(smoke, "rl", lora_rank=2, steps=4))["07_rl"]
    assert (adapted.rows, adapted.adapted) == (0, 2 * 48)
    assert work["09_passk"].episodes == 4 * smoke.passk.tasks * smoke.passk.samples


def test_speeds_are_measured(smoke, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.1)
    speed = calibrate(smoke)
    assert all(0 < seconds < 60 for seconds in vars(speed).values()), speed


def test_a_process_of_its_own_times_the_machine():
    found = estimate(load_profile("smoke"))
    assert found["seconds"].keys() == planned(load_profile("smoke")).keys() and found["speed"]["row_s"] > 0


def test_a_model_that_is_not_here_is_told(smoke):
    with pytest.raises(KitError, match="no model in .*nowhere"):
        calibrate(changed(smoke, "model", base="nowhere"))


def test_no_estimate_is_no_reason_to_stop(smoke, results, monkeypatch, capsys):
    def fails(profile):
        raise KitError("out of memory")

    monkeypatch.setattr(pipeline, "estimate", fails)
    with Monitor(1) as monitor:
        pipeline._foretell(changed(smoke, "machine", minutes=100), 0, {"04_sft": {}}, False, monitor)
        monitor.compare()
    assert "no estimate: out of memory" in capsys.readouterr().out and not monitor.expected


def test_long_runs_are_estimated_and_compared(smoke, results, monkeypatch, capsys):
    """Only what is not done counts, and what reads it; a short profile is not timed at all."""
    monkeypatch.setattr(pipeline, "estimate", lambda profile: {"speed": {}, "seconds": {"03_trajectories": 60, "04_sft": 120}})
    monkeypatch.setattr(pipeline, "_is_kept", lambda name, *rest: name != done_again)
    done_again = "04_sft"
    folder = stage_folder("smoke", 0, "estimate.json").parent
    folder.mkdir(parents=True)
    parameters = {"03_trajectories": {}, "04_sft": {}}
    with Monitor(2) as monitor:
        pipeline._foretell(smoke, 0, parameters, False, monitor)
        assert not monitor.expected
        long = changed(smoke, "machine", minutes=100)
        pipeline._foretell(long, 0, parameters, False, monitor)
        assert monitor.expected == {"04_sft": 120} and json.loads((folder / "estimate.json").read_text())["seconds"]
        with monitor.stage("04_sft", folder):
            pass
        monitor.compare()
        done_again = "03_trajectories"  # then 04, which reads it, is made anew too
        pipeline._foretell(long, 0, parameters, False, monitor)
        assert set(monitor.expected) == set(parameters)
    told = capsys.readouterr().out
    assert "estimated: 2 minutes (04: 2)" in told and "(estimated 120)" in told and "took 0 minutes, 2 were estimated" in told
