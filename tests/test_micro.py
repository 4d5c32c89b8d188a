"""micro-qwen3: tokenizer, skills, the shipped base."""

import json

import pytest

from agentcpm_kit.agent.engines import load_model
from agentcpm_kit.agent.oracle import OracleEngine
from agentcpm_kit.artefacts import verify_checkpoint
from agentcpm_kit.errors import KitError
from agentcpm_kit.evaluate.runner import evaluate_agent, suite
from agentcpm_kit.micro.batches import Curriculum, encode
from agentcpm_kit.micro.build import new_model, reading_accuracy
from agentcpm_kit.micro.induction import OFFSETS
from agentcpm_kit.micro.skills import draw_items
from agentcpm_kit.report.reference import SHIPPED
from agentcpm_kit.world import Tools, make_world


def round_trips(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids, text
    assert tokenizer.decode(ids) == text


def test_tokenizer_round_trips_all_that_the_kit_writes(tokenizer, smoke):
    tasks = suite(smoke, "test", redundancy=6)
    for trajectory in evaluate_agent(OracleEngine(tokenizer, tasks), tasks, smoke).trajectories:
        round_trips(tokenizer, tokenizer.decode(trajectory.context.token_ids))
    for item in draw_items(300, "any"):
        round_trips(tokenizer, item.prompt)
        round_trips(tokenizer, item.answer)
    world = make_world(5, 60, 9)
    for page in world.pages.values():
        round_trips(tokenizer, page.text)
        round_trips(tokenizer, Tools(world).call("search", {"query": [page.title]}))


def test_names_are_single_tokens(tokenizer):
    for entity in make_world(1).entities:
        assert len(tokenizer(entity.name, add_special_tokens=False).input_ids) == 1


def test_encode_learns_the_assistant_only(tokenizer):
    ids, labels = encode(tokenizer, [{"role": "user", "content": "Repeat: a b"}, {"role": "assistant", "content": "a b"}])
    assert tokenizer.decode([i for i in labels if i >= 0]).strip() == "a b<|im_end|>"
    assert len(ids) == len(labels)


def test_curriculum_is_the_same_from_any_worker_and_grows(tokenizer):
    first, second = (Curriculum(tokenizer, 3, 100, 500, 12, frozenset()) for _ in range(2))
    for step in (0, 99):
        for a, b in zip(first[step], second[step], strict=True):
            assert a[0].equal(b[0]) and a[1].equal(b[1])
    assert first.level(0) == 0 and first.level(99) == 1
    assert len(first[0]) == 1 and len(first[99]) == 3  # excerpts alone; short and long lessons and general items


def test_head_start_looks_back_and_finds_repetitions(tokenizer):
    import torch

    torch.manual_seed(0)
    model = new_model(tokenizer)
    model.config._attn_implementation = "eager"
    half = torch.randperm(len(tokenizer))[:20]
    ids = torch.cat([half, half])[None]  # token p of the second half stands at p - 20 in the first
    first, second = model(ids, output_attentions=True).attentions[:2]
    for head, offset in enumerate(OFFSETS):
        looked = [first[0, head, p].argmax().item() for p in range(20, 40)]
        assert sum(p - where == offset for p, where in zip(range(20, 40), looked, strict=True)) >= 15
    after = torch.stack([second[0, :, p, p - 19] for p in range(20, 39)])  # the token after the earlier occurrence
    assert after.mean() > 3 / 30  # an even spread would be about 1/30


def test_shipped_base_reads(micro_base):
    model, tokenizer = load_model(micro_base)
    assert reading_accuracy(model, tokenizer, 0.0) >= 0.95
    assert reading_accuracy(model, tokenizer, 0.3) >= 0.85
    assert reading_accuracy(model, tokenizer, 1.0) >= 0.5


def test_shipped_base_is_small_whole_and_qwen3(micro_base):
    verify_checkpoint(micro_base)
    assert sum(p.stat().st_size for p in micro_base.rglob("*")) <= 8_000_000
    model, tokenizer = load_model(micro_base)
    assert type(model).__name__ == "Qwen3ForCausalLM" and 1e6 <= model.num_parameters() <= 3e6
    assert "<tool_call>" in tokenizer.chat_template and "<think>" in tokenizer.chat_template


@pytest.mark.parametrize("name", list(SHIPPED))
def test_shipped_checkpoints_were_trained_from_the_shipped_base(micro_base, name):
    verify_checkpoint(micro_base.parent / name)
    for file in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert _content(micro_base.parent / name / file) == _content(micro_base / file), file


def _content(path):
    """A configuration is compared by what shapes the model; libraries add and reword the rest when they save."""
    if path.suffix != ".json":
        return path.read_text()
    content = json.loads(path.read_text())
    shape = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "model")
    return {key: content[key] for key in shape if key in content}


def test_corrupt_checkpoint_is_refused_by_name(micro_base, tmp_path):
    import shutil

    copy = shutil.copytree(micro_base, tmp_path / "copy")
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(KitError, match="model.safetensors"):
        load_model(copy)
