"""Geometric steps on a view; each is `step(view, rng) -> View`, samples what it needs and carries the focus."""

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
        size = (max(int(view.size[0] * factor), 1), max(int(view.size[1] * factor), 1))
        focus = None
        if view.focus is not None:  # Parity: truncated, so it may be one pixel off
            focus = (min(int(view.focus[0] * factor), size[0] - 1), min(int(view.focus[1] * factor), size[1] - 1))
        return view.scaled(size, focus)


@dataclass(frozen=True)
class RandomCrop:
    """Cut a square of side `size` that holds the focus; smaller views get a border on both sides (black, label 255).

    With `pad` False the square shrinks to the shorter side of the view instead.
    """

    size: int
    pad: bool = True

    def __call__(self, view: View, rng: Rng) -> View:
        """Sample x, then y, where there is a choice; nothing where the view has the size already."""
        width, height = view.size
        if (width, height) == (self.size, self.size):
            return view.pixels()
        side = self.size if self.pad else min(width, height, self.size)
        pad_x, pad_y = _border(width, side), _border(height, side)
        focus_x, focus_y = (None, None) if view.focus is None else view.focus
        left = _offset(width + 2 * pad_x, side, None if focus_x is None else focus_x + pad_x, rng)
        top = _offset(height + 2 * pad_y, side, None if focus_y is None else focus_y + pad_y, rng)
        left, top = left - pad_x, top - pad_y
        return view.region((left, top, left + side, top + side))


def _border(length: int, side: int) -> int:
    return (side - length) // 2 + 1 if side > length else 0


def _offset(length: int, side: int, focus: int | None, rng: Rng) -> int:
    """Sample where a window of `side` starts in 0..length-side, so that it holds the focus."""
    if focus is None:
        return 0 if length == side else int(rng.integers(0, length - side, endpoint=True))
    start = int(rng.integers(focus - side, focus, endpoint=True))  # Parity: the lowest just misses the focus
    return min(max(start, focus - side + 1, 0), length - side)


@dataclass(frozen=True)
class Resize:
    """Bring the view to a square of side `size`; nothing happens where it has that size."""

    size: int

    def __call__(self, view: View, rng: Rng) -> View:
        view = view.pixels()
        if view.size == (self.size, self.size):
            return view
        focus = None
        if view.focus is not None:
            focus = (view.focus[0] * self.size // view.size[0], view.focus[1] * self.size // view.size[1])
        return view.scaled((self.size, self.size), focus).pixels()


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
        """Apply every step and return pixels."""
        for step in self.steps:
            view = step(view, rng)
        return view.pixels()
