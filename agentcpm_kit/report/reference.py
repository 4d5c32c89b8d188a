"""``make reference``: keep a finished run as committed evidence, and remake what is generated from it.

Copies metrics, rows, figures, config and env of every stage to results/reference/<profile>/, some transcripts beside them, and
writes the tables between the markers of README.md. Of `micro` it also ships the checkpoints that notebooks fall back to
(data/models/micro-*), and stores the executed notebooks' outputs in notebooks/; of others it keeps them with the evidence.
"""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat

from ..artefacts import write_checksums
from ..errors import KitError
from ..files import write_atomic
from ..profile import repo_root, results_root
from .results import finished_stages, reference_folder
from .tables import MODELS, TABLES
from .transcripts import beside_each_other

KEPT = ("config.json", "env.json", "metrics.json", "rows.jsonl")
SHIPPED = {"micro-sft": ("04_sft", "model"), "micro-sft-second": ("05_merge", "second-run"),
           "micro-merge": ("05_merge", "merged"), "micro-rl": ("07_rl", "clean")}
SHOWN = 10  # tasks whose transcripts are kept
LARGEST_ROWS = 400_000  # bytes; evidence is committed small


def keep_run(profile: str) -> None:
    """Copy every finished stage of every seed, without checkpoints. What was not run here stays as it was kept before."""
    target = reference_folder(profile)
    stages = finished_stages(results_root() / profile)
    if not stages:
        raise KitError(f"no finished run of {profile} to keep; `agentcpm-kit run --profile {profile}` makes one")
    for stage in stages:
        out = target / stage.path
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for name in KEPT:
            source = stage.folder / name
            if source.is_file() and source.stat().st_size <= LARGEST_ROWS:
                shutil.copy(source, out / name)
        if (stage.folder / "figures").is_dir():
            shutil.copytree(stage.folder / "figures", out / "figures")
    write_atomic(target / "COMMAND", f"agentcpm-kit run --profile {profile} --seed N   "
                 "(parameters that are no defaults: config.json, commit and machine: env.json of each stage)\n")


def keep_transcripts(profile: str, seed: int = 0) -> None:
    """Some of notebook 10's plain questions as each model plays them, before training and after."""
    from ..evaluate.harness import transcripts
    from ..evaluate.tasks import load_suite

    played = results_root() / profile / f"seed{seed}" / "10_claims/evaluation"
    models = [name for name in MODELS if (played / name / "plain").is_dir()]
    if models:
        tasks, shown = load_suite("plain").tasks[:SHOWN], {}
        for name in models:
            first = {t.task_id: t for t in transcripts(played / name / "plain").values() if t.run == 0}
            tasks = [task for task in tasks if task.task_id in first]
            shown[name] = first
        text = beside_each_other(f"Profile {profile}: {len(tasks)} tasks of test worlds, before training and after",
                                 {name: [first[task.task_id] for task in tasks] for name, first in shown.items()},
                                 {task.task_id: task.answer for task in tasks})
        write_atomic(reference_folder(profile) / "transcripts.md", text)


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


def with_outputs(profile: str, seed: int = 0) -> dict[Path, nbformat.NotebookNode]:
    """The notebooks that the run executed, with its outputs, and a digest of the code that they are of.

    Raises:
        KitError: a notebook's code is no longer what was executed.
    """
    found = {}
    for path in sorted((repo_root() / "notebooks").glob("[0-9]*.ipynb")):
        executed = results_root() / profile / f"seed{seed}" / path.stem / "notebook.ipynb"
        if executed.is_file():
            notebook, run = (nbformat.read(p, as_version=4) for p in (path, executed))
            run.cells = [c for c in run.cells if "injected-parameters" not in c.metadata.get("tags", [])]
            if code_digest(notebook) != code_digest(run):
                raise KitError(f"{path.name} has other code than its run; `agentcpm-kit run --stages {path.stem[:2]}` mends it")
            fill_outputs(notebook, run)
            notebook.metadata.setdefault("agentcpm", {})["outputs_of"] = code_digest(notebook)
            found[path] = notebook
    return found


def code_digest(notebook) -> str:
    """Of all code cells, in their order: the same as `outputs_of` in a notebook's metadata where its outputs are its code's."""
    code = json.dumps([cell.source for cell in notebook.cells if cell.cell_type == "code"])
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def fill_outputs(notebook, executed) -> None:
    """Copy outputs to the code cells, in their order; counts start at 1."""
    cells, run = ([c for c in n.cells if c.cell_type == "code"] for n in (notebook, executed))
    for count, (cell, other) in enumerate(zip(cells, run, strict=True), 1):
        cell.outputs, cell.execution_count = [_clean(o) for o in other.outputs if _wanted(o)], count


def _wanted(output) -> bool:
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return not widget and output.get("name") != "stderr"


def _clean(output):
    if "execution_count" in output:
        output["execution_count"] = None
    return output


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


def write_readme() -> None:
    """Tables of one profile are about micro; those of several name each."""
    path = repo_root() / "README.md"
    write_atomic(path, with_tables(path.read_text(), "micro"))


def main(profile: str = "micro") -> None:
    for name in TABLES:  # before any evidence is replaced
        _place((repo_root() / "README.md").read_text(), name)
    executed = with_outputs(profile)
    keep_run(profile)
    keep_transcripts(profile)
    if profile == "micro":  # whose models are small enough, and whose outputs the notebooks show
        ship_checkpoints(profile)
    else:
        (reference_folder(profile) / "notebooks").mkdir(exist_ok=True)
        executed = {reference_folder(profile) / "notebooks" / path.name: notebook for path, notebook in executed.items()}
    for path, notebook in executed.items():
        nbformat.write(notebook, path)
    write_readme()
    print(f"kept in {reference_folder(profile).relative_to(repo_root())}; README and notebooks are up to date")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KitError as error:
        sys.exit(f"error: {error}")
