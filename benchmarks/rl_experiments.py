"""The experiments of ``rl_trials.py``: which settings they compare.

- dose: each source of noise alone and all together, at four doses, by two learning rates, undenoised and denoised
- rules: all sources at the profile's dose, denoised by all rules but one, or with a rule more; and controls, since denoised
  steps play more questions: without filling, and no rules with as many questions; the same with clean rewards
- collapse: the same controls at the larger learning rate, where noise breaks RL
- published: the same rules with the defects of the paper's public code
- losses: the five losses, clean and noisy, on rollouts that are one step old (on fresh ones they are the same)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product

from agentcpm_kit.profile import Profile
from agentcpm_kit.sections import Noise
from agentcpm_kit.train.denoise import NO_RULES, Rules
from agentcpm_kit.train.losses import LOSSES
from agentcpm_kit.train.noise import CLEAN
from agentcpm_kit.train.rollouts import arms

DOSES = (0.1, 0.2, 0.4, 0.8)
SOURCES = tuple(Noise.model_fields)
RATES = (1.0, 2.5)  # times the profile's learning rate; 2.5 is the step that ended in collapse in trials before this kit
ARMS = {"undenoised": NO_RULES, "denoised": Rules()}
MORE_QUESTIONS = 2.5  # times a step's questions: as many as a denoised step plays to fill its update
MORE_RULES = {"and efficient_rewarding": {"efficient_rewarding": True}, "and reserve_limits 1": {"reserve_limits": 1},
              "balance_sample instead": {"balance_sample": True}, "and minimal_advantage 0": {"minimal_advantage": 0.0}}


@dataclass(frozen=True)
class Trial:
    """One setting of one experiment; `changes` are of the profile's section `rl`."""

    experiment: str
    name: str
    noise: Noise
    rules: Rules
    changes: dict = field(default_factory=dict)
    labels: dict = field(default_factory=dict)  # what its row says of it besides


def dose_trials(profile: Profile) -> Iterator[Trial]:
    """The sources one after the other, all together first: so much of the map is whole whenever it is looked at."""
    for source, dose in [("none", 0.0), *((s, d) for s in ("all", *SOURCES) for d in DOSES)]:
        noise = Noise(**dict.fromkeys(SOURCES if source == "all" else [source], dose)) if dose else CLEAN
        for rate, (arm, rules) in product(RATES, ARMS.items()):
            labels = {"source": source, "dose": dose, "rate": rate, "arm": arm}
            changes = {"learning_rate": rate * profile.rl.learning_rate}
            yield Trial("dose", f"{source} {dose:g}, {arm}, {rate:g} x", noise, rules, changes, labels)


def rule_trials(profile: Profile) -> Iterator[Trial]:
    switches = ("sign_clip", "variance_gate", "drop_faults", "drop_short", "drop_limits", "cap_bad_steps")
    yield from controls("rules", profile)
    for name, values in ({f"without {s}": {s: False} for s in switches} | MORE_RULES).items():
        yield Trial("rules", name, profile.noise, replace(Rules(), **values))


def collapse_trials(profile: Profile) -> Iterator[Trial]:
    yield from controls("collapse", profile, RATES[-1])


def controls(experiment: str, profile: Profile, rate: float = 1.0) -> Iterator[Trial]:
    """With and without noise and rules, with the questions of the profile's steps alone and with as many as filling takes."""
    same = {"learning_rate": rate * profile.rl.learning_rate}
    more = {"questions_per_step": round(MORE_QUESTIONS * profile.rl.questions_per_step), "rows_per_update": 0}
    noisy, unfilled = profile.noise, {"rows_per_update": 0}
    named = {"no rule": (noisy, NO_RULES, {}), "no rule, more questions": (noisy, NO_RULES, more),
             "all rules, not filled": (noisy, Rules(), unfilled), "all rules": (noisy, Rules(), {}),
             "clean": (CLEAN, NO_RULES, {}), "clean, more questions": (CLEAN, NO_RULES, more),
             "clean, all rules": (CLEAN, Rules(), {})}
    for name, (noise, rules, others) in named.items():
        yield Trial(experiment, name, noise, rules, same | others, {"rate": rate})


def published_trials(profile: Profile) -> Iterator[Trial]:
    for name, values in {"the rules": {}, "efficient_rewarding": {"efficient_rewarding": True},
                         "balance_sample": {"balance_sample": True}}.items():
        for as_published in (False, True):
            rules = replace(Rules(), as_published=as_published, **values)
            yield Trial("published", f"{name}, {'as published' if as_published else 'corrected'}", profile.noise, rules)


def loss_trials(profile: Profile) -> Iterator[Trial]:
    for name, arm in arms(profile.noise).items():
        for loss in LOSSES:
            changes = {"loss": loss, "asynchronous": True}
            yield Trial("losses", f"{loss}, {name}", arm.noise, arm.rules, changes, {"loss": loss, "arm": name})


EXPERIMENTS = {"dose": dose_trials, "rules": rule_trials, "collapse": collapse_trials, "published": published_trials,
               "losses": loss_trials}
