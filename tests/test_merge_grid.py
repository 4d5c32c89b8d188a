"""The map of merges: which are tried, how parts are told apart, and how one is chosen."""

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from agentcpm_kit.artefacts import write_checksums
from agentcpm_kit.profile import load_profile
from agentcpm_kit.sections import Trim
from agentcpm_kit.train.merge import merge
from agentcpm_kit.train.merge_grid import (
    Candidate,
    candidate_config,
    part_candidates,
    rank,
    whole_model_candidates,
    without_part,
)
from agentcpm_kit.train.merge_inputs import mean_change
from agentcpm_kit.train.merge_methods import methods

SETTINGS = load_profile("micro").merge


@pytest.fixture
def pair(tiny_model, tokenizer, tmp_path):
    """A base, and a model with 1 added to every weight."""
    for name in ("base", "tuned"):
        tiny_model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    tensors = {n: v + 1 for n, v in load_file(tmp_path / "base/model.safetensors").items()}
    save_file(tensors, tmp_path / "tuned/model.safetensors", metadata={"format": "pt"})
    for name in ("base", "tuned"):
        write_checksums(tmp_path / name)
    return tmp_path / "base", tmp_path / "tuned"


def change(pair, out):
    before, after = (load_file(p / "model.safetensors") for p in (pair[0], out))
    return {name: (after[name] - before[name]) for name in before}


def test_every_method_of_mergekit_is_tried_on_two_or_on_three_models():
    tried = {n: {c.method for c in whole_model_candidates(SETTINGS, n, every=True)} for n in (1, 2)}
    assert tried[1] | tried[2] == set(methods())
    assert tried[1].isdisjoint({"model_stock", "ram", "sce"}) and tried[2].isdisjoint({"slerp", "nearswap"})


def test_names_are_unique_and_knobs_are_where_they_belong():
    found = [c for n in (1, 2) for c in [*whole_model_candidates(SETTINGS, n, every=True), *part_candidates(SETTINGS, n)]]
    assert len({c.name for c in found}) == len(found)
    assert Candidate("karcher").name == "karcher" and Candidate("ties", 0.9, 0.5).name == "ties 0.9 density 0.5"
    linear = [c for c in found if c.method == "linear"]
    assert len(linear) == 2 * len(SETTINGS.weights) and {c.density for c in linear} == {1.0}


def test_all_configurations_of_the_map_are_valid_for_mergekit(tmp_path):
    from mergekit.config import MergeConfiguration

    base, one, two = (tmp_path / n for n in ("base", "one", "two"))
    for n in (1, 2):
        for c in [*whole_model_candidates(SETTINGS, n, every=True), *part_candidates(SETTINGS, n)]:
            if c.method != "nearswap":  # whose knob is measured on the models
                config = candidate_config(c, base, [one, two], SETTINGS, "float32")
                assert MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(config)))
                assert sum(str(m) in str(config) for m in (one, two)) == n


def test_a_part_that_is_given_back_is_the_bases(pair, tmp_path):
    moved = change(pair, merge(without_part("embed_tokens", *pair, "float32"), tmp_path / "out"))
    for name, tau in moved.items():
        assert torch.allclose(tau, torch.zeros(1) if "embed_tokens" in name else torch.ones(1), atol=1e-5), name


def test_densities_and_weights_by_part_and_scale(pair, tmp_path):
    """A density of 0.1 keeps a tenth of the embedding; what is kept is multiplied by the weight of its part and by the scale."""
    settings = SETTINGS.model_copy(update={"parts": {"p": {"embed_tokens": Trim(density=0.1, weight=2.0)}}})
    config = candidate_config(Candidate("ties", parts="p", scale=1.5), pair[0], [pair[1]], settings, "float32")
    for name, tau in change(pair, merge(config, tmp_path / "out")).items():
        kept = tau[tau.abs() > 1e-3]
        assert torch.allclose(kept, torch.tensor(3.0 if "embed_tokens" in name else 1.5), atol=1e-4), name
        assert kept.numel() == (int(0.1 * tau.numel()) if "embed_tokens" in name else tau.numel()), name


def test_nearswap_is_measured_against_the_mean_change(pair):
    assert mean_change(*pair) == pytest.approx(1.0, abs=1e-5)
    config = candidate_config(Candidate("nearswap", 0.25), pair[0], [pair[1]], SETTINGS, "float32")
    assert config["parameters"]["t"] == pytest.approx(0.25, abs=1e-5)


def test_the_choice_keeps_enough_success_and_then_remembers_most():
    rows = [dict(name=n, success=s, general=g) for n, s, g in
            (("sft", 0.8, 0.1), ("best", 0.77, 0.6), ("weak", 0.75, 0.9), ("dull", 0.79, 0.5))]
    assert [r["name"] for r in rank(rows, 0.8, 0.95)] == ["best", "dull", "sft", "weak"]
    assert rank(rows, 0.9, 0.95)[0]["name"] == "sft"  # none keeps enough: the best agent
