"""``agentcpm-kit data add``: take in a benchmark's own file, check it, and keep it in data/benchmarks/, which git ignores.

What a benchmark's file must hash to is not published with it; so the hash of the file that was added first is kept in its
SOURCE.json, and what is loaded later must be that very file.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from ..artefacts import file_sha256
from ..errors import KitError, one_line, unknown
from ..files import jsonl, write_atomic, write_json
from ..profile import repo_root
from ..world.tasks import Task
from .benchmarks import BENCHMARKS, Benchmark, decrypt

AS_TEXT = {"dtype": str, "keep_default_na": False}
READERS = {".csv": lambda path: pd.read_csv(path, **AS_TEXT), ".tsv": lambda path: pd.read_csv(path, sep="\t", **AS_TEXT),
           ".parquet": pd.read_parquet, ".xlsx": lambda path: pd.read_excel(path, **AS_TEXT),
           ".jsonl": lambda path: pd.DataFrame([json.loads(line) for line in path.read_bytes().splitlines() if line.strip()],
                                               dtype=object)}


def benchmark_folder(name: str) -> Path:
    return repo_root() / "data/benchmarks" / name


def add(name: str, source: str, revision: str = "", ids: Path | None = None, force: bool = False) -> str:
    """Check a benchmark's file and keep it. Returns what to tell.

    `source` is a file, or a file of a dataset on the hub as ``owner/name:path/in/it``. `ids` names a file with the task ids to
    keep, one a line, where a published score is of a part (GAIA-text: 103 of the 165).

    Raises:
        KitError: an unknown benchmark, a file that cannot be had or read, columns or rows that are not those published, or
            another file than the one that was added before (``--force`` takes the new one).
    """
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    benchmark, folder = BENCHMARKS[name], benchmark_folder(name)
    path = Path(source) if Path(source).is_file() else _download(benchmark, source, revision)
    digest = file_sha256(path)
    before = folder / "SOURCE.json"
    if before.is_file() and (known := json.loads(before.read_text())["sha256"]) != digest and not force:
        raise KitError(f"{name}: this file has SHA-256 {digest[:16]}…, the one before {known[:16]}…; --force takes the new")
    kept, told = _rows(name, benchmark, _read(path), ids)
    lines = jsonl(kept)
    write_atomic(folder / "tasks.jsonl", lines)
    write_json(before, {"source": source if path != Path(source) else path.name, "revision": revision, "sha256": digest,
                        "rows": len(kept), "tasks_sha256": hashlib.sha256(lines.encode()).hexdigest(),
                        "added": datetime.now(UTC).date().isoformat()})
    return told


def _download(benchmark: Benchmark, source: str, revision: str) -> Path:
    dataset, _, inside = source.partition(":")
    if "/" not in dataset or not inside:
        raise KitError(f"{source} is no file here; {benchmark.title} is at {benchmark.where} ({benchmark.access}). Give the "
                       "file, or owner/name:path/in/the/dataset with --revision")
    if not revision:
        raise KitError("a dataset on the hub changes: give the commit with --revision, so that a score can name it")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(dataset, inside, repo_type="dataset", revision=revision))
    except GatedRepoError as error:
        raise KitError(f"{dataset} is {benchmark.access}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise KitError(f"{source} cannot be downloaded: {one_line(error)[:200]}") from error


def _read(path: Path) -> pd.DataFrame:
    if path.suffix not in READERS:
        raise unknown("kind of file", path.suffix, READERS)
    try:
        return READERS[path.suffix](path)
    except ImportError as error:
        raise KitError(f"{path.name} needs a package that is not here ({error}); save it as .csv") from error
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise KitError(f"{path.name} cannot be read: {one_line(error)[:200]}") from error


def _rows(name: str, benchmark: Benchmark, table: pd.DataFrame, ids: Path | None) -> tuple[list[dict], str]:
    """The rows to keep in our format, fields as published and all of them readable; and a sentence on them."""
    lacking = [column for column in benchmark.columns.values() if column not in table]
    if lacking:
        raise KitError(f"{benchmark.title} has columns {', '.join(benchmark.columns.values())}; this file lacks "
                       f"{', '.join(lacking)}")
    if len(table) != benchmark.rows:
        raise KitError(f"{benchmark.title} has {benchmark.rows} rows, this file {len(table)}")
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    text = [record for record in records if not str(record.get(benchmark.attachment) or "").strip()]
    rows = _selected([{"task_id": f"{name}-{number}", **{ours: str(record[theirs]) for ours, theirs in benchmark.columns.items()
                                                         if record[theirs] is not None}}
                      for number, record in enumerate(text)], ids)
    tasks = [_task(name, benchmark, row) for row in rows]  # else a file that cannot be read is found when it is played
    if len({task.task_id for task in tasks}) < len(tasks):
        raise KitError(f"{benchmark.title}: two rows of this file have the same id")
    dropped = len(records) - len(text)
    return rows, f"{benchmark.title}: {len(rows)} tasks" + (f" of text, {dropped} with files left out" if dropped else "")


def _selected(rows: list[dict], ids: Path | None) -> list[dict]:
    if ids is None:
        return rows
    wanted = ids.read_text().split()
    if missing := set(wanted) - {row["task_id"] for row in rows}:
        raise KitError(f"{ids} names {len(missing)} tasks that the file has not, such as {sorted(missing)[0]!r}")
    return [row for row in rows if row["task_id"] in set(wanted)]


def load(name: str) -> tuple[list[Task], str]:
    """Tasks of a benchmark that was added, decrypted, and the SHA-256 of their file.

    Raises:
        KitError: it was not added, or its file is not the one that was.
    """
    folder, benchmark = benchmark_folder(name), BENCHMARKS[name]
    try:
        known, data = json.loads((folder / "SOURCE.json").read_text()), (folder / "tasks.jsonl").read_bytes()
    except (OSError, ValueError) as error:
        raise KitError(f"{benchmark.title} is not here: `agentcpm-kit data add {name} FILE`. It is at {benchmark.where} "
                       f"({benchmark.access})") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != known["tasks_sha256"] or len(data.splitlines()) != known["rows"]:
        raise KitError(f"data/benchmarks/{name}/tasks.jsonl is not the file that was added; add it again")
    return [_task(name, benchmark, json.loads(line)) for line in data.splitlines()], digest


def _task(name: str, benchmark: Benchmark, row: dict) -> Task:
    try:
        question, answer = row["Question"], row["Final answer"]
        if benchmark.scheme:
            question, answer = (decrypt(benchmark.scheme, text, row["canary"]) for text in (question, answer))
        if not question.strip() or not answer.strip():
            raise ValueError("an empty question or answer")
        return Task(row["task_id"], question, answer, name, int(row.get("Level") or 0), None, tools=())
    except (KeyError, ValueError) as error:
        why = f"no {error.args[0]}" if isinstance(error, KeyError) else error
        raise KitError(f"{benchmark.title}, {row['task_id']}: {why}") from error
