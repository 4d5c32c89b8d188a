"""What of a page the agent gets to see: each policy on plain and encyclopedia pages, and pages that a model condenses."""

import pytest

from agentcpm_kit.agent.context import ContextPolicy, best_passages, split_page
from agentcpm_kit.agent.engines import EngineFault
from agentcpm_kit.agent.episode import run_episodes, world_tools
from agentcpm_kit.agent.summarise import Summariser, prompt_ids
from agentcpm_kit.agent.trajectory import EndReason
from agentcpm_kit.errors import KitError
from agentcpm_kit.world import FAMILIES, Tools, WorldSpec, load_family, make_tasks
from agentcpm_kit.world.tools import SEPARATOR

from .test_episode import ANSWER, LIMITS, PAGES, Script, ToolBox, box, fetch, said, turn_number

TASKS = make_tasks("test", 3, 2, 3, 60, 2)
PLAIN = "# Pulmak\nPulmak has home Talin.\nHostin has partner Lerkon.\nPulmak has owner Pimix.\nPulmak has seat Pundir.\nThe end."
MISSING = "Error: page not found."


def pages_of(text, count):
    """Pages of a world as its tools show them, and one that does not exist."""
    world = WorldSpec.parse(text).open()
    return Tools(world).call("fetch_url", {"url": [*world.urls[:count], "atlas/nowhere"]})


@pytest.fixture(scope="module", params=["number=3,edition=plain,entities=60", "number=3"])
def three_pages(request):
    return pages_of(request.param, 2).split(SEPARATOR)


def refine(policy, text, purpose="home", task=None):
    return policy.refine({"url": ["x"], "purpose": purpose}, text, task)


# -- policies that need no model


@pytest.mark.parametrize("name", ["truncate", "extract", "oracle"])
@pytest.mark.parametrize("keep", [0, 1, 3, 1000])
def test_headings_are_never_lost(three_pages, name, keep):
    shown = refine(ContextPolicy(name, keep), SEPARATOR.join(three_pages), task=TASKS[0]).split(SEPARATOR)
    assert len(shown) == 3 and shown[-1] == MISSING
    for before, after in zip(three_pages, shown, strict=True):
        heading = split_page(before).heading
        assert after.startswith(heading) and heading.split("\n")[-1].startswith(("# ", "Error"))
        kept = split_page(after).passages
        assert all(passage in split_page(before).passages for passage in kept)
        assert len(kept) <= keep or name == "oracle"
        assert kept == split_page(before).passages[:keep] or name != "truncate"


@pytest.mark.parametrize("text,heading,passages", [
    ("Page: atlas/a\n# A\none\ntwo", "Page: atlas/a\n# A", ["one", "two"]), ("# A\none", "# A", ["one"]),
    ("one\ntwo\n# A\nthree", "one\ntwo\n# A", ["three"]), ("one\ntwo\nthree\n# far", "one", ["two", "three", "# far"]),
    (MISSING, MISSING, []), ("", "", []), ("# A\n", "# A", []),
    ("# A\n\n## Early\none\n\ntwo\n## Late\nthree", "# A", ["## Early\none", "two", "## Late\nthree"])])
def test_split_page(text, heading, passages):
    page = split_page(text)
    assert (page.text, page.heading, page.passages) == (text, heading, passages)


def test_raw_shows_all(tokenizer):
    found = run_episodes(TASKS, Script(tokenizer, [PAGES[0], ANSWER]), box(lambda _: PLAIN), LIMITS)
    assert {t.steps[0].results[0] for t in found} == {PLAIN}


def test_truncate_shows_the_first_lines():
    assert refine(ContextPolicy("truncate", 2), PLAIN) == "# Pulmak\nPulmak has home Talin.\nHostin has partner Lerkon."


@pytest.mark.parametrize("purpose,lines", [
    ("seat of Pulmak", ["Pulmak has home Talin.", "Pulmak has seat Pundir."]), ("end", ["The end."]), ("zzz", [])])
def test_extract_shows_what_is_nearest_in_the_pages_own_order(purpose, lines):
    assert refine(ContextPolicy("extract", 2), PLAIN, purpose).split("\n")[1:] == lines


def test_extract_leaves_short_pages_whole():
    assert refine(ContextPolicy("extract", 5), PLAIN, "zzz") == PLAIN


@pytest.mark.parametrize("lines", [["---", "***", "", "!!"], [""] * 5, ["-- --", "home"] * 3])
def test_extract_on_lines_without_words(lines):
    assert set(best_passages(lines, "home", 3)) <= {"home"}


def test_chinese_pages_are_extracted_by_their_characters():
    lines = ["上海是一座城市。", "他出生于北京。", "天气很好。", "没有别的。"]
    assert best_passages(lines, "出生地北京", 1) == ["他出生于北京。"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_keeps_all_evidence_and_little_else(family):
    """The ceiling of every policy: with it, a perfect reader solves every family."""
    policy = ContextPolicy("oracle")
    for task in load_family(family, "validation")[:6]:
        tools = Tools(task.open_world(), names=task.tools)
        for step in task.steps:
            if step.tool in policy.tools:
                page = tools.call(step.tool, step.arguments)
                shown = policy.refine(step.arguments, page, task)
                assert all(gold in shown for gold in step.evidence) and len(shown) < len(page)


def test_the_oracle_without_a_task_shows_headings():
    assert refine(ContextPolicy("oracle"), PLAIN) == "# Pulmak"


# -- which results are condensed


@pytest.mark.parametrize("purpose,applies", [
    ("home of Pulmak", True), ("", True), ("carefully fulfilled", True), ("the Full text", False), ("COMPLETE list", False),
    ("raw", False), ("the entire page", False), (["full"], True), (None, True)])
def test_a_purpose_may_ask_for_the_full_text(purpose, applies):
    assert ContextPolicy("truncate").applies("fetch_url", {"purpose": purpose}, 10**6) == applies


def test_short_results_and_other_tools_are_let_through():
    policy = ContextPolicy("extract", min_tokens=100)
    assert policy.applies("fetch_url", {}, 100) and not policy.applies("fetch_url", {}, 99)
    assert not policy.applies("search", {}, 1000) and not ContextPolicy("raw").applies("fetch_url", {}, 1000)
    assert ContextPolicy("extract", tools=("search",)).applies("search", {}, 1000)


def test_tokens_are_counted_before_and_after(tokenizer):
    engine, policy = Script(tokenizer, [PAGES[0] + PAGES[1], ANSWER]), ContextPolicy("truncate", 1)
    step = run_episodes(TASKS[:1], engine, box(lambda _: PLAIN), LIMITS, policy)[0].steps[0]
    short = "# Pulmak\nPulmak has home Talin."
    assert step.results == [short, short]
    assert (step.tokens_read, step.tokens_shown) == tuple(2 * len(tokenizer.encode(text)) for text in (PLAIN, short))
    assert step.condenser_read == step.condenser_written == 0


@pytest.mark.parametrize("more,purpose,shown", [(0, "home", "# Pulmak"), (1, "home", PLAIN), (0, "full", PLAIN)])
def test_what_the_rules_let_through_is_shown_whole(tokenizer, more, purpose, shown):
    policy = ContextPolicy("truncate", 0, min_tokens=len(tokenizer.encode(PLAIN)) + more)
    engine = Script(tokenizer, [fetch("Pulmak", purpose), ANSWER])
    assert run_episodes(TASKS[:1], engine, box(lambda _: PLAIN), LIMITS, policy)[0].steps[0].results == [shown]


# -- a model writes


def summarise(tokenizer, writes, result=PLAIN, lines=(PAGES[0], ANSWER), tools=None, **options):
    """One episode with a scripted summariser; its trajectory, and the summariser's engine."""
    writer = Script(tokenizer, writes)
    policy = ContextPolicy("summarise", summariser=Summariser(writer, "short", max_new_tokens=20), **options)
    tools = tools or box(lambda _: result)
    return run_episodes(TASKS[:1], Script(tokenizer, list(lines)), tools, LIMITS, policy)[0], writer


def test_a_summary_takes_the_place_of_the_page_under_its_heading(tokenizer):
    found, writer = summarise(tokenizer, lambda turn: "<think>home</think>\nthe home of Pulmak ")
    step, prompt = found.steps[0], f"{PLAIN}\nFind the home."
    assert step.results == ["# Pulmak\nthe home of Pulmak"] and found.end_reason == EndReason.ANSWERED
    seen = tokenizer.decode(found.context.token_ids)
    assert step.results[0] in seen and "Hostin" not in seen
    assert [turn.messages for turn in writer.asked] == [({"role": "user", "content": prompt},)]
    assert writer.asked[0].ids == prompt_ids(tokenizer, prompt) and writer.asked[0].max_new_tokens == 20
    assert step.tokens_read == len(tokenizer.encode(PLAIN)) and step.tokens_shown == len(tokenizer.encode(step.results[0]))
    assert step.condenser_read == len(writer.asked[0].ids)
    assert step.condenser_written == len(said(tokenizer, "<think>home</think>\nthe home of Pulmak ").ids)
    assert sum(found.context.loss_mask) == found.tokens_generated  # the agent's own tokens alone


def test_pages_are_condensed_one_by_one_and_errors_not_at_all(tokenizer):
    result = SEPARATOR.join([PLAIN, MISSING, PLAIN.replace("# Pulmak", "Page: atlas/a\n# Talin"), ""])
    found, writer = summarise(tokenizer, lambda turn: "a", result)
    assert found.steps[0].results == [SEPARATOR.join(["# Pulmak\na", MISSING, "Page: atlas/a\n# Talin\na", ""])]
    assert len(writer.asked) == 2 and "Talin" in writer.asked[1].messages[0]["content"]
    assert found.steps[0].condenser_read == sum(len(turn.ids) for turn in writer.asked)
    assert found.steps[0].condenser_written == 2 * len(said(tokenizer, "a").ids)
    assert sorted(writer.released) == sorted(turn.key for turn in writer.asked)


def test_errors_alone_ask_nobody(tokenizer):
    found, writer = summarise(tokenizer, lambda turn: "a", MISSING)
    assert found.steps[0].results == [MISSING] and not writer.asked and found.end_reason == EndReason.ANSWERED


def test_several_calls_in_one_turn(tokenizer):
    """A page, a search (never condensed), an agent's mistake, and a page again."""
    search = '<tool_call>{"name": "search", "arguments": {"query": ["Pulmak"]}}</tool_call>'
    wrong = '<tool_call>{"name": "fetch_url", "arguments": {"query": ["Pulmak"]}}</tool_call>'

    class Tool(ToolBox):
        def call(self, name, arguments):
            if name == "fetch_url" and "url" not in arguments:
                raise ValueError("fetch_url needs url")
            return PLAIN
    found, writer = summarise(tokenizer, lambda turn: "a", lines=[PAGES[0] + search + wrong + PAGES[1], ANSWER],
                              tools=lambda task, episode: Tool(None))
    step = found.steps[0]
    assert step.results == ["# Pulmak\na", PLAIN, "Error: fetch_url needs url.", "# Pulmak\na"] and len(writer.asked) == 2
    assert step.tokens_shown == sum(len(tokenizer.encode(result)) for result in step.results)


@pytest.mark.parametrize("text", ["# A\n{page} {purpose} {0} {{ }} {", "# A\n<|im_end|>\nb"])
def test_pages_are_not_read_as_a_prompt(tokenizer, text):
    _, writer = summarise(tokenizer, lambda turn: "a", text)
    assert writer.asked[0].messages[0]["content"] == f"{text.replace('<|im_end|>', '<| im_end |>')}\nFind the home."


def test_a_policy_of_ones_own_is_told_apart():
    class Own(ContextPolicy):
        pass

    assert Own("extract").settings() != ContextPolicy("extract").settings() == ContextPolicy("extract").settings()


def test_long_texts_are_cut_until_the_whole_prompt_fits(tokenizer):
    """The beginning of a page, the end of a history; the prompt and the purpose count too."""
    long = " ".join(["Pulmak", *["has"] * 500, "Talin"])
    for limit in (30, 40, 100):
        summariser = Summariser(Script(tokenizer, []), "short", "short_history", max_prompt_tokens=limit)
        page = summariser.page_turn("k", long, "home of Pulmak")
        history = summariser.history_turn("k", long, "What is the home of Pulmak?")
        shown, told = page.messages[0]["content"], history.messages[0]["content"]
        assert len(page.ids) <= limit and "Pulmak has" in shown and "Talin" not in shown
        assert len(history.ids) <= limit and "has Talin" in told
        assert summariser.page_turn("k", "a b c d", "home").messages[0]["content"] == "a b c d\nFind the home."


def test_the_shipped_prompts_are_complete(tokenizer):
    for page, history in (("page", "page_history"), ("short", "short_history")):
        summariser = Summariser(Script(tokenizer, []), page, history)
        asked = summariser.page_turn("k", "PAGE", "PURPOSE").messages[0]["content"]
        told = summariser.history_turn("k", "TRANSCRIPT", "QUESTION").messages[0]["content"]
        assert "PAGE" in asked and "PURPOSE" in asked and "TRANSCRIPT" in told and "QUESTION" in told
        assert "{" not in asked + told


def test_a_summariser_that_heals_is_no_fault_and_one_that_does_not_is_the_engines(tokenizer):
    for times, reason in ((2, EndReason.ANSWERED), (3, EndReason.ENGINE_FAULT)):
        faults = [EngineFault("overloaded")] * times
        found, _ = summarise(tokenizer, lambda turn, left=faults: left.pop() if left else "a")
        assert found.end_reason == reason and (found.message == "overloaded") == (reason == EndReason.ENGINE_FAULT)
        assert found.steps[0].status == "completed"


def test_an_agent_may_condense_its_own_pages(tokenizer):
    """One engine for both: the conversation rests while its pages are read, and goes on as it was."""
    def says(turn):
        return "the home" if "#" in turn.key else [PAGES[0], PAGES[1], ANSWER][turn_number(turn)]
    engine = Script(tokenizer, says)
    policy = ContextPolicy("summarise", summariser=Summariser(engine, "short"))
    found = run_episodes(TASKS, engine, box(lambda _: SEPARATOR.join([PLAIN] * 2)), LIMITS, policy)
    assert {t.end_reason for t in found} == {EndReason.ANSWERED} and len(engine.asked) == 3 * (3 + 2 * 2)
    for t in found:
        assert [s.results for s in t.steps] == [[SEPARATOR.join(["# Pulmak\nthe home"] * 2)]] * 2 + [[]]
        assert t.tokens_generated == sum(t.context.loss_mask) and len(t.contexts) == 1
    assert not engine.waiting and {turn.key for turn in engine.asked} == set(engine.released)


def test_a_model_condenses_its_own_pages(tiny_model, tokenizer):
    """A random model writes nonsense, but through the real engine, in a batch smaller than what is under way."""
    from agentcpm_kit.agent.engines import TransformersEngine

    class Agent(TransformersEngine):
        """Calls a tool whatever the model says."""

        def poll(self):
            return [(key, sample if "#" in key else said(tokenizer, PAGES[0])) for key, sample in super().poll()]

    engine = Agent(tiny_model, tokenizer, batch_size=2)
    policy = ContextPolicy("finetuned", summariser=Summariser(engine, "short", max_new_tokens=5))
    found = run_episodes(TASKS, engine, box(lambda _: SEPARATOR.join([PLAIN] * 3)), LIMITS, policy)
    assert {t.end_reason for t in found} == {EndReason.REPETITION} and not engine.rows
    assert all(t.steps[0].condenser_written <= 15 and t.steps[0].results[0].count("# Pulmak") == 3 for t in found)


def test_policies_meet_the_worlds_tools(tokenizer, smoke):
    """Every policy on a world, by a script that opens two pages: what is shown is never more than what was read."""
    writer = Summariser(Script(tokenizer, lambda turn: "a"), "short")
    for name in ("raw", "truncate", "extract", "summarise", "oracle"):
        policy = ContextPolicy(name, 2, summariser=writer)
        for t in run_episodes(TASKS, Script(tokenizer, [PAGES[0], PAGES[1], ANSWER]), world_tools(), LIMITS, policy):
            assert t.end_reason == EndReason.ANSWERED
            for step in t.steps[:2]:
                same = name == "raw" or step.results == [MISSING]
                assert step.tokens_shown == step.tokens_read if same else step.tokens_shown < step.tokens_read


# -- mistakes of the user's


@pytest.mark.parametrize("options,nearest", [
    ({"name": "extrct"}, "extract"), ({"name": "summarize"}, "summarise"), ({"history": "discard_tool"}, "discard_tools"),
    ({"history": "reset"}, "none")])
def test_unknown_names_name_the_nearest(options, nearest):
    with pytest.raises(KitError, match=nearest):
        ContextPolicy(**options)


@pytest.mark.parametrize("name", ["summarise", "finetuned"])
def test_a_missing_summariser_is_told(name):
    with pytest.raises(KitError, match="summariser"):
        ContextPolicy(name)


@pytest.mark.parametrize("options", [{"prompt": "pages"}, {"history_prompt": "pages_history"}])
def test_an_unknown_prompt_is_told_before_anything_runs(tokenizer, options):
    with pytest.raises(KitError, match="page"):
        Summariser(Script(tokenizer, []), **options)
