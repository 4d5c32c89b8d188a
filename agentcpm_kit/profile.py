"""Profiles: one YAML file holds every number of a run; a profile changes numbers, never the algorithm.

``load_profile("micro")`` reads ``profiles/micro.yaml``. Unknown keys fail with the nearest known key.
Paths are found from the repository root (the folder that holds ``profiles/`` and ``pyproject.toml``),
never from the working directory: papermill starts where it is called, Jupyter where the notebook lies.
"""

import os
import random
from functools import lru_cache
from pathlib import Path
from typing import get_args, get_origin

import yaml
from pydantic import ValidationError

from .errors import KitError, unknown
from .sections import (
    RL,
    SFT,
    Context,
    Evaluation,
    Limits,
    Machine,
    Merge,
    Model,
    Noise,
    PassAtK,
    Refine,
    Section,
    Trajectories,
    World,
)


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
    families: PassAtK


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
