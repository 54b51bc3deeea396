"""A whole scene; the layout, its odds and its order are the same in all domains."""

from __future__ import annotations

from demo_world import roadside, roadway
from demo_world.looks import Look
from demo_world.painter import Painter
from demo_world.street import SIDES, Rng, Street


def build_scene(rng: Rng, *, look: Look, height: int, width: int, feature: str) -> Painter:
    """Return the painter of a scene for frames of height x width pixels that shows a `feature` of `FEATURES` nearby."""
    street = Street(rng, look=look, height=height, width=width, feature=feature)
    roadway.ground(street)
    roadside.skyline(street)
    for side in SIDES:
        roadside.lots(street, side)
        roadside.furniture(street, side)
        roadside.pavement_life(street, side)
    roadway.traffic(street)
    roadway.crossing(street)
    if look.hood:
        roadway.hood(street)
    return street.painter
