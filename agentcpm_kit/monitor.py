"""What a run shows: a bar for the run, a bar for the stage with the time left, and the kernel's peak memory."""

import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Monitor:
    """Bars on a terminal, one line per stage elsewhere. `peak_gb` is the last stage's largest process."""

    def __init__(self, stages: int):
        self.console = Console(highlight=False)
        self.live = self.console.is_terminal
        self.bars = Progress(TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
                             TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
                             TextColumn("{task.fields[what]}"), console=self.console, disable=not self.live)
        self.total = self.bars.add_task("run", total=stages, what="")
        self.count, self.done, self.peak_gb = stages, 0, 0.0
        self.expected: dict[str, float] = {}  # seconds of stages, where they were estimated
        self.took: dict[str, float] = {}

    def __enter__(self) -> "Monitor":
        self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        self.bars.stop()

    def expect(self, seconds: dict[str, float]) -> None:
        """Tell how long the stages to come will take, all in all and each."""
        self.expected = seconds
        stages = ", ".join(f"{name[:2]}: {took / 60:.0f}" for name, took in seconds.items())
        self.say(f"estimated: {sum(seconds.values()) / 60:.0f} minutes ({stages})")

    def compare(self) -> None:
        """Tell how long they took beside what was expected of them."""
        if both := self.expected.keys() & self.took.keys():
            guess, truth = (sum(known[name] for name in both) / 60 for known in (self.expected, self.took))
            self.say(f"took {truth:.0f} minutes, {guess:.0f} were estimated")

    def say(self, line: str) -> None:
        self.console.print(line, markup=False)

    def skipped(self, name: str) -> None:
        self._advance(f"{name}: done before, skipped")

    def _advance(self, line: str) -> None:
        self.done += 1
        self.bars.update(self.total, completed=self.done)
        self.say(f"[{self.done}/{self.count}] {line}")

    @contextmanager
    def stage(self, name: str, folder: Path):
        """Watch the stage's progress.json and the memory of the kernel until it ends."""
        started, stop, self.peak_gb = time.time(), threading.Event(), 0.0
        bar = self.bars.add_task(name, total=None, what="")
        (folder / "progress.json").unlink(missing_ok=True)
        watcher = threading.Thread(target=self._watch, args=(folder / "progress.json", bar, stop), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            self.bars.remove_task(bar)
        self.took[name] = time.time() - started
        expected = f" (estimated {self.expected[name]:.0f})" if name in self.expected else ""
        self._advance(f"{name}: {self.took[name]:.0f} s{expected}, peak memory {self.peak_gb:.1f} GB")

    def _watch(self, progress: Path, bar, stop: threading.Event) -> None:
        while not stop.wait(0.5):
            self.peak_gb = max(self.peak_gb, _largest_child_gb())
            try:
                state = json.loads(progress.read_text())
                self.bars.update(bar, completed=state["done"], total=state["total"], what=state["what"])
                self.bars.update(self.total, completed=self.done + min(1, state["done"] / max(1e-9, state["total"])))
            except (OSError, ValueError):
                continue


def _largest_child_gb() -> float:
    """Peak resident memory of the largest child, from the kernel's own high-water mark where there is one."""
    peaks = [0.0]
    for child in psutil.Process().children(recursive=True):
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
            peaks.append(next(int(line.split()[1]) * 1024 / 1e9 for line in status.splitlines() if "VmHWM" in line))
        except (OSError, StopIteration, psutil.Error):
            continue
    return round(max(peaks), 2)
