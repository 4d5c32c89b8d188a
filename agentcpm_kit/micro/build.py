"""The recipe of micro-base: ``python -m agentcpm_kit.micro.build --out data/models/micro-base``.

From weights drawn at random with a head start (`induction`): reading lessons (`reading`) from short to long, and
general skills (`skills`). Loss on the assistant's tokens only. Writes safetensors, tokenizer, checksums and
``train_log.jsonl`` (tokens, seconds, losses, reading accuracy). The paper starts from Qwen3-4B-Thinking-2507; this
model takes its place where only two cores are at hand.
"""

import json
import math
import random
import time
from pathlib import Path

from ..artefacts import write_checksums
from ..evaluate.general import load_items
from .batches import IGNORED, Curriculum, collate, encode
from .induction import add_induction_heads
from .reading import draw_lessons
from .skills import WORDS
from .tokenizer import build_tokenizer

CONFIG = dict(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, head_dim=32,
              intermediate_size=512, tie_word_embeddings=True, max_position_embeddings=2048, rope_theta=10000.0,
              initializer_range=0.02)


def new_model(tokenizer):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    ids = dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=8 * math.ceil(len(tokenizer) / 8), **CONFIG, **ids))
    add_induction_heads(model)
    return model


def learning_rate(step: int, steps: int, peak: float, warmup: int = 50) -> float:
    """Linear warm-up, then cosine to a twentieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def train_step(model, optimiser, groups: list[tuple]) -> tuple[list[float], int]:
    """One update on several groups of equal weight; their losses in nats per token, and the tokens seen."""
    import torch

    losses, seen, device = [], 0, model.device
    for ids, labels in groups:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(ids.to(device), labels=labels.to(device)).loss  # causal, padded on the right: no mask needed
        loss.backward()
        losses.append(loss.detach())
        seen += ids.numel()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return losses, seen


def reading_accuracy(model, tokenizer, level: float, lessons: int = 192) -> float:
    """Share of unseen lessons of a `level` whose every assistant token greedy decoding gets right."""
    import torch

    rng, pairs = random.Random(f"reading accuracy {level}"), []
    while len(pairs) < lessons:
        pairs += [encode(tokenizer, lesson) for lesson in draw_lessons(rng, level)]
    ids, labels = collate(pairs, tokenizer.pad_token_id)
    with torch.no_grad():
        guesses = torch.cat([model(part.to(model.device)).logits.argmax(-1) for part in ids.split(24)]).cpu()
    right = (guesses[:, :-1] == labels[:, 1:]) | (labels[:, 1:] == IGNORED)
    return right.all(1).float().mean().item()


def build(args) -> None:
    """Train micro-base and save it in `args.out`, with a row in ``train_log.jsonl`` every 50 steps."""
    import torch
    from torch.utils.data import DataLoader
    from tqdm import tqdm
    from transformers import set_seed

    set_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(WORDS)
    model = new_model(tokenizer).to(args.device)
    held_out = frozenset(item.prompt for item in load_items())
    curriculum = Curriculum(tokenizer, args.seed, args.steps, args.tokens, args.items, held_out)
    batches = DataLoader(curriculum, batch_size=None, num_workers=args.workers)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.peak, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    started, seen = time.time(), 0
    with open(args.out / "train_log.jsonl", "w") as log:
        for step, groups in enumerate(tqdm(batches), 1):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.peak)
            losses, new = train_step(model, optimiser, groups)
            seen += new
            if step % 50 == 0 or step == args.steps:
                level = curriculum.level(step)
                row = {"step": step, "tokens": seen, "seconds": round(time.time() - started, 1),
                       "losses": [round(x.item(), 4) for x in losses], "level": round(level, 2),
                       "reading_accuracy": round(reading_accuracy(model, tokenizer, level), 3)}
                print(json.dumps(row), file=log, flush=True)
                tqdm.write(json.dumps(row))
                model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    write_checksums(args.out)


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--tokens", type=int, default=12_000, help="tokens of reading per step, about")
    parser.add_argument("--items", type=int, default=192, help="general items per step")
    parser.add_argument("--peak", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare batches")
    args = parser.parse_args()
    print(vars(args))
    build(args)


if __name__ == "__main__":
    main()
