"""mergekit does the arithmetic; here it is checked against arithmetic done by hand."""

import pytest
import torch
from safetensors.torch import load_file

from agentcpm_kit.artefacts import write_checksums
from agentcpm_kit.errors import KitError
from agentcpm_kit.train.merge import merge, merge_config


@pytest.fixture
def pair(tiny_model, tokenizer, tmp_path):
    """A model and a changed copy of it."""
    paths = tmp_path / "base", tmp_path / "tuned"
    for scale, path in zip((1.0, 1.5), paths, strict=True):
        with torch.no_grad():
            for parameter in tiny_model.parameters():
                parameter.mul_(scale)
        tiny_model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        write_checksums(path)
    return paths


def weights(path):
    return load_file(path / "model.safetensors")


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_weighted_mean_by_hand(pair, tmp_path, method):
    base, tuned = pair
    merged = weights(merge(merge_config(method, base, tuned, 0.25), tmp_path / "out"))
    for name, value in weights(base).items():
        torch.testing.assert_close(merged[name], 0.75 * value + 0.25 * weights(tuned)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["slerp", "ties", "della"])
def test_other_methods_run_and_lie_between(pair, tmp_path, method):
    base, tuned = pair
    merged = weights(merge(merge_config(method, base, tuned, 0.5), tmp_path / "out"))
    assert any(not torch.equal(merged[n], v) for n, v in weights(base).items())
    assert all(torch.isfinite(v).all() for v in merged.values())


def test_merged_model_has_tokenizer_template_and_yaml(pair, tmp_path, tokenizer):
    from transformers import AutoTokenizer

    out = merge(merge_config("linear", *pair, 0.5), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    assert "merge_method: linear" in (out / "mergekit.yaml").read_text()


def test_random_methods_follow_the_seed(pair, tmp_path):
    config = merge_config("della", *pair, 0.5)
    one, same, other = (weights(merge(config, tmp_path / str(i), seed)) for i, seed in enumerate((1, 1, 2)))
    assert all(torch.equal(one[n], same[n]) for n in one) and any(not torch.equal(one[n], other[n]) for n in one)


def test_bad_input_is_refused_by_name(pair, tmp_path):
    with pytest.raises(KitError, match="linear"):
        merge_config("liner", *pair, 0.5)
    with pytest.raises(KitError, match="between 0 and 1"):
        merge_config("linear", *pair, 1.5)
    with pytest.raises(KitError, match="no model in"):
        merge(merge_config("linear", pair[0], tmp_path / "nowhere", 0.5), tmp_path / "out")
