"""Supervised fine-tuning on trajectories: Unsloth's `FastLanguageModel` with TRL's `SFTTrainer`.

The same call trains a 1M-parameter model on a CPU (Unsloth >= 2026.10.9) and 4B on one GPU. `backend: trl` is the
same without Unsloth, chosen in the profile, never fallen back to in silence. The loss covers the assistant's
sampled tokens alone. The paper's scripts train all weights (`lora_rank: 0`), lr 2e-5, 3 epochs.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

from ..errors import KitError
from ..profile import SFT, Profile
from .data import training_rows

OnStep = Callable[[int, int, dict], None]


def train_sft(model: Path, trajectories: list, profile: Profile, out: Path, seed: int = 0, epochs: int | None = None,
              on_step: OnStep | None = None, learning_rate: float | None = None) -> dict:
    """`fine_tune` on what the agent itself wrote in trajectories."""
    return fine_tune(model, training_rows(trajectories), profile, out, seed, epochs, on_step, learning_rate)


def fine_tune(model: Path, rows: list[dict], profile: Profile, out: Path, seed: int = 0, epochs: int | None = None,
              on_step: OnStep | None = None, learning_rate: float | None = None) -> dict:
    """Fine-tune `model` on rows of `input_ids` and `labels`, and save 16- or 32-bit weights, tokenizer and checksums in `out`.

    `epochs` and `learning_rate` are those of the profile's SFT where not told. Work in progress is kept in ``<out>-trainer``
    after each epoch, and taken up again if it is there.

    Returns:
        ``steps``, ``tokens`` (learned, per epoch) and ``final_loss``.

    Raises:
        KitError: Unsloth is asked for but not installed, or the loss became NaN.
    """
    from transformers import PrinterCallback

    told = {"epochs": epochs, "learning_rate": learning_rate}
    config = profile.sft.model_copy(update={name: value for name, value in told.items() if value})
    loaded, tokenizer = _load(model, profile, seed)
    trainer = _trainer(loaded, tokenizer, rows, profile, config, Path(f"{out}-trainer"), seed)
    trainer.remove_callback(PrinterCallback)  # each step is told to `on_step`
    trainer.add_callback(_watch(on_step))
    result = trainer.train(resume_from_checkpoint=_last_checkpoint(Path(f"{out}-trainer")))
    _save(trainer.model, tokenizer, out)
    learned = sum(label >= 0 for row in rows for label in row["labels"])
    return {"steps": result.global_step, "tokens": learned, "final_loss": _final_loss(trainer.state.log_history)}


def _load(model: Path, profile: Profile, seed: int):
    if profile.sft.backend == "unsloth":
        return _load_unsloth(model, profile, seed)
    from ..agent.engines import load_model

    loaded, tokenizer = load_model(model, profile.model.dtype)
    if profile.sft.lora_rank:
        from peft import LoraConfig, get_peft_model

        loaded = get_peft_model(loaded, LoraConfig(**_lora(profile), task_type="CAUSAL_LM"))
    return loaded, tokenizer


def _load_unsloth(model: Path, profile: Profile, seed: int):
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # no network by default
    try:
        from unsloth import FastLanguageModel
    except ImportError as error:
        raise KitError(f"profile {profile.name} trains with Unsloth, which cannot be imported ({error}); run "
                       "`make setup`, or set `backend: trl` under `sft` in the profile") from error
    import torch

    full = profile.sft.lora_rank == 0
    checkpointing = "unsloth" if _saves_memory(profile) else False
    loaded, tokenizer = FastLanguageModel.from_pretrained(
        str(model), max_seq_length=profile.limits.max_context_tokens, dtype=getattr(torch, profile.model.dtype),
        load_in_4bit=False, full_finetuning=full, use_gradient_checkpointing=checkpointing)
    if not full:
        loaded = FastLanguageModel.get_peft_model(loaded, **_lora(profile), random_state=seed,
                                                  use_gradient_checkpointing=checkpointing)
    return loaded, tokenizer


def _saves_memory(profile: Profile) -> bool:
    """Gradient checkpointing computes activations twice to store fewer: worth it on a GPU, a third slower on a CPU."""
    return profile.machine.gpu_memory_gb > 0


def _lora(profile: Profile) -> dict:
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    rank = profile.sft.lora_rank
    return {"r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "target_modules": names}


def _trainer(model, tokenizer, rows: list[dict], profile: Profile, config: SFT, work: Path, seed: int):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=str(work), num_train_epochs=config.epochs, per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate, lr_scheduler_type="cosine", max_grad_norm=1.0, weight_decay=0.0,
        warmup_steps=math.ceil(config.warmup_ratio * config.epochs * len(rows) / config.batch_size),
        max_length=None, packing=False, train_sampling_strategy="group_by_length", logging_steps=1, save_strategy="epoch",
        save_total_limit=1, seed=seed, report_to=[], disable_tqdm=True, dataset_num_proc=1,
        gradient_checkpointing=_saves_memory(profile),
        bf16=profile.model.dtype == "bfloat16", use_cpu=not _has_gpu(), optim="adamw_torch")
    return SFTTrainer(model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(rows), args=args)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _watch(on_step: OnStep | None):
    """Callback: hands the log on, and stops a run whose loss is no longer a number."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            loss = (logs or {}).get("loss")
            if loss is not None and not math.isfinite(loss):
                raise KitError(f"SFT stopped: the loss is {loss} at step {state.global_step}; lower sft.learning_rate "
                               "(the last good checkpoint is kept)")
            if loss is not None and on_step:
                on_step(state.global_step, state.max_steps, {"loss": loss, "learning_rate": logs["learning_rate"]})

    return Watch()


def _last_checkpoint(work: Path) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(str(work)) if work.is_dir() else None


def _final_loss(history: list[dict], last: int = 5) -> float:
    losses = [row["loss"] for row in history if "loss" in row][-last:]
    return sum(losses) / len(losses)


def _save(model, tokenizer, out: Path) -> None:
    """Plain weights (an adapter is merged into them), tokenizer, checksums."""
    from ..artefacts import write_checksums

    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    write_checksums(out)
