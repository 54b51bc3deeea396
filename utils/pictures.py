"""Pictures of label maps and predictions, drawn with Pillow.

Letters: H, W pixels; K classes; N images. All images are uint8 RGB.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.errors import UserError
from utils.files import atomic_path, make_folder

Array = np.ndarray[Any, np.dtype[Any]]
Row = tuple[Array, Array, Array]


class Drawing(NamedTuple):
    """A picture (H, W, 3) uint8 with its tag for TensorBoard and its file below the folder of pictures."""

    tag: str
    file: str
    picture: Array


COLUMNS = ("image", "truth", "prediction", "errors")
WRONG = (230, 40, 30)
MARGIN, HATCH = 8, 6
INK, PAPER = (20, 20, 20), (255, 255, 255)
MAX_COLUMN, MIN_COLUMN = 640, 160


def colorize(label: Array, *, palette: Array) -> Array:
    """Map class numbers (H, W) to colours (H, W, 3) uint8; numbers outside the palette (K, 3) are black."""
    label, palette = np.asarray(label), np.asarray(palette, np.uint8)
    table = np.concatenate((palette, np.zeros((1, 3), np.uint8)))
    inside = (label >= 0) & (label < len(palette))
    return np.asarray(table[np.where(inside, label, len(palette))])


def overlay(image: Array, label: Array, *, palette: Array, alpha: float = 0.5) -> Array:
    """Lay the colours of a label (H, W) over an image (H, W, 3) uint8; pixels of no class are darkened and hatched."""
    mixed = (1 - alpha) * image + alpha * colorize(label, palette=palette)  # (H, W, 3)
    outside = (label < 0) | (label >= len(palette))
    rows, columns = np.indices(label.shape)
    mixed[outside] = 0.4 * np.asarray(image)[outside]
    mixed[outside & ((rows + columns) % HATCH < 1)] += 70
    return np.asarray(mixed.round().astype(np.uint8))


def error_map(image: Array, truth: Array, prediction: Array, *, ignore: int = 255) -> Array:
    """Return (H, W, 3) uint8: right pixels as a dark grey image, wrong ones red, ignored ones black."""
    grey = np.asarray(image, np.float32) @ np.array((0.299, 0.587, 0.114), np.float32)  # (H, W)
    errors = np.repeat((30 + 0.45 * grey)[..., None], 3, axis=2).astype(np.uint8)
    errors[np.asarray(truth) != np.asarray(prediction)] = WRONG
    errors[np.asarray(truth) == ignore] = 0
    return errors


def comparison(rows: Sequence[Row], *, palette: Array, class_names: Sequence[str], ignore: int = 255) -> Array:
    """Draw image, truth, prediction and errors side by side, one row per frame, with column names and a legend.

    Args:
        rows: (image (H, W, 3) uint8, truth (H, W), prediction (H, W)); sizes may differ from row to row.
        palette: (K, 3) uint8, one colour per class.
        class_names: K names; the legend shows those that occur.

    Returns (H', W', 3) uint8. Raises ValueError where the three parts of a row differ in size.
    """
    if not rows:
        raise ValueError("a comparison needs at least one row")
    for number, (image, truth, prediction) in enumerate(rows):
        if not image.shape[:2] == truth.shape == prediction.shape:
            raise ValueError(f"row {number}: the sizes {image.shape[:2]}, {truth.shape} and {prediction.shape} differ")
    width = int(np.clip(max(image.shape[1] for image, _, _ in rows), MIN_COLUMN, MAX_COLUMN))
    strips, present = [], set[int]()
    for image, truth, prediction in rows:
        # Ignored pixels are black in the prediction too, so that the eye compares only what is scored.
        shown = np.where(truth == ignore, ignore, prediction)
        cells = (
            image,
            colorize(truth, palette=palette),
            colorize(shown, palette=palette),
            error_map(image, truth, prediction, ignore=ignore),
        )
        strips.append([_scaled(cell, width, smooth=number == 0) for number, cell in enumerate(cells)])
        present.update(np.unique([truth, shown]).tolist())
    total = 4 * width + 5 * MARGIN
    font = _font(max(13, width // 26))
    header = _header(total, width, font)
    classes = zip(class_names, palette, strict=False)
    entries: list[tuple[str, Any]] = [entry for index, entry in enumerate(classes) if index in present]
    entries += [("wrong", WRONG), ("ignored", (0, 0, 0))]
    body = [header]
    for strip in strips:
        line = Image.new("RGB", (total, strip[0].height + MARGIN), PAPER)
        for column, cell in enumerate(strip):
            line.paste(cell, (MARGIN + column * (width + MARGIN), 0))
        body.append(line)
    return stacked([*body, legend(entries, width=total, size=font.size)])


def contact_sheet(images: Sequence[Array], *, columns: int, captions: Sequence[str] = (), width: int = 320) -> Array:
    """Lay images (N of (H, W, 3) uint8, any sizes) out on a grid of a common width, captions below."""
    if not images or columns < 1:
        raise ValueError("a contact sheet needs at least one image and one column")
    cells = [_scaled(np.asarray(image), width, smooth=True) for image in images]
    font = _font(14)
    text = font.size + 6 if captions else 0  # type: ignore[union-attr]
    columns = min(columns, len(cells))
    lines = []
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        line = Image.new(
            "RGB", (columns * (width + MARGIN) + MARGIN, max(cell.height for cell in row) + MARGIN + int(text)), PAPER
        )
        draw = ImageDraw.Draw(line)
        for column, cell in enumerate(row):
            left = MARGIN + column * (width + MARGIN)
            line.paste(cell, (left, MARGIN))
            if start + column < len(captions):
                draw.text((left, MARGIN + cell.height + 2), captions[start + column], fill=INK, font=font)
        lines.append(line)
    return stacked(lines)


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
        draw.rectangle(box, fill=tuple(int(value) for value in colour), outline=INK)
        draw.text((left + side + MARGIN, top - 1), name, fill=INK, font=font)
    return picture


def save_png(array: Array, path: str | os.PathLike[str]) -> None:
    """Write an image (H, W, 3) or (H, W) uint8 as PNG; the file appears complete or not at all."""
    path = Path(path)
    make_folder(path.parent)
    try:
        with atomic_path(path) as temporary:
            Image.fromarray(np.ascontiguousarray(array, np.uint8)).save(temporary, format="PNG")
    except OSError as error:
        raise UserError(f"{path}: the picture cannot be written ({error.strerror or error}); free space") from error


def _font(size: float) -> Any:
    return ImageFont.load_default(size)


def _scaled(array: Array, width: int, *, smooth: bool) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(array, np.uint8))
    height = max(1, round(image.height * width / image.width))
    return image.resize((width, height), Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)


def _header(total: int, width: int, font: Any) -> Image.Image:
    header = Image.new("RGB", (total, font.size + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(header)
    for column, name in enumerate(COLUMNS):
        draw.text((MARGIN + column * (width + MARGIN), MARGIN // 2), name, fill=INK, font=font)
    return header


def stacked(images: Sequence[Image.Image]) -> Array:
    """Put images of one width below each other."""
    return np.concatenate([np.asarray(image) for image in images])
