"""Figures in one style: readable in grey and at half width, drawn from rows and metrics on disk, intervals shown."""

import math
from collections.abc import Sequence
from pathlib import Path

MOST_BYTES = 100_000
STYLE = {"figure.figsize": (6.4, 3.4), "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.alpha": 0.25, "font.size": 10, "axes.axisbelow": True, "legend.frameon": False}
# Dark to light in grey print, apart for colour-blind readers (Okabe and Ito).
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKS = ["o", "s", "^", "D", "v", "P"]


def new_figure(columns: int = 1, rows: int = 1, **options):
    """A figure and its axes in the kit's style; nothing is drawn on a screen, and a cell shows it by naming it."""
    import matplotlib

    if matplotlib.get_backend().lower() not in ("agg", "inline") and "inline" not in matplotlib.get_backend():
        matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        width = 6.4 if columns == 1 else min(12.0, 4.6 * columns)
        options.setdefault("figsize", (width, 3.4))
        figure, axes = pyplot.subplots(rows, columns, **options, layout="constrained")
    pyplot.close(figure)  # pyplot forgets it: else Jupyter shows it a second time at the end of the cell
    return figure, axes


def save_figure(figure, path: Path) -> Path:
    """Save as PNG with a palette (a third of the bytes), as finely as `MOST_BYTES` allows."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    for dpi in (130, 100, 75, 50):
        figure.savefig(path, dpi=dpi, bbox_inches="tight")
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            break
    return path


def interval(metric: dict) -> tuple[float, float]:
    """Lengths of the two arms of an error bar; 0 where the interval is unknown."""
    low, high, value = metric.get("ci_low"), metric.get("ci_high"), metric["value"]
    return tuple(0.0 if x is None or math.isnan(x) else max(0.0, d) for x, d in
                 ((low, value - (low or 0.0)), (high, (high or 0.0) - value)))


def bars(axes, labels: Sequence[str], metrics: Sequence[dict], ylabel: str, colours: Sequence[str] | None = None) -> None:
    """Zero-based bars with 95% intervals and the value above each; `metrics` as in metrics.json."""
    arms = list(zip(*map(interval, metrics), strict=True))
    colours = colours or [COLOURS[i % len(COLOURS)] for i in range(len(metrics))]
    axes.bar(range(len(labels)), [m["value"] for m in metrics], yerr=arms, color=colours, width=0.62, capsize=4)
    for i, (m, arm) in enumerate(zip(metrics, arms[1], strict=True)):
        axes.text(i, m["value"] + arm + 0.015, f"{m['value']:.2f}", ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylabel(ylabel)
    axes.set_ylim(bottom=0)


def grouped_bars(axes, groups: Sequence[str], series: dict[str, Sequence[dict]], ylabel: str) -> None:
    """One cluster per group, one bar per series."""
    width = 0.8 / len(series)
    for j, (name, metrics) in enumerate(series.items()):
        x = [i - 0.4 + width * (j + 0.5) for i in range(len(groups))]
        arms = list(zip(*map(interval, metrics), strict=True))
        axes.bar(x, [m["value"] for m in metrics], width * 0.92, yerr=arms, capsize=3, label=name, color=COLOURS[j])
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(ylabel)
    axes.set_ylim(0, 1.05)
    axes.legend(fontsize=9, ncols=len(series), loc="lower center", bbox_to_anchor=(0.5, 1.0))  # above: bars reach the top


def curve(axes, points: Sequence[dict], label: str, number: int = 0) -> None:
    """Points with error bars, joined; `points` hold x and the fields of a metric."""
    arms = list(zip(*map(interval, points), strict=True))
    axes.errorbar([p["x"] for p in points], [p["value"] for p in points], yerr=arms, label=label, capsize=3,
                  color=COLOURS[number % 6], marker=MARKS[number % 6], markersize=5)


def smoothed(values: Sequence[float], share: float = 0.6) -> list[float]:
    """Exponential moving average, the first value as its start."""
    out: list[float] = []
    for value in values:
        out.append(value if not out else share * out[-1] + (1 - share) * value)
    return out


def raw_and_smooth(axes, x: Sequence[float], y: Sequence[float], label: str, number: int = 0) -> None:
    """The raw curve faint, the smoothed one on top."""
    colour = COLOURS[number % 6]
    axes.plot(x, y, color=colour, alpha=0.25, linewidth=1)
    axes.plot(x, smoothed(y), color=colour, linewidth=2, label=label)
