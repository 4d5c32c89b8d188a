"""What `horizon.py` plays: long scripted tasks, a guided model, and tools that keep a record. Not run by itself."""

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from agentcpm_kit.agent.context import ContextPolicy
from agentcpm_kit.agent.engines import Engine, TransformersEngine, Turn, load_model
from agentcpm_kit.agent.episode import TOOL_RETRIES
from agentcpm_kit.agent.oracle import OracleEngine
from agentcpm_kit.agent.trajectory import EndReason, Trajectory
from agentcpm_kit.evaluate.runner import suite
from agentcpm_kit.evaluate.scorers import score
from agentcpm_kit.micro.tokenizer import CHAT_TEMPLATE, SPECIALS
from agentcpm_kit.profile import load_profile, repo_root
from agentcpm_kit.sections import Limits
from agentcpm_kit.world import FaultPlan, Task, Tools, load_family
from agentcpm_kit.world.faults import KINDS, TOOLS, ToolFault

FAMILIES = ("deep", "multihop", "constraints", "navigate", "assist")  # they share their worlds
SLOW, SLOW_S = 0.02, 0.02  # share of calls that are slow, and by how many seconds
THOUGHT = 8  # tokens that the model thinks at most


@dataclass
class Watch:
    """What the tools saw of one episode."""

    calls: int = 0  # repeated ones counted too
    faults: int = 0
    in_a_row: int = 0
    given_up: int = 0


class WatchedTools(Tools):
    """Tools over a task's world that keep a record of their faults."""

    def __init__(self, task: Task, plan: FaultPlan, episode: str, watch: Watch):
        super().__init__(task.open_world(), plan, episode, task.tools)
        self.watch = watch

    def call(self, name: str, arguments: dict) -> str:
        self.watch.calls += 1
        try:
            result = super().call(name, arguments)
        except ToolFault:
            self.watch.faults += 1
            self.watch.in_a_row += 1
            self.watch.given_up += self.watch.in_a_row > TOOL_RETRIES
            raise
        self.watch.in_a_row = 0
        return result


@dataclass
class Part:
    """`steps` are the calls that each task makes if none is given up; `ends_right` judges an episode that met no fault."""

    tasks: list[Task]
    steps: list[int]
    engine: Callable[[int], Engine]  # of a batch size
    limits: Limits
    ends_right: Callable[[Trajectory, Task], bool]
    plan: FaultPlan
    policy: ContextPolicy = field(default_factory=ContextPolicy)
    watches: dict[str, Watch] = field(default_factory=lambda: defaultdict(Watch))

    def tools(self, task: Task, episode: str) -> WatchedTools:
        return WatchedTools(task, self.plan, episode, self.watches[episode])

    def is_right(self, trajectory: Trajectory, task: Task) -> bool:
        """Whether the end reason is what the tools saw."""
        given_up = self.watches[trajectory.episode].given_up
        if trajectory.end_reason == EndReason.TOOL_FAULT:
            return given_up == 1 and trajectory.steps[-1].status == "tool_failed"
        return given_up == 0 and self.ends_right(trajectory, task)


def fault_plan(share: float) -> FaultPlan:
    """All kinds that fail, equally often; on every tool."""
    kinds = [kind for kind in KINDS if kind != "slow"]
    rates = {kind: share / len(kinds) for kind in kinds} | {"slow": SLOW}
    return FaultPlan(rates=dict.fromkeys(TOOLS, rates), slow_s=SLOW_S)


def long_task(name: str, tasks: list[Task], steps: int) -> Task:
    """Tasks of one world in a row, in an order drawn by `name`, with at least so many steps; the last answer counts."""
    chosen: list[Task] = []
    for task in random.Random(name).sample(tasks, len(tasks)):
        if sum(len(t.steps) for t in chosen) < steps:
            chosen.append(task)
    thoughts = [step for task in chosen for step in task.steps]
    gold = tuple(replace(step, thought=f"Step {i}. {step.thought}") for i, step in enumerate(thoughts, 1))
    question = " ".join(f"{i}. {task.question}" for i, task in enumerate(chosen, 1))
    return replace(chosen[-1], task_id=name, question=f"Answer the last question.\n{question}", tools=TOOLS, steps=gold)


def page_tokenizer(tasks: list[Task]):
    """Byte pairs of a world's pages: every text can be written in it, unlike in the vocabulary of micro-qwen3."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    world, core = tasks[0].open_world(), Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=2000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator((world.page(url).text for url in world.urls), trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False)


def script_part(episodes: int, turns: int, faults: float) -> Part:
    """The oracle on tasks of so many calls and more, without limits."""
    worlds = defaultdict(list)
    for task in (task for family in FAMILIES for task in load_family(family, "test")):
        worlds[task.world].append(task)
    groups = list(worlds.values())
    tasks = [long_task(f"long-{i}", groups[i % len(groups)], turns) for i in range(episodes)]
    tokenizer = page_tokenizer(tasks)
    return Part(tasks, [len(task.steps) for task in tasks], lambda size: OracleEngine(tokenizer, tasks, size),
                Limits(max_turns=10 * turns, max_new_tokens=10_000, max_context_tokens=10_000_000),
                lambda t, task: score(t, task).correct is True and t.turns == len(task.steps) + 1, fault_plan(faults))


class Explorer(TransformersEngine):
    """Up to `THOUGHT` tokens of thinking, then a call that is given but for the page, which the model chooses.

    It has the choice among the pages that its context names and has not read; if there is none, among all of the world's.
    """

    def __init__(self, model, tokenizer, tasks: list[Task], batch_size: int):
        super().__init__(model, tokenizer, 0.0, batch_size)
        before, after = map(self._encode, ('\n<tool_call>{"name": "fetch_url", "arguments": {"url": ["atlas/',
                                           '"], "purpose": "read"}}</tool_call>'))
        self.script, self.url = [*before, None, *after, self.end], before[-2]
        self.open, self.close = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
        special = set(tokenizer.convert_tokens_to_ids(SPECIALS)) - {self.close}
        self.thinking = [i for i in range(len(tokenizer)) if i not in special]
        self.pages = {task.task_id: {self._encode(url)[1] for url in task.open_world().urls} for task in tasks}

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _sample(self, rows, logits):
        mask = logits.new_full(logits.shape, float("-inf"))
        for i, row in enumerate(rows):
            mask[i, self._allowed(row)] = 0
        return super()._sample(rows, logits + mask)

    def _allowed(self, row) -> list[int]:
        if self.close not in row.ids:
            return [self.open] if not row.ids else self.thinking if len(row.ids) <= THOUGHT else [self.close]
        token = self.script[len(row.ids) - row.ids.index(self.close) - 1]
        return self._choice(row.turn) if token is None else [token]

    def _choice(self, turn: Turn) -> list[int]:
        pages, ids = self.pages[turn.key.rsplit("/", 1)[-1]], turn.ids
        unread = pages - {ids[i + 2] for i, token in enumerate(ids[:-2]) if token == self.url}
        return sorted(unread.intersection(ids) or unread)


def model_part(episodes: int, turns: int, faults: float, history: str) -> Part:
    """micro-merge on the tasks of the micro profile, without a limit on repetitions."""
    profile = load_profile("micro")
    tasks = suite(profile, "test", -(-episodes // len(profile.evaluation.hops)))
    model, tokenizer = load_model(repo_root() / "data/models/micro-merge")
    limits = profile.limits.model_copy(update={"max_turns": turns, "max_repetitions": 10**9})
    return Part(tasks[:episodes], [turns] * episodes, lambda size: Explorer(model, tokenizer, tasks, size), limits,
                lambda t, _: t.end_reason == EndReason.TURN_LIMIT and t.turns == turns, fault_plan(faults),
                ContextPolicy(history=history))
