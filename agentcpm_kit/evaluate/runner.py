"""Measure a model: agent success on tasks of unseen worlds, and general ability on fixed items."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..agent.context import ContextPolicy
from ..agent.engines import EngineFault, Sample, generate_turns, open_engine
from ..agent.episode import ToolFactory, run_episodes, world_tools
from ..agent.summarise import reply_text, user_turn
from ..agent.trajectory import EndReason, Trajectory
from ..errors import KitError
from ..micro.skills import Item
from ..profile import Profile
from ..world import Task, make_tasks
from .general import by_skill, is_right
from .metrics import Estimate, rate
from .scorers import score

MOST_LOST = 0.1  # share of episodes; a fault counts as a miss


@dataclass(frozen=True)
class TokenAccount:
    """Tokens per episode: `read` is what the tools returned, `shown` what entered the agent's context.

    `condenser` is what a summariser's model read and wrote in between: refinement moves tokens as well as saving them.
    """

    read: float
    shown: float
    condenser: float


@dataclass
class AgentResult:
    """Scored trajectories, and what they add up to."""

    tasks: list[Task]
    trajectories: list[Trajectory]

    @property
    def success(self) -> Estimate:
        """Correct over all tasks, faults included in the denominator (a missing result is a miss)."""
        return rate(sum(t.correct is True for t in self.trajectories), len(self.trajectories))

    @property
    def outcomes(self) -> list[int]:
        """1 for each correct task, 0 for each other, in the order of the tasks: for paired comparisons."""
        return [int(t.correct is True) for t in self.trajectories]

    @property
    def unscored(self) -> int:
        return sum(t.correct is None for t in self.trajectories)

    @property
    def end_reasons(self) -> dict[str, int]:
        return dict(Counter(t.end_reason.value for t in self.trajectories).most_common())

    @property
    def tokens(self) -> TokenAccount:
        steps, count = [step for t in self.trajectories for step in t.steps], len(self.trajectories)
        condenser = sum(step.condenser_read + step.condenser_written for step in steps)
        return TokenAccount(sum(step.tokens_read for step in steps) / count,
                            sum(step.tokens_shown for step in steps) / count, condenser / count)

    def by_hops(self) -> dict[int, "AgentResult"]:
        """The same, split by the number of hops."""
        pairs = list(zip(self.tasks, self.trajectories, strict=True))
        return {h: AgentResult(*map(list, zip(*[p for p in pairs if p[0].hops == h], strict=True)))
                for h in sorted({task.hops for task in self.tasks})}


def suite(profile: Profile, split: str, count: int | None = None, hops: list[int] | None = None,
          redundancy: int | None = None) -> list[Task]:
    """`count` tasks per number of hops from the worlds of a split, with the profile's sizes where not told."""
    world = profile.world
    worlds = getattr(world, f"{split}_worlds")
    level = world.redundancy if redundancy is None else redundancy
    return [task for h in hops or profile.evaluation.hops
            for task in make_tasks(split, count or profile.evaluation.tasks, h, worlds, world.entities, level)]


def evaluate_agent(engine, tasks: list[Task], profile: Profile, context: ContextPolicy | None = None,
                   tools: ToolFactory | None = None, seed: int = 0, run: int = 0,
                   on_end: Callable[[Trajectory], None] | None = None, log: Path | None = None) -> AgentResult:
    """Play every task once and score it. With a `log` of trajectories, only those that it does not hold yet.

    Tools and context policy are the worlds' own and the profile's, where none are given.

    Raises:
        KitError: the engine failed on more than `MOST_LOST` of the episodes, so that a rate would be its own, not the agent's.
    """
    found = run_episodes(tasks, engine, tools or world_tools(), profile.limits, context or ContextPolicy.of(profile), seed, run,
                         on_end, log)
    refuse_lost(found)
    return AgentResult(tasks, [score(t, task) for t, task in zip(found, tasks, strict=True)])


def refuse_lost(found: list[Trajectory]) -> None:
    """Raise `KitError` if the engine failed on more than `MOST_LOST` of the episodes."""
    lost = [t for t in found if t.end_reason == EndReason.ENGINE_FAULT]
    if len(lost) > MOST_LOST * len(found):
        raise KitError(f"the engine failed on {len(lost)} of {len(found)} episodes ({lost[0].message}); see to it, then run the "
                       "same command again")


def answer_items(engine, items: list[Item], max_new_tokens: int = 16) -> list[str]:
    """What the model says to each item, asked as one user turn without tools; thinking is taken off."""
    turns = [user_turn(engine.tokenizer, f"item {i}", item.prompt, max_new_tokens) for i, item in enumerate(items)]
    return [_said(engine.tokenizer, sample) for sample in generate_turns(engine, turns)]


def _said(tokenizer, sample: Sample | EngineFault) -> str:
    if isinstance(sample, EngineFault):  # an ability that cannot be measured is not one that is gone
        raise KitError(f"the engine failed on a general item: {sample}")
    return reply_text(tokenizer, sample)


@dataclass
class Measurement:
    """Agent success and general ability of one model; `right` tells which items it got right."""

    agent: AgentResult
    general: dict[str, Estimate]
    right: list[bool]


def measure(model: Path, tasks: list[Task], items: list[Item], profile: Profile) -> Measurement:
    """Load a model and measure it greedily on tasks and items."""
    suite, room = profile.evaluation.general_suite, profile.evaluation.general_tokens
    with open_engine(model, profile, temperature=0.0) as engine:
        right = [is_right(item, said, suite) for said, item in zip(answer_items(engine, items, room), items, strict=True)]
        return Measurement(evaluate_agent(engine, tasks, profile), by_skill(items, right), right)
