"""Profiles: one YAML file holds every number of a run; a profile changes numbers, never the algorithm.

``load_profile("micro")`` reads ``profiles/micro.yaml``. Unknown keys fail with the nearest known key.
Paths are found from the repository root (the folder that holds ``profiles/`` and ``pyproject.toml``),
never from the working directory: papermill starts where it is called, Jupyter where the notebook lies.
"""

import os
import random
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
    field_validator,
)

from .errors import KitError, unknown


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def changed(self, **values) -> Self:
        """A copy with other values, checked as a profile's are.

        Raises:
            KitError: an unknown name or a value out of its range.
        """
        try:
            return type(self).model_validate(self.model_dump() | values)
        except ValidationError as error:
            first = error.errors()[0]
            raise KitError(f"{'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg'].lower()}") from error


class Machine(Section):
    """What the profile needs, for ``agentcpm-kit doctor``. ``minutes`` was measured on two cores where said so."""

    cores: int
    memory_gb: float
    disk_gb: float
    gpu_memory_gb: float = 0
    minutes: float
    minutes_measured: bool = False


Share = Annotated[float, Field(ge=0, le=1)]
Url = Annotated[str, StringConstraints(pattern="^https?://[^/]+")]


class Served(Section):
    """A model on OpenAI-compatible servers, under their ``name`` for it. The key is in OPENAI_API_KEY."""

    urls: list[Url] = Field(min_length=1)  # as http://host:8000/v1; turns are spread over them
    name: str
    api: Literal["completions", "chat"] = "completions"  # see agent/engines/openai.py
    concurrency: int = 16  # turns at once on each server
    timeout_s: float = 300.0  # of one try of one turn


class Model(Section):
    """``base`` is a folder, in the repository or anywhere on this machine.

    With engine ``openai``, ``served`` says who serves which checkpoint, by the name of its folder: a pipeline makes new
    ones, and a server that is asked for all of them under one name would compare a model with itself. Another seed makes
    others under the same names: serve those, and change ``served``.
    """

    base: str
    engine: Literal["transformers", "vllm", "openai"] = "transformers"
    served: dict[str, Served] = {}
    vllm_memory: float | None = None  # of each engine, two at most: share of the GPU (0.9), on a CPU GB of cache (1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    @field_validator("served")
    @classmethod
    def _not_the_candidates(cls, served: dict) -> dict:
        if "candidate" in served:
            raise ValueError("notebook 05 writes all its merges to `candidate`, one after the other; run it with another engine")
        return served


class World(Section):
    """Sizes of the atlas. ``redundancy`` is the number of redundant sentences per page (contamination)."""

    entities: int
    redundancy: int
    train_worlds: int
    validation_worlds: int
    test_worlds: int


class Limits(Section):
    """Of one episode. 0 is no limit where there is a default of 0."""

    max_turns: int
    max_new_tokens: int  # per turn
    max_context_tokens: int
    max_repetitions: int = 3  # the same text for this time ends an episode (the reference's examples: 4)
    max_total_tokens: int = 0  # sampled in all turns: with history resets the context alone is no limit
    max_seconds: float = 0.0  # wall time


class Context(Section):
    """What of a page the agent sees, and what happens when the context is full: see agent/context.py.

    Wherever an agent plays: in data, training and evaluation alike. Notebook 08 compares policies.
    """

    name: Literal["raw", "truncate", "extract"] = "raw"  # those that need no model
    keep: int = 3
    min_tokens: int = 0
    history: Literal["none", "discard_tools", "discard_all"] = "none"  # RL refuses resets: it trains one context
    keep_thinking: bool = True


class Evaluation(Section):
    tasks: int  # per number of hops
    hops: list[int]
    general_items: int
    batch_size: int
    general_suite: Literal["micro", "small"] = "small"  # which fixed items: see evaluate/general.py
    general_tokens: int = 32  # of an answer to one of them


class Trajectories(Section):
    """``oracle``: scripted trajectories; the rest configures rejection sampling from a cold-started model."""

    oracle: int
    cold_start: int
    cold_start_epochs: int
    cold_start_learning_rate: float  # may exceed SFT's: few records, and the model is not kept
    cold_start_batch_size: int
    rejection_tasks: int
    rejection_samples: int


class SFT(Section):
    backend: Literal["unsloth", "trl"]
    lora_rank: NonNegativeInt  # 0 trains all weights, as the paper's scripts do
    learning_rate: PositiveFloat
    epochs: PositiveInt
    batch_size: PositiveInt
    warmup_ratio: NonNegativeFloat
    adam_epsilon: PositiveFloat = 1e-8  # larger: weights with hardly any gradient (words that no record uses) stay where they are
    checks: NonNegativeInt = 0  # how often in a run validation loss and agent success are measured
    kl: NonNegativeFloat = 0.0  # a baseline of notebook 05: weight of the distance to the base model


class Trim(Section):
    """What TIES keeps of one part's change, and what it is multiplied by."""

    density: float = 1.0
    weight: float = 1.0


class Merge(Section):
    """The map of notebook 05, and how a merge is chosen from it."""

    methods: list[str]  # mergekit's; notebook 05 can try all of them
    weights: list[float]  # of the SFT model; the base gets the rest
    densities: list[float]  # share of a difference's entries that is kept
    parts: dict[str, dict[str, Trim]] = {}  # recipes: name -> text in a tensor's name -> trim; other tensors are kept whole
    scales: list[float] = [1.0]  # what all of a difference trimmed by parts is multiplied by
    runs: Literal[1, 2] = 1  # SFT models merged with the base; the second learns the same records in another order
    validation_tasks: int  # per number of hops, for each merge of the map
    finalists: int = 5  # so many of one run, and of two, are measured again, on `final_tasks`
    final_tasks: int
    margin: float = 0.03  # finalists may miss the share of success that they have to keep by so much: about a standard error
    lora_rank: int = 32  # the baselines beside the merges: an adapter that is scaled down,
    lora_learning_rate: float = 1e-3
    kl: list[float] = [1.0]  # a loss that holds the model near its base, by its weights,
    replay: list[float] = [0.1]  # and shares of records exchanged for the base's own answers


class Noise(Section):
    """Reward noise of the noisy arms, each source from 0 (off) to 1: see train/noise.py.

    Our assumption: the paper's taxonomy of noise is unpublished.
    """

    tool_outage: Share = 0.0
    judge_outage: Share = 0.0
    judge_false_positive: Share = 0.0
    judge_false_negative: Share = 0.0
    lucky_answer: Share = 0.0
    format_slip: Share = 0.0
    turn_limit: Share = 0.0
    context_limit: Share = 0.0


class RL(Section):
    loss: Literal["grpo", "gspo", "minirl", "cispo", "reinforce"]
    aggregation: Literal["token_mean", "sequence_sum", "sequence_mean"] = "token_mean"
    importance_weight_cap_ratio: PositiveFloat = 4.0  # kappa of the staleness mask: see train/losses.py
    strict_in_bound: bool = False
    out_of_date_decay: NonNegativeFloat = 0.0
    asynchronous: bool = False  # one step off: the next step's rollouts are made while this one trains
    steps: PositiveInt
    questions_per_step: PositiveInt
    group_size: PositiveInt  # rollouts per question, G
    rows_per_update: NonNegativeInt = 0  # a step with fewer rollouts to learn from plays more questions: see train/rollouts.py
    learning_rate: PositiveFloat
    warmup_steps: NonNegativeInt = 0
    adam_epsilon: PositiveFloat = 1e-8  # larger: weights with hardly any gradient stay where they are
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    hops: list[int]
    redundancy: int
    temperature: PositiveFloat
    eval_every: PositiveInt
    save_every: PositiveInt  # steps between checkpoints: at most so much work is lost to a kill
    validation_tasks: PositiveInt
    kl_rollouts: NonNegativeInt = 16  # of each step, to measure the distance to the start; 0: not at all, and no second model
    patience: PositiveInt = 5  # steps with the same sign of collapse (`train/rl_watch.py`) after which a run stops
    least_entropy: NonNegativeFloat = 0.001  # nats per token: below, a policy tries nothing any more


class Summarising(Section):
    """The page summariser: its prompt (a file in ``agent/prompts``), and how it is fine-tuned from the base model."""

    prompt: str
    max_new_tokens: int
    pairs: int
    epochs: int
    batch_size: int
    learning_rate: float


class Refine(Section):
    redundancies: list[int]
    tasks: int
    keep_passages: int
    summariser: Summarising


class PassAtK(Section):
    tasks: int
    samples: int
    temperature: float


class Profile(Section):
    name: str
    description: str
    is_result: bool  # false: every figure and table is marked "not a result"
    threads: int
    machine: Machine
    model: Model
    world: World
    limits: Limits
    context: Context = Context()
    evaluation: Evaluation
    trajectories: Trajectories
    sft: SFT
    merge: Merge
    noise: Noise
    rl: RL
    refine: Refine
    passk: PassAtK


@lru_cache
def repo_root() -> Path:
    """Folder of the checkout, found by its markers upwards from this file, or ``AGENTCPM_KIT_ROOT``."""
    start = Path(os.environ.get("AGENTCPM_KIT_ROOT", __file__)).resolve()
    for folder in [start, *start.parents]:
        if (folder / "profiles").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    raise KitError("the kit's repository was not found; install it with `make setup`, or set AGENTCPM_KIT_ROOT to it")


def profile_names() -> list[str]:
    return sorted(p.stem for p in (repo_root() / "profiles").glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Read and validate ``profiles/<name>.yaml``.

    Raises:
        KitError: unknown profile, unreadable YAML, unknown or missing key, value of a wrong type, a copy that kept its name.
    """
    if name not in profile_names():
        raise unknown("profile", name, profile_names())
    path = repo_root() / "profiles" / f"{name}.yaml"
    try:
        profile = Profile.model_validate(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise KitError(f"profiles/{name}.yaml is not YAML: {str(error).splitlines()[0]}") from error
    except ValidationError as error:
        raise _first_error(path.name, error) from error
    if profile.name != name:  # else its results would be taken for the other's
        raise KitError(f"profiles/{path.name}: name: it says {profile.name!r}; write {name!r}, as the file is called")
    return profile


def _first_error(file: str, error: ValidationError) -> KitError:
    # A renamed key is both missing and unknown; the unknown one says more.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    *parents, key = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        wrong = unknown(f"key in profiles/{file}", ".".join([*parents, key]), _keys(parents))
        return wrong
    return KitError(f"profiles/{file}: {'.'.join([*parents, key])}: {first['msg'].lower()}")


def _keys(parents: list[str]) -> list[str]:
    model = Profile
    for name in parents:
        if name in model.model_fields:  # else a key of `served`, which are the user's own
            kind = model.model_fields[name].annotation
            model = get_args(kind)[1] if get_origin(kind) is dict else kind
    return [".".join([*parents, key]) for key in model.model_fields]


def refuse_resets(profile: Profile) -> None:
    """RL trains one context of each episode, and all that was sampled must stand in it.

    Raises:
        KitError: the profile's context policy begins new contexts.
    """
    context = profile.context
    if context.history != "none" or not context.keep_thinking:
        raise KitError("RL trains one context for each episode, and `history` and `keep_thinking: false` begin new ones; run "
                       "stage 07 with `history: none` and `keep_thinking: true` under `context`")


def results_root() -> Path:
    """``results/`` of the checkout, or ``AGENTCPM_KIT_RESULTS`` (set by ``agentcpm-kit run --out``)."""
    return Path(os.environ.get("AGENTCPM_KIT_RESULTS", repo_root() / "results"))


def set_seed(seed: int, threads: int) -> None:
    """Seed python, numpy and torch, and fix the number of threads: sums depend on it."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
