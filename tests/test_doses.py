"""The map of noise: what is read from its rows, on rows made by hand."""

import math

import pytest

from agentcpm_kit.report.doses import draw_map, draw_trials, first_harm, harms, score, trials


def row(source, dose, arm, outcomes, seed=0, rate=1.0, stopped="", experiment="dose"):
    right = sum(map(int, outcomes))
    labels = {"source": source, "dose": dose, "rate": rate, "arm": arm}
    return {"experiment": experiment, "trial": f"{source} {dose:g}, {arm}", **labels, "seed": seed, "stopped": stopped,
            "n": len(outcomes), "score": right / len(outcomes), "outcomes": outcomes}


def bits(right, of=100):
    return "1" * right + "0" * (of - right)


def rows_of(seed, noisy=(60, 30), denoised=(60, 50)):
    found = [row("", 0.0, "", bits(40), seed, experiment="start")]
    found += [row("none", 0.0, arm, bits(60), seed) for arm in ("undenoised", "denoised")]
    for dose, one, two in zip((0.1, 0.4), noisy, denoised, strict=True):
        found += [row("all", dose, "undenoised", bits(one), seed), row("all", dose, "denoised", bits(two), seed)]
    return found


def test_harm_and_what_denoising_returns_by_hand():
    """Clean 0.6; at 0.4, noisy 0.3 and denoised 0.5: harm 0.3, of which 0.2 come back: two thirds. At 0.1 nothing is lost."""
    table = harms(rows_of(0)).set_index("dose")
    assert table.loc[0.4, "harm"].value == pytest.approx(0.3) and table.loc[0.4, "returned"].value == pytest.approx(0.2)
    assert table.loc[0.4, "share"] == pytest.approx(2 / 3) and table.loc[0.4, "hurts"]
    assert not table.loc[0.1, "hurts"] and math.isnan(table.loc[0.1, "share"])


def test_over_seeds_intervals_are_over_seeds():
    rows = rows_of(0) + rows_of(1, noisy=(60, 20)) + rows_of(2, noisy=(60, 25))
    line = harms(rows).set_index("dose").loc[0.4]
    assert line.seeds == line.harm.n == 3 and line.harm.value == pytest.approx(0.35)
    assert score(trials(rows, "dose").query("dose == 0.4 and arm == 'denoised'")).value == pytest.approx(0.5)


def test_where_noise_begins_to_hurt():
    found = first_harm(harms(rows_of(0))).iloc[0]
    assert found.source == "all" and found.hurts_from == 0.4 and found.harm_there == found.harm_at_most


def test_what_counts_as_collapsed():
    """Stopped, or fewer than half of what the start solves (0.4): 0.19 is, 0.2 is not. A run without a score has solved none."""
    rows = [*rows_of(0), row("all", 0.8, "undenoised", bits(19)), row("all", 0.8, "denoised", bits(20)),
            row("all", 0.9, "undenoised", bits(55), stopped="no rollout was rewarded in 5 steps")]
    nan = row("all", 0.9, "denoised", bits(0), stopped="RL stopped: the loss is nan")
    rows.append({k: v for k, v in nan.items() if k not in ("score", "outcomes")})
    frame = trials(rows, "dose").set_index("trial")
    assert frame.collapsed["all 0.8, undenoised"] and not frame.collapsed["all 0.8, denoised"]
    assert frame.collapsed["all 0.9, undenoised"] and frame.collapsed["all 0.9, denoised"]
    assert harms(rows).set_index("dose").loc[0.9, "denoised"].value == 0.0


def test_figures_show_every_trial():
    rows = rows_of(0) + [row("x", 0.0, "y", bits(50), experiment="rules")]
    figure = draw_map(rows, 1.0)
    assert figure.axes[0].get_title() == "all" and len(figure.axes[0].get_xticks()) == 3
    assert [t.get_text() for t in draw_trials(rows, "rules").axes[0].get_yticklabels()] == ["x 0, y"]
