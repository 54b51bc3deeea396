"""Pictures of label maps and predictions by Pillow, and panels of matrices, images and heat maps by matplotlib.

Letters: H, W pixels; K classes; N images. All images are uint8 RGB.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils import IGNORE
from utils.files import write
from utils.parallel import opencv

Array = np.ndarray[Any, np.dtype[Any]]
Row = tuple[Array, Array, Array]


class Picture(NamedTuple):
    """A picture (H, W, 3) uint8 with its tag for TensorBoard and its file below the folder of pictures."""

    tag: str
    file: str
    image: Array


COLUMNS = ("image", "truth", "prediction", "errors")
WRONG = (230, 40, 30)
MARGIN, HATCH = 8, 6
INK, PAPER = (20, 20, 20), (255, 255, 255)
MAX_COLUMN, MIN_COLUMN = 640, 160
DPI, AREA = 80, 12.0  # of a figure; square inches of an image's panel
_font: Any = ImageFont.load_default
LARGEST = 1500  # pixels a side, several times a panel's: matplotlib resamples in floating point, slowly


def colorize(label: Array, *, palette: Array) -> Array:
    """Map class numbers (H, W) to colours (H, W, 3) uint8; numbers outside the palette (K, 3) are black."""
    label, palette = np.asarray(label), np.asarray(palette, np.uint8)
    table = np.concatenate((palette, np.zeros((1, 3), np.uint8)))
    inside = (label >= 0) & (label < len(palette))
    return np.asarray(table[np.where(inside, label, len(palette))])


def overlay(image: Array, label: Array, *, palette: Array, alpha: float = 0.5) -> Array:
    """Lay the colours of a label (H, W) over an image (H, W, 3) uint8; pixels of no class are darkened and hatched."""
    mixed: Array = opencv().addWeighted(image, 1 - alpha, colorize(label, palette=palette), alpha, 0)  # (H, W, 3)
    rows, columns = np.nonzero((label < 0) | (label >= len(palette)))
    hatch = 70 * ((rows + columns) % HATCH < 1)
    mixed[rows, columns] = (0.4 * image[rows, columns] + hatch[:, None]).round().astype(np.uint8)
    return mixed


def stretched(values: Array) -> Array:
    """Return values (H, W) as grey (H, W) uint8, black and white at their 0.5th and 99.5th percentile."""
    low, high = np.percentile(values, (0.5, 99.5))
    grey: Array = np.clip((values - low) * (255 / max(high - low, 1e-6)), 0, 255).round().astype(np.uint8)
    return grey


def error_map(image: Array, truth: Array, prediction: Array) -> Array:
    """Return (H, W, 3) uint8: right pixels as a dark grey image, wrong ones red, ignored ones black."""
    grey = np.asarray(image, np.float32) @ np.array((0.299, 0.587, 0.114), np.float32)  # (H, W)
    errors = np.repeat((30 + 0.45 * grey)[..., None], 3, axis=2).astype(np.uint8)
    errors[truth != prediction] = WRONG
    errors[truth == IGNORE] = 0
    return errors


def comparison(rows: Sequence[Row], *, palette: Array, class_names: Sequence[str]) -> Array:
    """Draw image, truth, prediction and errors side by side, one row per frame, with column names and a legend.

    Args:
        rows: (image (H, W, 3) uint8, truth (H, W), prediction (H, W)), one at least; sizes may differ between rows.
        palette: (K, 3) uint8, one colour per class.
        class_names: K names; the legend shows those that occur.

    Returns (H', W', 3) uint8.
    """
    width = int(np.clip(max(image.shape[1] for image, _, _ in rows), MIN_COLUMN, MAX_COLUMN))
    size, present = max(13, width // 26), set[int]()  # of the letters
    strips = [_strip(4, width, size + 2 * MARGIN, texts=[(name, MARGIN // 2) for name in COLUMNS], size=size)]
    for image, truth, prediction in rows:
        # Ignored pixels are black in the prediction too, so that the eye compares only what is scored.
        shown = np.where(truth == IGNORE, IGNORE, prediction)
        coloured = [colorize(label, palette=palette) for label in (truth, shown)]
        arrays = (image, *coloured, error_map(image, truth, prediction))
        cells = [_scaled(array, width, smooth=array is image) for array in arrays]
        strips.append(_strip(4, width, cells[0].height + MARGIN, cells=cells))
        present.update(np.unique([truth, shown]).tolist())
    classes = zip(class_names, palette, strict=False)
    entries: list[tuple[str, Any]] = [entry for index, entry in enumerate(classes) if index in present]
    entries += [("wrong", WRONG), ("ignored", (0, 0, 0))]
    return stacked([*strips, legend(entries, width=strips[0].width, size=size)])


def contact_sheet(images: Sequence[Array], *, columns: int, captions: Sequence[str] = (), width: int = 320) -> Array:
    """Lay one or more images (N of (H, W, 3) uint8, any sizes) out on a grid of a common width, captions below."""
    cells, columns = [_scaled(image, width, smooth=True) for image in images], min(columns, len(images))
    strips = []
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        texts = [(text, MARGIN + cell.height + 2) for text, cell in zip(captions[start:], row, strict=False)]
        height = max(cell.height for cell in row) + MARGIN + (20 if captions else 0)
        strips.append(_strip(columns, width, height, cells=row, top=MARGIN, texts=texts))
    return stacked(strips)


def _strip(
    columns: int, width: int, height: int, *, cells: Sequence[Image.Image] = (), top: int = 0,
    texts: Sequence[tuple[str, int]] = (), size: int = 14,
) -> Image.Image:  # fmt: skip
    """Return a strip of columns of a width: cells at `top`, texts at their y."""
    strip = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, height), PAPER)
    for column, cell in enumerate(cells):
        strip.paste(cell, (MARGIN + column * (width + MARGIN), top))
    for column, (text, y) in enumerate(texts):
        ImageDraw.Draw(strip).text((MARGIN + column * (width + MARGIN), y), text, fill=INK, font=_font(size))
    return strip


def legend(entries: Sequence[tuple[str, Sequence[int] | Array]], *, width: int, size: float = 14) -> Image.Image:
    """Draw colour boxes with names, as many per line as fit into `width` pixels."""
    font, side = _font(size), int(size)
    step = max(int(font.getlength(name)) for name, _ in entries) + side + 3 * MARGIN
    per_line = max(1, (width - MARGIN) // step)
    lines = -(-len(entries) // per_line)
    picture = Image.new("RGB", (width, lines * (side + MARGIN) + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (name, colour) in enumerate(entries):
        left, top = MARGIN + number % per_line * step, MARGIN // 2 + number // per_line * (side + MARGIN)
        box = (left, top, left + side, top + side)
        draw.rectangle(box, fill=tuple(map(int, colour)), outline=INK)
        draw.text((left + side + MARGIN, top - 1), name, fill=INK, font=font)
    return picture


def save_png(array: Array, path: str | os.PathLike[str]) -> None:
    """Write an image (H, W, 3) or (H, W) uint8 as PNG; the file appears complete or not at all."""
    image = Image.fromarray(np.ascontiguousarray(array, np.uint8))
    write(Path(path), partial(image.save, format="PNG"), what="the picture")


def _scaled(array: Array, width: int, *, smooth: bool) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(array, np.uint8))
    height = max(1, round(image.height * width / image.width))
    return image.resize((width, height), Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)


def stacked(images: Sequence[Image.Image]) -> Array:
    """Put images of one width below each other."""
    return np.concatenate([np.asarray(image) for image in images])


def new_figure(width: float, height: float) -> Any:
    """Return a figure of a size in inches that draws without a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def figure_panels(number: int, *, size: tuple[int, int], columns: int) -> tuple[Any, list[Any]]:
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


def colour_bar(panel: Any, shown: Any) -> Any:
    """Add a slim colour bar on the right of a panel and return it."""
    bar = panel.figure.colorbar(shown, ax=panel, shrink=0.85, aspect=25, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    return bar


def show_heat(panel: Any, image: Array, weights: Array, *, query: tuple[int, int]) -> None:
    """Lay weights (h,w) that sum to one over an image (H,W,3), red above equal weights and blue below.

    What is near to equal weights lets the image through; a cross marks the query pixel (x, y).
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
    panel.plot(*query, "+", color="black", markersize=15, markeredgewidth=4)
    panel.plot(*query, "+", color="yellow", markersize=14, markeredgewidth=2)
    panel.set(xlim=frame[:2], ylim=frame[2:], xticks=[], yticks=[])
    bar = colour_bar(panel, scale)
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
