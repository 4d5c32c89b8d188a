"""Merging in parameter space (claim 2 of the paper), by mergekit's own methods.

The paper publishes neither its method nor its weights. Merging the SFT model with its base, and the grid of weights,
are our assumption.
"""

from pathlib import Path

import yaml

from ..errors import KitError, unknown

TASK_VECTOR_METHODS = ("task_arithmetic", "ties", "dare_ties", "dare_linear", "della", "della_linear")
METHODS = ("linear", "slerp", *TASK_VECTOR_METHODS)


def merge_config(method: str, base: Path, tuned: Path, weight: float, density: float = 0.5) -> dict:
    """mergekit's configuration for giving `tuned` the share `weight` in [0, 1] and `base` the rest.

    Task-vector methods scale the difference to the base by `weight`; `density` is the share of it that they keep.

    Raises:
        KitError: unknown method, or a weight outside [0, 1].
    """
    if method not in METHODS:
        raise unknown("merge method", method, METHODS)
    if not 0 <= weight <= 1:
        raise KitError(f"a merge weight lies between 0 and 1, not at {weight}")
    models = [{"model": str(base)}, {"model": str(tuned)}]
    config = {"merge_method": method, "dtype": "float32", "models": models}
    if method == "linear":
        for model, share in zip(models, (1 - weight, weight), strict=True):
            model["parameters"] = {"weight": share}
    elif method == "slerp":
        config |= {"base_model": str(base), "parameters": {"t": weight}}
    else:
        parameters = {"weight": weight} | ({} if method == "task_arithmetic" else {"density": density})
        config |= {"base_model": str(base), "models": [{"model": str(tuned), "parameters": parameters}]}
        if method != "task_arithmetic":
            # Weights are meant as they stand; mergekit would scale a lone task vector back to 1.
            config["parameters"] = {"normalize": False}
    return config


def merge(config: dict, out: Path, seed: int = 0) -> Path:
    """Run mergekit on `config`; writes the merged model, the YAML it ran (``mergekit.yaml``) and checksums.

    `seed` matters to the random methods (DARE, DELLA) alone.

    Raises:
        KitError: mergekit refuses the configuration, or a model is missing.
    """
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    from ..artefacts import write_checksums

    for model in config["models"]:
        if not (Path(model["model"]) / "config.json").is_file():
            raise KitError(f"cannot merge: no model in {model['model']}")
    try:
        parsed = MergeConfiguration.model_validate(config)
        run_merge(parsed, str(out), MergeOptions(copy_tokenizer=True, random_seed=seed, quiet=True, write_model_card=False))
    except (ValueError, KeyError) as error:
        raise KitError(f"mergekit refused the merge: {str(error).splitlines()[0]}") from error
    (out / "mergekit.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_checksums(out)
    return out
