"""An image, its label and a point of interest that go through geometry together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from utils.parallel import opencv

IGNORE = 255


class Rng(Protocol):
    """What transforms sample with; `numpy.random.Generator` has it, with `endpoint` True for low..high."""

    def uniform(self, low: float, high: float, /) -> float: ...
    def integers(self, low: int, high: int, /, *, endpoint: bool) -> int: ...
    def random(self) -> float: ...


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

    def scaled(self, size: tuple[int, int], *, factor: float | None = None) -> View:
        """Show the same pixels at another size; the focus moves by a factor, by default by that of the sizes."""
        focus = None
        if self.focus is not None:  # Parity: truncated, so it may be one pixel off
            places = zip(self.focus, size, self.size, strict=True)
            x, y = (min(int(old * factor) if factor else old * new // was, new - 1) for old, new, was in places)
            focus = (x, y)
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
            border = ((inner[1] - top, bottom - inner[3]), (inner[0] - left, right - inner[2]))
            image, label = np.pad(image, (*border, (0, 0))), np.pad(label, border, constant_values=IGNORE)
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
    """Resample columns, then rows, with 8 bits in between, as Pillow does.

    OpenCV's own resize is faster, but gives other pixels; Pillow's of the region alone (`box=`) is slower. A 768 crop
    of a GTAV frame on one core, on two machines: OpenCV 2 and 7 ms, this 11 and 17 ms, Pillow 14 and 24 ms.
    """
    left, top, right, bottom = box
    width, height = _size(image)
    if (width, height) == size:
        return image[top:bottom, left:right]
    cv2 = opencv()
    x, across = _bicubic(width, size[0], left, right)
    y, down = _bicubic(height, size[1], top, bottom)
    part = cv2.transpose(image[y[0, 0] : y[-1, -1] + 1, x[0, 0] : x[-1, -1] + 1])  # (w, h, 3)
    columns = cv2.transpose(_weighted_rows(part, x - x[0, 0], across))  # (h, right - left, 3)
    return _weighted_rows(columns, y - y[0, 0], down)


def _bicubic(source: int, target: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what Pillow's filter takes for places start..stop-1 of `target`: (n, k) positions and float32 weights."""
    ratio = source / target
    stretch = max(ratio, 1.0)
    centre = (np.arange(start, stop) + 0.5) * ratio
    first = np.maximum(centre - 2 * stretch + 0.5, 0).astype(np.int64)
    last = np.minimum(centre + 2 * stretch + 0.5, source).astype(np.int64) - 1
    places = first[:, None] + np.arange((last - first).max() + 1)
    distance = np.abs(places + 0.5 - centre[:, None]) / stretch
    near, far = (1.5 * distance - 2.5) * distance**2 + 1, ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    weights[places > last[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    return np.minimum(places, last[:, None]), weights.astype(np.float32)


def _weighted_rows(array: np.ndarray, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return weighted sums of rows, in 8 bits: (m, ...) uint8, (n, k) twice -> (n, ...) uint8."""
    cv2, rows = opencv(), torch.from_numpy(array.reshape(len(array), -1).astype(np.float32))
    sums = functional.embedding_bag(
        torch.from_numpy(places), rows, mode="sum", per_sample_weights=torch.from_numpy(weights)
    ).numpy()
    # The addend makes OpenCV, which rounds halves to even, round them up as Pillow does.
    return cv2.addWeighted(sums, 1, sums, 0, 1e-5, dtype=cv2.CV_8U).reshape(len(places), *array.shape[1:])


def _nearest_index(source: int, target: int) -> np.ndarray:
    """Return (target,) source positions of nearest resampling, rounded as Pillow rounds (steps added up in double)."""
    steps = np.full(target, source / target)
    steps[0] *= 0.5
    return np.minimum(np.cumsum(steps).astype(np.int64), source - 1)


def _resample_label(label: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = box
    if _size(label) == size:
        return label[top:bottom, left:right]
    columns = _nearest_index(label.shape[1], size[0])[left:right]
    rows = _nearest_index(label.shape[0], size[1])[top:bottom]
    part = np.asarray(label[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return part.take(rows - rows[0], axis=0).take(columns - columns[0], axis=1)
