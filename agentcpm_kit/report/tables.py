"""Tables of README.md, each made from committed evidence: results/reference/<profile>/ and results/reference/benchmarks/."""

import json
from collections.abc import Iterable, Sequence
from math import isnan

from ..evaluate.metrics import Estimate, mean
from ..files import read_jsonl
from ..world.tasks import FAMILIES
from .claims import interval_text, metric_text, side_by_side
from .doses import baseline, by_source, by_trial, difference, fits, harms, score
from .results import REPORTED, StageResult, committed, over_seeds, reference_folder


def markdown_table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (head, ["---"] * len(head), *rows))


def claims_table(_profile: str) -> str:
    """Markdown table of the committed reference runs of all profiles: over seeds, where several were kept."""
    found = side_by_side(_measured())
    names = {"claim": "claim of the paper", "paper": "reported"}
    rows = [(i, *(f"**{text}**" if "verdict" in column else text.replace("; ", "<br>") for column, text in row.items()))
            for i, row in enumerate(found, 1)]
    return markdown_table(["", *(names.get(column, column) for column in found[0])], rows)


def _measured() -> dict[str, dict[str, dict[str, dict]]]:
    """Profile -> stage -> metrics, of the profiles whose runs are committed."""
    stages = {name: committed(name) for name in REPORTED}
    return {name: over_seeds(kept) for name, kept in stages.items() if kept}


NUMBERS = [  # behind the claims, in the pipeline's order: stage, metric, what it is
    ("04_sft", "base_success_2hop", "base: tasks of two hops solved"),
    ("04_sft", "sft_success_2hop", "SFT: tasks of two hops solved"),
    ("04_sft", "base_general", "base: general items right"),
    ("04_sft", "sft_general", "SFT: general items right"),
    ("04_sft", "prose_loss_change", "SFT: what the loss on prose rises by, in nats per token"),
    ("05_merge", "merge_success_2hop", "SFT-Merge: tasks of two hops solved"),
    ("05_merge", "sft_general", "SFT: general items right, of the half for tests"),
    ("05_merge", "merge_general", "SFT-Merge: the same"),
    ("07_rl", "sft_merge_success", "before RL: tasks of RL solved at temperature 1"),
    *(("07_rl", f"{arm}_success", f"after RL with {arm} rewards") for arm in ("clean", "noisy", "denoised")),
    ("08_refine", "raw_success_at_0", "nobody condenses: solved on clean pages"),
    ("08_refine", "raw_success_at_{most}", "nobody condenses: solved on the most redundant pages ({levels} redundant sentences)"),
    *(("08_refine", f"{policy}_success_at_{{most}}", f"{who} condenses: the same")
      for policy, who in {"finetuned": "the fine-tuned base", "extract": "BM25", "oracle": "the oracle"}.items()),
    *(("09_passk", f"rl_pass_at_{k}", f"RL: pass@{k}") for k in (1, 8))]


def numbers_table(_profile: str) -> str:
    """Markdown table of what stands behind the claims, a column for each profile: over seeds, where several were kept."""
    found = _measured()
    most = {name: _most_redundant(stages) for name, stages in found.items()}

    def cell(profile: str, stage: str, metric: str) -> str:
        measured = found[profile].get(stage, {}).get(metric.format(most=most[profile]))
        return metric_text(measured) if measured else "-"

    levels = ", ".join(f"{name}: {level}" for name, level in most.items())
    rows = [(stage[:2], what.format(levels=levels), *(cell(profile, stage, metric) for profile in found))
            for stage, metric, what in NUMBERS]
    return markdown_table(["notebook", "what", *found], rows)


def _most_redundant(stages: dict[str, dict[str, dict]]) -> int:
    """Redundant sentences on a page where notebook 08 of this run had most of them."""
    level = "raw_success_at_"
    return max((int(name.removeprefix(level)) for name in stages.get("08_refine", {}) if name.startswith(level)), default=0)


def _merges(profile: str) -> list[StageResult]:
    return [s for s in committed(profile) if s.name == "05_merge"]


def merging_table(profile: str) -> str:
    """Markdown table of SFT and merging on test worlds, a row per seed and their mean."""
    stages = _merges(profile)
    columns = {"sft_success": "SFT: tasks solved", "sft_general": "general ability", "merge_success": "merge: tasks solved",
               "merge_general": "general ability", "recovered_share": "of the loss recovered", "kept_share": "of success kept"}
    rows = []
    for stage in stages:
        chosen = next(r["candidate"] for r in read_jsonl(stage.folder / "rows.jsonl") if r["kind"] == "chosen")
        rows.append((stage.seed.removeprefix("seed"), *(f"{stage.metrics[c]['value']:.2f}" for c in columns), chosen))
    combined = over_seeds(stages)["05_merge"]
    means = (f"**{interval_text(combined[c])}**" for c in columns)
    return markdown_table(["seed", *columns.values(), "chosen on validation worlds"], [*rows, ("mean", *means, "")])


ARMS = {"merge_one_run": "merge of one run and the base", "merge_two_runs": "merge of two runs and the base",
        "mean_two_runs": "mean of two runs, without the base", "lora": "LoRA, scaled", "kl": "SFT held near the base by KL",
        "replay": "SFT with replay"}


def arms_table(profile: str) -> str:
    """Markdown table of SFT and the ways to forget less that every seed tested, means over seeds."""
    return _arms(_merges(profile))


def baselines_table(profile: str) -> str:
    """The same with the baselines that train, of the seeds that were run with ``full``."""
    stages = [s for s in _merges(profile) if s.parameters.get("full")]
    return _arms(stages) if stages else "No seed was run with `-p full=true`."


def _arms(stages: list[StageResult]) -> str:
    measured = over_seeds(stages)["05_merge"]
    columns = {"success": "tasks solved", "general": "general ability", "recovered_share": "of the loss recovered",
               "kept_share": "of success kept"}
    sft = ("SFT", metric_text(measured["sft_success"]), metric_text(measured["sft_general"]), 0, 1)
    arms = [(name, *(metric_text(measured[f"{arm}_{c}"]) for c in columns))
            for arm, name in ARMS.items() if all(f"{arm}_success" in s.metrics for s in stages)]
    return markdown_table(["way", *columns.values()], [sft, *arms])


def settings_table(_profile: str) -> str:
    """Markdown table of benchmarks/sft_settings.py, the best agents first."""
    kinds = [f"{way}{what}" for way in ("", "by parts: ") for what in ("success", "general")]
    found = sorted(read_jsonl(reference_folder("benchmarks") / "sft_settings/rows.jsonl"), key=lambda r: -r["success"])
    rows = [(r["trial"], *(f"{r[kind]:.2f}" for kind in kinds)) for r in found]
    scores = ["tasks solved", "general ability"]
    return markdown_table(["setting of SFT", *scores, *(f"merged by parts: {score}" for score in scores)], rows)


def families_table(profile: str, seed: str = "seed0") -> str:
    """Markdown table of what notebook 01 measured on the eight families."""
    metrics = _stage(profile, "01_world", seed).metrics
    rows = [(f"`{family}`", *told, *(metric_text(metrics[f"{how}_{family}"]) for how in ("oracle", "closed_book", "first_hit")))
            for family, told in FAMILIES.items()]
    return markdown_table(["family", "stands in for", "skill", "oracle", "closed book", "first hit"], rows)


def costs_table(_profile: str) -> str:
    """Markdown table of benchmarks/world.py."""
    rows = [(f"{r['pages']:,}", r["build_s"], f"{r['peak_mb']:,}", r["query_median_ms"], r["query_p99_ms"])
            for r in read_jsonl(reference_folder("benchmarks") / "world/rows.jsonl")]
    return markdown_table(["pages", "build with index (s)", "peak memory (MB)", "query, median (ms)", "query, 99% (ms)"], rows)


def rollouts_table(_profile: str) -> str:
    """Markdown table of benchmarks/rollout.py."""
    found = json.loads((reference_folder("benchmarks") / "rollout/rollout.json").read_text())["rows"]
    rows = [(r["what"], r["episodes_per_s"], f"{r['tokens_per_s']:,.0f}", r["kit_is_faster"], f"{r['equal_answers']:.1%}")
            for r in found]
    return markdown_table(["who generates", "episodes/s", "tokens/s", "ours is faster by", "same answers"], rows)


RL_STARTS = {"SFT-Merge": ("sft_merge", ""), "SFT": ("sft", "_from_sft")}  # names of metrics: the start's, and arms' ending
RL_PAIRS = {"clean gain": ("clean", "before"), "noise harm": ("clean", "noisy"), "denoising gain": ("denoised", "noisy")}


def rl_table(profile: str) -> str:
    """Markdown table of notebook 07, a row per start and seed, and means: test tasks solved at temperature 1, and differences."""
    stages = [s for s in committed(profile) if s.name == "07_rl"]
    rows = []
    for start in RL_STARTS:
        found = {s.seed.removeprefix("seed"): scores for s in stages if (scores := _rl_scores(s, start))}
        rows += [(start, seed, *(f"{value:.2f}" for value in scores.values())) for seed, scores in found.items()]
        columns = zip(*(scores.values() for scores in found.values()), strict=True)
        rows += [(start, "mean", *(f"**{_short(mean(values))}**" for values in columns))] if found else []
    return markdown_table(["from", "seed", "before", "clean", "noisy", "denoised", *RL_PAIRS], rows)


def _rl_scores(stage: StageResult, start: str) -> dict[str, float]:
    """What each arm of one run from `start` solves, and the differences; nothing if no arm was trained from there."""
    before, ending = RL_STARTS[start]
    names = {"before": before} | {arm: arm + ending for arm in ("clean", "noisy", "denoised")}
    if f"{names['clean']}_success" not in stage.metrics:
        return {}
    scores = {arm: stage.metrics[f"{name}_success"]["value"] for arm, name in names.items()}
    return scores | {pair: scores[after] - scores[other] for pair, (after, other) in RL_PAIRS.items()}


def doses_table(_profile: str) -> str:
    """Markdown table of benchmarks/rl_trials.py: each source by learning rate, at two doses and on average over all.

    The source "none" is the control: what the rules alone add to clean rewards.
    """
    found = read_jsonl(reference_folder("benchmarks") / "rl_trials/rows.jsonl")
    cells, rows = harms(found), []
    for control in cells[cells.dose == 0].itertuples():
        rows.append(("none", f"{control.rate:g} x", control.seeds, *"----", f"{_short(control.returned)} (the rules alone)", "-",
                     f"{control.collapsed:.0%} / {control.collapsed_denoised:.0%}"))
    at = cells.set_index(["source", "rate", "dose"]).harm
    for line in by_source(found).itertuples():
        single = [_short(at[key]) if (key := (line.source, line.rate, dose)) in at.index else "-" for dose in (0.2, 0.8)]
        begin, share = "-" if isnan(line.hurts_from) else f"{line.hurts_from:g}", _short(line.share) if line.share else "-"
        rows.append((line.source.replace("_", " "), f"{line.rate:g} x", line.seeds, begin, *single, _short(line.harm),
                     _short(line.returned), share, f"{line.collapsed:.0%} / {line.collapsed_denoised:.0%}"))
    return markdown_table(["source", "learning rate", "seeds", "hurts from", "harm at 0.2", "harm at 0.8", "mean harm of doses",
                           "denoising returns", "share of harm", "runs collapsed, undenoised / denoised"], rows)


def _short(estimate: Estimate) -> str:
    return interval_text(estimate.fields())


def trials_table(_profile: str) -> str:
    """Markdown table of the other trials of benchmarks/rl_trials.py: rules, the public code's defects, losses."""
    found = read_jsonl(reference_folder("benchmarks") / "rl_trials/rows.jsonl")
    known, fit_at = {r["experiment"] for r in found}, fits(found)
    starts = [r["score"] for r in found if r["experiment"] == "start"]
    rows = [("-", "before RL", len(starts), _short(mean(starts)), "")]
    for experiment in [e for e in ("rules", "collapse", "published", "losses") if e in known]:
        by_name = by_trial(found, experiment)
        for name, lines in by_name.items():
            fit, other = fit_at[lines.rate.iloc[0]], baseline(experiment, name)
            against = "" if other == name else f"{_short(difference(lines, by_name[other], fit))} (- {other})"
            rows.append((experiment, name, len(lines), _short(score(lines, fit)), against))
    return markdown_table(["experiment", "trial", "seeds", "tasks solved", "difference"], rows)


def times_table(_profile: str) -> str:
    """Markdown table of how long the committed run of `small` took beside what was estimated before it, and its memory."""
    stages = [(s.name, s.read("env.json")) for s in committed("small")]
    rows = [(f"`{name}`", _minutes(env.get("estimated_s")), _minutes(env["seconds"]), env["peak_memory_gb"])
            for name, env in stages]
    guess, truth = ([env[key] for _, env in stages if env.get("estimated_s")] for key in ("estimated_s", "seconds"))
    total = ("all that were estimated", _minutes(sum(guess)), _minutes(sum(truth)), max((row[-1] for row in rows), default="-"))
    return markdown_table(["stage", "estimated (min)", "took (min)", "peak memory (GB)"], [*rows, total])


def _minutes(seconds: float | None) -> str:
    return f"{seconds / 60:.1f}" if seconds is not None else "-"


def engines_table(_profile: str) -> str:
    """Markdown table of benchmarks/engines.py."""
    found = json.loads((reference_folder("benchmarks") / "engines.json").read_text())["rows"]
    rows = [(r["engine"], r["episodes_per_s"], r["tokens_per_s"], r["faster_by"], f"{r['equal_answers']:.1%}", r["start_s"])
            for r in found]
    return markdown_table(["engine", "episodes/s", "tokens/s", "faster by", "same greedy answers", "start (s)"], rows)


MODELS = {"base": "base", "SFT": "sft", "SFT-Merge": "sft_merge", "RL": "rl"}  # names of models, and of their metrics


def passk_table(profile: str, seed: str = "seed0") -> str:
    """Markdown table of notebook 09: pass@k and the majority vote of each model."""
    metrics = _stage(profile, "09_passk", seed).metrics
    ks = sorted(int(name.removeprefix("base_pass_at_")) for name in metrics if name.startswith("base_pass_at_"))
    columns = {**{f"pass@{k}": f"pass_at_{k}" for k in ks if k in (1, 4, 16, 64)}, f"maj@{ks[-1]}": "majority"}
    rows = [(name, *(interval_text(metrics[f"{key}_{column}"]) for column in columns.values())) for name, key in MODELS.items()]
    return markdown_table(["model", *columns], rows)


def table1_table(_profile: str, seed: str = "seed0") -> str:
    """Markdown table of notebook 10, of all profiles: the counterpart of the paper's Table 1, a row per family."""
    found = {name: stage.metrics for name in REPORTED if (stage := _stage(name, "10_claims", seed))}
    head = [f"{name}: {what}" for name in found for what in (*MODELS, "tasks")]
    rows = [(f"`{family}`", FAMILIES[family][0] if family in FAMILIES else "(what the models learned)",
             *(cell for metrics in found.values() for cell in _scores(metrics, family))) for family in (*FAMILIES, "plain")]
    return markdown_table(["family", "stands in for", *head], rows)


def _scores(metrics: dict[str, dict], family: str) -> list[str]:
    """Of each model, and the number of tasks."""
    return [*(interval_text(metrics[f"{key}_{family}"]) for key in MODELS.values()), str(metrics[f"rl_{family}"]["n"])]


def _stage(profile: str, name: str, seed: str) -> StageResult | None:
    return next((s for s in committed(profile) if (s.name, s.seed) == (name, seed)), None)


TABLES = {"claims": claims_table, "numbers": numbers_table, "merging": merging_table, "arms": arms_table,
          "baselines": baselines_table, "settings": settings_table, "rl": rl_table, "doses": doses_table,
          "trials": trials_table, "families": families_table, "costs": costs_table, "rollouts": rollouts_table,
          "engines": engines_table, "times": times_table, "passk": passk_table, "table1": table1_table}
