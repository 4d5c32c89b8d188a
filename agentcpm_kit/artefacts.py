"""Checkpoints as files: checksums written with them, and verified before they are used."""

import hashlib
from pathlib import Path

from .errors import KitError
from .files import write_atomic

CHECKSUMS = "SHA256SUMS"


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """List every file of `folder` in ``SHA256SUMS``, in the format of ``sha256sum -c``."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    lines = [f"{file_sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    write_atomic(folder / CHECKSUMS, "".join(lines))  # half a list would still verify


def verify_checkpoint(folder: Path) -> None:
    """Check `folder` against its ``SHA256SUMS``.

    Raises:
        KitError: no list, a missing file, or a file that differs; it is named.
    """
    if not (folder / CHECKSUMS).is_file():
        raise KitError(f"{folder} has no {CHECKSUMS}: it is not a finished checkpoint")
    for line in (folder / CHECKSUMS).read_text().splitlines():
        expected, gap, name = line.partition("  ")
        if not gap:
            raise KitError(f"{folder / CHECKSUMS} is garbled; make the checkpoint again or restore it with git")
        if not (folder / name).is_file():
            raise KitError(f"checkpoint {folder} lacks {name}; make it again or restore it with git")
        if file_sha256(folder / name) != expected:
            raise KitError(f"checkpoint {folder} is corrupt: {name} differs from its checksum; "
                           "make it again or restore it with git")
