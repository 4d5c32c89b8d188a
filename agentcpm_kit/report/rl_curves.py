"""Learning curves of notebook 07 over seeds: those of this machine's runs, and of the committed ones where a seed was not run."""

from collections.abc import Sequence

import pandas as pd

from ..files import read_jsonl
from .figures import COLOURS, MARKS, new_figure, smoothed
from .results import with_reference

FROM_SFT = ", from SFT"  # what a curve's name ends with, if the arm did not start from the merge


def curves(stage) -> pd.DataFrame:
    """One line per seed, curve and step: of this stage as it stands, of other seeds' finished ones, and of the committed ones.

    A step that a resumed run logged again counts once.
    """
    folders = {found.seed: found.folder for found in with_reference(stage.profile.name) if found.name == stage.name}
    frames = []
    for seed, folder in sorted((folders | {f"seed{stage.seed}": stage.folder}).items()):
        rows = [row for row in read_jsonl(folder / "rows.jsonl") if row["kind"] == "step"]
        frames.append(pd.DataFrame(rows).drop_duplicates(["curve", "step"], keep="last").assign(seed=seed))
    return pd.concat(frames).sort_values(["seed", "curve", "step"])


def draw_over_seeds(found: pd.DataFrame, arms: Sequence[str]):
    """True success of the rollouts by step: faint a line per seed, strong their mean; a panel per start."""
    panels = {"from SFT-Merge": "", "from SFT": FROM_SFT}
    panels = {title: ending for title, ending in panels.items() if any(found.curve == arms[0] + ending)}
    figure, axes = new_figure(len(panels), sharey=True)
    for ax, (title, ending) in zip([axes] if len(panels) == 1 else axes, panels.items(), strict=True):
        for i, arm in enumerate(arms):
            table = found[found.curve == arm + ending].pivot(index="step", columns="seed", values="success")
            for seed in table:
                run = table[seed].dropna()
                ax.plot(run.index, smoothed(run.tolist()), color=COLOURS[i], alpha=0.25, linewidth=1)
            together = table.dropna()  # the mean ends where a seed's run stopped
            ax.plot(together.index, smoothed(together.mean(axis=1).tolist()), color=COLOURS[i], linewidth=2, marker=MARKS[i],
                    markevery=4, label=f"{arm} ({table.shape[1]} seeds)")
        ax.set(xlabel="step", title=title)
        ax.legend(fontsize=9)
    (axes if len(panels) == 1 else axes[0]).set_ylabel("true success of rollouts (smoothed)")
    return figure
