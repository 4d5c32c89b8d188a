"""Shared by all tests: offline, no W&B, results in a temporary folder, one thread so that sums are the same each time."""

import os

os.environ.update(AGENTCPM_KIT_WANDB="0", WANDB_MODE="offline", HF_HUB_OFFLINE="1", MPLBACKEND="Agg",
                  TOKENIZERS_PARALLELISM="false")

import pytest

from agentcpm_kit.profile import load_profile, repo_root


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """A results folder of the test's own."""
    monkeypatch.setenv("AGENTCPM_KIT_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture(scope="session")
def tokenizer():
    from agentcpm_kit.micro.skills import WORDS
    from agentcpm_kit.micro.tokenizer import build_tokenizer

    return build_tokenizer(WORDS)


@pytest.fixture(scope="session")
def smoke():
    return load_profile("smoke")


@pytest.fixture(scope="session")
def micro_base():
    return repo_root() / "data/models/micro-base"


@pytest.fixture
def tiny_model(tokenizer):
    """A random two-layer Qwen3 over the micro vocabulary."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = Qwen3Config(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=2, head_dim=8, intermediate_size=32, tie_word_embeddings=True,
                         initializer_range=0.5)
    return Qwen3ForCausalLM(config).eval()
