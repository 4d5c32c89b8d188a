"""Opening models and engines: what a profile names, from a folder on this machine."""

from pathlib import Path

from ...errors import KitError, one_line
from ...profile import Profile
from .base import Engine


def quiet_libraries() -> None:
    """Keep remarks of libraries that are of no use to a reader (missing GPU kernels, loading bars) off the screen."""
    import logging

    for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_tokenizer(path: Path | str):
    """Tokenizer of a local folder, whose checksums are verified where it has them.

    Raises:
        KitError: missing folder, no tokenizer in it, or a file that differs from its checksum.
    """
    quiet_libraries()
    from transformers import AutoTokenizer

    from ...artefacts import verify_checkpoint

    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise KitError(f"no model in {path}; `agentcpm-kit doctor` tells what makes it")
    if (folder / "SHA256SUMS").is_file():
        verify_checkpoint(folder)
    if not has_tokenizer(folder):
        raise KitError(f"no tokenizer in {path}")
    return AutoTokenizer.from_pretrained(folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a vocabulary is there; where none is, transformers makes an empty one up."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model"))


def load_model(path: Path | str, dtype: str = "float32"):
    """Model (on the GPU where there is one) and tokenizer from a local folder.

    Raises:
        KitError: as `load_tokenizer`, or the weights are missing or broken.
    """
    tokenizer = load_tokenizer(path)
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    except (SafetensorError, OSError) as error:
        raise KitError(f"the weights in {path} cannot be read: {one_line(error)}") from error
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def open_engine(path: Path | str, profile: Profile, temperature: float = 1.0) -> Engine:
    """The engine that the profile names, over the model in `path`; to be used in a ``with``, or closed.

    For `openai`, servers hold the model (``model.served``), and `path` gives the tokenizer.

    Raises:
        KitError: no model there, nobody serves it, its server does not answer, or the engine's package is not installed.
    """
    settings, size = profile.model, profile.evaluation.batch_size
    if settings.engine == "transformers":
        from .transformers import TransformersEngine

        return TransformersEngine(*load_model(path, settings.dtype), temperature, size)
    tokenizer = load_tokenizer(path)
    if settings.engine == "vllm":
        from .vllm import VLLMEngine

        return VLLMEngine(path, tokenizer, temperature, size, profile.limits.max_context_tokens, settings.dtype,
                          settings.vllm_memory)
    from .openai import OpenAIEngine, require_servers

    served = settings.served.get(Path(path).name)
    if served is None:
        raise KitError(f"no server is known for the model {Path(path).name!r} ({path}): serve it, and name it in "
                       f"profiles/{profile.name}.yaml under model.served; then run this again")
    require_servers(served.urls)
    return OpenAIEngine(served.urls, served.name, tokenizer, temperature, served.api, served.concurrency,
                        timeout_s=served.timeout_s)
