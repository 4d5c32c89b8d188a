"""Verdicts on the paper's claims, computed by rule from metrics.json. Nobody writes a verdict by hand.

`all_above_zero`: every metric's 95% interval lies above 0 -> reproduced; every value above 0, or some interval
above 0 -> partly; else not reproduced. `merge`: general ability is regained (interval above 0), at least `RECOVERED` of
what was lost, and at least `KEPT` of SFT's agent success stays -> reproduced; only the first -> partly. `denoising`: noise
costs the agent at least `HARM` of its success, and denoising returns at least `RETURNED` of that, each with its interval
above 0 -> reproduced; noise costs something (interval above 0) -> partly.
"""

from collections.abc import Callable

import yaml

from ..profile import repo_root

RECOVERED, KEPT = 0.70, 0.95  # fixed before any merge was measured by them; our assumption
HARM, RETURNED = 0.08, 0.60  # fixed before any run with the profile's noise; our assumption
VERDICTS = ("reproduced", "partly", "not reproduced", "not attempted")


def load_claims() -> list[dict]:
    return yaml.safe_load((repo_root() / "data/paper/claims.yaml").read_text())


def _surely_positive(metric: dict) -> bool:
    return metric["ci_low"] is not None and metric["ci_low"] > 0


def all_above_zero(metrics: list[dict]) -> str:
    if all(map(_surely_positive, metrics)):
        return "reproduced"
    some = any(map(_surely_positive, metrics)) or all(m["value"] > 0 for m in metrics)
    return "partly" if some else "not reproduced"


def merge(metrics: list[dict]) -> str:
    regained, recovered, kept = metrics
    if not _surely_positive(regained):
        return "not reproduced"
    return "reproduced" if recovered["value"] >= RECOVERED and kept["value"] >= KEPT else "partly"


def denoising(metrics: list[dict]) -> str:
    harm, gain = metrics
    if not _surely_positive(harm):
        return "not reproduced"
    repaired = harm["value"] >= HARM and _surely_positive(gain) and gain["value"] >= RETURNED * harm["value"]
    return "reproduced" if repaired else "partly"


RULES: dict[str, Callable[[list[dict]], str]] = {"all_above_zero": all_above_zero, "merge": merge, "denoising": denoising}


def judge_claims(load: Callable[[str], dict]) -> list[dict]:
    """Every claim with its verdict and the metrics it rests on; `load(stage)` gives a stage's metrics or {}."""
    judged = []
    for claim in load_claims():
        found = load(claim["stage"]) if claim["stage"] else {}
        metrics = {name: found[name] for name in claim["metrics"] if name in found}
        complete = bool(claim["metrics"]) and len(metrics) == len(claim["metrics"])
        verdict = RULES[claim["rule"]](list(metrics.values())) if complete else "not attempted"
        judged.append({**claim, "verdict": verdict, "metrics": metrics})
    return judged


def side_by_side(measured: dict[str, dict[str, dict]]) -> list[dict[str, str]]:
    """A row for each claim: what each profile measured, and the verdict on that; `measured` is profile -> stage -> metrics.

    A profile without any metrics is left out.
    """
    judged = {profile: judge_claims(lambda name, known=known: known.get(name, {}))
              for profile, known in measured.items() if known}
    rows = []
    for same in zip(*judged.values(), strict=True):
        row = {"claim": same[0]["claim"], "paper": same[0]["paper"]}
        for profile, claim in zip(judged, same, strict=True):
            told = [f"{name.replace('_', ' ')}: {metric_text(m)}" for name, m in claim["metrics"].items()]
            row |= {f"measured on {profile}": "; ".join(told) or "-", f"verdict on {profile}": claim["verdict"]}
        rows.append(row)
    return rows


def metric_text(metric: dict) -> str:
    """`0.12 [0.08, 0.16], n=200`, or `n=5 seeds`."""
    return f"{interval_text(metric)}, n={metric['n']}{' seeds' if metric.get('over') == 'seeds' else ''}"


def interval_text(metric: dict) -> str:
    """`0.12 [0.08, 0.16]`: shares with two decimals, and their interval where it is known."""
    if metric["ci_low"] is None or metric["ci_high"] is None:
        return f"{metric['value']:.2f}"
    return f"{metric['value']:.2f} [{metric['ci_low']:.2f}, {metric['ci_high']:.2f}]"
