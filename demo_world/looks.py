"""How the five domains look, in numbers: materials, viewpoint, light, weather and sensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from demo_world.painter import Colour

Range = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """Values of one domain; colours 0..255, lengths in metres, focal length and horizon as shares of the height."""

    # Materials
    road: Colour
    walk: Colour
    grass: Colour
    mark: Colour
    centre_mark: Colour
    walls: tuple[Colour, ...]
    roofs: tuple[Colour, ...]
    stones: tuple[Colour, ...]
    fences: tuple[Colour, ...]
    leaves: tuple[Colour, ...]
    bark: Colour
    metal: Colour
    glass: Colour
    cars: tuple[Colour, ...]
    cargo: tuple[Colour, ...]
    buses: tuple[Colour, ...]
    trams: tuple[Colour, ...]
    sky: tuple[Colour, Colour]  # top, horizon
    # Viewpoint and layout
    eye: Range
    focal: Range
    horizon: Range
    lots: tuple[float, float, float, float]  # odds of building, green, wall, fence
    floors: tuple[int, int]
    gables: float
    green: float
    crowd: float
    lanes: tuple[int, ...] = (2, 2, 3, 4)
    models: tuple[float, float, float, float] = (0.35, 0.35, 0.2, 0.1)  # odds of sedan, hatch, suv, van
    trees: tuple[float, float, float] = (1.0, 0.0, 0.0)  # odds of broad, conifer, palm
    hood: bool = False
    rare: bool = True  # whether terrain, truck and train exist
    # Light, weather, sensor
    clouds: float = 0.5
    shadows: bool = False
    sun: int = 1
    texture: float = 1.0
    gain: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    tint: Colour = (1.0, 1.0, 1.0)
    lift: Colour = (0.0, 0.0, 0.0)
    blur: float = 0.0
    noise: float = 0.0
    fog: float = 0.0  # 1 / metres
    fog_colour: Colour = (200, 204, 208)
    night: float = 0.0
    rain: float = 0.0
    snow: float = 0.0
    vignette: float = 0.0
    sharpen: float = 0.0
    levels: int = 256


_CARS: tuple[Colour, ...] = (
    (196, 198, 200),
    (40, 42, 46),
    (120, 124, 130),
    (150, 26, 28),
    (34, 58, 120),
    (226, 226, 222),
)

GTAV = Look(
    road=(96, 94, 94),
    walk=(176, 166, 150),
    grass=(122, 142, 62),
    mark=(232, 230, 222),
    centre_mark=(236, 188, 50),
    walls=((206, 178, 140), (188, 120, 88), (222, 206, 178), (150, 140, 132), (196, 150, 120)),
    roofs=((128, 66, 48), (90, 84, 80), (150, 96, 64)),
    stones=((170, 160, 146), (190, 176, 150)),
    fences=((130, 92, 56), (140, 142, 140)),
    leaves=((64, 110, 34), (84, 128, 44), (48, 92, 34)),
    bark=(96, 70, 46),
    metal=(86, 88, 90),
    glass=(70, 92, 116),
    cars=((200, 24, 24), (24, 70, 180), (240, 200, 30), (236, 236, 236), (24, 24, 28), (40, 130, 70)),
    cargo=((226, 226, 222), (200, 120, 40)),
    buses=((206, 210, 214), (52, 100, 170)),
    trams=((196, 160, 60), (160, 40, 40)),
    sky=((62, 122, 206), (178, 206, 234)),
    eye=(1.3, 1.8),
    focal=(1.2, 1.7),
    horizon=(0.44, 0.52),
    lots=(0.5, 0.28, 0.12, 0.1),
    floors=(2, 8),
    gables=0.25,
    green=0.5,
    crowd=1.0,
    lanes=(2, 3, 4, 4),
    models=(0.6, 0.1, 0.25, 0.05),
    trees=(0.55, 0.0, 0.45),
    clouds=0.35,
    shadows=True,
    texture=0.8,
    contrast=1.15,
    saturation=1.3,
    tint=(1.06, 1.0, 0.92),
    sharpen=0.5,
)

CITYSCAPES = Look(
    road=(104, 106, 104),
    walk=(134, 130, 126),
    grass=(96, 106, 74),
    mark=(206, 208, 204),
    centre_mark=(206, 208, 204),
    walls=((172, 168, 152), (150, 138, 118), (186, 182, 172), (140, 116, 102), (164, 156, 128)),
    roofs=((110, 70, 58), (88, 84, 84)),
    stones=((120, 118, 112), (136, 126, 112)),
    fences=((70, 78, 70), (96, 86, 72)),
    leaves=((58, 76, 46), (70, 86, 54), (48, 64, 44)),
    bark=(66, 62, 54),
    metal=(104, 108, 106),
    glass=(64, 72, 72),
    cars=_CARS,
    cargo=((190, 190, 186), (70, 100, 140)),
    buses=((200, 190, 60), (180, 182, 180)),
    trams=((190, 170, 60), (170, 50, 46)),
    sky=((240, 244, 240), (248, 250, 246)),
    eye=(1.15, 1.3),
    focal=(1.6, 2.1),
    horizon=(0.42, 0.46),
    lots=(0.62, 0.2, 0.08, 0.1),
    floors=(3, 6),
    gables=0.5,
    green=0.35,
    crowd=1.5,
    lanes=(2, 2, 2, 3),
    models=(0.2, 0.5, 0.1, 0.2),
    hood=True,
    clouds=0.1,
    texture=0.6,
    gain=0.82,
    contrast=0.9,
    saturation=0.6,
    tint=(0.93, 1.03, 0.95),
    lift=(2, 8, 5),
    blur=0.7,
    noise=2.0,
    fog=0.004,
    fog_colour=(238, 243, 238),
)

BDD100K = Look(
    road=(100, 102, 106),
    walk=(160, 158, 154),
    grass=(110, 122, 76),
    mark=(226, 226, 222),
    centre_mark=(210, 170, 60),
    walls=((150, 92, 76), (180, 164, 146), (120, 112, 110), (96, 104, 116), (200, 192, 182)),
    roofs=((80, 76, 76), (100, 76, 66)),
    stones=((150, 146, 140), (128, 122, 116)),
    fences=((132, 136, 138), (110, 90, 70)),
    leaves=((74, 96, 50), (88, 104, 58), (104, 98, 52)),
    bark=(80, 68, 58),
    metal=(120, 124, 126),
    glass=(80, 94, 106),
    cars=_CARS,
    cargo=((232, 232, 230), (180, 150, 90)),
    buses=((232, 236, 238), (220, 90, 40)),
    trams=((200, 202, 206), (170, 40, 44)),
    sky=((150, 182, 216), (212, 222, 230)),
    eye=(1.2, 1.5),
    focal=(1.1, 1.4),
    horizon=(0.48, 0.56),
    lots=(0.5, 0.3, 0.08, 0.12),
    floors=(1, 10),
    gables=0.15,
    green=0.55,
    crowd=0.9,
    models=(0.35, 0.1, 0.45, 0.1),
    trees=(0.75, 0.2, 0.05),
    clouds=0.6,
    texture=0.9,
    contrast=0.95,
    saturation=0.85,
    blur=0.5,
    noise=3.0,
    vignette=0.35,
)

SYNTHIA = Look(
    road=(116, 112, 122),
    walk=(196, 150, 140),
    grass=(120, 170, 80),
    mark=(248, 248, 248),
    centre_mark=(248, 248, 248),
    walls=((232, 214, 160), (214, 160, 130), (170, 190, 206), (226, 226, 214), (190, 150, 170)),
    roofs=((170, 80, 60), (110, 120, 150)),
    stones=((210, 200, 180), (180, 140, 120)),
    fences=((90, 110, 90), (60, 60, 70)),
    leaves=((70, 150, 60), (110, 160, 50), (160, 130, 50)),
    bark=(110, 80, 60),
    metal=(70, 76, 96),
    glass=(120, 160, 190),
    cars=((220, 60, 60), (60, 110, 220), (250, 250, 250), (250, 160, 40), (90, 190, 160), (110, 60, 140)),
    cargo=((240, 240, 240),),
    buses=((250, 200, 40), (80, 160, 230)),
    trams=((220, 70, 70),),
    sky=((140, 176, 250), (236, 220, 236)),
    eye=(1.8, 4.2),
    focal=(0.8, 1.15),
    horizon=(0.26, 0.42),
    lots=(0.68, 0.16, 0.06, 0.1),
    floors=(3, 8),
    gables=0.35,
    green=0.3,
    crowd=2.4,
    models=(0.3, 0.3, 0.1, 0.3),
    rare=False,
    clouds=0.8,
    shadows=True,
    texture=0.12,
    contrast=0.9,
    saturation=1.15,
    tint=(1.02, 0.96, 1.08),
    lift=(10, 6, 14),
    levels=40,
    sharpen=0.9,
)

MAPILLARY = replace(
    BDD100K,
    road=(112, 108, 102),
    walk=(172, 160, 146),
    grass=(134, 132, 74),
    leaves=((70, 104, 48), (104, 112, 50), (52, 84, 56)),
    walls=((212, 196, 168), (178, 108, 84), (206, 206, 206), (196, 168, 96), (130, 150, 150)),
    roofs=((156, 84, 60), (84, 80, 84)),
    glass=(84, 92, 98),
    cars=(*_CARS, (200, 170, 60), (70, 120, 130)),
    buses=((196, 40, 40), (60, 130, 90), (236, 236, 236)),
    trams=((60, 120, 90), (230, 230, 226)),
    eye=(1.1, 2.6),
    focal=(0.75, 1.8),
    horizon=(0.38, 0.6),
    lots=(0.42, 0.34, 0.12, 0.12),
    floors=(1, 7),
    gables=0.4,
    green=0.6,
    crowd=1.1,
    models=(0.3, 0.3, 0.2, 0.2),
    trees=(0.6, 0.3, 0.1),
    sky=((96, 150, 214), (214, 226, 236)),
    contrast=1.05,
    saturation=1.05,
    vignette=0.15,
    noise=2.0,
    blur=0.3,
)

_NIGHT = {"night": 1.0, "sky": ((14, 16, 30), (44, 40, 50)), "noise": 6.0, "clouds": 0.1}
_RAIN = {
    "rain": 1.0,
    "gain": 0.9,
    "saturation": 0.55,
    "contrast": 0.85,
    "fog": 0.012,
    "fog_colour": (150, 156, 162),
    "blur": 0.9,
    "sky": ((146, 152, 158), (178, 182, 186)),
    "tint": (0.94, 1.0, 1.06),
}
_DUSK = {"gain": 0.78, "tint": (1.16, 0.94, 0.84), "sky": ((88, 104, 156), (246, 176, 116)), "contrast": 1.1}
_FOG = {
    "fog": 0.03,
    "saturation": 0.7,
    "contrast": 0.85,
    "fog_colour": (206, 210, 214),
    "sky": ((206, 210, 214), (210, 214, 218)),
}
_SUN = {"shadows": True, "gain": 1.12, "saturation": 1.2}
_SNOW = {
    "snow": 1.0,
    "fog": 0.006,
    "fog_colour": (214, 218, 224),
    "grass": (226, 230, 236),
    "walk": (214, 218, 226),
    "road": (140, 144, 150),
    "roofs": ((232, 236, 242),),
    "saturation": 0.7,
    "leaves": ((176, 182, 184), (150, 160, 156), (206, 212, 218)),
    "sky": ((196, 202, 210), (222, 226, 232)),
    "gain": 1.05,
}


def _under(look: Look, weathers: Iterable[Mapping[str, Any]]) -> tuple[Look, ...]:
    return tuple(replace(look, **weather) for weather in weathers)


# The weather of a frame goes round by its number, so that every split has each.
LOOKS: dict[str, tuple[Look, ...]] = {
    "gtav": (
        GTAV,
        replace(GTAV, sun=-1),
        replace(GTAV, gain=0.92, tint=(1.12, 0.98, 0.84), sky=((90, 130, 190), (246, 214, 170))),
    ),
    "cityscapes": (CITYSCAPES, replace(CITYSCAPES, sun=-1), replace(CITYSCAPES, gain=0.92, contrast=0.95)),
    "bdd100k": _under(BDD100K, ({}, _NIGHT, _RAIN, _SUN, _NIGHT, {"sun": -1}, _DUSK)),
    "synthia": (
        SYNTHIA,
        replace(SYNTHIA, sun=-1, tint=(1.1, 0.95, 0.92)),
        replace(SYNTHIA, gain=0.8, tint=(0.86, 0.94, 1.16)),
    ),
    "mapillary": _under(MAPILLARY, ({}, _SUN, _FOG, {"sun": -1}, _SNOW, _DUSK, _RAIN)),
}
