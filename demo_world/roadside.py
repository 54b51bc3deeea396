"""What lines the street: the skyline, buildings, walls, fences and greens, street furniture, people on the sidewalk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.labels import CLASS_NAMES
from demo_world import objects
from demo_world.objects import pick
from demo_world.painter import Array, Colour, Painter, Spot, palette, shade
from demo_world.street import CORNER, FAR, Street

BUILDING, WALL, FENCE = (CLASS_NAMES.index(name) for name in ("building", "wall", "fence"))
LOTS = ("building", "green", "wall", "fence")
FLOOR = 3.2  # metres
DEEP = 12.0  # of a building, away from the street
AWNINGS = palette("aa2828 285a3c 324682 c8963c")


@dataclass(frozen=True)
class Place:
    """Where something stands: its street face lies in the plane x from z[0] to z[1]; `side` is -1 left, 1 right."""

    x: float
    side: int
    z: tuple[float, float]


def skyline(street: Street) -> None:
    """Close the end of the street with far houses and trees."""
    rng, painter, x, z = street.rng, street.painter, -150.0, FAR + 20
    while x < 150:
        wide = float(rng.uniform(8, 26))
        painter.group(z)
        if rng.random() < 0.5:
            painter.facing(BUILDING, pick(rng, street.look.walls), x, x + wide, -8, float(rng.uniform(5, 16)), z)
        else:
            at = Spot(painter, x + wide / 2, z)
            objects.clumps(at, rng, street.look.leaves, centre=(0, 3.5), spread=(wide * 0.4, 2.2), size=3.4, count=9)
        x += wide * 0.8


def lots(street: Street, side: int) -> None:
    """Line one side of the street with buildings, greens, walls and fences."""
    rng, look, corner = street.rng, street.look, street.junction[1] + CORNER
    odds = np.array(look.lots) / sum(look.lots)
    for z, stop in street.blocks:
        while z < stop - 4:
            end = min(z + float(rng.uniform(9, 24)), stop)
            kind = str(rng.choice(LOTS, p=odds))
            if street.feature in ("wall", "fence") and side == look.sun and end > 5 and z < 14:
                kind = street.feature
            if kind == "building":
                _house(street, side, (z, end), floors=int(rng.integers(*look.floors)))
            else:
                _open_lot(street, kind, side, (max(z, 0.7), max(end, 0.8)))
            z = end + float(rng.choice((0.0, 0.3, 3.0)))
    for back in (50.0, 37.5, 25.0, 12.8)[: 4 * (len(street.blocks) - 1)]:  # along the side street
        if rng.random() < look.lots[0] + 0.2:
            _house(street, side, (corner, corner + 12), floors=int(rng.integers(*look.floors)), back=back)
        else:
            street.painter.group(corner + 12)
            for dx in (4.0, 9.0):
                _tree(street, side * (street.verge[side] + back + dx), corner + 3, tallest=8)


def _house(street: Street, side: int, z: tuple[float, float], *, floors: int, back: float = 0.4) -> None:
    """Paint a building: the face along the street, the end face towards the camera, roof, windows, ground floor."""
    rng, look, painter = street.rng, street.look, street.painter
    painter.group(max(z[1], 0.8))
    place, height = Place(side * (street.verge[side] + back), side, z), floors * FLOOR + 0.6
    x, outer, lit = place.x, place.x + side * DEEP, side > 0
    colour, roof, glass = pick(rng, look.walls), pick(rng, look.roofs), look.glass
    gabled = bool(rng.random() < look.gables)
    trim = shade(colour, float(rng.choice((0.72, 1.22))))
    if gabled:
        ridge, rise = x + side * DEEP / 2, height + 3.4
        slope = [(x, height, z[0]), (x, height, z[1]), (ridge, rise, z[1]), (ridge, rise, z[0])]
        painter.add(BUILDING, roof, np.array(slope))
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
    _ground_floor(street, place, trim)


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


def _ground_floor(street: Street, place: Place, trim: Colour) -> None:
    """Paint doors, and shop windows under awnings or plain windows, on the street face."""
    painter, shop, start, x = street.painter, street.rng.random() < 0.5, place.z[0] + 0.8, place.x
    awning, lip = pick(street.rng, AWNINGS), place.x - place.side * 1.0
    while start + 3.4 < place.z[1]:
        painter.upright(BUILDING, shade(trim, 0.5), x, 0.05, 2.3, start, start + 1.0)
        low, glow = (0.6, 0.5) if shop else (1.1, 0.0)
        painter.upright(BUILDING, shade(street.look.glass, 0.9), x, low, 2.4, start + 1.5, start + 3.3, glow=glow)
        if shop:
            left, right = start + 1.2, start + 3.5
            cloth = [(x, 3.0, left), (x, 3.0, right), (lip, 2.5, right), (lip, 2.5, left)]
            painter.add(BUILDING, awning, np.array(cloth))
            painter.upright(BUILDING, shade(awning, 0.85), lip, 2.25, 2.5, left, right)
        start += 4.0


def _wall(street: Street, place: Place) -> None:
    """Paint a free-standing wall of blocks with a coping."""
    painter, rng, x, (start, stop) = street.painter, street.rng, place.x, place.z
    colour, height, outer = pick(rng, street.look.stones), float(rng.uniform(1.9, 3.0)), x + place.side * 0.4
    painter.facing(WALL, shade(colour, 0.8), min(x, outer), max(x, outer), 0, height, start)
    painter.upright(WALL, colour, x, 0, height, start, stop)
    joint = shade(colour, 0.78)
    for number, row in enumerate(np.arange(0.45, height - 0.1, 0.45).tolist()):
        painter.upright(WALL, joint, x, row, row + 0.05, start, stop)
        for seam in np.arange(start + 0.5 + 0.55 * (number % 2), min(stop, start + 20), 1.1).tolist():
            painter.upright(WALL, joint, x, row - 0.4, row, seam, seam + 0.06)
    painter.upright(WALL, shade(colour, 1.18), x, height - 0.12, height + 0.06, start, stop)


def _fence(street: Street, place: Place) -> None:
    """Paint a fence of upright slats between posts; what shows between its slats is fence, as annotators label it."""
    painter, rng, x, (start, stop) = street.painter, street.rng, place.x, place.z
    colour, height = pick(rng, street.look.fences), float(rng.uniform(1.2, 1.9))
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


def _open_lot(street: Street, kind: str, side: int, z: tuple[float, float]) -> None:
    """Paint trees, perhaps a house behind them, and the wall, fence or bushes in front."""
    rng, look, painter, x = street.rng, street.look, street.painter, side * street.verge[side]
    behind = float(rng.uniform(3.0, 9.0))
    if kind != "green" and rng.random() < 0.45:
        _house(street, side, z, floors=2, back=behind + 3)
    painter.group(z[1])
    places = np.sort(rng.uniform(max(z[0], 2.0), max(z[1], 3.0), 4))[::-1].tolist()
    for depth in places:
        _tree(street, x + side * behind * float(rng.uniform(0.5, 1.2)), depth, tallest=9.5)
    if kind == "wall":
        _wall(street, Place(x, side, z))
    elif kind == "fence":
        _fence(street, Place(x, side, z))
    else:
        for depth in places:
            at = Spot(painter, x + side * 1.2, depth)
            objects.clumps(at, rng, look.leaves, centre=(0, 0.6), spread=(1.0, 0.35), size=0.75, count=9)


def _tree(street: Street, x: float, z: float, *, tallest: float) -> None:
    rng, look = street.rng, street.look
    kind = objects.TREES[str(rng.choice(tuple(objects.TREES), p=look.trees))]
    kind(Spot(street.painter, x, z), rng, height=float(rng.uniform(4.5, tallest)), leaves=look.leaves, bark=look.bark)


def furniture(street: Street, side: int) -> None:
    """Place lamps, signs, signals, street trees and bins along the kerb."""
    rng, painter, look = street.rng, street.painter, street.look
    x = side * (street.kerb[side] + 0.5)
    for z in map(street.past_junction, np.arange(float(rng.uniform(6, 22)), 90, 24).tolist()):
        painter.group(z)
        objects.lamp(Spot(painter, x, z), inward=-side, colour=look.metal)
    for z in rng.uniform(7, 45, int(rng.integers(0, 3)) + (street.feature == "signal")).tolist():
        painter.group(z)
        objects.sign(Spot(painter, x, z), rng, colour=look.metal)
    start = street.junction[0]
    if street.feature == "signal" or rng.random() < (0.8 if start < FAR else 0.1):
        z = start - 1.0 if start < FAR else float(rng.uniform(9, 22))
        painter.group(z)
        objects.traffic_light(Spot(painter, x, z), rng, inward=-side, colour=look.metal)
    if rng.random() < look.green:
        for z in map(
            street.past_junction, np.arange(float(rng.uniform(8, 18)), 80, float(rng.uniform(9, 16))).tolist()
        ):
            painter.group(z)
            _tree(street, side * (street.walk[side] - 0.3), z, tallest=7.5)
    if rng.random() < 0.3:
        z = float(rng.uniform(6, 25))
        painter.group(z)
        objects.litter_bin(Spot(painter, side * (street.kerb[side] + 0.9), z), rng)


def pavement_life(street: Street, side: int) -> None:
    """Place persons and parked two-wheelers on the sidewalk."""
    rng, painter, kerb, walk = street.rng, street.painter, street.kerb[side], street.walk[side]
    for _ in range(int(rng.poisson(2.8 * street.look.crowd))):
        z, share = street.past_junction(float(rng.uniform(5.5, 38))), float(rng.uniform(0.2, 0.9))
        painter.group(z)
        objects.person(Spot(painter, side * (kerb + share * (walk - kerb)), z), rng)
    parked = (("bicycle", objects.bicycle, 0.25), ("motorcycle", objects.motorcycle, 0.08))
    for name, paint, odds in parked:
        wanted = street.feature == name and side > 0
        if rng.random() < odds or wanted:
            z = float(rng.uniform(6, 12 if wanted else 20))
            painter.group(z)
            paint(Spot(painter, side * (kerb + 0.7), z, float(rng.uniform(0.55, 1.0))), rng)
