"""What lines the street: the skyline, lots, street furniture, people on the sidewalk."""

from __future__ import annotations

import numpy as np

from datasets.labels import CLASS_NAMES
from demo_world import figures, structures
from demo_world.figures import pick
from demo_world.painter import Spot
from demo_world.street import CORNER, FAR, Street

BUILDING = CLASS_NAMES.index("building")
LOTS = ("building", "green", "wall", "fence")


def skyline(street: Street) -> None:
    """Close the end of the street with far houses and trees."""
    rng, painter, x, z = street.rng, street.painter, -150.0, FAR + 20
    while x < 150:
        wide = float(rng.uniform(8, 26))
        painter.group(z)
        if rng.random() < 0.5:
            painter.facing(BUILDING, pick(rng, street.look.walls), x, x + wide, -8, float(rng.uniform(5, 16)), z)
        else:
            heap = figures.Heap(centre=(0, 3.5), spread=(wide * 0.4, 2.2), size=3.4, count=9)
            figures.clumps(Spot(painter, x + wide / 2, z), rng, heap=heap, leaves=street.look.leaves)
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
    rng, look = street.rng, street.look
    street.painter.group(max(z[1], 0.8))
    structures.building(
        street.painter,
        rng,
        place=structures.Place(x=side * (street.verge[side] + back), side=side, z=z),
        floors=floors,
        colour=pick(rng, look.walls),
        roof=pick(rng, look.roofs),
        glass=look.glass,
        gabled=bool(rng.random() < look.gables),
    )


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
        structures.wall(painter, rng, place=structures.Place(x, side, z), colour=pick(rng, look.stones))
    elif kind == "fence":
        structures.fence(painter, rng, place=structures.Place(x, side, z), colour=pick(rng, look.fences))
    else:
        bush = figures.Heap(centre=(0, 0.6), spread=(1.0, 0.35), size=0.75, count=9)
        for depth in places:
            figures.clumps(Spot(painter, x + side * 1.2, depth), rng, heap=bush, leaves=look.leaves)


def _tree(street: Street, x: float, z: float, *, tallest: float) -> None:
    rng, look = street.rng, street.look
    kind = figures.TREES[str(rng.choice(tuple(figures.TREES), p=look.trees))]
    kind(Spot(street.painter, x, z), rng, height=float(rng.uniform(4.5, tallest)), leaves=look.leaves, bark=look.bark)


def furniture(street: Street, side: int) -> None:
    """Place lamps, signs, signals, street trees and bins along the kerb."""
    rng, painter, look = street.rng, street.painter, street.look
    x = side * (street.kerb[side] + 0.5)
    for z in map(street.past_junction, np.arange(float(rng.uniform(6, 22)), 90, 24).tolist()):
        painter.group(z)
        figures.lamp(Spot(painter, x, z), inward=-side, colour=look.metal)
    for z in rng.uniform(7, 45, int(rng.integers(0, 3)) + (street.feature == "signal")).tolist():
        painter.group(z)
        figures.sign(Spot(painter, x, z), rng, colour=look.metal)
    start = street.junction[0]
    if street.feature == "signal" or rng.random() < (0.8 if start < FAR else 0.1):
        z = start - 1.0 if start < FAR else float(rng.uniform(9, 22))
        painter.group(z)
        figures.traffic_light(Spot(painter, x, z), rng, inward=-side, colour=look.metal)
    if rng.random() < look.green:
        for z in map(
            street.past_junction, np.arange(float(rng.uniform(8, 18)), 80, float(rng.uniform(9, 16))).tolist()
        ):
            painter.group(z)
            _tree(street, side * (street.walk[side] - 0.3), z, tallest=7.5)
    if rng.random() < 0.3:
        z = float(rng.uniform(6, 25))
        painter.group(z)
        figures.litter_bin(Spot(painter, side * (street.kerb[side] + 0.9), z), rng)


def pavement_life(street: Street, side: int) -> None:
    """Place persons and parked two-wheelers on the sidewalk."""
    rng, painter, kerb, walk = street.rng, street.painter, street.kerb[side], street.walk[side]
    for _ in range(int(rng.poisson(2.8 * street.look.crowd))):
        z, share = street.past_junction(float(rng.uniform(5.5, 38))), float(rng.uniform(0.2, 0.9))
        painter.group(z)
        figures.person(Spot(painter, side * (kerb + share * (walk - kerb)), z), rng)
    parked = (("bicycle", figures.bicycle, 0.25), ("motorcycle", figures.motorcycle, 0.08))
    for name, paint, odds in parked:
        wanted = street.feature == name and side > 0
        if rng.random() < odds or wanted:
            z = float(rng.uniform(6, 12 if wanted else 20))
            painter.group(z)
            paint(Spot(painter, side * (kerb + 0.7), z, float(rng.uniform(0.55, 1.0))), rng)
