"""The vLLM engine against transformers, on the shipped 1M model: one engine for all tests, since its start takes 10 s."""

import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from agentcpm_kit.agent.engines import vllm as module
from agentcpm_kit.agent.engines.base import EngineFault, Sample, Turn, generate_turns
from agentcpm_kit.agent.engines.vllm import VLLMEngine
from agentcpm_kit.agent.messages import Renderer
from agentcpm_kit.errors import KitError
from agentcpm_kit.profile import repo_root
from agentcpm_kit.world import tool_schemas

MODEL = repo_root() / "data/models/micro-merge"
CONTEXT, BLOCK = 640, 32
QUESTIONS = ["What is the home of Pulmak?", "What is the craft of the mentor of Talin?", "Repeat: a b c"]
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed (make setup-vllm)")


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def engine(tokenizer):
    engine = VLLMEngine(MODEL, tokenizer, temperature=1.0, batch_size=64, max_context_tokens=CONTEXT, memory=0.25)
    yield engine
    engine.close()


@pytest.fixture
def greedy(engine, monkeypatch):
    monkeypatch.setattr(engine, "temperature", 0.0)
    return engine


@pytest.fixture
def cached(engine, monkeypatch):
    """Prompt tokens of each ended turn that vLLM took from its cache, by key."""
    found, step = {}, engine._engine.step

    def watched():
        outputs = step()
        found.update({out.request_id: out.num_cached_tokens for out in outputs})
        return outputs

    monkeypatch.setattr(engine._engine, "step", watched)
    return found


def load_model():
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def disturbed(model):
    """Other weights, far enough from the model's own to tell them apart."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return model


def prompts_of(tokenizer):
    return [Renderer(tokenizer, tool_schemas()).prompt(question) for question in QUESTIONS]


def run(engine, *turns):
    """Samples and faults by key."""
    found = {}
    for turn in turns:
        engine.submit(turn)
    while not found.keys() >= {turn.key for turn in turns}:
        found |= engine.poll()
    return found


def wait(engine):
    found = []
    while not found:
        found = engine.poll()
    return found


def check(model, prompt, sample, temperature=1.0, greedy=False):
    """The recorded log-probs are those of a pass without a cache; greedy tokens are the largest, or as good as it."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([prompt + sample.ids])).logits[0, len(prompt) - 1: -1].float()
    expected = torch.log_softmax(logits / temperature, -1)
    chosen = expected.gather(1, torch.tensor(sample.ids)[:, None])[:, 0]
    assert (chosen - torch.tensor(sample.logprobs)).abs().max() < 1e-3
    if greedy:
        assert (expected.max(-1).values - chosen).max() < 1e-3


def test_tells_how_to_install_vllm(monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.setitem(sys.modules, "vllm", None)  # makes the import fail
    with pytest.raises(KitError, match="make setup-vllm"):
        VLLMEngine(MODEL, AutoTokenizer.from_pretrained(MODEL))


@needs_vllm
def test_greedy_turns_are_those_of_transformers_and_reuse_the_cache(greedy, cached, tokenizer):
    model = load_model()
    piece = Renderer(tokenizer, tool_schemas()).tool_results(["Pulmak home : Talin ."])
    for i, prompt in enumerate(prompts_of(tokenizer)):
        key = f"greedy {i}"
        first = run(greedy, Turn(key, prompt, "", 60))[key]
        second_prompt = prompt + first.ids + piece
        second = run(greedy, Turn(key, second_prompt, "", 60))[key]
        check(model, prompt, first, greedy=True)
        check(model, second_prompt, second, greedy=True)
        # All full blocks but what the last token, which is sampled and never fed, would have filled.
        assert cached[key] >= (len(prompt) + len(first.ids) - 1) // BLOCK * BLOCK > 0


@needs_vllm
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_sampling_distribution(engine, monkeypatch, tokenizer, temperature):
    monkeypatch.setattr(engine, "temperature", temperature)
    model = load_model()
    for i, prompt in enumerate(prompts_of(tokenizer)):
        check(model, prompt, run(engine, Turn("a", prompt, f"draw {i}", 60))["a"], temperature)


@needs_vllm
def test_draws_follow_the_distribution(engine):
    prompt, count = list(range(5, 105)), 640
    samples = generate_turns(engine, [Turn(str(i), prompt, str(i), 1) for i in range(count)])
    logprob = {sample.ids[0]: sample.logprobs[0] for sample in samples}
    seen = [sample.ids[0] for sample in samples]
    for token in sorted(set(seen), key=seen.count)[-3:]:
        share = 2.718281828 ** logprob[token]
        assert abs(seen.count(token) / count - share) < 4 * (share * (1 - share) / count) ** 0.5


@needs_vllm
def test_a_turn_depends_on_its_seed_and_not_on_its_company(engine, tokenizer):
    prompt = list(range(5, 205))
    alone = run(engine, Turn("a", prompt, "seed", 20))["a"]
    company = run(engine, *(Turn(str(i), prompt[i:], f"other {i}", 20) for i in range(1, 30)), Turn("a", prompt, "seed", 20))
    assert company["a"].ids == alone.ids
    assert run(engine, Turn("a", prompt, "another seed", 20))["a"].ids != alone.ids


@needs_vllm
def test_ends_with_the_stop_token_or_at_the_limit(greedy, tokenizer):
    prompt = prompts_of(tokenizer)[0]
    whole = run(greedy, Turn("a", prompt, "", 200))["a"]
    assert whole.stopped and whole.ids[-1] == greedy.end_id and greedy.end_id not in whole.ids[:-1]
    cut = run(greedy, Turn("a", prompt, "", 3))["a"]
    assert cut == Sample(whole.ids[:3], pytest.approx(whole.logprobs[:3], abs=1e-3), stopped=False)


@needs_vllm
def test_more_turns_than_fit_at_once(engine):
    """Seeded prompts of together more than 2,048 tokens: in pieces, they kill vLLM 0.32 on a CPU ("does not use offset")."""
    turns = [Turn(f"turn {i}", [5 + i, *range(100, 300)], str(i), 4 + i % 3) for i in range(70)]
    samples = generate_turns(engine, turns)
    assert all(s.stopped or len(s.ids) == t.max_new_tokens for s, t in zip(samples, turns, strict=True))
    assert engine.poll() == []


@needs_vllm
def test_a_released_turn_is_never_reported(greedy, tokenizer):
    kept, dropped, again = (Turn(key, prompt, "", count) for key, prompt, count in zip(
        ("kept", "dropped", "dropped"), prompts_of(tokenizer), (8, 8, 12), strict=True))
    greedy.submit(kept)
    greedy.submit(dropped)
    assert greedy.poll() == []
    greedy.release("dropped")
    greedy.release("unknown")
    found = run(greedy, again)  # under the same name: what comes must not be the old one's
    assert set(found) == {"kept", "dropped"} and found["dropped"].ids == run(greedy, again)["dropped"].ids
    assert greedy.poll() == []


@needs_vllm
def test_what_is_wrong_with_one_turn_is_its_own_fault(greedy, tokenizer):
    prompt = prompts_of(tokenizer)[0]
    found = run(greedy, Turn("long", [5] * CONTEXT, "", 8), Turn("empty", [], "", 8), Turn("alien", [776], "", 8),
                Turn("none", prompt, "", 0), Turn("good", prompt, "", 8), Turn("edge", [5] * (CONTEXT - 2), "", 8))
    assert all(isinstance(found[key], EngineFault) for key in ("long", "empty", "alien", "none"))
    assert "maximum model length" in str(found["long"])
    assert len(found["good"].ids) == 8 and 1 <= len(found["edge"].ids) <= 2  # it may end by itself


@needs_vllm
def test_a_dead_engine_ends_every_turn_as_a_fault(tokenizer, monkeypatch):
    class Dying:
        model_config = SimpleNamespace(get_vocab_size=lambda: 776)
        add_request = staticmethod(lambda *_: None)

        def step(self):
            raise MemoryError("no memory")

    monkeypatch.setattr(module, "_start", lambda *_, **__: Dying())
    engine = VLLMEngine(MODEL, tokenizer)
    found = run(engine, Turn("a", [5], "", 8), Turn("b", [6], "", 8))
    assert {key: str(fault) for key, fault in found.items()} == dict.fromkeys("ab", "vLLM died: MemoryError: no memory")
    assert isinstance(run(engine, Turn("c", [5], "", 8))["c"], EngineFault)
    with pytest.raises(EngineFault):
        engine.load_weights({})


@needs_vllm
def test_leaves_the_process_as_it_was(engine):
    import torch

    assert "skip" not in torch.set_num_threads.__name__  # vLLM puts in one that warns and does nothing
    before = torch.get_rng_state()
    run(engine, Turn("a", list(range(5, 50)), "", 4))
    assert torch.equal(torch.get_rng_state(), before)


@needs_vllm
@pytest.mark.parametrize("form", ["module", "parameters"])
def test_new_weights_replace_the_old_ones_and_their_cache(greedy, cached, tokenizer, form):
    """The tied head is the trap: vLLM 0.32 goes on computing with the old one when `parameters` leave it out."""
    import torch

    base, new, prompt = load_model(), disturbed(load_model()), prompts_of(tokenizer)[0]
    before = run(greedy, Turn("a", prompt, "", 30))["a"]
    greedy.load_weights(new if form == "module" else new.named_parameters())
    try:
        after = run(greedy, Turn("a", prompt, "", 30))["a"]
        assert cached["a"] == 0 and after.ids != before.ids
        check(new, prompt, after, greedy=True)
        with torch.no_grad():
            new.model.embed_tokens.weight.zero_()  # the engine has copies: training goes on without it
        assert run(greedy, Turn("a", prompt, "", 30))["a"].ids == after.ids
    finally:
        greedy.load_weights(base)
    assert run(greedy, Turn("a", prompt, "", 30))["a"].ids == before.ids


@needs_vllm
def test_refuses_weights_that_are_not_the_models(greedy, tokenizer):
    model, prompt = load_model(), prompts_of(tokenizer)[0]
    some = dict(list(model.named_parameters())[:-1])
    for wrong in (some, {**some, "head.weight": model.lm_head.weight}, {f"base_model.{n}": w for n, w in some.items()}):
        with pytest.raises(ValueError, match="not the weights of"):
            greedy.load_weights(wrong.items())
    greedy.submit(Turn("a", prompt, "", 30))
    with pytest.raises(RuntimeError, match="under way"):
        greedy.load_weights(model)
    check(model, prompt, dict(wait(greedy))["a"], greedy=True)


@needs_vllm
def test_a_start_that_fails_is_told_in_one_line(tokenizer):
    with pytest.raises(KitError, match="vLLM does not start: .*4096") as error:
        VLLMEngine(MODEL, tokenizer, max_context_tokens=4096)
    assert "\n" not in str(error.value)


@needs_vllm
def test_closing_an_engine_leaves_the_others_alone(greedy, tokenizer):
    turn = Turn("a", prompts_of(tokenizer)[0], "", 8)
    other = VLLMEngine(MODEL, tokenizer, temperature=0.0, max_context_tokens=CONTEXT, memory=0.1)
    assert run(other, turn)["a"].ids == run(greedy, turn)["a"].ids
    other.submit(turn)
    other.close()
    assert str(dict(other.poll())["a"]) == "the engine is closed"
    assert len(run(greedy, turn)["a"].ids) == 8
