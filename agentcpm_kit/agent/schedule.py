"""Plays many episodes at once: engines generate, tools run in threads, and whoever has what it waits for goes on.

An episode is a generator that yields what it needs: a `Turn` of the model, a `Job` for a thread, or `Condense`d texts.
No episode waits for another. The order in which they are served depends on timing, what they are served does not.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from ..world.faults import ToolFault
from .engines.base import Engine, EngineFault, Sample, Turn
from .trajectory import Trajectory

ENGINE_RETRIES = 2  # a turn that met a fault is asked again so often
WORKERS = 32  # threads for tools: they wait for servers and processes more than they compute


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
    faults: int = 0


def play_all(episodes: Iterator, engine: Engine, helpers: list[Engine], max_seconds: float = 0.0) -> Iterator[Trajectory]:
    """Play episodes, at most `engine.batch_size` at once; trajectories in the order in which they end.

    `helpers` are the engines that condense (the first one is used). After `max_seconds` (0: never) an episode ends as the
    fault of what it waits for.
    """
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="tools")
    try:
        yield from _Table(engine, helpers[0] if helpers else engine, pool, max_seconds).play(episodes)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a hanging tool must not hold up the others' results


class _Table:
    """State of `play_all`."""

    def __init__(self, engine: Engine, helper: Engine, pool: ThreadPoolExecutor, max_seconds: float):
        self.engine, self.helper, self.pool, self.max_seconds = engine, helper, pool, max_seconds
        self.engines = [engine] if helper is engine else [engine, helper]
        self.active: dict[str, Playing] = {}
        self.asked: dict[str, tuple[Playing, Engine]] = {}  # turns under way, by key
        self.jobs: dict[Future, Playing] = {}
        self.ended: deque[Trajectory] = deque()

    def play(self, episodes: Iterator) -> Iterator[Trajectory]:
        while True:
            while len(self.active) < max(1, self.engine.batch_size) and (episode := next(episodes, None)):
                self._begin(episode)
            if not self.active:
                return
            for engine in self.engines:
                self._poll(engine)
            self._collect_jobs()
            self._stop_late()
            while self.ended:
                yield self.ended.popleft()

    def _begin(self, episode) -> None:
        deadline = time.monotonic() + self.max_seconds if self.max_seconds else float("inf")
        playing = Playing(episode, episode.play(), deadline)
        self.active[episode.name] = playing
        self._go_on(playing)

    def _go_on(self, playing: Playing, value=None, fault: Exception | None = None) -> None:
        """Hand an episode what it waited for, and take its next wish."""
        playing.missing, playing.samples, playing.faults = {}, {}, 0
        try:
            playing.request = playing.generator.throw(fault) if fault else playing.generator.send(value)
        except StopIteration:
            self._finish(playing)
            return
        if isinstance(playing.request, Job):
            self.jobs[self.pool.submit(playing.request.work)] = playing
            return
        single = isinstance(playing.request, Turn)
        for turn in [playing.request] if single else playing.request.turns:
            playing.missing[turn.key] = turn
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
        playing.faults += 1
        if playing.faults <= ENGINE_RETRIES:
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
        idle = not self.asked
        nearest = min(playing.deadline for playing in self.jobs.values()) - time.monotonic()
        timeout = (None if nearest == float("inf") else max(0.0, nearest)) if idle else 0
        done, _ = wait(self.jobs, timeout, FIRST_COMPLETED)
        for future in done:
            playing = self.jobs.pop(future)
            fault = future.exception()
            if fault and not isinstance(fault, ToolFault):
                fault = ToolFault(f"{type(fault).__name__}: {fault}")
            self._go_on(playing, fault=fault)

    def _stop_late(self) -> None:
        """End episodes whose time is up."""
        if not self.max_seconds:
            return
        now = time.monotonic()
        for playing in [p for p in self.active.values() if p.deadline < now]:
            words = f"no answer within the episode's {self.max_seconds:g} s"
            self.jobs = {future: p for future, p in self.jobs.items() if p is not playing}
            fault = ToolFault(words) if isinstance(playing.request, Job) else EngineFault(words)
            self._drop_turns(playing)
            self._go_on(playing, fault=fault)


def _fault(error: Exception) -> EngineFault:
    return error if isinstance(error, EngineFault) else EngineFault(f"{type(error).__name__}: {error}")
