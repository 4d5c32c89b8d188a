"""Training trajectories: from the scripted oracle, and by rejection sampling; the filters are named and counted."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..agent.oracle import OracleEngine
from ..agent.trajectory import EndReason, Trajectory, read_trajectories, write_trajectories
from ..artefacts import write_checksums
from ..errors import KitError
from ..evaluate.runner import AgentResult, evaluate_agent
from ..profile import Profile
from ..world import Task, make_tasks

IGNORED = -100  # the label that a loss leaves out


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


def save_trajectories(folder: Path, trajectories: list[Trajectory]) -> None:
    """Write ``trajectories.jsonl`` with its checksum."""
    (folder / "trajectories.jsonl").unlink(missing_ok=True)
    write_trajectories(folder / "trajectories.jsonl", trajectories)
    write_checksums(folder)


def load_trajectories(stage) -> list[Trajectory]:
    """The training set of notebook 03, or, if that was not run, the oracle's part of it, made again in seconds."""
    try:
        folder = stage.artefact("03_trajectories", "trajectories")
    except KitError:
        from ..agent.engines.loading import load_tokenizer

        print("notebook 03 was not run: training on the oracle's trajectories alone, made again here")
        tokenizer = load_tokenizer(stage.base_model())
        tasks = training_tasks(stage.profile, stage.profile.trajectories.oracle)
        return keep_good(oracle_trajectories(tasks, tokenizer, stage.profile).trajectories).kept
    return read_trajectories(folder / "trajectories.jsonl")
