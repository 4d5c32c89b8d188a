"""The cache across turns must not change what the model computes."""

import torch

from agentcpm_kit.agent.engines import TransformersEngine


def full_logprobs(model, ids):
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)


def play(model, tokenizer, prompts, temperature, batch_size=8):
    """Two turns with a piece in between; all ids and the log-probs of the sampled ones."""
    engine = TransformersEngine(model, tokenizer, temperature, batch_size)
    batch = engine.begin(prompts, [f"row {len(p)}" for p in prompts])
    first = batch.generate(6)
    piece = tokenizer("Error: page not found.", add_special_tokens=False).input_ids
    batch.extend(list(range(len(prompts))), [piece * (1 + i % 2) for i in range(len(prompts))])
    second = batch.generate(5)
    return [(p, a, piece * (1 + i % 2), b) for i, (p, a, b) in enumerate(zip(prompts, first, second, strict=True))]


def prompts_of(tokenizer):
    texts = ["Repeat: a b c", "Sort: z y", "What is the home of Pulmak? Find it. Search Pulmak."]
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def test_recorded_logprobs_equal_a_pass_without_cache(tiny_model, tokenizer):
    for prompt, first, piece, second in play(tiny_model, tokenizer, prompts_of(tokenizer), 1.0):
        ids = prompt + first.ids + piece + second.ids
        expected = full_logprobs(tiny_model, ids)
        for start, sample in ((len(prompt), first), (len(ids) - len(second.ids), second)):
            for i, (token, logprob) in enumerate(zip(sample.ids, sample.logprobs, strict=True)):
                assert abs(expected[start + i - 1, token].item() - logprob) < 1e-4


def test_greedy_picks_the_largest(tiny_model, tokenizer):
    for prompt, first, _, _ in play(tiny_model, tokenizer, prompts_of(tokenizer), 0.0):
        expected = full_logprobs(tiny_model, prompt + first.ids)
        assert all(expected[len(prompt) + i - 1].argmax().item() == t for i, t in enumerate(first.ids))


def test_a_row_does_not_depend_on_its_batch(tiny_model, tokenizer):
    prompts = prompts_of(tokenizer)
    together = play(tiny_model, tokenizer, prompts, 1.0)
    alone = play(tiny_model, tokenizer, prompts[:1], 1.0)[0]
    assert together[0][1].ids == alone[1].ids and together[0][3].ids == alone[3].ids


def test_dropped_rows_leave_the_others_alone(tiny_model, tokenizer):
    prompts = prompts_of(tokenizer)
    engine = TransformersEngine(tiny_model, tokenizer, 1.0)
    batch = engine.begin(prompts, [f"row {len(p)}" for p in prompts])
    batch.generate(6)
    piece = tokenizer("Error: page not found.", add_special_tokens=False).input_ids
    batch.extend([0], [piece])
    assert batch.generate(5)[0].ids == play(tiny_model, tokenizer, prompts, 1.0)[0][3].ids


def test_turn_limit_is_reported(tiny_model, tokenizer):
    engine = TransformersEngine(tiny_model, tokenizer, 0.0)
    sample = engine.begin(prompts_of(tokenizer)[:1], ["s"]).generate(1)[0]
    assert len(sample.ids) == 1 and sample.stopped == (sample.ids[0] == tokenizer.convert_tokens_to_ids("<|im_end|>"))
