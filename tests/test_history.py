"""Resets that shorten a conversation: what is kept of it, what is learned from it, and that they cannot go on for ever."""

import json

import pytest

from agentcpm_kit.agent.context import ContextPolicy
from agentcpm_kit.agent.engines import EngineFault
from agentcpm_kit.agent.episode import UNREADABLE, run_episodes
from agentcpm_kit.agent.history import History
from agentcpm_kit.agent.messages import Renderer, ToolCall, assistant_message, first_messages, parse_tool_calls
from agentcpm_kit.agent.summarise import Summariser
from agentcpm_kit.agent.trajectory import EndReason
from agentcpm_kit.train.data import IGNORED, training_rows
from agentcpm_kit.world import make_tasks
from agentcpm_kit.world.tools import tool_schemas

from .test_episode import ANSWER, Script, box, fetch, limits, said, turn_number

TASKS = make_tasks("test", 3, 2, 3, 60, 2)
QUESTION = TASKS[0].question
TIGHT = limits(max_turns=12, max_context_tokens=240)  # room for the prompt, two or three turns and their results
RESULT = "# Pulmak\nPulmak has home Talin. " + "a " * 30


@pytest.fixture
def renderer(tokenizer):
    return Renderer(tokenizer, tool_schemas())


def turn_text(number):
    """A call, different each turn."""
    return f"<think>Find the page.</think>{fetch('Pulmak', number)}"


def spoken(renderer, turns, keep_thinking=True):
    """A history of so many turns, each with its result."""
    history = History(renderer, QUESTION, keep_thinking)
    for number in range(turns):
        speak(history, turn_text(number), [f"# {number}"])
    return history


def speak(history, text, results, stopped=True):
    sample = said(history.renderer.tokenizer, text, stopped)
    history.add_turn(sample.ids, sample.logprobs, text, parse_tool_calls(text))
    return history.add_results(results, stopped, 10**6)


def as_texts(history):
    return [{"role": m.role, "content": m.text} for m in history.messages]


def assert_valid_chat(messages):
    """OpenAI's rules: each call has its result, right after the turn that made it, no result is without a call, a list of
    calls is not empty, and arguments are text."""
    open_calls = []
    for message in [*messages, {"role": "user"}]:
        if message["role"] == "tool":
            open_calls.remove(message["tool_call_id"])
        else:
            assert not open_calls, "calls without results"
            calls = message.get("tool_calls", [])
            assert calls or "tool_calls" not in message
            assert all(isinstance(json.loads(call["function"]["arguments"]), dict) for call in calls)
            open_calls = [call["id"] for call in calls]


# -- rendering


@pytest.mark.parametrize("stopped", [True, False])
@pytest.mark.parametrize("results", [1, 3])
def test_pieces_join_to_what_the_template_renders_as_a_whole(renderer, stopped, results):
    """The same tokens, whether they were appended turn by turn or rendered at once, as text or as fields."""
    history = History(renderer, QUESTION)
    structured = first_messages(QUESTION)
    for number in range(4):
        call = ToolCall("fetch_url", {"url": ["atlas/Pulmak"], "purpose": f"{number}"})
        message = assistant_message("Find the page.", call=call)
        message["tool_calls"] *= results
        speak(history, renderer.assistant_text(message), [RESULT] * results, stopped)
        structured += [message, *[{"role": "tool", "content": RESULT}] * results]
        assert history.ids == renderer.conversation(as_texts(history)) == renderer.conversation(structured)
    context = history.contexts[0]
    assert len(history.contexts) == 1 and len(context.token_ids) == len(context.loss_mask) == len(context.logprobs)


def test_the_prompt_is_the_templates(renderer):
    history = History(renderer, QUESTION)
    assert history.ids == renderer.conversation(first_messages(QUESTION)) == renderer.prompt(QUESTION)
    assert history.contexts[0].prompt_length == len(history.ids) and not any(history.contexts[0].loss_mask)


def test_an_unreadable_call_is_a_result_too(renderer):
    history = History(renderer, QUESTION)
    speak(history, "<tool_call>oops</tool_call>", [UNREADABLE])
    assert history.ids == renderer.conversation(as_texts(history))


def test_what_does_not_fit_is_kept_as_a_message(renderer):
    history = spoken(renderer, 1)
    before, sample = len(history.ids), said(renderer.tokenizer, turn_text(5))
    history.add_turn(sample.ids, sample.logprobs, turn_text(5), parse_tool_calls(turn_text(5)))
    piece = len(renderer.tool_results(["a b"]))
    assert not history.add_results(["a b"], True, before + len(sample.ids) + piece - 1)
    assert history.messages[-1].text == "a b" and len(history.ids) == before + len(sample.ids)


# -- discard_tools: the reference's rule


@pytest.mark.parametrize("turns,dropped", [(0, 0), (1, 0), (8, 0), (9, 1), (10, 2), (22, 14), (23, 15), (24, 15), (40, 15)])
def test_discard_tools_drops_the_results_and_then_the_last(renderer, turns, dropped):
    """n = turns + 2 messages are left without the results; the last min(15, max(0, n - 10)) of them go too."""
    history = spoken(renderer, turns)
    sampled = [context.model_copy(deep=True) for context in history.contexts]
    history.discard_tools()
    kept = [*first_messages(QUESTION), *({"role": "assistant", "content": turn_text(i)} for i in range(turns - dropped))]
    assert as_texts(history) == kept and history.said == [turn_text(i) for i in range(turns - dropped)]
    assert history.ids == renderer.conversation(kept) == history.contexts[-1].token_ids
    assert history.contexts[:-1] == sampled and not any(history.contexts[-1].loss_mask)
    assert history.contexts[-1].prompt_length == len(history.ids)


def test_a_conversation_goes_on_after_a_reset(renderer):
    history = spoken(renderer, 3)
    history.discard_tools()
    speak(history, turn_text(7), [RESULT])
    assert history.ids == renderer.conversation(as_texts(history))
    learned = [i for i, m in zip(history.ids, history.contexts[-1].loss_mask, strict=True) if m]
    assert learned == said(renderer.tokenizer, turn_text(7)).ids


@pytest.mark.parametrize("reset", [lambda h: h.discard_tools(), lambda h: h.discard_all("Pulmak has home Talin.")])
def test_what_chat_engines_are_asked_is_a_valid_chat(renderer, reset):
    """Servers refuse calls without results ("must be followed by tool messages"), which would be an engine's fault."""
    history = spoken(renderer, 2)
    assert_valid_chat(history.chat())
    reset(history)
    assert_valid_chat(history.chat())
    speak(history, turn_text(7), [RESULT])
    assert_valid_chat(history.chat())


def test_an_unreadable_call_is_a_valid_chat_too(renderer):
    history = History(renderer, QUESTION)
    speak(history, "<tool_call>oops</tool_call>", [UNREADABLE])
    assert_valid_chat(history.chat())
    assert UNREADABLE in str(history.chat()[-1])


# -- discard_all


def test_discard_all_keeps_the_question_and_a_summary(renderer):
    history = spoken(renderer, 5)
    history.discard_all("Pulmak has home Talin.")
    assert as_texts(history) == [*first_messages(QUESTION), {"role": "assistant", "content": "Pulmak has home Talin."}]
    assert history.ids == renderer.conversation(as_texts(history)) and history.said == ["Pulmak has home Talin."]
    history.discard_all("again")
    assert [m["content"] for m in as_texts(history)[2:]] == ["again"] and len(history.contexts) == 3


def test_the_transcript_is_uncut(renderer):
    assert spoken(renderer, 2).transcript() == "\n".join([turn_text(0), "# 0", turn_text(1), "# 1"])


# -- in the loop


def play(tokenizer, history, lines=turn_text, result=RESULT, bounds=TIGHT, **options):
    """One episode whose turns are what `lines` makes of their number, 40 at most; the trajectory and the engine."""
    def line(turn):
        number = turn_number(turn)
        return EngineFault("this goes on for ever") if number >= 40 else lines(number)
    engine = Script(tokenizer, line)
    policy = ContextPolicy(history=history, **options)
    return run_episodes(TASKS[:1], engine, box(lambda _: result), bounds, policy)[0], engine


def assert_consistent(found, tokenizer, bounds=TIGHT):
    """Whatever was reset: every sampled token is in one context only, and no context is too long."""
    assert sum(sum(context.loss_mask) for context in found.contexts) == found.tokens_generated
    for number, context in enumerate(found.contexts):
        assert len(context.token_ids) == len(context.loss_mask) == len(context.logprobs) <= bounds.max_context_tokens
        assert not any(context.loss_mask[: context.prompt_length])
        assert all(p == (-0.5 if m else 0.0) for p, m in zip(context.logprobs, context.loss_mask, strict=True))
        sampled = sum(step.tokens_generated for step in found.steps if step.context == number)
        assert sampled == sum(context.loss_mask)
    rows = training_rows([found])
    assert len(rows) == sum(any(context.loss_mask) for context in found.contexts)
    assert sum(label != IGNORED for row in rows for label in row["labels"]) == found.tokens_generated
    assert [step.context for step in found.steps] == sorted(step.context for step in found.steps)


def test_without_a_reset_a_full_context_is_the_end(tokenizer):
    found, _ = play(tokenizer, "none")
    assert found.end_reason == EndReason.CONTEXT_LIMIT and len(found.contexts) == 1 and found.turns < 5
    assert_consistent(found, tokenizer)


def test_discard_tools_makes_room(tokenizer, renderer):
    found, engine = play(tokenizer, "discard_tools", lambda n: ANSWER if n == 4 else turn_text(n))
    assert found.end_reason == EndReason.ANSWERED and len(found.contexts) == 2
    assert_consistent(found, tokenizer)
    before = sum(step.context == 0 for step in found.steps)
    kept = [*first_messages(QUESTION), *({"role": "assistant", "content": turn_text(i)} for i in range(before))]
    second = found.contexts[1]
    assert second.token_ids[: second.prompt_length] == renderer.conversation(kept) == engine.asked[before].ids


def test_turns_count_on_after_resets(tokenizer):
    """The reference: the context's counters restart, the total of turns does not."""
    bounds = TIGHT.model_copy(update={"max_context_tokens": 300})
    found, _ = play(tokenizer, "discard_all", bounds=bounds)
    assert (found.end_reason, found.turns) == (EndReason.TURN_LIMIT, 12) and len(found.contexts) > 2
    assert_consistent(found, tokenizer, bounds)


def test_all_tokens_sampled_count_on_after_resets(tokenizer):
    total = 7 * len(said(tokenizer, turn_text(0)).ids)
    bounds = TIGHT.model_copy(update={"max_total_tokens": total, "max_context_tokens": 300})
    found, _ = play(tokenizer, "discard_all", bounds=bounds)
    assert (found.end_reason, found.turns) == (EndReason.CONTEXT_LIMIT, 7) and "sampled" in found.message


def test_turns_of_their_own_fill_the_context_in_the_end(tokenizer):
    """`discard_tools` keeps what the agent said (up to ten messages): at last that alone is too much."""
    found, _ = play(tokenizer, "discard_tools")
    assert found.end_reason == EndReason.CONTEXT_LIMIT and len(found.contexts) > 2
    assert_consistent(found, tokenizer)


def test_discard_all_by_a_summariser(tokenizer, renderer):
    writer = Script(tokenizer, lambda turn: "<think>home</think>Pulmak has home Talin.")
    summariser = Summariser(writer, history_prompt="short_history", max_new_tokens=30)
    found, engine = play(tokenizer, "discard_all", lambda n: ANSWER if n == 4 else turn_text(n), summariser=summariser)
    assert found.end_reason == EndReason.ANSWERED and len(found.contexts) == 2
    assert_consistent(found, tokenizer)
    second, before = found.contexts[1], sum(step.context == 0 for step in found.steps)
    kept = [*first_messages(QUESTION), {"role": "assistant", "content": "Pulmak has home Talin."}]
    assert second.token_ids[: second.prompt_length] == renderer.conversation(kept) == engine.asked[before].ids
    transcript = "\n".join(text for i in range(before) for text in (turn_text(i), RESULT))
    assert [turn.messages[0]["content"] for turn in writer.asked] == [f"{transcript}\n{QUESTION}"]
    step = found.steps[before - 1]
    assert step.condenser_read == len(writer.asked[0].ids) and writer.released == [writer.asked[0].key]
    assert step.condenser_written == len(said(tokenizer, "<think>home</think>Pulmak has home Talin.").ids)
    assert [s.condenser_read for s in found.steps].count(0) == 4


def test_an_agent_may_summarise_its_own_history(tokenizer):
    def says(turn):
        return "Pulmak has home Talin." if "#" in turn.key else ANSWER if turn_number(turn) == 5 else turn_text(turn_number(turn))
    engine = Script(tokenizer, says)
    policy = ContextPolicy(history="discard_all", summariser=Summariser(engine, history_prompt="short_history"))
    found = run_episodes(TASKS, engine, box(lambda _: RESULT), TIGHT, policy)
    assert {t.end_reason for t in found} == {EndReason.ANSWERED} and min(len(t.contexts) for t in found) > 1
    for t in found:
        assert_consistent(t, tokenizer)


def test_a_dead_summariser_is_an_engine_fault(tokenizer):
    writer = Script(tokenizer, lambda turn: EngineFault("gone"))
    found, _ = play(tokenizer, "discard_all", summariser=Summariser(writer, history_prompt="short_history"))
    assert (found.end_reason, found.message) == (EndReason.ENGINE_FAULT, "gone") and len(writer.asked) == 3


def test_discard_all_by_extraction(tokenizer):
    """Without a summariser, the lines nearest to the question stand for the rest: at most four times `keep`."""
    task = TASKS[0]
    fact = f"The home of {task.question.split()[-1].rstrip('.')} is Talin."
    result = "\n".join([fact, *["a b c d e"] * 8])
    found, engine = play(tokenizer, "discard_all", lambda n: ANSWER if n == 4 else turn_text(n), result, keep=1)
    assert found.end_reason == EndReason.ANSWERED and len(found.contexts) > 1
    summary = engine.asked[-1].messages[2]
    assert summary["role"] == "assistant" and fact in summary["content"] and len(summary["content"].split("\n")) <= 4
    assert_consistent(found, tokenizer)


def test_a_reset_that_does_not_help_ends_as_context_limit(tokenizer):
    """A summary as long as what it stands for."""
    writer = Script(tokenizer, lambda turn: "a " * 200)
    found, engine = play(tokenizer, "discard_all", summariser=Summariser(writer, history_prompt="short_history"))
    assert found.end_reason == EndReason.CONTEXT_LIMIT and len(writer.asked) == 1
    assert len(engine.asked) == found.turns and sum(map(sum, (c.loss_mask for c in found.contexts))) == found.tokens_generated


def test_one_page_that_can_never_fit(tokenizer):
    """It is dropped, the agent goes on, and asks for it again until its turns are used up."""
    found, _ = play(tokenizer, "discard_all", result="a " * 500, bounds=TIGHT.model_copy(update={"max_turns": 5}))
    assert (found.end_reason, found.turns) == (EndReason.TURN_LIMIT, 5)
    assert_consistent(found, tokenizer)


# -- repetition


def test_a_reset_forgives_repetition(tokenizer):
    """After `discard_all` the agent has said nothing yet."""
    writer = Script(tokenizer, lambda turn: "home")
    found, engine = play(tokenizer, "discard_all", lambda n: ANSWER if n == 5 else turn_text(0), "found", limits(max_turns=9),
                         summariser=Summariser(writer, history_prompt="short_history"))
    assert (found.end_reason, found.turns, len(found.contexts)) == (EndReason.ANSWERED, 6, 2)
    assert [s.status for s in found.steps[:5]] == ["completed", "repeat_error", "repeat_error", "completed", "repeat_error"]
    assert_consistent(found, tokenizer, limits())


@pytest.mark.parametrize("history", ["discard_tools", "discard_all"])
@pytest.mark.parametrize("bound,reason", [({"max_turns": 7}, EndReason.TURN_LIMIT),
                                          ({"max_turns": 30, "max_total_tokens": 120}, EndReason.CONTEXT_LIMIT)])
def test_an_agent_that_only_repeats_itself_comes_to_an_end(tokenizer, history, bound, reason):
    """A reset does not set the limits aside."""
    found, _ = play(tokenizer, history, lambda n: turn_text(0), "found", limits(**bound))
    assert found.end_reason == reason
    assert found.turns == 7 or bound["max_total_tokens"] <= found.tokens_generated < bound["max_total_tokens"] + 30


# -- earlier thinking dropped


def test_without_earlier_thinking_each_turn_begins_a_context(tokenizer, renderer):
    found, engine = play(tokenizer, "none", lambda n: f"<think>No results.</think>{ANSWER}" if n == 2 else turn_text(n),
                         "found", keep_thinking=False)
    assert found.end_reason == EndReason.ANSWERED and len(found.contexts) == 3 and [s.context for s in found.steps] == [0, 1, 2]
    assert_consistent(found, tokenizer)
    for number, context in enumerate(found.contexts):
        calls = [{"role": "assistant", "content": fetch("Pulmak", i)} for i in range(number)]
        kept = [message for call in calls for message in (call, {"role": "tool", "content": "found"})]
        assert context.token_ids[: context.prompt_length] == renderer.conversation([*first_messages(QUESTION), *kept])
        assert context.token_ids[: context.prompt_length] == engine.asked[number].ids
    learned = [tokenizer.decode([i for i, m in zip(c.token_ids, c.loss_mask, strict=True) if m]) for c in found.contexts]
    assert learned[:2] == [f"{turn_text(i)}<|im_end|>" for i in range(2)]  # thinking is learned where it was thought


def test_chat_engines_are_asked_without_earlier_thinking_too(tokenizer):
    _, engine = play(tokenizer, "none", lambda n: ANSWER if n == 2 else turn_text(n), "found", keep_thinking=False)
    assert "Find the page." not in str(engine.asked[-1].messages)
    _, engine = play(tokenizer, "none", lambda n: ANSWER if n == 2 else turn_text(n), "found")
    assert str(engine.asked[-1].messages).count("Find the page.") == 2


@pytest.mark.parametrize("history,reason", [("none", EndReason.CONTEXT_LIMIT), ("discard_all", EndReason.TURN_LIMIT)])
def test_a_context_without_thinking_fills_up_too(tokenizer, history, reason):
    bounds = TIGHT.model_copy(update={"max_context_tokens": 300})
    found, _ = play(tokenizer, history, bounds=bounds, keep_thinking=False)
    assert found.end_reason == reason
    assert_consistent(found, tokenizer, bounds)


def test_policies_are_told_apart(tokenizer):
    """Page policies and history resets work together."""
    found, _ = play(tokenizer, "discard_tools", lambda n: ANSWER if n == 4 else turn_text(n),
                    "# Pulmak\n" + "a " * 300, name="truncate", keep=0)
    assert found.end_reason == EndReason.ANSWERED and len(found.contexts) == 1
    assert {step.results[0] for step in found.steps[:-1]} == {"# Pulmak"}
