"""The runner: executes the notebooks with papermill, in order, skipping what is done.

Papermill's own gaps are closed here: a misspelt parameter is refused (papermill warns), a failed notebook is kept
apart from results, a finished stage is not run again, and a signal ends the kernel and says how to go on.
"""

import ast
import fcntl
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import yaml

from .errors import KitError, unknown
from .estimate import LONG, estimate, planned
from .files import append_jsonl, write_atomic, write_json
from .monitor import Monitor
from .profile import Profile, load_profile, refuse_resets, repo_root, results_root
from .stage import (
    RUNNER_VARIABLE,
    check_writable,
    input_hash,
    is_done,
    mark_done,
    notebooks,
    previous_folder,
    set_aside,
    stage_folder,
    stages_read,
    take_back,
)

COMMON = ("profile", "seed")


class StageFailed(Exception):
    """A notebook raised; the message names the notebook, the cell and the error."""


def select_stages(text: str | None) -> list[str]:
    """`"04-06"`, `"00,07-09"`, `"sft"` or None (all) as stage names in order.

    Raises:
        KitError: a number or name that no notebook has.
    """
    names = list(notebooks())
    if not text:
        return names
    chosen: set[str] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        low, high = _position(first, names), _position(last or first, names)
        if low > high:
            raise KitError(f"stages {part.strip()}: the first comes after the last")
        chosen |= set(names[low: high + 1])
    return [name for name in names if name in chosen]


def _position(text: str, names: list[str]) -> int:
    for i, name in enumerate(names):
        if text in (name, name[:2], name[3:]) or (text.isdigit() and int(text) == int(name[:2])):
            return i
    raise unknown("stage", text, [*names, *(n[:2] for n in names), *(n[3:] for n in names)])


def default_parameters(name: str) -> dict:
    """Literals of the cell tagged `parameters`."""
    notebook = json.loads(notebooks()[name].read_text())
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            tree = ast.parse("".join(cell["source"]))
            return {n.targets[0].id: ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)}
    raise KitError(f"notebooks/{name}.ipynb has no cell tagged `parameters`")


def parse_parameters(pairs: list[str], stages: list[str]) -> dict[str, dict]:
    """`name=value` pairs as each stage's own parameters over its defaults (profile and seed left out).

    Raises:
        KitError: not a pair, a name that none of the stages knows, or a value of another type than the default.
    """
    defaults = {stage: {k: v for k, v in default_parameters(stage).items() if k not in COMMON} for stage in stages}
    known = {name for parameters in defaults.values() for name in parameters}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise KitError(f"-p takes name=value, not {pair!r}")
        if name not in known:
            raise unknown("parameter", name, known)
        for parameters in defaults.values():
            if name in parameters:
                parameters[name] = _typed(name, text, parameters[name])
    return defaults


def _typed(name: str, text: str, default):
    value = yaml.safe_load(text)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        raise KitError(f"parameter {name} is {type(default).__name__} (default {default!r}), not {text!r}")
    return value


@contextmanager
def exclusive(folder: Path):
    """Refuse a second run on the same results."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise KitError(f"another run is writing to {folder}; wait for it, or give this one its own --out") from error
        yield


def run(profile: str, stages: str | None = None, seed: int = 0, force: bool = False, params: list[str] = ()) -> Path:
    """Run the chosen stages and build the report; its path.

    Raises:
        KitError: anything wrong that can be known before the work starts.
        StageFailed: a notebook failed.
        KeyboardInterrupt: on SIGINT or SIGTERM; the kernel has been ended, and the same call resumes.
    """
    settings = load_profile(profile)
    names = select_stages(stages)
    refuse_impossible(settings, names)
    parameters = parse_parameters(list(params), names)
    folder = results_root() / profile / f"seed{seed}"
    check_writable(folder, settings.machine.disk_gb / 4)
    with sigterm_interrupts(), exclusive(folder), Monitor(len(names)) as monitor:
        _foretell(settings, seed, parameters, force, monitor)
        for name in names:
            _run_stage(name, settings, seed, parameters[name], force, monitor)
        monitor.compare()
    from .report.html import build_report
    from .report.terminal import print_summary

    report = build_report(folder.parent)
    print_summary(folder.parent)
    print(f"report: {report}")
    return report


def refuse_impossible(profile: Profile, names: list[str]) -> None:
    """
    Raises:
        KitError: a stage that would refuse the profile's engine or context policy, minutes or hours later.
    """
    if profile.model.engine == "openai" and (made := [n for n in names if n in ("05_merge", "07_rl")]):
        raise KitError(f"{' and '.join(made)}: weights are made there faster than servers take them; leave them out "
                       "(--stages), or set `engine: transformers` or `vllm` under `model`")
    if "07_rl" in names:
        refuse_resets(profile)


def _foretell(profile: Profile, seed: int, parameters: dict[str, dict], force: bool, monitor: Monitor) -> None:
    """Say how long the stages that are not done will take, where that is hours."""
    if profile.machine.minutes < LONG:
        return
    coming: list[str] = []
    for name, params in parameters.items():
        if force or set(stages_read(name)) & set(coming) or not _is_kept(name, profile, seed, params):
            coming.append(name)
    if not set(coming) & planned(profile).keys():
        return
    monitor.say("timing this machine ...")
    try:
        found = estimate(profile)
    except KitError as error:  # what a stage needs, it will ask for itself
        monitor.say(f"no estimate: {error}")
        return
    write_json(stage_folder(profile.name, seed, "estimate.json"), found)
    monitor.expect({name: seconds for name, seconds in found["seconds"].items() if name in coming})


def _is_kept(name: str, profile: Profile, seed: int, params: dict) -> bool:
    """Whether the result that is asked for is there, or waits to be taken back."""
    folder, inputs = stage_folder(profile.name, seed, name), input_hash(name, profile, seed, params)
    return is_done(folder, inputs) or is_done(previous_folder(folder), inputs)


def _run_stage(name: str, settings, seed: int, params: dict, force: bool, monitor: Monitor) -> None:
    folder, log = stage_folder(settings.name, seed, name), stage_folder(settings.name, seed, "run.jsonl")
    inputs = input_hash(name, settings, seed, params)  # before the work: code edited meanwhile did not make the result
    take_back(folder, inputs)
    if not force and is_done(folder, inputs):
        monitor.skipped(name)
        append_jsonl(log, {"stage": name, "seconds": 0.0, "skipped": True})
        return
    if force:
        set_aside(folder)
    started = time.time()
    with monitor.stage(name, folder):
        partial = folder / "partial.ipynb"
        _execute(name, partial, {"profile": settings.name, "seed": seed, **params})
    usage = {"seconds": round(time.time() - started, 1), "peak_memory_gb": monitor.peak_gb,
             "estimated_s": monitor.expected.get(name)}
    _complete(name, folder, usage)
    append_jsonl(log, {"stage": name, "skipped": False, **usage})
    mark_done(folder, inputs)


def _complete(name: str, folder: Path, usage: dict) -> None:
    """Add time and memory to env.json and keep the executed notebook; DONE comes after this.

    Raises:
        StageFailed: the notebook did not write its results.
    """
    if not (folder / "metrics.json").is_file():
        raise StageFailed(f"notebooks/{name}.ipynb ended without `stage.finish()`: it has no metrics")
    write_json(folder / "env.json", json.loads((folder / "env.json").read_text()) | usage)
    _keep(folder / "partial.ipynb", folder / "notebook.ipynb")


def _execute(name: str, partial: Path, parameters: dict) -> None:
    """Run the notebook in a kernel of its own, saving after each cell.

    Raises:
        StageFailed: a cell raised; the partial notebook is moved to ``failed/``.
    """
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # it remarks on a kernel that died; we tell it
    import papermill
    from papermill.exceptions import PapermillException

    os.environ[RUNNER_VARIABLE] = "1"
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # vLLM on a CPU remarks on memory nodes at every start
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        interruptible(lambda: papermill.execute_notebook(
            str(notebooks()[name]), str(partial), parameters, kernel_name="python3", language="python", cwd=str(repo_root()),
            progress_bar=False, log_output=False, stdout_file=None, kernel_manager_class=_own_kernel()))
    except (PapermillException, RuntimeError) as error:  # RuntimeError is nbclient's: the kernel died
        raise StageFailed(_failure(name, partial, error)) from error
    finally:
        os.environ.pop(RUNNER_VARIABLE, None)


def _own_kernel() -> type:
    """Kernel manager that starts this interpreter, whatever the user's kernelspec "python3" points to."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]

    class OwnKernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(argv=command, display_name="Python 3", language="python")

    return OwnKernel


@contextmanager
def sigterm_interrupts():
    """SIGTERM (a batch system's time limit) is handled as Ctrl-C is. Without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interruptible(action: Callable) -> None:
    """Run `action` in a thread, and end its kernel when a signal comes.

    In the main thread nbclient would take the signals over, and tell an interrupted run as a kernel that died.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(action)
        try:
            future.result()
        except KeyboardInterrupt:
            while not future.done():  # not once: the kernel may only be starting
                for child in psutil.Process().children(recursive=True):
                    child.kill()
                time.sleep(0.2)
            raise


def _failure(name: str, partial: Path, error: Exception) -> str:
    """What failed and where; the partial notebook goes to failed/, apart from results."""
    kept, where = partial.parent.parent / "failed" / f"{name}.ipynb", "its first cell"
    if partial.is_file():
        where = _failed_cell(partial)
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, kept)
    if hasattr(error, "ename"):
        what = f"{error.ename}: {error.evalue}"
    else:
        what = "the kernel died; if the machine ran out of memory, choose a smaller profile"
    before = previous_folder(partial.parent)
    told = f"\n  the finished result from before is kept in {before} until there is a new one" if before.is_dir() else ""
    return f"notebooks/{name}.ipynb failed in {where}: {what}\n  the partial notebook is in {kept}{told}"


def _failed_cell(partial: Path) -> str:
    """Number (from 1, as the reader counts: without papermill's own cells) and first line of the last cell that began.

    Not by papermill's status: a cell whose kernel died is "completed" to it.
    """
    own, found = {"injected-parameters", "papermill-error-cell-tag"}, "its first cell"
    cells = [c for c in json.loads(partial.read_text())["cells"] if not own & set(c["metadata"].get("tags", []))]
    for number, cell in enumerate(cells, 1):
        if cell["metadata"].get("papermill", {}).get("start_time"):
            found = f"cell {number} ({''.join(cell['source']).strip().partition(chr(10))[0]})"
    return found


def _keep(partial: Path, target: Path) -> None:
    """Store the executed notebook without papermill's absolute paths."""
    text = re.sub(r'"(input_path|output_path)": "[^"]*"', r'"\1": null', partial.read_text())
    for folder in (results_root(), repo_root()):
        text = text.replace(f"{folder}/", "")
    write_atomic(target, text)
    partial.unlink()


