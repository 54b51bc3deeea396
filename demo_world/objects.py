"""Persons, two-wheelers and street furniture as flat figures that face the camera; vehicles as extruded profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from datasets.labels import CLASS_NAMES
from demo_world.painter import VOID, Array, Colour, Painter, Spot, palette, shade

POLE, LIGHT, SIGN, VEGETATION, PERSON, RIDER, MOTORCYCLE, BICYCLE = (
    CLASS_NAMES.index(name)
    for name in ("pole", "traffic light", "traffic sign", "vegetation", "person", "rider", "motorcycle", "bicycle")
)
Rng = np.random.Generator
Point = tuple[float, float]
SKINS = palette("e0b69a be8c6c 805842 563a2c")
CLOTHES = palette("282c3c a8282c 345c96 d6d0c4 424244 c4a03c 3c6e50 785482")
HAIR = palette("1e1816 563822 a08050 787878")
BICYCLES = palette("be2824 245aaa 288250 e6be32 3c3c40")
MOTORCYCLES = palette("c81e1e 1e3c96 141416 e67814")
BINS = palette("3c5a46 505054 965a28")
LENSES = palette("3ce678 ffbe28 fa281e")


def pick(rng: Rng, colours: tuple[Colour, ...]) -> Colour:
    """Sample one colour, slightly lighter or darker than it is listed."""
    return shade(colours[int(rng.integers(len(colours)))], float(rng.uniform(0.85, 1.15)))


def person(at: Spot, rng: Rng) -> None:
    """Paint a walking or standing person, feet at (x, z)."""
    tall = float(rng.uniform(0.86, 1.05))  # 1 is 1.76 m
    stride, swing = float(rng.uniform(0.03, 0.3)), float(rng.uniform(0.05, 0.25))
    top, trousers, skin = pick(rng, CLOTHES), pick(rng, CLOTHES), pick(rng, SKINS)

    def scaled(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(dx * tall, y * tall) for dx, y in points]

    for side in (-1, 1):
        foot, hand = stride * side, swing * side
        leg = scaled((0.07 * side, 0.92), (0.1 * side + foot * 0.4, 0.48), (foot, 0.06))
        at.limb(PERSON, shade(trousers, 0.9 + 0.1 * side), leg, 0.17 * tall)
        at.limb(PERSON, (28, 26, 26), scaled((foot - 0.06, 0.04), (foot + 0.12, 0.04)), 0.09)
        arm = scaled((0.2 * side, 1.4), (0.25 * side + hand * 0.3, 1.12), (0.22 * side + hand, 0.88))
        at.limb(PERSON, shade(top, 0.8), arm, 0.11)
    at.flat(PERSON, top, scaled((-0.2, 0.85), (-0.24, 1.42), (-0.1, 1.5), (0.1, 1.5), (0.24, 1.42), (0.2, 0.85)))
    at.flat(PERSON, skin, scaled((-0.05, 1.46), (-0.05, 1.56), (0.05, 1.56), (0.05, 1.46)))
    at.disc(PERSON, pick(rng, HAIR), (0, 1.67 * tall), 0.125 * tall)
    at.disc(PERSON, skin, (0.01, 1.635 * tall), 0.1 * tall)


def _wheel(at: Spot, label: int, place: float, radius: float, hub: Colour) -> None:
    at.disc(label, (20, 20, 22), (place, radius), radius)
    at.disc(label, hub, (place, radius), radius * 0.78)
    at.disc(label, (40, 40, 42), (place, radius), radius * 0.18)


def bicycle(at: Spot, rng: Rng) -> None:
    """Paint a bicycle seen from the side (turn 1) or obliquely."""
    colour = pick(rng, BICYCLES)
    for place in (-0.52, 0.52):
        _wheel(at, BICYCLE, place, 0.35, (140, 142, 142))
    for line in (
        [(-0.52, 0.35), (-0.05, 0.33), (0.38, 0.82), (-0.18, 0.8), (-0.52, 0.35)],
        [(-0.05, 0.33), (-0.22, 0.95)],
        [(0.52, 0.35), (0.36, 1.0)],
    ):
        at.limb(BICYCLE, colour, line, 0.07)
    at.limb(BICYCLE, (24, 24, 24), [(-0.34, 0.97), (-0.1, 0.97)], 0.08)
    at.limb(BICYCLE, (24, 24, 24), [(0.28, 1.02), (0.5, 1.06)], 0.07)


def motorcycle(at: Spot, rng: Rng) -> None:
    """Paint a motorcycle seen from the side (turn 1) or obliquely."""
    colour = pick(rng, MOTORCYCLES)
    for place in (-0.7, 0.7):
        _wheel(at, MOTORCYCLE, place, 0.33, (120, 120, 124))
    at.flat(MOTORCYCLE, (70, 70, 74), [(-0.45, 0.28), (-0.4, 0.6), (0.35, 0.6), (0.4, 0.28)])
    at.limb(MOTORCYCLE, (170, 172, 176), [(-0.85, 0.32), (0.1, 0.3)], 0.1)
    at.flat(
        MOTORCYCLE,
        colour,
        [(-0.95, 0.78), (-0.7, 0.86), (-0.1, 0.72), (0.1, 1.0), (0.5, 0.98), (0.62, 0.7), (0.3, 0.52), (-0.5, 0.55)],
    )
    at.flat(MOTORCYCLE, (18, 18, 20), [(-0.8, 0.82), (-0.75, 0.92), (0.02, 0.88), (-0.02, 0.76)])
    at.limb(MOTORCYCLE, (60, 60, 64), [(0.7, 0.35), (0.42, 1.12), (0.2, 1.16)], 0.07)
    at.disc(MOTORCYCLE, (255, 244, 210), (0.6, 0.9), 0.1, glow=0.9)


def rider(at: Spot, rng: Rng, *, motor: bool) -> None:
    """Paint a rider on a bicycle or a motorcycle that is painted first."""
    (motorcycle if motor else bicycle)(at, rng)
    upright = replace(at, turn=1.0)
    top, trousers, skin = pick(rng, CLOTHES), pick(rng, CLOTHES), pick(rng, SKINS)
    rise = -0.1 if motor else 0.0
    hip, shoulder = (-0.22, 1.02 + rise), (0.1, 1.56 + rise)
    at.limb(RIDER, trousers, [hip, (0.16, 0.84 + rise), (0.02, 0.3)], 0.17)
    at.limb(RIDER, (26, 26, 26), [(-0.06, 0.29), (0.16, 0.27)], 0.1)
    replace(at, turn=max(at.turn, 0.8)).limb(RIDER, top, [(hip[0], hip[1] - 0.06), shoulder], 0.32)
    at.limb(RIDER, shade(top, 0.75), [shoulder, (0.3, 1.26 + rise), (0.42, 1.08)], 0.12)
    upright.disc(RIDER, skin, (0.2, 1.74 + rise), 0.115)
    helmet = [(0.2 + 0.16 * np.cos(a), 1.77 + rise + 0.15 * np.sin(a)) for a in np.linspace(-0.3, np.pi + 0.2, 9)]
    upright.flat(RIDER, (200, 40, 36) if motor else pick(rng, CLOTHES), helmet)


def tree(at: Spot, rng: Rng, *, height: float, leaves: tuple[Colour, ...], bark: Colour) -> None:
    """Paint a tree: a trunk and a crown of overlapping clumps, lighter towards the light; all of it is vegetation."""
    crown = height * float(rng.uniform(0.3, 0.42))
    at.limb(VEGETATION, bark, [(0, 0), (0.05, height - crown)], 0.05 * height)
    centre, spread = (0.0, height - crown), (crown * 0.62, crown * 0.7)
    clumps(at, rng, leaves, centre=centre, spread=spread, size=crown * 0.42, count=20)


def conifer(at: Spot, rng: Rng, *, height: float, leaves: tuple[Colour, ...], bark: Colour) -> None:
    """Paint a fir: whorls of branches from wide to narrow."""
    at.limb(VEGETATION, bark, [(0, 0), (0, 0.3 * height)], 0.04 * height)
    for low in np.linspace(0.1, 0.76, 6).tolist():
        wide, colour = 0.29 * height * (1.02 - low), shade(pick(rng, leaves), 0.55 + 0.4 * low)
        whorl = ((-1, 0), (-0.5, 0.03), (0, -0.02), (0.5, 0.03), (1, 0), (0, 0.25))
        at.flat(VEGETATION, colour, [(dx * wide, height * (low + lift)) for dx, lift in whorl])


def palm(at: Spot, rng: Rng, *, height: float, leaves: tuple[Colour, ...], bark: Colour) -> None:
    """Paint a palm: a thin leaning trunk and a head of drooping fronds."""
    top = np.array((float(rng.uniform(-0.1, 0.1)) * height, height))
    at.limb(VEGETATION, bark, [(0, 0), (top[0] * 0.35, height * 0.55), (top[0], height)], 0.28)
    for angle in (np.linspace(-0.5, np.pi + 0.5, 11) + rng.uniform(-0.12, 0.12, 11)).tolist():
        along = np.array((np.cos(angle), 0.75 * np.sin(angle))) * float(rng.uniform(1.5, 2.1))
        drop, wide = np.array((0, 0.8 * abs(np.cos(angle)))), np.array((-along[1], along[0])) * 0.14
        line = [top, top + along * 0.55 + wide, top + along - drop, top + along * 0.5 - wide - drop * 0.25]
        at.flat(VEGETATION, shade(pick(rng, leaves), 0.8 + 0.25 * np.sin(angle)), [tuple(p) for p in line])


TREES = {"broad": tree, "conifer": conifer, "palm": palm}


def clumps(
    at: Spot, rng: Rng, leaves: tuple[Colour, ...], *, centre: Point, spread: Point, size: float, count: int
) -> None:
    """Paint a heap of leafy blobs, from dark low ones to light high ones.

    Args:
        centre: its middle (dx, y); `spread` is how far the blobs lie from it, `size` their radius, metres.
        count: how many blobs there are nearby; far ones need no detail.
    """
    count = int(np.clip(count * 16 / at.z, 5, count))
    places = np.clip(rng.normal(size=(count, 2)), -1.5, 1.5)
    places = places[np.argsort(places[:, 1] * 0.6 - places[:, 0] * 0.2)]
    colours = [shade(pick(rng, leaves), 0.86 + 0.17 * dy - 0.06 * dx) for dx, dy in places]
    centres = np.empty((count, 3))
    centres[:, :2] = np.array((at.x, 0)) + centre + places * spread
    centres[:, 2] = at.z
    radii = size * (1 + 2 / count) * rng.uniform(0.7, 1.1, (count, 1)) * rng.uniform(0.75, 1.2, (count, 16))
    at.painter.blobs(VEGETATION, colours, centres, radii)


def lamp(at: Spot, *, inward: float, colour: Colour) -> None:
    """Paint a street lamp whose arm reaches over the road."""
    at.limb(POLE, colour, [(0, 0), (0, 6.8)], 0.16)
    at.limb(POLE, colour, [(0, 6.75), (1.8 * inward, 7.0)], 0.12)
    at.limb(POLE, (250, 236, 190), [(1.2 * inward, 6.93), (2.0 * inward, 6.95)], 0.2, glow=1.0)


def traffic_light(at: Spot, rng: Rng, *, inward: float, colour: Colour) -> None:
    """Paint a mast with one signal beside and, sometimes, one above the road."""
    places = [(0.0, 2.6)]
    at.limb(POLE, colour, [(0, 0), (0, 3.7)], 0.14)
    if rng.random() < 0.6:
        at.limb(POLE, colour, [(0, 3.6), (0, 5.6), (3.2 * inward, 5.75)], 0.14)
        places.append((2.9 * inward, 4.7))
    lit = int(rng.integers(3))
    for dx, low in places:
        left, right, top = dx - 0.24, dx + 0.24, low + 1.15
        at.flat(LIGHT, (26, 27, 24), [(left, low), (left, top), (right, top), (right, low)])
        for lens, tint in enumerate(LENSES):
            glow = float(lens == lit)
            at.disc(LIGHT, tint if glow else shade(tint, 0.25), (dx, low + 0.22 + 0.36 * lens), 0.15, glow=glow)


def sign(at: Spot, rng: Rng, *, colour: Colour) -> None:
    """Paint a post with a round, triangular, square or direction sign."""
    kind, size = int(rng.integers(5)), float(rng.uniform(0.36, 0.5))
    at.limb(POLE, colour, [(0, 0), (0, 2.6)], 0.09)
    rim: Colour = (205, 28, 32)

    def triangle(scale: float) -> list[tuple[float, float]]:
        return [(-scale * 1.1, 2.6 - scale * 0.7), (0, 2.6 + scale * 1.15), (scale * 1.1, 2.6 - scale * 0.7)]

    if kind == 0:
        for radius, tint in ((size, rim), (size * 0.72, (240.0, 240.0, 236.0))):
            at.disc(SIGN, tint, (0, 2.6), radius)
        at.limb(SIGN, (20, 20, 20), [(-size * 0.35, 2.6), (size * 0.35, 2.6)], size * 0.5)
    elif kind == 1:
        at.flat(SIGN, rim, triangle(size))
        at.flat(SIGN, (244, 242, 232), triangle(size * 0.6))
    elif kind == 2:
        at.disc(SIGN, (24, 80, 170), (0, 2.6), size)
        at.limb(SIGN, (240, 240, 240), [(0, 2.6 - size * 0.6), (0, 2.6 + size * 0.6)], size * 0.3)
    elif kind == 3:
        half = size * 1.2
        at.flat(SIGN, (240, 200, 30), [(0, 2.6 - half), (half, 2.6), (0, 2.6 + half), (-half, 2.6)])
        at.limb(SIGN, (20, 20, 20), [(0, 2.6 - size * 0.5), (0, 2.6 + size * 0.5)], size * 0.3)
    else:
        at.flat(SIGN, (28, 96, 60), [(-1.1, 2.2), (-1.1, 3.1), (1.1, 3.1), (1.1, 2.2)])
        for row in (2.4, 2.7):
            at.limb(SIGN, (240, 240, 240), [(-0.85, row + 0.1), (0.6, row + 0.1)], 0.14)


def litter_bin(at: Spot, rng: Rng) -> None:
    """Paint a litter bin, which belongs to no class."""
    colour = pick(rng, BINS)
    at.flat(VOID, colour, [(-0.28, 0), (-0.32, 1.0), (0.32, 1.0), (0.28, 0)])
    at.flat(VOID, shade(colour, 0.6), [(-0.35, 0.95), (-0.3, 1.12), (0.3, 1.12), (0.35, 0.95)])


CAR, TRUCK, BUS, TRAIN = (CLASS_NAMES.index(name) for name in ("car", "truck", "bus", "train"))
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
