"""Models of reward noise, seeded, each with its own dial from 0 to 1 (`sections.Noise`): the share hit of those it can hit.

All are our assumption: the paper's own taxonomy of noise is unpublished, and these are the ways in which a reward can go
wrong that its public code filters.

- `tool_outage`: in this share of the episodes every tool call fails (see `world.faults.FaultPlan`)
- `judge_outage`: this share of finished episodes gets no verdict
- `judge_false_positive`, `judge_false_negative`: this share of wrong answers is called right, of right ones wrong
- `lucky_answer`: this share of wrong answers given at once, with nothing looked up, is called right
- `format_slip`: this share of episodes that end in a malformed turn is called right: the judge likes the text
- `turn_limit`: this share of episodes is ended early by a turn limit, after a turn drawn at random
- `context_limit`: this share is ended early by a context limit, at a token drawn at random, so rather in a turn with long results

The first two take the reward away. The judge's errors and the limits are blind (but episodes of one turn escape a limit). Lucky
answers and format slips are systematic: what they reward is a way of playing that a policy can learn.
"""

import random

from ..agent.trajectory import Context, EndReason, Trajectory
from ..errors import KitError
from ..sections import Noise
from ..world import FaultPlan

CLEAN = Noise()
SHORT_TURNS = 1


def scaled(noise: Noise, factor: float) -> Noise:
    """Every source times `factor`, at most 1.

    Raises:
        KitError: a negative factor.
    """
    if factor < 0:
        raise KitError(f"noise_scale is {factor:g}; it multiplies shares, so that it cannot be below 0")
    return Noise(**{name: min(1.0, rate * factor) for name, rate in noise.model_dump().items()})


def alone(noise: Noise, source: str) -> Noise:
    """One source as strong as it is there, the others off."""
    return Noise(**{source: getattr(noise, source)})


def fault_plan(noise: Noise) -> FaultPlan:
    return FaultPlan(outage=noise.tool_outage)


def judge(trajectory: Trajectory, noise: Noise, rng: random.Random) -> float | None:
    """Reward of a scored trajectory as the noisy judge sees it; None for a fault, of which nothing is known.

    The same numbers are drawn whatever the noise, so that dialling one source leaves the draws of the others as they were.
    """
    out, flip, lucky, slip = (rng.random() for _ in range(4))
    if trajectory.correct is None or out < noise.judge_outage:
        return None
    if trajectory.correct:
        return float(flip >= noise.judge_false_negative)
    if trajectory.end_reason == EndReason.FORMAT_ERROR:
        return float(slip < noise.format_slip)
    if trajectory.answer is None:  # nothing to be mistaken about
        return 0.0
    liked = flip < noise.judge_false_positive
    return float(liked or (trajectory.turns <= SHORT_TURNS and lucky < noise.lucky_answer))


def truncate(trajectory: Trajectory, noise: Noise, rng: random.Random) -> Trajectory:
    """The trajectory, or what a limit that was drawn too low leaves of it. Faults and episodes of one turn stay whole."""
    draws = [rng.random() for _ in range(4)]
    if trajectory.turns < 2 or trajectory.correct is None:
        return trajectory
    if draws[0] < noise.turn_limit:
        return cut(trajectory, 1 + int(draws[1] * (trajectory.turns - 1)), EndReason.TURN_LIMIT)
    if draws[2] < noise.context_limit:
        return cut(trajectory, turns_within(trajectory, draws[3]), EndReason.CONTEXT_LIMIT)
    return trajectory


def turns_within(trajectory: Trajectory, share: float) -> int:
    """How many turns end within this share of what follows the prompt: at least the first, at most all but the last."""
    ends, start = turn_ends(trajectory.context), trajectory.context.prompt_length
    room = start + share * (len(trajectory.context.token_ids) - start)
    return min(len(ends) - 1, max(1, sum(end <= room for end in ends)))


def turn_ends(context: Context) -> list[int]:
    """Where each sampled turn ends: the position after its last token."""
    mask = [*context.loss_mask, 0]
    return [i + 1 for i in range(len(mask) - 1) if mask[i] and not mask[i + 1]]


def cut(trajectory: Trajectory, turns: int, reason: EndReason) -> Trajectory:
    """What the loop would have recorded, had a limit ended the episode after `turns` turns: no answer, no later token."""
    context = trajectory.context
    end = turn_ends(context)[turns - 1]
    kept = context.model_copy(update={name: getattr(context, name)[:end] for name in ("token_ids", "loss_mask", "logprobs")})
    return trajectory.model_copy(update={"steps": trajectory.steps[:turns], "contexts": [kept], "answer": None, "correct": False,
                                         "end_reason": reason, "message": "a limit drawn as noise"})
