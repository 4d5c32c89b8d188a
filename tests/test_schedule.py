"""Many episodes at once: nobody waits for another, a fault stays where it happened, and nothing is left behind."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import pytest

from agentcpm_kit.agent.context import ContextPolicy
from agentcpm_kit.agent.engines import EngineFault
from agentcpm_kit.agent.episode import play_episodes, run_episodes, world_tools
from agentcpm_kit.agent.schedule import ENGINE_RETRIES, Condense, Job, play_all
from agentcpm_kit.agent.summarise import Summariser
from agentcpm_kit.agent.trajectory import EndReason
from agentcpm_kit.profile import repo_root
from agentcpm_kit.world import make_tasks
from agentcpm_kit.world.tools import SEPARATOR

from .test_episode import ANSWER, LIMITS, PAGES, Script, ToolBox, box, limits, said, turn_number

TASKS = make_tasks("test", 12, 2, 3, 60, 2)
TWO_TURNS = [PAGES[0], ANSWER]
ANSWERED, TOOL_FAULT, ENGINE_FAULT = EndReason.ANSWERED, EndReason.TOOL_FAULT, EndReason.ENGINE_FAULT


def reasons(found):
    return [t.end_reason for t in found]


def task_of(turn):
    """Its position in `TASKS`."""
    return int(turn.key.split("#")[0].split("/")[2])


# -- tools


def test_tools_run_at_the_same_time(tokenizer):
    """Each of the ten waits in its tool until all ten are there."""
    together = threading.Barrier(10, timeout=10)
    tools = box(lambda _: together.wait() and "" or "found")
    assert reasons(run_episodes(TASKS[:10], Script(tokenizer, TWO_TURNS, 10), tools, LIMITS)) == [ANSWERED] * 10


def test_eight_slow_tools_take_the_time_of_one(tokenizer):
    started = time.monotonic()
    run_episodes(TASKS[:8], Script(tokenizer, TWO_TURNS, 8), box(lambda _: time.sleep(0.3) or "found"), LIMITS)
    assert time.monotonic() - started < 1.2


@pytest.fixture
def over():
    """Set when the test is over, so that its threads end."""
    event = threading.Event()
    yield event
    event.set()


def test_a_hanging_tool_holds_up_nobody(tokenizer, over):
    """The others end, and more join in its neighbour's place, while the first still waits for its tool."""
    def tools(task, episode):
        return ToolBox(lambda _: (over.wait(5) if task is TASKS[0] else None) and "" or "found")
    stream = play_episodes(TASKS, Script(tokenizer, TWO_TURNS, 2), tools, LIMITS)
    first = [next(stream) for _ in TASKS[1:]]
    assert reasons(first) == [ANSWERED] * 11 and TASKS[0].task_id not in {t.task_id for t in first}
    over.set()
    assert [t.task_id for t in stream] == [TASKS[0].task_id]


def test_forty_hanging_tools_hold_up_nobody(tokenizer, over):
    """A server that hangs must not use up the threads of all other tools."""
    def tools(task, episode):
        return ToolBox(lambda _: (over.wait(5) if task is TASKS[0] else None) and "" or "found")
    tasks = [TASKS[0]] * 40 + [TASKS[1]]
    found = run_episodes(tasks, Script(tokenizer, TWO_TURNS, 64), tools, limits(max_seconds=2.0))
    assert reasons(found) == [TOOL_FAULT] * 40 + [ANSWERED]


def test_a_hanging_tool_does_not_keep_python_from_ending():
    code = ("import time; from types import SimpleNamespace as Some\n"
            "from agentcpm_kit.agent.schedule import Job, play_all\n"
            "from agentcpm_kit.world.faults import ToolFault\n"
            "def play():\n"
            "    try: yield Job(lambda: time.sleep(20))\n"
            "    except ToolFault: pass\n"
            "engine = Some(batch_size=1, poll=lambda: [], release=lambda key: None)\n"
            "print(list(play_all(iter([Some(name='a', trajectory='ended', play=play)]), engine, None, 0.1)))\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=15, cwd=repo_root())
    assert done.stdout == "['ended']\n"


# -- engines


class Broken(Script):
    """Raises the first `times` times that it is asked for (`at` "submit" or "poll") something that `meets`."""

    at, times = "poll", 10**9

    def meets(self, turn):
        return True

    def fail(self, at, turns):
        if self.at == at and self.times > 0 and any(map(self.meets, turns)):
            self.times -= 1
            raise RuntimeError("CUDA error")

    def submit(self, turn):
        self.fail("submit", [turn])
        super().submit(turn)

    def poll(self):
        turns, self.waiting = self.waiting, {}
        self.fail("poll", turns.values())  # the turns under way are lost with it
        self.waiting = turns
        return super().poll()


def broken(tokenizer, lines, at, times=10**9, batch_size=4):
    engine = Broken(tokenizer, lines, batch_size)
    engine.at, engine.times = at, times
    return engine


@pytest.mark.parametrize("at", ["submit", "poll"])
def test_a_dead_engine_is_a_fault_of_every_episode_and_the_run_ends(tokenizer, at):
    found = run_episodes(TASKS, broken(tokenizer, TWO_TURNS, at), world_tools(), LIMITS)
    assert reasons(found) == [ENGINE_FAULT] * 12 and {t.message for t in found} == {"RuntimeError: CUDA error"}


@pytest.mark.parametrize("at", ["submit", "poll"])
@pytest.mark.parametrize("times", [1, ENGINE_RETRIES])
def test_an_engine_that_fails_and_then_works_is_no_fault(tokenizer, at, times):
    found = run_episodes(TASKS, broken(tokenizer, TWO_TURNS, at, times), world_tools(), LIMITS)
    assert reasons(found) == [ANSWERED] * 12 and {t.turns for t in found} == {2}


def test_one_turn_that_cannot_be_submitted_is_one_fault(tokenizer):
    engine = broken(tokenizer, TWO_TURNS, "submit")
    engine.meets = lambda turn: task_of(turn) == 2 and turn_number(turn) == 1
    found = run_episodes(TASKS, engine, world_tools(), LIMITS)
    assert [i for i, reason in enumerate(reasons(found)) if reason == ENGINE_FAULT] == [2] and found[2].turns == 1


def flaky(times):
    """Each turn meets so many faults before it is written."""
    tries = {}

    def line(turn):
        tries[turn.seed] = tries.get(turn.seed, 0) + 1
        return EngineFault("cut stream") if tries[turn.seed] <= times else TWO_TURNS[turn_number(turn)]
    return line


def test_every_turn_has_its_own_retries(tokenizer):
    for times, reason in ((ENGINE_RETRIES, ANSWERED), (ENGINE_RETRIES + 1, ENGINE_FAULT)):
        found = run_episodes(TASKS, Script(tokenizer, flaky(times)), world_tools(), LIMITS)
        assert reasons(found) == [reason] * 12


def test_a_retried_turn_is_the_same_turn(tokenizer):
    engine = Script(tokenizer, flaky(1))
    run_episodes(TASKS[:1], engine, world_tools(), LIMITS)
    assert [turn_number(turn) for turn in engine.asked] == [0, 0, 1, 1] and engine.asked[0] == engine.asked[1]


# -- the summariser's engine

PAGE = "# Pulmak\nPulmak has home Talin.\nPulmak has owner Pimix."


def summarised(tokenizer, writer, pages, tasks=TASKS[:3]):
    """Play with a summariser; every call returns so many pages."""
    policy = ContextPolicy("summarise", summariser=Summariser(writer, "short", max_new_tokens=20))
    tools = box(lambda _: SEPARATOR.join([PAGE] * pages))
    return run_episodes(tasks, Script(tokenizer, TWO_TURNS), tools, LIMITS, policy)


@pytest.mark.parametrize("at", ["submit", "poll"])
@pytest.mark.parametrize("pages", [1, 2, 5])
def test_a_dead_summariser_is_a_fault_and_the_run_ends(tokenizer, at, pages):
    found = summarised(tokenizer, broken(tokenizer, lambda turn: "a", at), pages)
    assert reasons(found) == [ENGINE_FAULT] * 3 and {t.turns for t in found} == {1}


@pytest.mark.parametrize("at", ["submit", "poll"])
@pytest.mark.parametrize("pages", [1, 2, 5])
def test_a_summariser_that_fails_once_is_no_fault(tokenizer, at, pages):
    """However many pages were under way when it did."""
    found = summarised(tokenizer, broken(tokenizer, lambda turn: "a", at, times=1), pages)
    assert reasons(found) == [ANSWERED] * 3
    assert {t.steps[0].results[0] for t in found} == {SEPARATOR.join(["# Pulmak\na"] * pages)}


def test_a_dead_summariser_leaves_those_alone_who_do_not_need_it(tokenizer):
    policy = ContextPolicy("summarise", summariser=Summariser(broken(tokenizer, [], "poll"), "short"))

    def tools(task, episode):
        return ToolBox(lambda _: PAGE if task is TASKS[1] else "Error: page not found.")
    found = run_episodes(TASKS[:4], Script(tokenizer, TWO_TURNS, 4), tools, LIMITS, policy)
    assert reasons(found) == [ANSWERED, ENGINE_FAULT, ANSWERED, ANSWERED]


def test_pages_are_put_together_in_their_order_whichever_ends_first(tokenizer):
    class Backwards(Script):
        """One turn at each poll, the last one first."""

        def poll(self):
            if not self.waiting:
                return []
            key, turn = self.waiting.popitem()
            return [(key, said(self.tokenizer, turn.key[-1]))]

    writer = Backwards(tokenizer, [])
    found = summarised(tokenizer, writer, 4)
    assert {t.steps[0].results[0] for t in found} == {SEPARATOR.join(f"# Pulmak\n{i}" for i in range(4))}
    assert sorted(writer.released) == sorted({turn.key for turn in writer.asked})


# -- who is under way


class Counting(Script):
    """Counts the conversations that it knows: asked, and not released yet."""

    most = 0
    living: set

    def submit(self, turn):
        self.living = getattr(self, "living", set()) | {turn.key}
        self.most = max(self.most, len(self.living))
        super().submit(turn)

    def release(self, key):
        self.living = self.living - {key}
        super().release(key)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_as_many_as_the_batch_holds_are_under_way(tokenizer, size):
    engine, opened, ended = Counting(tokenizer, TWO_TURNS, size), [], []

    def tools(task, episode):
        opened.append(episode)
        assert len(opened) - len(ended) <= size
        return ToolBox(lambda _: "found")
    found = run_episodes(TASKS, engine, tools, LIMITS, on_end=ended.append)
    assert reasons(found) == [ANSWERED] * 12 and engine.most == min(size, 12)
    assert not engine.living and sorted(engine.released) == sorted(t.episode for t in found)


class LastFirst(Script):
    """Writes the first task's turns only when nothing else is asked for."""

    def poll(self):
        ready = [key for key, turn in self.waiting.items() if task_of(turn)] or list(self.waiting)
        return [(key, self.write(self.waiting.pop(key))) for key in ready]


def test_new_episodes_join_while_a_long_turn_is_written(tokenizer):
    stream = play_episodes(TASKS, LastFirst(tokenizer, lambda turn: ANSWER, 2), box(lambda _: "found"), LIMITS)
    assert [int(t.episode.split("/")[2]) for t in stream] == [*range(1, 12), 0]


def test_a_batch_that_shrinks_lets_nobody_new_in(tokenizer):
    """After running out of memory an engine halves its batch."""
    engine = Counting(tokenizer, None, 8)

    def line(turn):
        engine.batch_size = 2
        return TWO_TURNS[turn_number(turn)]
    engine.lines = line
    found = run_episodes(TASKS, engine, box(lambda _: "found"), LIMITS)
    assert reasons(found) == [ANSWERED] * 12 and engine.most == 8
    assert len({turn.key for turn in engine.asked[-8:]}) <= 5  # the last four came two by two, one before them may overlap


def test_trajectories_come_in_the_order_in_which_they_end(tokenizer):
    scripts = [[*PAGES[:3], ANSWER], [ANSWER], [PAGES[0], ANSWER]]
    engine = Script(tokenizer, lambda turn: scripts[task_of(turn)][turn_number(turn)], 3)
    stream = play_episodes(TASKS[:3], engine, box(lambda _: "found"), LIMITS)
    assert [int(t.episode.split("/")[2]) for t in stream] == [1, 2, 0]


class Late(Script):
    """Writes the first task's turns only when nobody waits for them any more: it forgets nothing that is released."""

    def poll(self):
        time.sleep(0.01)
        ready = [key for key, turn in self.waiting.items() if task_of(turn) or key in self.released]
        return [(key, self.write(self.waiting.pop(key))) for key in ready]

    def release(self, key):
        self.released.append(key)


def test_what_comes_too_late_is_ignored(tokenizer):
    engine = Late(tokenizer, TWO_TURNS, 2)
    found = run_episodes(TASKS[:8], engine, box(lambda _: time.sleep(0.2) or "found"), limits(max_seconds=0.8))
    assert reasons(found) == [ENGINE_FAULT] + [ANSWERED] * 7 and found[0].turns == 0
    assert not engine.waiting  # the late turn was reported, to nobody


def test_a_stream_that_is_closed_leaves_nothing_in_the_engine(tokenizer):
    """A cell that is interrupted and run again must not be told the turns of the first try, which have the same keys."""
    engine = Counting(tokenizer, TWO_TURNS, 4)
    stream = play_episodes(TASKS, engine, world_tools(), LIMITS)
    next(stream)
    stream.close()
    assert not engine.living and not engine.waiting


def test_an_exception_of_the_callers_leaves_nothing_in_the_engine(tokenizer):
    engine = Counting(tokenizer, TWO_TURNS, 4)

    def interrupted(trajectory):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_episodes(TASKS, engine, world_tools(), LIMITS, on_end=interrupted)
    assert not engine.living and not engine.waiting


# -- the protocol, with episodes that know no rules


@dataclass
class Plain:
    """An episode that notes what it is handed."""

    name: str
    requests: list
    trajectory: list = field(default_factory=list)

    def play(self):
        for request in self.requests:
            try:
                self.trajectory.append((yield request))
            except Exception as fault:
                self.trajectory.append(fault)


def test_an_episode_may_go_on_after_a_fault(tokenizer):
    """What it asked for before is forgotten, also where several texts were under way."""
    from agentcpm_kit.agent.engines import Turn

    def boom():
        raise OSError("disk")
    turns = [Turn(f"k{i}", [5], f"0/{i}", 5) for i in range(3)]
    engine = Script(tokenizer, lambda turn: EngineFault("no") if turn.key == "k1" else "a")
    plain = Plain("p", [Job(boom), Condense(turns), turns[0], Condense([turns[2]]), Job(lambda: None)])
    assert list(play_all(iter([plain]), engine, engine)) == [plain.trajectory]
    fault, dead, sample, texts, nothing = plain.trajectory
    assert str(fault) == "OSError: disk" and str(dead) == "no" and nothing is None
    assert sample.text(tokenizer) == "a" and [t.text(tokenizer) for t in texts] == ["a"] and not engine.waiting
