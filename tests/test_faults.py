"""Faults on demand: seeded, visible as faults, independent of the order of calls."""

import time

import pytest

from agentcpm_kit.errors import KitError
from agentcpm_kit.world import FaultPlan, ToolFault, Tools, make_world
from agentcpm_kit.world.faults import KINDS, FaultDice

CALL = ("search", {"query": ["a"]})


def outcome(tools, name, arguments):
    try:
        return tools.call(name, arguments)
    except ToolFault as fault:
        return f"fault: {fault}"


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "slow"])
def test_every_kind_is_a_fault_and_never_an_empty_success(kind):
    tools = Tools(make_world(0), FaultPlan.parse(f"search.{kind}=1"))
    with pytest.raises(ToolFault) as fault:
        tools.call(*CALL)
    assert str(fault.value) == KINDS[kind] != ""
    assert tools.call("fetch_url", {"url": ["atlas/x"], "purpose": ""}) == "Error: page not found."  # the other tool works


def test_slow_is_late_and_right():
    world = make_world(0)
    plan = FaultPlan(rates={"search": {"slow": 1.0}}, slow_s=0.05)
    started = time.perf_counter()
    assert Tools(world, plan).call(*CALL) == Tools(world).call(*CALL)
    assert time.perf_counter() - started >= 0.05


def test_faults_do_not_depend_on_the_order_of_calls():
    plan = FaultPlan.parse("*.timeout=0.3,*.http_5xx=0.2")
    calls = [f"word{i}" for i in range(200)]
    forward, backward = FaultDice(plan, "e"), FaultDice(plan, "e")
    first = {c: forward.draw("search", c) for c in calls}
    second = {c: backward.draw("search", c) for c in reversed(calls)}
    assert first == second
    assert 0.35 < sum(v is not None for v in first.values()) / 200 < 0.65
    assert first != {c: FaultDice(plan, "f").draw("search", c) for c in calls}


def test_trying_again_may_succeed():
    dice = FaultDice(FaultPlan.parse("search.timeout=0.5"), "e")
    assert len({dice.draw("search", "same") for _ in range(20)}) == 2


@pytest.mark.parametrize("text, message", [
    ("serch.timeout=0.1", "did you mean 'search'"), ("search.timeot=0.1", "did you mean 'timeout'"),
    ("search=0.1", "tool.kind=share"), ("search.timeout=x", "tool.kind=share"), ("search.timeout=-1", "negative"),
    ("search.timeout=0.7,search.empty=0.7", "more than 1")])
def test_a_plan_that_cannot_be_is_refused_by_name(text, message):
    with pytest.raises(KitError, match=message):
        FaultPlan.parse(text)


def test_outcomes_are_the_same_each_time():
    plan, world = FaultPlan.parse("*.http_429=0.4"), make_world(0)
    runs = [[outcome(Tools(world, plan, "e7"), "search", {"query": [n]}) for n in "abcdefghij"] for _ in range(2)]
    assert runs[0] == runs[1]
