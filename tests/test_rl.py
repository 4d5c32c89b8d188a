"""RL on the shipped merge with tiny budgets: what is learned from, what is logged, stopping, and resuming in both modes."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from agentcpm_kit.agent.engines import TransformersEngine, load_model
from agentcpm_kit.agent.trajectory import Context, EndReason, Step, Trajectory
from agentcpm_kit.errors import KitError
from agentcpm_kit.profile import load_profile, repo_root
from agentcpm_kit.train.denoise import DenoisedGroup, Rules
from agentcpm_kit.train.noise import CLEAN
from agentcpm_kit.train.rl import train_rl
from agentcpm_kit.train.rl_batch import assert_sampled_tokens, columns, in_length_chunks
from agentcpm_kit.train.rl_trainer import Rollouts
from agentcpm_kit.train.rl_watch import Collapse, refuse_lost_weights
from agentcpm_kit.train.rollouts import Update, arms, collect, load_update, repeated, rl_tasks, save_update

MODEL = repo_root() / "data/models/micro-merge"


class Stop(Exception):
    """A run is interrupted."""


def changed(profile, section, **values):
    return profile.model_copy(update={section: getattr(profile, section).changed(**values)})


def test_token_advantages_follow_the_steps():
    context = Context(prompt_length=2, loss_mask=[0, 0, 1, 1, 0, 1, 0, 0, 1])
    trajectory = Trajectory(task_id="t", question="q", contexts=[context])
    group = DenoisedGroup([0.5], [[0.5, 0.0, 0.25]], {}, [1.0])
    update = Update([trajectory], [1.0], [True], [group], 1)
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


def test_an_episode_that_sampled_nothing_gets_a_token_that_is_not_learned_from():
    batch, found = rolled_out()
    nothing = Trajectory(task_id="t", question="q", contexts=[Context.of_prompt([7, 8])])
    made = columns([found[1], nothing], filler=0)
    assert made["completion_ids"] == [[9, 12], [0]] and made["env_mask"] == [[1, 1], [0]] and made["logprobs"][1] == [0.0]
    batch["tool_mask"][1] = 0
    assert_sampled_tokens(batch, [found[0], nothing])
    batch["tool_mask"][1, 0] = 1
    with pytest.raises(KitError, match="sampled nothing"):
        assert_sampled_tokens(batch, [found[0], nothing])


def played(profile, arm, step=1, version=None):
    model, tokenizer = load_model(MODEL, "float32")
    engine = TransformersEngine(model, tokenizer, 1.0, 16)
    return collect(repeated(rl_tasks(profile)[:2], 4), engine, profile, arm, 0, step, version)


def test_arms_meet_the_same_rollouts_and_the_same_draws(smoke):
    """With a noise that breaks no tool, all three play the very same episodes; noisy and denoised see the same rewards."""
    profile = rl_profile(group_size=4)
    noise = smoke.noise.changed(tool_outage=0.0, judge_false_positive=0.5, judge_false_negative=0.5)
    clean, noisy, denoised = (played(profile, arm) for arm in arms(noise).values())
    assert clean.truth == noisy.truth == denoised.truth and clean.rewards == [float(t) for t in clean.truth]
    assert noisy.rewards == denoised.rewards != clean.rewards
    assert [t.contexts for t in noisy.trajectories] == [t.contexts for t in denoised.trajectories]
    assert all(c.context.token_ids[:len(n.context.token_ids)] == n.context.token_ids  # noise may have cut it
               for c, n in zip(clean.trajectories, noisy.trajectories, strict=True))
    assert not any(group.dropped for group in (*clean.groups, *noisy.groups))


def test_turns_carry_the_version_of_the_policy():
    update = played(rl_profile(group_size=4), arms(CLEAN)["clean"], step=4, version=3)
    assert {turn.policy_version for t in update.trajectories for turn in t.steps} == {3} and update.version == 3


def rl_profile(**values):
    few = {"steps": 4, "questions_per_step": 4, "save_every": 1, "eval_every": 2, "hops": [1]}  # easy: there are rewards
    return changed(load_profile("smoke"), "rl", **few | values)


def run(out, profile, arm="noisy", on_step=None, evaluate=None):
    """Train and return what was logged."""
    torch.set_num_threads(1)
    rows = []

    def log(step, row):
        rows.append({"step": step, **row})
        if on_step:
            on_step(step, row)
    train_rl(MODEL, rl_tasks(profile), profile, out, arms(profile.noise)[arm], 0, evaluate, log)
    return rows


def test_rl_trains_on_the_sampled_tokens(tmp_path):
    """At the first step the policy is the one that sampled: the gap between their log-probs must be rounding."""
    rows = run(tmp_path / "out", rl_profile(), "denoised", evaluate=lambda engine: 0.5)
    assert [r.get("validation") for r in rows] == [None, 0.5, None, 0.5]
    assert all(r["policy_gap"] < 1e-3 and r["staleness"] == 0 and r["clip_share"] == 0 for r in rows), rows
    assert rows[0]["kl_to_start"] < 1e-6 < rows[-1]["kl_to_start"]
    assert rows[0]["entropy"] == pytest.approx(0.12, abs=0.08)  # of the shipped model, at temperature 1
    assert all({"loss", "entropy", "reward", "success", "dropped", "fault_share", "noise_share", "train_s", "rollout_s"} <= set(r)
               for r in rows)


def test_passes_of_an_update_add_up(tmp_path):
    """Sixteen rollouts in one pass or in four: the same loss and gradient but for rounding."""
    profile = rl_profile(steps=1)
    few = profile.model_copy(update={"model": profile.model.changed(rows_at_once=4)})
    whole, parts = run(tmp_path / "one", profile, "clean"), run(tmp_path / "four", few, "clean")
    assert whole[0]["grad_norm"] > 0
    assert [parts[0][k] for k in ("loss", "grad_norm")] == pytest.approx([whole[0][k] for k in ("loss", "grad_norm")], rel=1e-3)


@pytest.mark.parametrize("loss,aggregation", [("gspo", "sequence_mean"), ("minirl", "sequence_sum"), ("cispo", "token_mean"),
                                              ("reinforce", "token_mean")])
def test_every_loss_trains(tmp_path, loss, aggregation):
    rows = run(tmp_path / "out", rl_profile(steps=2, loss=loss, aggregation=aggregation))
    before, after = load_file(MODEL / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert len(rows) == 2 and any(not torch.equal(before[n], after[n]) for n in before)


def test_passes_without_anything_to_learn_cost_nothing(tmp_path, monkeypatch):
    """One rollout a pass: those that have no advantage are not put through the model, and the update is the same."""
    from agentcpm_kit.train.rl_trainer import trainer_class

    seen, whole = [], trainer_class().sampled_logprobs

    def counted(self, model, inputs, mask):
        if model.training:
            seen.append(bool(mask.any()))
        return whole(self, model, inputs, mask)

    profile = rl_profile(steps=1, kl_rollouts=0)
    together = run(tmp_path / "one", profile, "clean")[0]
    monkeypatch.setattr(trainer_class(), "sampled_logprobs", counted)
    alone = run(tmp_path / "alone", profile.model_copy(update={"model": profile.model.changed(rows_at_once=1)}), "clean")[0]
    assert all(seen) and len(seen) == alone["learned"] < 16
    assert alone["grad_norm"] == pytest.approx(together["grad_norm"], rel=1e-3) and together["grad_norm"] > 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_adapter_of_the_last_layer_trains_nothing_else(tmp_path, asynchronous):
    """The policy that plays has it too, merged or not: the gap to the one that learns stays rounding."""
    rows = run(tmp_path / "out", rl_profile(lora_rank=4, lora_layers=1, learning_rate=1e-2, asynchronous=asynchronous))
    before, after = load_file(MODEL / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    changed_ones = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed_ones and all("layers.3." in name and "proj" in name for name in changed_ones)
    assert rows[-1]["kl_to_start"] > 1e-6 and len(rows) == 4
    if not asynchronous:
        assert all(r["policy_gap"] < 1e-3 for r in rows), rows


def test_asynchronous_rollouts_are_one_step_old(tmp_path):
    """Those of the first step are fresh, and the policy has moved since all others were sampled."""
    rows = run(tmp_path / "out", rl_profile(asynchronous=True))
    assert [r["staleness"] for r in rows] == [0, 1, 1, 1]
    assert rows[0]["policy_gap"] < 1e-4 < min(r["policy_gap"] for r in rows[1:])


def test_rollouts_played_ahead_are_kept_and_denoised_again(tmp_path):
    turn = Step(policy_version=3)
    update = Update([Trajectory(task_id="t", question="q", steps=[turn])] * 2, [1.0, None], [True, None], [], 2, 3)
    save_update(update, tmp_path)
    found = load_update(tmp_path, Rules(), 2)
    assert found.trajectories == update.trajectories and found.version == 3
    assert (found.rewards, found.truth) == ([1.0, None], [True, None])
    assert found.groups[0].dropped == {0: "short", 1: "fault"}  # denoised again, by the rules of the run
    assert load_update(tmp_path / "nothing", Rules(), 2) is None
    synchronous = Rollouts([], None, rl_profile(), arms(CLEAN)["clean"], 0)
    synchronous.load(tmp_path)
    assert synchronous.ahead is None  # it plays its own


def test_summary_by_hand():
    """Four rollouts: right and rewarded, right and not (noise), wrong and rewarded (noise), a fault (noise)."""
    ends = [EndReason.ANSWERED] * 3 + [EndReason.TOOL_FAULT]
    context = Context(prompt_length=1, token_ids=[1, 2, 3], loss_mask=[0, 1, 1], logprobs=[0.0, -0.5, -1.5])
    found = [Trajectory(task_id="t", question="q", end_reason=e, steps=[Step()] * 2, contexts=[context]) for e in ends]
    group = DenoisedGroup([0.0] * 4, [[]] * 4, {3: "fault"}, [])
    update = Update(found, [1.0, 0.0, 1.0, None], [True, True, False, None], [group], 4)
    summary = update.summary()
    assert summary["reward"] == summary["success"] == pytest.approx(2 / 3) and summary["entropy"] == 1.0
    assert (summary["noise_share"], summary["fault_share"], summary["turns"]) == (0.75, 0.25, 2.0)
    assert summary["dropped"] == {"fault": 1} and summary["end_reasons"] == {"answered": 3, "tool_fault": 1}


def test_questions_differ_by_seed_and_never_repeat(smoke):
    one, two = rl_tasks(smoke), rl_tasks(smoke, seed=1)
    assert len({t.question for t in one}) == len(one) == smoke.rl.steps * smoke.rl.questions_per_step
    assert not {t.question for t in one} & {t.question for t in two}


def test_chunks_are_of_like_length_and_hold_no_needless_padding():
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]])
    prompts = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 1, 1], [0, 0, 1]])
    batch = {"completion_mask": mask, "completion_ids": mask * torch.tensor([[1], [2], [3], [4]]), "prompt_mask": prompts,
             "prompt_ids": prompts, "num_items_in_batch": torch.tensor(12)}
    short, long = in_length_chunks(batch, 2)
    assert short["completion_ids"].tolist() == [[2, 0], [4, 4]] and short["prompt_ids"].tolist() == [[1], [1]]
    assert long["completion_ids"].tolist() == [[1, 1, 1, 1, 0], [3] * 5] and long["prompt_ids"].shape == (2, 2)
    assert short["num_items_in_batch"] == long["num_items_in_batch"] == 12


def test_collapse_by_hand():
    """Three steps without reward in a row stop a run; one that was rewarded in between does not count on."""
    good = {"rewarded": 1.0, "learned": 8.0, "entropy": 0.1}
    watch = Collapse(rl_profile(patience=3, least_entropy=0.01).rl)
    found = [watch.reason(good | {"rewarded": r}) for r in (0.0, 0.0, 1.0, 0.0, 0.0, 0.0)]
    assert found == [None] * 5 + ["no rollout was rewarded in 3 steps"]


@pytest.mark.parametrize("bad, told", [
    ({"entropy": 0.001}, "entropy was below 0.01 nats per token in 2 steps"),
    ({"entropy": 0.41}, "entropy was above 4 times the first step's in 2 steps"),
    ({"learned": 0.0}, "no rollout was left to learn from in 2 steps")])
def test_each_sign_of_collapse_by_hand(bad, told):
    good = {"rewarded": 1.0, "learned": 8.0, "entropy": 0.1}
    watch = Collapse(rl_profile(patience=2, least_entropy=0.01).rl)
    assert [watch.reason(log) for log in (good, good | {"entropy": 0.4}, good | bad, good, good | bad)] == [None] * 5
    assert watch.reason(good | bad) == told


def test_a_collapsed_policy_stops_the_run_and_is_kept(tmp_path, capsys):
    """With the entropy of a coin asked of every token, any policy counts as collapsed."""
    rows = run(tmp_path / "out", rl_profile(patience=2, least_entropy=0.69), evaluate=lambda engine: 0.25)
    assert [r["step"] for r in rows] == [1, 2] and rows[-1]["validation"] == 0.25
    assert "entropy was below 0.69 nats per token in 2 steps" in rows[-1]["stopped"]
    assert "RL of noisy stopped at step 2: entropy" in capsys.readouterr().out
    assert (tmp_path / "out/SHA256SUMS").is_file()


def test_a_resumed_run_counts_on_towards_its_collapse(tmp_path):
    """Stopped after its second step without entropy; a run that is killed there, before it could be saved, stops there again."""
    def stop(step, row):
        if step == 2:
            raise Stop
    with pytest.raises(Stop):
        run(tmp_path / "out", rl_profile(patience=2, least_entropy=0.69), on_step=stop)
    assert [p.name for p in (tmp_path / "out-trainer").glob("checkpoint-*")] == ["checkpoint-1"]
    rows = run(tmp_path / "out", rl_profile(patience=2, least_entropy=0.69))
    assert [r["step"] for r in rows] == [2] and "2 steps" in rows[0]["stopped"]


def test_a_loss_that_is_no_number_stops_rl(tmp_path, monkeypatch):
    from agentcpm_kit.train import rl_trainer

    losses = rl_trainer.token_losses
    monkeypatch.setattr(rl_trainer, "token_losses", lambda *arguments, **options: losses(*arguments, **options) * float("nan"))
    with pytest.raises(KitError, match="RL stopped: the loss is nan at step 1"):
        run(tmp_path / "out", rl_profile(), "clean")


@pytest.mark.parametrize("section, values, hint", [
    ("context", {"history": "discard_all"}, "history"), ("context", {"keep_thinking": False}, "keep_thinking"),
    ("model", {"engine": "openai"}, "engine: vllm"), ("rl", {"steps": 100}, "100 steps of 4 questions need 400 tasks, not 0")])
def test_rl_refuses_at_once_what_it_cannot_train(smoke, micro_base, tmp_path, section, values, hint):
    profile = changed(smoke, section, **values)
    with pytest.raises(KitError, match=hint):
        train_rl(micro_base, [], profile, tmp_path / "rl", arms(smoke.noise)["clean"])
    assert not list(tmp_path.iterdir())


def test_lost_weights_are_noticed_by_the_gradient_too():
    with pytest.raises(KitError, match="the norm of the gradient is inf at step 3"):
        refuse_lost_weights({"loss": 0.1, "grad_norm": float("inf")}, 3)


def same_weights(one, two):
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    return all(torch.equal(first[name], second[name]) for name in first)


def test_an_update_is_filled_up(tmp_path):
    """Where too little is learned from, a step plays more questions, until its rows suffice or its rounds are used up."""
    rows = run(tmp_path / "out", rl_profile(steps=2, rows_per_update=14), "denoised")
    assert all(r["rollouts"] in (16, 32, 48) and (r["active"] >= 14 or r["rollouts"] == 48) for r in rows)
    assert max(r["rollouts"] for r in rows) > 16


def test_rows_of_an_update_by_hand():
    """Of four rollouts of a first round and four of a second, 0, 5, 6 and 7 are active; three rows are wanted of four."""
    steps = [[[1.0], [0.0]], [[0.0], [0.0]], [[0.0], [1.0]], [[1.0], [1.0]]]
    groups = [DenoisedGroup([0.0, 0.0], each, {}, []) for each in steps]
    update = Update([Trajectory(task_id="t", question="q")] * 8, [0.0] * 8, [False] * 8, groups, 2)
    assert update.rows(4, wanted=3) == [0, 1, 5, 6]  # 1 is idle, and fills up
    assert update.rows(4, wanted=0) == [0, 1, 2, 3]
    assert update.rows(4, wanted=9) == [0, 5, 6, 7]


@pytest.mark.parametrize("how", [{}, {"asynchronous": True}, {"lora_rank": 4}])
def test_interrupted_at_any_step_and_resumed_equals_an_unbroken_run(tmp_path, how):
    """On one thread, bit for bit: weights, and every step's rewards. A step that was logged and not saved is played again."""
    profile = rl_profile(**how)
    whole = run(tmp_path / "whole", profile)
    for at in range(1, 5):
        def stop(step, row, at=at):
            if step == at:
                raise Stop
        out, rows = tmp_path / f"broken{at}", []
        with pytest.raises(Stop):
            run(out, profile, on_step=stop)
        rows = run(out, profile)
        assert [r["step"] for r in rows] == list(range(at, 5))
        assert [(r["reward"], r["loss"]) for r in rows] == [(r["reward"], r["loss"]) for r in whole[at - 1:]]
        assert same_weights(tmp_path / "whole", out)


CHILD = """
import sys, time
from pathlib import Path
from tests.test_rl import rl_profile, run
from agentcpm_kit.profile import set_seed
set_seed(0, 1)
run(Path(sys.argv[1]), rl_profile(), on_step=lambda step, row: print(step, flush=True) or time.sleep(float(sys.argv[2])))
"""


def start(out, pause):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(out), str(pause)], stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.DEVNULL, cwd=repo_root(), env=os.environ | {"PYTHONPATH": str(repo_root())})


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
    assert same_weights(tmp_path / "whole", tmp_path / "broken")
