"""Plays many episodes at once: engines generate, tools run in threads, and whoever has what it waits for goes on.

An episode is a generator that yields what it needs: a `Turn` of the model, a `Job` for a thread, or `Condense`d texts.
No episode waits for another. The order in which they are served depends on timing, what they are served does not.
"""

import gc
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from ..world.faults import ToolFault
from .engines.base import Engine, EngineFault, Sample, Turn
from .trajectory import Trajectory

ENGINE_RETRIES = 2  # a turn that met a fault is asked again so often


@dataclass
class Job:
    """Something for a thread; a `ToolFault` that it raises is raised in the episode."""

    work: Callable[[], object]


@dataclass
class Condense:
    """Turns for the summariser's engine; the samples come back together."""

    turns: list[Turn]


Request = Turn | Job | Condense


@dataclass
class Playing:
    """An episode under way, and what it waits for: turns by key, or a job."""

    episode: object  # has `name`, `trajectory` and `play`
    generator: object
    deadline: float
    request: Request | None = None
    missing: dict[str, Turn] = field(default_factory=dict)
    samples: dict[str, Sample] = field(default_factory=dict)
    faults: Counter = field(default_factory=Counter)  # by turn


def play_all(episodes: Iterator, engine: Engine, helper: Engine | None = None,
             max_seconds: float = 0.0) -> Iterator[Trajectory]:
    """Play episodes, at most `engine.batch_size` at once; trajectories in the order in which they end.

    `helper` is the engine that condenses, if it is another. After `max_seconds` (0: never) an episode ends as the
    fault of what it waits for.
    """
    table = _Table(engine, helper or engine, max_seconds)
    gc.freeze()  # libraries have a million objects: the collector need not walk them again and again while episodes play
    try:
        yield from table.play(episodes)
    finally:
        gc.unfreeze()
        table.clear()


class _Table:
    """State of `play_all`."""

    def __init__(self, engine: Engine, helper: Engine, max_seconds: float):
        self.engine, self.helper, self.max_seconds = engine, helper, max_seconds
        self.engines = [engine] if helper is engine else [engine, helper]
        self.active: dict[str, Playing] = {}
        self.asked: dict[str, tuple[Playing, Engine]] = {}  # turns under way, by key
        self.jobs: dict[int, Playing] = {}  # by number
        self.job, self.threads = 0, Threads()
        self.ended: deque[Trajectory] = deque()

    def play(self, episodes: Iterator) -> Iterator[Trajectory]:
        while True:
            free = max(1, self.engine.batch_size)
            while len(self.active) < free and not self.ended and (episode := next(episodes, None)):
                self._begin(episode)  # may end at once, where its turn cannot be submitted
            if not self.active and not self.ended:
                return
            for engine in self.engines:
                self._poll(engine)
            self._collect_jobs()
            self._stop_late()
            while self.ended:
                yield self.ended.popleft()

    def clear(self) -> None:
        """Leave nothing under way in the engines: a run that was interrupted may be repeated, with the same keys."""
        for key, (_, engine) in self.asked.items():
            engine.release(key)
        for name in self.active:
            self.engine.release(name)
        self.threads.close()

    def _begin(self, episode) -> None:
        deadline = time.monotonic() + self.max_seconds if self.max_seconds else float("inf")
        playing = Playing(episode, episode.play(), deadline)
        self.active[episode.name] = playing
        self._go_on(playing)

    def _go_on(self, playing: Playing, value=None, fault: Exception | None = None) -> None:
        """Hand an episode what it waited for, and take its next wish."""
        playing.missing, playing.samples, playing.faults = {}, {}, Counter()
        try:
            playing.request = playing.generator.throw(fault) if fault else playing.generator.send(value)
        except StopIteration:
            self._finish(playing)
            return
        if isinstance(playing.request, Job):
            self.job += 1
            self.jobs[self.job] = playing
            self.threads.run(self.job, playing.request.work)
            return
        single = isinstance(playing.request, Turn)
        playing.missing = missing = {turn.key: turn for turn in ([playing.request] if single else playing.request.turns)}
        for turn in missing.values():
            if playing.missing is missing:  # else a turn before it was a fault, and the episode went on
                self._ask(playing, turn, self.engine if single else self.helper)

    def _finish(self, playing: Playing) -> None:
        del self.active[playing.episode.name]
        self.engine.release(playing.episode.name)
        self.ended.append(playing.episode.trajectory)

    def _ask(self, playing: Playing, turn: Turn, engine: Engine) -> None:
        self.asked[turn.key] = playing, engine
        try:
            engine.submit(turn)
        except Exception as error:  # a dead engine takes its own turns down, nothing else
            self._answer(turn.key, _fault(error))

    def _poll(self, engine: Engine) -> None:
        try:
            ended = engine.poll()
        except Exception as error:
            ended = [(key, _fault(error)) for key, (_, its) in list(self.asked.items()) if its is engine]
        for key, result in ended:
            self._answer(key, result)

    def _answer(self, key: str, result: Sample | EngineFault) -> None:
        playing, engine = self.asked.pop(key, (None, None))
        if playing is None:
            return  # of an episode that ended meanwhile
        if isinstance(result, EngineFault):
            self._again(playing, key, engine, result)
            return
        playing.samples[key] = result
        single = isinstance(playing.request, Turn)
        if not single:
            engine.release(key)
        if len(playing.samples) == len(playing.missing):
            samples = [playing.samples[key] for key in playing.missing]
            self._go_on(playing, samples[0] if single else samples)

    def _again(self, playing: Playing, key: str, engine: Engine, fault: EngineFault) -> None:
        playing.faults[key] += 1
        if fault.again and playing.faults[key] <= ENGINE_RETRIES:
            self._ask(playing, playing.missing[key], engine)
        else:
            self._drop_turns(playing)
            self._go_on(playing, fault=fault)

    def _drop_turns(self, playing: Playing) -> None:
        for key in playing.missing:
            _, engine = self.asked.pop(key, (None, None))
            if engine:
                engine.release(key)

    def _collect_jobs(self) -> None:
        """Jobs that are done. Waits for one when no engine has anything to do."""
        if not self.jobs:
            return
        idle = not self.asked and not self.ended
        for job, fault in self.threads.ended(self._patience() if idle else 0):
            if playing := self.jobs.pop(job, None):  # else its episode's time was up
                self._go_on(playing, fault=fault)

    def _patience(self) -> float | None:
        """Seconds until the first job's time is up; None where there is no limit."""
        nearest = min(playing.deadline for playing in self.jobs.values())
        return None if nearest == float("inf") else max(0.0, nearest - time.monotonic())

    def _stop_late(self) -> None:
        """End episodes whose time is up."""
        if not self.max_seconds:
            return
        now = time.monotonic()
        for playing in [p for p in self.active.values() if p.deadline < now]:
            words = f"no answer within the episode's {self.max_seconds:g} s"
            self.jobs = {job: p for job, p in self.jobs.items() if p is not playing}
            fault = ToolFault(words) if isinstance(playing.request, Job) else EngineFault(words)
            self._drop_turns(playing)
            self._go_on(playing, fault=fault)


class Threads:
    """Daemon threads that take one job after another. A hanging tool takes no other's place, and does not keep Python from
    ending: jobs that still wait when next asked for what ended get threads of their own. Most tools are quicker than that,
    and fewer threads contend less with the engine."""

    def __init__(self):
        self.todo: SimpleQueue = SimpleQueue()
        self.done: SimpleQueue = SimpleQueue()
        self.count = self.busy = self.fresh = 0  # threads; jobs not reported yet; those of them since it was last asked

    def run(self, key: int, work: Callable[[], object]) -> None:
        """Do `work`; then `key` and the fault that it met, or None, are in `done`."""
        self.todo.put((key, work))
        self.busy, self.fresh = self.busy + 1, self.fresh + 1
        if not self.count:
            self._start(1)

    def _start(self, count: int) -> None:
        for _ in range(min(count, self.busy - self.count)):
            self.count += 1
            threading.Thread(target=self._serve, name="tool", daemon=True).start()

    def _serve(self) -> None:
        while (job := self.todo.get()) is not None:
            key, work = job
            try:
                work()
                fault = None
            except BaseException as error:
                fault = error if isinstance(error, ToolFault) else ToolFault(f"{type(error).__name__}: {error}")
            self.done.put((key, fault))

    def ended(self, timeout: float | None) -> list[tuple[int, ToolFault | None]]:
        """Jobs that ended since; if there is none, the first one within `timeout` seconds (None: however long)."""
        waiting, found = self.todo.qsize(), []
        self._start(waiting if timeout != 0 else waiting - self.fresh)
        self.fresh = 0
        try:
            while True:
                found.append(self.done.get(timeout=0 if found else timeout))
        except Empty:
            self.busy -= len(found)
            return found

    def close(self) -> None:
        for _ in range(self.count):
            self.todo.put(None)


def _fault(error: Exception) -> EngineFault:
    return error if isinstance(error, EngineFault) else EngineFault(f"{type(error).__name__}: {error}")
