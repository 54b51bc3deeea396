"""One street under construction: its camera, its cross-section, what must occur in it, and its painter."""

from __future__ import annotations

import numpy as np

from demo_world.looks import Look
from demo_world.painter import Camera, Colour, Painter

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
