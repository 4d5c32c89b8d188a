"""The table that a run ends with."""

import json
from pathlib import Path

from .claims import judge_claims, metric_text
from .results import finished_stages


def print_summary(profile_folder: Path) -> None:
    """Claims and verdicts of every seed, in the terminal."""
    from rich.console import Console
    from rich.table import Table

    stages = finished_stages(profile_folder)
    for seed in dict.fromkeys(s.seed for s in stages):
        metrics = {s.name: s.metrics for s in stages if s.seed == seed}
        table = Table("claim", "measured here: value [95% interval], n", "verdict", title=f"{profile_folder.name}, {seed}")
        for claim in judge_claims(lambda name, known=metrics: known.get(name, {})):
            measured = "\n".join(f"{name}: {metric_text(m)}" for name, m in claim["metrics"].items())
            table.add_row(claim["claim"], measured, claim["verdict"])
        Console().print(table)
        if not _is_result(stages[0].folder):
            Console().print(f"profile {profile_folder.name}: not a result", style="bold red")


def _is_result(folder: Path) -> bool:
    return json.loads((folder / "config.json").read_text())["profile"]["is_result"]
