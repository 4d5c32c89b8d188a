"""What `rollout.py` compares: engines, TRL's loop, the replay of recorded turns, and stopwatches. Not run by itself."""

import tempfile
import threading
import time
import warnings
from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from agentcpm_kit.agent import episode, schedule
from agentcpm_kit.agent.engines import Engine, Sample, TransformersEngine, Turn, load_model
from agentcpm_kit.agent.engines.base import Ended
from agentcpm_kit.agent.episode import run_episodes, world_tools
from agentcpm_kit.agent.messages import Renderer, extract_answer, first_messages, parse_tool_calls
from agentcpm_kit.sections import Limits
from agentcpm_kit.world import Task, Tools

PAUSE_S = 0.0005
FORCE = 1e6  # added to a logit, it leaves no other token a chance


@dataclass
class Outcome:
    seconds: float
    tokens: int  # generated
    answers: dict[str, str | None]  # by task
    tools_s: float = 0.0  # added up over the tools' threads


def play(tasks: list[Task], engine: Engine, limits: Limits, at_once: int = 0) -> Outcome:
    """Under the kit's loop. With `at_once`, so many tasks at a time: none begins before they have all ended."""
    started, step = time.perf_counter(), at_once or len(tasks)
    found = [t for i in range(0, len(tasks), step) for t in run_episodes(tasks[i: i + step], engine, world_tools(), limits)]
    seconds = time.perf_counter() - started
    return Outcome(seconds, sum(t.tokens_generated for t in found), {t.task_id: t.answer for t in found},
                   sum(step.tool_seconds for t in found for step in t.steps))


class GenerateEngine:
    """`model.generate` over the whole contexts of all conversations, one turn of each; nothing is kept between turns.

    A batch waits until every conversation under way has its next turn, as a loop over turns does. Log-probs are not
    asked for, which spares `generate` work that the kit's engine does.
    """

    def __init__(self, model, tokenizer, batch_size: int):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.end, self.pad = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.pad_token_id
        self.waiting: dict[str, Turn] = {}
        self.open: set[str] = set()

    def submit(self, turn: Turn) -> None:
        self.waiting[turn.key] = turn
        self.open.add(turn.key)

    def release(self, key: str) -> None:
        self.waiting.pop(key, None)
        self.open.discard(key)

    def poll(self) -> Ended:
        if len(self.waiting) == len(self.open):
            turns, self.waiting = list(self.waiting.values()), {}
            return list(zip([turn.key for turn in turns], self._generate(turns), strict=True)) if turns else []
        if self.waiting:
            time.sleep(PAUSE_S)  # the others' tools are at work
        return []

    def _generate(self, turns: list[Turn]) -> list[Sample]:
        import torch

        width = max(len(turn.ids) for turn in turns)
        ids = torch.tensor([[self.pad] * (width - len(turn.ids)) + turn.ids for turn in turns])
        mask = torch.tensor([[0] * (width - len(turn.ids)) + [1] * len(turn.ids) for turn in turns])
        with torch.inference_mode():
            out = self.model.generate(input_ids=ids, attention_mask=mask, do_sample=False, eos_token_id=self.end,
                                      pad_token_id=self.pad, max_new_tokens=max(turn.max_new_tokens for turn in turns))
        return [self._sample(row) for row in out[:, width:].tolist()]

    def _sample(self, ids: list[int]) -> Sample:
        stopped = self.end in ids
        ids = ids[: ids.index(self.end) + 1] if stopped else ids
        return Sample(ids, [0.0] * len(ids), stopped)


class Recorder(TransformersEngine):
    """Keeps every turn: `conversations` in the order in which they began, `said` by the turn's seed, its name."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.turns: dict[str, list[Turn]] = {}
        self.said: dict[str, list[int]] = {}

    @property
    def conversations(self) -> list[list[Turn]]:
        return list(self.turns.values())

    def submit(self, turn: Turn) -> None:
        self.turns.setdefault(turn.key, []).append(turn)
        super().submit(turn)

    def poll(self) -> Ended:
        ended = super().poll()
        for key, sample in ended:
            self.said[self.turns[key][-1].seed] = sample.ids
        return ended


class Replayer(TransformersEngine):
    """Samples as ever, but from logits that leave only the recorded token; `wrong` counts where another was the largest."""

    def __init__(self, *args, said: dict[str, list[int]], **options):
        super().__init__(*args, **options)
        self.said, self.wrong, self.forced = said, 0, 0

    def _sample(self, rows, logits):
        import torch

        right = torch.tensor([self.said[row.turn.seed][len(row.ids)] for row in rows], dtype=torch.long)
        self.wrong += int((logits.argmax(-1) != right).sum())
        self.forced += len(rows)
        logits[torch.arange(len(rows)), right] += FORCE
        return super()._sample(rows, logits)


def replay(engine: Engine, conversations: list[list[Turn]]) -> float:
    """Seconds to generate recorded turns, each as soon as the one before it has ended."""
    coming, rest, started = iter(conversations), {}, time.perf_counter()
    while True:
        while len(rest) < engine.batch_size and (turns := next(coming, None)):
            rest[turns[0].key] = deque(turns[1:])
            engine.submit(turns[0])
        if not rest:
            return time.perf_counter() - started
        for key, _ in engine.poll():
            if rest[key]:
                engine.submit(rest[key].popleft())
            else:
                engine.release(key)
                del rest[key]


class TRLLoop:
    """`GRPOTrainer._generate` with its own tool loop, parser and batching, and without rewards or an optimiser step.

    Our additions: TRL's response template for Qwen3 (it does not know micro-merge's chat template, which writes the same
    form), and a tool dictionary for each prompt, because each task has its own world; TRL makes such dictionaries itself for
    environments. Its prompts are the kit's, token by token. Its rules are not quite: no repetition limit, an episode ends
    with the first turn without a call, and a context is full by the length of the completion.
    """

    def __init__(self, path: Path, tasks: list[Task], batch: int, limits: Limits):
        from datasets import Dataset

        with warnings.catch_warnings(action="ignore"):  # about the version of vLLM, which is not used here
            from trl import GRPOConfig, GRPOTrainer
            from trl.chat_template_utils import qwen3_template
        self.tasks, self.batch = tasks, batch
        model, tokenizer = load_model(path)
        tokenizer.response_template = qwen3_template
        config = GRPOConfig(
            output_dir=tempfile.mkdtemp(), max_completion_length=limits.max_context_tokens, report_to=[], use_cpu=True,
            max_tool_calling_iterations=limits.max_turns - 1, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
            generation_kwargs={"do_sample": False, "max_new_tokens": limits.max_new_tokens})
        rows = Dataset.from_list([{"prompt": first_messages(task.question)} for task in tasks])
        self.trainer = GRPOTrainer(model=model, processing_class=tokenizer, args=config, tools=[search, fetch_url],
                                   reward_funcs=lambda completions, **_: [0.0] * len(completions), train_dataset=rows)

    def play(self) -> Outcome:
        tokens, answers, started = 0, {}, time.perf_counter()
        for start in range(0, len(self.tasks), self.batch):
            tasks = self.tasks[start: start + self.batch]
            self.trainer._sync_tool_dicts = [_tools(task) for task in tasks]
            self.trainer._async_tool_dicts = [{} for _ in tasks]
            _, _, mask, completions, *_ = self.trainer._generate([first_messages(task.question) for task in tasks])
            tokens += sum(map(sum, mask))
            for task, messages in zip(tasks, completions, strict=True):
                answers[task.task_id] = extract_answer(parse_tool_calls(messages[-1]["content"]))
        return Outcome(time.perf_counter() - started, tokens, answers)


def search(query: list[str]) -> str:
    """Search the atlas. Returns titles, urls and snippets.

    Args:
        query: What to search for.
    """


def fetch_url(url: list[str], purpose: str) -> str:
    """Read pages of the atlas.

    Args:
        url: Addresses of the pages.
        purpose: What for.
    """


def _tools(task: Task) -> dict:
    tools = Tools(task.open_world())
    return {"search": lambda query: tools.call("search", {"query": query}),
            "fetch_url": lambda url, purpose="": tools.call("fetch_url", {"url": url, "purpose": purpose})}


def _pass(*_, plan, **__) -> str:
    return "model: passes with contexts" if plan.prefills else "model: passes of single tokens"


def parts_of(engine: TransformersEngine) -> list[tuple]:
    """(owner, function, part of the time)."""
    rendering = [(Renderer, name) for name in ("prompt", "conversation", "tool_results", "encode")] + [(Sample, "text")]
    return [(type(engine.model), "forward", _pass), (TransformersEngine, "_sample", "sampling"),
            (TransformersEngine, "poll", "batching and cache"), (episode, "parse_tool_calls", "parsing"),
            (episode, "extract_answer", "parsing"), *[(*each, "rendering and tokenising") for each in rendering],
            (schedule.Threads, "run", "handing calls to threads"), (schedule.Threads, "ended", "waiting for tools")]


class Stopwatch:
    """Exclusive seconds by part: those of a wrapped function, less those of wrapped functions within it. Main thread only."""

    def __init__(self):
        self.seconds: Counter[str] = Counter()
        self.inner = 0.0

    def around(self, function, part):
        def timed(*args, **options):
            if threading.current_thread() is not threading.main_thread():
                return function(*args, **options)
            outside, self.inner, started = self.inner, 0.0, time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                took = time.perf_counter() - started
                self.seconds[part if isinstance(part, str) else part(*args, **options)] += took - self.inner
                self.inner = outside + took
        return timed


def measure_parts(tasks: list[Task], engine: TransformersEngine, limits: Limits) -> tuple[dict[str, float], Outcome]:
    """Seconds of each part, the largest first, and the outcome."""
    watch = Stopwatch()
    with ExitStack() as stack:
        for owner, name, part in parts_of(engine):
            stack.enter_context(mock.patch.object(owner, name, watch.around(getattr(owner, name), part)))
        outcome = play(tasks, engine, limits)
    rest = outcome.seconds - sum(watch.seconds.values())
    return dict(watch.seconds.most_common()) | {"scheduling and rest": rest}, outcome
