"""Reads what runs wrote: the stages of results/<profile>/, per seed."""

import json
from dataclasses import dataclass
from pathlib import Path


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
    def figures(self) -> list[Path]:
        return sorted((self.folder / "figures").glob("*.png"))


def finished_stages(profile_folder: Path) -> list[StageResult]:
    """All stages with a metrics.json, by stage and then seed."""
    found = [StageResult(p.parent.name, p.parent.parent.name, f"{p.parent.parent.name}/{p.parent.name}", p.parent)
             for p in profile_folder.glob("seed*/[0-9][0-9]_*/metrics.json")]
    return sorted(found, key=lambda s: (s.name, int(s.seed.removeprefix("seed"))))
