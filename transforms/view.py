"""An image, its label and a point of interest that go through geometry together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image

IGNORE = 255


class Rng(Protocol):
    """The draws that geometry needs; `numpy.random.Generator` has them."""

    def uniform(self, low: float, high: float, /) -> float:
        """Draw from [low, high)."""

    def integers(self, low: int, high: int, /, *, endpoint: bool) -> int:
        """Draw an integer from low..high, both included."""

    def random(self) -> float:
        """Draw from [0, 1)."""


@dataclass(frozen=True)
class View:
    """Image (RGB) and label (mode L) of one size, shown at `size`; resampled only when pixels are asked for.

    Attributes:
        size: (width, height) at which the pair is shown; pixels are not resampled until `region`.
        focus: (x, y) of the pixel of interest in coordinates of `size`, or None.
    """

    image: Image.Image
    label: Image.Image
    size: tuple[int, int]
    focus: tuple[int, int] | None = None

    def scaled(self, size: tuple[int, int], focus: tuple[int, int] | None) -> View:
        """Show the same pixels at another size."""
        return replace(self, size=size, focus=focus)

    def region(self, box: tuple[int, int, int, int]) -> View:
        """Cut (left, top, right, bottom), in coordinates of `size`, and resample just that.

        The part outside the image is black, its label 255. Equal to resizing the whole image and cutting: labels
        exactly, colours within the rounding of the filter's weights.
        """
        left, top, right, bottom = box
        inner = (max(left, 0), max(top, 0), min(right, self.size[0]), min(bottom, self.size[1]))
        assert inner[0] < inner[2] and inner[1] < inner[3], f"the box {box} misses the image of size {self.size}"
        image, label = _resample_image(self.image, self.size, inner), _resample_label(self.label, self.size, inner)
        if inner != box:
            place = (inner[0] - left, inner[1] - top)
            image = _on_canvas(image, (right - left, bottom - top), place, 0)
            label = _on_canvas(label, (right - left, bottom - top), place, IGNORE)
        focus = None if self.focus is None else (self.focus[0] - left, self.focus[1] - top)
        return View(image, label, image.size, focus)

    def pixels(self) -> View:
        """Resample to `size` where that has not been done."""
        return self if self.image.size == self.size else self.region((0, 0, *self.size))


def make_view(image: Image.Image, label: np.ndarray, *, focus: tuple[int, int] | None = None) -> View:
    """Put an RGB image and its train ids (H, W) uint8, which must have one size, into a view."""
    return View(image, Image.fromarray(label), image.size, focus)


def _resample_image(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Resample columns, then rows, as Pillow has always done; in one call its newer versions choose the order."""
    if image.size == size:
        return image if box == (0, 0, *size) else image.crop(box)
    width, height = image.size
    ratio_x, ratio_y = width / size[0], height / size[1]  # sides are truncated: two ratios
    left, right = box[0] * ratio_x, min(box[2] * ratio_x, width)
    top, bottom = box[1] * ratio_y, min(box[3] * ratio_y, height)
    reach = 2 * max(ratio_y, 1) + 1  # rows that the filter sees beyond the box
    first, last = max(int(top - reach), 0), min(int(bottom + reach) + 1, height)
    across, down, cubic = box[2] - box[0], box[3] - box[1], Image.Resampling.BICUBIC
    band = image.resize((across, last - first), cubic, box=(left, first, right, last))
    return band.resize((across, down), cubic, box=(0, top - first, across, bottom - first))


def _nearest_index(source: int, target: int) -> np.ndarray:
    """Return (target,) source positions of nearest resampling, rounded as Pillow rounds (steps added up in double)."""
    step = source / target
    steps = np.full(target, step)
    steps[0] = step * 0.5
    return np.minimum(np.cumsum(steps).astype(np.int64), source - 1)


def _resample_label(label: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    if label.size == size:
        return label if box == (0, 0, *size) else label.crop(box)
    columns = _nearest_index(label.size[0], size[0])[box[0] : box[2]]
    rows = _nearest_index(label.size[1], size[1])[box[1] : box[3]]
    return Image.fromarray(np.asarray(label)[rows[:, None], columns[None, :]])


def _on_canvas(image: Image.Image, size: tuple[int, int], place: tuple[int, int], fill: int) -> Image.Image:
    canvas = Image.new(image.mode, size, fill if image.mode == "L" else (fill, fill, fill))
    canvas.paste(image, place)
    return canvas
