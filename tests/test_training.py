"""SFT and RL on the shipped base with tiny budgets: what is learned, what is masked, and resuming."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from agentcpm_kit.agent.oracle import OracleEngine
from agentcpm_kit.agent.trajectory import Context, EndReason, Trajectory
from agentcpm_kit.errors import KitError
from agentcpm_kit.evaluate.runner import evaluate_agent
from agentcpm_kit.profile import load_profile, repo_root
from agentcpm_kit.train.data import IGNORED, keep_good, training_rows, training_tasks
from agentcpm_kit.train.denoise import DenoisedGroup
from agentcpm_kit.train.noise import CLEAN, judge, scaled
from agentcpm_kit.train.rl import Update, arms, assert_sampled_tokens, rl_tasks, train_rl

MODEL = repo_root() / "data/models/micro-merge"


def changed(profile, section, **values):
    return profile.model_copy(update={section: getattr(profile, section).model_copy(update=values)})


def test_labels_are_the_sampled_tokens_and_nothing_else(tokenizer, smoke):
    tasks = training_tasks(smoke, 9)
    found = evaluate_agent(OracleEngine(tokenizer, tasks), tasks, smoke).trajectories
    for trajectory, row in zip(found, training_rows(found), strict=True):
        learned = [label for label in row["labels"] if label != IGNORED]
        text = tokenizer.decode(learned)
        assert text.count("<|im_end|>") == trajectory.turns and "<tool_response>" not in text
        assert all(label in (IGNORED, i) for label, i in zip(row["labels"], row["input_ids"], strict=True))
    with pytest.raises(ValueError, match="no sampled token"):
        training_rows([Trajectory(task_id="x", question="q")])


def test_filters_are_named_and_counted(tokenizer, smoke):
    tasks = training_tasks(smoke, 4)
    found = evaluate_agent(OracleEngine(tokenizer, tasks), tasks, smoke).trajectories
    found[0].correct = False
    found[1].end_reason = EndReason.TURN_LIMIT
    found[2].steps[0].status = "repeat_error"
    result = keep_good([*found, found[3]])
    assert result.kept == [found[3]]
    assert result.dropped == {"wrong": 1, "turn_limit": 1, "faulty_step": 1, "duplicate": 1}


def test_training_and_test_tasks_share_no_world(smoke):
    from agentcpm_kit.evaluate.runner import suite

    trained = {t.world for t in training_tasks(smoke, 50)} | {t.world for t in rl_tasks(smoke)}
    assert trained.isdisjoint(t.world for split in ("validation", "test") for t in suite(smoke, split))


def test_token_advantages_follow_the_steps():
    context = Context(prompt_length=2, loss_mask=[0, 0, 1, 1, 0, 1, 0, 0, 1])
    trajectory = Trajectory(task_id="t", question="q", contexts=[context])
    group = DenoisedGroup([0.5], [[0.5, 0.0, 0.25]], {})
    update = Update([trajectory], [1.0], [group], 1)
    assert update.token_advantages(0) == [0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.25]


def rolled_out():
    """Two rollouts as the loop records them, and the batch that TRL makes of them: padded, tool results masked by `tool_mask`."""
    found = []
    for ids, mask in (([7, 8, 9, 20, 21, 10, 11], [0, 0, 1, 0, 0, 1, 1]), ([7, 8, 9, 12], [0, 0, 1, 1])):
        logprobs = [-0.1 * i * m for i, m in zip(ids, mask, strict=True)]
        context = Context(prompt_length=2, token_ids=ids, loss_mask=mask, logprobs=logprobs)
        found.append(Trajectory(task_id="t", question="q", contexts=[context]))

    def padded(rows, filler):
        return torch.tensor([row[2:] + [filler] * (7 - len(row)) for row in rows])
    contexts = [t.contexts[0] for t in found]
    batch = {"completion_ids": padded([c.token_ids for c in contexts], 0),
             "tool_mask": padded([c.loss_mask for c in contexts], 1),
             "completion_mask": padded([[1] * len(c.token_ids) for c in contexts], 0),
             "sampling_per_token_logps": padded([c.logprobs for c in contexts], 0.0),
             "prompt_ids": torch.tensor([[7, 8]] * 2), "prompt_mask": torch.ones(2, 2, dtype=torch.long)}
    return batch, found


def test_a_batch_of_what_was_sampled_passes():
    batch, found = rolled_out()
    assert_sampled_tokens(batch, found)
    batch["sampling_per_token_logps"] += 1e-6  # rounding
    assert_sampled_tokens(batch, found)


@pytest.mark.parametrize("key,row,place,value", [
    ("completion_ids", 0, 0, 99), ("completion_ids", 1, 1, 99), ("sampling_per_token_logps", 0, 3, -9.0),
    ("sampling_per_token_logps", 0, 3, float("nan")), ("tool_mask", 0, 0, 0), ("tool_mask", 0, 1, 1), ("tool_mask", 1, 1, 0),
    ("completion_mask", 0, 4, 0), ("completion_mask", 1, 1, 0), ("completion_mask", 1, 2, 1),
    ("completion_ids", 0, 1, 99)])  # the last: not trained on, but every later token was sampled after it
def test_a_batch_that_differs_from_what_was_sampled_is_refused(key, row, place, value):
    batch, found = rolled_out()
    batch[key][row, place] = value
    with pytest.raises(KitError, match="not those that were sampled"):
        assert_sampled_tokens(batch, found)


def test_sampled_tokens_at_another_place_are_refused():
    batch, found = rolled_out()
    keys = ("completion_ids", "tool_mask", "completion_mask", "sampling_per_token_logps")
    with pytest.raises(KitError, match="not those that were sampled"):
        assert_sampled_tokens({**batch, **{key: batch[key].flip(0) for key in keys}}, found)  # another rollout's row
    for key in keys:
        batch[key][1] = batch[key][1].roll(1)
    with pytest.raises(KitError, match="not those that were sampled"):
        assert_sampled_tokens(batch, found)


def test_rl_needs_sampled_ids_in_one_context():
    batch, found = rolled_out()
    with pytest.raises(KitError, match="exact ids: False"):
        assert_sampled_tokens(batch, [found[0], found[1].model_copy(update={"exact": False})])
    with pytest.raises(KitError, match="2 contexts"):
        assert_sampled_tokens(batch, [found[0].model_copy(update={"contexts": found[0].contexts * 2}), found[1]])


def test_noise_is_what_it_says(smoke):
    import random

    def share(correct, turns, noise, answer="x"):
        t = Trajectory(task_id="t", question="q", answer=answer, correct=correct,
                       steps=[{}] * turns)
        rng = random.Random(0)
        return sum(judge(t, noise, rng) for _ in range(4000)) / 4000

    noise = smoke.noise
    assert share(True, 4, CLEAN) == 1.0 and share(False, 4, CLEAN) == 0.0
    assert share(True, 4, noise) == pytest.approx(1 - noise.judge_false_negative, abs=0.03)
    assert share(False, 4, noise) == pytest.approx(noise.judge_false_positive, abs=0.03)
    lucky = 1 - (1 - noise.judge_false_positive) * (1 - noise.lucky_answer)
    assert share(False, 1, noise) == pytest.approx(lucky, abs=0.03)
    assert share(False, 4, noise, answer=None) == 0.0
    assert judge(Trajectory(task_id="t", question="q"), noise, random.Random(0)) is None
    assert scaled(noise, 0) == CLEAN


def test_arms_differ_in_noise_and_rules_only(smoke):
    found = arms(smoke.noise)
    assert found["clean"].rules == found["noisy"].rules and found["noisy"].noise == found["denoised"].noise
    assert found["clean"].noise == CLEAN


def rl_profile():
    return changed(load_profile("smoke"), "rl", steps=4, questions_per_step=4, save_every=1, eval_every=2)


def test_rl_trains_on_the_sampled_tokens(tmp_path, monkeypatch):
    """At the first step the policy is the one that sampled: the gap between their log-probs must be rounding."""
    torch.set_num_threads(1)
    profile, rows = rl_profile(), []
    train_rl(MODEL, rl_tasks(profile), profile, tmp_path / "out", arms(profile.noise)["denoised"], 0,
             lambda engine: 0.5, lambda step, row: rows.append(row))
    assert [r.get("validation") for r in rows] == [None, 0.5, None, 0.5]
    assert all(r["policy_gap"] < 1e-3 for r in rows), rows
    assert all({"loss", "entropy", "reward", "success", "dropped"} <= set(r) for r in rows)


def test_a_loss_that_is_no_number_stops_rl(tmp_path, monkeypatch):
    from agentcpm_kit.train import rl

    torch.set_num_threads(1)
    losses = rl.token_losses
    monkeypatch.setattr(rl, "token_losses", lambda *arguments, **options: losses(*arguments, **options) * float("nan"))
    profile = rl_profile()
    with pytest.raises(KitError, match="RL stopped: the loss is nan at step 1"):
        train_rl(MODEL, rl_tasks(profile), profile, tmp_path / "out", arms(profile.noise)["clean"], 0)


CHILD = """
import sys, time, torch
from pathlib import Path
from tests.test_training import MODEL, arms, rl_profile, rl_tasks, train_rl
from agentcpm_kit.profile import set_seed
set_seed(0, 1)
profile = rl_profile()
slow = lambda step, row: print(step, flush=True) or time.sleep(float(sys.argv[2]))
train_rl(MODEL, rl_tasks(profile), profile, Path(sys.argv[1]), arms(profile.noise)["noisy"], 0, None, slow)
"""


def start(out, pause):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(out), str(pause)], stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.DEVNULL, cwd=repo_root(), env=os.environ | {"PYTHONPATH": str(repo_root())})


@pytest.mark.parametrize("section, values, hint", [
    ("context", {"history": "discard_all"}, "history"), ("context", {"keep_thinking": False}, "keep_thinking"),
    ("model", {"engine": "openai"}, "engine: vllm")])
def test_rl_refuses_at_once_what_it_cannot_train(smoke, micro_base, tmp_path, section, values, hint):
    from agentcpm_kit.train.rl import arms, train_rl

    profile = smoke.model_copy(update={section: getattr(smoke, section).model_copy(update=values)})
    with pytest.raises(KitError, match=hint):
        train_rl(micro_base, [], profile, tmp_path / "rl", arms(smoke.noise)["clean"])
    assert not list(tmp_path.iterdir())


def test_rl_killed_and_resumed_equals_an_unbroken_run(tmp_path):
    """kill -9 after step 2 of 4: the final weights are bit-identical, on one thread."""
    whole = start(tmp_path / "whole", 0)
    assert whole.wait(timeout=300) == 0
    broken = start(tmp_path / "broken", 1.5)
    for line in broken.stdout:
        if line.strip() == "3":  # step 3 is logged before its checkpoint is written: the last one is of step 2
            broken.send_signal(signal.SIGKILL)
            break
    broken.wait()
    assert sorted(p.name for p in (tmp_path / "broken-trainer").glob("checkpoint-*"))[-1] == "checkpoint-2"
    assert start(tmp_path / "broken", 0).wait(timeout=300) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[n], two[n]) for n in one)
