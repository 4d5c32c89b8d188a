"""The sections of a profile: every number of a run has its name, its range and its meaning here.

Frozen, and unknown keys are refused; ``profile.py`` reads them from YAML.
"""

from typing import Annotated, Literal, Self

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
    ValidationInfo,
    field_validator,
)

from .errors import KitError


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
    rows_at_once: PositiveInt = 16  # of a pass in training, forward and back: bounds memory, changes nothing else
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


class Adapter(Section):
    """LoRA, in float32 whatever the model's type. Below the layers that it changes, no gradient is computed or stored."""

    lora_rank: NonNegativeInt = 0  # 0 trains all weights, as the paper's scripts do
    lora_layers: NonNegativeInt = 0  # so many of the last layers; 0: all

    @field_validator("lora_layers")
    @classmethod
    def _of_an_adapter(cls, layers: int, others: ValidationInfo) -> int:
        if layers and not others.data.get("lora_rank"):
            raise ValueError("it chooses layers of an adapter, and lora_rank is 0: all weights would be trained")
        return layers


class SFT(Adapter):
    backend: Literal["unsloth", "trl"]
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


class RL(Adapter):
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
    """Runs of each task: of one set in notebook 09 (`passk`), of every family of the atlas in notebook 10 (`families`)."""

    tasks: int
    samples: int
    temperature: float
