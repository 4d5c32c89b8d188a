"""What is seen of an RL run as it goes: one row a step, validation now and then, and a stop where the policy has collapsed."""

import math
import time
from dataclasses import dataclass

from ..agent.engines import TransformersEngine
from ..errors import KitError
from ..profile import RL, Profile

LOGGED = ("loss", "entropy", "policy_gap", "clip_share", "grad_norm")


@dataclass
class Collapse:
    """Counts the steps in a row without any reward, and those without entropy."""

    settings: RL
    unrewarded: int = 0
    certain: int = 0

    def reason(self, row: dict) -> str | None:
        """Why a run should stop after this step, in words; None where it may go on."""
        self.unrewarded = 0 if row["reward"] > 0 else self.unrewarded + 1
        self.certain = 0 if row["entropy"] >= self.settings.least_entropy else self.certain + 1
        if self.unrewarded >= self.settings.patience:
            return f"no rollout was rewarded in {self.unrewarded} steps"
        if self.certain >= self.settings.patience:
            return f"entropy was below {self.settings.least_entropy:g} nats per token in {self.certain} steps"
        return None


def watch(trainer, profile: Profile, evaluate, on_step):
    """The callback that logs each step, measures, and stops a run that has collapsed.

    It raises `KitError` where the loss is no number: such weights are not worth keeping.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self):
            self.collapse, self.stopped = Collapse(profile.rl), None

        def on_step_begin(self, args, state, control, **kwargs):
            self.began = time.perf_counter()

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            self.learned = time.perf_counter()

        def on_optimizer_step(self, args, state, control, **kwargs):
            trainer.seconds["optimiser_s"] = time.perf_counter() - self.learned

        def on_step_end(self, args, state, control, **kwargs):
            trainer.seconds["step_s"] = time.perf_counter() - self.began

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" not in (logs or {}):
                return
            if not math.isfinite(logs["loss"]):
                raise KitError(f"RL stopped: the loss is {logs['loss']} at step {state.global_step}; lower rl.learning_rate")
            row = {k: logs[k] for k in LOGGED if k in logs} | step_row(trainer)
            if stopped := self.collapse.reason(row):
                control.should_training_stop = True
                row["stopped"] = stopped
                print(f"RL of {trainer.rollouts.arm.name} stopped at step {state.global_step}: {stopped}; lower "
                      "rl.learning_rate, or look at what is rewarded")
            last = stopped or state.global_step == state.max_steps
            if evaluate and (last or state.global_step % profile.rl.eval_every == 0):
                engine = trainer.rollouts.engine
                policy = TransformersEngine(trainer.model, engine.tokenizer, profile.rl.temperature, engine.batch_size)
                row["validation"] = evaluate(policy)
            if on_step:
                on_step(state.global_step, row)

    return Watch()


def step_row(trainer) -> dict:
    """What the trainer and its rollouts know of the step that just ended; seconds are taken anew for the next one."""
    row = trainer.update.summary() | {"staleness": trainer.age - 1} | {k: round(v, 3) for k, v in trainer.seconds.items()}
    if trainer.drift is not None:
        row["kl_to_start"] = trainer.drift
    trainer.seconds = {"train_s": 0.0}
    return row
