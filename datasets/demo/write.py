"""Writes the five domains to disk, each in the folders, file names and label encoding of the data set it stands for."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets import labels
from datasets.demo.light import finish
from datasets.demo.looks import LOOKS
from datasets.demo.painter import Array, draw
from datasets.demo.scene import build_scene
from datasets.demo.street import FEATURES
from utils.errors import UserError

log = logging.getLogger(__name__)

VERSION = 1  # raise it when the same options give other bytes
MARKER = "demo.json"
SPLITS = ("train", "val")
SKY = labels.CLASS_NAMES.index("sky")
# Colours of the 66 classes of Mapillary Vistas v1.2, by id.
_MAPILLARY_COLOURS = bytes.fromhex(
    "a52a2a00c000c4c4c4be9999b4a5b45a789666669c8040ff8c8cc8aaaaaafaaaa0606060e6968c8040806e6e6ef423e8966464464646"
    "96785adc143cff0000ff0064ff00c8c88080ffffff40aa40e6a0324682b4beffff98fb986b8e2300aa1effff80fa001e648cb4dcdcdc"
    "dc8080de282864aa1e2828282121216480a08e0000466496d2aa6499999980808000 0050faaa1ec0c0c0dcdc008c8c14770b209600ff"
    "003c6400008e00005a0000e60050648040 4000006e0000460000c0202020780a0a000000".replace(" ", "")
)


class Frame(NamedTuple):
    """One frame to draw."""

    domain: str
    split: str
    number: int


Job = tuple[Frame, str, tuple[int, int], int]  # frame, folder to write to, size, seed


@dataclass(frozen=True)
class Target:
    """How one domain lies on disk; `shapes` are its frames' sizes as shares of height and width, in turn."""

    folder: str
    paths: Callable[[str, int], tuple[str, str]]  # split, index -> image and label relative to the folder
    ids: Mapping[int, int]  # raw id -> train id, from the decoding tables
    void: int
    write_label: Callable[[str, Array], None]  # path, raw ids (H, W) uint8
    shapes: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    preferred: tuple[int, ...] = ()  # raw ids to take where several mean the same class

    def encode(self, label: Array) -> Array:
        """Map train ids (H, W) to raw ids, uint8."""
        table = np.full(256, self.void, np.uint8)
        for raw in (*sorted(self.ids, reverse=True), *self.preferred):
            if self.ids[raw] != labels.IGNORE:
                table[self.ids[raw]] = raw
        return np.asarray(table[label])


class Summary(NamedTuple):
    """What was written: folders, frames per domain, and pixels (split, class) with void as the class after the 19."""

    roots: dict[str, Path]
    train: int
    val: int
    pixels: dict[str, Array]  # (2, 20) int64 per domain


def _hashed(index: int, split: str, length: int) -> str:
    return hashlib.sha256(f"{split} {index}".encode()).hexdigest()[:length]


def _gtav_paths(split: str, index: int) -> tuple[str, str]:
    name = f"{ {'train': 'train', 'val': 'valid'}[split] }/{index // 16 + 1:02d}/{index + 1:05d}.png"
    return f"images/{name}", f"labels/{name}"


def _cityscapes_paths(split: str, index: int) -> tuple[str, str]:
    cities = {"train": ("aachen", "bremen", "cologne"), "val": ("frankfurt", "munster")}[split]
    city = cities[index % len(cities)]
    stem = f"{split}/{city}/{city}_{index:06d}_000019"
    return (
        f"leftImg8bit_trainvaltest/leftImg8bit/{stem}_leftImg8bit.png",
        f"gtFine_trainvaltest/gtFine/{stem}_gtFine_labelIds.png",
    )


def _bdd_paths(split: str, index: int) -> tuple[str, str]:
    name = f"{split}/{_hashed(index, split, 8)}-{_hashed(index, split + ' clip', 8)}"
    return f"images/{name}.jpg", f"labels/{name}.png"


def _synthia_paths(split: str, index: int) -> tuple[str, str]:
    return f"RGB/{split}/{index:07d}.png", f"GT/LABELS/{split}/{index:07d}.png"


def _mapillary_paths(split: str, index: int) -> tuple[str, str]:
    folder, name = {"train": "training", "val": "validation"}[split], _hashed(index, split, 22)
    return f"{folder}/images/{name}.jpg", f"{folder}/labels/{name}.png"


def _write_grey(path: str, raw: Array) -> None:
    from PIL import Image

    Image.fromarray(raw).save(path)


def _write_palette(path: str, raw: Array, colours: bytes) -> None:
    from PIL import Image

    image = Image.fromarray(raw).convert("L")
    image.putpalette(colours)  # turns L into P without touching the indices
    image.save(path)


def _write_gtav(path: str, raw: Array) -> None:
    _write_palette(path, raw, bytes(channel for colour, _ in labels.CITYSCAPES_LABELS for channel in colour))


def _write_mapillary(path: str, raw: Array) -> None:
    _write_palette(path, raw, _MAPILLARY_COLOURS.ljust(768, b"\0"))


def _write_synthia(path: str, raw: Array) -> None:
    """Write 16-bit RGB: red holds the class, green would hold the instance."""
    import cv2

    pixels = np.zeros((*raw.shape, 3), np.uint16)
    pixels[..., 2] = raw  # OpenCV's order is BGR
    if not cv2.imwrite(path, pixels):
        raise OSError(f"{path}: could not be written")


TARGETS: dict[str, Target] = {
    "gtav": Target("GTAV", _gtav_paths, labels.CITYSCAPES_IDS, 0, _write_gtav, ((1.1, 1.0),)),
    "cityscapes": Target("cityscapes", _cityscapes_paths, labels.CITYSCAPES_IDS, 0, _write_grey),
    "bdd100k": Target("bdd-100k", _bdd_paths, labels.TRAIN_IDS, labels.IGNORE, _write_grey, ((1.125, 1.0),)),
    "synthia": Target("synthia", _synthia_paths, labels.SYNTHIA_IDS, 0, _write_synthia, ((1.1875, 1.0),)),
    "mapillary": Target(
        "mapillary",
        _mapillary_paths,
        labels.MAPILLARY_IDS,
        65,
        _write_mapillary,
        ((1.125, 0.75), (1.0, 0.875), (1.25, 0.9375), (1.5, 0.5625)),
        preferred=(15,),
    ),
}


def draw_frame(frame: Frame, *, size: tuple[int, int], seed: int) -> tuple[Array, Array]:
    """Draw a frame; returns its image (H, W, 3) uint8 and its train ids (H, W) uint8, 255 = void.

    `size` (height, width) is that of the cityscapes frames; other domains have their own aspect ratios.
    """
    looks, shapes = LOOKS[frame.domain], TARGETS[frame.domain].shapes
    tall, wide = shapes[frame.number % len(shapes)]
    rng = np.random.default_rng([seed, sorted(TARGETS).index(frame.domain), SPLITS.index(frame.split), frame.number])
    look = looks[frame.number % len(looks)]
    painter = build_scene(
        rng,
        look=look,
        height=2 * round(size[0] * tall / 2),
        width=2 * round(size[1] * wide / 2),
        feature=FEATURES[frame.number % len(FEATURES)],
    )
    drawing = draw(painter, sky_label=SKY, sky_colour=look.sky[0])
    return finish(drawing, rng, look=look, camera=painter.camera), drawing.label


def _write_frame(job: Job) -> tuple[Frame, Array]:
    """Draw and write one frame below a folder; returns the frame and its pixels per class (20,)."""
    from PIL import Image

    frame, out, size, seed = job
    target = TARGETS[frame.domain]
    image, label = draw_frame(frame, size=size, seed=seed)
    paths = [os.path.join(out, target.folder, path) for path in target.paths(frame.split, frame.number)]
    for path in paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    if paths[0].endswith(".jpg"):
        Image.fromarray(image).save(paths[0], quality=88)
    else:
        Image.fromarray(image).save(paths[0], compress_level=3)
    target.write_label(paths[1], target.encode(label))
    return frame, np.bincount(np.minimum(label, labels.NUM_CLASSES).ravel(), minlength=labels.NUM_CLASSES + 1)


def _run(jobs: list[Job], workers: int) -> Iterable[tuple[Frame, Array]]:
    if workers < 2:
        yield from map(_write_frame, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_write_frame, jobs, chunksize=4)


def _settings(train: int, val: int, size: tuple[int, int], seed: int) -> dict[str, object]:
    return {"version": VERSION, "train": train, "val": val, "size": list(size), "seed": seed}


def already_there(out: Path, *, train: int, val: int, size: tuple[int, int], seed: int) -> bool:
    """Return whether a folder holds a finished set of these options already.

    Raises:
        UserError: the folder holds something that was not made here.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    known = {MARKER, *(target.folder for target in TARGETS.values())}
    try:
        made = json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = None
    if made is None or not {path.name for path in out.iterdir()} <= known:
        raise UserError(
            f"{out}: this folder holds files that the demo did not make; name an empty or new folder with --out"
        )
    return bool(made == _settings(train, val, size, seed))


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
    train: int = 40,
    val: int = 8,
    size: tuple[int, int] = (256, 512),
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Summary:
    """Draw all five domains and put them below `out`, which is replaced at once when all is done.

    Args:
        train, val: frames per domain.
        size: height and width of the cityscapes frames; the other domains keep their aspect ratios.
        workers: processes; None for the cores.

    Raises:
        UserError: impossible options, or `out` holds something that was not made here.
    """
    _check(train, val, size, seed)
    out = Path(out).absolute()
    already_there(out, train=train, val=val, size=size, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        jobs = [
            (Frame(domain, split, number), str(building), size, seed)
            for domain in TARGETS
            for split, count in zip(SPLITS, (train, val), strict=True)
            for number in range(count)
        ]
        pixels = _draw_all(jobs, min(os.cpu_count() or 1, len(jobs) // 4) if workers is None else workers, progress)
        (building / MARKER).write_text(json.dumps(_settings(train, val, size, seed)) + "\n", encoding="utf-8")
        building.chmod(0o755)
        if out.exists():
            already_there(out, train=train, val=val, size=size, seed=seed)
            shutil.rmtree(out)
        os.replace(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    log.info("%d frames of %d domains in %s", len(jobs), len(TARGETS), out)
    return Summary({domain: out / target.folder for domain, target in TARGETS.items()}, train, val, pixels)


def _draw_all(jobs: list[Job], workers: int, progress: bool) -> dict[str, Array]:
    """Draw and write all frames; returns the pixels (split, class) of every domain."""
    from tqdm import tqdm

    pixels = {domain: np.zeros((len(SPLITS), labels.NUM_CLASSES + 1), np.int64) for domain in TARGETS}
    for frame, counts in tqdm(_run(jobs, workers), total=len(jobs), desc="drawing", unit="frame", disable=not progress):
        pixels[frame.domain][SPLITS.index(frame.split)] += counts
    return pixels
