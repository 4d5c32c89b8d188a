"""``make reference``: keep a finished micro run as committed evidence, and remake what is generated from it.

Copies metrics, rows, figures, config and env of every stage to results/reference/<profile>/, ships the checkpoints
that notebooks fall back to (data/models/micro-*), stores the executed notebooks' outputs in notebooks/, and writes
the tables between the markers of README.md.
"""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import nbformat

from ..artefacts import write_checksums
from ..errors import KitError
from ..files import read_jsonl, write_atomic
from ..profile import repo_root, results_root
from ..world.tasks import FAMILIES
from .claims import judge_claims, metric_text
from .results import StageResult, finished_stages, over_seeds

KEPT = ("config.json", "env.json", "metrics.json", "rows.jsonl")
SHIPPED = {"micro-sft": ("04_sft", "model"), "micro-sft-second": ("05_merge", "second-run"),
           "micro-merge": ("05_merge", "merged"), "micro-rl": ("07_rl", "clean")}
LARGEST_ROWS = 400_000  # bytes; evidence is committed small


def reference_folder(profile: str) -> Path:
    return repo_root() / "results/reference" / profile


def keep_run(profile: str) -> None:
    """Copy every finished stage of every seed, without checkpoints."""
    target = reference_folder(profile)
    stages = finished_stages(results_root() / profile)
    if not stages:
        raise KitError(f"no finished run of {profile} to keep; `agentcpm-kit run --profile {profile}` makes one")
    shutil.rmtree(target, ignore_errors=True)
    for stage in stages:
        out = target / stage.path
        out.mkdir(parents=True)
        for name in KEPT:
            source = stage.folder / name
            if source.is_file() and source.stat().st_size <= LARGEST_ROWS:
                shutil.copy(source, out / name)
        if (stage.folder / "figures").is_dir():
            shutil.copytree(stage.folder / "figures", out / "figures")
    write_atomic(target / "COMMAND", f"agentcpm-kit run --profile {profile} --seed N   "
                 "(parameters that are no defaults: config.json, commit and machine: env.json of each stage)\n")


def ship_checkpoints(profile: str, seed: int = 0) -> None:
    for name, (stage, checkpoint) in SHIPPED.items():
        source = results_root() / profile / f"seed{seed}" / stage / "checkpoints" / checkpoint
        target = repo_root() / "data/models" / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("README.md", "training_args.bin"))
            _as_shipped(target / "mergekit.yaml")
            write_checksums(target)


def _as_shipped(recipe: Path) -> None:
    """Name models from the root of the repository, and a run's checkpoints as they are shipped: mergekit can run it there."""
    if recipe.is_file():
        text = re.sub(r": /\S*?/((data|results)/\S+)", r": \1", recipe.read_text())
        for name, (stage, checkpoint) in SHIPPED.items():
            text = re.sub(rf": \S+/{stage}/checkpoints/{checkpoint}$", f": data/models/{name}", text, flags=re.MULTILINE)
        write_atomic(recipe, text)


def store_outputs(profile: str, seed: int = 0) -> None:
    """Give notebooks/ the outputs of the run, without papermill's own cells and marks."""
    for path in sorted((repo_root() / "notebooks").glob("[0-9]*.ipynb")):
        executed = results_root() / profile / f"seed{seed}" / path.stem / "notebook.ipynb"
        if executed.is_file():
            notebook = nbformat.read(path, as_version=4)
            fill_outputs(notebook, nbformat.read(executed, as_version=4))
            nbformat.write(notebook, path)


def fill_outputs(notebook, executed) -> None:
    """Copy outputs cell by cell; papermill's injected parameters are left out, and counts start at 1."""
    run = [c for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    count = 0
    for cell, other in zip(notebook.cells, run, strict=True):
        if cell.cell_type == "code":
            count += 1
            cell.outputs, cell.execution_count = [_clean(o) for o in other.outputs if _wanted(o)], count


def _wanted(output) -> bool:
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return not widget and output.get("name") != "stderr"


def _clean(output):
    if "execution_count" in output:
        output["execution_count"] = None
    return output


def markdown_table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (head, ["---"] * len(head), *rows))


def claims_table(profile: str) -> str:
    """Markdown table of the committed reference runs: over seeds, where several were kept."""
    metrics = over_seeds(finished_stages(reference_folder(profile)))
    rows = []
    for claim in judge_claims(lambda name: metrics.get(name, {})):
        measured = "<br>".join(f"{name.replace('_', ' ')}: {metric_text(m)}" for name, m in claim["metrics"].items())
        rows.append((claim["claim"], claim["paper"], measured or "-", f"**{claim['verdict']}**"))
    return markdown_table(["claim of the paper", "reported", "measured on micro: value [95% interval], n", "verdict"], rows)


def _merges(profile: str) -> list[StageResult]:
    return [s for s in finished_stages(reference_folder(profile)) if s.name == "05_merge"]


def merging_table(profile: str) -> str:
    """Markdown table of SFT and merging on test worlds, a row per seed and their mean."""
    stages = _merges(profile)
    columns = {"sft_success": "SFT: tasks solved", "sft_general": "general ability", "merge_success": "merge: tasks solved",
               "merge_general": "general ability", "recovered_share": "of the loss recovered", "kept_share": "of success kept"}
    rows = []
    for stage in stages:
        chosen = next(r["candidate"] for r in read_jsonl(stage.folder / "rows.jsonl") if r["kind"] == "chosen")
        rows.append((stage.seed.removeprefix("seed"), *(f"{stage.metrics[c]['value']:.2f}" for c in columns), chosen))
    combined = over_seeds(stages)["05_merge"]
    means = (f"**{metric_text(combined[c]).partition(', n=')[0]}**" for c in columns)
    return markdown_table(["seed", *columns.values(), "chosen on validation worlds"], [*rows, ("mean", *means, "")])


ARMS = {"merge_one_run": "merge of one run and the base", "merge_two_runs": "merge of two runs and the base",
        "mean_two_runs": "mean of two runs, without the base", "lora": "LoRA, scaled", "kl": "SFT held near the base by KL",
        "replay": "SFT with replay"}


def arms_table(profile: str) -> str:
    """Markdown table of SFT and the ways to forget less that every seed tested, means over seeds."""
    return _arms(_merges(profile))


def baselines_table(profile: str) -> str:
    """The same with the baselines that train, of the seeds that were run with ``full``."""
    stages = [s for s in _merges(profile) if s.parameters.get("full")]
    return _arms(stages) if stages else "No seed was run with `-p full=true`."


def _arms(stages: list[StageResult]) -> str:
    measured = over_seeds(stages)["05_merge"]
    columns = {"success": "tasks solved", "general": "general ability", "recovered_share": "of the loss recovered",
               "kept_share": "of success kept"}
    sft = ("SFT", metric_text(measured["sft_success"]), metric_text(measured["sft_general"]), 0, 1)
    arms = [(name, *(metric_text(measured[f"{arm}_{c}"]) for c in columns))
            for arm, name in ARMS.items() if all(f"{arm}_success" in s.metrics for s in stages)]
    return markdown_table(["way", *columns.values()], [sft, *arms])


def settings_table(_profile: str) -> str:
    """Markdown table of benchmarks/sft_settings.py, the best agents first."""
    kinds = [f"{way}{what}" for way in ("", "by parts: ") for what in ("success", "general")]
    found = sorted(read_jsonl(reference_folder("benchmarks") / "sft_settings/rows.jsonl"), key=lambda r: -r["success"])
    rows = [(r["trial"], *(f"{r[kind]:.2f}" for kind in kinds)) for r in found]
    scores = ["tasks solved", "general ability"]
    return markdown_table(["setting of SFT", *scores, *(f"merged by parts: {score}" for score in scores)], rows)


def families_table(profile: str, seed: str = "seed0") -> str:
    """Markdown table of what notebook 01 measured on the eight families."""
    metrics = next(s.metrics for s in finished_stages(reference_folder(profile)) if (s.name, s.seed) == ("01_world", seed))
    rows = [(f"`{family}`", *told, *(metric_text(metrics[f"{how}_{family}"]) for how in ("oracle", "closed_book", "first_hit")))
            for family, told in FAMILIES.items()]
    return markdown_table(["family", "stands in for", "skill", "oracle", "closed book", "first hit"], rows)


def costs_table(_profile: str) -> str:
    """Markdown table of benchmarks/world.py."""
    rows = [(f"{r['pages']:,}", r["build_s"], f"{r['peak_mb']:,}", r["query_median_ms"], r["query_p99_ms"])
            for r in read_jsonl(reference_folder("benchmarks") / "world/rows.jsonl")]
    return markdown_table(["pages", "build with index (s)", "peak memory (MB)", "query, median (ms)", "query, 99% (ms)"], rows)


def rollouts_table(_profile: str) -> str:
    """Markdown table of benchmarks/rollout.py."""
    found = json.loads((reference_folder("benchmarks") / "rollout/rollout.json").read_text())["rows"]
    rows = [(r["what"], r["episodes_per_s"], f"{r['tokens_per_s']:,.0f}", r["kit_is_faster"], f"{r['equal_answers']:.1%}")
            for r in found]
    return markdown_table(["who generates", "episodes/s", "tokens/s", "ours is faster by", "same answers"], rows)


TABLES = {"claims": claims_table, "merging": merging_table, "arms": arms_table, "baselines": baselines_table,
          "settings": settings_table, "families": families_table, "costs": costs_table, "rollouts": rollouts_table}


def with_tables(text: str, profile: str) -> str:
    """README text with every table between its markers made anew."""
    for name, make in TABLES.items():
        start, end = _place(text, name)
        text = f"{text[:start]}\n{make(profile)}\n{text[end:]}"
    return text


def _place(text: str, name: str) -> tuple[int, int]:
    """Where a table stands, between its markers.

    Raises:
        KitError: there are none.
    """
    begin = f"<!-- {name}: made by `make reference` -->"
    start, end = text.find(begin), text.find(f"<!-- end of {name} -->")
    if start < 0 or end < start:
        raise KitError(f"README.md has no markers for the table {name!r}")
    return start + len(begin), end


def write_readme(profile: str) -> None:
    path = repo_root() / "README.md"
    write_atomic(path, with_tables(path.read_text(), profile))


def main(profile: str = "micro") -> None:
    for name in TABLES:  # before any evidence is replaced
        _place((repo_root() / "README.md").read_text(), name)
    keep_run(profile)
    ship_checkpoints(profile)
    store_outputs(profile)
    write_readme(profile)
    print(f"kept in {reference_folder(profile).relative_to(repo_root())}; README and notebooks are up to date")


if __name__ == "__main__":
    main()
