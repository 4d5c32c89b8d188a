"""Benchmarks that a user adds: decrypted as their authors do, checked against what is published, and kept as they came."""

import base64
import hashlib
import json
import subprocess

import pandas as pd
import pytest

from agentcpm_kit.errors import KitError
from agentcpm_kit.evaluate import benchmark_files
from agentcpm_kit.evaluate.benchmark_files import add, load
from agentcpm_kit.evaluate.benchmarks import BENCHMARKS, decrypt
from agentcpm_kit.evaluate.judge import PROMPTS
from agentcpm_kit.evaluate.tasks import load_suite
from agentcpm_kit.profile import repo_root


def encrypt(scheme, text, canary):
    """Written apart from `decrypt`: byte by byte, with the index."""
    data, key = text.encode(), hashlib.sha256(canary.encode()).digest() if scheme == "browsecomp" else canary.encode()
    return base64.b64encode(bytes(data[i] ^ key[i % len(key)] for i in range(len(data)))).decode()


@pytest.mark.parametrize("scheme", ["browsecomp", "xbench"])
@pytest.mark.parametrize("text", ["", "a", "Paris", "法国的首都是哪里？" * 40, "x" * 31, "x" * 32, "x" * 33, "line\nline\t\0"])
def test_what_was_encrypted_comes_back(scheme, text):
    assert decrypt(scheme, encrypt(scheme, text, "canary GUID 1"), "canary GUID 1") == text


def test_by_hand():
    """SHA-256 of "k" begins with 82 54 c3; "abc" is 61 62 63. XOR: e3 36 a0. With xbench the key is "k", 6b: 0a 09 08."""
    assert decrypt("browsecomp", base64.b64encode(bytes.fromhex("e336a0")).decode(), "k") == "abc"
    assert decrypt("xbench", base64.b64encode(bytes.fromhex("0a0908")).decode() + "\n", "k") == "abc"


@pytest.mark.parametrize("scheme, text, canary, hint", [
    ("browsecomp", "no base64!", "k", "not base64"), ("xbench", "AAAA", "", "empty canary"),
    ("browsecomp", encrypt("browsecomp", "Paris is the capital of France", "k"), "other", "canary does not fit")])
def test_what_cannot_be_decrypted_is_told(scheme, text, canary, hint):
    with pytest.raises(ValueError, match=hint):
        decrypt(scheme, text, canary)
    with pytest.raises(KitError, match="did you mean 'xbench'"):
        decrypt("xbnch", "AAAA", "k")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_files, "benchmark_folder", lambda name: tmp_path / "kept" / name)
    return tmp_path


def published(name, path):
    """A file as the benchmark's own would look, with made-up questions."""
    benchmark = BENCHMARKS[name]
    rows = []
    for n in range(benchmark.rows):
        row = {ours: f"{ours} {n}, \"quoted\"" for ours in benchmark.columns} | {"task_id": f"id{n}", "Level": str(n % 3 + 1)}
        if benchmark.scheme:
            row["canary"] = f"guid {n}"
            row |= {field: encrypt(benchmark.scheme, row[field], row["canary"]) for field in ("Question", "Final answer")}
        rows.append({theirs: row[ours] for ours, theirs in benchmark.columns.items()}
                    | ({benchmark.attachment: "x.png" if n % 5 == 0 else ""} if benchmark.attachment else {}))
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_taken_in_and_played_as_text(folder, name):
    told = add(name, str(published(name, folder / "file.csv")))
    tasks, digest = load(name)
    first = 1 if BENCHMARKS[name].attachment else 0
    assert (tasks[0].question, tasks[0].answer) == (f'Question {first}, "quoted"', f'Final answer {first}, "quoted"')
    assert BENCHMARKS[name].title in told and load_suite(name).digest == digest and tasks[0].world is None
    dropped = -(-BENCHMARKS[name].rows // 5) if BENCHMARKS[name].attachment else 0
    assert len(tasks) == BENCHMARKS[name].rows - dropped and (f"{dropped} with files left out" in told) == bool(dropped)
    kept = (folder / "kept" / name / "tasks.jsonl").read_text()
    assert ("quoted" not in kept) == bool(BENCHMARKS[name].scheme)  # encrypted as it was published
    assert (PROMPTS / f"{BENCHMARKS[name].prompt}.txt").is_file()


def test_wrong_files_are_refused(folder):
    path = published("seal0", folder / "file.csv")
    table = pd.read_csv(path)
    table[:-1].to_csv(folder / "short.csv", index=False)
    table.rename(columns={"answer": "Answer"}).to_csv(folder / "columns.csv", index=False)
    for file, hint in (("short.csv", "has 111 rows, this file 110"), ("columns.csv", "lacks answer"), ("no.csv", "no file here")):
        with pytest.raises(KitError, match=hint):
            add("seal0", str(folder / file))
    with pytest.raises(KitError, match="did you mean 'seal0'"):
        add("seal1", str(path))
    with pytest.raises(KitError, match="data add seal0 FILE"):
        load("seal0")


def test_another_file_and_a_tampered_one_are_noticed(folder):
    add("seal0", str(published("seal0", folder / "file.csv")))
    table = pd.read_csv(folder / "file.csv")
    table.loc[3, "answer"] = "changed"
    table.to_csv(folder / "other.csv", index=False)
    with pytest.raises(KitError, match="--force takes the new"):
        add("seal0", str(folder / "other.csv"))
    add("seal0", str(folder / "other.csv"), force=True)
    assert load("seal0")[0][3].answer == "changed"
    kept = folder / "kept/seal0/tasks.jsonl"
    kept.write_text(kept.read_text().replace("changed", "Changed"))
    with pytest.raises(KitError, match="is not the file that was added"):
        load("seal0")


def test_a_published_part_is_selected_by_its_ids(folder):
    (folder / "ids.txt").write_text("id1\nid7\n")
    add("gaia", str(published("gaia", folder / "file.csv")), ids=folder / "ids.txt")
    assert [t.task_id for t in load("gaia")[0]] == ["id1", "id7"]
    (folder / "ids.txt").write_text("id1\nid0\n")  # comes with a file
    with pytest.raises(KitError, match="names 1 tasks that the file has not, such as 'id0'"):
        add("gaia", str(folder / "file.csv"), ids=folder / "ids.txt")


@pytest.mark.parametrize("change, hint", [
    (lambda row: row | {"answer": ""}, "an empty question or answer"), (lambda row: row | {"answer": None}, "no Final answer")])
def test_rows_that_cannot_be_played_are_refused_when_they_are_added(folder, change, hint):
    rows = pd.read_csv(published("seal0", folder / "file.csv")).to_dict("records")
    (folder / "bad.jsonl").write_text("".join(json.dumps(change(row) if n == 7 else row) + "\n" for n, row in enumerate(rows)))
    with pytest.raises(KitError, match=f"seal0-7: {hint}"):
        add("seal0", str(folder / "bad.jsonl"))


def test_nothing_in_an_attachment_is_no_attachment(folder):
    rows = [{"id": f"i{n}", "question": f"q{n}", "answer": n, "image": None} for n in range(2500)]
    (folder / "hle.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "2500 tasks" in add("hle", str(folder / "hle.jsonl")) and load("hle")[0][3].answer == "3"
    rows[5]["id"] = "i4"
    (folder / "hle.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(KitError, match="same id"):
        add("hle", str(folder / "hle.jsonl"), force=True)


def test_the_hub_wants_a_revision():
    with pytest.raises(KitError, match="give the commit with --revision"):
        add("gaia", "gaia-benchmark/GAIA:2023/validation/metadata.parquet")
    with pytest.raises(KitError, match="accept the terms"):
        add("gaia", "gaia-benchmark/GAIA")


def test_git_never_sees_a_benchmark():
    path = "data/benchmarks/gaia/tasks.jsonl"
    done = subprocess.run(["git", "check-ignore", path], cwd=repo_root(), capture_output=True, text=True)
    assert done.stdout.strip() == path


def test_source_names_the_file(folder):
    add("seal0", str(published("seal0", folder / "file.csv")))
    source = json.loads((folder / "kept/seal0/SOURCE.json").read_text())
    assert source["source"] == "file.csv" and source["rows"] == 111
    assert source["sha256"] == hashlib.sha256((folder / "file.csv").read_bytes()).hexdigest()
