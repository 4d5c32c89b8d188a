"""``agentcpm-kit merge``: weights and settings as they were typed."""

import math
from collections.abc import Sequence
from pathlib import Path

from ..errors import KitError
from ..pipeline import sigterm_interrupts
from .merge import RECIPE, merge, merge_config
from .merge_inputs import dtype_of, other_templates, require_model
from .merge_methods import RANDOM_METHODS, Value, described


def merge_command(method: str, models: Sequence[Path], base: Path | None, out: Path, weights: str = "",
                  density: float | None = None, settings: Sequence[str] = (), dtype: str = "", seed: int = 0) -> None:
    """
    Raises:
        KitError: anything that cannot be read, and whatever `merge_config` and `merge` refuse.
    """
    from ..agent.engines.loading import quiet_libraries

    quiet_libraries()
    parameters = _settings(settings, density)
    inputs = [Path(model).resolve() for model in models]  # so that the YAML can be run from anywhere
    base = base and base.resolve()
    everyone = [base, *inputs] if base else inputs
    for model in everyone:
        require_model(model)
    config = merge_config(method, inputs, base, [_number("weight", w) for w in weights.split(",")] if weights
                          else (), dtype or dtype_of(inputs[0]), **parameters)
    if method in RANDOM_METHODS and "density" not in parameters:
        print(f"note: without --density, {method} keeps every entry and drops nothing")
    before = out.is_dir() and any(out.iterdir())
    with sigterm_interrupts():
        merge(config, out, seed, progress=True)
    for model in other_templates(everyone):  # mergekit copies the tokenizer of the first
        print(f"note: {model} has another chat template than {everyone[0]}, whose template the merge has")
    print(f"merged: {out} (recipe in {out / RECIPE}){', in place of the merge that was there' if before else ''}")


def _settings(settings: Sequence[str], density: float | None) -> dict[str, Value | bool]:
    found = {} if density is None else {"density": density}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise KitError(f"--set takes name=value, not {text!r}")
        if name == "weight":
            raise KitError("weights are given by --weights")
        if name in found:
            raise KitError(f"{name} is given twice")
        is_flag = value.lower() in ("true", "false")
        found[name] = value.lower() == "true" if is_flag else _number(name, value, "a number, or true or false")
    return found


def _number(name: str, text: str, kind: str = "a number") -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise KitError(f"{name} is {kind}, not {text!r}")
    return value


def print_methods() -> None:
    """A table of what mergekit can do: ``agentcpm-kit merge --list``."""
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "base", "models", "parameters (weight: --weights, density: --density; the others: --set)")
    for row in described():
        table.add_row(*row)
    Console().print(table)
