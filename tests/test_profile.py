"""Profiles and paths: found from anywhere, validated, and wrong in one line."""

import random
import shutil

import pytest
import yaml

from agentcpm_kit import profile
from agentcpm_kit.errors import KitError, unknown
from agentcpm_kit.profile import load_profile, profile_names, repo_root, results_root, set_seed


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout of its own; `repo_root` is cached, so the cache is emptied before and after."""
    shutil.copytree(repo_root() / "profiles", tmp_path / "kit/profiles")
    (tmp_path / "kit/pyproject.toml").touch()
    (tmp_path / "kit/notebooks").mkdir()
    monkeypatch.setenv("AGENTCPM_KIT_ROOT", str(tmp_path / "kit/notebooks"))
    repo_root.cache_clear()
    yield tmp_path / "kit"
    monkeypatch.undo()
    repo_root.cache_clear()


def edit(root, change):
    path = root / "profiles/smoke.yaml"
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values))


def test_the_root_is_found_upwards_by_its_markers(root):
    assert repo_root() == root.resolve()


def test_no_root_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTCPM_KIT_ROOT", str(tmp_path))
    with pytest.raises(KitError, match="AGENTCPM_KIT_ROOT"):
        repo_root.__wrapped__()


def test_the_working_directory_does_not_matter(tmp_path, monkeypatch):
    before = repo_root.__wrapped__()
    monkeypatch.chdir(tmp_path)
    assert repo_root.__wrapped__() == before


def test_results_follow_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTCPM_KIT_RESULTS", str(tmp_path))
    assert results_root() == tmp_path
    monkeypatch.delenv("AGENTCPM_KIT_RESULTS")
    assert results_root() == repo_root() / "results"


def test_every_file_is_a_profile_of_its_own_name():
    assert {"micro", "paper", "small", "smoke"} <= set(profile_names())
    assert [load_profile(name).name for name in profile_names()] == profile_names()
    assert not load_profile("smoke").is_result and load_profile("micro").is_result


@pytest.mark.parametrize("change,hint", [
    (lambda v: v.update(threds=2), "did you mean 'threads'"),
    (lambda v: v["rl"].update(group_sise=2), "did you mean 'rl.group_size'"),
    (lambda v: v.update(name="micro"), "name: it says 'micro'; write 'smoke'"),
    (lambda v: v["model"].update(served={"sft": {"url": ["http://a/v1"], "name": "m"}}), "did you mean 'model.served.sft.urls'"),
    (lambda v: v["model"].update(served={"sft": {"urls": ["htp:/a"], "name": "m"}}), "pattern '^https?://"),
    (lambda v: v["model"].update(served={"sft": {"urls": [], "name": "m"}}), "at least 1 item"),
    (lambda v: v["model"].update(served={"candidate": {"urls": ["http://a"], "name": "m"}}), "with another engine"),
    (lambda v: v.update(context={"histroy": "none"}), "did you mean 'context.history'"),
    (lambda v: v["rl"].update(steps="many"), "rl.steps"),
    (lambda v: v["rl"].update(loss="ppo"), "rl.loss"),
    (lambda v: v.pop("merge"), "merge")])
def test_a_wrong_key_or_value_is_one_line(root, change, hint):
    edit(root, change)
    with pytest.raises(KitError) as caught:
        load_profile("smoke")
    assert hint in str(caught.value) and "smoke.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_broken_yaml_is_one_line(root):
    (root / "profiles/smoke.yaml").write_text("name: [smoke\n")
    with pytest.raises(KitError, match="smoke.yaml is not YAML") as caught:
        load_profile("smoke")
    assert "\n" not in str(caught.value)


def test_a_profile_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        load_profile("smoke").threads = 5


@pytest.mark.parametrize("values,hint", [({"epochs": -1}, "epochs = -1: input should be greater than 0"),
                                         ({"epcohs": 1}, "epcohs")])
def test_a_changed_section_is_checked_as_a_profile_is(values, hint):
    sft = load_profile("micro").sft
    assert sft.changed(epochs=7).model_dump() == sft.model_dump() | {"epochs": 7}
    with pytest.raises(KitError, match=hint):
        sft.changed(**values)


def test_unknown_names_the_nearest_or_all():
    assert "did you mean 'micro'" in str(unknown("profile", "mirco", ["micro", "smoke"]))
    assert "known: 01, 11" in str(unknown("stage", "13", ["01", "11"]))  # two characters resemble anything
    assert "known: micro, smoke" in str(unknown("profile", "zzz", ["smoke", "micro"]))


def test_seeds_fix_every_generator():
    import numpy
    import torch

    threads = torch.get_num_threads()
    draws = []
    for _ in range(2):
        set_seed(7, 1)
        draws.append((random.random(), numpy.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1] and torch.get_num_threads() == 1
    torch.set_num_threads(threads)
    assert profile.repo_root() == repo_root()
