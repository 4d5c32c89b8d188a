"""``agentcpm-kit doctor``: is this machine ready, what would each profile need and take, and what fixes what is missing."""

import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec

from .environment import hardware, version_of
from .errors import KitError
from .profile import Profile, load_profile, profile_names, repo_root

LOCKS = {"core": "make setup", "unsloth": "make setup"}
QWEN3 = "models/Qwen3-4B-Thinking-2507"
HOW_TO_GET = {"models/SmolLM2-135M-Instruct": "make setup-small",
              QWEN3: f"hf download Qwen/Qwen3-4B-Thinking-2507 --local-dir {QWEN3}"}


@dataclass
class Check:
    name: str
    found: str
    ok: bool
    fix: str = ""
    needed: bool = True  # without it nothing runs; else it is worth knowing


def lock_pins(name: str) -> dict[str, str]:
    """Package -> version of requirements/<name>.lock; {} where there is no such file."""
    path = repo_root() / "requirements" / f"{name}.lock"
    lines = path.read_text().splitlines() if path.is_file() else []
    pins = [line.split(";")[0].strip().split("==") for line in lines if "==" in line and not line.startswith("#")]
    return dict(pins)


def lock_check(name: str) -> Check:
    """Installed versions against a lock; a local build tag (+cpu) is the same release.

    Missing packages stop a run, other versions only make its numbers less comparable.
    """
    pins = lock_pins(name)
    if not pins:
        return Check(f"{name}.lock", "the file is missing", False, f"git checkout requirements/{name}.lock", needed=False)
    found = {package: version_of(package) for package in pins}
    missing = [f"{p} missing (lock: {wanted})" for p, wanted in pins.items() if found[p] is None]
    other = [f"{p} {found[p]} (lock: {wanted})" for p, wanted in pins.items()
             if found[p] and found[p].split("+")[0] != wanted.split("+")[0]]
    wrong = missing + other
    text = "; ".join(wrong[:5]) + (f"; {len(wrong) - 5} more" if len(wrong) > 5 else "") or f"{len(pins)} packages as locked"
    return Check(f"{name}.lock", text, not wrong, LOCKS[name], needed=bool(missing))


def machine_checks() -> list[Check]:
    found, free = hardware(), shutil.disk_usage(repo_root()).free / 1e9
    return [Check("python", platform.python_version(), sys.version_info[:2] == (3, 11), "PYTHON=python3.11 make setup"),
            Check("cores", str(found["cores"]), found["cores"] >= 2, "the times are for two cores", needed=False),
            Check("memory", f"{found['memory_gb']} GB", found["memory_gb"] >= 4, "micro needs 4 GB"),
            Check("disk", f"{free:.0f} GB free", free >= 4, "free some space"),
            Check("GPU", found["gpu"] or "none (needed by `paper` only)", True, needed=False),
            *(lock_check(name) for name in LOCKS)]


@dataclass
class Fit:
    """One profile on this machine."""

    profile: str
    needs: str
    minutes: float
    measured: bool
    ready: bool
    missing: list[str]


def fit(profile: Profile) -> Fit:
    machine, found = profile.machine, hardware()
    missing = []
    if machine.gpu_memory_gb and not _gpu_gb(found["gpu"]) >= machine.gpu_memory_gb:
        missing.append(f"a GPU with {machine.gpu_memory_gb:.0f} GB")
    if found["memory_gb"] < machine.memory_gb:
        missing.append(f"{machine.memory_gb:.0f} GB of memory")
    if shutil.disk_usage(repo_root()).free / 1e9 < machine.disk_gb:
        missing.append(f"{machine.disk_gb:.0f} GB of free disk")
    if not (repo_root() / profile.model.base / "config.json").is_file():
        missing.append(f"{profile.model.base} ({HOW_TO_GET.get(profile.model.base, 'git checkout ' + profile.model.base)})")
    if profile.model.engine == "vllm" and not find_spec("vllm"):
        missing.append("vLLM (make setup-vllm)")
    needs = f"{machine.cores} cores, {machine.memory_gb:.0f} GB memory, {machine.disk_gb:.0f} GB disk"
    needs += f", GPU with {machine.gpu_memory_gb:.0f} GB" if machine.gpu_memory_gb else ""
    return Fit(profile.name, needs, machine.minutes, machine.minutes_measured, not missing, missing)


def _fit_or_fault(name: str) -> Fit:
    """A profile that cannot be read is a row of the table: it must not hide all others."""
    try:
        return fit(load_profile(name))
    except KitError as error:
        return Fit(name, "cannot be read", 0, False, False, [str(error)])


def _gpu_gb(gpu: str | None) -> float:
    size = re.search(r"(\d+) MiB", gpu or "")
    return int(size[1]) / 1024 if size else 0.0


def diagnose() -> dict:
    """All checks and fits; `ready` tells whether the micro profile can run."""
    checks, fits = machine_checks(), [_fit_or_fault(name) for name in profile_names()]
    ready = all(c.ok or not c.needed for c in checks) and next(f.ready for f in fits if f.profile == "micro")
    return {"ready": ready, "checks": [asdict(c) for c in checks], "profiles": [asdict(f) for f in fits]}


def print_diagnosis(report: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    checks, fits = Table("check", "found", "to do"), Table("profile", "needs", "takes", "ready here")
    for c in report["checks"]:
        checks.add_row(c["name"], c["found"], "" if c["ok"] else c["fix"], style=None if c["ok"] else "yellow")
    for f in report["profiles"]:
        how = "measured on 2 cores" if f["measured"] else "estimate"
        fits.add_row(f["profile"], f["needs"], f"{f['minutes']:.0f} min ({how})",
                     "yes" if f["ready"] else "no: " + "; ".join(f["missing"]))
    console = Console()
    console.print(checks, fits)
    console.print("ready: `agentcpm-kit run`" if report["ready"] else "not ready: see the column `to do`")
