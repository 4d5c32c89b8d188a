"""Engines: what turns token ids into the next turn. Here `transformers`, batched, with the cache kept across turns.

A batch grows to the right: each new piece (prompt, tool result) is left-padded to a common width and the padding
stays masked in the cache for good. So nothing is computed twice, and rows of any length share one forward pass.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from ..errors import KitError


@dataclass
class Sample:
    """One generated turn; `stopped` tells whether it ended by itself (``<|im_end|>`` is then the last id)."""

    ids: list[int]
    logprobs: list[float]
    stopped: bool


def quiet_libraries() -> None:
    """Keep remarks of libraries that are of no use to a reader (missing GPU kernels, loading bars) off the screen."""
    import logging

    for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_model(path: Path | str, dtype: str = "float32"):
    """Model and tokenizer from a local folder (checksums verified where it has them) or a hub id already on disk.

    Raises:
        KitError: missing folder, or a file that differs from its checksum.
    """
    quiet_libraries()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..artefacts import verify_checkpoint

    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise KitError(f"no model in {path}; `agentcpm-kit doctor` tells what makes it")
    if (folder / "SHA256SUMS").is_file():
        verify_checkpoint(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.eval(), tokenizer


class TransformersEngine:
    """Batched sampling from a Hugging Face model.

    Every episode draws from its own random stream, so its tokens do not depend on who shares its batch (up to
    rounding: sums may be ordered differently in batches of another size).
    """

    def __init__(self, model, tokenizer, temperature: float = 1.0, batch_size: int = 128):
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.batch_size = temperature, batch_size

    def begin(self, prompts: list[list[int]], seeds: list[str]) -> "Batch":
        return Batch(self, prompts, [random.Random(seed) for seed in seeds])


class Batch:
    """Rows that generate turn after turn over one growing cache."""

    def __init__(self, engine: TransformersEngine, prompts: list[list[int]], streams: list[random.Random]):
        import torch
        from transformers import DynamicCache

        self.engine, self.streams = engine, streams
        self.cache = DynamicCache(config=engine.model.config)
        self.mask = torch.zeros(len(prompts), 0, dtype=torch.long)
        self.lengths = torch.zeros(len(prompts), dtype=torch.long)
        self.logits = self._feed(prompts)

    def _feed(self, pieces: list[list[int]]):
        """Run new ids through the model, left-padded to a common width; logits of each row's last token."""
        import torch

        width = max(len(piece) for piece in pieces)
        pad = self.engine.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in pieces])
        real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in pieces])
        return self._forward(ids, real)

    def _forward(self, ids, real):
        import torch

        positions = (self.lengths[:, None] + real.cumsum(1) - 1).clamp(min=0)
        self.mask = torch.cat([self.mask, real], 1)
        with torch.inference_mode():
            out = self.engine.model(input_ids=ids, attention_mask=self.mask, position_ids=positions,
                                    past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.lengths = self.lengths + real.sum(1)
        return out.logits[:, -1].float()

    def generate(self, max_new_tokens: int) -> list[Sample]:
        """One turn for every row. Rows that stop early are fed masked padding until the last has stopped."""
        import torch

        end, count = self.engine.tokenizer.convert_tokens_to_ids("<|im_end|>"), len(self.streams)
        draws = torch.tensor([[s.random() for _ in range(max_new_tokens)] for s in self.streams])
        running = torch.ones(count, dtype=torch.bool)
        kept = []
        for step in range(max_new_tokens):
            token, logprob = self._pick(draws[:, step])
            kept.append((token, logprob, running))
            alive, running = running, running & (token != end)
            # The stop token belongs to the turn, so it is fed too.
            self.logits = self._forward(torch.where(alive, token, end)[:, None], alive.long()[:, None])
            if not running.any():
                break
        return _collect(kept, running)

    def _pick(self, draw):
        import torch

        if self.engine.temperature == 0:
            logprobs = torch.log_softmax(self.logits, -1)
            token = logprobs.argmax(-1)
        else:
            logprobs = torch.log_softmax(self.logits / self.engine.temperature, -1)
            token = (logprobs.exp().cumsum(-1) < draw[:, None]).sum(-1).clamp(max=logprobs.shape[-1] - 1)
        return token, logprobs.gather(-1, token[:, None])[:, 0]

    def extend(self, keep: list[int], pieces: list[list[int]]) -> None:
        """Drop all rows but `keep`, and append a piece to each of those."""
        import torch

        rows = torch.tensor(keep)
        self.cache.batch_select_indices(rows)
        self.mask, self.lengths = self.mask[rows], self.lengths[rows]
        self.streams = [self.streams[i] for i in keep]
        self.logits = self._feed(pieces)


def _collect(kept: list, running) -> list[Sample]:
    import torch

    tokens, logprobs, alive = (torch.stack(column, 1) for column in zip(*kept, strict=False))
    counts = alive.sum(1).tolist()
    return [Sample(tokens[i, :n].tolist(), logprobs[i, :n].tolist(), not bool(running[i]))
            for i, n in enumerate(counts)]
