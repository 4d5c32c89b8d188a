"""mergekit's methods: what each takes, and which numbers make sense to it. mergekit itself is asked wherever it can tell."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import KitError, one_line, unknown

NOT_A_MERGE = ("passthrough",)  # copies layers; joins no weights
RANDOM_METHODS = ("dare_linear", "dare_ties", "della", "della_linear")
BY_SUM = ("linear", "nuslerp", "multislerp")  # divide the weights by their sum
UNUSED = {"task_arithmetic": ("density",)}  # mergekit takes it there, and trims nothing
ABOVE_0, FROM_0 = ("density", "select_topk"), ("t", "epsilon", "gamma")  # shares: at most 1, all of them

Value = float | list[dict]  # a number, or mergekit's list of filters: [{"filter": "embed_tokens", "value": 0.2}, {"value": 1.0}]


def _specs() -> list:
    from mergekit.merge_methods import registry

    return [m.spec for m in registry.registered_methods() if m.spec.name not in NOT_A_MERGE]


def methods() -> list[str]:
    """Names of mergekit's methods that join models of one shape."""
    return [spec.name for spec in _specs()]


def _spec(method: str):
    found = {spec.name: spec for spec in _specs()}
    if method not in found:
        raise unknown("merge method", method, found)
    return found[method]


def _parameters(method: str) -> dict:
    """Name -> mergekit's description of a parameter."""
    return {p.name: p for p in _spec(method).parameters if p.name not in UNUSED.get(method, ())}


def parameters_of(method: str) -> list[str]:
    """Names of the parameters that mergekit's `method` takes and heeds."""
    return list(_parameters(method))


def described() -> list[tuple[str, str, str, str]]:
    """Of every method: name, whether a base is needed, how many other models, its parameters."""
    rows = []
    for spec in sorted(_specs(), key=lambda spec: spec.name):
        contract, base = spec.contract, spec.contract.base.value
        of_base = 1 if base == "required" else 0
        low = contract.min_non_base or max(1, (contract.min_inputs or 1) - of_base)
        high = contract.max_non_base or (contract.max_inputs and contract.max_inputs - of_base)
        count = f"{low}" if low == high else f"{low} to {high}" if high else f"{low} or more"
        rows.append((spec.name, {"ignored": "none"}.get(base, base), count, ", ".join(parameters_of(spec.name))))
    return rows


def check_models(method: str, models: Sequence[Path], base: Path | None) -> None:
    """
    Raises:
        KitError: unknown method, a base missing or not wanted, too few or many models, one of them named twice.
    """
    contract = _spec(method).contract
    everyone = [str(Path(model).resolve()) for model in ([base] if base else []) + [*models]]
    if base and contract.base.value == "ignored":
        raise KitError(f"the merge method {method} knows no base model; name it among the models, or leave it out")
    if not base and contract.base.value == "required":
        raise KitError(f"the merge method {method} needs a base model (--base on the command line)")
    if twice := [model for model in everyone if everyone.count(model) > 1]:
        where = ", as the base and among the models" if base and twice[0] == everyone[0] else ""
        raise KitError(f"{twice[0]} is named twice{where}; name it once")
    try:
        contract.validate_ids(everyone, everyone[0] if base else None)
    except ValueError as error:
        said = str(error) + (" (the base is one of them)" if base else "")
        raise KitError(f"the merge method {method} cannot join these models: {said[0].lower()}{said[1:]}") from error


def check_parameters(method: str, parameters: dict[str, Value | bool]) -> None:
    """
    Raises:
        KitError: a parameter that the method does not take, or whose value is of another kind or out of its range.
    """
    known = _parameters(method)
    for name, value in parameters.items():
        if name not in known:
            raise unknown(f"parameter of the merge method {method}", name, known)
        for number in values(value):
            _check_value(name, number, known[name].value_type)


def _check_value(name: str, value: float | bool, kind: type) -> None:
    if isinstance(value, bool) != (kind is bool):
        raise KitError(f"{name} is {'true or false' if kind is bool else 'a number'}, not {value}")
    if kind is int and (value != int(value) or value < 1):
        raise KitError(f"{name} is a whole number above 0, not {value}")
    if name in ABOVE_0 and not 0 < value <= 1:
        raise KitError(f"{name} is a share above 0 and at most 1, not {value}")
    if name in FROM_0 and not 0 <= value <= 1:
        raise KitError(f"{name} is a share from 0 to 1, not {value}")


def check_weights(method: str, models: Sequence[Path], weights: Sequence[Value], by_sum: bool = True) -> None:
    """
    Args:
        by_sum: whether the method divides by the sum of the weights where it can.

    Raises:
        KitError: not one weight for each model, weights where the method takes none, or weights that leave nothing.
    """
    takes_weights = "weight" in _parameters(method)
    if weights and not takes_weights:
        raise KitError(f"the merge method {method} takes no weights")
    if takes_weights and len(weights) != len(models):
        raise KitError(f"the merge method {method} takes one weight for each model: {len(models)} are wanted, "
                       f"{len(weights)} given (--weights on the command line)")
    if not weights or any(isinstance(weight, list) for weight in weights):  # weights by part may leave a part out
        return
    if not any(weights):
        raise KitError("the weights are all 0: nothing would be merged")
    if method in BY_SUM and by_sum and abs(sum(weights)) < 1e-6:
        raise KitError(f"the weights add up to 0, and {method} divides them by their sum")


def rehearse(method: str, count: int, base: Path | None, weights: Sequence[Value], parameters: dict) -> None:
    """Merge small tensors by the same numbers: what mergekit refuses, it refuses now and not in the midst of the models."""
    import torch
    from mergekit.merge_methods.api import merge_tensors

    numbers = {name: value for name, value in parameters.items() if not isinstance(value, list)}
    if weights:
        numbers["weight"] = [1.0 if isinstance(weight, list) else weight for weight in weights]
    tensors = torch.eye(4).repeat(count + bool(base), 1, 1) * torch.arange(1.0, count + bool(base) + 1)[:, None, None]
    try:
        merged = merge_tensors(list(tensors), method, parameters=numbers, base_index=0 if base else None)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise KitError(f"mergekit refuses this {method}: {one_line(error)}") from error
    if not merged.isfinite().all():
        raise KitError(f"this {method} gives no finite weights; its numbers are too large")


def values(value: Value | bool) -> list[float]:
    """The numbers in a parameter: its own, or those of its filters."""
    return [entry["value"] for entry in value] if isinstance(value, list) else [value]
