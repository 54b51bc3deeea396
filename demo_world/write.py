"""Renders the five domains and writes them through their rows: in the folders, names and encodings of the real sets."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from datasets.codec import decode_label, read_image, write_label
from datasets.domains import BUILTIN
from datasets.labels import CLASS_NAMES, NUM_CLASSES
from demo_world import roadside
from demo_world.looks import LOOKS, Look, finish
from demo_world.painter import Array, Painter, render
from demo_world.street import FEATURES, SIDES, Street, crossing, ground, hood, traffic
from utils.errors import UserError, first_few
from utils.files import write_text
from utils.parallel import cores, parallel_map

log = logging.getLogger(__name__)

VERSION = 2  # raise it when the same options give other bytes
MARKER = "demo.json"
SPLITS = ("train", "val")
SKY = CLASS_NAMES.index("sky")

FOLDERS = {
    "gtav": "GTAV",
    "cityscapes": "cityscapes",
    "bdd100k": "bdd-100k",
    "synthia": "synthia",
    "mapillary": "mapillary",
}
SHAPES = {  # of frames, in turn: shares of the height and width of cityscapes' frames
    "gtav": ((1.1, 1.0),),
    "cityscapes": ((1.0, 1.0),),
    "bdd100k": ((1.125, 1.0),),
    "synthia": ((1.1875, 1.0),),
    "mapillary": ((1.125, 0.75), (1.0, 0.875), (1.25, 0.9375), (1.5, 0.5625)),
}


class Frame(NamedTuple):
    """One frame to render."""

    domain: str
    split: str
    number: int

    def paths(self) -> tuple[str, str]:
        """Return where image and label lie below the domain's folder, named as the real set names its frames."""
        val = self.split == "val"  # a name stands for one frame: those of the splits differ
        cities = ("frankfurt", "munster") if val else ("aachen", "bremen", "cologne")
        city = cities[self.number % len(cities)]
        video, clip = (
            hashlib.sha256(f"{text} {self.number}".encode()).hexdigest() for text in (self.split, f"{self.split} clip")
        )
        stem = {
            "gtav": f"{self.number // 16 + 1:02d}/{self.number + (20001 if val else 1):05d}",
            "cityscapes": f"{city}/{city}_{self.number:06d}_000019",
            "bdd100k": f"{video[:8]}-{clip[:8]}",
            "synthia": f"{self.number + 6580 * val:07d}",
            "mapillary": video[:22],
        }[self.domain]
        return BUILTIN[self.domain].paths(self.split, stem)


Job = tuple[Frame, str, tuple[int, int], int]  # frame, folder to write to, size, seed


class Summary(NamedTuple):
    """What was written: folders, frames per domain, and pixels (split, class) with void as the class after the 19."""

    roots: dict[str, Path]
    train: int
    val: int
    pixels: dict[str, Array]  # (2, 20) int64 per domain


def lay_out(frame: Frame, *, size: tuple[int, int], seed: int) -> tuple[Painter, Look, np.random.Generator]:
    """Return the painter of a frame's scene, the look of its domain, and the generator that goes on to its light.

    The layout, its odds and its order are the same in all domains.
    """
    number, looks, shapes = frame.number, LOOKS[frame.domain], SHAPES[frame.domain]
    tall, wide = shapes[number % len(shapes)]
    rng = np.random.default_rng([seed, sorted(FOLDERS).index(frame.domain), SPLITS.index(frame.split), number])
    look, feature = looks[number % len(looks)], FEATURES[number % len(FEATURES)]
    height, width = 2 * round(size[0] * tall / 2), 2 * round(size[1] * wide / 2)
    street = Street(rng, look=look, height=height, width=width, feature=feature)
    ground(street)
    roadside.skyline(street)
    for side in SIDES:
        roadside.lots(street, side)
        roadside.furniture(street, side)
        roadside.pavement_life(street, side)
    traffic(street)
    crossing(street)
    if look.hood:
        hood(street)
    return street.painter, look, rng


def render_frame(frame: Frame, *, size: tuple[int, int], seed: int) -> tuple[Array, Array]:
    """Render a frame; returns its image (H, W, 3) uint8 and its train ids (H, W) uint8, 255 = void.

    `size` (height, width) is that of the cityscapes frames; other domains have their own aspect ratios.
    """
    painter, look, rng = lay_out(frame, size=size, seed=seed)
    drawing = render(painter, sky_label=SKY, sky_colour=look.sky[0])
    return finish(drawing, rng, look=look, camera=painter.camera), drawing.label


def _write_frame(job: Job) -> tuple[Frame, Array]:
    """Render and write one frame below a folder unless it is there; returns it and its pixels per class (20,)."""
    frame, out, size, seed = job
    encoding = BUILTIN[frame.domain].encoding
    paths = [os.path.join(out, FOLDERS[frame.domain], path) for path in frame.paths()]
    try:
        read_image(paths[0])
        label = decode_label(paths[1], encoding=encoding)
    except UserError:  # missing, or cut off by an interruption
        image, label = render_frame(frame, size=size, seed=seed)
        for path in paths:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        parts = ["{}.part{}".format(*os.path.splitext(path)) for path in paths]
        Image.fromarray(image).save(parts[0], quality=88, compress_level=3)  # of JPEG, of PNG
        write_label(parts[1], label, encoding=encoding)
        for part, path in zip(parts, paths, strict=True):
            os.replace(part, path)
    return frame, np.bincount(np.minimum(label, NUM_CLASSES).ravel(), minlength=NUM_CLASSES + 1)


def _settings(options: dict[str, Any]) -> str:
    return json.dumps({"version": VERSION, **options}) + "\n"


def _owned_settings(folder: Path) -> str:
    """Return what a folder of this command says of itself.

    Raises:
        UserError: the folder holds something that was not made here.
    """
    try:
        settings = (folder / MARKER).read_text(encoding="utf-8")
        names = {path.name for path in folder.iterdir()}
    except (OSError, ValueError):
        settings, names = "", set()
    if not settings.startswith('{"version": ') or not names <= {MARKER, *FOLDERS.values()}:
        raise UserError(
            f"{folder}: this folder holds files that the demo did not make; name an empty or new folder with --out"
        )
    return settings


def _frames(train: int, val: int) -> list[Frame]:
    counts = zip(SPLITS, (train, val), strict=True)
    return [
        Frame(domain, split, number) for domain, (split, count) in product(FOLDERS, counts) for number in range(count)
    ]


def already_there(out: Path, **options: Any) -> bool:
    """Return whether a folder holds a finished set of these options (train, val, size, seed) already.

    Raises:
        UserError: the folder holds something that was not made here.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    settings = _owned_settings(out)
    if settings == _settings(options):
        return True
    made, counts = {out / MARKER}, json.loads(settings)
    for frame in _frames(counts["train"], counts["val"]):
        made.update(out / FOLDERS[frame.domain] / path for path in frame.paths())
    if added := sorted(str(path) for path in out.rglob("*") if not path.is_dir() and path not in made):
        raise UserError(f"{first_few(added)}: the demo did not make this; move it away, or name another --out")
    return False


def _check(train: int, val: int, size: tuple[int, int], seed: int) -> None:
    if train < 1 or val < 1:
        raise UserError(f"--train {train} --val {val}: both must be at least 1")
    if min(size) < 64 or max(size) > 4096:
        raise UserError(f"--size {size[0]}x{size[1]}: height and width must be 64 to 4096 pixels, such as 256x512")
    if seed < 0:
        raise UserError(f"--seed {seed}: must not be negative")


def write_domains(
    out: str | Path,
    *,
    train: int,
    val: int,
    size: tuple[int, int] = (256, 512),
    seed: int = 0,
    workers: int | None = None,
) -> Summary:
    """Render all five domains and put them below `out`, which is replaced at once when all is done.

    They grow in a folder beside it, from which the same call resumes after an interruption: the bytes are those of one
    go.

    Args:
        train, val: frames per domain.
        size: height and width of the cityscapes frames; the other domains keep their aspect ratios.
        workers: processes, 0 for this one alone; None for the cores.

    Raises:
        UserError: impossible options, or `out` holds something that was not made here.
    """
    _check(train, val, size, seed)
    out, options = Path(os.path.realpath(out)), {"train": train, "val": val, "size": size, "seed": seed}
    if os.path.ismount(out) or out == Path.cwd():
        raise UserError(f"{out}: a mount point or the working folder cannot be replaced; name one below it with --out")
    already_there(out, **options)
    building = out.with_name(f".{out.name}-unfinished")
    if building.exists() and _owned_settings(building) != _settings(options):
        shutil.rmtree(building)
    write_text(building / MARKER, _settings(options))
    jobs = [(frame, str(building), size, seed) for frame in _frames(train, val)]
    workers = min(cores(), len(jobs) // 4) if workers is None else workers
    pixels = {domain: np.zeros((len(SPLITS), NUM_CLASSES + 1), np.int64) for domain in FOLDERS}
    try:
        for frame, counts in parallel_map(_write_frame, jobs, workers=workers, title="rendering", unit="frame"):
            pixels[frame.domain][SPLITS.index(frame.split)] += counts
    except OSError as error:
        raise UserError(
            f"{building}: a frame cannot be written ({error.strerror or error}); the same command resumes from here"
        ) from error
    if out.exists():
        already_there(out, **options)
        shutil.rmtree(out)
    os.replace(building, out)
    log.info("%d frames of %d domains in %s", len(jobs), len(FOLDERS), out)
    return Summary({domain: out / folder for domain, folder in FOLDERS.items()}, train, val, pixels)
