"""From the flat colours of a drawing to a photograph: surfaces, sky, weather, camera."""

from __future__ import annotations

import numpy as np

from datasets.labels import CLASS_NAMES
from demo_world.looks import Look
from demo_world.painter import Array, Camera, Drawing
from utils.parallel import opencv

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
