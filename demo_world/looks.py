"""How the frames of each domain look, and from a painting to a photograph: surfaces, sky, weather, camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.labels import CLASS_NAMES
from demo_world.painter import Array, Camera, Colour, Drawing, palette
from utils.parallel import opencv

Range = tuple[float, float]
Colours = tuple[Colour, ...]


@dataclass(frozen=True)
class Look:
    """Values of one domain; colours 0..255, lengths in metres, focal length and horizon as shares of the height."""

    # Materials
    road: Colour
    walk: Colour
    grass: Colour
    mark: Colour
    centre_mark: Colour
    walls: Colours
    roofs: Colours
    stones: Colours
    fences: Colours
    leaves: Colours
    bark: Colour
    metal: Colour
    glass: Colour
    cars: Colours
    cargo: Colours
    buses: Colours
    trams: Colours
    sky: Colours  # top, horizon
    # Viewpoint and layout
    eye: Range
    focal: Range
    horizon: Range
    lots: tuple[float, float, float, float]  # odds of building, green, wall, fence
    floors: tuple[int, int]
    gables: float
    green: float
    crowd: float
    lanes: tuple[int, ...]
    models: tuple[float, float, float, float]  # odds of sedan, hatch, suv, van
    trees: tuple[float, float, float]  # odds of broad, conifer, palm
    hood: bool
    rare: bool  # whether terrain, truck and train exist
    # Light, weather, sensor
    clouds: float
    shadows: bool
    texture: float
    gain: float
    contrast: float
    saturation: float
    tint: Colour
    lift: Colour
    blur: float
    noise: float
    fog: float  # 1 / metres
    fog_colour: Colour
    vignette: float
    sharpen: float
    levels: int
    sun: int = 1
    night: float = 0.0
    rain: float = 0.0
    snow: float = 0.0


DOMAINS = ("gtav", "cityscapes", "bdd100k", "synthia", "mapillary")
_TABLE: dict[str, tuple[Any, ...]] = {  # one column per domain; colours are hexadecimal
    "road": ("605e5e", "686a68", "64666a", "74707a", "706c66"),
    "walk": ("b0a696", "86827e", "a09e9a", "c4968c", "aca092"),
    "grass": ("7a8e3e", "606a4a", "6e7a4c", "78aa50", "86844a"),
    "mark": ("e8e6de", "ced0cc", "e2e2de", "f8f8f8", "e2e2de"),
    "centre_mark": ("ecbc32", "ced0cc", "d2aa3c", "f8f8f8", "d2aa3c"),
    "walls": (
        "ceb28c bc7858 deceb2 968c84 c49678",
        "aca898 968a76 bab6ac 8c7466 a49c80",
        "965c4c b4a492 78706e 606874 c8c0b6",
        "e8d6a0 d6a082 aabece e2e2d6 be96aa",
        "d4c4a8 b26c54 cecece c4a860 829696",
    ),
    "roofs": ("804230 5a5450 966040", "6e463a 585454", "504c4c 644c42", "aa503c 6e7896", "9c543c 545054"),
    "stones": ("aaa092 beb096", "787670 887e70", "96928c 807a74", "d2c8b4 b48c78", "96928c 807a74"),
    "fences": ("825c38 8c8e8c", "464e46 605648", "84888a 6e5a46", "5a6e5a 3c3c46", "84888a 6e5a46"),
    "leaves": (
        "406e22 54802c 305c22",
        "3a4c2e 465636 30402c",
        "4a6032 58683a 686234",
        "46963c 6ea032 a08232",
        "466830 687032 345438",
    ),
    "bark": ("60462e", "423e36", "50443a", "6e503c", "50443a"),
    "metal": ("56585a", "686c6a", "787c7e", "464c60", "787c7e"),
    "glass": ("465c74", "404848", "505e6a", "78a0be", "545c62"),
    "cars": (
        "c81818 1846b4 f0c81e ececec 18181c 288246",
        "c4c6c8 282a2e 787c82 961a1c 223a78 e2e2de",
        "c4c6c8 282a2e 787c82 961a1c 223a78 e2e2de",
        "dc3c3c 3c6edc fafafa faa028 5abea0 6e3c8c",
        "c4c6c8 282a2e 787c82 961a1c 223a78 e2e2de c8aa3c 467882",
    ),
    "cargo": ("e2e2de c87828", "bebeba 46648c", "e8e8e6 b4965a", "f0f0f0", "e8e8e6 b4965a"),
    "buses": ("ced2d6 3464aa", "c8be3c b4b6b4", "e8ecee dc5a28", "fac828 50a0e6", "c42828 3c825a ececec"),
    "trams": ("c4a03c a02828", "beaa3c aa322e", "c8cace aa282c", "dc4646", "3c785a e6e6e2"),
    "sky": ("3e7ace b2ceea", "f0f4f0 f8faf6", "96b6d8 d4dee6", "8cb0fa ecdcec", "6096d6 d6e2ec"),
    "eye": ((1.3, 1.8), (1.15, 1.3), (1.2, 1.5), (1.8, 4.2), (1.1, 2.6)),
    "focal": ((1.2, 1.7), (1.6, 2.1), (1.1, 1.4), (0.8, 1.15), (0.75, 1.8)),
    "horizon": ((0.44, 0.52), (0.42, 0.46), (0.48, 0.56), (0.26, 0.42), (0.38, 0.6)),
    "lots": (
        (0.5, 0.28, 0.12, 0.1),
        (0.62, 0.2, 0.08, 0.1),
        (0.5, 0.3, 0.08, 0.12),
        (0.68, 0.16, 0.06, 0.1),
        (0.42, 0.34, 0.12, 0.12),
    ),
    "floors": ((2, 8), (3, 6), (1, 10), (3, 8), (1, 7)),
    "gables": (0.25, 0.5, 0.15, 0.35, 0.4),
    "green": (0.5, 0.35, 0.55, 0.3, 0.6),
    "crowd": (1.0, 1.5, 0.9, 2.4, 1.1),
    "lanes": ((2, 3, 4, 4), (2, 2, 2, 3), (2, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 4)),
    "models": (
        (0.6, 0.1, 0.25, 0.05),
        (0.2, 0.5, 0.1, 0.2),
        (0.35, 0.1, 0.45, 0.1),
        (0.3, 0.3, 0.1, 0.3),
        (0.3, 0.3, 0.2, 0.2),
    ),
    "trees": ((0.55, 0.0, 0.45), (1.0, 0.0, 0.0), (0.75, 0.2, 0.05), (1.0, 0.0, 0.0), (0.6, 0.3, 0.1)),
    "hood": (False, True, False, False, False),
    "rare": (True, True, True, False, True),
    "clouds": (0.35, 0.1, 0.6, 0.8, 0.6),
    "shadows": (True, False, False, True, False),
    "texture": (0.8, 0.6, 0.9, 0.12, 0.9),
    "gain": (1.0, 0.82, 1.0, 1.0, 1.0),
    "contrast": (1.15, 0.9, 0.95, 0.9, 1.05),
    "saturation": (1.3, 0.6, 0.85, 1.15, 1.05),
    "tint": ((1.06, 1.0, 0.92), (0.93, 1.03, 0.95), (1.0, 1.0, 1.0), (1.02, 0.96, 1.08), (1.0, 1.0, 1.0)),
    "lift": ((0.0, 0.0, 0.0), (2, 8, 5), (0.0, 0.0, 0.0), (10, 6, 14), (0.0, 0.0, 0.0)),
    "blur": (0.0, 0.7, 0.5, 0.0, 0.3),
    "noise": (0.0, 2.0, 3.0, 0.0, 2.0),
    "fog": (0.0, 0.004, 0.0, 0.0, 0.0),
    "fog_colour": ("c8ccd0", "eef3ee", "c8ccd0", "c8ccd0", "c8ccd0"),
    "vignette": (0.0, 0.0, 0.35, 0.0, 0.15),
    "sharpen": (0.5, 0.0, 0.0, 0.9, 0.0),
    "levels": (256, 256, 256, 40, 256),
}
_LISTS = ("walls", "roofs", "stones", "fences", "leaves", "cars", "cargo", "buses", "trams", "sky")  # of colours

_SUN = {"shadows": True, "gain": 1.12, "saturation": 1.2}
_LEFT = {"sun": -1}
_NIGHT = {"night": 1.0, "sky": "0e101e 2c2832", "noise": 6.0, "clouds": 0.1}
_DUSK = {"gain": 0.78, "tint": (1.16, 0.94, 0.84), "sky": "58689c f6b074", "contrast": 1.1}
_RAIN = {"rain": 1.0, "gain": 0.9, "saturation": 0.55, "contrast": 0.85, "fog": 0.012, "fog_colour": "969ca2"}
_RAIN |= {"blur": 0.9, "sky": "92989e b2b6ba", "tint": (0.94, 1.0, 1.06)}
_FOG = {"fog": 0.03, "saturation": 0.7, "contrast": 0.85, "fog_colour": "ced2d6", "sky": "ced2d6 d2d6da"}
_SNOW = {"snow": 1.0, "fog": 0.006, "fog_colour": "d6dae0", "grass": "e2e6ec", "walk": "d6dae2", "road": "8c9096"}
_SNOW |= {"roofs": "e8ecf2", "saturation": 0.7, "leaves": "b0b6b8 96a09c ced4da", "sky": "c4cad2 dee2e8", "gain": 1.05}
_WEATHERS: dict[str, tuple[dict[str, Any], ...]] = {
    "gtav": ({}, _LEFT, {"gain": 0.92, "tint": (1.12, 0.98, 0.84), "sky": "5a82be f6d6aa"}),
    "cityscapes": ({}, _LEFT, {"gain": 0.92, "contrast": 0.95}),
    "bdd100k": ({}, _NIGHT, _RAIN, _SUN, _NIGHT, _LEFT, _DUSK),
    "synthia": ({}, {"sun": -1, "tint": (1.1, 0.95, 0.92)}, {"gain": 0.8, "tint": (0.86, 0.94, 1.16)}),
    "mapillary": ({}, _SUN, _FOG, _LEFT, _SNOW, _DUSK, _RAIN),
}


def _look(values: dict[str, Any]) -> Look:
    colours = {name: palette(value) for name, value in values.items() if isinstance(value, str)}
    return Look(**values | {name: value if name in _LISTS else value[0] for name, value in colours.items()})


# The weather of a frame goes round by its number, so that every split has each.
LOOKS: dict[str, tuple[Look, ...]] = {
    domain: tuple(_look({name: row[column] for name, row in _TABLE.items()} | weather) for weather in _WEATHERS[domain])
    for column, domain in enumerate(DOMAINS)
}


ROAD = CLASS_NAMES.index("road")

# How rough the 19 classes look: fine grain, coarse patches (shares of the brightness).
_FINE = (0.07, 0.06, 0.05, 0.08, 0.08, 0.04, 0.02, 0.02, 0.24, 0.2, 0, 0.08, 0.08, 0.025, 0.03, 0.03, 0.03, 0.05, 0.06)
_COARSE = (0.07, 0.07, 0.06, 0.1, 0.04, 0, 0, 0, 0.14, 0.18, 0, *[0.03] * 8)


def _field(rng: np.random.Generator, height: int, width: int, cell: float, *, stretch: float = 1.0) -> Array:
    """Return smooth noise (H, W) of unit variance whose grains are about `cell` pixels."""
    rows, columns = max(2, int(height / cell)), max(2, int(width / (cell * stretch)))
    field = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(opencv().resize(field, (width, height), interpolation=opencv().INTER_CUBIC))


def _material(drawing: Drawing, rng: np.random.Generator, look: Look) -> Array:
    """Return the factor (H, W) that roughens surfaces."""
    height, width = drawing.label.shape
    fine, coarse = np.zeros((2, 256), np.float32)
    fine[: len(_FINE)], coarse[: len(_COARSE)] = _FINE, _COARSE
    grain = 0.6 * rng.standard_normal((height, width), dtype=np.float32) + 0.8 * _field(rng, height, width, 3.0)
    patches = _field(rng, height, width, 14.0, stretch=2.0)
    fade = np.clip(30.0 / drawing.depth, 0.25, 1.0)
    return 1 + look.texture * (fine[drawing.label] * grain * fade + coarse[drawing.label] * patches)


def _sky(rng: np.random.Generator, look: Look, camera: Camera) -> Array:
    """Return the sky (H, W, 3): a gradient down to the horizon and clouds."""
    rows = np.clip(np.arange(camera.height) / max(camera.horizon, 1.0), 0, 1)[:, None, None] ** 1.2
    sky = np.array(look.sky[0]) * (1 - rows) + np.array(look.sky[1]) * rows
    scales = (1, 2, 4, 8)
    cloud = sum(_field(rng, camera.height, camera.width, 40.0 / scale, stretch=2.5) / scale for scale in scales)
    cover = np.clip((cloud - 0.7 + look.clouds) * 0.6, 0, 0.85)[..., None]
    white = np.array((250, 250, 250)) * (1 - look.night) + np.array((40, 38, 44)) * look.night
    return (sky * (1 - cover) + white * (0.92 * cover)).astype(np.float32)


def _weather(image: Array, drawing: Drawing, rng: np.random.Generator, look: Look, camera: Camera) -> Array:
    """Add wet mirrors, fog, darkness and lamps, rain and snow to an image (H, W, 3)."""
    cv2, rows = opencv(), np.arange(camera.height)
    road = (drawing.label == ROAD)[..., None].astype(np.float32)
    if look.rain:
        source = np.clip((2 * camera.horizon - rows).astype(int), 0, camera.height - 1)
        mirror = cv2.blur(image[source], (3, 25))
        image = image * (1 - 0.45 * road) + mirror * (0.4 * road)
    if look.fog:
        clear = np.exp(-look.fog * drawing.depth)[..., None]
        image = image * clear + np.array(look.fog_colour, np.float32) * (1 - clear)
    if look.night:
        columns = (np.arange(camera.width) - camera.centre) / camera.width
        below = (rows[:, None] - camera.horizon - 0.22 * camera.height) / (0.2 * camera.height)
        beam = np.exp(-((columns[None, :] / 0.28) ** 2) - below**2)
        ambient = 0.26 + 0.8 * beam * np.clip(25.0 / drawing.depth, 0, 1)
        shine = drawing.glow[..., None]
        lamps = image * shine
        halo = 1.4 * cv2.GaussianBlur(lamps, (0, 0), 0.022 * camera.height)
        halo += 1.6 * cv2.GaussianBlur(lamps, (0, 0), 0.07 * camera.height)
        dark = image * ambient[..., None].astype(np.float32) * np.array((1.0, 0.92, 0.86), np.float32)
        image = np.where(drawing.sky[..., None] > 0.5, image, dark * (1 - shine) + 1.1 * lamps) + halo
    if look.rain or look.snow:
        falling = np.zeros(image.shape[:2], np.float32)
        shortest, longest, thick, bright = (6, 18, 1, 34) if look.rain else (0, 2, 2, 110)
        for x, y, long in rng.integers((0, 0, shortest), (camera.width, camera.height, longest), (130, 3)).tolist():
            cv2.line(falling, (x, y), (x - long // 5, y + long), 1.0, thick, cv2.LINE_AA)
        image = image + bright * cv2.GaussianBlur(falling, (0, 0), 0.7)[..., None]
    return np.asarray(image)


def finish(drawing: Drawing, rng: np.random.Generator, *, look: Look, camera: Camera) -> Array:
    """Turn flat colours into a photograph (H, W, 3) uint8 of this domain; nothing moves, so the labels stay exact."""
    sky = drawing.sky[..., None]
    base = np.array(look.sky[0], np.float32)
    image = drawing.image * _material(drawing, rng, look)[..., None] + sky * (_sky(rng, look, camera) - base)
    image = _weather(image, drawing, rng, look, camera)
    grey = image @ np.array((0.299, 0.587, 0.114), np.float32)
    image = grey[..., None] + look.saturation * (image - grey[..., None])
    gain = look.gain * float(rng.uniform(0.9, 1.1))
    image = ((image - 128) * look.contrast + 128) * gain * np.array(look.tint) + np.array(look.lift)
    if look.vignette:
        y, x = np.meshgrid(np.linspace(-1, 1, camera.height), np.linspace(-1, 1, camera.width), indexing="ij")
        image = image * (1 - look.vignette * 0.6 * (x * x + y * y) / 2)[..., None]
    return _sensor(image.astype(np.float32), rng, look)


def _sensor(image: Array, rng: np.random.Generator, look: Look) -> Array:
    """Blur, sharpen, add noise and round an image (H, W, 3) float32 to uint8."""
    cv2 = opencv()
    if look.blur:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), look.blur))
    if look.sharpen:
        image = image + look.sharpen * (image - np.asarray(cv2.GaussianBlur(image, (0, 0), 1.0)))
    if look.noise:
        image = image + look.noise * rng.standard_normal(image.shape, dtype=np.float32)
    if look.levels < 256:
        step = 256 / look.levels
        image = np.floor(image / step) * step + step / 2
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
