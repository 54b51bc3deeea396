"""A camera, shapes in the world, and their exact rasterisation: every pixel knows which shape it shows.

Letters: N points, M contours, H and W pixels. World axes in metres: x to the right, y up from the road, z ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from datasets.labels import IGNORE
from utils.parallel import opencv
from utils.pictures import Array as Array

OVERSAMPLING = 3  # odd, so that a pixel has a centre sample: that one is its label
TINY = 0.8 / OVERSAMPLING  # pixels
NEAR = 0.6  # metres; what lies nearer is moved here
FLAT = 60.0  # metres: where a slope has reached half its steepness
GROUND_END = 156.0  # metres; just before the skyline
SKY_DEPTH = 1000.0
VOID = IGNORE
GROUND_DEPTH = -1.0  # marks shapes whose depth follows from the image row

_CIRCLE = np.stack((np.cos(np.arange(14) * np.pi / 7), np.sin(np.arange(14) * np.pi / 7)), axis=-1)
Colour = tuple[float, float, float]


def palette(text: str) -> tuple[Colour, ...]:
    """Return the colours (0..255) of hexadecimal numbers, rrggbb."""
    return tuple((float(red), float(green), float(blue)) for red, green, blue in map(bytes.fromhex, text.split()))


def shade(colour: Colour, factor: float) -> Colour:
    """Return a colour (0..255) made lighter or darker."""
    red, green, blue = colour
    return (min(255.0, red * factor), min(255.0, green * factor), min(255.0, blue * factor))


@dataclass(frozen=True)
class Camera:
    """A pinhole camera looking along the road.

    What is z metres ahead lies bend * z * z metres to the side, and higher by rise * z * z / (z + FLAT) metres.
    """

    height: int
    width: int
    focal: float  # pixels
    horizon: float  # row
    centre: float  # column
    x: float
    y: float
    bend: float
    rise: float  # the slope far ahead, where the road is straight

    def project(self, points: Array) -> Array:
        """Map world points (..., 3) to (..., 2) columns and rows in pixels."""
        depth = np.maximum(points[..., 2], NEAR)
        scale = self.focal / depth
        pixels = np.empty((*points.shape[:-1], 2))
        pixels[..., 0] = self.centre + scale * (points[..., 0] - self.x + self.bend * depth * depth)
        pixels[..., 1] = (
            self.horizon + scale * (self.y - points[..., 1]) - self.focal * self.rise * depth / (depth + FLAT)
        )
        return pixels

    def floor(self) -> Array:
        """Return the depth of the ground in every row (H,), metres."""
        depths = np.geomspace(NEAR, SKY_DEPTH, 400)
        rows = self.horizon + self.focal * (self.y / depths - self.rise * depths / (depths + FLAT))
        rows = np.minimum.accumulate(rows)  # nothing shows behind a crest
        return np.interp(np.arange(self.height) + 0.5, rows[::-1], depths[::-1])


class Shape(NamedTuple):
    """One painted area: contours that do not overlap, one class, one colour."""

    contours: Array  # (M, N, 2) pixels
    label: int
    colour: Colour
    depth: float
    glow: float  # how much it shines by itself, 0..1


@dataclass
class Painter:
    """Collects shapes in groups, painted from far to near; the shapes of a group in the order of their adding."""

    camera: Camera
    groups: list[tuple[int, float, list[Shape]]] = field(default_factory=list)

    def group(self, depth: float, *, layer: int = 1) -> None:
        """Start a group whose far end is at a depth in metres; lower layers are painted first, whatever their depth."""
        self.groups.append((layer, -depth, []))

    def add(self, label: int, colour: Colour, points: Array, *, glow: float = 0.0) -> None:
        """Add a polygon (N, 3) or several (M, N, 3), in metres, to the current group."""
        self._append(self.camera.project(points[None] if points.ndim == 2 else points), label, colour, glow)

    def _append(self, contours: Array, label: int, colour: Colour, glow: float) -> None:
        corners = contours.reshape(-1, 2)
        (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        if right < 0 or bottom < 0 or left > self.camera.width or top > self.camera.height:
            return  # out of view
        if right - left < TINY and bottom - top < TINY:
            return  # less than a sample
        layer, depth, shapes = self.groups[-1]
        shapes.append(Shape(contours, label, colour, GROUND_DEPTH if layer == 0 else max(-depth, 1.0), glow))

    def blobs(self, label: int, colours: Sequence[Colour], centres: Array, radii: Array) -> None:
        """Add discs that face the camera: centres (M, 3) metres, radii (M, N) along their outlines, one colour each."""
        angles = np.linspace(0, 2 * np.pi, radii.shape[1], endpoint=False)
        points = np.empty((*radii.shape, 3))
        points[..., 0] = centres[:, None, 0] + radii * np.cos(angles)
        points[..., 1] = centres[:, None, 1] + radii * np.sin(angles)
        points[..., 2] = centres[:, None, 2]
        for contour, colour in zip(self.camera.project(points), colours, strict=True):
            self._append(contour[None], label, colour, 0.0)

    def add_pixels(self, label: int, colour: Colour, outline: Array) -> None:
        """Add a polygon (N, 2) given in pixels to the current group."""
        self.groups[-1][2].append(Shape(outline[None], label, colour, 1.0, 0.0))

    def ground(self, label: int, colour: Colour, x0: float, x1: float, z0: float, z1: float) -> None:
        """Add a rectangle on the ground, cut finely enough to follow a bend."""
        z0 = max(z0, NEAR)
        self._strip(label, colour, (x0, 0.0), (x1, 0.0), z0, max(min(z1, GROUND_END), z0 + 0.01), 0.0)

    def upright(
        self, label: int, colour: Colour, x: float, y0: float, y1: float, z0: float, z1: float, *, glow: float = 0.0
    ) -> None:
        """Add an upright rectangle along the road, in the plane x."""
        self._strip(label, colour, (x, y0), (x, y1), max(z0, NEAR), max(z1, NEAR + 0.01), glow)

    def _strip(
        self,
        label: int,
        colour: Colour,
        first: tuple[float, float],
        second: tuple[float, float],
        z0: float,
        z1: float,
        glow: float,
    ) -> None:
        """Add what lies between two lines along the road, given by their (x, y)."""
        steps = 2 if z1 - z0 < 4 else 24 if z1 > 60 else 6
        depths = (z0 * (z1 / z0) ** np.linspace(0, 1, steps)) if steps > 2 else np.array((z0, z1))
        points = np.empty((2 * steps, 3))
        points[:steps, :2], points[steps:, :2] = first, second
        points[:steps, 2], points[steps:, 2] = depths, depths[::-1]
        self.add(label, colour, points, glow=glow)

    def facing(
        self, label: int, colour: Colour, x0: float, x1: float, y0: float, y1: float, z: float, *, glow: float = 0.0
    ) -> None:
        """Add an upright rectangle across the road, at depth z."""
        self.add(label, colour, np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]), glow=glow)

    def shapes(self) -> list[Shape]:
        """Return all shapes in the order of painting."""
        ordered = sorted(self.groups, key=lambda group: group[:2])
        return [shape for _, _, shapes in ordered for shape in shapes]


@dataclass(frozen=True)
class Spot:
    """Where a flat figure stands that faces the camera; its points are (dx, y) metres, narrowed by `turn`."""

    painter: Painter
    x: float
    z: float
    turn: float = 1.0

    def flat(self, label: int, colour: Colour, points: Sequence[tuple[float, float]], *, glow: float = 0.0) -> None:
        """Add a polygon."""
        world = np.array([(self.x + dx * self.turn, y, self.z) for dx, y in points])
        self.painter.add(label, colour, world, glow=glow)

    def limb(
        self, label: int, colour: Colour, line: Sequence[tuple[float, float]], thick: float, *, glow: float = 0.0
    ) -> None:
        """Add thick straight pieces along a line."""
        for (x0, y0), (x1, y1) in zip(line[:-1], line[1:], strict=True):
            length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-6)
            nx, ny = -(y1 - y0) / length * thick / 2, (x1 - x0) / length * thick / 2
            quad = [(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)]
            self.flat(label, colour, quad, glow=glow)

    def disc(
        self, label: int, colour: Colour, centre: tuple[float, float], radius: float, *, glow: float = 0.0
    ) -> None:
        """Add a disc."""
        points = np.empty((len(_CIRCLE), 3))
        points[:, :2] = np.array((self.x + self.turn * centre[0], centre[1])) + radius * _CIRCLE * (self.turn, 1.0)
        points[:, 2] = self.z
        self.painter.add(label, colour, points, glow=glow)


class Drawing(NamedTuple):
    """A painted scene: what every pixel shows, and from which colours it was mixed."""

    image: Array  # (H, W, 3) float32 0..255, anti-aliased flat colours
    label: Array  # (H, W) uint8 train ids, of the pixel centres
    depth: Array  # (H, W) float32 metres
    glow: Array  # (H, W) float32 0..1
    sky: Array  # (H, W) float32 0..1, share of sky in a pixel


def rasterise(shapes: Sequence[Shape], *, height: int, width: int) -> Array:
    """Paint the numbers of the shapes (from 1; 0 is the background) on a grid of OVERSAMPLING samples a side per pixel.

    Returns int32 (H * OVERSAMPLING, W * OVERSAMPLING).
    """
    canvas = np.zeros((height * OVERSAMPLING, width * OVERSAMPLING), np.int32)
    limit = 20 * max(canvas.shape)
    for number, shape in enumerate(shapes, start=1):
        # A sample's centre lies half a sample in: rounding down puts the edge where it belongs.
        corners = np.clip(np.floor(shape.contours * OVERSAMPLING), -limit, limit).astype(np.int32)
        opencv().fillPoly(canvas, list(corners), number)
    return canvas


def render(painter: Painter, *, sky_label: int, sky_colour: Colour) -> Drawing:
    """Paint a scene; image and label come from one rasterisation, so they cannot disagree."""
    cv2, camera, shapes = opencv(), painter.camera, painter.shapes()
    index = rasterise(shapes, height=camera.height, width=camera.width)
    # One look-up for colour and glow: four bytes, seen as one number.
    paints = [(*sky_colour, 0.0), *((*shape.colour, 255 * shape.glow) for shape in shapes)]
    packed = np.take(np.round(paints).astype(np.uint8).view(np.uint32)[:, 0], index)
    labels = np.array([sky_label, *(shape.label for shape in shapes)], np.uint8)
    depths = np.array([SKY_DEPTH, *(shape.depth for shape in shapes)], np.float32)

    size, middle = (camera.width, camera.height), OVERSAMPLING // 2
    centres = index[middle::OVERSAMPLING, middle::OVERSAMPLING]
    depth = depths[centres]
    mixed, sky = (
        cv2.resize(samples, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        for samples in (packed.view(np.uint8).reshape(*index.shape, 4), (index == 0).astype(np.uint8) * 255)
    )
    return Drawing(
        image=mixed[..., :3],
        label=labels[centres],
        depth=np.where(depth == GROUND_DEPTH, np.maximum(camera.floor(), 1.0)[:, None], depth).astype(np.float32),
        glow=mixed[..., 3] / 255,
        sky=sky / 255,
    )
