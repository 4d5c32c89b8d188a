"""Files of a stage, profiles, and what is refused."""

import json
import math

import pytest

from agentcpm_kit.errors import KitError
from agentcpm_kit.files import append_jsonl, read_jsonl, write_atomic
from agentcpm_kit.profile import load_profile, profile_names
from agentcpm_kit.stage import notebooks, open_stage


def test_all_profiles_load():
    assert set(profile_names()) == {"smoke", "micro", "small", "paper"}
    assert all(load_profile(name).name == name for name in profile_names())


def test_bad_profiles_are_one_line(tmp_path, monkeypatch):
    import agentcpm_kit.profile as module

    good = (module.repo_root() / "profiles/micro.yaml").read_text()
    (tmp_path / "profiles").mkdir()
    monkeypatch.setattr(module, "repo_root", lambda: tmp_path)
    for name, text, hint in [("typo", good.replace("group_size", "groupsize"), "rl.group_size"), ("yaml", "a: [", "YAML"),
                             ("type", good.replace("threads: 2", "threads: two"), "threads"),
                             ("top", good + "\nmodle: 3\n", "model")]:
        (tmp_path / f"profiles/{name}.yaml").write_text(text)
        with pytest.raises(KitError, match=hint) as error:
            module.load_profile(name)
        assert "\n" not in str(error.value)
    with pytest.raises(KitError, match="typo"):
        module.load_profile("typp")


def test_torn_jsonl_is_mended(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, {"i": 0})
    with open(path, "a") as file:
        file.write('{"i": 1, "text": "torn')
    assert read_jsonl(path) == [{"i": 0}]
    append_jsonl(path, {"i": 1})
    assert read_jsonl(path) == [{"i": 0}, {"i": 1}]


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    write_atomic(tmp_path / "a", "old")
    with pytest.raises(TypeError):
        write_atomic(tmp_path / "a", None)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_stage_files_and_metric_format(results):
    stage = open_stage("01_world", "smoke", 3, guesses=5)
    stage.row("unit", i=1)
    stage.metric("m", 0.5, 4, 0.1, math.nan, "share")
    with pytest.raises(ValueError, match="nan"):
        stage.metric("bad", math.nan, 1)
    stage.finish()
    folder = results / "smoke/seed3/01_world"
    assert json.loads((folder / "metrics.json").read_text()) == {
        "m": {"value": 0.5, "n": 4, "ci_low": 0.1, "ci_high": None, "unit": "share"}}
    env = json.loads((folder / "env.json").read_text())
    assert {"commit", "dirty", "packages", "hardware", "seed", "started", "wall_s"} <= set(env)
    config = json.loads((folder / "config.json").read_text())
    assert config["parameters"] == {"guesses": 5} and config["profile"]["name"] == "smoke"
    assert (folder / "DONE").read_text().strip() == stage.hash


def test_reopening_keeps_work_only_if_nothing_changed(results):
    open_stage("01_world", "smoke", 0, guesses=5).row("unit", i=1)
    assert len(open_stage("01_world", "smoke", 0, guesses=5).rows()) == 1
    assert open_stage("01_world", "smoke", 0, guesses=6).rows() == []


def test_missing_artefact_names_what_makes_it():
    stage = open_stage("05_merge", "smoke", 0)
    with pytest.raises(KitError, match=r"notebooks/04_sft.ipynb.*--stages 04"):
        stage.artefact("04_sft", "model")


def test_shipped_checkpoints_never_stand_in_for_another_model():
    with pytest.raises(KitError, match=r"--stages 04"):
        open_stage("05_merge", "small").artefact("04_sft", "model", shipped="data/models/micro-sft")


def test_unknown_stage_names_the_nearest():
    with pytest.raises(KitError, match="04_sft"):
        open_stage("04_stf")


def test_profiles_without_their_model_say_so():
    with pytest.raises(KitError, match="doctor"):
        open_stage("11_paper_scale", "paper").base_model()


def test_every_notebook_number_is_there():
    assert [name[:2] for name in notebooks()] == [f"{i:02}" for i in range(12)]


def test_figures_are_small_and_smoke_is_marked(results):
    from agentcpm_kit.report.figures import bars, new_figure

    stage = open_stage("01_world", "smoke")
    figure, axes = new_figure()
    bars(axes, ["a"], [{"value": 0.5, "ci_low": 0.4, "ci_high": 0.6}], "share")
    path = stage.figure(figure, "f", "caption")
    assert path.stat().st_size <= 100_000 and any("not a result" in t.get_text() for t in figure.texts)


def test_wandb_is_offline_unless_logged_in(monkeypatch, tmp_path):
    from agentcpm_kit.tracking import wandb_mode

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode() == "disabled"


def test_wandb_writes_an_offline_run_without_secrets(monkeypatch, results):
    monkeypatch.setenv("AGENTCPM_KIT_WANDB", "1")
    stage = open_stage("01_world", "smoke")
    stage.tracker.log(1, "curve", loss=0.5, note="text stays in rows")
    stage.finish()
    assert stage.rows("step") == [{"kind": "step", "curve": "curve", "step": 1, "loss": 0.5, "note": "text stays in rows"}]
    runs = list((stage.folder / "wandb").glob("offline-run-*"))
    assert len(runs) == 1 and list(runs[0].glob("*.wandb"))


def test_a_figure_is_closed_so_that_jupyter_shows_it_once():
    from matplotlib import pyplot

    from agentcpm_kit.report.figures import new_figure

    before = pyplot.get_fignums()
    figure, _ = new_figure()
    open_stage("01_world", "smoke").figure(figure, "f", "caption")
    assert pyplot.get_fignums() == before


def test_a_finished_stage_starts_anew_and_an_unfinished_one_keeps_its_checkpoints():
    stage = open_stage("01_world", "smoke")
    stage.checkpoint("model").mkdir(parents=True)
    assert open_stage("01_world", "smoke").checkpoint("model").is_dir()
    stage.finish()
    assert not open_stage("01_world", "smoke").checkpoint("model").exists()


def test_a_network_that_is_down_leaves_wandb_offline(monkeypatch, capsys):
    """Logged in, but W&B does not answer: the run goes on offline, and says so in one line."""
    from agentcpm_kit.tracking import Tracker

    modes = []

    def start(self, mode):
        modes.append(mode)
        if mode == "online":
            raise OSError("timed out")
        return None

    monkeypatch.setattr(Tracker, "_start", start)
    for name, value in {"AGENTCPM_KIT_WANDB": "1", "WANDB_API_KEY": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    Tracker(open_stage("01_world", "smoke"))
    assert modes == ["online", "offline"]
    assert "OSError: timed out" in capsys.readouterr().out


def test_a_disk_that_is_too_full_is_told_before_work(tmp_path):
    from agentcpm_kit.stage import check_writable

    with pytest.raises(KitError, match="needed"):
        check_writable(tmp_path, need_gb=1e9)


def test_a_resumed_curve_counts_its_last_points():
    stage = open_stage("04_sft", "smoke")
    for step, loss in ((1, 3.0), (2, 2.0), (3, 1.9), (2, 2.1), (3, 1.5)):  # killed after step 3, resumed after step 1
        stage.tracker.log(step, "sft", loss=loss)
    stage.tracker.log(2, "check", success=0.5)
    assert [(r["step"], r["loss"]) for r in stage.curve("sft")] == [(1, 3.0), (2, 2.1), (3, 1.5)]
    later = open_stage("05_merge", "smoke")
    assert later.curve_of("04_sft", "check")[0]["success"] == 0.5 and later.curve_of("07_rl", "clean") == []


def test_parameters_of_an_earlier_stage():
    def told() -> dict:
        return open_stage("05_merge", "smoke").parameters_of("04_sft", "model")

    assert told() == {}  # not run: the shipped checkpoint has the defaults
    sft = open_stage("04_sft", "smoke", epochs=2)
    sft.finish()
    assert told() == {}  # its checkpoint was removed: the shipped one stands in for it
    sft.checkpoint("model").mkdir(parents=True)
    assert told() == {"epochs": 2}


def test_a_readers_own_data_is_an_input(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text("one")
    before = open_stage("04_sft", "smoke", trajectories=str(file)).hash
    assert open_stage("04_sft", "smoke", trajectories=str(file)).hash == before
    file.write_text("two")
    assert open_stage("04_sft", "smoke", trajectories=str(file)).hash != before
