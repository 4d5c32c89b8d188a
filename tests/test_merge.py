"""mergekit does the arithmetic; here it is checked against arithmetic done by hand, and against mergekit's own command."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from agentcpm_kit.artefacts import write_checksums
from agentcpm_kit.cli import app
from agentcpm_kit.errors import KitError
from agentcpm_kit.profile import repo_root
from agentcpm_kit.train.merge import base_and_tuned, merge, merge_config
from agentcpm_kit.train.merge_methods import described, methods

PAIRWISE = [m for m in methods() if m != "model_stock"]  # which needs three models
RANDOM = ["dare_linear", "dare_ties", "della", "della_linear"]


@pytest.fixture
def models(tiny_model, tokenizer, tmp_path):
    """A base and two changed copies of it."""
    paths = [tmp_path / name for name in ("base", "tuned", "other")]
    for number, path in enumerate(paths):
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in tiny_model.parameters():
                parameter.add_(0.1 * number * torch.randn_like(parameter))
        tiny_model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        write_checksums(path)
    return paths


def weights(path):
    return load_file(path / "model.safetensors")


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_weighted_mean_by_hand(models, tmp_path, method):
    base, tuned, _ = models
    merged = weights(merge(base_and_tuned(method, base, [tuned], 0.25), tmp_path / "out"))
    for name, value in weights(base).items():
        torch.testing.assert_close(merged[name], 0.75 * value + 0.25 * weights(tuned)[name], rtol=1e-5, atol=1e-6)


def test_two_tuned_models_share_the_weight(models, tmp_path):
    base, tuned, other = models
    merged = weights(merge(base_and_tuned("linear", base, [tuned, other], 0.5), tmp_path / "out"))
    for name, value in weights(base).items():
        by_hand = 0.5 * value + 0.25 * weights(tuned)[name] + 0.25 * weights(other)[name]
        torch.testing.assert_close(merged[name], by_hand, rtol=1e-5, atol=1e-6)


def test_ties_by_hand(models, tmp_path):
    """Trim each difference to its largest half, elect the sign of the sum, drop who disagrees, add."""
    base, tuned, other = models
    merged = weights(merge(base_and_tuned("ties", base, [tuned, other], 1.0, density=0.5), tmp_path / "out"))
    for name, start in weights(base).items():
        trimmed = []
        for path in (tuned, other):
            tau = weights(path)[name] - start
            kept = tau.abs().flatten().argsort(descending=True)[: max(1, tau.numel() // 2)]
            mask = torch.zeros(tau.numel())
            mask[kept] = 0.5  # its weight
            trimmed.append(tau * mask.reshape_as(tau))
        tau = torch.stack(trimmed)
        sign = torch.where(tau.sum(0) >= 0, 1.0, -1.0)
        torch.testing.assert_close(merged[name], start + (tau * (tau.sign() == sign)).sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", methods())
def test_every_method_merges_two_or_three_models(models, tmp_path, method):
    base, tuned, other = models
    tuned = [tuned, other] if method not in PAIRWISE else [tuned]
    merged = weights(merge(base_and_tuned(method, base, tuned, 0.5, density=0.5), tmp_path / "out"))
    assert all(torch.isfinite(v).all() for v in merged.values())
    assert any(not torch.equal(merged[n], v) for n, v in weights(base).items())


@pytest.mark.parametrize("method", RANDOM)
def test_random_methods_follow_the_seed(models, tmp_path, method):
    config = base_and_tuned(method, models[0], models[1:2], 0.5, density=0.5)
    one, same, other = (weights(merge(config, tmp_path / str(i), seed)) for i, seed in enumerate((1, 1, 2)))
    assert all(torch.equal(one[n], same[n]) for n in one) and any(not torch.equal(one[n], other[n]) for n in one)


def test_merged_model_has_tokenizer_template_and_yaml(models, tmp_path, tokenizer):
    from transformers import AutoTokenizer

    out = merge(base_and_tuned("linear", models[0], models[1:2], 0.5), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    assert "merge_method: linear" in (out / "mergekit.yaml").read_text()
    assert not list(tmp_path.glob(".out*"))


def run_merge(*arguments):
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


@pytest.mark.parametrize("method", ["della", "ties", "slerp"])
def test_the_command_gives_the_bytes_of_mergekit(models, tmp_path, method):
    """`agentcpm-kit merge`, and plain `mergekit-yaml` on the YAML that it wrote."""
    base, tuned, other = models
    out = tmp_path / "out"
    knobs = [tuned, "--set", "t=0.4"] if method == "slerp" else [tuned, other, "--weights", "0.6,0.4", "--density", 0.5]
    done = run_merge("--method", method, *knobs, "--base", base, "--seed", 3, "--out", out)
    assert done.exit_code == 0, done.exception
    command = (out / "mergekit.yaml").read_text().splitlines()[0].removeprefix("# ").split()
    assert command == ["mergekit-yaml", "mergekit.yaml", "OUT", "--random-seed", "3"]
    command[0], command[2] = Path(sys.executable).parent / command[0], tmp_path / "plain"
    plain = subprocess.run(command, cwd=out, capture_output=True, text=True)
    assert plain.returncode == 0, plain.stderr[-2000:]
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "plain/model.safetensors").read_bytes()


def test_another_chat_template_is_told(models, tmp_path, tokenizer):
    from transformers import AutoTokenizer

    base, tuned, other = models
    template = AutoTokenizer.from_pretrained(other)
    template.chat_template += "{# another #}"
    template.save_pretrained(other)
    (other / "SHA256SUMS").unlink()
    done = run_merge("--method", "ties", tuned, other, "--weights", "0.5,0.5", "--base", base, "--out", tmp_path / "out")
    assert re.findall(r"note: (\S+) has another chat template than (\S+),", done.output) == [(str(other), str(base))]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


@pytest.mark.parametrize("arguments, message", [
    (["--method", "liner"], "did you mean 'linear'"),
    (["--method", "linear", "--weights", "1"], "one weight for each model: 2 are wanted, 1 given"),
    (["--method", "linear", "--weights", "1,x"], "weight is a number, not 'x'"),
    (["--method", "linear", "--weights", "1,nan"], "weight is a number, not 'nan'"),
    (["--method", "karcher", "--weights", "1,1"], "takes no weights"),
    (["--method", "ties", "--weights", "1,1"], "needs a base model .--base"),
    (["--method", "karcher", "--base", "{base}"], "knows no base model"),
    (["--method", "slerp", "--base", "{base}", "--set", "t=0.5"], "exactly 2 inputs"),
    (["--method", "ties", "--base", "{base}", "--weights", "1,1", "--set", "densty=0.5"], "did you mean 'density'"),
    (["--method", "ties", "--base", "{tuned}", "--weights", "1,1"], "is named twice, as the base and among the models"),
    (["--method", "ties", "--base", "{base}", "--weights", "1,1", "--dtype", "float8"], "dtype"),
    (["--method", "della", "--base", "{base}", "--weights", "1,1", "--density", "0.95"], "(?i)epsilon"),
    (["--method", "ties", "--base", "{base}", "--weights", "1,1", "--density", "1.5"], "a share above 0 and at most 1, not 1.5"),
    (["--method", "ties", "--base", "{base}", "--weights", "1,1", "--density", "0.5", "--set", "density=0.2"], "given twice"),
    (["--method", "ties", "--base", "{base}", "--weights", "1,1", "--set", "weight=0.2"], "weights are given by --weights"),
    (["--method", "ties", "--base", "{base}", "--weights", "1,1", "--set", "density=true"], "density is a number, not True"),
    (["--method", "ties", "--base", "{base}", "--weights", "1,1", "--set", "normalize=2"], "normalize is true or false, not 2"),
    (["--method", "ties", "--base", "{base}", "--weights", "0,0"], "weights are all 0"),
    (["--method", "ties", "--base", "{base}", "--weights", "1,,1"], "weight is a number, not ''"),
    (["--method", "ties", "--base", "{base}", "--weights", "1e300,1e300"], "too large"),
    (["--method", "nuslerp", "--weights=1,-1"], "add up to 0"),
    (["--method", "task_arithmetic", "--base", "{base}", "--weights", "1,1", "--density", "0.3"], "unknown parameter"),
    (["--method", "karcher", "--set", "max_iter=2.5"], "max_iter is a whole number above 0"),
    (["--method", "sce", "--base", "{base}", "--set", "select_topk=0"], "select_topk is a share above 0"),
    (["--method", "breadcrumbs", "--base", "{base}", "--weights", "1,1", "--set", "gamma=-1"], "gamma is a share from 0 to 1"),
])
def test_a_wrong_command_is_told_in_one_line(models, tmp_path, arguments, message):
    names = dict(zip(("base", "tuned", "other"), models, strict=True))
    done = run_merge(*[a.format(**names) for a in arguments], models[1], models[2], "--out", tmp_path / "out")
    assert isinstance(done.exception, KitError)
    with pytest.raises(KitError, match=message):
        raise done.exception
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def spoil_shape(model):
    tensors = weights(model)
    name = next(n for n in tensors if "down_proj" in n)
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def spoil_tensor_names(model):
    tensors = weights(model)
    tensors["model.extra"] = torch.zeros(2)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def spoil_nan(model):
    tensors = weights(model)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def spoil_type(model):
    save_file({name: value.int() for name, value in weights(model).items()}, model / "model.safetensors")


def spoil_index(model):
    """Every tensor is there, but the index looks for one of them in the other shard."""
    tensors, shards = weights(model), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = sorted(tensors)
    save_file({names[0]: tensors[names[0]]}, model / shards[0], metadata={"format": "pt"})
    save_file({name: tensors[name] for name in names[1:]}, model / shards[1], metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(names[:2], shards[0]) | dict.fromkeys(names[2:], shards[1])}
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def spoil_checksums(model):
    (model / "SHA256SUMS").write_text("garbled\n")


def spoil_config_kind(model):
    (model / "config.json").write_text("[]")


def remove_tokenizer(model):
    (model / "tokenizer.json").unlink()


def spoil_file(model):
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-100])


def spoil_shards(model):
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    index = {"weight_map": dict.fromkeys(weights(model), first) | {"x": second}}
    (model / "model.safetensors").rename(model / first)
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def spoil_tokenizer(model):
    text = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(text.replace('"research"', '"inquiry"'))


def spoil_architecture(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))


def pickle_weights(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def make_adapter(model):
    (model / "config.json").rename(model / "adapter_config.json")


@pytest.mark.parametrize("spoil, message", [
    (spoil_shape, "down_proj.* has the shape"), (spoil_tensor_names, "has a tensor model.extra"),
    (spoil_nan, "model.norm.weight holds a number that is NaN"), (spoil_file, "is broken"),
    (spoil_shards, "the shard model-00002-of-00002.safetensors is missing"), (spoil_tokenizer, "tokenizer differs"),
    (spoil_architecture, "architectures is .'LlamaForCausalLM'"), (pickle_weights, "pickled"), (make_adapter, "it is an adapter"),
    (shutil.rmtree, "there is no folder"), (lambda model: (model / "config.json").unlink(), "no model in"),
    (spoil_type, "stored as I32"), (spoil_index, "not in the shard that"),
    (spoil_checksums, "is garbled"), (spoil_config_kind, "no JSON object"), (remove_tokenizer, "has no tokenizer")])
def test_bad_models_are_refused_by_name_before_anything_is_merged(models, tmp_path, spoil, message, monkeypatch):
    import mergekit.merge

    monkeypatch.setattr(mergekit.merge, "run_merge", lambda *_, **__: pytest.fail("merging was begun"))
    (models[1] / "SHA256SUMS").unlink()
    spoil(models[1])
    with pytest.raises(KitError, match=message) as caught:
        merge(base_and_tuned("linear", models[0], [models[1]], 0.5), tmp_path / "out")
    assert "tuned" in str(caught.value) and not (tmp_path / "out").exists()


def test_a_corrupt_checkpoint_is_refused(models, tmp_path):
    spoil_nan(models[1])
    with pytest.raises(KitError, match="differs from its checksum"):
        merge(base_and_tuned("linear", models[0], [models[1]], 0.5), tmp_path / "out")


def spoil_heads(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))


def spoil_config(model):
    (model / "config.json").write_text("{")


def spoil_rules(model):
    rules = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(rules | {"normalizer": {"type": "Lowercase"}}))


@pytest.mark.parametrize("spoil, message", [(spoil_heads, "num_attention_heads is 4"), (spoil_config, "config.json is not JSON"),
                                            (spoil_rules, "cuts text by other rules")])
def test_models_of_one_shape_that_compute_differently_are_refused(models, tmp_path, spoil, message):
    (models[1] / "SHA256SUMS").unlink()
    spoil(models[1])
    with pytest.raises(KitError, match=message):
        merge(base_and_tuned("linear", models[0], [models[1]], 0.5), tmp_path / "out")


@pytest.mark.parametrize("name", ["chapter1.txt", "mergekit.yaml"])
def test_what_is_not_a_merge_is_not_overwritten(models, tmp_path, name):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / name).write_text("precious")
    with pytest.raises(KitError, match="choose another folder"):
        merge(base_and_tuned("linear", models[0], [models[1]], 0.5), tmp_path / "thesis")
    with pytest.raises(KitError, match="choose another folder"):
        merge(base_and_tuned("linear", models[0], [models[1]], 0.5), tmp_path / "thesis" / name)
    assert (tmp_path / "thesis" / name).read_text() == "precious"


def test_a_merge_is_made_again_but_not_over_its_inputs_or_additions(models, tmp_path):
    config = base_and_tuned("linear", models[0], [models[1]], 0.5)
    out = merge(config, merge(config, tmp_path / "out"))
    for place in (models[1], models[0] / "inside", tmp_path):
        with pytest.raises(KitError, match="that is to be merged"):
            merge(config, place)
    with pytest.raises(KitError, match="that is to be merged"):
        merge(base_and_tuned("linear", models[0], [out], 0.5), out)
    (out / "notes.txt").write_text("precious")
    with pytest.raises(KitError, match="files that `merge` did not make"):
        merge(config, out)


@pytest.mark.parametrize("out, message", [("file/merged", "cannot write to"), ("x" * 300, "too long"), ("/proc/merged", "/proc")])
def test_an_out_that_cannot_be_written_is_told_in_one_line(models, tmp_path, out, message):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(KitError, match=message):
        merge(base_and_tuned("linear", models[0], [models[1]], 0.5), tmp_path / out)
    assert (tmp_path / "file").read_text() == "precious" and not list(tmp_path.glob(".merge-*"))


def test_linear_takes_weights_by_part(models, tmp_path):
    by_part = [[{"filter": "mlp", "value": w}, {"value": 1.0 - w}] for w in (0.25, 0.75)]
    merged = weights(merge(merge_config("linear", models[:2], weights=by_part), tmp_path / "out"))
    for name, value in weights(models[0]).items():
        share = 0.75 if "mlp" in name else 0.25
        torch.testing.assert_close(merged[name], (1 - share) * value + share * weights(models[1])[name], rtol=1e-5, atol=1e-6)


def test_a_result_that_is_not_finite_is_refused(models, tmp_path):
    config = merge_config("linear", models[:2], weights=[1e6, 1e6], dtype="float16", normalize=False)
    with pytest.raises(KitError, match="cannot merge in float16: in the result .* is NaN or infinite"):
        merge(config, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".merge-*"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError("no")])
def test_what_is_half_done_is_removed(models, tmp_path, monkeypatch, error):
    import mergekit.merge

    def half_done(config, folder, options):
        Path(folder).mkdir()
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise error
    monkeypatch.setattr(mergekit.merge, "run_merge", half_done)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else KitError):
        merge(base_and_tuned("linear", models[0], [models[1]], 0.5), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "other", "tuned"]


def test_weights_of_a_merge_are_as_readable_as_its_other_files(models, tmp_path):
    out = merge(base_and_tuned("linear", models[0], [models[1]], 0.5), tmp_path / "out")
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1


def test_the_merge_that_the_kit_ships_can_be_made_again(tmp_path):
    shipped = repo_root() / "data/models/micro-merge"
    seed = shipped.joinpath("mergekit.yaml").read_text().splitlines()[0].split()[-1]
    command = [Path(sys.executable).parent / "mergekit-yaml", shipped / "mergekit.yaml", tmp_path / "out", "--random-seed", seed]
    done = subprocess.run(command, cwd=repo_root(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out/model.safetensors").read_bytes() == (shipped / "model.safetensors").read_bytes()


def test_methods_are_described():
    rows = {name: rest for name, *rest in described()}
    assert set(rows) == set(methods())
    assert rows["slerp"] == ["required", "1", "t"] and rows["model_stock"][:2] == ["required", "2 or more"]
    assert rows["linear"][:2] == ["none", "1 or more"] and rows["nuslerp"][:2] == ["optional", "2"]
    assert CliRunner().invoke(app, ["merge", "--list"]).exit_code == 0


def test_weights_that_add_up_to_nothing_are_refused(models):
    with pytest.raises(KitError, match="add up to 0, and linear"):
        merge_config("linear", models[:2], weights=[1.0, -1.0])
    with pytest.raises(KitError, match="density is a share"):
        merge_config("ties", models[1:2], models[0], [1.0], density=[{"filter": "mlp", "value": 1.5}, {"value": 1.0}])


def test_shares_and_names_are_checked(models):
    with pytest.raises(KitError, match="did you mean 'linear'"):
        base_and_tuned("liner", models[0], [models[1]], 0.5)
    with pytest.raises(KitError, match="between 0 and 1"):
        base_and_tuned("linear", models[0], [models[1]], 1.5)
    with pytest.raises(KitError, match="takes no weights"):
        merge_config("karcher", models, weights=[1, 1, 1])
