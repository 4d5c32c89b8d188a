"""Reinforcement learning from the kit's own loop, through TRL's `GRPOTrainer`.

TRL drives (optimiser, schedule, checkpoints, resume); the kit supplies rollouts (`rollouts`), rewards, the denoised
leave-one-out advantages and the loss (`rl_trainer`). Departures from TRL's GRPO are the reference's: no KL, no division by
the deviation, advantages per step, rollouts of zero advantage left out of the update.
"""

from collections.abc import Callable
from pathlib import Path

from ..agent.engines import Engine, TransformersEngine, load_model, open_engine
from ..errors import KitError
from ..memory import release
from ..profile import Profile, refuse_resets
from ..world import Task
from .loading import last_checkpoint, rows_at_once, save_plain, with_adapter
from .rollouts import Arm, tasks_needed

OnStep = Callable[[int, dict], None]
Evaluate = Callable[[Engine], float]


def train_rl(model: Path, tasks: list[Task], profile: Profile, out: Path, arm: Arm, seed: int = 0,
             evaluate: Evaluate | None = None, on_step: OnStep | None = None) -> Path:
    """Train `model` on `tasks`, in their order, for the profile's number of steps, and save it in `out`.

    Checkpoints (weights, optimiser, RNG, position in the data, rollouts under way) go to ``<out>-trainer`` and are taken up
    again. `evaluate` is called with the policy, at the temperature of training, every `eval_every` steps; its value is logged
    as ``validation``. A run whose policy has collapsed stops there and says so, on the terminal and as ``stopped`` of its
    last row; the policy is saved as it is.

    Raises:
        KitError: the loss is no number, too few tasks, or the profile's engine or context policy is none for RL.
    """
    from transformers import PrinterCallback

    from .rl_trainer import trainer_class
    from .rl_watch import watch

    _refuse(profile, tasks)
    loaded, tokenizer = load_model(model, profile.model.dtype)
    loaded = with_adapter(loaded, profile.rl, seed)
    work = Path(f"{out}-trainer")
    with _rollout_engine(model, loaded, tokenizer, profile) as engine:
        trainer = trainer_class()(loaded, tokenizer, tasks, profile, _config(profile, work, seed), arm, seed, engine, model)
        trainer.remove_callback(PrinterCallback)  # each step is logged by `on_step`
        trainer.add_callback(watch(trainer, profile.rl, evaluate, on_step))
        trainer.train(resume_from_checkpoint=trainer.take_up(last_checkpoint(work)))
    save_plain(trainer.model, tokenizer, out)
    del trainer, loaded
    release()  # before the next arm loads its own
    return out


def _refuse(profile: Profile, tasks: list[Task]) -> None:
    refuse_resets(profile)
    needed = tasks_needed(profile)
    if profile.model.engine == "openai":
        raise KitError("RL changes the model's weights, which servers do not take; set `engine: vllm` under `model`")
    if len(tasks) < needed:
        raise KitError(f"{profile.rl.steps} steps of {profile.rl.questions_per_step} questions need {needed} tasks, not "
                       f"{len(tasks)}; `rl_tasks` makes them")


def _rollout_engine(path: Path, model, tokenizer, profile: Profile) -> Engine:
    """The engine of the rollouts: over the very model that is trained, over a copy of it where rollouts go on beside the
    training, or vLLM. The last two get new weights before each step, an adapter's merged into them."""
    if profile.model.engine == "vllm":
        return open_engine(path, profile, profile.rl.temperature)
    if profile.rl.asynchronous:
        model, _ = load_model(path, profile.model.dtype)
    return TransformersEngine(model, tokenizer, profile.rl.temperature, profile.evaluation.batch_size)


def _config(profile: Profile, work: Path, seed: int):
    import torch
    from trl import GRPOConfig

    rl = profile.rl
    rollouts = rl.questions_per_step * rl.group_size
    at_once = rows_at_once(rollouts, profile)
    return GRPOConfig(
        output_dir=str(work), max_steps=rl.steps, learning_rate=rl.learning_rate, lr_scheduler_type="constant_with_warmup",
        warmup_steps=rl.warmup_steps, adam_epsilon=rl.adam_epsilon, adam_beta1=rl.adam_beta1, adam_beta2=rl.adam_beta2,
        per_device_train_batch_size=at_once, gradient_accumulation_steps=rollouts // at_once,
        num_generations=rl.group_size, max_completion_length=profile.limits.max_context_tokens, beta=0.0,
        scale_rewards="none", max_grad_norm=1.0, weight_decay=0.0, logging_steps=1, save_steps=rl.save_every, save_total_limit=1,
        logging_nan_inf_filter=False,  # its default replaces a NaN by the mean of earlier losses
        seed=seed, report_to=[], disable_tqdm=True, bf16=profile.model.dtype == "bfloat16", gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(), shuffle_dataset=False, remove_unused_columns=False)
