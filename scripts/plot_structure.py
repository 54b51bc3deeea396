"""Plots DIIA's structure (network/diia.py) as docs/images/structure.png: `python -m scripts.plot_structure`.

The losses' weights and the style sites are read from the code and noted in the file, where a test sees a picture that
lags behind.
"""

from __future__ import annotations

import io
import json
from typing import Any

import config
from loss.criterion import WEIGHTS
from network import METHODS
from utils import REPOSITORY
from utils.pictures import render

FILE = REPOSITORY / "docs" / "images" / "structure.png"
BACKBONE, HEAD, EDGE, LAYOUT, ATTENTION, LOSS = "#dfe7f2", "#e6e6e6", "#d9efdc", "#efe3f6", "#fff1c9", "#f9d6cf"
LINE, SITE = "#3c4654", "#e07b39"
FORMULA = r"$\gamma\,\mathrm{softmax}(q\,k^\top)\,v + W x$"
# fmt: off
STAGES = (1.75, 3.05, 4.35, 5.65, 6.95)  # x of the stem and the stages
BOXES = (  # x, y of the centre, width, height, text, colour
    (STAGES[0], 3.3, 0.9, 2.0, "stem", BACKBONE), (STAGES[1], 3.3, 0.9, 1.65, "stage1\n1/4", BACKBONE),
    (STAGES[2], 3.3, 0.9, 1.35, "stage2\n1/8", BACKBONE), (STAGES[3], 3.3, 0.9, 1.1, "stage3\n1/16", BACKBONE),
    (STAGES[4], 3.3, 0.9, 1.1, "stage4\n1/16", BACKBONE), (5.65, 1.6, 1.05, 0.6, "aux head", HEAD),
    (4.7, 5.9, 1.7, 0.75, "edge encoder\n64 edge maps", EDGE),
    (7.4, 5.9, 1.7, 0.75, "edge decoder\nedge features", EDGE), (0.5, 3.3, 0.8, 2.0, "image", "white"),
    (7.0, 1.6, 1.2, 0.75, "coarse head\nASPP", HEAD), (8.65, 1.6, 1.3, 0.75, "coarse layout\nif confident", LAYOUT),
    (10.5, 1.6, 1.6, 0.75, "layout encoder\nlayout features", LAYOUT), (0.35, 0.15, 0.4, 0.24, "", LOSS),
    (9.75, 3.3, 2.3, 1.9, f"TIAM\ntriple aggregation\n\n{FORMULA}", ATTENTION),
    (12.2, 3.3, 1.3, 1.1, "final head\nASPP, skip\nfrom stage1", HEAD),
    (14.1, 3.3, 1.5, 1.1, "prediction\nfused +\n½ coarse", "white"),
)
TERMS = (  # of the loss: x, y of the centre, width, name, what it compares with
    (3.2, 1.6, 3.4, "whitening", "style-sensitive covariances → 0"), (5.65, 0.0, 1.25, "aux", "labels"),
    (4.7, 7.04, 2.5, "edge", "mean map ↔ Sobel of the image"), (7.4, 7.04, 1.75, "edge_logits", "labels"),
    (7.0, 0.0, 1.25, "coarse", "labels"), (10.5, 0.0, 1.75, "layout", "coarse layout"),
    (12.2, 2.05, 1.3, "fused", "labels"),
)
# polylines, of each its points: backbone; auxiliary head; ERM (stage1, edge maps, keys) and its terms; SLRM (queries);
# TIAM and the skip from stage1; prediction and its term. No gradient flows back along DASHED.
ARROWS = """
    0.9,3.3 1.3,3.3 | 2.2,3.3 2.6,3.3 | 3.5,3.3 3.9,3.3 | 4.8,3.3 5.2,3.3 | 6.1,3.3 6.5,3.3
  | 5.65,2.75 5.65,1.9 | 5.65,1.3 5.65,0.3
  | 2.9,4.12 2.9,5.9 3.85,5.9 | 5.55,5.9 6.55,5.9 | 8.25,5.9 9.7,5.9 9.7,4.25 | 4.7,6.27 4.7,6.75 | 7.4,6.27 7.4,6.75
  | 7.0,2.75 7.0,1.98 | 7.0,1.22 7.0,0.3 | 9.3,1.6 9.7,1.6 | 10.2,1.98 10.2,2.35 | 10.5,1.22 10.5,0.3
  | 7.4,3.3 8.6,3.3 | 10.9,3.3 11.55,3.3 | 3.2,4.12 3.2,5.1 12.2,5.1 12.2,3.85
  | 12.85,3.3 13.35,3.3 | 12.2,2.75 12.2,2.34
"""
DASHED = "7.6,1.6 8.0,1.6 | 0.12,-0.23 0.58,-0.23"
LEFT, ITALIC, BOLD = {"ha": "left"}, {"style": "italic"}, {"fontsize": 10, "weight": "bold"}
NOTES: tuple[tuple[float, float, str, dict[str, Any]], ...] = (  # x, y, text, font
    (9.78, 4.95, "key", LEFT | ITALIC), (10.3, 2.16, "query", LEFT | ITALIC), (8.05, 3.46, "value", ITALIC),
    (2.7, 6.5, "ERM\nedge reconstruction", BOLD), (12.9, 0.75, "SLRM\nsemantic layout reconstruction", BOLD),
    (0.7, 0.55, "style site: instance norm in training and evaluation", LEFT),
    (0.7, 0.15, "term of the loss × its weight, and its target", LEFT),  # noqa: RUF001
    (0.7, -0.23, "no gradient flows back", LEFT),
)
# fmt: on


def facts() -> dict[str, Any]:
    """Return the weight of each term of DIIA's loss and its style codes, as the published scripts have them."""
    return {**WEIGHTS["diia"], "whitening": config.cfg.WHITENING.REG_WEIGHT, "codes": list(METHODS["diia"].codes)}


def box(ax: Any, x: float, y: float, width: float, height: float, text: str, colour: str, fontsize: int = 9) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.09"
    ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, edgecolor=LINE, linewidth=1))
    ax.text(x, y, text, ha="center", va="center", fontsize=fontsize, linespacing=1.35)


def arrows(ax: Any, polylines: str, *, colour: str = LINE, style: Any = "-") -> None:
    head = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 10, "linewidth": 0}
    for polyline in polylines.split("|"):
        points = [tuple(map(float, point.split(","))) for point in polyline.split()]
        line = {"color": colour, "linewidth": 1.2, "linestyle": style}
        ax.plot(*zip(*points, strict=True), solid_joinstyle="round", solid_capstyle="butt", **line)
        ax.annotate("", xy=points[-1], xytext=points[-2], arrowprops=head)


def plot() -> bytes:
    """Return the picture as a PNG of few colours."""
    from matplotlib.figure import Figure
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    figure = Figure(figsize=(12.6, 6.6), dpi=130)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-0.1, 15.0), ylim=(-0.45, 7.45))
    ax.axis("off")
    for row in BOXES:
        box(ax, *row)
    for x, y, width, name, target in TERMS:
        box(ax, x, y, width, 0.58, f"{name} × {facts()[name]:g}\n{target}", LOSS, fontsize=8)  # noqa: RUF001
    arrows(ax, ARROWS)
    arrows(ax, DASHED, style=(0, (4, 2)))
    for x, y, text, font in NOTES:
        ax.text(x, y, text, **{"fontsize": 8, "color": LINE, "ha": "center", **font}, va="center", linespacing=1.3)
    codes = facts()["codes"][2:]  # ResNet-50 has one stem convolution
    sites = [x + 0.45 for x, code in zip(STAGES, codes, strict=True) if code == 2]
    for x, y in [*((x, 3.3) for x in sites), (0.35, 0.55)]:
        ax.plot(x, y, marker="D", markersize=8, color=SITE, markeredgecolor="white", zorder=5)
    for x in sites:
        arrows(ax, f"{x},3.2 {x},1.9", colour=SITE)
    (info := PngInfo()).add_text("facts", json.dumps(facts()))
    Image.fromarray(render(figure)).quantize(64).save(out := io.BytesIO(), "png", optimize=True, pnginfo=info)
    return out.getvalue()


if __name__ == "__main__":
    FILE.write_bytes(plot())
