"""Supervised fine-tuning on trajectories: Unsloth's `FastLanguageModel` with TRL's `SFTTrainer`.

The same call trains a 1M-parameter model on a CPU (Unsloth >= 2026.10.9) and 4B on one GPU. `backend: trl` is the
same without Unsloth, chosen in the profile, never fallen back to in silence. The loss covers the assistant's
sampled tokens alone. The paper's scripts train all weights (`lora_rank: 0`), lr 2e-5, 3 epochs.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ..errors import KitError
from ..files import write_atomic
from ..memory import trim
from ..profile import Profile
from ..sections import SFT
from .data import IGNORED
from .loading import (
    in_length_groups,
    last_checkpoint,
    load_for_training,
    not_finite,
    rows_at_once,
    save_plain,
    saves_memory,
    without_adapter,
    without_triton,
)
from .retention import anchored

TRIMMED = 10  # steps between two looks for free memory
SAVES = 10  # checkpoints of a run: a killed one loses a tenth of its work at most

OnStep = Callable[[int, int, dict], None]  # step, steps, what was logged
OnCheck = Callable[[int, Path, float], None]  # step, plain weights, validation loss


@dataclass
class Watchers:
    """Who is told what during training.

    `validation` rows are never trained on. As often as `sft.checks` says, their loss is measured and `on_check` is given
    the model as a plain checkpoint, which lasts until it returns: to let the agent play, say.
    """

    on_step: OnStep | None = None
    on_check: OnCheck | None = None
    validation: list[dict] = field(default_factory=list)


def fine_tune(model: Path, rows: list[dict], profile: Profile, settings: SFT, out: Path, seed: int = 0,
              watchers: Watchers | None = None) -> dict:
    """Fine-tune `model` on rows of `input_ids` and `labels`, and save plain weights, tokenizer and checksums in `out`.

    The weights have the profile's type; an adapter is merged into them, and kept beside them in ``<out>-adapter``. Work in
    progress is in ``<out>-trainer``, and taken up again if it is there and of the same rows, settings, seed and model.

    Returns:
        ``steps``, ``tokens`` (learned, per epoch) and ``final_loss`` (nats per token, mean of the last five steps).

    Raises:
        KitError: Unsloth is asked for but not installed; a batch teaches other tokens than its rows; the loss or the gradient
            is no longer a number (the last good checkpoint is kept).
    """
    watchers, work = watchers or Watchers(), Path(f"{out}-trainer")
    _clear_other_work(work, model, rows, settings, seed)
    loaded, tokenizer = load_for_training(model, profile, settings, seed)
    trainer = _trainer(loaded, tokenizer, rows, profile, settings, work, seed, watchers, model)
    _assert_labels_survive(trainer, rows)
    trainer.add_callback(_watch(watchers, tokenizer, work))
    result = trainer.train(resume_from_checkpoint=last_checkpoint(work))
    save_plain(trainer.model, tokenizer, out)
    learned = sum(label >= 0 for row in rows for label in row["labels"])
    return {"steps": result.global_step, "tokens": learned, "final_loss": _final_loss(trainer.state.log_history)}


def _trainer(model, tokenizer, rows: list[dict], profile: Profile, settings: SFT, work: Path, seed: int, watchers: Watchers,
             base: Path):
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTTrainer

    steps = settings.epochs * math.ceil(len(rows) / settings.batch_size)
    checks = settings.checks if watchers.validation else 0
    kind = without_triton(SFTTrainer) if settings.backend == "trl" and not find_spec("triton") else SFTTrainer
    kind = in_length_groups(anchored(kind, base, settings.kl, profile.model.dtype) if settings.kl else kind)
    trainer = kind(model=model, processing_class=tokenizer, args=_arguments(profile, settings, work, seed, steps, checks),
                   train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(watchers.validation) if checks else None)
    trainer.remove_callback(PrinterCallback)  # each step is told to `on_step`
    return trainer


def _arguments(profile: Profile, settings: SFT, work: Path, seed: int, steps: int, checks: int):
    import torch
    from trl import SFTConfig

    at_once = rows_at_once(settings.batch_size, profile)
    return SFTConfig(
        output_dir=str(work), seed=seed, num_train_epochs=settings.epochs,
        per_device_train_batch_size=at_once, gradient_accumulation_steps=settings.batch_size // at_once,
        per_device_eval_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate, lr_scheduler_type="cosine", warmup_steps=math.ceil(settings.warmup_ratio * steps),
        max_grad_norm=1.0, weight_decay=0.0, optim="adamw_torch", adam_epsilon=settings.adam_epsilon,
        max_length=None, packing=False, padding_free=False, dataset_num_proc=1,
        logging_steps=1, logging_nan_inf_filter=False,  # its default replaces a NaN by the mean of earlier losses
        save_strategy="steps", save_steps=max(1, steps // SAVES), save_total_limit=2,
        eval_strategy="steps" if checks else "no", eval_steps=math.ceil(steps / checks) if checks else None,  # and the last step
        gradient_checkpointing=saves_memory(profile), bf16=profile.model.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(), report_to=[], disable_tqdm=True)


def _assert_labels_survive(trainer, rows: list[dict]) -> None:
    """Two libraries stand between the rows and the loss: compare, token by token, what they would teach.

    All rows as the trainer holds them, and a collated batch of the longest and the shortest.

    Raises:
        KitError: a row has other tokens, labels or padding than it was given with.
    """
    held = trainer.train_dataset
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    few = [by_length[-1], by_length[0]]
    batch = trainer.data_collator([held[i] for i in few])
    collated = [{key: batch[key][k].tolist() for key in ("input_ids", "labels", "attention_mask")} for k in range(len(few))]
    wrong = [i for i, (row, own) in enumerate(zip(rows, held, strict=True)) if any(row[key] != own[key] for key in row)]
    wrong += [i for i, row in zip(few, collated, strict=True) if row != _padded(rows[i], len(row["input_ids"]), row)]
    if wrong:
        raise KitError(f"row {wrong[0]} would teach other tokens than the trajectory's own; this version of TRL or Unsloth "
                       "prepares data in another way")


def _padded(row: dict, width: int, filled: dict) -> dict:
    """What a collated row has to be; which token fills the rest is the tokenizer's choice."""
    size = len(row["input_ids"])
    return {"input_ids": row["input_ids"] + filled["input_ids"][size:], "labels": row["labels"] + [IGNORED] * (width - size),
            "attention_mask": [1] * size + [0] * (width - size)}


def _watch(watchers: Watchers, tokenizer, work: Path):
    """Callback: hands logs and checks on, and stops a run that is no longer a number before it is saved."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step % TRIMMED == 0:
                trim()

        def on_log(self, args, state, control, logs=None, **kwargs):
            logs = logs or {}
            if name := not_finite(logs):
                raise KitError(f"SFT stopped: {name} is {logs[name]} at step {state.global_step} of {state.max_steps}; lower "
                               f"sft.learning_rate. {_last_good(work, state.global_step, name)}")
            if "loss" in logs and watchers.on_step:
                shown = {name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}
                watchers.on_step(state.global_step, state.max_steps, shown)

        def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
            if watchers.on_check:
                save_plain(without_adapter(model), tokenizer, work / "checked")
                watchers.on_check(state.global_step, work / "checked", metrics["eval_loss"])

    return Watch()


def _last_good(work: Path, step: int, what: str) -> str:
    """A loss that is no number was made by the weights of the step before; this step's are not saved yet."""
    if what == "loss":
        shutil.rmtree(work / f"checkpoint-{step - 1}", ignore_errors=True)
    last = last_checkpoint(work)
    return (f"The last good checkpoint is {last}; copy it if you want it, since changed settings start anew" if last
            else "No good checkpoint was written yet")


def _clear_other_work(work: Path, model: Path, rows: list[dict], settings: SFT, seed: int) -> None:
    """A checkpoint of other rows, settings, seed or base is not this run's: it is removed, not taken up."""
    made_of = [model.name, rows, settings.model_dump(exclude={"checks"}), seed]
    mark, digest = work / "made-of", hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    if not mark.is_file() or mark.read_text() != digest:
        shutil.rmtree(work, ignore_errors=True)
        write_atomic(mark, digest)


def _final_loss(history: list[dict], last: int = 5) -> float:
    losses = [row["loss"] for row in history if "loss" in row][-last:]
    return sum(losses) / len(losses)
