"""How long a run will take on this machine: its work is counted from the profile, and a calibration times a little of it.

Work is counted in rows trained, episodes played and models opened; rows and episodes are as long as the scripted oracle's
trajectories in the model's own tokens. Our assumption: agents play about as long as the oracle does. What that is worth is
seen afterwards: the runner shows the estimate beside the truth, stage by stage.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from .agent.engines import Engine, EngineFault, Turn, generate_turns, load_model, open_engine
from .agent.trajectory import Trajectory
from .errors import KitError
from .profile import Profile, load_profile, repo_root, set_seed
from .sections import Adapter
from .train.data import IGNORED, oracle_trajectories, training_rows, training_tasks
from .train.loading import rows_at_once, with_adapter
from .train.rollouts import tasks_needed
from .world.tasks import FAMILIES

LONG = 60  # minutes on two cores, by the profile: shorter runs are not worth a calibration
SECONDS = 3.0  # that each kind of training is timed for, at least
ROWS = 4  # trajectories that it is timed on
READERS, WRITTEN = 32, 16  # conversations that are timed at once, and tokens that each writes at most
CUT = 8  # tokens: about an answer
KEPT = 0.5  # share of sampled episodes that rejection keeps; our assumption
SHORT = 0.1  # of an episode: the answer to a general item; of a trajectory: a page with its summary is three of these
PAGE = 0.3
LONGER = 4.0  # episodes: one of the eight families, whose pages are long


@dataclass(frozen=True)
class Work:
    """Of one stage. `adapted` rows go through RL's adapter, `rows` through SFT's."""

    rows: float = 0.0
    adapted: float = 0.0
    episodes: float = 0.0
    models: int = 0

    def seconds(self, speed: "Speed") -> float:
        return (self.rows * speed.row_s + self.adapted * speed.adapted_s + self.episodes * speed.episode_s
                + self.models * speed.model_s)


@dataclass(frozen=True)
class Speed:
    """Seconds for one of each, on this machine."""

    row_s: float
    adapted_s: float
    episode_s: float
    model_s: float


def planned(profile: Profile) -> dict[str, Work]:
    """The work of each stage that trains or plays, with the notebooks' own defaults."""
    e, t, merge = profile.evaluation, profile.trajectories, profile.merge
    hops, items, sampled = len(e.hops), SHORT * e.general_items, t.rejection_tasks * t.rejection_samples
    test, watched = e.tasks * hops, merge.validation_tasks * hops + items / 2
    learned, checks = (t.oracle + KEPT * sampled) * profile.sft.epochs, profile.sft.checks + 1
    return {"02_episode": Work(episodes=test, models=1),
            "03_trajectories": Work(t.cold_start * t.cold_start_epochs, episodes=sampled, models=2),
            "04_sft": Work(learned, episodes=2 * (test + items) + checks * watched, models=5 + checks),
            "05_merge": _merging(profile, watched, test + items / 2, learned),
            "06_denoise": Work(episodes=2 * min(8 * profile.rl.questions_per_step, tasks_needed(profile)) * profile.rl.group_size,
                               models=1),
            "07_rl": _rl(profile, test), "08_refine": _refining(profile),
            "09_passk": Work(episodes=4 * profile.passk.tasks * profile.passk.samples, models=4),
            "10_claims": _table(profile)}


def _merging(profile: Profile, watched: float, tested: float, learned: float) -> Work:
    merge = profile.merge
    tried = (len(merge.methods) * len(merge.weights) * len(merge.densities)  # at most: some have no such knobs
             + len(merge.parts) * len(merge.scales) * merge.runs + 6 + 2)  # six parts given back, and both ends
    again = merge.finalists * merge.runs + 1  # SFT, too
    more = merge.final_tasks * len(profile.evaluation.hops) + SHORT * profile.evaluation.general_items / 2
    tests = 3 + 2 * (merge.runs - 1)
    return Work(learned * (merge.runs - 1), episodes=tried * watched + again * more + tests * tested,
                models=2 * tried + again + tests)  # a merge costs about as much as opening a model


def _rl(profile: Profile, usual: int) -> Work:
    rl, arms = profile.rl, 3
    rollouts, tests = rl.questions_per_step * rl.group_size, 2 * profile.evaluation.tasks * len(rl.hops)
    watched = -(-rl.steps // rl.eval_every) * rl.validation_tasks * len(rl.hops)
    learned = arms * rl.steps * max(rollouts / 2, rl.rows_per_update)
    played = arms * (rl.steps * rollouts + watched) + (arms + 1) * (2 * tests + usual)
    kind = {"adapted": learned} if rl.lora_rank else {"rows": learned}
    return Work(**kind, episodes=played, models=arms + 3 * (arms + 1))


def _refining(profile: Profile) -> Work:
    refine, summariser = profile.refine, profile.refine.summariser
    cells = len(refine.redundancies) * refine.tasks
    pages = 2 * 4 * cells  # two summarisers: what is sought, what is not there, and two pages of each episode
    return Work(PAGE * summariser.pairs * summariser.epochs, episodes=6 * cells + PAGE * pages, models=6)


def _table(profile: Profile) -> Work:
    tasks, samples, models = profile.families.tasks, profile.families.samples, 4
    return Work(episodes=models * (LONGER * len(FAMILIES) * tasks * samples + 4 * tasks), models=models)


def calibrate(profile: Profile) -> Speed:
    """Time the base model for some twenty seconds: opening it, training it with the profile's adapters, and playing.

    Raises:
        KitError: the model is not here, or its engine does not start.
    """
    set_seed(0, profile.threads)
    base = repo_root() / profile.model.base
    started = time.perf_counter()
    with open_engine(base, profile) as engine:
        model_s = time.perf_counter() - started
        played = oracle_trajectories(training_tasks(profile, READERS), engine.tokenizer, profile).trajectories
        episode_s = _episode_s(engine, played)
    rows, rollouts = training_rows(played)[:ROWS], profile.rl.questions_per_step * profile.rl.group_size
    return Speed(_row_s(base, profile, profile.sft, rows, profile.sft.batch_size),
                 _row_s(base, profile, profile.rl, rows, rollouts), episode_s, model_s)


def _episode_s(engine: Engine, played: list[Trajectory]) -> float:
    """Reading a whole trajectory's tokens once, and writing its sampled ones."""
    def asked(number: int, tokens: int) -> tuple[float, int]:
        """Seconds, and tokens that were written. Contexts end in the midst of a turn, so that there is something to write."""
        turns = [Turn(f"{number} {i}", t.context.token_ids[number: -CUT], f"{number} {i}", tokens) for i, t in enumerate(played)]
        started = time.perf_counter()
        found = generate_turns(engine, turns)
        seconds = time.perf_counter() - started
        if fault := next((sample for sample in found if isinstance(sample, EngineFault)), None):
            raise KitError(f"the engine failed: {fault}")
        return seconds, sum(len(sample.ids) for sample in found)

    asked(0, 1)  # the first call warms up
    (read, few), (both, many) = asked(1, 1), asked(2, 1 + WRITTEN)
    token_s = max(0.0, both - read) / max(1, many - few)
    return read / len(played) + token_s * mean(t.tokens_generated for t in played)


def _row_s(base: Path, profile: Profile, settings: Adapter, rows: list[dict], update: int) -> float:
    """Forward and backward through one trajectory, in passes of as many as are trained at once of an update's."""
    import torch

    model = with_adapter(load_model(base, profile.model.dtype)[0], settings, 0).train()
    size = min(len(rows), rows_at_once(update, profile))

    def train() -> None:
        for i in range(0, len(rows), size):
            few = rows[i: i + size]
            width = max(len(row["input_ids"]) for row in few)
            ids, labels = (torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in few], device=model.device)
                           for key, fill in (("input_ids", 0), ("labels", IGNORED)))
            model(input_ids=ids, labels=labels).loss.backward()

    return _timed(train) / len(rows)


def _timed(action: Callable[[], None]) -> float:
    """Mean seconds of an action, which is first done once unwatched."""
    action()
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < SECONDS:
        action()
        count += 1
    return passed / count


def estimate(profile: Profile) -> dict[str, dict[str, float]]:
    """``seconds`` of each stage that trains or plays, and the ``speed`` that they were computed with.

    Timed in a process of its own, whose memory is free again when the run begins.

    Raises:
        KitError: as `calibrate`.
    """
    done = subprocess.run([sys.executable, "-m", __name__, profile.name], capture_output=True, text=True)
    if done.returncode:
        raise KitError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "timing this machine failed")
    speed = Speed(**json.loads(done.stdout.splitlines()[-1]))
    return {"speed": asdict(speed), "seconds": {name: round(work.seconds(speed)) for name, work in planned(profile).items()}}


if __name__ == "__main__":
    try:
        measured = calibrate(load_profile(sys.argv[1]))
    except KitError as error:
        sys.exit(str(error))
    print(json.dumps(asdict(measured)))
