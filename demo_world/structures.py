"""What stands along the street: buildings with windows, walls, fences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.labels import CLASS_NAMES
from demo_world.figures import Rng, pick
from demo_world.painter import Array, Colour, Painter, shade

BUILDING, WALL, FENCE = (CLASS_NAMES.index(name) for name in ("building", "wall", "fence"))
FLOOR = 3.2  # metres
DEEP = 12.0  # of a building, away from the street
AWNINGS: tuple[Colour, ...] = ((170, 40, 40), (40, 90, 60), (50, 70, 130), (200, 150, 60))


@dataclass(frozen=True)
class Place:
    """Where something stands: its street face lies in the plane x from z[0] to z[1]; `side` is -1 left, 1 right."""

    x: float
    side: int
    z: tuple[float, float]


def building(
    painter: Painter,
    rng: Rng,
    *,
    place: Place,
    floors: int,
    colour: Colour,
    roof: Colour,
    glass: Colour,
    gabled: bool,
) -> None:
    """Paint a building: the face along the street, the end face towards the camera, roof, windows, ground floor."""
    x, side, z, height = place.x, place.side, place.z, floors * FLOOR + 0.6
    outer, lit = x + side * DEEP, side > 0
    trim = shade(colour, float(rng.choice((0.72, 1.22))))
    if gabled:
        ridge, rise = x + side * DEEP / 2, height + 3.4
        painter.add(
            BUILDING, roof, np.array([(x, height, z[0]), (x, height, z[1]), (ridge, rise, z[1]), (ridge, rise, z[0])])
        )
        gable = np.array([(x, height, z[0]), (outer, height, z[0]), (ridge, rise, z[0])])
        painter.add(BUILDING, shade(colour, 0.8), gable)
    painter.facing(BUILDING, shade(colour, 0.72 if lit else 0.82), min(x, outer), max(x, outer), 0, height, z[0])
    painter.upright(BUILDING, shade(colour, 1.0 if lit else 0.88), x, 0, height, z[0], z[1])
    painter.upright(BUILDING, trim, x, 0, 0.7, z[0], z[1])
    painter.upright(BUILDING, roof if gabled else trim, x, height - 0.45, height, z[0], z[1])
    width, tall = float(rng.uniform(1.0, 1.7)), float(rng.uniform(1.4, 2.0))
    for end in (True, False):
        start, stop = (0.0, DEEP - 1) if end else z
        bays = np.arange(start + 1.2, stop - 1.0, 2.6)
        for floor in range(1, floors):
            _windows(painter, place, bays, FLOOR * floor + 1.0, (width + 0.3, tall + 0.3), trim, end=end)
            _windows(painter, place, bays, FLOOR * floor + 1.0, (width, tall), glass, end=end)
            lamps = bays[rng.random(len(bays)) < 0.3]
            _windows(painter, place, lamps, FLOOR * floor + 1.0, (width, tall), shade(glass, 1.5), end=end, glow=0.7)
    _ground_floor(painter, rng, place=place, glass=glass, trim=trim)


def _windows(
    painter: Painter,
    place: Place,
    bays: Array,
    low: float,
    size: tuple[float, float],
    colour: Colour,
    *,
    end: bool,
    glow: float = 0.0,
) -> None:
    """Paint one floor's windows, centred at `bays` along the street face or, with `end`, along the end face."""
    if not len(bays):
        return
    width, tall = size
    along = bays[:, None] + np.array((-width / 2, width / 2, width / 2, -width / 2))  # (M, 4)
    points = np.empty((*along.shape, 3))
    points[..., 0] = place.x + place.side * along if end else place.x
    points[..., 1] = low + 0.75 + np.array((-tall / 2, -tall / 2, tall / 2, tall / 2))
    points[..., 2] = place.z[0] - 0.02 if end else along
    painter.add(BUILDING, colour, points, glow=glow)


def _ground_floor(painter: Painter, rng: Rng, *, place: Place, glass: Colour, trim: Colour) -> None:
    """Paint doors, and shop windows under awnings or plain windows, on the street face."""
    shop, start, x = rng.random() < 0.5, place.z[0] + 0.8, place.x
    awning, lip = pick(rng, AWNINGS), place.x - place.side * 1.0
    while start + 3.4 < place.z[1]:
        painter.upright(BUILDING, shade(trim, 0.5), x, 0.05, 2.3, start, start + 1.0)
        low, glow = (0.6, 0.5) if shop else (1.1, 0.0)
        painter.upright(BUILDING, shade(glass, 0.9), x, low, 2.4, start + 1.5, start + 3.3, glow=glow)
        if shop:
            left, right = start + 1.2, start + 3.5
            painter.add(
                BUILDING, awning, np.array([(x, 3.0, left), (x, 3.0, right), (lip, 2.5, right), (lip, 2.5, left)])
            )
            painter.upright(BUILDING, shade(awning, 0.85), lip, 2.25, 2.5, left, right)
        start += 4.0


def wall(painter: Painter, rng: Rng, *, place: Place, colour: Colour) -> None:
    """Paint a free-standing wall of blocks with a coping."""
    x, (start, stop), height = place.x, place.z, float(rng.uniform(1.9, 3.0))
    outer = x + place.side * 0.4
    painter.facing(WALL, shade(colour, 0.8), min(x, outer), max(x, outer), 0, height, start)
    painter.upright(WALL, colour, x, 0, height, start, stop)
    joint = shade(colour, 0.78)
    for number, row in enumerate(np.arange(0.45, height - 0.1, 0.45).tolist()):
        painter.upright(WALL, joint, x, row, row + 0.05, start, stop)
        for seam in np.arange(start + 0.5 + 0.55 * (number % 2), min(stop, start + 20), 1.1).tolist():
            painter.upright(WALL, joint, x, row - 0.4, row, seam, seam + 0.06)
    painter.upright(WALL, shade(colour, 1.18), x, height - 0.12, height + 0.06, start, stop)


def fence(painter: Painter, rng: Rng, *, place: Place, colour: Colour) -> None:
    """Paint a fence of upright slats between posts; what shows between its slats is fence, as annotators label it."""
    x, (start, stop), height = place.x, place.z, float(rng.uniform(1.2, 1.9))
    painter.upright(FENCE, shade(colour, 0.5), x, 0.05, height, start, stop)
    gap, slat = (0.34, 0.24) if rng.random() < 0.5 else (0.3, 0.08)  # boards or bars
    starts = np.arange(start, min(stop, start + 30), gap)  # (M,)
    points = np.empty((len(starts), 5, 3))
    points[..., 0] = x
    points[..., 1] = (0.08, 0.08, height + 0.12, height + 0.22, height + 0.12)
    points[..., 2] = np.maximum(starts[:, None] + np.array((0, slat, slat, slat / 2, 0)), 0.7)
    painter.add(FENCE, colour, points)
    for row in (0.3, height - 0.25):
        painter.upright(FENCE, shade(colour, 0.85), x, row, row + 0.1, start, stop)
    for post in np.arange(start, stop, 2.6).tolist():
        painter.upright(FENCE, shade(colour, 0.75), x, 0, height + 0.25, post, post + 0.16)
