"""Vehicles as extruded profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from datasets.labels import CLASS_NAMES
from demo_world.painter import Array, Colour, Painter, Spot, shade

TRAIN = CLASS_NAMES.index("train")
TYRE: Colour = (22, 22, 24)
GLASS: Colour = (52, 62, 72)
Outline = Sequence[tuple[float, float]]

CAR_PROFILES: dict[str, tuple[Outline, tuple[int, ...], float]] = {  # outline, its glass edges, width
    "sedan": (
        [(0, 0.3), (0, 0.85), (0.35, 0.95), (1.0, 1.4), (2.5, 1.44), (3.3, 0.98), (4.3, 0.78), (4.4, 0.3)],
        (2, 4),
        1.8,
    ),
    "hatch": ([(0, 0.3), (0.05, 0.9), (0.5, 1.45), (2.3, 1.5), (3.1, 1.0), (3.8, 0.8), (3.9, 0.3)], (1, 3), 1.75),
    "suv": ([(0, 0.35), (0, 1.0), (0.25, 1.68), (2.9, 1.74), (3.6, 1.12), (4.6, 0.98), (4.7, 0.35)], (1, 3), 1.95),
    "van": ([(0, 0.35), (0, 1.1), (0.15, 1.95), (3.7, 1.98), (4.5, 1.15), (5.0, 0.95), (5.0, 0.35)], (1, 3), 2.0),
}


@dataclass(frozen=True)
class Frame:
    """Where a vehicle of one class stands: its near left corner, its size in metres, which way it points."""

    painter: Painter
    label: int
    x: float
    z: float
    length: float
    width: float
    towards: bool  # its front end is the near one
    across: bool = False  # it crosses the road instead of following it

    def place(self, lengths: Array, heights: Array, sides: Array) -> Array:
        """Map (N,) positions along, above and across the vehicle to world points (N, 3)."""
        along = self.length - lengths if self.towards else lengths
        if self.across:
            return np.stack((self.x + along, heights, self.z + sides), axis=-1)
        return np.stack((self.x + sides, heights, self.z + along), axis=-1)

    @property
    def side(self) -> float | None:
        """The coordinate, across the vehicle, of the long side that the camera sees, if any."""
        camera = self.painter.camera.x
        if self.across or self.x > camera:
            return 0.0
        return self.width if self.x + self.width < camera else None


def hull(frame: Frame, colour: Colour, outline: Outline, *, glass: Sequence[int] = ()) -> None:
    """Paint the outer faces of an extruded outline; `glass` numbers the edges that are panes."""
    points = np.array(outline, float)
    faces = []
    for edge, (start, end) in enumerate(zip(points[:-1], points[1:], strict=True)):
        corners = np.array([start, end, end, start])
        quad = frame.place(corners[:, 0], corners[:, 1], np.array([0, 0, frame.width, frame.width]))
        steep = abs(end[1] - start[1]) > abs(end[0] - start[0]) * 1.5
        faces.append((quad[:, 2].mean(), quad, GLASS if edge in glass else shade(colour, 0.88 if steep else 1.12)))
    for _, quad, tint in sorted(faces, key=lambda face: -face[0]):
        frame.painter.add(frame.label, tint, quad)
    on_side(frame, shade(colour, 0.78), outline)


def box(start: float, end: float, low: float, high: float) -> Outline:
    """Return a rectangle of (length, height)."""
    return [(start, low), (start, high), (end, high), (end, low)]


def on_side(frame: Frame, colour: Colour, outline: Outline) -> None:
    """Paint a polygon of (length, height) on the long side that the camera sees, if any."""
    if frame.side is not None:
        points = np.array(outline, float)
        world = frame.place(points[:, 0], points[:, 1], np.full(len(points), frame.side))
        frame.painter.add(frame.label, colour, world)


def wheels(frame: Frame, places: Sequence[float], radius: float) -> None:
    """Paint wheels on the visible side and the tyres under the near end."""
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for place in places:
        for size, colour in ((1.0, TYRE), (0.55, (150.0, 152.0, 156.0))):
            circle = [(place + size * radius * np.cos(a), radius + size * radius * np.sin(a)) for a in angles]
            on_side(frame, colour, circle)


def on_end(frame: Frame, colour: Colour, area: tuple[float, float, float, float], *, glow: float = 0.0) -> None:
    """Paint a rectangle (left, right, low, high; left and right as shares of the width) on the near end."""
    if not frame.across:
        left, right = frame.x + area[0] * frame.width, frame.x + area[1] * frame.width
        frame.painter.facing(frame.label, colour, left, right, area[2], area[3], frame.z - 0.01, glow=glow)


def lights(frame: Frame, *, low: float, high: float) -> None:
    """Paint the lamps of the near end: white at the front, red at the back."""
    colour: Colour = (255, 246, 214) if frame.towards else (205, 24, 20)
    for left in (0.05, 0.79):
        on_end(frame, colour, (left, left + 0.16, low, high), glow=1.0 if frame.towards else 0.8)


def contact(frame: Frame, ground: int, colour: Colour) -> None:
    """Paint the dark ground below a vehicle and its tyres' feet."""
    wide, deep = (frame.length, frame.width) if frame.across else (frame.width, frame.length)
    frame.painter.ground(ground, colour, frame.x - 0.05, frame.x + wide + 0.05, frame.z - 0.1, frame.z + deep)


def undercarriage(frame: Frame, *, high: float = 0.45) -> None:
    """Paint the tyres seen from the near end, between the ground and the body."""
    for left in (0.03, 0.83):
        on_end(frame, TYRE, (left, left + 0.14, 0.0, high))


def car(frame: Frame, *, kind: str, colour: Colour) -> None:
    """Paint a car of a kind of `CAR_PROFILES`."""
    outline, glass, _ = CAR_PROFILES[kind]
    undercarriage(frame)
    hull(frame, colour, outline, glass=glass)
    points = np.array(outline, float)
    (rear_low, front_top), (rear_top, front_low) = points[list(glass)], points[[edge + 1 for edge in glass]]
    sill, top = max(rear_low[1], front_low[1]) + 0.04, min(rear_top[1], front_top[1]) - 0.09
    middle = (rear_top[0] + front_top[0]) / 2
    rear, front = middle - 0.05, middle + 0.05
    if kind != "van":
        on_side(frame, GLASS, [(rear_low[0] + 0.35, sill), (rear_top[0] + 0.1, top), (rear, top), (rear, sill)])
    on_side(frame, GLASS, [(front, sill), (front, top), (front_top[0] - 0.05, top), (front_low[0] - 0.3, sill)])
    wheels(frame, (0.75, frame.length - 0.8), 0.33)
    if frame.towards:
        on_end(frame, (30, 30, 34), (0.3, 0.7, 0.42, 0.6))
    lights(frame, low=0.6, high=0.78)
    on_end(frame, (235, 235, 228), (0.38, 0.62, 0.44, 0.56))


def window_band(frame: Frame, *, low: float, high: float, pane: float) -> None:
    """Paint a row of side windows."""
    for start in np.arange(0.4, frame.length - 0.4 - pane * 0.6, pane):
        end = min(start + pane - 0.15, frame.length - 0.3)
        on_side(frame, GLASS, box(start, end, low, high))


def bus(frame: Frame, *, colour: Colour) -> None:
    """Paint a city bus: a tall box with a band of windows, a line number and doors."""
    undercarriage(frame)
    hull(frame, colour, box(0, frame.length, 0.35, 3.1))
    window_band(frame, low=1.35, high=2.5, pane=1.45)
    for door in (2.2, frame.length - 2.0):
        on_side(frame, (36, 42, 50), box(door, door + 1.1, 0.4, 2.5))
    on_side(frame, (240, 240, 235), box(0, frame.length, 0.95, 1.15))
    wheels(frame, (2.6, frame.length - 2.6), 0.48)
    on_end(frame, GLASS, (0.07, 0.93, 1.2 if frame.towards else 1.6, 2.5))
    on_end(frame, (20, 20, 20), (0.2, 0.8, 2.62, 2.95))
    for left in (0.3, 0.44, 0.58):
        on_end(frame, (255, 176, 32), (left, left + 0.09, 2.68, 2.89), glow=0.8)
    lights(frame, low=0.6, high=0.9)


def truck(frame: Frame, *, colour: Colour, cargo: Colour) -> None:
    """Paint a lorry: a cab in front of a tall box."""
    undercarriage(frame, high=0.9)
    long = frame.length - 2.2  # the box, then a gap and the cab
    near, far = ((0.0, 2.0), (2.2, long)) if frame.towards else ((0.0, long), (long + 0.2, 2.0))
    parts = [replace(frame, z=frame.z + start, length=length) for start, length in (near, far)]
    if frame.towards:
        _box(parts[1], cargo=cargo, stripe=colour)
        _cab(parts[0], colour=colour)
    else:
        _cab(parts[1], colour=colour)
        _box(parts[0], cargo=cargo, stripe=colour)
    lights(frame, low=0.6, high=0.82)


def _box(frame: Frame, *, cargo: Colour, stripe: Colour) -> None:
    """Paint the cargo box of a lorry with its chassis and rear doors."""
    dark, end = (58.0, 58.0, 60.0), frame.length
    hull(frame, cargo, box(0, end, 0.8, 3.5))
    on_side(frame, shade(stripe, 0.9), box(0.6, end - 0.6, 1.8, 2.5))
    on_side(frame, dark, box(0, end, 0.5, 0.8))
    wheels(frame, (1.0, 2.1), 0.5)
    if not frame.towards:
        on_end(frame, dark, (0.485, 0.515, 0.8, 3.5))
        on_end(frame, dark, (0.05, 0.95, 0.5, 0.8))


def _cab(frame: Frame, *, colour: Colour) -> None:
    """Paint the cab of a lorry."""
    outline = [(0, 0.5), (0, 2.7), (1.6, 2.75), (2.0, 1.6), (2.0, 0.5)]
    hull(frame, colour, outline, glass=(2,))
    on_side(frame, GLASS, [(0.9, 1.6), (0.9, 2.4), (1.55, 2.4), (1.8, 1.6)])
    wheels(frame, (1.1,), 0.5)


def tram(frame: Frame, *, colour: Colour) -> None:
    """Paint a tram: long, rounded front, a light band above the windows, a pantograph."""
    length, rim = frame.length, (236.0, 234.0, 226.0)
    roof = [(0, 0.25), (0, 2.2), (0.5, 3.4), (length - 0.5, 3.4), (length, 2.2), (length, 0.25)]
    hull(frame, colour, roof, glass=(1, 3))
    window_band(frame, low=1.3, high=2.4, pane=2.1)
    on_side(frame, rim, [(0.4, 2.6), (0.45, 2.95), (length - 0.45, 2.95), (length - 0.4, 2.6)])
    on_side(frame, (40, 40, 44), box(0, length, 0.25, 0.55))
    on_end(frame, rim, (0.0, 1.0, 0.95, 1.15))
    on_end(frame, GLASS, (0.1, 0.9, 1.3, 2.2))
    on_end(frame, (40, 40, 44), (0.08, 0.92, 0.25, 0.5))
    lights(frame, low=0.62, high=0.85)
    roof_end = Spot(frame.painter, frame.x + frame.width / 2, frame.z + 1.5)
    roof_end.limb(TRAIN, (60, 60, 64), [(-0.5, 3.4), (0, 4.3), (0.5, 3.4)], 0.07)
    roof_end.limb(TRAIN, (60, 60, 64), [(-0.8, 4.3), (0.8, 4.3)], 0.08)
