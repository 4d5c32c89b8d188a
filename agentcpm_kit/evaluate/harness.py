"""An evaluation in a folder: transcripts are played and stored, and scored apart from that, as often as one likes.

    config.json        what the transcripts depend on; a folder goes on only under the same
    transcripts.jsonl  a trajectory per (task, run), appended as it ends, without its tokens; the first that is no fault counts
    verdicts.jsonl     what judges said, see `judge`
    rows.jsonl         a line per (task, run) that was planned, whatever became of it
    metrics.json, tasks.csv, transcripts.html, and comparison.json where there was another to compare with

Killed at any moment, the same command plays what is missing, faults again, and nothing twice. Rows are made from the plan,
not from what is there: a (task, run) without a result is a miss with a line of its own, so that nothing can leave the
denominator unseen (the reference drops it).
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ..agent.context import ContextPolicy
from ..agent.engines import Engine
from ..agent.episode import ToolFactory, episode_names, play_episodes, world_tools
from ..agent.trajectory import Trajectory, stream_trajectories
from ..errors import KitError
from ..files import appending, jsonl, whole_lines, write_atomic, write_json
from ..profile import Profile
from ..sections import Limits
from ..world.tasks import Task
from .accounts import account
from .scorers import by_rule
from .tasks import Suite

TRANSCRIPTS = "transcripts.jsonl"
REFUSED = "refused"  # a kind of `EngineFault`
MAY_CHANGE = "served_at"  # of a folder's settings: a server may move, and what it answers stays


class Outcome(StrEnum):
    """What became of one run of one task. All but the first are misses in every rate."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNSCORED = "unscored"  # a fault of tool, engine or judge: not known, and counted apart
    MISSING = "missing"  # planned, and never played to its end


@dataclass(frozen=True)
class Plan:
    """`runs` of each task of a suite. `settings` is whatever else the transcripts depend on (model, limits, tools)."""

    suite: Suite
    runs: int
    seed: int
    settings: dict

    @property
    def names(self) -> dict[str, tuple[int, int]]:
        """Episode -> (position of its task, run), run by run."""
        return {name: (position, run) for run in range(self.runs)
                for position, name in enumerate(episode_names(list(self.suite.tasks), self.seed, run))}

    def config(self) -> dict:
        return json.loads(json.dumps({"suite": self.suite.name, "tasks": len(self.suite.tasks), "tasks_sha256": self.suite.digest,
                                      "seed": self.seed, **self.settings}))


@contextmanager
def opened(out: Path, plan: Plan) -> Iterator[None]:
    """Begin a folder, or go on with it, alone.

    Raises:
        KitError: it was begun with other settings (the first that differs is named), or another process is at work in it.
    """
    from filelock import FileLock, Timeout

    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            if begun(out):
                _require_same(out, plan.config())
            write_json(out / "config.json", plan.config())
            yield
    except Timeout as error:
        raise KitError(f"another process is at work in {out}; wait for it, or give another --out") from error
    except OSError as error:
        raise KitError(f"{out} cannot be written: {error.strerror}") from error


def begun(out: Path) -> bool:
    """Whether a folder holds a transcript."""
    path = out / TRANSCRIPTS
    return path.is_file() and next(whole_lines(path), None) is not None


def require_recorded(folder: Path, plan: Plan) -> None:
    """
    Raises:
        KitError: what was recorded in the folder was played under other settings; the first that differs is named.
    """
    _require_same(folder, plan.config(), remedy="replay it with the options of its recording")


def _require_same(out: Path, now: dict, keys: Iterable[str] = (), remedy: str = "give another --out") -> None:
    try:
        before = json.loads((out / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise KitError(f"{out} has transcripts and no config.json that tells of what; {remedy}") from error
    if before.get("tasks_sha256") != now["tasks_sha256"]:
        raise KitError(f"{out} was begun with other tasks: another file, --limit, or the file was changed; {remedy}")
    for key in keys or before | now:
        if key != MAY_CHANGE and before.get(key) != now.get(key):
            raise KitError(f"{out} was begun with {key} {before.get(key)!r}, not {now.get(key)!r}; {remedy}")


def require_stored(out: Path, plan: Plan) -> dict:
    """The settings that a folder's transcripts were played under.

    Raises:
        KitError: the folder has no transcripts, of other tasks, or of fewer runs than are to be scored.
    """
    there = endings(out)
    if not there:
        raise KitError(f"{out} holds no transcripts to score; leave --score-only out to play them")
    _require_same(out, plan.config(), ("tasks_sha256", "seed"), "score it with the options that it was played with")
    if (stored := len({t.run for t in there.values()})) < plan.runs:
        raise KitError(f"{plan.runs} runs of each task are asked for, {stored} are stored; leave --score-only out to play more")
    return json.loads((out / "config.json").read_text())


def generate(out: Path, plan: Plan, engine: Engine, tools: ToolFactory, limits: Limits, context: ContextPolicy | None = None,
             on_end: Callable[[Trajectory], None] | None = None, retries: int = 1) -> None:
    """Play what the folder lacks. Episodes that end as faults are played again, `retries` times in this call.

    Those that a server refused are not: it would do so again. The next call tries them, when the key or the address is mended.
    """
    names, tasks, runs = plan.names, list(plan.suite.tasks), range(plan.runs)
    for attempt in range(retries + 1):
        done = {name for name, t in endings(out).items() if not t.end_reason.is_fault or attempt and t.fault == REFUSED}
        if names.keys() <= done:
            return
        with appending(out / TRANSCRIPTS) as file:
            for trajectory in play_episodes(tasks, engine, tools, limits, context, plan.seed, runs, done):
                if on_end:
                    on_end(trajectory)
                file.write(trajectory.model_copy(update={"contexts": []}).model_dump_json().encode() + b"\n")
                file.flush()


def transcripts(out: Path, of: Callable[[Trajectory], Trajectory] = lambda t: t) -> dict[str, Trajectory]:
    """Episode -> what `of` keeps of its trajectory: the first that is no fault, else the last.

    Raises:
        KitError: a line before the last is no trajectory; it is named.
    """
    path, found = Path(out) / TRANSCRIPTS, {}
    try:
        for trajectory in stream_trajectories(path) if path.is_file() else []:
            before = found.get(trajectory.episode)
            if before is None or before.end_reason.is_fault:
                found[trajectory.episode] = of(trajectory)
    except ValueError as error:
        raise KitError(f"{out}: {error}; delete that line, and the run is played again") from error
    return found


def endings(out: Path) -> dict[str, Trajectory]:
    """The same without the texts, which may not fit into memory: all that counting and scoring need."""
    return transcripts(out, Trajectory.without_texts)


Verdict = tuple[bool | None, str]  # and where there is none, why
Score = Callable[[list[tuple[Trajectory, Task]]], list[Verdict]]


def score(out: Path, plan: Plan, scorer: Score) -> list[dict]:
    """Score what is stored, and write rows.jsonl: a line for every (task, run) of the plan, in its order."""
    there, tasks, names = endings(out), plan.suite.tasks, plan.names
    played = {name: there[name] for name in names if name in there and not there[name].end_reason.is_fault}
    verdicts = dict(zip(played, scorer([(t, tasks[names[name][0]]) for name, t in played.items()]), strict=True))
    rows = [_row(tasks[position], run, there.get(name), verdicts.get(name))
            for name, (position, run) in sorted(names.items(), key=lambda item: item[1])]
    write_atomic(out / "rows.jsonl", jsonl(rows))
    return rows


def _row(task: Task, run: int, trajectory: Trajectory | None, said: Verdict | None) -> dict:
    row = {"task_id": task.task_id, "family": task.family, "level": task.level, "run": run}
    if trajectory is None:
        return {**row, "outcome": Outcome.MISSING.value}
    verdict, why = said or (None, trajectory.fault)
    outcome = {True: Outcome.CORRECT, False: Outcome.WRONG, None: Outcome.UNSCORED}[verdict]
    return {**row, "outcome": outcome.value, "end_reason": trajectory.end_reason.value, "fault": why if verdict is None else "",
            "answer": trajectory.answer, **account(trajectory)}


def run_plan(out: Path, plan: Plan, engine: Engine, profile: Profile,
             on_end: Callable[[Trajectory], None] | None = None) -> list[dict]:
    """Play a plan with the atlas's own tools, under a profile's limits and context policy, and score it by rule; its rows."""
    with opened(out, plan):
        generate(out, plan, engine, world_tools(), profile.limits, ContextPolicy.of(profile), on_end)
    return score(out, plan, rule())


def rule(tolerance: float = 0.0) -> Score:
    """The scorer that asks nobody."""
    return lambda pairs: [(right, "") for right in by_rule(pairs, tolerance)]


def faults(rows: Iterable[dict]) -> dict[str, int]:
    """Class -> how many runs it left unscored."""
    return dict(Counter(row["fault"] for row in rows if row["outcome"] == Outcome.UNSCORED).most_common())
