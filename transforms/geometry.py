"""Geometric steps `step(view, rng) -> View`, which sample what they need and carry the focus; forms of evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from transforms.view import IGNORE, Rng, View
from utils.parallel import opencv


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
