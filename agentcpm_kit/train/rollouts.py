"""Rollouts for RL: the kit's loop plays, noise and judge decide the reward, and the rules what of it is learned from.

Data flows one way: tasks -> trajectories -> (noise) rewards -> `denoise_group` -> advantages of tokens. `Update` holds all of
it for one step, whichever trainer takes it.

As in the reference, rollouts go on until there are enough rows for an update (`rows_per_update`): rules that drop
rollouts, and groups without spread, cost time, not the size of the update.
"""

import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..agent.context import ContextPolicy
from ..agent.engines import Engine
from ..agent.episode import run_episodes, world_tools
from ..agent.trajectory import Trajectory, read_trajectories, write_trajectories
from ..evaluate.runner import refuse_lost
from ..evaluate.scorers import score
from ..files import write_json
from ..profile import Profile
from ..sections import Noise
from ..world import Task, make_tasks
from .denoise import NO_RULES, DenoisedGroup, Rollout, Rules, denoise_group
from .noise import CLEAN, fault_plan, judge, truncate

TASK_SEED = 10_000  # far from the seeds of SFT's questions
ROUNDS = 3  # a step plays its questions and, to fill its update, at most so many times as many in all


@dataclass(frozen=True)
class Arm:
    """One side of a comparison. Arms differ in noise and rules.

    Rules that drop rollouts make a step play more questions to fill its update (`fill`): what that alone is worth, controls tell
    (`benchmarks/rl_trials.py`).
    """

    name: str
    noise: Noise
    rules: Rules


def arms(noise: Noise) -> dict[str, Arm]:
    """Clean rewards, noisy rewards taken as they come (a fault is a 0), and the same noisy rewards denoised.

    Every rule that the paper's code filters rewards by is off in the first two, caps of bad steps included.
    """
    return {"clean": Arm("clean", CLEAN, NO_RULES), "noisy": Arm("noisy", noise, NO_RULES),
            "denoised": Arm("denoised", noise, Rules())}


@dataclass
class Update:
    """Rollouts of one step with what the rules made of them.

    `truth` says of each rollout whether the agent, left alone, was right (None: a fault), whatever noise made of it since.
    """

    trajectories: list[Trajectory]
    rewards: list[float | None]
    truth: list[bool | None]
    groups: list[DenoisedGroup]
    group_size: int
    version: int = 0  # steps that the policy had learned when it sampled these
    seconds: dict[str, float] = field(default_factory=dict)

    def token_advantages(self, i: int) -> list[float]:
        """Advantage of each token after the prompt: that of the step that sampled it, 0 on tool results."""
        trajectory, steps = self.trajectories[i], self.groups[i // self.group_size].step_advantages[i % self.group_size]
        values, step, previous = [], -1, 0
        for learned in trajectory.context.loss_mask[trajectory.context.prompt_length:]:
            step += learned and not previous
            values.append(steps[step] if learned else 0.0)
            previous = learned
        return values

    def is_active(self, i: int) -> bool:
        """Whether anything can be learned from rollout `i`."""
        return any(self.groups[i // self.group_size].step_advantages[i % self.group_size])

    @property
    def active(self) -> list[int]:
        """The rollouts that something can be learned from; `rows` says which of them are."""
        return [i for i in range(len(self.trajectories)) if self.is_active(i)]

    def rows(self, count: int, wanted: int) -> list[int]:
        """`count` rollouts for the trainer: the active ones of the first `count`, more from later rounds up to `wanted`, and
        idle ones to fill up."""
        active = self.active
        first = sum(i < count for i in active)
        chosen = active[: min(count, max(first, wanted))]
        idle = [i for i in range(count) if not self.is_active(i)]
        return sorted(chosen + idle[: count - len(chosen)])

    def dropped(self, i: int) -> str:
        """Which rule dropped rollout `i`, or ""."""
        return self.groups[i // self.group_size].dropped.get(i % self.group_size, "")

    def is_noise(self, i: int) -> bool:
        """Whether the reward of rollout `i`, a missing one taken as 0, differs from the truth, or the truth is unknown."""
        return self.truth[i] is None or bool(self.rewards[i]) != self.truth[i]

    def entropy(self) -> float:
        """Nats per token, estimated by the mean of -log p over all sampled tokens, learned from or not."""
        sampled = [p for t in self.trajectories for p, m in zip(t.context.logprobs, t.context.loss_mask, strict=True) if m]
        return -sum(sampled) / max(1, len(sampled))

    def summary(self) -> dict:
        """What is logged of a step. Shares are of all rollouts, `reward` and `success` of those that have one."""
        count, everyone = len(self.trajectories), range(len(self.trajectories))
        rewarded, correct = ([x for x in values if x is not None] for values in (self.rewards, self.truth))
        return {"reward": sum(rewarded) / max(1, len(rewarded)), "success": sum(correct) / max(1, len(correct)),
                "entropy": self.entropy(),
                "fault_share": sum(t is None for t in self.truth) / count,
                "noise_share": sum(map(self.is_noise, everyone)) / count,
                "turns": sum(t.turns for t in self.trajectories) / count,
                "rollouts": count, "active": len(self.active),
                "dropped": dict(Counter(rule for i in everyone if (rule := self.dropped(i)))),
                "end_reasons": dict(Counter(t.end_reason.value for t in self.trajectories))}


def rl_tasks(profile: Profile, seed: int = 0) -> list[Task]:
    """Questions of a whole run, in their order: training worlds at RL's own hops and contamination, new ones for every step.

    The first are those of the steps; more follow for later rounds, where a step may have to fill its update.
    """
    rl, world = profile.rl, profile.world
    needed = tasks_needed(profile)
    count = -(-needed // len(rl.hops))
    found = [task for h in rl.hops
             for task in make_tasks("train", count, h, world.train_worlds, world.entities, rl.redundancy, seed=TASK_SEED + seed)]
    return random.Random(f"order {seed}").sample(found, needed)


def tasks_needed(profile: Profile) -> int:
    return profile.rl.steps * profile.rl.questions_per_step * (ROUNDS if profile.rl.rows_per_update else 1)


def repeated(tasks: list[Task], size: int) -> list[Task]:
    """Each task `size` times in a row: its group."""
    return [task for task in tasks for _ in range(size)]


def fill(tasks: list[Task], engine: Engine, profile: Profile, arm: Arm, seed: int, step: int, version: int) -> Update:
    """Roll out the questions of `step` out of all of a run's, and further ones until enough rollouts are active."""
    rl, updates = profile.rl, []
    for number in range(ROUNDS):
        if number and sum(len(u.active) for u in updates) >= rl.rows_per_update:
            break
        first = (number * rl.steps + step) * rl.questions_per_step
        questions = repeated(tasks[first: first + rl.questions_per_step], rl.group_size)
        updates.append(collect(questions, engine, profile, arm, seed, step, version, number))
    return merged(updates)


def merged(updates: list[Update]) -> Update:
    """The rounds of one step as one."""
    def joined(name: str) -> list:
        return [each for update in updates for each in getattr(update, name)]
    seconds = {name: sum(u.seconds[name] for u in updates) for name in updates[0].seconds}
    return replace(updates[0], **{name: joined(name) for name in ("trajectories", "rewards", "truth", "groups")}, seconds=seconds)


def collect(tasks: list[Task], engine: Engine, profile: Profile, arm: Arm, seed: int, step: int,
            version: int | None = None, number: int = 0) -> Update:
    """Roll out `tasks` (each question `group_size` times in a row) for round `number` of `step`, judge and denoise.

    `version` stamps every turn: how many steps the policy had learned, `step` itself where it is the newest.

    Raises:
        KitError: the engine failed on so many episodes that there is nothing to learn from.
    """
    started = time.perf_counter()
    found = run_episodes(tasks, engine, world_tools(fault_plan(arm.noise)), profile.limits, ContextPolicy.of(profile),
                         seed, step)
    refuse_lost(found)
    played = time.perf_counter()
    version = step if version is None else version
    for trajectory, task in zip(found, tasks, strict=True):
        score(trajectory, task)
        for turn in trajectory.steps:
            turn.policy_version = version
    update = rewarded(found, arm.noise, arm.rules, profile.rl.group_size, f"{seed} {step} {number}")
    update.version, update.seconds = version, {"rollout_s": played - started, "reward_s": time.perf_counter() - played}
    return update


def rewarded(found: list[Trajectory], noise: Noise, rules: Rules, size: int, stream: str) -> Update:
    """Scored trajectories as noise leaves them, with the rewards of the noisy judge, denoised.

    `stream` names the draws: the same in every arm with noise, so that rollouts that both play meet the same noise.
    """
    limits, verdicts = (random.Random(f"{what} {stream}") for what in ("limits", "judge"))
    trained = [truncate(t, noise, limits) for t in found]
    rewards = [judge(t, noise, verdicts) for t in trained]
    return Update(trained, rewards, [t.correct for t in found], denoised(trained, rewards, rules, size), size)


def denoised(trajectories: list[Trajectory], rewards: list[float | None], rules: Rules, size: int) -> list[DenoisedGroup]:
    rollouts = [Rollout.of(t, r) for t, r in zip(trajectories, rewards, strict=True)]
    return [denoise_group(rollouts[i: i + size], rules) for i in range(0, len(rollouts), size)]


def save_update(update: Update, folder: Path) -> None:
    """Keep rollouts that are not learned from yet, so that a resumed run learns from the very same."""
    (folder / "rollouts.jsonl").unlink(missing_ok=True)
    write_trajectories(folder / "rollouts.jsonl", update.trajectories)
    write_json(folder / "rollouts.json", {"rewards": update.rewards, "truth": update.truth, "version": update.version})


def load_update(folder: Path, rules: Rules, size: int) -> Update | None:
    """What `save_update` kept in `folder`, if it did."""
    if not (folder / "rollouts.json").is_file():
        return None
    kept = json.loads((folder / "rollouts.json").read_text())
    trajectories = read_trajectories(folder / "rollouts.jsonl")
    groups = denoised(trajectories, kept["rewards"], rules, size)
    return Update(trajectories, kept["rewards"], kept["truth"], groups, size, kept["version"])
