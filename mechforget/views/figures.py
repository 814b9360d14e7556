"""Figures for papers: the same tables as the report, as PNG, SVG or PDF."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

LOSS, NONE, GAIN = "#2166ac", "#f7f7f7", "#b35806"  # distinct without red and green cones
LABELS = {"restore": "restore: post takes pre's", "break": "break: pre takes post's"}


def head_map(summary: "xr.Dataset", title: str, unit: str = "nats") -> "Figure":
    """Effect by layer and head, both directions, one colour scale; a dot where significant.

    summary: `effect` and `significant` (direction, layer, head), as `statistics.summarise` gives.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    colours = LinearSegmentedColormap.from_list("change", [LOSS, NONE, GAIN])
    limit = float(abs(summary.effect).max()) or 1.0
    directions = [str(d) for d in summary.direction.values]
    layers, heads = summary.sizes["layer"], summary.sizes["head"]
    size = (max(4, 0.28 * layers + 2), max(1.6, 0.22 * heads + 0.9) * len(directions))
    figure = Figure(figsize=size, layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(directions), sharex=True))
    for ax, direction in zip(axes, directions, strict=True):
        here = summary.sel(direction=direction).transpose("head", "layer", ...)
        image = ax.imshow(here.effect, cmap=colours, vmin=-limit, vmax=limit, aspect="auto")
        head, layer = np.nonzero(here.significant.values)
        ax.plot(layer, head, "o", ms=3, color="black", mec="white", mew=0.5)
        ax.set(title=LABELS.get(direction, direction), ylabel="head", yticks=range(heads))
        figure.colorbar(image, ax=ax, label=unit)
    axes[-1].set(xlabel="layer")
    figure.suptitle(title)
    return figure


def ranked(summary: "xr.Dataset", title: str, n: int = 12, floor: float = 0.0) -> "Figure":
    """The n strongest heads with their 95 % intervals; the band is the noise floor.

    summary: `effect`, `low`, `high` (layer, head).
    """
    from matplotlib.figure import Figure

    flat = summary.stack(at=("layer", "head"))
    best = np.argsort(-abs(flat.effect.values))[:n][::-1]
    figure = Figure(figsize=(5, 0.28 * len(best) + 1.2), layout="constrained")
    ax = figure.subplots()
    ax.axvspan(-floor, floor, color="0.9", label=f"noise floor ±{floor:.2g}")
    effect, low, high = (flat[k].values[best] for k in ("effect", "low", "high"))
    error = np.nan_to_num(np.abs(np.stack([effect - low, high - effect])))
    ax.errorbar(effect, range(len(best)), xerr=error, fmt="o", color=GAIN, ms=4, lw=1.2)
    ax.axvline(0, color="0.5", lw=0.8)
    names = ["L{}H{}".format(*flat["at"].values[i]) for i in best]
    ax.set(yticks=range(len(best)), yticklabels=names, xlabel="nats, 95 % interval", title=title)
    if floor:
        ax.legend(frameon=False, fontsize=8)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Format by suffix: .png, .svg, .pdf."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
