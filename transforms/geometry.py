"""The view of an image and its label, and geometric steps `step(view, rng) -> View`; forms of evaluation.

A step samples what it needs and carries the focus; pixels are resampled only where a region asks for them.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from utils import IGNORE
from utils.parallel import opencv


class Rng(typing.Protocol):
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


@dataclass(frozen=True)
class RandomScale:
    """Show the view at a factor from [low, high), on top of bringing its shorter side to `pre_size` (0 = off)."""

    low: float
    high: float
    pre_size: int = 0

    def __call__(self, view: View, rng: Rng) -> View:
        factor = rng.uniform(self.low, self.high)
        if self.pre_size:
            factor *= self.pre_size / min(view.size)
        width, height = (max(int(length * factor), 1) for length in view.size)
        return view.scaled((width, height), factor=factor)


@dataclass(frozen=True)
class RandomCrop:
    """Cut a square of side `size` that holds the focus; smaller views get a border on both sides (black, label 255).

    With `pad` False the square shrinks to the shorter side of the view instead.
    """

    size: int
    pad: bool = True

    def __call__(self, view: View, rng: Rng) -> View:
        """Sample x, then y, where there is a choice; nothing where the view has the size already."""
        if view.size == (self.size, self.size):
            return view.pixels()
        side = self.size if self.pad else min(*view.size, self.size)
        left, top = (_start(*axis, side, rng) for axis in zip(view.size, view.focus or (None, None), strict=True))
        return view.region((left, top, left + side, top + side))


def _start(length: int, focus: int | None, side: int, rng: Rng) -> int:
    """Sample where a window of `side` starts, so that it holds the focus and lies in the length with its border."""
    border = (side - length) // 2 + 1 if side > length else 0
    last = length + border - side
    if focus is None:
        return last if last == -border else int(rng.integers(0, last + border, endpoint=True)) - border
    focus += border
    start = int(rng.integers(focus - side, focus, endpoint=True))  # Parity: the lowest just misses the focus
    return min(max(start, focus - side + 1, 0) - border, last)


@dataclass(frozen=True)
class Resize:
    """Bring the view to a square of side `size`; nothing happens where it has that size."""

    size: int

    def __call__(self, view: View, rng: Rng) -> View:
        return view.pixels().scaled((self.size, self.size)).pixels()


@dataclass(frozen=True)
class RandomFlip:
    """Mirror left and right with probability 1/2."""

    def __call__(self, view: View, rng: Rng) -> View:
        if rng.random() >= 0.5:
            return view
        view = view.pixels()
        focus = None if view.focus is None else (view.size[0] - 1 - view.focus[0], view.focus[1])
        return View(opencv().flip(view.image, 1), opencv().flip(view.label, 1), view.size, focus)


@dataclass(frozen=True)
class RandomRotation:
    """Turn about the centre by an angle sampled from [-degrees, degrees); the corners become black, their label 255."""

    degrees: float

    def __call__(self, view: View, rng: Rng) -> View:
        view, angle = view.pixels(), rng.uniform(-self.degrees, self.degrees)
        image = Image.fromarray(view.image).rotate(angle, Image.Resampling.BICUBIC, fillcolor=(0, 0, 0))
        label = Image.fromarray(view.label).rotate(angle, Image.Resampling.NEAREST, fillcolor=IGNORE)
        focus = None if view.focus is None else _rotate_point(view.focus, view.size, angle)
        return View(np.asarray(image), np.asarray(label), view.size, focus)


def _rotate_point(point: tuple[int, int], size: tuple[int, int], angle: float) -> tuple[int, int] | None:
    """Return where a pixel goes when the picture turns counter-clockwise; None when it leaves the picture."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    across, down = point[0] + 0.5 - size[0] / 2, point[1] + 0.5 - size[1] / 2
    x = math.floor(cosine * across + sine * down + size[0] / 2)
    y = math.floor(-sine * across + cosine * down + size[1] / 2)
    return (x, y) if 0 <= x < size[0] and 0 <= y < size[1] else None


Step = RandomScale | RandomCrop | Resize | RandomFlip | RandomRotation


@dataclass(frozen=True)
class Geometry:
    """Steps one after another, in the order in which they sample."""

    steps: tuple[Step, ...]

    def __call__(self, view: View, rng: Rng) -> View:
        for step in self.steps:
            view = step(view, rng)
        return view.pixels()


@dataclass(frozen=True)
class NativeSize:
    """Brings whole images to the form that is evaluated: every pixel of every image at its own size."""

    text: str = "native size, every pixel"

    def __call__(self, view: View) -> View:
        return view.pixels()


@dataclass(frozen=True)
class CentreSquare:
    """The centre square of the image at a fixed height; what sticks out of a narrow image is ignored.

    Source: the original's validation of Mapillary (there the padding counts as road).
    """

    side: int = 1536

    @property
    def text(self) -> str:
        return f"height {self.side}, centre square, padding ignored"

    def __call__(self, view: View) -> View:
        width = max(int(view.size[0] / view.size[1] * self.side), 1)
        left = round((width - self.side) / 2)
        return view.scaled((width, self.side)).region((left, 0, left + self.side, self.side))


Protocol = NativeSize | CentreSquare
