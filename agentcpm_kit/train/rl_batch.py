"""The batch of one update: that it holds what was sampled, which rows take part, and how they are split into passes.

A batch is TRL's: `prompt_ids`, `completion_ids` and their masks, `tool_mask` (1 on sampled tokens), `advantages` and
`sampling_per_token_logps`, each [rows, tokens]; prompts are padded on their left, what follows on its right.
"""

from ..agent.trajectory import Trajectory
from ..errors import KitError


def columns(trajectories: list[Trajectory], filler: int) -> dict[str, list]:
    """What TRL's `rollout_func` returns. An episode that sampled nothing (a fault) gets one token that is not learned from."""
    contexts = [t.context for t in trajectories]
    after = [slice(c.prompt_length, None) for c in contexts]
    return {"prompt_ids": [c.token_ids[: c.prompt_length] for c in contexts],
            "completion_ids": [c.token_ids[rest] or [filler] for c, rest in zip(contexts, after, strict=True)],
            "logprobs": [c.logprobs[rest] or [0.0] for c, rest in zip(contexts, after, strict=True)],
            "env_mask": [c.loss_mask[rest] or [0] for c, rest in zip(contexts, after, strict=True)]}


def assert_sampled_tokens(batch: dict, trajectories: list[Trajectory]) -> None:
    """Every token that a batch trains on is the one that was sampled, at its place and with its log-probability.

    Raises:
        KitError: TRL cut, moved or tokenised anew, ids were made from text, or an episode has several contexts.
    """
    for row, trajectory in enumerate(trajectories):
        if not trajectory.exact or len(trajectory.contexts) != 1:
            raise KitError(f"RL needs the sampled ids in one context; episode {trajectory.episode} has "
                           f"{len(trajectory.contexts)} contexts, exact ids: {trajectory.exact}")
        context, size = trajectory.context, len(trajectory.context.token_ids) - trajectory.context.prompt_length
        if not size:  # a fault before the first token: a filler stands in its place
            if batch["tool_mask"][row].mul(batch["completion_mask"][row]).any():
                raise KitError(f"episode {trajectory.episode} sampled nothing, and is trained on")
            continue
        real, ids = batch["completion_mask"][row], batch["completion_ids"][row][:size].tolist()
        trained = (real * batch["tool_mask"][row]).bool().tolist()
        gaps = [abs(a - b) for a, b, t in zip(batch["sampling_per_token_logps"][row].tolist(), context.logprobs[-size:], trained,
                                              strict=False) if t]
        mask = context.loss_mask[context.prompt_length:]
        if not (int(real.sum()) == size and ids == context.token_ids[context.prompt_length:]
                and trained == [bool(m) for m in mask] + [False] * (len(trained) - size)
                and all(gap <= 1e-4 for gap in gaps)):  # also false where a log-prob is no number
            raise KitError(f"episode {trajectory.episode}: the tokens to train on are not those that were sampled")


def in_length_chunks(batch: dict, chunks: int) -> list[dict]:
    """Split rows into `chunks` of like length, and cut off the columns that are padding in all of a chunk's rows.

    Rows are ordered by length and then by place, so that nothing is left to chance.
    """
    import torch

    order = torch.argsort(batch["completion_mask"].sum(1), stable=True)
    rows = {k: v[order] for k, v in batch.items() if isinstance(v, torch.Tensor) and v.dim() == 2}
    others = {k: v for k, v in batch.items() if k not in rows}
    size = len(order) // chunks
    found = [{k: v[i * size: (i + 1) * size] for k, v in rows.items()} for i in range(chunks)]
    return [others | _trimmed(chunk) for chunk in found]


def _trimmed(rows: dict) -> dict:
    """Prompts are padded on their left, what follows on its right."""
    prompt, rest = (int(rows[f"{part}_mask"].sum(1).max()) for part in ("prompt", "completion"))
    return {k: v[:, -prompt:] if k.startswith("prompt") else v[:, :rest] for k, v in rows.items()}


def without_idle_rows(batch: dict, chunks: int) -> dict:
    """Drop rollouts without any advantage: they cost a pass and give no gradient. Keeps a multiple of `chunks` rows."""
    import torch

    active = (batch["advantages"] != 0).any(1)
    keep = torch.cat([active.nonzero()[:, 0], (~active).nonzero()[:, 0]])
    keep = keep[: max(1, -(-int(active.sum()) // chunks)) * chunks]
    batch = {k: v[keep] if isinstance(v, torch.Tensor) and v.dim() and len(v) == len(active) else v
             for k, v in batch.items()}
    batch["tool_mask"] = batch["tool_mask"] * (batch["advantages"] != 0)
    batch["num_items_in_batch"] = (batch["completion_mask"] * batch["tool_mask"]).sum().clamp(min=1)
    batch["rows_in_batch"] = max(1, int(active.sum()))
    return batch
