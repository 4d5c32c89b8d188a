"""What is seen of an RL run as it goes: one row a step, validation now and then, and a stop where the policy has collapsed."""

import time
from collections import Counter
from dataclasses import dataclass, field

from ..agent.engines import Engine, TransformersEngine
from ..errors import KitError
from ..memory import trim
from ..sections import RL
from .loading import not_finite

LOGGED = ("loss", "grad_norm")
MOST_ENTROPY = 4.0  # times the first step's: a policy may forget how to speak, and noise go on rewarding it; our assumption


class LostWeights(KitError):
    """Loss or gradient is no number: such weights are not worth keeping."""


@dataclass
class Collapse:
    """Counts the steps in a row that show a sign of collapse: no reward, nothing to learn from, too little or much entropy."""

    settings: RL
    first_entropy: float | None = None
    seen: Counter = field(default_factory=Counter)

    def reason(self, log: dict) -> str | None:
        """Why a run should stop after this step, in words; None where it may go on."""
        for sign, shown in self._signs(log).items():
            self.seen[sign] = self.seen[sign] + 1 if shown else 0
        return next((f"{sign} in {n} steps" for sign, n in self.seen.items() if n >= self.settings.patience), None)

    def _signs(self, log: dict) -> dict[str, bool]:
        if self.first_entropy is None:
            self.first_entropy = log["entropy"]
        least = self.settings.least_entropy
        return {"no rollout was rewarded": not log["rewarded"],
                "no rollout was left to learn from": not log["learned"],
                f"entropy was below {least:g} nats per token": log["entropy"] < least,
                f"entropy was above {MOST_ENTROPY:g} times the first step's": log["entropy"] > MOST_ENTROPY * self.first_entropy}


def refuse_lost_weights(log: dict, step: int) -> None:
    if name := not_finite(log):
        told = {"loss": "loss", "grad_norm": "norm of the gradient"}[name]
        raise LostWeights(f"RL stopped: the {told} is {log[name]} at step {step}; lower rl.learning_rate")


def watch(trainer, settings: RL, evaluate, on_step):
    """The callback that logs each step, measures, and stops a run that has collapsed.

    It raises `LostWeights` where loss or gradient is no number.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.collapse = Collapse(settings)
            for log in state.log_history:  # of a run that is resumed: it counts on
                if "loss" in log:
                    self.collapse.reason(log)

        def on_step_begin(self, args, state, control, **kwargs):
            trim()
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
            refuse_lost_weights(logs, state.global_step)
            row = {k: logs[k] for k in LOGGED if k in logs} | step_row(trainer)
            if stopped := self.collapse.reason(logs):
                row["stopped"] = stopped
                stop(control, trainer.rollouts.arm.name, state.global_step, stopped)
            if evaluate and (stopped or state.global_step == state.max_steps or state.global_step % settings.eval_every == 0):
                row["validation"] = evaluate(policy_engine(trainer, settings.temperature))
            if on_step:
                on_step(state.global_step, row)

    return Watch()


def stop(control, name: str, step: int, reason: str) -> None:
    control.should_training_stop = True
    control.should_save = False  # else a run that is killed here would go on from a checkpoint behind its own stop
    print(f"RL of {name} stopped at step {step}: {reason}; lower rl.learning_rate, or look at what is rewarded")


def policy_engine(trainer, temperature: float) -> Engine:
    """An engine over the newest weights: that of the rollouts, unless it is playing the next step's."""
    rollouts = trainer.rollouts
    if rollouts.thread is None:
        rollouts.renew(trainer.model, trainer.state.global_step)
        return rollouts.engine
    return TransformersEngine(trainer.model, rollouts.engine.tokenizer, temperature, rollouts.engine.batch_size)


def step_row(trainer) -> dict:
    """What the trainer and its rollouts know of the step that just ended; sums are taken anew for the next one."""
    row = trainer.summary | {"staleness": trainer.age - 1} | {k: round(v, 3) for k, v in trainer.seconds.items()}
    row |= {name: trainer.sums[name] / max(1.0, trainer.sums["tokens"]) for name in ("policy_gap", "clip_share")}
    if trainer.drift is not None:
        row["kl_to_start"] = trainer.drift
    trainer.begin_sums()
    return row
