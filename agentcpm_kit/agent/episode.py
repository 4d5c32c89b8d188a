"""THE agent loop. It makes data, is trained and is evaluated, so a reward and a score mean the same thing.

Departures from the reference, whose training and evaluation loops differ from each other: one loop; a faulty tool
ends the episode as a fault instead of becoming a wrong answer; an answer counts only outside the thinking and in
a turn without calls; tokens are recorded as sampled and never tokenised again.
"""

import json
import time
from collections.abc import Callable
from typing import Protocol

from ..profile import Limits
from ..world.faults import FaultPlan, ToolFault
from ..world.tasks import Task
from ..world.tools import Tools, ToolSet
from .context import ContextPolicy
from .messages import Renderer, ToolCall, extract_answer, parse_tool_calls
from .trajectory import EndReason, Step, Trajectory

REPETITION_LIMIT = 3  # the same text for the third time ends an episode (the reference's examples: fourth)
TOOL_RETRIES = 2

ToolFactory = Callable[[Task, str], ToolSet]
OnEnd = Callable[[Trajectory], None]


class Engine(Protocol):
    """What the loop needs of an engine; see `engines.TransformersEngine`."""

    tokenizer: object
    batch_size: int

    def begin(self, prompts: list[list[int]], seeds: list[str]): ...


def world_tools(faults: FaultPlan | None = None) -> ToolFactory:
    """The tools that each task offers, over its own world, with the given faults."""
    return lambda task, episode: Tools(task.open_world(), faults, episode, task.tools)


def run_episodes(tasks: list[Task], engine: Engine, tools: ToolFactory, limits: Limits,
                 context: ContextPolicy | None = None, seed: int = 0, run: int = 0,
                 on_end: OnEnd | None = None) -> list[Trajectory]:
    """Play one episode per task, batched. The result has the order of `tasks`.

    A fault in one episode never ends another. `seed` and `run` seed sampling and tool faults; `on_end` is called
    with each trajectory as it ends.
    """
    renderers: dict[str, Renderer] = {}  # one for each set of tools that a task may offer
    done: list[Trajectory] = []
    for start in range(0, len(tasks), engine.batch_size):
        chunk = tasks[start: start + engine.batch_size]
        # The position keeps the rollouts of one question apart.
        names = [f"{seed}/{run}/{start + i}/{task.task_id}" for i, task in enumerate(chunk)]
        toolsets = [tools(t, n) for t, n in zip(chunk, names, strict=True)]
        episodes = [Episode(t, toolset, _renderer(renderers, engine.tokenizer, toolset.schemas), limits,
                            context or ContextPolicy(), run) for t, toolset in zip(chunk, toolsets, strict=True)]
        _play(episodes, engine, names, on_end)
        done += [episode.trajectory for episode in episodes]
    return done


def _renderer(made: dict[str, Renderer], tokenizer, schemas: list[dict]) -> Renderer:
    key = json.dumps(schemas)
    if key not in made:
        made[key] = Renderer(tokenizer, schemas)
    return made[key]


def _play(episodes: list["Episode"], engine: Engine, names: list[str], on_end: OnEnd | None) -> None:
    """Turn by turn: generate for all that are left, run their tools, drop those that ended."""
    limit = episodes[0].limits.max_new_tokens
    active = episodes
    try:
        batch = engine.begin([e.trajectory.token_ids for e in episodes], names)
        while active:
            samples = batch.generate(limit)
            pieces = [e.turn(s.ids, s.logprobs, s.stopped) for e, s in zip(active, samples, strict=True)]
            for episode, piece in zip(active, pieces, strict=True):
                if piece is None and on_end:
                    on_end(episode.trajectory)
            keep = [i for i, piece in enumerate(pieces) if piece is not None]
            active = [active[i] for i in keep]
            if active:
                batch.extend(keep, [pieces[i] for i in keep])
    except (RuntimeError, OSError, MemoryError) as error:  # a dead engine takes its batch down as faults, not answers
        for episode in active:
            episode.end(EndReason.ENGINE_FAULT, f"{type(error).__name__}: {error}")
            if on_end:
                on_end(episode.trajectory)


class Episode:
    """State of one episode."""

    def __init__(self, task: Task, tools: ToolSet, renderer: Renderer, limits: Limits, context: ContextPolicy, run: int):
        self.tools, self.renderer, self.limits, self.context = tools, renderer, limits, context
        self.texts: list[str] = []
        self.trajectory = Trajectory(task_id=task.task_id, run=run, question=task.question)
        self.trajectory.append(renderer.prompt(task.question), learned=False)
        self.trajectory.prompt_length = len(self.trajectory.token_ids)

    def end(self, reason: EndReason, message: str = "") -> None:
        self.trajectory.end_reason, self.trajectory.message = reason, message

    def turn(self, ids: list[int], logprobs: list[float], stopped: bool) -> list[int] | None:
        """Take a generated turn; ids to append before the next one, or None when the episode has ended."""
        self.trajectory.append(ids, learned=True, logprobs=logprobs)
        text = self.renderer.tokenizer.decode(ids[:-1] if stopped else ids)
        parsed = parse_tool_calls(text)
        step = Step(thinking=parsed.thinking, content=parsed.content, tokens_generated=len(ids))
        step.calls = [{"name": c.name, "arguments": c.arguments} for c in parsed.tool_calls]
        self.trajectory.steps.append(step)
        answer = extract_answer(parsed)
        if answer is not None:
            self.trajectory.answer = answer
            return self.end(EndReason.ANSWERED)
        if not parsed.tool_calls:
            step.status = "format_error"
            if not parsed.errors:
                return self.end(EndReason.FORMAT_ERROR)
        return self._act(step, parsed.tool_calls, text, stopped)

    def _act(self, step: Step, calls: list[ToolCall], text: str, stopped: bool) -> list[int] | None:
        self.texts.append(text)
        if self.texts.count(text) > 1:
            step.status = "repeat_error"
        if self.texts.count(text) >= REPETITION_LIMIT:
            return self.end(EndReason.REPETITION)
        try:
            step.results = [self._call(step, call) for call in calls] or ["Error: this call could not be read as JSON."]
        except ToolFault as fault:
            step.status = "tool_failed"
            return self.end(EndReason.TOOL_FAULT, str(fault))
        if self.trajectory.turns >= self.limits.max_turns:
            return self.end(EndReason.TURN_LIMIT)
        piece = ([] if stopped else [self.renderer.end_id]) + self.renderer.tool_results(step.results)
        if len(self.trajectory.token_ids) + len(piece) + self.limits.max_new_tokens > self.limits.max_context_tokens:
            return self.end(EndReason.CONTEXT_LIMIT)
        self.trajectory.append(piece, learned=False)
        return piece

    def _call(self, step: Step, call: ToolCall) -> str:
        """Run one call, trying a faulty tool again; the refined result. The agent's own mistakes are told to it."""
        started = time.perf_counter()
        try:
            raw = self._with_retries(call)
        except ValueError as error:
            step.status = "format_error"
            raw = f"Error: {error}."
        step.tool_seconds += time.perf_counter() - started
        shown = self.context.refine(call.name, call.arguments, raw)
        step.tokens_read += len(self.renderer.encode(raw))
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
