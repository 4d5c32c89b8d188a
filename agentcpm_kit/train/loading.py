"""A model ready to be trained: through Unsloth or plain transformers, with or without a LoRA adapter, on a GPU or a CPU.

And what its trainers share: the order of batches, the loss where there is no triton, the checkpoint to go on from.
"""

import copy
import json
import math
import os
import shutil
from pathlib import Path

from ..artefacts import write_checksums
from ..errors import KitError
from ..profile import Profile
from ..sections import SFT, Adapter

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_for_training(model: Path, profile: Profile, settings: SFT, seed: int):
    """Model and tokenizer, all weights trainable, or those of a fresh adapter (`settings.lora_rank`).

    Raises:
        KitError: Unsloth is asked for but cannot be imported.
    """
    if settings.backend == "unsloth":
        return _through_unsloth(model, profile, settings, seed)
    from ..agent.engines import load_model

    loaded, tokenizer = load_model(model, profile.model.dtype)
    return with_adapter(loaded, settings, seed), tokenizer


def with_adapter(model, settings: Adapter, seed: int):
    """The model with a fresh adapter of `settings.lora_rank`, which alone is trainable, in float32; 0: as it is."""
    if not settings.lora_rank:
        return model
    import torch
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():  # half of its weights are drawn at random
        torch.manual_seed(seed)
        return get_peft_model(model, LoraConfig(**_lora(settings, model), task_type="CAUSAL_LM"))


def without_adapter(model):
    """A copy in plain weights of a model with an adapter; any other model itself."""
    return copy.deepcopy(model).merge_and_unload() if hasattr(model, "merge_and_unload") else model


def save_plain(model, tokenizer, out: Path) -> None:
    """Plain weights (an adapter is kept beside them and merged into them), tokenizer, checksums."""
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(f"{out}-adapter", safe_serialization=True)
        model = model.merge_and_unload()
    model.config.use_cache = True  # training turned it off
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    write_checksums(out)


def _through_unsloth(model: Path, profile: Profile, settings: SFT, seed: int):
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # no network by default
    try:
        from unsloth import FastLanguageModel
    except ImportError as error:
        raise KitError(f"profile {profile.name} trains with Unsloth, which cannot be imported ({error}); run "
                       "`make setup`, or set `backend: trl` under `sft` in the profile") from error
    import torch

    checkpointing = "unsloth" if saves_memory(profile) else False
    loaded, tokenizer = FastLanguageModel.from_pretrained(
        str(model), max_seq_length=profile.limits.max_context_tokens, dtype=getattr(torch, profile.model.dtype),
        load_in_4bit=False, full_finetuning=settings.lora_rank == 0, use_gradient_checkpointing=checkpointing)
    if settings.lora_rank:
        loaded = FastLanguageModel.get_peft_model(loaded, **_lora(settings, loaded), random_state=seed,
                                                  use_gradient_checkpointing=checkpointing)
    return loaded, tokenizer


def saves_memory(profile: Profile) -> bool:
    """Gradient checkpointing computes activations twice to store fewer: worth it on a GPU, a third slower on a CPU."""
    return profile.machine.gpu_memory_gb > 0


def rows_at_once(rows: int, profile: Profile) -> int:
    """How many of an update's rows a pass takes: the most that divide them and that the profile allows."""
    return next(n for n in range(min(rows, profile.model.rows_at_once), 0, -1) if rows % n == 0)


def without_triton(trainer: type) -> type:
    """A subclass of TRL's `SFTTrainer` with transformers' own loss: TRL 1.15's fused head needs triton, which no CPU has."""
    from transformers import Trainer

    class PlainLoss(trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)

    return PlainLoss


def in_length_groups(trainer: type) -> type:
    """A subclass whose updates take rows of like length, in an order that seed and epoch alone decide.

    transformers' own `group_by_length` draws from the global random stream: measuring in between, or resuming in the midst of
    an epoch, would change the order, and skip some rows and repeat others.
    """
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class Grouped(LengthGroupedSampler):
        def set_epoch(self, epoch: int) -> None:
            self.generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)

    class InLengthGroups(trainer):
        def _get_train_sampler(self, train_dataset=None):
            lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
            sampler = Grouped(self.args.train_batch_size * self.args.gradient_accumulation_steps, lengths=lengths)
            sampler.seed = self.args.seed
            sampler.set_epoch(0)
            return sampler

    return InLengthGroups


def last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint; newer ones that a kill tore while they were written are removed.

    transformers' own look takes the newest folder as it is. Its trainer writes ``trainer_state.json`` last.
    """
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]), reverse=True)
    for folder in found:
        try:
            json.loads((folder / "trainer_state.json").read_text())
            return str(folder)
        except (OSError, ValueError):
            shutil.rmtree(folder)
    return None


def not_finite(logs: dict) -> str | None:
    """Which of loss and norm of the gradient is no number in a step's log: weights learned from it are not worth keeping."""
    return next((name for name in ("loss", "grad_norm") if not math.isfinite(logs.get(name, 0.0))), None)


def _lora(settings: Adapter, model) -> dict:
    count = model.config.num_hidden_layers
    chosen = list(range(max(0, count - settings.lora_layers), count)) if settings.lora_layers else None
    return {"r": settings.lora_rank, "lora_alpha": settings.lora_rank, "lora_dropout": 0.0, "target_modules": LINEAR_LAYERS,
            "layers_to_transform": chosen}
