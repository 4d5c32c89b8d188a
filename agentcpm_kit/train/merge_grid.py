"""The map of claim 2: which merges are tried, how one is chosen, and how much of what was lost it returns.

The paper publishes neither its method nor its weights; the grid and the rule of choice are our assumption. Only
validation worlds and half of the general items are looked at before the choice.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..sections import Merge
from .merge import base_and_tuned, merge_config
from .merge_methods import Value, methods, parameters_of

WHOLE = "whole"  # no part of the model is treated differently
FOR_PAIRS = ("slerp", "nuslerp", "nearswap", "arcee_fusion")
FOR_SEVERAL = ("model_stock", "ram", "ramplus_tl", "sce")  # with one difference alone they return the tuned model, or refuse


@dataclass(frozen=True)
class Candidate:
    """One merge of the map.

    `tuned` models are merged with the base. `parts` names a recipe that trims each part of the model in its own way
    (`merge.parts` of the profile), and `scale` is what the trimmed difference is multiplied by (mergekit's lambda).
    """

    method: str
    share: float = 1.0
    density: float = 1.0
    parts: str = WHOLE
    scale: float = 1.0
    tuned: int = 1

    @property
    def name(self) -> str:
        knobs = [f"{self.share:g}"] if "t" in (known := parameters_of(self.method)) or "weight" in known else []
        knobs += [f"density {self.density:g}"] if self.density < 1 else []
        knobs += [f"{self.parts} x{self.scale:g}"] if self.parts != WHOLE else []
        knobs += [f"of {self.tuned}"] if self.tuned > 1 else []
        return " ".join([self.method, *knobs])

    def fields(self) -> dict:
        return {"candidate": self.name, **asdict(self)}


def whole_model_candidates(settings: Merge, tuned: int = 1, every: bool = False) -> list[Candidate]:
    """Every method, with every share and density of the profile where it has such knobs.

    Args:
        tuned: how many models are merged with the base.
        every: all of mergekit's methods, not only those that the profile names.
    """
    found = []
    for method in methods() if every else settings.methods:
        known = parameters_of(method)
        shares = settings.weights if {"weight", "t"} & set(known) else [1.0]
        densities = settings.densities if "density" in known else [1.0]
        if method not in (FOR_SEVERAL if tuned == 1 else FOR_PAIRS):
            found += [Candidate(method, share, density, tuned=tuned) for share in shares for density in densities]
    return found


def part_candidates(settings: Merge, tuned: int = 1) -> list[Candidate]:
    """TIES with a density and a weight for each part of the model, and the trimmed difference scaled."""
    return [Candidate("ties", parts=parts, scale=scale, tuned=tuned) for parts in settings.parts for scale in settings.scales]


def candidate_config(candidate: Candidate, base: Path, tuned: Sequence[Path], settings: Merge, dtype: str) -> dict:
    """mergekit's configuration for a candidate, which takes as many of `tuned` as it merges."""
    tuned = tuned[: candidate.tuned]
    if candidate.parts == WHOLE:
        return base_and_tuned(candidate.method, base, tuned, candidate.share, candidate.density, dtype)
    trims, share = settings.parts[candidate.parts], candidate.share / len(tuned)
    weights = [by_part({part: share * trim.weight for part, trim in trims.items()}, share) for _ in tuned]
    densities = by_part({part: trim.density for part, trim in trims.items()})
    return merge_config(candidate.method, tuned, base, weights, dtype, density=densities, **{"lambda": candidate.scale})


def by_part(values: dict[str, float], elsewhere: float = 1.0) -> Value:
    """mergekit's list of filters: the first whose text a tensor's name contains gives its value."""
    return [*({"filter": part, "value": value} for part, value in values.items()), {"value": elsewhere}]


def without_part(part: str, base: Path, tuned: Path, dtype: str) -> dict:
    """The tuned model with one part given back to the base: what does that part hold?"""
    return merge_config("task_arithmetic", [tuned], base, [by_part({part: 0.0})], dtype)


def rank(rows: Sequence[dict], sft_success: float, keep_share: float) -> list[dict]:
    """Rows (with ``success`` and ``general``) from the best: those that keep `keep_share` of SFT's success, by general ability;
    then the others, by success."""
    def order(row: dict) -> tuple:
        enough = row["success"] >= keep_share * sft_success
        return (enough, row["general"] if enough else row["success"])

    return sorted(rows, key=order, reverse=True)
