"""The engine `transformers`: neither the cache nor the company in the batch may change what the model computes."""

import gc
import math
import random
import weakref

import pytest
import torch

from agentcpm_kit.agent.engines import EngineFault, Sample, TransformersEngine, Turn, generate_turns
from agentcpm_kit.agent.engines import attention as attention_module
from agentcpm_kit.agent.engines import cache as cache_module
from agentcpm_kit.agent.engines import transformers as module
from agentcpm_kit.agent.engines.transformers import shared_length

from .test_episode import Script

LENGTHS = (3, 16, 40, 97, 150)  # of prompts and of what is added between turns: below, at and above the block sizes
LIMITS = (1, 6, 13)


def pieces(i):
    """What conversation `i` is told before each of its three turns."""
    rng = random.Random(i)
    return [[rng.randrange(4, 770) for _ in range(rng.choice(LENGTHS))] for _ in range(3)]


def converse(engine, numbers, rng=None):
    """Play three turns of each conversation, which join, rest and go on in a random order; (context, sample) of each turn."""
    turns, contexts, ready = {i: [] for i in numbers}, {i: [] for i in numbers}, list(numbers)
    rng = rng or random.Random(0)
    for _ in range(100_000):
        while ready and rng.random() < 0.7:
            i = ready.pop(rng.randrange(len(ready)))
            number = len(turns[i])
            contexts[i] = contexts[i] + pieces(i)[number]
            engine.submit(Turn(f"c{i}", contexts[i], f"seed {i}/{number}", LIMITS[(i + number) % 3]))
        for key, sample in engine.poll():
            i = int(key[1:])
            turns[i].append((contexts[i], sample))
            contexts[i] = contexts[i] + sample.ids
            engine.release(key) if len(turns[i]) == 3 else ready.append(i)
        if all(len(found) == 3 for found in turns.values()):
            return turns
    raise AssertionError("turns were lost")


def samples_of(turns):
    return {i: [sample for _, sample in found] for i, found in turns.items()}


def finish(engine, count):
    """Poll until so many turns ended, by key; a lost turn would be waited for in vain."""
    ended = {}
    for _ in range(1000):
        for key, sample in engine.poll():
            assert key not in ended, "reported twice"
            ended[key] = sample
        if len(ended) == count:
            return ended
    raise AssertionError(f"{count - len(ended)} turns were never reported")


def full_logprobs(model, ids, temperature=1.0):
    """By one pass without cache."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].float() / temperature, -1)


def expected_logprobs(model, context, sample, temperature=1.0):
    table = full_logprobs(model, context + sample.ids, temperature)[len(context) - 1: -1]
    return [table[i, token].item() for i, token in enumerate(sample.ids)]


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.fixture
def forty(tiny_model, tokenizer):
    """Forty conversations, all in one batch."""
    return samples_of(converse(TransformersEngine(tiny_model, tokenizer, batch_size=64), range(40)))


# -- what is computed


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_logprobs_equal_a_pass_without_cache(tiny_model, tokenizer, temperature):
    """They are those of the sampling distribution, temperature included."""
    for turns in converse(TransformersEngine(tiny_model, tokenizer, temperature, 16), range(20)).values():
        for context, sample in turns:
            assert sample.logprobs == pytest.approx(expected_logprobs(tiny_model, context, sample, temperature), abs=1e-4)


def test_greedy_picks_the_largest(tiny_model, tokenizer):
    for turns in converse(TransformersEngine(tiny_model, tokenizer, 0.0, 16), range(6)).values():
        for context, sample in turns:
            table = full_logprobs(tiny_model, context + sample.ids)[len(context) - 1: -1]
            assert table.argmax(-1).tolist() == sample.ids
            assert sample.logprobs == pytest.approx(table.amax(-1).tolist(), abs=1e-4)


def test_shipped_model_too(micro_base, tokenizer):
    """Trained weights have logits far from zero, where rounding shows first."""
    from agentcpm_kit.agent.engines import load_model

    model, own = load_model(micro_base)
    together = converse(TransformersEngine(model, own, batch_size=16), range(5))
    assert samples_of(converse(TransformersEngine(model, own, batch_size=16), [3]))[3] == samples_of(together)[3]
    context, sample = together[3][2]
    assert sample.logprobs == pytest.approx(expected_logprobs(model, context, sample), abs=1e-4)


@pytest.mark.parametrize("numbers", [[0], [1], [5], [39], range(3), range(17), range(1, 40, 2)])
def test_a_row_is_the_same_bits_in_any_company(tiny_model, tokenizer, forty, numbers):
    found = samples_of(converse(TransformersEngine(tiny_model, tokenizer, batch_size=64), numbers, random.Random(len(numbers))))
    assert all(found[i] == forty[i] for i in numbers)  # ids and log-probs, exactly


@pytest.mark.parametrize("module_, name, value", [(cache_module, "GAPS", 10**9), (cache_module, "GAPS", 0.001),
                                                  (attention_module, "IN_VAIN", 0), (attention_module, "IN_VAIN", 10**9)])
def test_where_blocks_lie_changes_no_bit(tiny_model, tokenizer, forty, monkeypatch, module_, name, value):
    """Moved at every gap or never, gathered always or never."""
    monkeypatch.setattr(module_, name, value)
    engine, moves = TransformersEngine(tiny_model, tokenizer, batch_size=64), []
    move = cache_module.BlockLayer.move
    monkeypatch.setattr(cache_module.BlockLayer, "move", lambda *args: moves.append(args[1:]) or move(*args))
    assert samples_of(converse(engine, range(40), random.Random(9))) == forty
    assert bool(moves) == (name != "GAPS" or value > 1)


@pytest.mark.parametrize("key_heads, dtype, error", [(1, torch.float32, 1e-4), (2, torch.float32, 1e-4),
                                                      (2, torch.bfloat16, 0.2)])
def test_grouped_heads_and_half_precision(tokenizer, key_heads, dtype, error):
    """As real models have them: several query heads for each key head, and 16-bit weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    config = Qwen3Config(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
                         num_key_value_heads=key_heads, intermediate_size=64, initializer_range=0.3)
    model = Qwen3ForCausalLM(config).eval().to(dtype)
    found = converse(TransformersEngine(model, tokenizer, batch_size=16), range(12))
    assert samples_of(converse(TransformersEngine(model, tokenizer, batch_size=16), [7])) == {7: samples_of(found)[7]}
    for turns in found.values():
        for context, sample in turns:
            assert sample.logprobs == pytest.approx(expected_logprobs(model, context, sample), abs=error)


@pytest.mark.parametrize("heads, key_heads, size", [(2, 2, 16), (9, 3, 64), (16, 8, 16)])
@pytest.mark.parametrize("other", [700, 1500])
def test_long_company_changes_no_bit(tokenizer, heads, key_heads, size, other):
    """Rows of many blocks beside rows of more; torch's own sums depend on how much there is to add, zeros included."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(2)
    config = Qwen3Config(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=heads, head_dim=size,
                         num_key_value_heads=key_heads, intermediate_size=64, initializer_range=0.3)
    model, rng = Qwen3ForCausalLM(config).eval(), random.Random(3)
    turns = [Turn(str(n), [rng.randrange(100, len(tokenizer)) for _ in range(n)], str(n), 12) for n in (400, 90, other)]
    together = generate_turns(TransformersEngine(model, tokenizer, batch_size=8), turns)
    for turn, sample in zip(turns, together, strict=True):
        assert generate_turns(TransformersEngine(model, tokenizer, batch_size=8), [turn]) == [sample]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_small_batch_changes_no_token(tiny_model, tokenizer, forty, size):
    """Conversations lose their place and are computed again, by other shapes: equal up to rounding."""
    engine = TransformersEngine(tiny_model, tokenizer, batch_size=size)
    found = samples_of(converse(engine, range(12)))
    for i in found:
        assert [sample.ids for sample in found[i]] == [sample.ids for sample in forty[i]]
        for one, two in zip(found[i], forty[i], strict=True):
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-5)
    assert len(engine.rows) <= size


def test_prompts_in_pieces_equal_whole_ones(tiny_model, tokenizer, forty, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 32)
    monkeypatch.setattr(module, "PASS_TOKENS", 70)
    found = converse(TransformersEngine(tiny_model, tokenizer, batch_size=64), range(12))
    for i, turns in found.items():
        assert [sample.ids for _, sample in turns] == [sample.ids for sample in forty[i]]
        for (_, one), two in zip(turns, forty[i], strict=True):
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-5)


def test_a_pass_feeds_no_more_than_its_share(tiny_model, tokenizer, monkeypatch):
    """Also when histories were reset, and what is cached says little about what must be fed."""
    monkeypatch.setattr(module, "CHUNK", 64)
    monkeypatch.setattr(module, "PASS_TOKENS", 256)
    engine, fed = TransformersEngine(tiny_model, tokenizer, batch_size=32), []
    feed = engine._feed
    monkeypatch.setattr(engine, "_feed", lambda rows: fed.append(sum(len(row.coming()) for row in rows)) or feed(rows))
    for begin in (5, 6):  # the second time, nothing of the first context is left
        for i in range(12):
            engine.submit(Turn(f"c{i}", [begin] * (70 - begin), "s", 1))
        assert all(isinstance(sample, Sample) for sample in finish(engine, 12).values())
    assert max(fed) <= 256


def test_longer_and_longer_contexts(tiny_model, tokenizer):
    """The cache grows several times while others rest in it."""
    engine = TransformersEngine(tiny_model, tokenizer, batch_size=4)
    rng, contexts = random.Random(1), {f"c{i}": [7] * (20 + i) for i in range(3)}
    for round_, words in enumerate((10, 500, 30, 700)):
        for key in contexts:
            contexts[key] = contexts[key] + [rng.randrange(4, 770) for _ in range(words if key != "c1" else 5)]
            engine.submit(Turn(key, contexts[key], f"{key} {round_}", 3))
        for key, sample in finish(engine, 3).items():
            assert sample.logprobs == pytest.approx(expected_logprobs(tiny_model, contexts[key], sample), abs=1e-4)
            contexts[key] = contexts[key] + sample.ids


def test_the_last_ones_of_a_large_batch_go_on_alone(tiny_model, tokenizer):
    """Far apart among conversations that rest; all of them go on as if nothing had happened."""
    engine = TransformersEngine(tiny_model, tokenizer, batch_size=64)
    engine.end = 0  # which none of these draws happens to give: nobody ends by itself
    contexts = {f"c{i}": pieces(i)[0] for i in range(40)}
    for number in range(2):
        for i, (key, context) in enumerate(contexts.items()):
            engine.submit(Turn(key, context, f"{key} {number}", 12 if i in (17, 33, 39) else 2))
        for key, sample in finish(engine, 40).items():
            assert sample.logprobs == pytest.approx(expected_logprobs(tiny_model, contexts[key], sample), abs=1e-4)
            contexts[key] = contexts[key] + sample.ids + [5, 6]
    blocks = [block for row in engine.rows.values() for block in row.blocks]
    assert len(engine.rows) == 40 and len(set(blocks)) == len(blocks)


@pytest.mark.parametrize("change", [
    lambda ids: ids[:20], lambda ids: ids[:20] + [9] * 30, lambda ids: [8, *ids], lambda ids: ids, lambda ids: ids[:-1],
    lambda ids: ids[:1], lambda ids: ids[:20] + ids[25:]])
def test_a_context_that_is_no_extension_is_cut_back(tiny_model, tokenizer, change):
    """A history reset; also to the same tokens, to fewer, and to others from the first on. A neighbour goes on meanwhile."""
    engine = TransformersEngine(tiny_model, tokenizer, batch_size=4)
    prompt = list(range(100, 160))
    engine.submit(Turn("a", prompt, "s0", 8))
    engine.submit(Turn("b", prompt[::-1], "s1", 8))
    first = finish(engine, 2)
    contexts = {"a": change(prompt + first["a"].ids), "b": prompt[::-1] + first["b"].ids + [5, 6]}
    for key, ids in contexts.items():
        engine.submit(Turn(key, ids, f"again {key}", 8))
    for key, sample in finish(engine, 2).items():
        fresh = generate_turns(TransformersEngine(tiny_model, tokenizer), [Turn("x", contexts[key], f"again {key}", 8)])[0]
        assert sample.ids == fresh.ids and sample.logprobs == pytest.approx(fresh.logprobs, abs=1e-5)


def test_a_closed_engine_holds_no_keys_and_values(tiny_model, tokenizer):
    """Without the garbage collector, which seldom comes by: evaluating fifty models in a row once held 6 GB."""
    with TransformersEngine(tiny_model, tokenizer) as engine:
        converse(engine, range(3))
        cache = weakref.ref(engine.cache)
        assert cache() is not None
        gc.disable()
    try:
        assert cache() is None
    finally:
        gc.enable()


def test_shared_length():
    assert [shared_length(a, b) for a, b in (([], []), ([1], []), ([1, 2], [1, 2, 3]), ([1, 2, 3], [1, 2]), ([1, 2], [1, 3]),
                                             ([2], [1]))] == [0, 0, 2, 2, 1, 0]


# -- sampling


def play_one(model, tokenizer, seed, temperature=1.0):
    return generate_turns(TransformersEngine(model, tokenizer, temperature), [Turn("a", [40, 41, 42], seed, 12)])[0]


def test_seeds(tiny_model, tokenizer):
    assert play_one(tiny_model, tokenizer, "one") == play_one(tiny_model, tokenizer, "one")
    assert play_one(tiny_model, tokenizer, "one").ids != play_one(tiny_model, tokenizer, "two").ids
    assert play_one(tiny_model, tokenizer, "one", 0.0) == play_one(tiny_model, tokenizer, "two", 0.0)


def test_other_random_numbers_are_left_alone(tiny_model, tokenizer):
    """Sampling must not move the streams of a trainer."""
    random.seed(1), torch.manual_seed(1)
    expected = random.random(), torch.rand(1)
    random.seed(1), torch.manual_seed(1)
    play_one(tiny_model, tokenizer, "one")
    assert (random.random(), torch.rand(1)) == expected


class Says:
    """A model with the same logits after every token."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, logits):
        self.logits = torch.tensor(logits)
        self.config = type("Config", (), {"num_hidden_layers": 0, "_attn_implementation": "sdpa"})

    def __call__(self, input_ids, logits_to_keep, **_):
        logits = self.logits.expand(len(input_ids), len(logits_to_keep), -1).clone()
        return type("Output", (), {"logits": logits})


def test_tokens_are_drawn_as_often_as_they_are_likely(tokenizer):
    shares = [0.5, 0.3, 0.2, 0.0]
    engine = TransformersEngine(Says([math.log(s) if s else -math.inf for s in shares]), tokenizer)
    found = generate_turns(engine, [Turn(f"{i}", [5], f"{i}", 10) for i in range(300)])
    drawn = [token for sample in found for token in sample.ids]
    stopped = [sample.ids[-1] for sample in found if sample.stopped]  # token 3 is <|im_end|>: never
    assert not stopped and len(drawn) == 3000
    assert [drawn.count(i) / 3000 for i in range(4)] == pytest.approx(shares, abs=0.03)


def test_the_largest_draw_never_gives_an_impossible_token(tokenizer, monkeypatch):
    """The probabilities add up to a little less than 1 in float32; the draw may lie above that."""
    class Largest(random.Random):
        def random(self):
            return 1 - 2**-53

    logits = [0.0] * 997 + [-math.inf] * 3
    monkeypatch.setattr(module.random, "Random", Largest)
    sample = generate_turns(TransformersEngine(Says(logits), tokenizer), [Turn("a", [5], "s", 1)])[0]
    assert sample.ids[0] < 997 and math.isfinite(sample.logprobs[0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_a_fault(tokenizer, temperature):
    """Not a turn of token 0, whose log-probs could not be read back from a log."""
    engine = TransformersEngine(Says([0.0, math.nan, 0.0, 0.0]), tokenizer, temperature)
    assert isinstance(generate_turns(engine, [Turn("a", [5], "s", 4)])[0], EngineFault)


# -- limits and release


def test_turn_limit_is_reported(tiny_model, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for seed in range(20):
        sample = generate_turns(TransformersEngine(tiny_model, tokenizer, 2.0), [Turn("a", [40], f"{seed}", 3)])[0]
        assert len(sample.ids) == len(sample.logprobs) <= 3 and sample.stopped == (sample.ids[-1] == end)
        assert sample.stopped or len(sample.ids) == 3
        assert end not in sample.ids[:-1] and sample.exact


def test_the_end_token_ends_a_turn(tokenizer):
    logits = [0.0] * 10
    logits[tokenizer.convert_tokens_to_ids("<|im_end|>")] = 50.0
    sample = generate_turns(TransformersEngine(Says(logits), tokenizer), [Turn("a", [5], "s", 9)])[0]
    assert len(sample.ids) == 1 and sample.stopped and sample.text(tokenizer) == ""


def test_a_turn_beyond_the_models_context_is_a_fault_of_its_own(tiny_model, tokenizer):
    tiny_model.config.max_position_embeddings = 50
    engine = TransformersEngine(tiny_model, tokenizer)
    for key, length in (("long", 46), ("fits", 45)):
        engine.submit(Turn(key, [7] * length, "s", 5))
    ended = finish(engine, 2)
    assert isinstance(ended["fits"], Sample) and isinstance(ended["long"], EngineFault) and "50" in str(ended["long"])


def test_release_under_way(tiny_model, tokenizer, forty):
    """Waiting, in the middle of a turn, resting or refused: never reported, its place is free, the others notice nothing."""
    tiny_model.config.max_position_embeddings = 500
    engine = TransformersEngine(tiny_model, tokenizer, batch_size=4)
    engine.submit(Turn("first", [7] * 30, "s", 400))
    engine.poll(), engine.poll()
    engine.submit(Turn("second", [7] * 30, "s", 400))
    engine.submit(Turn("refused", [7] * 600, "s", 400))
    for key in ("first", "second", "refused", "never heard of"):
        engine.release(key)
    assert engine.poll() == [] and not engine.rows and not engine.running and not engine.waiting
    for key in ("c0", "other"):
        engine.submit(Turn(key, pieces(0)[0], "seed 0/0", LIMITS[0] if key == "c0" else 400))
    assert dict(engine.poll())["c0"] == forty[0][0]  # in the places of those before it
    engine.release("other")
    assert engine.poll() == []


@pytest.mark.parametrize("company", [1, 5])
def test_a_short_turn_does_not_wait_for_a_long_one(tiny_model, tokenizer, company):
    """Also where few are under way: with turns of thousands of tokens, everybody would wait for the longest thought."""
    engine = TransformersEngine(tiny_model, tokenizer, batch_size=128)
    engine.end = 0  # which none of these draws happens to give: nobody ends by itself
    for i in range(company):
        engine.submit(Turn(f"long {i}", [40], f"{i}", 100))
    engine.poll()
    engine.submit(Turn("short", [41], "s", 1))
    ended = [(key, type(sample)) for _ in range(20) for key, sample in engine.poll()]
    assert ended == [("short", Sample)]


def test_a_key_begins_anew_after_its_release(tiny_model, tokenizer):
    engine = TransformersEngine(tiny_model, tokenizer)
    turn = Turn("a", [40, 41, 42], "s", 12)
    engine.submit(turn)
    engine.poll()
    engine.release("a")
    engine.submit(turn)
    assert finish(engine, 1)["a"] == play_one(tiny_model, tokenizer, "s")


# -- faults


class Failing:
    """Lets a model raise at its n-th passes."""

    def __init__(self, model, error, *passes):
        self.model, self.error, self.passes, self.number = model, error, passes, 0
        self.forward, model.forward = model.forward, self

    def __call__(self, *args, **kwargs):
        self.number += 1
        if self.number in self.passes:
            raise self.error
        return self.forward(*args, **kwargs)


def turns_of(numbers, limit=6):
    return [Turn(f"c{i}", pieces(i)[0], f"seed {i}", limit) for i in numbers]


def ask(engine, turns):
    for turn in turns:
        engine.submit(turn)
    return finish(engine, len(turns))


@pytest.mark.parametrize("error,size", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore"), 4), (MemoryError(), 4),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), 4),
    (RuntimeError("CUDA error: device-side assert triggered"), 8), (IndexError("index out of range in self"), 8),
    (ValueError("shapes"), 8)])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_failing_pass_is_a_fault_of_those_under_way(tiny_model, tokenizer, error, size, number):
    """Whatever the error and the pass. Asked again, they are the turns that they would have been."""
    expected = ask(TransformersEngine(tiny_model, tokenizer, batch_size=8), turns_of(range(6)))
    Failing(tiny_model, error, number)
    engine = TransformersEngine(tiny_model, tokenizer, batch_size=8)
    ended = ask(engine, turns_of(range(6)))
    faults = {key for key, sample in ended.items() if isinstance(sample, EngineFault)}
    assert faults and all("\n" not in str(ended[key]) and type(error).__name__ in str(ended[key]) for key in faults)
    assert engine.batch_size == size
    again = ask(engine, [turn for turn in turns_of(range(6)) if turn.key in faults])
    for key, sample in {**ended, **again}.items():
        assert sample.ids == expected[key].ids and sample.logprobs == pytest.approx(expected[key].logprobs, abs=1e-5)


def test_memory_that_runs_out_as_the_cache_grows(tiny_model, tokenizer, monkeypatch):
    """That is where it runs out most often. No turn may be lost over it: the loop would wait for ever."""
    engine = TransformersEngine(tiny_model, tokenizer, batch_size=8)
    ask(engine, turns_of([0]))
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_grown", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
        ended = ask(engine, [Turn("long", [7] * 600, "s", 5), *turns_of([1])])
    assert all(isinstance(sample, EngineFault) for sample in ended.values()) and engine.batch_size == 4
    assert isinstance(ask(engine, [Turn("long", [7] * 600, "s", 5)])["long"], Sample)


def test_a_turn_that_ended_in_the_pass_before_is_not_lost(tiny_model, tokenizer, monkeypatch):
    """A prompt of one piece is through, and its turn of one token, when the second piece of its neighbour fails."""
    monkeypatch.setattr(module, "CHUNK", 32)
    Failing(tiny_model, RuntimeError("CUDA error"), 2)
    engine = TransformersEngine(tiny_model, tokenizer)
    ended = ask(engine, [Turn("short", [7] * 20, "s", 1), Turn("long", [7] * 60, "s", 1)])
    assert isinstance(ended["long"], EngineFault)


def test_memory_never_shrinks_the_batch_to_nothing(tiny_model, tokenizer):
    Failing(tiny_model, MemoryError(), *range(1, 6))
    engine = TransformersEngine(tiny_model, tokenizer, batch_size=4)
    for size in (2, 1, 1):
        assert isinstance(ask(engine, turns_of([0]))["c0"], EngineFault) and engine.batch_size == size


# -- many turns


def test_generate_turns_keeps_order_and_passes_faults_on(tokenizer):
    engine = Script(tokenizer, lambda turn: EngineFault("gone") if turn.key == "3" else " ".join(turn.key), batch_size=4)
    most = []
    poll, engine.poll = engine.poll, lambda: (most.append(len(engine.waiting)), poll())[1]
    found = generate_turns(engine, (Turn(f"{i}", [5], f"0/{i}", 9) for i in range(10)))
    assert [str(s) if isinstance(s, EngineFault) else s.text(tokenizer).replace(" ", "") for s in found] == [
        "0", "1", "2", "gone", "4", "5", "6", "7", "8", "9"]
    assert max(most) == 4 and sorted(engine.released) == [f"{i}" for i in range(10)]
    assert generate_turns(engine, []) == []


def test_generate_turns_leaves_nothing_behind(tiny_model, tokenizer, forty):
    engine = TransformersEngine(tiny_model, tokenizer, batch_size=3)
    turns = [Turn(f"c{i}", pieces(i)[0], f"seed {i}/0", LIMITS[i % 3]) for i in range(12)]
    assert [s.ids for s in generate_turns(engine, turns)] == [forty[i][0].ids for i in range(12)]
    assert not engine.rows and not engine.running and not engine.waiting


def test_generate_turns_interrupted_leaves_nothing_behind(tiny_model, tokenizer):
    """A cell is interrupted; run again, it uses the same keys."""
    Failing(tiny_model, KeyboardInterrupt(), 2)
    engine = TransformersEngine(tiny_model, tokenizer)
    with pytest.raises(KeyboardInterrupt):
        generate_turns(engine, turns_of(range(3)))
    assert not engine.rows and not engine.running and not engine.waiting
