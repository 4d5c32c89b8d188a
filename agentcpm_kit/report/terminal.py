"""The table that a run ends with."""

import json
from pathlib import Path

from .claims import judge_claims, metric_text
from .results import finished_stages, out_of_date, over_seeds


def print_summary(profile_folder: Path) -> None:
    """Claims and verdicts of every seed, and over seeds where there are several, in the terminal."""
    from rich.console import Console
    from rich.table import Table

    stages = finished_stages(profile_folder)
    seeds = {seed: [s for s in stages if s.seed == seed] for seed in dict.fromkeys(s.seed for s in stages)}
    for seed, found in {**seeds, **({"over seeds": stages} if len(seeds) > 1 else {})}.items():
        metrics = over_seeds(found)
        table = Table("claim", "measured here: value [95% interval], n", "verdict", title=f"{profile_folder.name}, {seed}")
        for claim in judge_claims(lambda name, known=metrics: known.get(name, {})):
            measured = "\n".join(f"{name}: {metric_text(m)}" for name, m in claim["metrics"].items())
            table.add_row(claim["claim"], measured, claim["verdict"])
        Console().print(table)
        if not _is_result(stages[0].folder):
            Console().print(f"profile {profile_folder.name}: not a result", style="bold red")
    if old := [f"{s.name} (seed {s.seed.removeprefix('seed')})" for s in out_of_date(stages)]:
        Console().print(f"unfinished or out of date, since code, settings or an earlier stage have changed: {', '.join(old)}",
                        soft_wrap=True)


def _is_result(folder: Path) -> bool:
    return json.loads((folder / "config.json").read_text())["profile"]["is_result"]
