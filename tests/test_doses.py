"""The map of noise: what is read from its rows, on rows made by hand."""

import math
from dataclasses import replace

import pytest

from agentcpm_kit.evaluate.metrics import mean
from agentcpm_kit.report.doses import baseline, by_source, difference, draw_map, draw_trials, fits, harms, score, trials


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
    assert table.loc[0.4, "share"].value == pytest.approx(2 / 3) and table.loc[0.4, "hurts"]
    assert not table.loc[0.1, "hurts"] and table.loc[0.1, "share"] is None


def test_the_control_says_what_the_rules_do_to_clean_rewards():
    """Without noise 0.6, with the rules 0.7: 0.1 that no denoising returned."""
    rows = [*rows_of(0)[:2], row("none", 0.0, "denoised", bits(70))]
    control = harms(rows).iloc[0]
    assert (control.source, control.harm.value, control.hurts) == ("none", 0, False)
    assert control.returned.value == pytest.approx(0.1) and by_source(rows_of(0)).source.tolist() == ["all"]


def controls(experiment="rules", rate=1.0):
    """Two trials, two seeds, scores .5 .7 and .3 .7: what is left beside trial and seed is +-.05, the spread .1."""
    rows = [row("", 0.0, "", bits(40), seed, experiment="start") for seed in (0, 1)]
    return rows + [row(name, 0.0, "x", bits(n)[::-1], seed, rate, experiment=experiment)
                   for name, scores in {"a": (50, 70), "b": (30, 70)}.items() for seed, n in enumerate(scores)]


def reach(runs):
    return 12.706 * 0.1 * math.sqrt(runs)  # t of one degree of freedom, x spread


def test_with_several_seeds_intervals_come_from_the_spread_between_runs():
    frame, fit = trials(controls(), "rules"), fits(controls())[1.0]
    one, two = (frame[frame.source == name] for name in "ab")
    found = difference(one, two, fit)
    assert found.value == pytest.approx(0.1) and found.n == 2
    assert found.ci_high - found.value == pytest.approx(reach(2 / 2), rel=1e-3)
    assert (score(one, fit).value, score(one, fit).ci_low, score(one, fit).ci_high) == (pytest.approx(0.6), 0, 1)


def test_cells_with_one_seed_take_the_spread_of_those_with_several():
    """Clean .6, noisy .3 of one seed: the two runs' spread, times the square root of two."""
    rows = [*controls(), *rows_of(0)[1:]]
    harm = harms(rows).set_index("dose").loc[0.4, "harm"]
    assert harm.value == pytest.approx(0.3) and harm.n == 1 and harm.ci_high - 0.3 == pytest.approx(reach(2), rel=1e-3)
    other = fits([*rows, row("all", 0.4, "denoised", bits(1), rate=2.5)])
    assert other[2.5].freedom == 0 and other[1.0].freedom == 1  # a learning rate for itself


def test_clean_runs_of_other_seeds_count_for_every_cell():
    """A map of one seed, whose clean run is the first of the controls "b": its second seed is taken into account."""
    rows = [*controls(), row("none", 0.0, "undenoised", bits(30)[::-1]), row("none", 0.0, "denoised", bits(60)),
            row("all", 0.4, "undenoised", bits(20)), row("all", 0.4, "denoised", bits(25))]
    line = harms(rows).set_index("dose").loc[0.4]
    harm = line.harm
    assert (line.seeds, harms(rows).set_index("dose").loc[0, "seeds"]) == (1, 1)  # the control "denoised" is a single run
    # trial b is .3 and .7, seed 0 is .3 below seed 1 (mean of .2 and .4): expected of b on seed 0 is .35, not .3
    assert harm.value == pytest.approx(0.15) and harm.ci_high - 0.15 == pytest.approx(reach(1 + 3 / 4), rel=1e-3)


def test_a_trial_in_which_nothing_acted_is_the_run_it_equals():
    rows = [*controls(), *rows_of(0)[1:3], row("lucky", 0.1, "undenoised", bits(60)), row("lucky", 0.1, "denoised", bits(60))]
    harm = harms(rows).set_index("source").loc["lucky", "harm"]
    assert harm.value == pytest.approx(0) and harm.ci_low == pytest.approx(0) and harm.ci_high == pytest.approx(0)


def test_runs_that_solve_nothing_are_not_the_same_run():
    rows = [*controls(), *rows_of(0, noisy=(0, 0), denoised=(30, 30))[1:]]
    line = by_source(rows).iloc[0]
    assert line.harm.ci_high - line.harm.value == pytest.approx(reach(1 + 1 / 2), rel=1e-3)
    assert line.returned.ci_high - line.returned.value == pytest.approx(reach(1 / 2 + 1), rel=1e-3)  # denoised: one run, twice


def three_seeds(**more):
    """Scores on three seeds: a .5 .6 .7, b .4 .4 .1, and others."""
    rows = [row("", 0.0, "", bits(40), seed, experiment="start") for seed in range(3)]
    return rows + [row(name, 0.0, "x", bits(n)[::-1], seed, experiment="rules")
                   for name, scores in {"a": (50, 60, 70), "b": (40, 40, 10), **more}.items() for seed, n in enumerate(scores)]


def test_trials_of_three_seeds_are_compared_seed_by_seed():
    """Differences .1 .2 .6: mean .3, standard deviation .2646, Student's t 4.3027 with 2 degrees of freedom."""
    frame, fit = trials(three_seeds(), "rules"), fits(three_seeds())[1.0]
    one, two = (frame[frame.source == name] for name in "ab")
    found, half = difference(one, two, fit), 4.3027 * 0.26458 / math.sqrt(3)
    assert (found.value, found.n, found.ci_high) == (pytest.approx(0.3), 3, pytest.approx(0.3 + half, rel=1e-3))
    assert score(one, fit).ci_high == pytest.approx(0.6 + 4.3027 * 0.1 / math.sqrt(3), rel=1e-3)


def test_a_share_over_three_seeds_has_fiellers_interval():
    """Harm .30 .28 .32, returned .15 .13 .22: all g for which "returned - g harm" has 0 in Student's interval."""
    fit = fits(three_seeds(b=(20, 32, 38), c=(35, 45, 60)))[1.0]
    a, b, c = (f"rules: {name} 0, x" for name in "abc")
    share = fit.ratio(([c], [b]), ([a], [b]))
    assert share.value == pytest.approx(0.5 / 0.9) and share.n == 3
    returned, harm = fit.by_seed([c], [b]), fit.by_seed([a], [b])
    for edge in (share.ci_low, share.ci_high):
        left = mean([returned[seed] - edge * harm[seed] for seed in range(3)])
        assert left.ci_low == pytest.approx(0, abs=1e-9) or left.ci_high == pytest.approx(0, abs=1e-9)


def test_trials_that_no_seed_links_are_not_compared():
    rows = [*controls(), row("far", 0.0, "x", bits(50), seed=9, experiment="rules")]
    rows.append(row("", 0.0, "", bits(40), 9, experiment="start"))
    fit = fits(rows)[1.0]
    assert math.isnan(fit.difference(["rules: far 0, x"], ["rules: a 0, x"]).value)
    assert fit.difference(["rules: a 0, x"], ["rules: b 0, x"]).value == pytest.approx(0.1)


def test_share_has_an_interval():
    """Fieller: all g for which returned - g harm is not surely other than 0."""
    rows = [*controls(), *rows_of(0, noisy=(60, 30), denoised=(60, 50))[1:]]
    fit, one, two = fits(rows)[1.0], ["dose: all 0.4, denoised"], ["dose: all 0.4, undenoised"]
    clean = ["dose: none 0, undenoised"]
    fit = replace(fit, spread=0.01)
    share = fit.ratio((one, two), (clean, two))
    assert share.value == pytest.approx(2 / 3) and share.ci_low < 2 / 3 < share.ci_high
    for edge in (share.ci_low, share.ci_high):
        weights = fit.contrast(one, two) - edge * fit.contrast(clean, two)
        assert abs(weights @ fit.coefficients) == pytest.approx(fit.reach(weights @ fit.inverse @ weights))
    assert math.isnan(replace(fit, spread=1.0).ratio((one, two), (clean, two)).ci_low)  # the harm may be 0


def test_with_one_seed_and_no_controls_intervals_are_over_tasks():
    frame, fit = trials(rows_of(0), "dose"), fits(rows_of(0))[1.0]
    assert fit.freedom == 0 and score(frame.query("dose == 0.4 and arm == 'denoised'"), fit).n == 100


def test_where_noise_begins_to_hurt():
    """At 0.4, not at 0.1; if at 0.1 and not at 0.4, there is no dose from which on it hurts."""
    assert by_source(rows_of(0)).iloc[0].hurts_from == 0.4
    assert math.isnan(by_source(rows_of(0, noisy=(30, 60))).iloc[0].hurts_from)


def test_a_source_is_judged_by_the_mean_of_its_doses():
    """Clean .6; noisy .59 and .31, denoised .61 and .49: harm .15, of which .10 come back. A mean of two spreads less."""
    line = by_source([*controls(), *rows_of(0, noisy=(59, 31), denoised=(61, 49))[1:]]).iloc[0]
    assert line.harm.value == pytest.approx(0.15) and line.returned.value == pytest.approx(0.1)
    assert line.harm.ci_high - 0.15 == pytest.approx(reach(1 + 1 / 2), rel=1e-3)
    assert line.returned.ci_high - 0.1 == pytest.approx(reach(1 / 2 + 1 / 2), rel=1e-3)
    assert line.share is None  # not surely a harm
    assert by_source(rows_of(0)).iloc[0].share.value == pytest.approx(2 / 3)  # over tasks it is


def test_lines_are_in_order_whatever_the_order_of_the_rows():
    rows = [*rows_of(0)[::-1], *(row(r["source"], r["dose"], r["arm"], r["outcomes"], rate=0.5) for r in rows_of(0)[1:])]
    assert harms(rows)[["rate", "dose"]].to_numpy().tolist() == [[rate, dose] for rate in (0.5, 1.0) for dose in (0.0, 0.1, 0.4)]


def test_a_denoised_run_that_is_still_its_start_is_told():
    rows = [*rows_of(0), row("all", 0.8, "undenoised", bits(20)), row("all", 0.8, "denoised", bits(40))]
    assert harms(rows).set_index("dose").unmoved.to_dict() == {0.0: 0, 0.1: 0, 0.4: 0, 0.8: 1}


def test_what_counts_as_collapsed():
    """Fewer than half of what the start solves (0.4): 0.19 is, 0.2 is not, nor a run that stopped for want of rewards and
    solves 0.55; weights that were lost have no score, and have solved none."""
    rows = [*rows_of(0), row("all", 0.8, "undenoised", bits(19)), row("all", 0.8, "denoised", bits(20)),
            row("all", 0.9, "undenoised", bits(55), stopped="no rollout was rewarded in 5 steps")]
    lost = row("all", 0.9, "denoised", bits(0), stopped="RL stopped: the loss is nan")
    rows.append({k: v for k, v in lost.items() if k not in ("score", "outcomes")})
    frame = trials(rows, "dose").set_index("trial")
    assert frame.collapsed["all 0.8, undenoised"] and not frame.collapsed["all 0.8, denoised"]
    assert not frame.collapsed["all 0.9, undenoised"] and frame.collapsed["all 0.9, denoised"]
    assert harms(rows).set_index("dose").loc[0.9, "denoised"].value == 0.0


@pytest.mark.parametrize("experiment,trial,other", [
    ("rules", "without drop_faults", "all rules"), ("published", "the rules, as published", "the rules, corrected"),
    ("losses", "cispo, noisy", "grpo, noisy")])
def test_trials_are_compared_with_what_differs_in_one_thing(experiment, trial, other):
    assert baseline(experiment, trial) == other == baseline(experiment, other)


def test_clean_controls_are_compared_with_noisy_ones_of_as_many_questions():
    assert [baseline("collapse", n) for n in ("clean", "clean, more questions", "clean, all rules")] == [
        "no rule", "no rule, more questions", "clean"]


def test_figures_show_every_trial():
    figure = draw_map(rows_of(0), 1.0)
    assert figure.axes[0].get_title() == "all" and len(figure.axes[0].get_xticks()) == 3
    rows = [row("", 0.0, "", bits(40), experiment="start")]
    rows += [row("", 0.0, "", bits(n), experiment="rules") | {"trial": name} for name, n in (("all rules", 50), ("no rule", 40))]
    axes = draw_trials(rows, "rules").axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["no rule\n- all rules"]
    assert axes.containers[0].lines[0].get_xdata() == pytest.approx([-0.1])
