"""Reads what runs wrote: the stages of results/<profile>/, per seed."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..evaluate.metrics import mean
from ..pipeline import default_parameters
from ..profile import load_profile, repo_root, results_root
from ..stage import input_hash, is_done, notebooks, stages_read

REPORTED = ("micro", "small")  # profiles whose runs are committed, and shown beside each other


@dataclass(frozen=True)
class StageResult:
    """One finished stage. `path` is relative to the profile's folder ("seed0/04_sft")."""

    name: str
    seed: str
    path: str
    folder: Path

    def read(self, name: str) -> dict:
        file = self.folder / name
        return json.loads(file.read_text()) if file.is_file() else {}

    @property
    def metrics(self) -> dict[str, dict]:
        return self.read("metrics.json")

    @property
    def parameters(self) -> dict:
        """The notebook's parameters that were not its defaults."""
        default = default_parameters(self.name) if self.name in notebooks() else {}
        used = self.read("config.json").get("parameters", {})
        return {name: value for name, value in used.items() if value != default.get(name)}

    @property
    def is_current(self) -> bool:
        """Finished, with today's code, settings and data, and after the results that now stand in the stages that it reads."""
        config = self.read("config.json")
        if not config or self.name not in notebooks():
            return False
        now = input_hash(self.name, load_profile(config["profile"]["name"]), config["seed"], config["parameters"])
        return is_done(self.folder, now)

    @property
    def figures(self) -> list[Path]:
        return sorted((self.folder / "figures").glob("*.png"))


def reference_folder(profile: str) -> Path:
    return repo_root() / "results/reference" / profile


def committed(profile: str) -> list[StageResult]:
    """The finished stages that the kit comes with, by stage and then seed."""
    return finished_stages(reference_folder(profile))


def with_reference(profile: str) -> list[StageResult]:
    """Finished stages of this machine's runs, and the committed ones of those seeds and stages that were not run here."""
    found = committed(profile) + finished_stages(results_root() / profile)
    return _ordered({stage.path: stage for stage in found}.values())


def over_seeds(stages: Iterable[StageResult]) -> dict[str, dict[str, dict]]:
    """Stage -> metric -> mean over seeds with Student's 95% interval (``over``: "seeds"), where several seeds have it.

    A metric that one seed alone has keeps its own interval, over tasks or items.
    """
    found: dict[str, dict[str, list[dict]]] = {}
    for stage in stages:
        for name, metric in stage.metrics.items():
            found.setdefault(stage.name, {}).setdefault(name, []).append(metric)
    return {stage: {name: _combined(each) for name, each in metrics.items()} for stage, metrics in found.items()}


def _combined(metrics: list[dict]) -> dict:
    if len(metrics) == 1:
        return metrics[0]
    return {**mean([m["value"] for m in metrics]).fields(), "unit": metrics[0]["unit"], "over": "seeds"}


def out_of_date(stages: list[StageResult]) -> list[StageResult]:
    """Those that `agentcpm-kit run` would make anew: not current, or after one of the same seed that is not."""
    old: list[StageResult] = []
    for stage in sorted(stages, key=lambda s: s.name):
        before = stages_read(stage.name) if stage.name in notebooks() else []
        if not stage.is_current or any((s.name in before, s.seed) == (True, stage.seed) for s in old):
            old.append(stage)
    return old


def finished_stages(profile_folder: Path) -> list[StageResult]:
    """All stages with a metrics.json, by stage and then seed."""
    found = [StageResult(p.parent.name, p.parent.parent.name, f"{p.parent.parent.name}/{p.parent.name}", p.parent)
             for p in profile_folder.glob("seed*/[0-9][0-9]_*/metrics.json")]
    return _ordered(found)


def _ordered(stages: Iterable[StageResult]) -> list[StageResult]:
    return sorted(stages, key=lambda s: (s.name, int(s.seed.removeprefix("seed"))))
