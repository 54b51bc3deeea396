"""One street: its camera, its cross-section, what must occur in it; the ground and what moves on the road."""

from __future__ import annotations

import numpy as np

from datasets.labels import CLASS_NAMES
from demo_world import objects, vehicles
from demo_world.looks import Look
from demo_world.objects import pick
from demo_world.painter import VOID, Camera, Colour, Painter, Spot, shade

Rng = np.random.Generator
LANE = 3.4  # metres
FAR = 140.0
MAX_BEND, MAX_RISE, MAX_FALL = 0.005, 0.12, 0.034  # the last per metre of the eye's height: no crest before FAR
CORNER = 3.0  # metres from a side street to the houses
SIDES = (-1, 1)  # left, right
# One of these stands near in every frame, in turn: eight frames hold all classes.
FEATURES = ("truck", "bicycle", "bus", "motorcycle", "train", "fence", "wall", "signal")


class Street:
    """Where the parts of a street lie, in metres from its middle: lanes to `half`, then parking to `kerb`, sidewalk to
    `walk`, grass to `verge`; the last three per side. A side street crosses from junction[0] to junction[1] ahead.
    """

    def __init__(self, rng: Rng, *, look: Look, height: int, width: int, feature: str) -> None:
        """Sample the cross-section and the camera for frames of height x width pixels."""
        self.rng, self.look, self.feature = rng, look, feature
        self.lanes = int(rng.choice(look.lanes))
        self.half = self.lanes * LANE / 2
        self.own = int(rng.integers((self.lanes + 1) // 2, self.lanes))  # the camera's lane
        eye = float(rng.uniform(*look.eye))
        self.painter = Painter(
            Camera(
                height=height,
                width=width,
                focal=height * float(rng.uniform(*look.focal)),
                horizon=height * float(rng.uniform(*look.horizon)),
                centre=width * float(rng.uniform(0.42, 0.58)),
                x=self.lane_x(self.own) + float(rng.uniform(-0.4, 0.4)),
                y=eye,
                bend=float(rng.choice((0.0, rng.uniform(-1, 1)))) * MAX_BEND,
                rise=float(rng.choice((0.0, rng.uniform(-MAX_FALL * eye, MAX_RISE)))),
            )
        )
        parking = {side: 2.3 * float(rng.random() < 0.5) for side in SIDES}
        self.parking = {side: wide > 0 for side, wide in parking.items()}
        self.kerb = {side: self.half + parking[side] for side in SIDES}
        self.walk = {side: self.kerb[side] + float(rng.uniform(2.2, 5.0)) for side in SIDES}
        self.verge = {side: self.walk[side] + float(rng.uniform(1, 4) * (rng.random() < look.green)) for side in SIDES}
        self.tracks = feature == "train" and look.rare
        start = float(rng.uniform(14, 42)) if rng.random() < 0.45 else FAR
        self.junction = (start, start + float(rng.uniform(7, 11)))
        self.blocks = [(-6.0, start - CORNER), (self.junction[1] + CORNER, FAR)][: 1 + (start < FAR)]

    def past_junction(self, z: float, room: float = 0.0) -> float:
        """Return the first place from z on where something `room` metres long stands clear of the junction."""
        start, end = self.junction
        return end + 1.0 if start - 1 - room < z < end + 1 else z

    def lane_x(self, lane: int) -> float:
        """Return the middle of a lane; lane 0 is the leftmost."""
        return -self.half + (lane + 0.5) * LANE

    def band(self, label: int, colour: Colour, side: int, inner: float, outer: float, z0: float, z1: float) -> None:
        """Paint the ground between two distances from the middle on one side, from z0 to z1."""
        self.painter.ground(label, colour, min(side * inner, side * outer), max(side * inner, side * outer), z0, z1)


ROAD, SIDEWALK, TERRAIN = (CLASS_NAMES.index(name) for name in ("road", "sidewalk", "terrain"))


def ground(street: Street) -> None:
    """Paint fields, verges, sidewalks, kerbs, the road and its marks."""
    painter, look, rng = street.painter, street.look, street.rng
    painter.group(1000.0, layer=0)
    lawn = look.grass if look.rare else shade(look.walk, 0.9)
    painter.ground(TERRAIN if look.rare else SIDEWALK, lawn, -300, 300, 0.6, 600)
    start, end = street.junction
    painter.ground(SIDEWALK, look.walk, -90, 90, start - 2.5, end + 2.5)
    for side in SIDES:
        kerb, walk = street.kerb[side], street.walk[side]
        street.band(SIDEWALK, look.walk, side, kerb, walk, 0.6, 400)
        for joint in np.arange(2.0, 40.0, 1.6):
            street.band(SIDEWALK, shade(look.walk, 0.88), side, kerb, walk, joint, joint + 0.07)
        if street.verge[side] == walk:  # paved up to the houses
            street.band(SIDEWALK, shade(look.walk, 0.95), side, walk, walk + 9, 0.6, 200)
        street.band(SIDEWALK, shade(look.walk, 1.18), side, kerb, kerb + 0.2, 0.6, 300)
    painter.ground(ROAD, look.road, -street.kerb[-1], street.kerb[1], 0.6, 600)
    for _ in range(int(rng.integers(2, 7))):  # patches and stains
        x, z, wide = float(rng.uniform(-street.half, street.half - 1)), float(rng.uniform(3, 40)), rng.uniform(0.5, 1.6)
        painter.ground(ROAD, shade(look.road, float(rng.uniform(0.82, 1.1))), x, x + float(wide), z, z * 1.3)
    if look.shadows:
        kerb, walk = street.kerb[look.sun], street.walk[look.sun]
        for start in np.arange(0, 90, 13.0):
            if rng.random() < 0.6:
                reach = kerb - float(rng.uniform(1, 4))
                street.band(ROAD, shade(look.road, 0.6), look.sun, reach, kerb, start, start + 11)
                street.band(SIDEWALK, shade(look.walk, 0.6), look.sun, kerb, walk, start, start + 11)
    marks(street)
    painter.ground(ROAD, look.road, -90, 90, start, end)
    painter.ground(ROAD, look.mark, street.lanes // 2 * LANE - street.half, street.half, start - 1.3, start - 0.9)


def marks(street: Street) -> None:
    """Paint lane marks, edge lines and, for a tram, its rails."""
    painter, look = street.painter, street.look
    middle = street.lanes // 2
    for lane in range(1, street.lanes):
        x = -street.half + lane * LANE
        colour = look.centre_mark if lane == middle else look.mark
        if lane == middle and street.lanes > 2:
            for dx in (-0.16, 0.16):
                painter.ground(ROAD, colour, x + dx - 0.06, x + dx + 0.06, 0.6, 300)
        else:
            for start in np.arange(1.0, 90.0, 7.0):
                painter.ground(ROAD, colour, x - 0.08, x + 0.08, start, start + 3.2)
    for side in SIDES:
        street.band(ROAD, look.mark, side, street.half - 0.19, street.half - 0.05, 0.6, 300)
    if street.tracks:
        for dx in (-0.72, 0.72):
            x = street.lane_x(middle - 1) + dx
            painter.ground(ROAD, (92, 92, 98), x - 0.07, x + 0.07, 0.6, 200)


def traffic(street: Street) -> None:
    """Fill lanes and parking bays, each from near to far with gaps."""
    rng, feature = street.rng, street.feature
    lane_of_feature = {"truck": street.own, "bus": street.own, "train": street.lanes // 2 - 1}.get(feature, -1)
    for lane in range(street.lanes):
        x, towards = street.lane_x(lane), lane < street.lanes // 2
        z = float(rng.uniform(11, 26) if lane == street.own else rng.uniform(7, 26))
        wanted = feature if lane == lane_of_feature else ""
        while (z := street.past_junction(z, 24 if wanted == "train" else 9 if wanted else 4)) < 90:
            z += vehicle(street, wanted or _kind(street), x, z, towards=towards)
            z += float(rng.exponential(18.0 / street.look.crowd)) + 2.5
            wanted = ""
        if rng.random() < 0.3 or (feature in ("bicycle", "motorcycle") and lane == street.lanes - 1):
            place, motor = float(rng.uniform(6.5, 11)), feature == "motorcycle" or bool(rng.random() < 0.3)
            street.painter.group(place)
            aside, turn = float(rng.choice((-1.2, 1.2))), float(rng.uniform(0.45, 1.0))
            objects.rider(Spot(street.painter, x + aside, place, turn), rng, motor=motor and feature != "bicycle")
    for side in SIDES:
        z = float(rng.uniform(3, 10))
        while street.parking[side] and (z := street.past_junction(z, 9)) < 70:
            z += vehicle(street, "car", side * (street.half + 1.15), z, towards=side < 0)
            z += float(rng.exponential(5.0)) + 0.8


def _kind(street: Street) -> str:
    """Sample what drives in a lane."""
    kinds = ("car", "truck", "bus") if street.look.rare else ("car", "car", "bus")
    return str(street.rng.choice(kinds, p=(0.9, 0.06, 0.04)))


def vehicle(street: Street, kind: str, x: float, z: float, *, towards: bool, across: bool = False) -> float:
    """Paint a vehicle centred at x that begins at z; returns its extent along the road."""
    rng, look, painter = street.rng, street.look, street.painter
    if not look.rare and kind in ("truck", "train"):
        kind = "bus"
    model = str(rng.choice(tuple(vehicles.CAR_PROFILES), p=look.models))
    outline, _, car_width = vehicles.CAR_PROFILES[model]
    sizes = {"truck": (8.5, 2.5), "bus": (11.0, 2.55), "train": (24.0, 2.5), "car": (outline[-1][0], car_width)}
    length, width = sizes[kind]
    painter.group(z)
    left, label = x if across else x - width / 2, CLASS_NAMES.index(kind)
    frame = vehicles.Frame(painter, label, left, z, length, width, towards, across)
    vehicles.contact(frame, ROAD, shade(look.road, 0.35 if look.shadows else 0.55))
    if kind == "truck":
        vehicles.truck(frame, colour=pick(rng, look.cars), cargo=pick(rng, look.cargo))
    elif kind == "bus":
        vehicles.bus(frame, colour=pick(rng, look.buses))
    elif kind == "train":
        vehicles.tram(frame, colour=pick(rng, look.trams))
    else:
        vehicles.car(frame, kind=model, colour=pick(rng, look.cars))
    return width if across else length


def crossing(street: Street) -> None:
    """Sometimes lay a zebra crossing with persons on it, and let a car come out of the side street."""
    rng, painter, (start, end) = street.rng, street.painter, street.junction
    if rng.random() < (0.7 if street.junction[0] < FAR else 0.25):
        z = start - 5 if start < FAR else float(rng.uniform(7, 14))
        painter.group(0.5, layer=0)
        for x in np.arange(-street.kerb[-1] + 0.4, street.kerb[1] - 0.6, 1.1):
            painter.ground(ROAD, street.look.mark, x, x + 0.55, z, z + 3)
        for _ in range(int(rng.poisson(1.6 * street.look.crowd))):
            place = z + float(rng.uniform(0.5, 2.5))
            painter.group(place)
            objects.person(Spot(painter, float(rng.uniform(-street.half, street.half)), place), rng)
    if start < FAR and rng.random() < 0.6:
        place = float(rng.uniform(start + 0.5, end - 2.5))
        vehicle(street, "car", float(rng.uniform(-14, 10)), place, towards=bool(rng.random() < 0.5), across=True)


def hood(street: Street) -> None:
    """Paint the hood of the own car, which belongs to no class."""
    painter = street.painter
    size = np.array((painter.camera.width, painter.camera.height))
    painter.group(0.6, layer=2)
    columns = np.linspace(-0.05, 1.05, 16)
    rows = 0.93 + 0.35 * (columns - 0.5) ** 2
    for lift, colour in ((0.0, (58.0, 64.0, 66.0)), (0.03, (38.0, 43.0, 46.0))):
        edge = np.stack((columns, rows + lift), axis=-1)
        painter.add_pixels(VOID, colour, np.concatenate((edge, [(1.1, 1.2), (-0.1, 1.2)])) * size)
