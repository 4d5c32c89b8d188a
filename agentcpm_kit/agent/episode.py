"""THE agent loop. It makes data, is trained and is evaluated, so a reward and a score mean the same thing.

An `Episode` holds the rules, written as one conversation would go; `schedule` plays many of them at once. Departures from
the reference, whose training and evaluation loops differ from each other: one loop; a faulty tool or engine ends the
episode as a fault instead of becoming a wrong answer; an answer counts only outside the thinking and in a turn without
calls; a turn with neither call nor answer ends the episode; tokens are recorded as sampled and never made again from text.
"""

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import KitError
from ..sections import Limits
from ..world.faults import FaultPlan, ToolFault
from ..world.tasks import Task
from ..world.tools import SEPARATOR, Tools, ToolSet
from .context import ContextPolicy, purpose_of, split_page
from .engines.base import Engine, EngineFault, Sample, Turn
from .history import History
from .messages import Renderer, ToolCall, extract_answer, parse_tool_calls, without_control_tokens
from .schedule import Condense, Job, Request, play_all
from .trajectory import EndReason, Step, Trajectory, read_trajectories, write_trajectories

TOOL_RETRIES = 2
UNREADABLE = "Error: this call could not be read as JSON."

ToolFactory = Callable[[Task, str], ToolSet]
OnEnd = Callable[[Trajectory], None]
Play = Generator[Request, Any, Any]


def world_tools(faults: FaultPlan | None = None) -> ToolFactory:
    """The tools that each task offers, over its own world, with the given faults."""
    return lambda task, episode: Tools(task.open_world(), faults, episode, task.tools)


@contextmanager
def open_tools(source: str | None) -> Iterator[ToolFactory]:
    """The atlas's tools in process or, given a `source` (URL, command or config file), those of MCP servers."""
    if not source:
        yield world_tools()
        return
    from ..world.mcp import RemoteTools

    with RemoteTools(source) as remote:
        yield lambda task, episode: remote.for_episode(episode)


def run_episodes(tasks: list[Task], engine: Engine, tools: ToolFactory, limits: Limits,
                 context: ContextPolicy | None = None, seed: int = 0, run: int = 0,
                 on_end: OnEnd | None = None, log: Path | None = None) -> list[Trajectory]:
    """Play one episode per task, batched. The result has the order of `tasks`.

    A fault in one episode never ends another. `seed` and `run` seed sampling and tool faults; `on_end` is called with
    each trajectory as it ends. With `log`, trajectories are appended to that jsonl file as they end, and those that it
    holds already, of the same tasks, limits and policy, are not played again, faults excepted. It cannot know the model:
    give every model a log of its own.
    """
    names = episode_names(tasks, seed, run)
    found = _logged(log, set(names), settings_hash(limits, context or ContextPolicy())) if log else {}
    for trajectory in play_episodes(tasks, engine, tools, limits, context, seed, [run], skip=set(found)):
        found[trajectory.episode] = trajectory
        if log:
            write_trajectories(log, [trajectory])
        if on_end:
            on_end(trajectory)
    return [found[name] for name in names]


def play_episodes(tasks: list[Task], engine: Engine, tools: ToolFactory, limits: Limits,
                  context: ContextPolicy | None = None, seed: int = 0, runs: Iterable[int] = (0,),
                  skip: Set[str] = frozenset()) -> Iterator[Trajectory]:
    """The same for several runs of each task, as a stream in the order in which episodes end: nothing is kept."""
    renderers: dict[str, Renderer] = {}  # one for each set of tools that a task may offer
    policy = context or ContextPolicy()
    settings = settings_hash(limits, policy)

    def opened() -> Iterator[Episode]:
        for run in runs:
            for name, task in zip(episode_names(tasks, seed, run), tasks, strict=True):
                if name not in skip:
                    toolset = _opened(tools, task, name)
                    yield Episode(name, task, toolset, renderer(toolset), limits, policy, settings, run)

    def renderer(toolset: ToolSet) -> Renderer:
        key = json.dumps(toolset.schemas)
        if key not in renderers:
            renderers[key] = Renderer(engine.tokenizer, toolset.schemas)
            renderers[key].require_tools()
        return renderers[key]

    helper = policy.summariser.engine if policy.summariser else None
    return play_all(opened(), engine, helper, limits.max_seconds)


@dataclass
class NoTools:
    """In the place of tools that could not be opened: every call is that fault."""

    reason: str
    schemas: tuple = ()

    def call(self, name: str, arguments: dict) -> str:
        raise ToolFault(self.reason)


def _opened(tools: ToolFactory, task: Task, name: str) -> ToolSet:
    try:
        return tools(task, name)
    except KitError:  # a mistake of the user's, who wants to know before hundreds of episodes have failed
        raise
    except Exception as error:
        return NoTools(f"{type(error).__name__}: {error}")


def episode_names(tasks: list[Task], seed: int, run: int) -> list[str]:
    """One for each task. The position keeps the rollouts of one question apart."""
    return [f"{seed}/{run}/{i}/{task.task_id}" for i, task in enumerate(tasks)]


def _logged(log: Path, names: set[str], settings: str) -> dict[str, Trajectory]:
    known = read_trajectories(log) if log.is_file() else []
    return {t.episode: t for t in known if t.episode in names and t.settings == settings and not t.end_reason.is_fault}


def settings_hash(limits: Limits, policy: ContextPolicy) -> str:
    """The same for episodes that are played under the same rules."""
    text = json.dumps([limits.model_dump(), policy.settings()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Episode:
    """The rules of one episode."""

    def __init__(self, name: str, task: Task, tools: ToolSet, renderer: Renderer, limits: Limits, policy: ContextPolicy,
                 settings: str, run: int = 0):
        self.name, self.task, self.tools, self.renderer = name, task, tools, renderer
        self.limits, self.policy = limits, policy
        self.history = History(renderer, task.question, policy.keep_thinking)
        self.trajectory = Trajectory(episode=name, settings=settings, task_id=task.task_id, run=run, question=task.question)

    def play(self) -> Play:
        """Turn after turn until one ends the episode. Yields what it waits for, see `schedule`."""
        try:
            if len(self.history.ids) > self._room:
                self._end(EndReason.CONTEXT_LIMIT, "the question leaves no room for a turn")
                return
            while (reason := (yield from self._turn())) is None:
                pass
            self._end(reason)
        except ToolFault as fault:
            self.trajectory.steps[-1].status = "tool_failed"
            self.trajectory.fault = "tool"
            self._end(EndReason.TOOL_FAULT, str(fault))
        except EngineFault as fault:
            self.trajectory.fault = fault.kind
            self._end(EndReason.ENGINE_FAULT, str(fault))

    def _turn(self) -> Play:
        """One turn: think, act, read. The reason why the episode ends with it, or None."""
        step, calls = yield from self._think()
        if self.trajectory.answer is not None:
            return EndReason.ANSWERED
        if not calls and not step.errors:
            return EndReason.FORMAT_ERROR
        if self._repeated(step):
            return (yield from self._reset_or(EndReason.REPETITION))
        acted = step.model_copy()  # a tool that answers after the episode's end changes nothing
        yield Job(lambda: self._act(acted, calls))
        self.trajectory.steps[-1] = step = acted
        if self.policy.writes:
            yield from self._condense(step)
        return (yield from self._go_on(step))

    def _end(self, reason: EndReason, message: str = "") -> None:
        self.trajectory.end_reason, self.trajectory.contexts = reason, self.history.contexts
        self.trajectory.message = self.trajectory.message or message

    def _think(self) -> Play:
        """Ask for a turn and record it."""
        started, before = time.perf_counter(), len(self.history.ids)
        sample: Sample = yield Turn(self.name, list(self.history.ids), f"{self.name}/{self.trajectory.turns}",
                                    self.limits.max_new_tokens, self.history.chat(), tuple(self.renderer.schemas))
        text = sample.text(self.renderer.tokenizer)
        parsed = parse_tool_calls(text)
        self.history.add_turn(sample.ids, sample.logprobs, text, parsed)
        step = Step(thinking=parsed.thinking, content=parsed.content, tokens_before=before,
                    tokens_generated=len(sample.ids), billed=sample.billed, cut=not sample.stopped,
                    context=len(self.history.contexts) - 1, engine_seconds=time.perf_counter() - started,
                    calls=[{"name": call.name, "arguments": call.arguments} for call in parsed.tool_calls], errors=parsed.errors)
        self.trajectory.steps.append(step)
        self.trajectory.exact &= sample.exact
        self.trajectory.answer = extract_answer(parsed)
        if parsed.errors or (not parsed.tool_calls and self.trajectory.answer is None):
            step.status = "format_error"
        return step, parsed.tool_calls

    def _repeated(self, step: Step) -> bool:
        """Whether the same text came too often; the second time it is marked."""
        said = self.history.said
        times = said.count(said[-1])
        if times > 1:
            step.status = "repeat_error"
        return times >= self.limits.max_repetitions

    @property
    def _room(self) -> int:
        """Tokens that a context may have before a turn."""
        return self.limits.max_context_tokens - self.limits.max_new_tokens

    def _go_on(self, step: Step) -> Play:
        """Hand the results over, unless a limit is reached."""
        if limit := self._limit():
            return limit
        if self.history.add_results(step.results, not step.cut, self._room):
            return None
        return (yield from self._reset_or(EndReason.CONTEXT_LIMIT))

    def _limit(self) -> EndReason | None:
        """The limit that is reached, of those that no reset sets back."""
        total = self.limits.max_total_tokens
        if self.trajectory.turns >= self.limits.max_turns:
            return EndReason.TURN_LIMIT
        if total and self.trajectory.tokens_generated >= total:
            self.trajectory.message = f"{total} tokens sampled"
            return EndReason.CONTEXT_LIMIT
        return None

    def _reset_or(self, reason: EndReason) -> Play:
        """Shorten the history, where the policy says so and it helps; else the reason to end."""
        if self.policy.history == "none":
            return reason
        if limit := self._limit():
            return limit
        if self.policy.history == "discard_tools":
            self.history.discard_tools()
        else:
            self.history.discard_all((yield from self._summary()))
        return None if len(self.history.ids) <= self._room else EndReason.CONTEXT_LIMIT

    def _summary(self) -> Play:
        transcript, summariser = self.history.transcript(), self.policy.summariser
        if summariser is None:
            return self.policy.summary_by_extraction(transcript, self.task.question)
        turn = summariser.history_turn(f"{self.name}#{self.trajectory.turns}.history", transcript, self.task.question)
        return (yield from self._written(self.trajectory.steps[-1], [turn]))[0]

    def _written(self, step: Step, turns: list[Turn]) -> Play:
        """What the summariser writes for each turn; its tokens are counted."""
        samples = yield Condense(turns)
        step.condenser_read += sum(len(turn.ids) for turn in turns)
        step.condenser_written += sum(len(sample.ids) for sample in samples)
        return [self.policy.summariser.read(sample) for sample in samples]

    def _condense(self, step: Step) -> Play:
        """Have the pages of the results written anew."""
        key = f"{self.name}#{self.trajectory.turns}"
        for i, call in enumerate(step.calls):
            tokens = len(self.renderer.encode(step.results[i]))
            if not self.policy.applies(call["name"], call["arguments"], tokens):
                continue
            pages = [split_page(page) for page in step.results[i].split(SEPARATOR)]
            turns = [self.policy.summariser.page_turn(f"{key}.{i}.{j}", page.text, purpose_of(call["arguments"]))
                     for j, page in enumerate(pages) if page.passages]
            written = iter((yield from self._written(step, turns)) if turns else [])
            shown = SEPARATOR.join(f"{page.heading}\n{next(written)}" if page.passages else page.text for page in pages)
            step.tokens_shown += len(self.renderer.encode(shown)) - tokens
            step.results[i] = shown

    def _act(self, step: Step, calls: list[ToolCall]) -> None:
        """Run the calls in order, in a thread; calls that could not be read are told to the agent after them."""
        started = time.perf_counter()
        step.results = [self._call(step, call) for call in calls] + [UNREADABLE] * len(step.errors)
        step.tool_seconds = time.perf_counter() - started

    def _call(self, step: Step, call: ToolCall) -> str:
        """One result, refined where that needs no model. The agent's own mistakes are told to it."""
        try:
            raw = without_control_tokens(self._with_retries(call))
        except ValueError as error:
            step.status = "format_error"
            raw = f"Error: {error}."
        tokens = len(self.renderer.encode(raw))
        step.tokens_read += tokens
        if not self.policy.applies(call.name, call.arguments, tokens) or self.policy.writes:
            step.tokens_shown += tokens
            return raw
        shown = self.policy.refine(call.arguments, raw, self.task)
        step.tokens_shown += len(self.renderer.encode(shown))
        return shown

    def _with_retries(self, call: ToolCall) -> str:
        for attempt in range(TOOL_RETRIES + 1):
            try:
                return self.tools.call(call.name, call.arguments)
            except ToolFault:
                if attempt == TOOL_RETRIES:
                    raise
        raise AssertionError("unreachable")
