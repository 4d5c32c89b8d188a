"""Training trajectories: from the scripted oracle, and by rejection sampling; the filters are named and counted.

The paper's trajectories are not public; ours come from a script and from the student itself.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..agent.oracle import OracleEngine
from ..agent.tokens import assistant_mask
from ..agent.trajectory import EndReason, Trajectory
from ..evaluate.runner import AgentResult, evaluate_agent
from ..profile import Profile
from ..world import Task, make_tasks

IGNORED = -100  # the label that a loss leaves out
FILTERS = {  # why an episode is not learned from; the first that holds counts
    **dict.fromkeys((r.value for r in EndReason if r != EndReason.ANSWERED), "ended without an answer; the name is the reason"),
    "wrong": "the answer is not the gold one",
    "faulty_step": "a call failed, could not be read, or was repeated: the step would be learned with the rest",
    "cut_off": "a turn ran out of tokens: its end would not be learned",
    "too_short": "right without having opened a page: a guess (the reference's min_turns)",
    "duplicate": "the same tokens as an earlier record",
}


@dataclass
class Filtered:
    """What a filter kept, and how many it dropped for which reason."""

    kept: list[Trajectory]
    dropped: Counter = field(default_factory=Counter)


def training_tasks(profile: Profile, count: int, seed: int = 0) -> list[Task]:
    """`count` tasks of the training worlds, the numbers of hops in turn."""
    world, hops = profile.world, profile.evaluation.hops
    shares = [make_tasks("train", -(-count // len(hops)), h, world.train_worlds, world.entities, world.redundancy, seed)
              for h in hops]
    return [task for group in zip(*shares, strict=True) for task in group][:count]


def oracle_trajectories(tasks: list[Task], tokenizer, profile: Profile) -> AgentResult:
    """The scripted oracle's trajectories on `tasks`, in the tokens of `tokenizer`."""
    return evaluate_agent(OracleEngine(tokenizer, tasks), tasks, profile)


def keep_good(trajectories: list[Trajectory]) -> Filtered:
    """Rejection: keep correct episodes without faulty, malformed or repeated steps, one of each text."""
    result, seen = Filtered([]), set()
    for trajectory in trajectories:
        reason = _fault_of(trajectory) or ("duplicate" if _tokens(trajectory) in seen else None)
        if reason:
            result.dropped[reason] += 1
        else:
            seen.add(_tokens(trajectory))
            result.kept.append(trajectory)
    return result


def _tokens(trajectory: Trajectory) -> tuple[int, ...]:
    return tuple(token for context in trajectory.contexts for token in context.token_ids)


def _fault_of(trajectory: Trajectory) -> str | None:
    if trajectory.end_reason != EndReason.ANSWERED:
        return trajectory.end_reason.value
    if not trajectory.correct:
        return "wrong"
    if any(step.status != "completed" for step in trajectory.steps):
        return "faulty_step"
    if any(step.cut for step in trajectory.steps):
        return "cut_off"
    # Right without having opened a page: a guess, and nothing to learn from (the reference's `min_turns`).
    return "too_short" if trajectory.turns < 3 else None


def training_rows(trajectories: list[Trajectory]) -> list[dict]:
    """`input_ids` and `labels` for each context of each trajectory: the tokens that the loop recorded, learned where sampled.

    Raises:
        ValueError: a trajectory without sampled tokens would teach nothing.
    """
    rows = []
    for t in trajectories:
        learned = [context for context in t.contexts if any(context.loss_mask)]
        if not learned:
            raise ValueError(f"{t.task_id}: no sampled token to learn from")
        for context in learned:
            labels = [i if m else IGNORED for i, m in zip(context.token_ids, context.loss_mask, strict=True)]
            rows.append({"input_ids": context.token_ids, "labels": labels})
    return rows


def learned_outside(trajectory: Trajectory, tokenizer) -> int:
    """How many tokens that are not the assistant's a trajectory would teach; 0 for every sound one."""
    return sum(m > a for c in trajectory.contexts
               for m, a in zip(c.loss_mask, assistant_mask(tokenizer, c.token_ids), strict=True))


def padding_share(batches: Sequence[Sequence[int]]) -> float:
    """Share of computed tokens that are padding, for batches of row lengths (in tokens)."""
    computed = sum(max(batch) * len(batch) for batch in batches)
    return 1 - sum(map(sum, batches)) / computed
