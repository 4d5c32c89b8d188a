"""Files that survive a kill: atomic writes, and jsonl that is appended to and read back without its torn last line."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside the target and rename: a reader sees the old file or the new one, never half of it."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide results from the rest of a class
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value) -> None:
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def append_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Append lines. A torn last line, left by a kill, is cut off first, so that the new ones stay readable."""
    with appending(path) as file:
        file.writelines(line + b"\n" for line in lines)


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """The file, open for more lines: where many come one by one, opening it for each takes longer than writing them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        yield file


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file without a torn last one. As bytes: text breaks at more characters, and a torn one is no text."""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]


def jsonl(rows: Iterable[dict]) -> str:
    """The text of a whole jsonl file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def append_jsonl(path: Path, row: dict) -> None:
    append_lines(path, [json.dumps(row, ensure_ascii=False).encode()])


def read_jsonl(path: Path) -> list[dict]:
    """All whole lines; [] where there is no file."""
    return [json.loads(line) for line in whole_lines(path)] if path.is_file() else []
