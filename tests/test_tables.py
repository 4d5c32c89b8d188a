"""README's tables, from rows made by hand: each number in its column; and transcripts beside each other."""

import json

import pytest

from agentcpm_kit.agent.trajectory import EndReason, Step, Trajectory
from agentcpm_kit.report import results, tables
from agentcpm_kit.report.claims import side_by_side
from agentcpm_kit.report.transcripts import beside_each_other
from tests.test_doses import bits, row


@pytest.fixture
def reference(tmp_path, monkeypatch):
    for module in (results, tables):
        monkeypatch.setattr(module, "reference_folder", lambda name: tmp_path / name)
    return tmp_path


def cells(table):
    head, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()]
    return [dict(zip(head, line, strict=True)) for line in lines]


def keep(folder, rows):
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_rl_table(reference):
    """Clean .6 from .4 is a gain of .2; noisy .5 a harm of .1; denoised .55 returns .05."""
    scores = {"sft_merge": 0.4, "clean": 0.6, "noisy": 0.5, "denoised": 0.55}
    for seed in (0, 1):
        folder = reference / f"micro/seed{seed}/07_rl"
        folder.mkdir(parents=True)
        metrics = {f"{name}_success": {"value": value, "n": 9} for name, value in scores.items()}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "config.json").write_text("{}")
        (folder / "notebook.ipynb").write_text("{}")
    first, _, last = cells(tables.rl_table("micro"))  # nothing was trained from SFT
    wanted = {"before": "0.40", "clean": "0.60", "noisy": "0.50", "denoised": "0.55", "clean gain": "0.20", "noise harm": "0.10",
              "denoising gain": "0.05"}
    assert first == {"from": "SFT-Merge", "seed": "0"} | wanted
    assert last["seed"] == "mean" and last["noise harm"] == "**0.10 [0.10, 0.10]**"


def test_doses_table(reference):
    """One seed, intervals over tasks: clean .6; at .2 noisy .5 and denoised .55, at .8 noisy .1 and denoised .4, the start's."""
    rows = [row("", 0.0, "", bits(40), experiment="start"), row("none", 0.0, "undenoised", bits(60)),
            row("none", 0.0, "denoised", bits(65))]
    rows += [row("format_slip", dose, arm, bits(n)) for dose, scores in {0.2: (50, 55), 0.8: (10, 40)}.items()
             for arm, n in zip(("undenoised", "denoised"), scores, strict=True)]
    keep(reference / "benchmarks/rl_trials", rows)
    none, slip = cells(tables.doses_table(""))
    assert (none["source"], none["denoising returns"][:4], none["harm at 0.2"]) == ("none", "0.05", "-")
    assert (slip["source"], slip["learning rate"], slip["seeds"], slip["hurts from"]) == ("format slip", "1 x", "1", "0.2")
    assert [slip[f"harm at {dose}"][:4] for dose in (0.2, 0.8)] == ["0.10", "0.50"]
    assert slip["mean harm of doses"][:4] == "0.30" and slip["denoising returns"][:4] == "0.17"  # (.05 + .3) / 2 = .175
    assert slip["share of harm"][:4] == "0.58" and slip["runs collapsed, undenoised / denoised"] == "50% / 0%"


def test_trials_table(reference):
    rows = [row("", 0.0, "", bits(40), seed, experiment="start") for seed in (0, 1)]
    rows += [row("", 0.0, "", bits(n), experiment="losses") | {"trial": f"{name}, noisy"}
             for name, n in {"grpo": 50, "gspo": 45}.items()]
    keep(reference / "benchmarks/rl_trials", rows)
    start, grpo, gspo = cells(tables.trials_table(""))
    assert (start["trial"], start["seeds"], start["tasks solved"]) == ("before RL", "2", "0.40 [0.40, 0.40]")
    assert grpo["tasks solved"][:4] == "0.50" and grpo["difference"] == ""
    assert gspo["difference"].startswith("-0.05 [") and gspo["difference"].endswith("(- grpo, noisy)")


def test_claims_of_two_profiles_stand_beside_each_other():
    """Forgetting by hand: for sure on micro, not on small, where nothing else was measured."""
    lost = {"04_sft": {"general_loss": {"value": 0.2, "ci_low": 0.1, "ci_high": 0.3, "n": 9}}}
    kept = {"04_sft": {"general_loss": {"value": -0.1, "ci_low": -0.2, "ci_high": 0.0, "n": 9}}}
    assert "verdict on small" not in side_by_side({"micro": lost, "small": {}})[0]  # nothing was run
    first, second, *_ = side_by_side({"micro": lost, "small": kept})
    assert (first["verdict on micro"], first["verdict on small"]) == ("reproduced", "not reproduced")
    assert first["measured on micro"] == "general loss: 0.20 [0.10, 0.30], n=9"
    assert (second["measured on small"], second["verdict on small"]) == ("-", "not attempted")


def test_times_table(reference):
    """One stage of 90 s that was thought to take 60, and one that was not estimated."""
    for name, env in {"00_start": {"seconds": 6, "peak_memory_gb": 0.5, "estimated_s": None},
                      "04_sft": {"seconds": 90, "peak_memory_gb": 4.0, "estimated_s": 60}}.items():
        folder = reference / "small/seed0" / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text("{}")
        (folder / "env.json").write_text(json.dumps(env))
    start, sft, total = (list(line.values()) for line in cells(tables.times_table("")))
    assert start == ["`00_start`", "-", "0.1", "0.5"] and sft == ["`04_sft`", "1.0", "1.5", "4.0"]
    assert total[1:] == ["1.0", "1.5", "4.0"]


def test_transcripts_of_several_models_stand_beside_each_other():
    """What a model wrote cannot leave its code block."""
    steps = [Step(content="````\n# not a heading")]
    tricky = Trajectory(task_id="t", question="Who?", steps=steps, end_reason=EndReason.FORMAT_ERROR)
    right = Trajectory(task_id="t", question="Who?", answer="Ann", end_reason=EndReason.ANSWERED)
    text = beside_each_other("Ten tasks", {"base": [tricky], "RL": [right]}, {"t": "Ann"})
    assert text.startswith("# Ten tasks") and "## 1. Who?" in text and "Reference answer: **Ann**" in text
    assert text.count("<details>") == text.count("</details>") == 2 and "base: format error" in text
    inside = text.split("`````text\n")[1].split("\n`````\n")[0]
    assert "# not a heading" in inside and text.index("base") < text.index("RL: answered")


def test_numbers_table_takes_each_profile_at_its_own_most_redundant_level(reference):
    """micro goes up to 12 redundant sentences, small to 8; what was not measured is a dash."""
    for profile, most in {"micro": 12, "small": 8}.items():
        folder = reference / profile / "seed0/08_refine"
        folder.mkdir(parents=True)
        found = {"ci_low": 0.0, "ci_high": 1.0, "n": 9}
        metrics = {f"raw_success_at_{level}": {"value": level / 100} | found for level in (0, most)}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = {row["what"]: row for row in cells(tables.numbers_table(""))}
    worst = rows["nobody condenses: solved on the most redundant pages (micro: 12, small: 8 redundant sentences)"]
    assert (worst["micro"][:4], worst["small"][:4]) == ("0.12", "0.08")
    assert rows["base: general items right"]["small"] == "-"
