"""Merging in parameter space (claim 2 of the paper), by mergekit's own methods.

The paper publishes neither its method nor its weights. Which models are merged (the SFT model and its base), and the
grid of methods, weights and densities, are our assumption.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..errors import KitError, unknown
from .merge_inputs import DTYPES, check_inputs, dtype_of, mean_change, other_templates

NOT_A_MERGE = ("passthrough",)  # copies layers; joins no weights
RANDOM_METHODS = ("dare_linear", "dare_ties", "della", "della_linear")
RECIPE = "mergekit.yaml"

Value = float | list[dict]  # a number, or mergekit's list of filters: [{"filter": "embed_tokens", "value": 0.2}, {"value": 1.0}]


def methods() -> list[str]:
    """Names of mergekit's methods that join models of one shape."""
    return [spec.name for spec in _specs()]


def _specs() -> list:
    from mergekit.merge_methods import registry

    return [m.spec for m in registry.registered_methods() if m.spec.name not in NOT_A_MERGE]


def _spec(method: str):
    found = {spec.name: spec for spec in _specs()}
    if method not in found:
        raise unknown("merge method", method, found)
    return found[method]


def parameters_of(method: str) -> list[str]:
    """Names of the parameters that mergekit's `method` takes."""
    return [p.name for p in _spec(method).parameters]


def merge_config(method: str, models: Sequence[Path], base: Path | None = None, weights: Sequence[Value] = (),
                 dtype: str = "float32", **parameters: Value | bool) -> dict:
    """mergekit's configuration for merging `models` by `method`.

    `weights` are one for each of `models`. *linear*, *nuslerp* and *multislerp* divide them by their sum; task-vector methods
    take them as they stand (mergekit's TIES and DELLA would scale a lone difference back to 1: `normalize` is off unless
    given). `parameters` are the method's own (`density`, `t`, `epsilon`, ...), the same for every model.

    Raises:
        KitError: unknown method or parameter, a base missing or not wanted, too few or many models, weights that do not fit.
    """
    spec = _spec(method)
    known = parameters_of(method)
    for name in parameters:
        if name not in known:
            raise unknown(f"parameter of the merge method {method}", name, known)
    if dtype not in DTYPES.values():
        raise unknown("dtype", dtype, DTYPES.values())
    _check_models(spec, models, base)
    _check_weights(spec, models, weights)
    entries = [{"model": str(model)} for model in models]
    for entry, weight in zip(entries, weights, strict=False):
        entry["parameters"] = {"weight": weight}
    if "normalize" in known and method != "linear":
        parameters = {"normalize": False, **parameters}
    _rehearse(method, len(models), base, weights, parameters)
    config = {"merge_method": method, "dtype": dtype, "models": entries}
    config |= {"base_model": str(base)} if base else {}
    return config | ({"parameters": parameters} if parameters else {})


def _check_models(spec, models: Sequence[Path], base: Path | None) -> None:
    if base and spec.contract.base.value == "ignored":
        raise KitError(f"the merge method {spec.name} knows no base model; name it among the models, or leave it out")
    everyone = [str(Path(model).resolve()) for model in ([base] if base else []) + [*models]]
    try:
        spec.contract.validate_ids(everyone, everyone[0] if base else None)
    except ValueError as error:
        said = str(error)
        raise KitError(f"the merge method {spec.name} cannot join these models: {said[0].lower()}{said[1:]}") from error


def _check_weights(spec, models: Sequence[Path], weights: Sequence[Value]) -> None:
    parameter = next((p for p in spec.parameters if p.name == "weight"), None)
    if weights and parameter is None:
        raise KitError(f"the merge method {spec.name} takes no weights")
    if parameter is not None and len(weights) != len(models):
        raise KitError(f"the merge method {spec.name} takes one weight for each model: {len(models)} models, "
                       f"{len(weights)} weights")


def _rehearse(method: str, count: int, base: Path | None, weights: Sequence[Value], parameters: dict) -> None:
    """Merge small tensors by the same numbers: what mergekit refuses, it refuses now and not in the midst of the models."""
    import torch
    from mergekit.merge_methods.api import merge_tensors

    numbers = {name: value for name, value in parameters.items() if not isinstance(value, list)}
    for density in _values(parameters.get("density", 1.0)):
        if not 0 < density <= 1:
            raise KitError(f"density lies between 0 and 1, not at {density}")
    if weights:
        numbers["weight"] = [1.0 if isinstance(weight, list) else weight for weight in weights]
    tensors = torch.eye(4).repeat(count + bool(base), 1, 1) * torch.arange(1.0, count + bool(base) + 1)[:, None, None]
    try:
        merged = merge_tensors(list(tensors), method, parameters=numbers, base_index=0 if base else None)
    except (ValueError, TypeError) as error:
        raise KitError(f"mergekit refuses this {method}: {str(error).splitlines()[0]}") from error
    if not merged.isfinite().all():
        raise KitError(f"this {method} gives no finite weights; do its weights add up to 0?")


def _values(value: Value) -> list[float]:
    return [entry["value"] for entry in value] if isinstance(value, list) else [value]


def base_and_tuned(method: str, base: Path, tuned: Sequence[Path], share: float, density: Value = 1.0,
                   dtype: str = "float32") -> dict:
    """The configuration that gives `tuned` (one or two models) the share `share` in [0, 1], and the base the rest.

    What a share is depends on the method. *linear*, *nuslerp*, *multislerp*: a weight among all models. *slerp*: how far along
    the arc. *nearswap*: a change is taken whole up to that share of the mean change. Task-vector methods: what the differences
    to the base are multiplied by, two models half each; `density` is the part of their entries that is kept. *karcher*,
    *arcee_fusion*, *ram*, *ramplus_tl*, *sce* and *model_stock* have no such knob and take none.

    Raises:
        KitError: unknown method, or a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise KitError(f"a merge's share lies between 0 and 1, not at {share}")
    known, each = parameters_of(method), [share / len(tuned)] * len(tuned)
    if method in ("linear", "nuslerp", "multislerp"):
        return merge_config(method, [base, *tuned], weights=[1 - share, *each], dtype=dtype)
    if method == "karcher":
        return merge_config(method, [base, *tuned], dtype=dtype)
    knob = {"t": share * (mean_change(base, tuned[0]) if method == "nearswap" else 1.0)} if "t" in known else {}
    if "density" in known and method != "task_arithmetic":
        knob["density"] = density
    return merge_config(method, tuned, base, each if "weight" in known else (), dtype, **knob)


def merge(config: dict, out: Path, seed: int = 0, progress: bool = False) -> Path:
    """Run mergekit on `config`; writes the merged model, the YAML it ran (``mergekit.yaml``) and checksums.

    The folder appears when it is complete. `seed` matters to the random methods (DARE, DELLA) alone;
    ``mergekit-yaml mergekit.yaml OUT --random-seed <seed>`` gives the same weights.

    Raises:
        KitError: `out` is an input or holds something else than a merge, an input cannot be merged (`check_inputs`), or mergekit
            refuses.
    """
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    inputs = [Path(entry["model"]) for entry in config["models"]] + [Path(m) for m in [config.get("base_model")] if m]
    out = out.resolve()
    _refuse_to_overwrite(out, inputs)
    check_inputs(inputs)
    half_done = out.with_name(f".{out.name}.part")
    shutil.rmtree(half_done, ignore_errors=True)
    try:
        run_merge(MergeConfiguration.model_validate(config), str(half_done),
                  MergeOptions(copy_tokenizer=True, random_seed=seed, quiet=not progress, write_model_card=False))
    except (ValueError, KeyError, RuntimeError) as error:
        shutil.rmtree(half_done, ignore_errors=True)
        raise KitError(f"mergekit refused the merge: {str(error).splitlines()[0]}") from error
    return _finish(half_done, out, config, seed)


def _refuse_to_overwrite(out: Path, inputs: Sequence[Path]) -> None:
    """Only a folder that `merge` made, and that nobody put anything into since, is replaced."""
    from ..artefacts import CHECKSUMS

    for model in inputs:
        if model.resolve().is_relative_to(out) or out.is_relative_to(model.resolve()):
            raise KitError(f"{out} is, or holds, or lies in the model {model} that is to be merged; choose another folder")
    if not out.exists() or out.is_dir() and not any(out.iterdir()):
        return
    listed = (out / CHECKSUMS).read_text() if (out / CHECKSUMS).is_file() else ""
    names = {line.split("  ", 1)[1] for line in listed.splitlines()} | {CHECKSUMS}
    if out.is_file() or RECIPE not in names or {path.name for path in out.iterdir()} != names:
        raise KitError(f"{out} is there already and is no merge that can be made again; choose another folder")


def merge_command(method: str, models: Sequence[Path], base: Path | None, out: Path, weights: str = "",
                  density: float | None = None, settings: Sequence[str] = (), dtype: str = "", seed: int = 0) -> None:
    """``agentcpm-kit merge``: weights and settings as they were typed.

    Raises:
        KitError: anything that cannot be read, and whatever `merge_config` and `merge` refuse.
    """
    from ..agent.engines.loading import quiet_libraries

    quiet_libraries()
    parameters = dict(map(_setting, settings)) | ({} if density is None else {"density": density})
    inputs = [Path(model).resolve() for model in models]  # so that the YAML can be run from anywhere
    config = merge_config(method, inputs, base and base.resolve(), [_number("weight", w) for w in weights.split(",") if w],
                          dtype or dtype_of(inputs[0]), **parameters)
    if method in RANDOM_METHODS and density is None:
        print(f"note: without --density, {method} keeps every entry and drops nothing")
    merge(config, out, seed, progress=True)
    donor, *others = [base.resolve(), *inputs] if base else inputs  # whose tokenizer mergekit copies
    for model in other_templates([donor, *others]):
        print(f"note: {model} has another chat template than {donor}, whose template the merge has")
    print(f"merged: {out} (recipe in {out / RECIPE})")


def _setting(text: str) -> tuple[str, Value | bool]:
    name, equals, value = text.partition("=")
    if not equals:
        raise KitError(f"--set takes name=value, not {text!r}")
    return name, value == "true" if value in ("true", "false") else _number(name, value)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise KitError(f"{name} is a number, not {text!r}")
    return value


def _finish(half_done: Path, out: Path, config: dict, seed: int) -> Path:
    from ..artefacts import write_checksums

    head = f"# mergekit-yaml {RECIPE} OUT --random-seed {seed}\n"
    (half_done / RECIPE).write_text(head + yaml.safe_dump(config, sort_keys=False))
    write_checksums(half_done)
    shutil.rmtree(out, ignore_errors=True)
    half_done.rename(out)
    return out
