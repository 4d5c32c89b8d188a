"""Denoising the reward of a group of rollouts (claim 4 of the paper), one rule at a time.

The rules are those of the reference's code (`_rewarding.py`), each a function of the group that returns the
positions it drops, each with its own switch in `Rules`. What is corrected by default: what is dropped leaves the baseline,
a fault of tool, engine or judge is "no reward", never 0, and the rank shift reaches the advantages. ``as_published=True``
brings back the reference's behaviour: its gate looks at all scores before anything is dropped, dropped rollouts still count
in the baseline of the others, a judge's outage counts as a wrong answer, and the rank shift has no effect.

Where a rule keeps a random few, the draw depends on the rollouts' keys and on `Rules.seed`, not on their order.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..agent.trajectory import EndReason, Trajectory
from .advantages import UNTRAINED, clip_sign, leave_one_out, step_advantages

CORRECT = 0.5  # scores from here on count as correct
SHIFT = 0.2  # span of the rank shift: +/- 0.1


@dataclass(frozen=True)
class Rollout:
    """What the rules look at. `score` is the reward in [0, 1], or None where there is none (a fault)."""

    score: float | None
    turns: int
    end_reason: EndReason = EndReason.ANSWERED
    steps: tuple[str, ...] = ()  # status of each turn
    key: str = ""  # the episode's name: random choices depend on it

    @classmethod
    def of(cls, trajectory: Trajectory, score: float | None) -> "Rollout":
        statuses = tuple(UNTRAINED if step.cut else step.status for step in trajectory.steps)
        return cls(score, trajectory.turns, trajectory.end_reason, statuses, trajectory.episode)


@dataclass(frozen=True)
class Rules:
    """Switches of the rules, and of the advantages. Numbers are the reference's defaults; so are the switches,
    but for `balance_sample`, which is on in the reference and there turns off those that follow it.
    """

    variance_gate: bool = True
    balance_sample: bool = False
    drop_faults: bool = True  # failed_error
    drop_short: bool = True  # correct after at most `min_turns` turns: lucky
    drop_limits: bool = True  # ended by the turn or context limit, but for `reserve_limits`
    efficient_rewarding: bool = False  # keeps those, and shifts scores by rank of turns
    cap_bad_steps: bool = True
    sign_clip: bool = True
    min_spread: float = 0.1
    min_turns: int = 1
    reserve_limits: int = 0  # reserve_context_error_count
    adv_scaling: float = 1.0
    minimal_advantage: float | None = None  # steps below are not learned from; 0 keeps what is rewarded alone
    seed: int = 0
    as_published: bool = False


NO_RULES = Rules(variance_gate=False, drop_faults=False, drop_short=False, drop_limits=False, cap_bad_steps=False,
                 sign_clip=False)


@dataclass(frozen=True)
class DenoisedGroup:
    """Advantages of each rollout (0 where dropped), and of each of its steps; `dropped` maps position to rule.

    `scores` are the rewards after the rank shift, a missing one as 0.
    """

    advantages: list[float]
    step_advantages: list[list[float]]
    dropped: dict[int, str]
    scores: list[float]


def faults(group: Sequence[Rollout], as_published: bool = False) -> set[int]:
    """Rule 4: the environment, the engine or the judge failed, and nothing is known about the answer.

    The reference takes the judge's outage for a wrong answer. Its agent reads a tool's error and goes on, where ours ends as
    a fault: an outage stands for its failed_error in both.
    """
    return {i for i, r in enumerate(group) if r.end_reason.is_fault or (r.score is None and not as_published)}


def short(group: Sequence[Rollout], min_turns: int = 1) -> set[int]:
    """Rule 5: called correct after so few turns that nothing can have been looked up."""
    return {i for i, r in enumerate(group) if (r.score or 0) > 0 and r.turns <= min_turns}


def cut_off(group: Sequence[Rollout], reserve: int = 0, seed: int = 0) -> set[int]:
    """Rule 6: ended by a limit, not by the agent; a random `reserve` of them stay."""
    found = [i for i, r in enumerate(group) if r.end_reason in (EndReason.TURN_LIMIT, EndReason.CONTEXT_LIMIT)]
    return set(_drawn(group, found, seed)[reserve:])


def unbalanced(group: Sequence[Rollout], seed: int = 0) -> set[int]:
    """Rule 2: with m = min(wrong, not wrong), at random all but m + 1 of the wrong and m + 2 of the others."""
    wrong = [i for i, r in enumerate(group) if not r.score]
    right = [i for i, r in enumerate(group) if r.score]
    fewer = min(len(wrong), len(right))
    return {*_drawn(group, wrong, seed)[fewer + 1:], *_drawn(group, right, seed)[fewer + 2:]}


def spread_too_small(scores: Sequence[float], min_spread: float) -> bool:
    """Rule 1, the variance gate: rewards that barely differ say nothing about which rollout was better."""
    return not scores or max(scores) - min(scores) < min_spread


def rank_shift(scores: Sequence[float], turns: Sequence[int]) -> list[float]:
    """Rule 7: among the correct, fewer turns are better, among the wrong, more; shifts within each sum to 0, at most +/- 0.1.

    delta_i = sign (rank_i - mean rank) 0.2 / (n - 1), ranks by turns, the average rank on ties; a lone one is not shifted.
    """
    from scipy.stats import rankdata

    shifted = list(scores)
    for correct, sign in ((False, 1), (True, -1)):
        members = [i for i, s in enumerate(scores) if (s >= CORRECT) == correct]
        if len(members) > 1:
            for i, rank in zip(members, rankdata([turns[i] for i in members]), strict=True):
                shifted[i] += sign * float(rank - (len(members) + 1) / 2) * SHIFT / (len(members) - 1)
    return shifted


def denoise_group(group: Sequence[Rollout], rules: Rules) -> DenoisedGroup:
    """Apply the rules to the rollouts of one question. Pure; the order of the group does not matter."""
    scores = [0.0 if r.score is None else r.score for r in group]
    dropped = _dropped(group, rules, scores)
    kept = [i for i in range(len(group)) if i not in dropped]
    shifted = _shifted(group, rules, scores, kept)
    in_baseline = list(range(len(group))) if rules.as_published else kept
    counted = scores if rules.as_published else shifted
    advantages = [0.0] * len(group)
    for i, advantage in zip(in_baseline, leave_one_out([counted[i] for i in in_baseline]), strict=True):
        if i not in dropped:
            advantages[i] = rules.adv_scaling * (clip_sign(advantage, scores[i]) if rules.sign_clip else advantage)
    steps = [step_advantages(r.steps, a, rules.cap_bad_steps, rules.minimal_advantage)
             for r, a in zip(group, advantages, strict=True)]
    return DenoisedGroup(advantages, steps, dropped, shifted)


def _dropped(group: Sequence[Rollout], rules: Rules, scores: Sequence[float]) -> dict[int, str]:
    """Which rule drops whom. The gate comes first as published, else it looks at what the others leave."""
    everyone = set(range(len(group)))
    if rules.as_published and rules.variance_gate and spread_too_small(scores, rules.min_spread):
        return dict.fromkeys(everyone, "variance_gate")
    dropped: dict[int, str] = {}
    for rule, positions in _by_rule(group, rules):
        dropped |= {i: rule for i in positions if i not in dropped}
    left = everyone - set(dropped)
    if rules.variance_gate and not rules.as_published and spread_too_small([scores[i] for i in left], rules.min_spread):
        dropped |= dict.fromkeys(left, "variance_gate")
    return dropped


def _by_rule(group: Sequence[Rollout], rules: Rules) -> Iterable[tuple[str, set[int]]]:
    """The rules that are switched on, in their order. Balance stands for all that follow it, faults excepted."""
    gone = faults(group, rules.as_published) if rules.drop_faults else set()
    yield "fault", gone
    if rules.balance_sample:
        left = [i for i in range(len(group)) if i not in gone]
        yield "balance", {left[i] for i in unbalanced([group[i] for i in left], rules.seed)}
        return
    if rules.drop_short:
        yield "short", short(group, rules.min_turns)
    if rules.drop_limits and not rules.efficient_rewarding:
        yield "limit", cut_off(group, rules.reserve_limits, rules.seed)


def _shifted(group: Sequence[Rollout], rules: Rules, scores: list[float], kept: list[int]) -> list[float]:
    shifted = list(scores)
    if rules.efficient_rewarding and not rules.balance_sample:
        new = rank_shift([scores[i] for i in kept], [group[i].turns for i in kept])
        for i, score in zip(kept, new, strict=True):
            shifted[i] = score
    return shifted


def _drawn(group: Sequence[Rollout], positions: list[int], seed: int) -> list[int]:
    """Positions in a random order that the rollouts' keys decide; rollouts that tie are alike in all that rules look at."""
    def draw(i: int) -> tuple:
        digest = hashlib.sha256(f"{seed} {group[i].key}".encode()).digest()
        return digest, group[i].turns, str(group[i].end_reason), group[i].steps
    return sorted(positions, key=draw)
