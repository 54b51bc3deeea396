"""The images and videos that a user names, what predict.py writes of them, and the names that test servers take."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets import files
from datasets.codec import ENCODINGS
from datasets.labels import PALETTE
from utils.errors import ImageError, UserError
from utils.pictures import Array, colorize, overlay, stretched

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".jp2", ".avif")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
FRAME_SUFFIXES = "_leftImg8bit|_rgb_anon"  # of an image's name, which test servers' names of predictions leave out


def absolute(path: str | Path) -> Path:
    """Return an absolute path without `..` and without links but its last name, so that one place has one path."""
    path = Path(path).absolute()
    return Path(os.path.realpath(path) if path.name == ".." else os.path.join(os.path.realpath(path.parent), path.name))


def find_files(word: str, *, out: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of one input, absolute and sorted, and the folders that names are relative to.

    What an earlier call wrote below `out` is left out of a folder that `out` is or lies in, and of a pattern.
    """
    if not word:  # which would be the working folder
        raise UserError("an input is an empty word; give files, folders or patterns")
    path, out, known = absolute(word), Path(os.path.realpath(out)), IMAGES + VIDEOS
    results = {out / kind for kind in KINDS}
    if path.is_dir():
        below = map(Path, files.find(str(path), "**/*", {}).values())  # through links to folders too, nothing hidden
        inside = sorted(file for file in below if file.suffix.lower() in known and file.is_file())
        real = Path(os.path.realpath(path))
        written = {out} if real in out.parents else results - {real, *real.parents}
        return [file for file in inside if not written.intersection(absolute(file).parents)], [path]
    if path.is_file():
        if path.suffix.lower() not in known:
            raise UserError(f"{word}: neither an image nor a video by its suffix ({' '.join(known)})")
        return [path], [path.parent]
    matches = [match for match in glob.glob(word, recursive=True) if os.path.isdir(match) or os.path.isfile(match)]
    if not matches:  # links that lead nowhere are none
        raise UserError(f"{word}: there is no such file or folder, and as a pattern it matches none")
    matches = sorted(match for match in matches if os.path.isdir(match) or match.lower().endswith(known))
    places = {match: absolute(match) for match in matches}
    found = [find_files(name, out=out) for name, place in places.items() if results.isdisjoint((place, *place.parents))]
    return [file for inside, _ in found for file in inside], [root for _, roots in found for root in roots]


def open_video(path: Path) -> tuple[float, int, Iterator[Array]]:
    """Return a video's frames per second, about how many it has, and each once, upright, (H, W, 3) uint8 RGB.

    Raises:
        ImageError: it cannot be read.
    """
    from imageio.v2 import get_reader
    from imageio_ffmpeg import count_frames_and_secs

    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)  # it warns of videos that it turns upright
    try:
        video = get_reader(str(path), "FFMPEG", output_params=["-fps_mode", "passthrough"])
    except Exception as error:  # it searches FFmpeg's text, which ends in any
        raise ImageError("this video cannot be read; it is damaged or its format is not known") from error
    facts = video.get_meta_data()
    rate = facts["fps"] or 25.0
    with suppress(RuntimeError):
        count, seconds = count_frames_and_secs(str(path))
        if abs(count - rate * seconds) > max(1, 0.01 * count) and seconds > 0:  # a varying rate
            rate = count / seconds

    def frames() -> Iterator[Array]:
        with suppress(RuntimeError):  # FFmpeg has crashed
            yield from map(np.asarray, video)

    return rate, round(rate * facts["duration"]), frames()


def _by_class(labels: Array) -> Image.Image:
    """Return train ids as an image of palette colours, whose indices they are."""
    image = Image.fromarray(labels)
    image.putpalette(PALETTE.tobytes().ljust(768, b"\0"))
    return image


class Kind(NamedTuple):
    """What can be written: the map of the model that it shows, and how."""

    map: str
    draw: Callable[[Array, Array, float], Image.Image]  # of the image, its map, the opacity
    picture: bool = True  # to be looked at: a video's frames become a video


KINDS = {
    "train_ids": Kind("labels", lambda _image, labels, _: Image.fromarray(labels), picture=False),
    "label_ids": Kind(
        "labels", lambda _image, labels, _: Image.fromarray(ENCODINGS["cityscapes_ids"].encode(labels)), picture=False
    ),
    "colour": Kind("labels", lambda _image, labels, _: _by_class(labels)),
    "overlay": Kind(
        "labels", lambda image, labels, alpha: Image.fromarray(overlay(image, labels, palette=PALETTE, alpha=alpha))
    ),
    "side_by_side": Kind(
        "labels", lambda image, labels, _: Image.fromarray(np.hstack((image, colorize(labels, palette=PALETTE))))
    ),
    "confidence": Kind("confidence", lambda _image, share, _: Image.fromarray((255 * share).round().astype(np.uint8))),
    "edge": Kind("edge", lambda _image, edge, _: Image.fromarray(stretched(edge))),
    "layout": Kind("layout", lambda _image, layout, _: _by_class(layout)),
}
ALL_KINDS = KINDS | {  # the last for a server alone
    "confidence_16": Kind(
        "confidence", lambda _image, share, _: Image.fromarray((65535 * share).round().astype(np.uint16))
    )
}

# Test server -> kind -> its file: `path` is the image's below the inputs, `name` its last part, both without suffix,
# `frame` the name without the camera's _leftImg8bit or _rgb_anon.
SUBMISSIONS: Mapping[str, Mapping[str, str]] = {
    "cityscapes": {"label_ids": "{frame}.png"},  # city_sequence_frame*.png, in one zip
    "acdc": {"train_ids": "labelTrainIds/{name}.png"},
    "bravo": {"train_ids": "{path}_pred.png", "confidence_16": "{path}_conf.png"},
}


def file_name(pattern: str, path: str) -> str:
    """Return the file of an image for a pattern of `SUBMISSIONS`; `path` is the image's without suffix."""
    name = PurePosixPath(path).name
    return pattern.format(path=path, name=name, frame=frame_name(name))


def frame_name(stem: str) -> str:
    """Return the name of a frame for that of its image, which Cityscapes and ACDC end with the camera's."""
    return re.sub(f"({FRAME_SUFFIXES})$", "", stem)
