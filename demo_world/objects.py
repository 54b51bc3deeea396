"""Persons, two-wheelers and street furniture as flat figures that face the camera."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datasets.labels import CLASS_NAMES
from demo_world.painter import VOID, Colour, Spot, palette, shade

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
