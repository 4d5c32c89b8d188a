"""Merging in parameter space (claim 2 of the paper), by mergekit's own methods.

The paper publishes neither its method nor its weights. Which models are merged (the SFT model and its base), and the
grid of methods, weights and densities, are our assumption.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..errors import KitError, one_line, unknown
from ..stage import check_writable
from .merge_inputs import DTYPES, check_finite, check_inputs, mean_change
from .merge_methods import BY_SUM, Value, check_models, check_parameters, check_weights, parameters_of, rehearse

RECIPE = "mergekit.yaml"


def merge_config(method: str, models: Sequence[Path], base: Path | None = None, weights: Sequence[Value] = (),
                 dtype: str = "float32", **parameters: Value | bool) -> dict:
    """mergekit's configuration for merging `models` by `method`.

    `weights` are one for each of `models`. *linear*, *nuslerp* and *multislerp* divide them by their sum; task-vector methods
    take them as they stand (mergekit's TIES and DELLA would scale a lone difference back to 1: `normalize` is off unless
    given). `parameters` are the method's own (`density`, `t`, `epsilon`, ...), the same for every model.

    Raises:
        KitError: unknown method or parameter, a base missing or not wanted, too few or many models, numbers out of their range,
            weights that do not fit.
    """
    check_models(method, models, base)
    check_parameters(method, parameters)
    if dtype not in DTYPES.values():
        raise unknown("dtype", dtype, DTYPES.values())
    check_weights(method, models, weights, parameters.get("normalize", parameters.get("normalize_weights", True)))
    entries = [{"model": str(model)} for model in models]
    for entry, weight in zip(entries, weights, strict=False):
        entry["parameters"] = {"weight": weight}
    if "normalize" in parameters_of(method) and method != "linear":
        parameters = {"normalize": False, **parameters}
    rehearse(method, len(models), base, weights, parameters)
    config = {"merge_method": method, "dtype": dtype, "models": entries}
    config |= {"base_model": str(base)} if base else {}
    return config | ({"parameters": parameters} if parameters else {})


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
    if method in BY_SUM:
        return merge_config(method, [base, *tuned], weights=[1 - share, *each], dtype=dtype)
    if method == "karcher":
        return merge_config(method, [base, *tuned], dtype=dtype)
    knob = {"t": share * (mean_change(base, tuned[0]) if method == "nearswap" else 1.0)} if "t" in known else {}
    if "density" in known:
        knob["density"] = density
    return merge_config(method, tuned, base, each if "weight" in known else (), dtype, **knob)


def merge(config: dict, out: Path, seed: int = 0, progress: bool = False) -> Path:
    """Run mergekit on `config`; writes the merged model, the YAML it ran (``mergekit.yaml``) and checksums.

    The folder appears when it is complete. `seed` matters to the random methods (DARE, DELLA) alone;
    ``mergekit-yaml mergekit.yaml OUT --random-seed <seed>`` gives the same weights.

    Raises:
        KitError: `out` cannot be written, is an input or holds something else than a merge, an input cannot be merged
            (`check_inputs`), mergekit refuses, or the merge would hold numbers that are not finite.
    """
    inputs = [Path(entry["model"]) for entry in config["models"]] + [Path(m) for m in [config.get("base_model")] if m]
    out = out.resolve()
    try:
        _refuse_to_overwrite(out, inputs)
        check_inputs(inputs)
        check_writable(out.parent)
        with tempfile.TemporaryDirectory(prefix=".merge-", dir=out.parent) as work:
            return _finish(_run(config, Path(work) / "merge", seed, progress), out, config, seed)
    except OSError as error:
        raise KitError(f"cannot merge: {error.filename or out}: {error.strerror or error}") from error


def _run(config: dict, folder: Path, seed: int, progress: bool) -> Path:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from safetensors import SafetensorError

    try:
        run_merge(MergeConfiguration.model_validate(config), str(folder),
                  MergeOptions(copy_tokenizer=True, random_seed=seed, quiet=not progress, write_model_card=False))
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise KitError(f"mergekit refused the merge: {one_line(error)}") from error
    check_finite(folder, f"cannot merge in {config['dtype']}: in the result")
    return folder


def _refuse_to_overwrite(out: Path, inputs: Sequence[Path]) -> None:
    """Only a folder that `merge` made, and that nobody put anything into since, is replaced."""
    from ..artefacts import CHECKSUMS

    for model in inputs:
        if model.resolve().is_relative_to(out) or out.is_relative_to(model.resolve()):
            raise KitError(f"{out} is, or holds, or lies in the model {model} that is to be merged; choose another folder")
    if not out.exists() or out.is_dir() and not any(out.iterdir()):
        return
    listed = (out / CHECKSUMS).read_text() if (out / CHECKSUMS).is_file() else ""
    names = {line.partition("  ")[2] for line in listed.splitlines()} | {CHECKSUMS}
    if out.is_file() or RECIPE not in names or {path.name for path in out.iterdir()} != names:
        raise KitError(f"{out} holds files that `merge` did not make; choose another folder")


def _finish(made: Path, out: Path, config: dict, seed: int) -> Path:
    from ..artefacts import write_checksums

    head = f"# mergekit-yaml {RECIPE} OUT --random-seed {seed}\n"
    (made / RECIPE).write_text(head + yaml.safe_dump(config, sort_keys=False))
    for weights in made.glob("*.safetensors"):  # which mergekit leaves readable to their owner alone
        weights.chmod((made / RECIPE).stat().st_mode)
    write_checksums(made)
    shutil.rmtree(out, ignore_errors=True)
    return made.rename(out)
