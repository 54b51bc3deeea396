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
    """An image and its label of one size, shown at `size`; resampled only when pixels are asked for.

    Attributes:
        image: (H, W, 3) uint8 RGB, in memory or mapped from a file; only the part that a region needs is read.
        label: (H, W) uint8 train ids.
        size: (width, height) at which the pair is shown; pixels are not resampled until `region`.
        focus: (x, y) of the pixel of interest in coordinates of `size`, or None.
    """

    image: np.ndarray
    label: np.ndarray
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
        return View(image, label, (right - left, bottom - top), focus)

    def pixels(self) -> View:
        """Resample to `size` where that has not been done."""
        return self if _size(self.image) == self.size else self.region((0, 0, *self.size))


def make_view(image: Image.Image | np.ndarray, label: np.ndarray, *, focus: tuple[int, int] | None = None) -> View:
    """Put an RGB image, of Pillow or (H, W, 3) uint8, and its train ids (H, W) uint8 of the same size into a view."""
    array = np.asarray(image)
    return View(array, label, _size(array), focus)


def _size(array: np.ndarray) -> tuple[int, int]:
    return array.shape[1], array.shape[0]


def _resample_image(image: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """Resample columns, then rows, as Pillow has always done; in one call its newer versions choose the order."""
    width, height = _size(image)
    if (width, height) == size:
        return image[box[1] : box[3], box[0] : box[2]]
    ratio_x, ratio_y = width / size[0], height / size[1]  # sides are truncated: two ratios
    left, right = box[0] * ratio_x, min(box[2] * ratio_x, width)
    top, bottom = box[1] * ratio_y, min(box[3] * ratio_y, height)
    reach_x, reach_y = 2 * max(ratio_x, 1) + 1, 2 * max(ratio_y, 1) + 1  # what the filter sees beyond the box
    x, y = max(int(left - reach_x), 0), max(int(top - reach_y), 0)
    end_x, end_y = min(int(right + reach_x) + 1, width), min(int(bottom + reach_y) + 1, height)
    across, down, cubic = box[2] - box[0], box[3] - box[1], Image.Resampling.BICUBIC
    part = Image.fromarray(image[y:end_y, x:end_x])
    band = part.resize((across, end_y - y), cubic, box=(left - x, 0, right - x, end_y - y))
    return np.asarray(band.resize((across, down), cubic, box=(0, top - y, across, bottom - y)))


def _nearest_index(source: int, target: int) -> np.ndarray:
    """Return (target,) source positions of nearest resampling, rounded as Pillow rounds (steps added up in double)."""
    step = source / target
    steps = np.full(target, step)
    steps[0] = step * 0.5
    return np.minimum(np.cumsum(steps).astype(np.int64), source - 1)


def _resample_label(label: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    if _size(label) == size:
        return label[box[1] : box[3], box[0] : box[2]]
    columns = _nearest_index(label.shape[1], size[0])[box[0] : box[2]]
    rows = _nearest_index(label.shape[0], size[1])[box[1] : box[3]]
    return label[rows[:, None], columns[None, :]]


def _on_canvas(array: np.ndarray, size: tuple[int, int], place: tuple[int, int], fill: int) -> np.ndarray:
    canvas = np.full((size[1], size[0], *array.shape[2:]), fill, dtype=np.uint8)
    canvas[place[1] : place[1] + array.shape[0], place[0] : place[0] + array.shape[1]] = array
    return canvas
