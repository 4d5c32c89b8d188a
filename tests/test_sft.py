"""SFT: what a batch teaches, adapters, checks during training, a loss that is no number, and a kill half way."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agentcpm_kit.agent.engines import load_model, open_engine
from agentcpm_kit.errors import KitError
from agentcpm_kit.evaluate.general import load_items
from agentcpm_kit.evaluate.runner import answer_items
from agentcpm_kit.profile import load_profile, repo_root
from agentcpm_kit.train import sft
from agentcpm_kit.train.data import IGNORED, keep_good, oracle_trajectories, training_rows, training_tasks
from agentcpm_kit.train.retention import distance, replay_rows, with_replay
from agentcpm_kit.train.sft import Watchers, fine_tune

PROFILE = load_profile("smoke")


def settings(**values):
    return PROFILE.sft.model_copy(update={"backend": "trl", "epochs": 1, "batch_size": 8, **values})


def make_rows(tokenizer, count, seed=0):
    found = oracle_trajectories(training_tasks(PROFILE, count, seed), tokenizer, PROFILE).trajectories
    return training_rows(keep_good(found).kept)


@pytest.fixture(scope="module")
def rows(tokenizer):
    return make_rows(tokenizer, 48)


def test_sft_through_unsloth_learns_and_saves(rows, micro_base, tmp_path):
    """In a process of its own: importing Unsloth patches transformers and TRL for good."""
    code = ("from pathlib import Path; from tests.test_sft import *\n"
            f"base, out = Path({str(micro_base)!r}), Path({str(tmp_path / 'out')!r})\n"
            "_, tokenizer = load_model(base)\n"
            "losses = []\n"
            "watchers = Watchers(lambda step, steps, log: losses.append(log['loss']))\n"
            "done = fine_tune(base, make_rows(tokenizer, 96), PROFILE, settings(backend='unsloth', epochs=3), out, 0, watchers)\n"
            "assert losses[-1] < 0.7 * losses[0], losses\n"
            "assert done['steps'] == len(losses) == 36, done\n")
    run(code)
    before, after = load_file(micro_base / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert set(before) == set(after) and any(not torch.equal(before[n], after[n]) for n in before)


def run(code, **options):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, cwd=repo_root(),
                          env=os.environ | {"PYTHONPATH": str(repo_root())}, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_batch_that_teaches_other_tokens_is_refused(rows, micro_base, tmp_path, monkeypatch):
    made = sft._trainer

    def meddling(*arguments):
        trainer = made(*arguments)
        collate = trainer.data_collator

        def teach_all(features):
            batch = collate(features)
            return batch | {"labels": batch["input_ids"].clone()}
        trainer.data_collator = teach_all
        return trainer
    monkeypatch.setattr(sft, "_trainer", meddling)
    with pytest.raises(KitError, match="would teach other tokens"):
        fine_tune(micro_base, rows, PROFILE, settings(), tmp_path / "out")


def test_checks_tell_validation_loss_and_hand_out_a_checkpoint(rows, tokenizer, micro_base, tmp_path):
    seen = []

    def on_check(step, folder, loss):
        with open_engine(folder, PROFILE, temperature=0.0) as engine:
            seen.append((step, loss, answer_items(engine, load_items(3))))
    watchers = Watchers(on_check=on_check, validation=make_rows(tokenizer, 8, seed=7))
    fine_tune(micro_base, rows, PROFILE, settings(checks=2, epochs=2), tmp_path / "out", 0, watchers)
    assert [step for step, _, _ in seen] == [6, 12] and seen[1][1] < seen[0][1]
    unchecked = fine_tune(micro_base, rows, PROFILE, settings(epochs=2), tmp_path / "quiet")
    assert unchecked["final_loss"] > 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "quiet"))
    assert all(torch.equal(one[n], two[n]) for n in one), "checking changed what was trained"


@pytest.mark.parametrize("kl", [0.0, 1.0])
def test_passes_of_an_update_add_up(rows, micro_base, tmp_path, kl):
    """Eight rows in one pass or one by one: the same rows in each update, the same loss and gradient but for rounding."""
    logged = {}
    for at_once in (16, 1):
        profile, steps = PROFILE.model_copy(update={"model": PROFILE.model.changed(rows_at_once=at_once)}), []
        watchers = Watchers(lambda step, of, log, steps=steps: steps.append((log["loss"], log["grad_norm"])))
        fine_tune(micro_base, rows, profile, settings(kl=kl), tmp_path / str(at_once), 0, watchers)
        logged[at_once] = steps
    one, many = logged.values()
    first = 1 if kl else len(one)  # the distance is a mean over a pass, so rows of other lengths weigh a little more or less
    for a, b in zip(one[:first], many[:first], strict=True):
        assert b == pytest.approx(a, rel=0.05 if kl else 1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_kept_and_merged_into_plain_weights(rows, micro_base, tmp_path, dtype):
    """Both ways to the same model: the adapter over the base, and the merged weights in an engine."""
    from peft import PeftModel

    profile = PROFILE.model_copy(update={"model": PROFILE.model.model_copy(update={"dtype": dtype})})
    seen = []
    watchers = Watchers(None, lambda step, folder, loss: seen.append(load_file(folder / "model.safetensors")), rows[:8])
    fine_tune(micro_base, rows, profile, settings(lora_rank=4, checks=1), tmp_path / "out", 0, watchers)
    merged, tokenizer = load_model(tmp_path / "out", dtype)
    assert merged.dtype == getattr(torch, dtype) and not (tmp_path / "out/adapter_config.json").exists()
    adapted = PeftModel.from_pretrained(load_model(micro_base, dtype)[0], tmp_path / "out-adapter").eval()
    ids = torch.tensor([rows[0]["input_ids"]])
    with torch.no_grad():
        one, two = merged(ids).logits.float(), adapted(ids).logits.float()
    assert (one - two).abs().mean() < (1e-5 if dtype == "float32" else 0.03)
    assert all(torch.equal(v, load_file(tmp_path / "out/model.safetensors")[n]) for n, v in seen[-1].items())
    with open_engine(tmp_path / "out", profile, temperature=0.0) as engine:
        assert all(isinstance(said, str) for said in answer_items(engine, load_items(3)))


class Poison:
    """Makes a weight NaN after a step."""

    def __init__(self, step):
        from transformers import TrainerCallback

        class Callback(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **kwargs):
                if state.global_step == step:
                    with torch.no_grad():
                        next(model.parameters())[0, 0] = math.nan
        self.callback = Callback()


@pytest.mark.parametrize("step", [3, 4])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(rows, micro_base, tmp_path, monkeypatch, step):
    made = sft._trainer

    def poisoned(*arguments):
        trainer = made(*arguments)
        trainer.add_callback(Poison(step).callback)
        return trainer
    monkeypatch.setattr(sft, "_trainer", poisoned)
    kept = step - 1
    with pytest.raises(KitError, match=rf"loss is nan at step {step + 1} of 6; lower .*checkpoint-{kept};"):
        fine_tune(micro_base, rows, PROFILE, settings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    left = load_file(tmp_path / f"out-trainer/checkpoint-{kept}/model.safetensors")
    assert all(v.isfinite().all() for v in left.values())


def test_a_learning_rate_that_is_far_too_high_is_told(rows, micro_base, tmp_path):
    with pytest.raises(KitError, match="SFT stopped: .* is (nan|inf) at step . of 6; lower sft.learning_rate"):
        fine_tune(micro_base, rows, PROFILE, settings(learning_rate=1e30), tmp_path / "out")


CHILD = """
import sys, time
from tests.test_sft import *
from agentcpm_kit.profile import set_seed
set_seed(0, 1)
base, out, pause = repo_root() / "data/models/micro-base", Path(sys.argv[1]), float(sys.argv[2])
slow = Watchers(lambda step, steps, log: print(step, flush=True) or time.sleep(pause))
print("final", fine_tune(base, make_rows(load_model(base)[1], 96), PROFILE, settings(), out, 0, slow)["final_loss"])
"""


def start(out, pause):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(out), str(pause)], stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.DEVNULL, cwd=repo_root(), env=os.environ | {"PYTHONPATH": str(repo_root())})


def final_loss(process):
    lines = process.communicate(timeout=300)[0].splitlines()
    assert process.returncode == 0
    return float(lines[-1].removeprefix("final ")), [int(line) for line in lines if line.isdigit()]


def test_killed_half_way_and_resumed_it_ends_where_an_unbroken_run_does(tmp_path):
    """kill -9 at step 6 of 12, on one thread."""
    whole, steps = final_loss(start(tmp_path / "whole", 0))
    assert steps == list(range(1, 13))
    broken = start(tmp_path / "broken", 0.3)
    for line in broken.stdout:
        if line.strip() == "6":
            broken.send_signal(signal.SIGKILL)
            break
    broken.wait()
    resumed, steps = final_loss(start(tmp_path / "broken", 0))
    assert steps == list(range(6, 13)), "a tenth of the work is lost at most"
    assert resumed == pytest.approx(whole, rel=0.01)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_a_checkpoint_that_a_kill_tore_is_passed_over(rows, micro_base, tmp_path):
    whole = fine_tune(micro_base, rows, PROFILE, settings(), tmp_path / "out")
    work = tmp_path / "out-trainer"
    assert sorted(p.name for p in work.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]
    state = work / "checkpoint-6/trainer_state.json"
    state.write_text(state.read_text()[:100])
    (work / "checkpoint-7").mkdir()
    assert fine_tune(micro_base, rows, PROFILE, settings(), tmp_path / "out") == whole
    assert not (work / "checkpoint-7").exists()


def test_work_of_other_settings_or_rows_is_not_taken_up(rows, micro_base, tmp_path):
    fine_tune(micro_base, rows, PROFILE, settings(), tmp_path / "out")
    for kind, changed in ((settings(learning_rate=1e-4), rows), (settings(), rows[:40])):
        steps = []
        fine_tune(micro_base, changed, PROFILE, kind, tmp_path / "out", 0, Watchers(lambda step, n, log, s=steps: s.append(step)))
        assert steps[0] == 1


def test_replay_teaches_what_the_base_says(micro_base, tokenizer):
    prompts = [item.prompt for item in load_items(6)]
    for row, item in zip(replay_rows(micro_base, prompts, PROFILE, 16), load_items(6), strict=True):
        learned = [label for label in row["labels"] if label != IGNORED]
        assert tokenizer.decode(learned) == f"{item.answer}<|im_end|>"  # the base gets all of these right
        assert row["input_ids"][-len(learned):] == learned


def test_replay_takes_the_place_of_records():
    mixed = with_replay([{"row": i} for i in range(10)], [{"replay": 0}, {"replay": 1}])
    assert len(mixed) == 10 and [i for i, row in enumerate(mixed) if "replay" in row] == [0, 5]


def test_the_distance_is_about_the_next_token():
    """Width 3: the last is learned, so only what position 0 says about position 1 counts."""
    p, q = torch.tensor([[[0.0, 0.0], [9.0, 0.0], [9.0, 9.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 9.0], [0.0, 9.0]]])
    labels, mask = torch.tensor([[IGNORED, IGNORED, 1]]), torch.ones(1, 3)
    by_hand = sum(0.5 * (math.log(0.5) - math.log(x)) for x in (math.e / (1 + math.e), 1 / (1 + math.e)))
    assert distance(p, q, labels, mask).item() == pytest.approx(by_hand, rel=1e-5)


def test_the_anchor_holds_the_model_near_its_base(rows, micro_base, tmp_path):
    """More weight, less distance; the loss it adds is that of the tokens that are not learned."""
    base = load_model(micro_base)[0]
    ids, labels = torch.tensor([rows[0]["input_ids"]]), torch.tensor([rows[0]["labels"]])
    distances = []
    for kl in (0.0, 50.0):
        fine_tune(micro_base, rows, PROFILE, settings(kl=kl, epochs=3), tmp_path / str(kl))
        tuned = load_model(tmp_path / str(kl))[0]
        with torch.no_grad():
            distances.append(distance(base(ids).logits, tuned(ids).logits, labels, torch.ones_like(ids)).item())
    assert distances[1] < 0.7 * distances[0], distances


def test_missing_unsloth_is_told(monkeypatch, micro_base, tmp_path):
    monkeypatch.setitem(sys.modules, "unsloth", None)
    with pytest.raises(KitError, match="make setup"):
        fine_tune(Path(micro_base), [], PROFILE, settings(backend="unsloth"), tmp_path / "out")
