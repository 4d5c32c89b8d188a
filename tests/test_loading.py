"""Opening engines from a profile: the right one, over the right model, or a line that says what to do."""

import pytest

from agentcpm_kit.agent.engines import TransformersEngine, open_engine, openai
from agentcpm_kit.agent.engines.openai import OpenAIEngine
from agentcpm_kit.errors import KitError
from agentcpm_kit.profile import load_profile, repo_root
from agentcpm_kit.sections import Served

MERGED = repo_root() / "data/models/micro-merge"


def served_by(**served):
    micro = load_profile("micro")
    return micro.model_copy(update={"model": micro.model.model_copy(update={"engine": "openai", "served": served})})


def test_transformers_is_the_default_and_gives_its_memory_back():
    with open_engine(MERGED, load_profile("micro"), 0.5) as engine:
        assert isinstance(engine, TransformersEngine) and engine.temperature == 0.5
        assert engine.batch_size == load_profile("micro").evaluation.batch_size
        engine.rows["a"] = engine.cache = object()
    assert not engine.rows and engine.cache is None and engine.model is None


def test_each_checkpoint_has_a_server_of_its_own(monkeypatch):
    """Asked for all under one name, notebooks 04 to 09 would compare a model with itself."""
    monkeypatch.setattr(openai, "require_servers", lambda urls: None)
    server = Served(urls=["http://a:1/v1", "http://b:2"], name="merged", concurrency=3, timeout_s=7)
    with open_engine(MERGED, served_by(**{"micro-merge": server}), 0.0) as engine:
        assert isinstance(engine, OpenAIEngine) and engine.model == "merged" and engine.batch_size == 6
        assert [e.url for e in engine.servers.endpoints] == ["http://a:1/v1", "http://b:2/v1"] and engine.servers.timeout_s == 7
    with pytest.raises(KitError, match="no server is known for the model 'micro-merge'.*model.served"):
        open_engine(MERGED, served_by(sft=server))


def test_a_server_that_is_not_there_is_told_at_once():
    """Not after minutes of retries, as a success rate of 0."""
    server = Served(urls=["http://127.0.0.1:9/v1"], name="merged")
    with pytest.raises(KitError, match="no server answers at http://127.0.0.1:9/v1 .*start it"):
        open_engine(MERGED, served_by(**{"micro-merge": server}))


def test_no_model_says_what_makes_one(tmp_path):
    with pytest.raises(KitError, match="no model in .*doctor"):
        open_engine(tmp_path, load_profile("micro"))
