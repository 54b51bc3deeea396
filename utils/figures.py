"""Panels of matrices, images and heat maps on matplotlib figures, rendered to (H, W, 3) uint8 pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.pictures import Array

DPI, AREA = 80, 12.0  # of a figure; square inches of an image's panel
LARGEST = 1500  # pixels a side, several times a panel's: matplotlib resamples in floating point, slowly


def new_figure(width: float, height: float) -> Any:
    """Return a figure of a size in inches that draws without a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def image_panels(number: int, *, size: tuple[int, int], columns: int) -> tuple[Any, list[Any]]:
    """Return a figure and its panels for `number` images of a size (H, W), as many in a row as `columns`."""
    lines, shape = -(-number // columns), min(max(size[0] / size[1], 1 / 3), 3)
    width, height = np.sqrt(AREA / shape), np.sqrt(AREA * shape)
    figure = new_figure(max(columns * (width + 0.5), 6), lines * (height + 0.5) + 0.5)
    panels = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for panel in panels[number:]:
        panel.set_axis_off()
    return figure, panels[:number]


def show(panel: Any, title: str, array: Array, *, bar: bool = False, **scale: Any) -> None:
    """Show an image or a matrix, with a colour bar where one is asked for; `scale` goes to imshow."""
    shown = panel.imshow(thinned(array), **scale)
    panel.set_title(title, fontsize=10)
    panel.set(xticks=[], yticks=[])
    if bar:
        colour_bar(panel, shown)


def thinned(array: Array) -> Array:
    """Return every k-th row and column of an array (H,W,...), so that neither side is above LARGEST."""
    step = -(-max(array.shape[:2]) // LARGEST)
    return array[::step, ::step]


def colour_bar(panel: Any, shown: Any) -> None:
    """Add a slim colour bar on the right of a panel."""
    panel.figure.colorbar(shown, ax=panel, shrink=0.85, aspect=25, pad=0.02).ax.tick_params(labelsize=8)


def show_heat(panel: Any, image: Array, weights: Array, *, asking: tuple[int, int]) -> None:
    """Lay weights (h,w) that sum to one over an image (H,W,3), red above equal weights and blue below.

    What is near to equal weights lets the image through; a cross marks the pixel (x, y) that asks.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    (height, width), (rows, columns) = image.shape[:2], weights.shape
    relative = np.maximum(weights * weights.size, 1e-30)
    limit = max(float(relative.max()), 1.01)
    scale = ScalarMappable(LogNorm(1 / limit, limit), "coolwarm")
    colours = scale.to_rgba(relative)  # (h,w,4)
    colours[..., 3] = 0.1 + 0.6 * np.minimum(np.abs(np.log(relative)) / np.log(limit), 1)
    # the corners of map and image coincide, as in every resampling of the network
    right, down = ((side - 1) / max(cells - 1, 1) / 2 for side, cells in ((width, columns), (height, rows)))
    frame = (-0.5, width - 0.5, height - 0.5, -0.5)
    panel.imshow(thinned(image).mean(2), extent=frame, cmap="gray", vmin=-60, vmax=255)
    panel.imshow(colours, extent=(-right, width - 1 + right, height - 1 + down, -down), interpolation="nearest")
    panel.plot(*asking, "+", color="black", markersize=15, markeredgewidth=4)
    panel.plot(*asking, "+", color="yellow", markersize=14, markeredgewidth=2)
    panel.set(xlim=frame[:2], ylim=frame[2:], xticks=[], yticks=[])
    bar = panel.figure.colorbar(scale, ax=panel, shrink=0.85, aspect=25, pad=0.02)
    ticks = limit ** np.array((-1, -0.5, 0, 0.5, 1))
    bar.set_ticks(ticks, labels=[f"{tick:.3g}x" for tick in ticks], fontsize=8)
    bar.minorticks_off()


def class_legend(figure: Any, entries: Sequence[tuple[str, Array]]) -> None:
    """Add the names of colours (3,) uint8 below the panels."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=tuple((np.asarray(colour) / 255).tolist()), label=name) for name, colour in entries]
    columns = max(1, int(figure.get_figwidth() / 1.4))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def render(figure: Any) -> Array:
    """Return the figure as (H, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
