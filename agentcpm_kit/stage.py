"""A stage: one notebook, its folder of results, and when it has to be done again.

``results/<profile>/seed<N>/<NN_stage>/`` holds config.json, env.json, rows.jsonl, metrics.json, figures/,
notebook.ipynb and DONE. DONE is written last and holds the hash of the stage's inputs, so a re-run skips what is
done and redoes what changed.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import time
from functools import cached_property
from pathlib import Path

from .artefacts import CHECKSUMS, verify_checkpoint
from .environment import describe
from .errors import KitError, unknown
from .files import append_jsonl, read_jsonl, write_atomic, write_json
from .profile import Profile, load_profile, repo_root, results_root, set_seed

RUNNER_VARIABLE = "AGENTCPM_KIT_RUNNER"  # set by `pipeline`: it saves the notebook and then writes DONE itself
NOT_A_RESULT = "not a result"
MARKER = ".inputs"  # the hash of the inputs that the work in a stage's folder was begun with
# Modules that cannot change a number; all others are inputs of every stage.
NO_INPUT = ("cli.py", "pipeline.py", "monitor.py", "estimate.py", "fetch.py", "doctor.py", "environment.py", "tracking.py",
            "report", "ask.py")


def notebooks() -> dict[str, Path]:
    """Stage name ("04_sft") -> notebook, in order."""
    return {path.stem: path for path in sorted((repo_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))}


def stage_folder(profile: str, seed: int, name: str) -> Path:
    return results_root() / profile / f"seed{seed}" / name


def is_done(folder: Path, input_hash: str) -> bool:
    done = folder / "DONE"
    return done.is_file() and done.read_text().strip() == input_hash


def is_begun(folder: Path, input_hash: str) -> bool:
    marker = folder / MARKER
    return marker.is_file() and marker.read_text() == input_hash


def previous_folder(folder: Path) -> Path:
    """Where a stage's finished result waits until another one takes its place."""
    return folder.parent / ".previous" / folder.name


def set_aside(folder: Path) -> None:
    """Make room for a stage that starts anew: a finished result waits, so that a run that fails loses none; other work goes."""
    (folder / "partial.ipynb").unlink(missing_ok=True)
    if (folder / "DONE").is_file():
        _move(folder, previous_folder(folder))
    shutil.rmtree(folder, ignore_errors=True)


def take_back(folder: Path, input_hash: str) -> None:
    """Put the result that was set aside in its place again, if it is what is asked for, and no newer work on that is there."""
    newer = is_begun(folder, input_hash) or (folder / "DONE").is_file()
    if is_done(previous_folder(folder), input_hash) and not newer:
        _move(previous_folder(folder), folder)


def _move(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    source.rename(target)


def mark_done(folder: Path, input_hash: str) -> None:
    """Write DONE; the result before this one is dropped."""
    write_atomic(folder / "DONE", input_hash + "\n")
    shutil.rmtree(previous_folder(folder), ignore_errors=True)


def stages_read(name: str) -> list[str]:
    """Names of the stages whose results a notebook reads."""
    return json.loads(notebooks()[name].read_text())["metadata"].get("agentcpm", {}).get("reads", [])


def input_hash(name: str, profile: Profile, seed: int, params: dict) -> str:
    """SHA-256 over all that a stage's numbers depend on: settings, code, data, and the stages that it reads."""
    notebook = json.loads(notebooks()[name].read_text())
    settings = profile.model_dump(exclude={"model": {"served", "vllm_memory"}})  # where a model is served changes nothing
    digest = hashlib.sha256(json.dumps([settings, seed, params], sort_keys=True).encode())
    for value in params.values():
        if isinstance(value, str) and value and (repo_root() / value).is_file():  # a reader's own data
            digest.update((repo_root() / value).read_bytes())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            digest.update("".join(cell["source"]).encode())
    digest.update(_code_and_data_hash().encode())
    checksums = repo_root() / profile.model.base / CHECKSUMS  # one in data/ is counted there already, and one of the hub has none
    if not profile.model.base.startswith("data/") and checksums.is_file():
        digest.update(checksums.read_bytes())
    for earlier in stages_read(name):
        done = stage_folder(profile.name, seed, earlier) / "DONE"
        digest.update(f"{earlier} {done.read_text() if done.is_file() else ''}".encode())
    return digest.hexdigest()


def _code_and_data_hash() -> str:
    package, digest = repo_root() / "agentcpm_kit", hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in NO_INPUT and path.name not in NO_INPUT:
            digest.update(path.relative_to(package).as_posix().encode() + b"\n" + path.read_bytes())
    for path in sorted((repo_root() / "data").rglob("SHA256SUMS")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def open_stage(name: str, profile: str = "micro", seed: int = 0, **params) -> "Stage":
    """Open the stage of a notebook: seed everything, prepare its folder, write config.json and env.json.

    A stage that is done starts anew; one that was killed half way keeps its rows and checkpoints, so long work
    resumes; if any input changed, everything in the folder is cleared. A finished result is set aside in ``.previous/``
    until the new one is there.

    Raises:
        KitError: unknown stage or profile, or the folder cannot be written.
    """
    if name not in notebooks():
        raise unknown("stage", name, notebooks())
    settings = load_profile(profile)
    set_seed(seed, settings.threads)
    stage = Stage(name, settings, seed, params)
    stage.prepare()
    return stage


class Stage:
    """What a notebook reads its settings from and writes its results to."""

    def __init__(self, name: str, profile: Profile, seed: int, params: dict):
        self.name, self.profile, self.seed, self.params = name, profile, seed, params
        self.folder = stage_folder(profile.name, seed, name)
        self.hash = input_hash(name, profile, seed, params)
        self.metrics: dict[str, dict] = {}
        self.artefacts: dict[str, str] = {}
        self._last_progress = 0.0

    def prepare(self) -> None:
        if (self.folder / "DONE").is_file() or not is_begun(self.folder, self.hash):
            check_writable(self.folder.parent)
            set_aside(self.folder)
        check_writable(self.folder)
        write_atomic(self.folder / MARKER, self.hash)
        self._started = time.time()
        self._write_config()
        write_json(self.folder / "env.json", describe(self.seed))

    def _write_config(self) -> None:
        write_json(self.folder / "config.json", {"stage": self.name, "seed": self.seed, "parameters": self.params,
                                                 "artefacts": self.artefacts, "profile": self.profile.model_dump()})

    @cached_property
    def tracker(self):
        from .tracking import Tracker

        return Tracker(self)

    def row(self, kind: str, **fields) -> None:
        """Append one line to rows.jsonl."""
        append_jsonl(self.folder / "rows.jsonl", {"kind": kind, **fields})

    def rows(self, kind: str | None = None) -> list[dict]:
        return [r for r in read_jsonl(self.folder / "rows.jsonl") if kind in (None, r["kind"])]

    def curve(self, name: str) -> list[dict]:
        """The points of one curve that the tracker logged, by step: a resumed run logs some again, and the last one counts."""
        return _curve(self.folder, name)

    def curve_of(self, stage: str, name: str) -> list[dict]:
        """The same of an earlier stage of this run; [] where it was not run."""
        return _curve(stage_folder(self.profile.name, self.seed, stage), name)

    def metric(self, name: str, value: float, n: int, ci_low: float | None = None, ci_high: float | None = None,
               unit: str = "") -> None:
        """Record a metric for metrics.json; intervals are 95%, null where there is none.

        Raises:
            ValueError: the value is not a finite number.
        """
        if not math.isfinite(value):
            raise ValueError(f"metric {name} is {value}: a result that is not a number is not a result")
        low, high = (None if x is None or not math.isfinite(x) else float(x) for x in (ci_low, ci_high))
        self.metrics[name] = {"value": float(value), "n": int(n), "ci_low": low, "ci_high": high, "unit": unit}

    def estimate(self, name: str, estimate, unit: str = "share") -> None:
        """Record a `metrics.Estimate`."""
        self.metric(name, **estimate.fields(), unit=unit)

    def figure(self, figure, name: str, caption: str) -> Path:
        """Save figures/<name>.png (at most 100 kB) with its caption; a cell shows it by naming it.

        A smoke run is marked on the figure itself.
        """
        from .report.figures import save_figure

        if not self.profile.is_result:
            figure.text(0.5, 0.5, NOT_A_RESULT, fontsize=22, color="red", alpha=0.3, ha="center", va="center", rotation=20)
        path = save_figure(figure, self.folder / "figures" / f"{name}.png")
        captions = path.parent / "captions.json"
        known = json.loads(captions.read_text()) if captions.is_file() else {}
        write_json(captions, known | {name: caption})
        return path

    def progress(self, done: float, total: float, what: str = "") -> None:
        """Tell the runner how far the stage is; twice a second at most."""
        if time.time() - self._last_progress > 0.5 or done >= total:
            self._last_progress = time.time()
            write_json(self.folder / "progress.json", {"done": done, "total": total, "what": what})
            if not os.environ.get(RUNNER_VARIABLE):
                print(f"\r{what}: {done} of {total} ", end="" if done < total else "\n", file=sys.stderr, flush=True)

    def checkpoint(self, name: str) -> Path:
        """Where this stage keeps a model of the given name."""
        return self.folder / "checkpoints" / name

    def artefact(self, stage: str, name: str, shipped: str | None = None) -> Path:
        """A checkpoint of an earlier stage of this run, else the one that the kit ships; verified and recorded.

        Raises:
            KitError: neither is there; names the notebook that makes it. Or its files differ from their checksums.
        """
        own, spare = self._of_this_run(stage, name), repo_root() / shipped if shipped and self._is_micro else None
        if own:
            path, origin = own, f"{stage} of this run"
        elif spare and spare.is_dir():
            path, origin = spare, f"shipped with the kit ({shipped})"
        else:
            raise KitError(f"no checkpoint {name!r} of stage {stage} for profile {self.profile.name}, seed {self.seed}; "
                           f"run notebooks/{stage}.ipynb or `agentcpm-kit run --profile {self.profile.name} "
                           f"--stages {stage[:2]}` first")
        verify_checkpoint(path)
        self.artefacts[f"{stage}/{name}"] = origin
        self._write_config()
        print(f"{name}: {origin}")
        return path

    def _of_this_run(self, stage: str, name: str) -> Path | None:
        """A checkpoint of an earlier stage, if that is finished and the checkpoint is still there."""
        earlier = stage_folder(self.profile.name, self.seed, stage)
        found = earlier / "checkpoints" / name
        return found if (earlier / "DONE").is_file() and found.is_dir() else None

    def parameters_of(self, stage: str, name: str) -> dict:
        """With which notebook parameters the checkpoint `name` of an earlier stage of this run was made.

        Empty if it is not there: a shipped one, which then stands in, was made with the notebook's own defaults.
        """
        found = self._of_this_run(stage, name)
        return json.loads((found.parents[1] / "config.json").read_text())["parameters"] if found else {}

    @property
    def _is_micro(self) -> bool:
        """The kit ships checkpoints of micro-qwen3 alone; they must not stand in for another model's."""
        return self.profile.model.base == "data/models/micro-base"

    def base_model(self) -> Path:
        """The profile's base model.

        Raises:
            KitError: it is not on this machine.
        """
        base = repo_root() / self.profile.model.base
        if not (base / "config.json").is_file():
            raise KitError(f"profile {self.profile.name} needs the model {self.profile.model.base}, which is not here; "
                           "`agentcpm-kit doctor` tells how to get it")
        return base

    def finish(self) -> None:
        """Write metrics.json, complete env.json, and, unless a runner does, DONE."""
        write_json(self.folder / "metrics.json", self.metrics)
        env = json.loads((self.folder / "env.json").read_text())
        write_json(self.folder / "env.json", env | {"wall_s": round(time.time() - self._started, 1)})
        if "tracker" in self.__dict__:
            self.tracker.finish(self.metrics)
        if not os.environ.get(RUNNER_VARIABLE):
            mark_done(self.folder, self.hash)


def _curve(folder: Path, name: str) -> list[dict]:
    points = {row["step"]: row for row in read_jsonl(folder / "rows.jsonl") if row["kind"] == "step" and row["curve"] == name}
    return [points[step] for step in sorted(points)]


def metrics_or_reference(profile: str, seed: int) -> tuple[dict[str, dict], dict[str, str]]:
    """Metrics of every stage of this run, the committed reference run where one was not done; and which was taken."""
    metrics, origins = {}, {}
    reference = repo_root() / "results/reference" / profile / f"seed{seed}"
    for name in notebooks():
        own = stage_folder(profile, seed, name)
        for origin, folder in (("this run", own), ("reference run shipped with the kit", reference / name)):
            done = origin != "this run" or (own / "DONE").is_file()
            if done and (folder / "metrics.json").is_file():
                metrics[name] = json.loads((folder / "metrics.json").read_text())
                origins[name] = origin
                break
    return metrics, origins


def check_writable(folder: Path, need_gb: float = 0.0) -> None:
    """Make `folder`, and say now rather than later if it cannot be written or the disk is too full.

    Raises:
        KitError: either is so.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        raise KitError(f"cannot write to {folder}: {error.strerror}; choose another folder with --out") from error
    free = shutil.disk_usage(folder).free / 1e9
    if free < need_gb:
        raise KitError(f"{folder} has {free:.1f} GB free and {need_gb:.1f} GB are needed; free some or use --out")
