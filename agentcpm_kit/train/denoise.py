"""Denoising the reward of a group of rollouts (claim 4 of the paper), one rule at a time.

The rules are those of the reference's code (reference_system, section 9). What is corrected by default: what is
dropped leaves the baseline, and a fault is "no reward", never 0. ``as_published=True`` brings back the reference's
behaviour, in which dropped rollouts still lower the baseline of the others and a fault counts as 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..agent.trajectory import EndReason, Trajectory

CAPPED_STEPS = ("format_error", "repeat_error")  # these never gain from a positive advantage


@dataclass(frozen=True)
class Rollout:
    """What the rules look at. `score` is the reward in [0, 1], or None where there is none (a fault)."""

    score: float | None
    turns: int
    end_reason: EndReason = EndReason.ANSWERED
    steps: tuple[str, ...] = ()  # status of each turn

    @classmethod
    def of(cls, trajectory: Trajectory, score: float | None) -> "Rollout":
        return cls(score, trajectory.turns, trajectory.end_reason, tuple(s.status for s in trajectory.steps))


@dataclass(frozen=True)
class Rules:
    """Switches. `min_turns` and `min_spread` are the reference's defaults."""

    variance_gate: bool = True
    drop_faults: bool = True
    drop_short: bool = True  # correct after at most `min_turns` turns: lucky
    drop_limits: bool = True  # ended by the turn or context limit
    cap_bad_steps: bool = True
    sign_clip: bool = True
    min_turns: int = 1
    min_spread: float = 0.1
    as_published: bool = False


NO_RULES = Rules(variance_gate=False, drop_faults=False, drop_short=False, drop_limits=False, cap_bad_steps=False,
                 sign_clip=False)


@dataclass(frozen=True)
class DenoisedGroup:
    """Advantages of each rollout (0 where dropped), and of each of its steps; `dropped` maps position to rule."""

    advantages: list[float]
    step_advantages: list[list[float]]
    dropped: dict[int, str]


def is_fault(rollout: Rollout) -> bool:
    """The environment, the engine or the judge failed; nothing is known about the answer."""
    return rollout.score is None or rollout.end_reason.is_fault


def is_short(rollout: Rollout, min_turns: int) -> bool:
    """Called correct after so few turns that nothing can have been looked up."""
    return (rollout.score or 0) > 0 and rollout.turns <= min_turns


def is_cut_off(rollout: Rollout) -> bool:
    """Ended by a limit, not by the agent."""
    return rollout.end_reason in (EndReason.TURN_LIMIT, EndReason.CONTEXT_LIMIT)


def spread_too_small(scores: Sequence[float], min_spread: float) -> bool:
    """Variance gate: rewards that barely differ say nothing about which rollout was better."""
    return not scores or max(scores) - min(scores) < min_spread


def leave_one_out(scores: Sequence[float]) -> list[float]:
    """A_i = s_i - mean of the others; no division by the deviation. A group of one has no baseline: 0."""
    if len(scores) < 2:
        return [0.0] * len(scores)
    total = sum(scores)
    return [s - (total - s) / (len(scores) - 1) for s in scores]


def denoise_group(group: Sequence[Rollout], rules: Rules) -> DenoisedGroup:
    """Apply the rules to the rollouts of one question. Pure; the order of the group does not matter."""
    scores = [0.0 if r.score is None else r.score for r in group]
    dropped = {i: rule for i, r in enumerate(group) if (rule := _rule_that_drops(r, rules))}
    in_baseline = [i for i in range(len(group)) if rules.as_published or i not in dropped]
    if rules.variance_gate and spread_too_small([scores[i] for i in in_baseline], rules.min_spread):
        dropped |= {i: "variance_gate" for i in range(len(group)) if i not in dropped}
    advantages = [0.0] * len(group)
    for i, advantage in zip(in_baseline, leave_one_out([scores[i] for i in in_baseline]), strict=True):
        if i not in dropped:
            advantages[i] = _clip_sign(advantage, scores[i]) if rules.sign_clip else advantage
    steps = [_step_advantages(r, a, rules) for r, a in zip(group, advantages, strict=True)]
    return DenoisedGroup(advantages, steps, dropped)


def _rule_that_drops(rollout: Rollout, rules: Rules) -> str | None:
    if rules.drop_faults and is_fault(rollout):
        return "fault"
    if rules.drop_short and is_short(rollout, rules.min_turns):
        return "short"
    return "limit" if rules.drop_limits and is_cut_off(rollout) else None


def _clip_sign(advantage: float, score: float) -> float:
    """A wrong rollout never gains, a correct one never loses (reference_system, section 10)."""
    return min(advantage, 0.0) if score <= 0.5 else max(advantage, 0.0)


def _step_advantages(rollout: Rollout, advantage: float, rules: Rules) -> list[float]:
    capped = [rules.cap_bad_steps and status in CAPPED_STEPS for status in rollout.steps]
    return [min(advantage, 0.0) if cap else advantage for cap in capped]
