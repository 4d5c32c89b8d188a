"""What can be merged: complete safetensors of one shape, one tokenizer, finite weights. Checked before anything is merged."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import KitError

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
NO_ARCHITECTURE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "pad_token_id", "eos_token_id",
                   "bos_token_id", "max_position_embeddings")
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"


def check_inputs(models: Sequence[Path]) -> None:
    """Refuse what mergekit would stop at half way, or merge without a word.

    Raises:
        KitError: a folder that is no model, a missing or broken shard, pickled weights, an adapter, another architecture,
            shape or tokenizer than the first model's, a NaN or an infinity; the model and what is wrong in it are named.
    """
    first = models[0]
    for model in models:
        _check_folder(model)
    shapes = {model: _shapes(model) for model in models}
    for model in models[1:]:
        _same_architecture(first, model)
        _same_shapes(first, model, shapes[first], shapes[model])
        _same_tokenizer(first, model)
    for model in models:
        check_finite(model, f"cannot merge {model}:")


def require_model(model: Path) -> None:
    """
    Raises:
        KitError: no folder, no model in it, or an adapter.
    """
    if not model.is_dir():
        raise KitError(f"cannot merge: there is no folder {model}")
    if (model / "adapter_config.json").is_file() and not (model / "config.json").is_file():
        raise KitError(f"cannot merge {model}: it is an adapter; merge it into its base model first")
    if not (model / "config.json").is_file():
        raise KitError(f"cannot merge: no model in {model}")


def _check_folder(model: Path) -> None:
    from ..artefacts import CHECKSUMS, verify_checkpoint

    require_model(model)
    for shard in _shards(model):
        if not shard.is_file():
            raise KitError(f"cannot merge {model}: the shard {shard.name} is missing")
    if (model / CHECKSUMS).is_file():
        verify_checkpoint(model)


def _shards(model: Path) -> list[Path]:
    if (model / INDEX).is_file():
        names = _json(model / INDEX).get("weight_map", {}).values()
        return [model / name for name in sorted(set(names))]
    if not (model / WHOLE).is_file() and any(model.glob("*.bin")):
        raise KitError(f"cannot merge {model}: its weights are pickled, which can run any code; save them as safetensors")
    return [model / WHOLE]


def _open(shard: Path):
    from safetensors import SafetensorError, safe_open

    try:
        shard.open("rb").close()  # safetensors takes a file that may not be read for one that is not there
        return safe_open(shard, "pt")
    except SafetensorError as error:
        raise KitError(f"cannot merge: {shard} is broken ({error})") from error


def dtype_of(model: Path) -> str:
    """In which type a model's weights are stored.

    Raises:
        KitError: no model there, a missing or broken shard, or a type that is none of float32, bfloat16 and float16.
    """
    _check_folder(model)
    with _open(_shards(model)[0]) as file:
        return _type(model, file.get_slice(next(iter(file.keys()))))


def _type(model: Path, tensor) -> str:
    stored = tensor.get_dtype()
    if stored not in DTYPES:
        raise KitError(f"cannot merge {model}: its weights are stored as {stored}; save them as {' or '.join(DTYPES.values())}")
    return DTYPES[stored]


def _shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, read from the headers alone; their types and places are checked on the way."""
    found, places = {}, {}
    for shard in _shards(model):
        with _open(shard) as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                _type(model, tensor)
                found[name], places[name] = tuple(tensor.get_shape()), shard.name
    if (model / INDEX).is_file() and (odd := places.items() ^ _json(model / INDEX)["weight_map"].items()):
        raise KitError(f"cannot merge {model}: {min(odd)[0]} is not in the shard that {INDEX} names")
    return found


def _same_architecture(first: Path, other: Path) -> None:
    """Two models of equal shapes can still compute differently: heads, rope, norms."""
    one, two = _config(first), _config(other)
    for key in sorted(one.keys() | two.keys(), key=lambda key: key != "architectures"):
        if key not in NO_ARCHITECTURE and not key.startswith("unsloth") and one.get(key) != two.get(key):
            raise KitError(f"cannot merge {other}: in its config.json {key} is {two.get(key)}, in that of {first} {one.get(key)}")


def _config(model: Path) -> dict:
    return _json(model / "config.json")


def _json(file: Path) -> dict:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise KitError(f"cannot merge {file.parent}: {file.name} is not JSON") from error
    if not isinstance(found, dict):
        raise KitError(f"cannot merge {file.parent}: {file.name} holds no JSON object")
    return found


def _same_shapes(first: Path, other: Path, one: dict, two: dict) -> None:
    for name in one.keys() ^ two.keys():
        has, lacks = (first, other) if name in one else (other, first)
        raise KitError(f"cannot merge: {has} has a tensor {name}, {lacks} has none")
    for name, shape in one.items():
        if two[name] != shape:
            raise KitError(f"cannot merge {other}: its {name} has the shape {list(two[name])}, that of {first} {list(shape)}")


def _same_tokenizer(first: Path, other: Path) -> None:
    """Row i of the embeddings must mean the same token in both."""
    from ..agent.engines.loading import has_tokenizer, quiet_libraries

    quiet_libraries()
    from transformers import AutoTokenizer

    def vocabulary(model: Path) -> dict[str, int]:
        if not has_tokenizer(model):
            raise KitError(f"cannot merge {model}: it has no tokenizer")
        try:
            return AutoTokenizer.from_pretrained(model, local_files_only=True).get_vocab()
        except (OSError, ValueError) as error:
            raise KitError(f"cannot merge {model}: its tokenizer cannot be read") from error

    one, two = vocabulary(first), vocabulary(other)
    if one != two:
        token = min(token for token, _ in one.items() ^ two.items())
        raise KitError(f"cannot merge {other}: its tokenizer differs from that of {first}, in the token {token!r} for one")
    rules = [_json(model / "tokenizer.json") if (model / "tokenizer.json").is_file() else {} for model in (first, other)]
    for part in ("model", "normalizer", "pre_tokenizer"):
        if rules[0].get(part) != rules[1].get(part):
            raise KitError(f"cannot merge {other}: its tokenizer cuts text by other rules than that of {first} ({part})")


def other_templates(models: Sequence[Path]) -> list[Path]:
    """Models whose chat template is not the first one's. No reason to refuse: a thinking and an instruct model differ so."""
    from transformers import AutoTokenizer

    templates = [AutoTokenizer.from_pretrained(model, local_files_only=True).chat_template for model in models]
    return [model for model, template in zip(models, templates, strict=True) if template != templates[0]]


def check_finite(model: Path, refusal: str) -> None:
    """
    Raises:
        KitError: `refusal`, and the first tensor of `model` with a NaN or an infinity.
    """
    for shard in _shards(model):
        with _open(shard) as file:
            for name in file.keys():  # noqa: SIM118
                if not file.get_tensor(name).isfinite().all():
                    raise KitError(f"{refusal} {name} holds a number that is NaN or infinite")


def mean_change(base: Path, tuned: Path) -> float:
    """Mean absolute difference between two models' weights, of all their tensors; read one tensor at a time.

    Raises:
        KitError: as `check_inputs`.
    """
    check_inputs([base, tuned])
    before = {name: shard for shard in _shards(base) for name in _names_in(shard)}
    total, count = 0.0, 0
    for shard in _shards(tuned):
        with _open(shard) as file:
            for name in file.keys():  # noqa: SIM118
                with _open(before[name]) as other:
                    change = (file.get_tensor(name).float() - other.get_tensor(name).float()).abs()
                total, count = total + change.sum().item(), count + change.numel()
    return total / count


def _names_in(shard: Path) -> list[str]:
    with _open(shard) as file:
        return list(file.keys())
