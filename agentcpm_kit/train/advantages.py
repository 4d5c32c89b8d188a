"""Advantages of rollouts and of their steps (the reference's `convert.py`): leave-one-out, sign clip, caps of bad steps."""

from collections.abc import Sequence

CAPPED_STEPS = ("format_error", "repeat_error")  # these never gain from a positive advantage
UNTRAINED = "failed"  # a turn that was cut at `max_new_tokens`: nothing is learned from it


def leave_one_out(scores: Sequence[float]) -> list[float]:
    """A_i = s_i - mean of the others; no division by the deviation. A group of one has no baseline: 0."""
    if len(scores) < 2:
        return [0.0] * len(scores)
    total = sum(scores)
    return [s - (total - s) / (len(scores) - 1) for s in scores]


def clip_sign(advantage: float, score: float) -> float:
    """A wrong rollout (score up to 0.5) never gains, a correct one never loses."""
    return min(advantage, 0.0) if score <= 0.5 else max(advantage, 0.0)


def step_advantages(statuses: Sequence[str], advantage: float, cap_bad_steps: bool = True,
                    minimal: float | None = None) -> list[float]:
    """The advantage of each step: the rollout's own, at most 0 for a bad step, 0 for a failed one or below `minimal`."""
    values = [0.0 if status == UNTRAINED else min(advantage, 0.0) if cap_bad_steps and status in CAPPED_STEPS else advantage
              for status in statuses]
    return [0.0 if minimal is not None and value < minimal else value for value in values]
