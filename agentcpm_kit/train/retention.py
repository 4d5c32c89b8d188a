"""Two ways to forget less that need no merge: the honest baselines beside claim 2 (our choice; the paper names none).

*KL*: the loss grows with the distance to the base model on the tokens that are not learned (questions, pages), so that
nothing is asked to be learned and kept at once. *Replay*: some of the records are exchanged for what the base itself
answers to other prompts, so it needs no data of the base's own training.
"""

from pathlib import Path

from ..agent.engines import EngineFault, generate_turns, open_engine
from ..agent.summarise import user_turn
from ..errors import KitError
from ..profile import Profile
from .data import IGNORED


def anchored(trainer: type, base: Path, weight: float, dtype: str) -> type:
    """A subclass of `trainer` whose loss adds `weight` times KL(base || model), in nats per token.

    It costs a second pass of the model and one of the base: TRL's and Unsloth's own losses keep no logits.
    """
    import torch

    from ..agent.engines import load_model

    reference = load_model(base, dtype)[0]

    class Anchored(trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            found = super().compute_loss(model, inputs, return_outputs, **kwargs)
            text = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
            with torch.no_grad():
                target = reference(**text).logits
            kl = distance(target, model(**text).logits, inputs["labels"], inputs["attention_mask"])
            kl = weight * kl / self.current_gradient_accumulation_steps  # losses of an update's passes are added up
            return (found[0] + kl, found[1]) if return_outputs else found + kl

    return Anchored


def distance(reference, logits, labels, attention_mask):
    """KL(reference || model) in nats per token, where the token that comes next is not one to be learned.

    Args:
        reference, logits: (rows, width, vocabulary). Those at i are about the token at i + 1.
        labels, attention_mask: (rows, width).
    """
    from torch.nn.functional import kl_div

    given = (labels[:, 1:] == IGNORED) & attention_mask[:, 1:].bool()
    p, q = (x[:, :-1][given].float().log_softmax(-1) for x in (reference, logits))
    return kl_div(q, p, log_target=True, reduction="sum") / given.sum()


def with_replay(rows: list[dict], replay: list[dict]) -> list[dict]:
    """`rows` with every so manieth exchanged for one of `replay`: as many rows, so the same number of steps."""
    every, mixed = len(rows) / len(replay), list(rows)
    for i, row in enumerate(replay):
        mixed[int(i * every)] = row
    return mixed


def replay_rows(base: Path, prompts: list[str], profile: Profile, max_new_tokens: int) -> list[dict]:
    """What the base answers to `prompts`, greedily, as rows to learn: the prompt is given, the answer and its end learned.

    Raises:
        KitError: the engine failed on a prompt.
    """
    with open_engine(base, profile, temperature=0.0) as engine:
        turns = [user_turn(engine.tokenizer, f"replay {i}", prompt, max_new_tokens) for i, prompt in enumerate(prompts)]
        rows = []
        for turn, sample in zip(turns, generate_turns(engine, turns), strict=True):
            if isinstance(sample, EngineFault):
                raise KitError(f"the engine failed on a prompt to replay: {sample}")
            rows.append({"input_ids": turn.ids + sample.ids, "labels": [IGNORED] * len(turn.ids) + sample.ids})
    return rows
