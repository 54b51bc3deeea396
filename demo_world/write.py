"""Writes the five domains to disk, each in the folders, file names and label encoding of the data set it stands for."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets import labels
from datasets.codec import decode_label
from datasets.domains import BUILTIN
from demo_world.layouts import TARGETS
from demo_world.light import finish
from demo_world.looks import LOOKS, Look
from demo_world.painter import Array, Painter, draw
from demo_world.scene import build_scene
from demo_world.street import FEATURES
from utils.errors import UserError
from utils.files import write_text

log = logging.getLogger(__name__)

VERSION = 2  # raise it when the same options give other bytes
MARKER = "demo.json"
SPLITS = ("train", "val")
SKY = labels.CLASS_NAMES.index("sky")


class Frame(NamedTuple):
    """One frame to draw."""

    domain: str
    split: str
    number: int


Job = tuple[Frame, str, tuple[int, int], int]  # frame, folder to write to, size, seed


class Summary(NamedTuple):
    """What was written: folders, frames per domain, and pixels (split, class) with void as the class after the 19."""

    roots: dict[str, Path]
    train: int
    val: int
    pixels: dict[str, Array]  # (2, 20) int64 per domain


def lay_out(frame: Frame, *, size: tuple[int, int], seed: int) -> tuple[Painter, Look, np.random.Generator]:
    """Return the painter of a frame's scene, the look of its domain, and the generator that goes on to its light."""
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
    return painter, look, rng


def draw_frame(frame: Frame, *, size: tuple[int, int], seed: int) -> tuple[Array, Array]:
    """Draw a frame; returns its image (H, W, 3) uint8 and its train ids (H, W) uint8, 255 = void.

    `size` (height, width) is that of the cityscapes frames; other domains have their own aspect ratios.
    """
    painter, look, rng = lay_out(frame, size=size, seed=seed)
    drawing = draw(painter, sky_label=SKY, sky_colour=look.sky[0])
    return finish(drawing, rng, look=look, camera=painter.camera), drawing.label


def _write_frame(job: Job) -> tuple[Frame, Array]:
    """Draw and write one frame below a folder unless it is there; returns it and its pixels per class (20,)."""
    from PIL import Image

    frame, out, size, seed = job
    target = TARGETS[frame.domain]
    paths = [os.path.join(out, target.folder, path) for path in target.paths(frame.split, frame.number)]
    label = _kept_label(frame.domain, *paths)
    if label is None:
        image, label = draw_frame(frame, size=size, seed=seed)
        for path in paths:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        parts = ["{}.part{}".format(*os.path.splitext(path)) for path in paths]
        Image.fromarray(image).save(parts[0], quality=88, compress_level=3)  # of JPEG, of PNG
        target.write_label(parts[1], target.encode(label))
        for part, path in zip(parts, paths, strict=True):
            os.replace(part, path)
    return frame, np.bincount(np.minimum(label, labels.NUM_CLASSES).ravel(), minlength=labels.NUM_CLASSES + 1)


def _kept_label(domain: str, image_path: str, label_path: str) -> Array | None:
    """Return the train ids (H, W) of a frame that an interrupted call has left whole, or None."""
    from PIL import Image

    if not (os.path.isfile(image_path) and os.path.isfile(label_path)):
        return None
    try:
        with Image.open(image_path) as image:
            image.load()
        return decode_label(label_path, encoding=BUILTIN[domain].encoding)
    except (OSError, ValueError, SyntaxError):  # cut off
        return None


def _start_worker() -> None:
    """Keep a worker to one thread, and end it when its parent is gone, however that ended."""
    import cv2

    cv2.setNumThreads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(jobs: list[Job], workers: int) -> Iterable[tuple[Frame, Array]]:
    if workers < 2:
        yield from map(_write_frame, jobs)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield from pool.map(_write_frame, jobs, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def _owned_settings(folder: Path) -> object:
    """Return what a folder of this command says of itself.

    Raises:
        UserError: the folder holds something that was not made here.
    """
    known = {MARKER, *(target.folder for target in TARGETS.values())}
    try:
        made = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = None
    if made is None or not {path.name for path in folder.iterdir()} <= known:
        raise UserError(
            f"{folder}: this folder holds files that the demo did not make; name an empty or new folder with --out"
        )
    return made


def _settings(train: int, val: int, size: tuple[int, int], seed: int) -> dict[str, object]:
    return {"version": VERSION, "train": train, "val": val, "size": list(size), "seed": seed}


def already_there(out: Path, *, train: int, val: int, size: tuple[int, int], seed: int) -> bool:
    """Return whether a folder holds a finished set of these options already.

    Raises:
        UserError: the folder holds something that was not made here.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    return _owned_settings(out) == _settings(train, val, size, seed)


def _building_folder(out: Path, settings: dict[str, object]) -> Path:
    """Return the folder beside `out` that a set of these options grows in; what others have left there is removed."""
    building = out.with_name(f".{out.name}-unfinished")
    if building.exists() and _owned_settings(building) != settings:
        shutil.rmtree(building)
    write_text(building / MARKER, json.dumps(settings) + "\n")
    return building


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
    progress: bool = False,
) -> Summary:
    """Draw all five domains and put them below `out`, which is replaced at once when all is done.

    They grow in a folder beside it. After an interruption the same call goes on there: the bytes are those of one go.

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
    building = _building_folder(out, _settings(train, val, size, seed))
    jobs = [
        (Frame(domain, split, number), str(building), size, seed)
        for domain in TARGETS
        for split, count in zip(SPLITS, (train, val), strict=True)
        for number in range(count)
    ]
    try:
        pixels = _draw_all(jobs, min(os.cpu_count() or 1, len(jobs) // 4) if workers is None else workers, progress)
    except OSError as error:
        raise UserError(
            f"{building}: a frame cannot be written ({error.strerror or error}); the same command goes on from here"
        ) from error
    if out.exists():
        already_there(out, train=train, val=val, size=size, seed=seed)
        shutil.rmtree(out)
    os.replace(building, out)
    log.info("%d frames of %d domains in %s", len(jobs), len(TARGETS), out)
    return Summary({domain: out / target.folder for domain, target in TARGETS.items()}, train, val, pixels)


def _draw_all(jobs: list[Job], workers: int, progress: bool) -> dict[str, Array]:
    """Draw and write all frames; returns the pixels (split, class) of every domain."""
    from tqdm import tqdm

    pixels = {domain: np.zeros((len(SPLITS), labels.NUM_CLASSES + 1), np.int64) for domain in TARGETS}
    for frame, counts in tqdm(_run(jobs, workers), total=len(jobs), desc="drawing", unit="frame", disable=not progress):
        pixels[frame.domain][SPLITS.index(frame.split)] += counts
    return pixels
