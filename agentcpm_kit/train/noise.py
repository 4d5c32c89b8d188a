"""Models of reward noise. All are our assumption: the paper's own taxonomy of noise is unpublished.

- tool outage: in a share of the episodes every tool call fails (see `world.faults.FaultPlan`)
- judge: calls a wrong answer right (false positive) or a right one wrong (false negative)
- lucky answer: the judge likes a wrong answer that was given without looking anything up
"""

import random

from ..agent.trajectory import Trajectory
from ..profile import Noise
from ..world import FaultPlan

CLEAN = Noise(tool_outage=0.0, judge_false_positive=0.0, judge_false_negative=0.0, lucky_answer=0.0)
SHORT_TURNS = 1


def scaled(noise: Noise, factor: float) -> Noise:
    """Every source times `factor`, at most 1."""
    return Noise(**{name: min(1.0, rate * factor) for name, rate in noise.model_dump().items()})


def fault_plan(noise: Noise) -> FaultPlan:
    return FaultPlan(outage=noise.tool_outage)


def judge(trajectory: Trajectory, noise: Noise, rng: random.Random) -> float | None:
    """Reward of a scored trajectory as the noisy judge sees it; None for a fault, of which nothing is known.

    Exactly two numbers are drawn, so that dialling one source of noise leaves the draws of the others as they were.
    """
    flip, lucky = rng.random(), rng.random()
    if trajectory.correct is None:
        return None
    if trajectory.correct:
        return float(flip >= noise.judge_false_negative)
    if trajectory.answer is None:  # nothing to be mistaken about
        return 0.0
    liked = flip < noise.judge_false_positive
    return float(liked or (trajectory.turns <= SHORT_TURNS and lucky < noise.lucky_answer))
