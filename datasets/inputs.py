"""The images and videos that a user names: files, folders and patterns."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import ImageError, UserError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".jp2", ".avif")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def find_files(word: str, *, out: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of one input, absolute and sorted, and the folders that names are relative to."""
    if not word:  # which would be the working folder
        raise UserError("an input is an empty word; give files, folders or patterns")
    path, known = Path(word).absolute(), IMAGES + VIDEOS
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in known and file.is_file())
        return [file for file in inside if out not in file.parents or path == out], [path]
    if path.is_file():
        if path.suffix.lower() not in known:
            raise UserError(f"{word}: neither an image nor a video by its suffix ({' '.join(known)})")
        return [path], [path.parent]
    matches = [match for match in glob.glob(word, recursive=True) if os.path.isdir(match) or os.path.isfile(match)]
    if not matches:  # links that lead nowhere are none
        raise UserError(f"{word}: there is no such file or folder, and as a pattern it matches none")
    matches = sorted(match for match in matches if os.path.isdir(match) or match.lower().endswith(known))
    results = [find_files(match, out=out) for match in matches]
    return [file for files, _ in results for file in files], [root for _, roots in results for root in roots]


def open_video(path: Path) -> tuple[float, int, Iterator[np.ndarray[Any, np.dtype[np.uint8]]]]:
    """Return a video's frames per second, about how many it has, and each once, upright, (H, W, 3) uint8 RGB.

    Raises:
        ImageError: it cannot be read.
    """
    from imageio.v2 import get_reader

    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)  # it warns of videos that it turns upright
    try:
        video = get_reader(str(path), "FFMPEG", output_params=["-fps_mode", "passthrough"])
    except Exception as error:  # it searches FFmpeg's text, which ends in any
        raise ImageError("this video cannot be read; it is damaged or its format is not known") from error
    facts = video.get_meta_data()
    rate = facts["fps"] or 25.0

    def frames() -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        with suppress(RuntimeError):  # FFmpeg has crashed
            yield from map(np.asarray, video)

    return rate, round(rate * facts["duration"]), frames()
