"""Plots DIIA's structure (network/diia.py) as docs/images/structure.png: `python -m scripts.plot_structure`.

The losses' weights and the style sites are read from the code and noted in the file, where a test sees a picture that
lags behind.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import config
from loss.criterion import WEIGHTS
from network import METHODS
from utils.pictures import render

FILE = Path(__file__).parents[1] / "docs" / "images" / "structure.png"
BACKBONE, HEAD, EDGE, LAYOUT, ATTENTION, LOSS = "#dfe7f2", "#e6e6e6", "#d9efdc", "#efe3f6", "#fff1c9", "#f9d6cf"
LINE, SITE = "#3c4654", "#e07b39"


def facts() -> dict[str, Any]:
    """Return the weight of each term of DIIA's loss and its style codes, as the published scripts have them."""
    return {**WEIGHTS["diia"], "whitening": config.cfg.WHITENING.REG_WEIGHT, "codes": list(METHODS["diia"].codes)}


def box(ax: Any, centre: tuple[float, float], size: tuple[float, float], text: str, colour: str, **font: Any) -> None:
    from matplotlib.patches import FancyBboxPatch

    (x, y), (width, height) = centre, size
    corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.09"
    ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, edgecolor=LINE, linewidth=1))
    ax.text(x, y, text, ha="center", va="center", **{"fontsize": 9, "linespacing": 1.35, **font})


def arrow(ax: Any, *points: tuple[float, float], colour: str = LINE, dashed: bool = False) -> None:
    """Draw a polyline with a head at its end."""
    line = {"color": colour, "linewidth": 1.2, "linestyle": (0, (4, 2)) if dashed else "-"}
    ax.plot(*zip(*points, strict=True), solid_joinstyle="round", solid_capstyle="butt", **line)
    head = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 10, "linewidth": 0}
    ax.annotate("", xy=points[-1], xytext=points[-2], arrowprops=head)


def term(ax: Any, centre: tuple[float, float], name: str, target: str, *, width: float = 1.75) -> None:
    """Draw a term of the loss: its name and weight, and what it compares with."""
    text = f"{name} × {facts()[name]:g}\n{target}"  # noqa: RUF001
    box(ax, centre, (width, 0.58), text, LOSS, fontsize=8)


def note(ax: Any, x: float, y: float, text: str, **font: Any) -> None:
    ax.text(x, y, text, **{"fontsize": 8, "color": LINE, "ha": "center", "va": "center", "linespacing": 1.3, **font})


def plot_backbone(ax: Any) -> None:
    """Draw the stages with their style sites, the whitening loss and the auxiliary head."""
    heights, places = (2.0, 1.65, 1.35, 1.1, 1.1), (1.75, 3.05, 4.35, 5.65, 6.95)
    names = ("stem", "stage1\n1/4", "stage2\n1/8", "stage3\n1/16", "stage4\n1/16")
    box(ax, (0.5, 3.3), (0.8, 2.0), "image", "white")
    arrow(ax, (0.9, 3.3), (1.3, 3.3))
    codes = facts()["codes"][2:]  # ResNet-50 has one stem convolution
    for x, height, name, code in zip(places, heights, names, codes, strict=True):
        box(ax, (x, 3.3), (0.9, height), name, BACKBONE)
        if x != places[-1]:
            arrow(ax, (x + 0.45, 3.3), (x + 0.85, 3.3))
        if code == 2:
            ax.plot(x + 0.45, 3.3, marker="D", markersize=8, color=SITE, markeredgecolor="white", zorder=5)
            arrow(ax, (x + 0.45, 3.2), (x + 0.45, 1.9), colour=SITE)
    term(ax, (3.2, 1.6), "whitening", "style-sensitive covariances → 0", width=3.4)
    arrow(ax, (5.65, 2.75), (5.65, 1.9))
    box(ax, (5.65, 1.6), (1.05, 0.6), "aux head", HEAD)
    arrow(ax, (5.65, 1.3), (5.65, 0.3))
    term(ax, (5.65, 0.0), "aux", "labels", width=1.25)


def plot_edge_branch(ax: Any) -> None:
    """Draw ERM: stage1 -> edge maps -> edge features, the keys."""
    arrow(ax, (2.9, 4.12), (2.9, 5.9), (3.85, 5.9))
    box(ax, (4.7, 5.9), (1.7, 0.75), "edge encoder\n64 edge maps", EDGE)
    arrow(ax, (5.55, 5.9), (6.55, 5.9))
    box(ax, (7.4, 5.9), (1.7, 0.75), "edge decoder\nedge features", EDGE)
    arrow(ax, (4.7, 6.27), (4.7, 6.75))
    term(ax, (4.7, 7.04), "edge", "mean map ↔ Sobel of the image", width=2.5)
    arrow(ax, (7.4, 6.27), (7.4, 6.75))
    term(ax, (7.4, 7.04), "edge_logits", "labels")
    arrow(ax, (8.25, 5.9), (9.7, 5.9), (9.7, 4.25))
    note(ax, 9.78, 4.95, "key", ha="left", style="italic")
    note(ax, 2.7, 6.5, "ERM\nedge reconstruction", fontsize=10, weight="bold")


def plot_layout_branch(ax: Any) -> None:
    """Draw the coarse head and SLRM: coarse layout -> layout features, the queries."""
    arrow(ax, (7.0, 2.75), (7.0, 1.98))
    box(ax, (7.0, 1.6), (1.2, 0.75), "coarse head\nASPP", HEAD)
    arrow(ax, (7.0, 1.22), (7.0, 0.3))
    term(ax, (7.0, 0.0), "coarse", "labels", width=1.25)
    arrow(ax, (7.6, 1.6), (8.0, 1.6), dashed=True)
    box(ax, (8.65, 1.6), (1.3, 0.75), "coarse layout\nif confident", LAYOUT)
    arrow(ax, (9.3, 1.6), (9.7, 1.6))
    box(ax, (10.5, 1.6), (1.6, 0.75), "layout encoder\nlayout features", LAYOUT)
    arrow(ax, (10.2, 1.98), (10.2, 2.35))
    note(ax, 10.3, 2.16, "query", ha="left", style="italic")
    arrow(ax, (10.5, 1.22), (10.5, 0.3))
    term(ax, (10.5, 0.0), "layout", "coarse layout")
    note(ax, 12.9, 0.75, "SLRM\nsemantic layout reconstruction", fontsize=10, weight="bold")


def plot_aggregation(ax: Any) -> None:
    """Draw TIAM, the final head with its skip, and the prediction."""
    arrow(ax, (7.4, 3.3), (8.6, 3.3))
    note(ax, 8.05, 3.46, "value", style="italic")
    formula = r"$\gamma\,\mathrm{softmax}(q\,k^\top)\,v + W x$"
    box(ax, (9.75, 3.3), (2.3, 1.9), f"TIAM\ntriple aggregation\n\n{formula}", ATTENTION)
    arrow(ax, (10.9, 3.3), (11.55, 3.3))
    box(ax, (12.2, 3.3), (1.3, 1.1), "final head\nASPP, skip\nfrom stage1", HEAD)
    arrow(ax, (3.2, 4.12), (3.2, 5.1), (12.2, 5.1), (12.2, 3.85))
    arrow(ax, (12.85, 3.3), (13.35, 3.3))
    arrow(ax, (12.2, 2.75), (12.2, 2.34))
    term(ax, (12.2, 2.05), "fused", "labels", width=1.3)
    box(ax, (14.1, 3.3), (1.5, 1.1), "prediction\nfused +\n½ coarse", "white")


def plot_legend(ax: Any) -> None:
    ax.plot(0.35, 0.55, marker="D", markersize=8, color=SITE, markeredgecolor="white")
    note(ax, 0.7, 0.55, "style site: instance norm in training and evaluation", ha="left")
    box(ax, (0.35, 0.15), (0.4, 0.24), "", LOSS)
    note(ax, 0.7, 0.15, "term of the loss × its weight, and its target", ha="left")  # noqa: RUF001
    arrow(ax, (0.12, -0.23), (0.58, -0.23), dashed=True)
    note(ax, 0.7, -0.23, "no gradient flows back", ha="left")


def plot() -> bytes:
    """Return the picture as a PNG of few colours."""
    from matplotlib.figure import Figure
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    figure = Figure(figsize=(12.6, 6.6), dpi=130)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-0.1, 15.0), ylim=(-0.45, 7.45))
    ax.axis("off")
    for part in (plot_backbone, plot_edge_branch, plot_layout_branch, plot_aggregation, plot_legend):
        part(ax)
    (info := PngInfo()).add_text("facts", json.dumps(facts()))
    Image.fromarray(render(figure)).quantize(64).save(out := io.BytesIO(), "png", optimize=True, pnginfo=info)
    return out.getvalue()


if __name__ == "__main__":
    FILE.write_bytes(plot())
