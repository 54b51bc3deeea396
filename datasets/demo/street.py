"""One street under construction: its camera, its cross-section, what must occur in it, and its painter."""

from __future__ import annotations

import numpy as np

from datasets.demo.looks import Look
from datasets.demo.painter import Camera, Colour, Painter

Rng = np.random.Generator
LANE = 3.4  # metres
FAR = 140.0
SIDES = (-1, 1)  # left, right
# One of these stands near in every frame, in turn: eight frames hold all classes.
FEATURES = ("truck", "bicycle", "bus", "motorcycle", "train", "fence", "wall", "signal")


class Street:
    """Where the parts of a street lie, in metres from its middle: lanes to `half`, then parking to `kerb`, sidewalk to
    `walk`, grass to `verge`; the last three per side.
    """

    def __init__(self, rng: Rng, *, look: Look, height: int, width: int, feature: str) -> None:
        """Draw the cross-section and the camera for frames of height x width pixels."""
        self.rng, self.look, self.feature = rng, look, feature
        self.lanes = int(rng.choice((2, 2, 3, 4)))
        self.half = self.lanes * LANE / 2
        self.own = int(rng.integers((self.lanes + 1) // 2, self.lanes))  # the camera's lane
        self.painter = Painter(
            Camera(
                height=height,
                width=width,
                focal=height * float(rng.uniform(*look.focal)),
                horizon=height * float(rng.uniform(*look.horizon)),
                centre=width * float(rng.uniform(0.42, 0.58)),
                x=self.lane_x(self.own) + float(rng.uniform(-0.4, 0.4)),
                y=float(rng.uniform(*look.eye)),
                bend=float(rng.choice((0.0, rng.uniform(-1, 1)))) * 0.0011,
            )
        )
        parking = {side: 2.3 * float(rng.random() < 0.5) for side in SIDES}
        self.parking = {side: wide > 0 for side, wide in parking.items()}
        self.kerb = {side: self.half + parking[side] for side in SIDES}
        self.walk = {side: self.kerb[side] + float(rng.uniform(1.8, 4.0)) for side in SIDES}
        self.verge = {side: self.walk[side] + float(rng.uniform(1, 4) * (rng.random() < look.green)) for side in SIDES}
        self.tracks = feature == "train" and look.rare

    def lane_x(self, lane: int) -> float:
        """Return the middle of a lane; lane 0 is the leftmost."""
        return -self.half + (lane + 0.5) * LANE

    def band(self, label: int, colour: Colour, side: int, inner: float, outer: float, z0: float, z1: float) -> None:
        """Paint the ground between two distances from the middle on one side, from z0 to z1."""
        self.painter.ground(label, colour, min(side * inner, side * outer), max(side * inner, side * outer), z0, z1)
