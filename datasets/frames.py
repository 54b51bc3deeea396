"""Decoded frames on disk: a crop then reads only its own bytes, and all processes of a node share the pages."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from datasets.codec import Encoding, decode_label, image_size, read_image
from datasets.files import stamp
from datasets.splits import Pair
from utils.errors import UserError
from utils.files import atomic_path

log = logging.getLogger(__name__)

_VERSION = 1  # raise it when decoding changes
_HEADER = 128  # bytes of a .npy file before its data
_LEFT_OVER = 3600  # seconds after which nobody writes to a temporary file any more


@dataclass(frozen=True)
class FrameCache:
    """A folder of decoded files, one .npy each, named by a key of all that made it.

    The key holds path, size and time of the source file, for labels the encoding, and the version of this rule: a
    source file that changes gets another name. Files appear whole under their name or not at all, so any number of
    processes may fill the folder at once and an interrupted build resumes where it stopped.
    """

    folder: Path

    def image(self, path: str) -> np.ndarray:
        """Return (H, W, 3) uint8 RGB of an image, memory-mapped; decoded and kept where it was not there.

        Raises:
            UserError: the image cannot be read, or the disk is full.
        """
        return self._get(path, self.place(path), 3, lambda: read_image(path))

    def label(self, path: str, *, encoding: Encoding) -> np.ndarray:
        """Return (H, W) uint8 train ids of a label, memory-mapped; decoded and kept where it was not there."""
        return self._get(path, self.place(path, encoding), 2, lambda: decode_label(path, encoding=encoding))

    def place(self, path: str, encoding: Encoding | None = None) -> Path:
        """Return where the decoded form of a file is kept: an image's, or with `encoding` a label's."""
        made_by = (_VERSION, os.path.abspath(path), *stamp(path), encoding)
        key = hashlib.sha256(repr(made_by).encode()).hexdigest()[:32]
        return self.folder / key[:2] / f"{key[2:]}.npy"

    def _get(self, path: str, place: Path, dimensions: int, decode: Callable[[], np.ndarray]) -> np.ndarray:
        try:
            return _mapped(place, dimensions)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, EOFError) as error:
            log.warning("%s: not the decoded form of %s (%s); it is made again", place, path, error)
        array = decode()
        _write(place, array, path)
        return array

    def missing(self, pairs: Sequence[Pair], *, encoding: Encoding) -> list[Pair]:
        """Return the pairs whose image or label is not there yet."""
        there = set(self.folder.glob("??/*.npy"))  # listed once: a look at every file takes long on a network drive
        return [pair for pair in pairs if not {self.place(pair.image), self.place(pair.label, encoding)} <= there]

    def reserve(self, pools: Sequence[tuple[Sequence[Pair], Encoding]]) -> None:
        """Make the folder, remove what killed processes left, and see that the disk has room for all pairs.

        Raises:
            UserError: the folder cannot be made, or its disk has less room than the missing pairs take.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--frame_cache {self.folder}: cannot be made ({error.strerror}); choose another folder"
            ) from error
        for path in self.folder.glob("??/.*.npy.*.tmp"):  # a killed process left it; a living one needs seconds
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _LEFT_OVER:
                    path.unlink()
        missing = [pair.image for pairs, encoding in pools for pair in self.missing(pairs, encoding=encoding)]
        with ThreadPool(8) as pool:
            sizes = pool.map(image_size, missing, chunksize=256)
        needed = sum(4 * width * height + 2 * _HEADER for width, height in sizes)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"--frame_cache {self.folder}: {len(missing)} decoded frames need {gigabytes(needed)}, and its disk "
                f"has {gigabytes(free)} free; make room, choose another folder, or leave --frame_cache out"
            )

    def size(self, pairs: Sequence[Pair], *, encoding: Encoding) -> int:
        """Return how many bytes the decoded pairs take."""
        places = [place for pair in pairs for place in (self.place(pair.image), self.place(pair.label, encoding))]
        return sum(place.stat().st_size for place in places if place.exists())

    def verify(self, pair: Pair, *, encoding: Encoding) -> list[str]:
        """Decode a pair again, remove what is there and differs, and return a clause on each such file."""
        wrong = []
        for source, place, dimensions in (
            (pair.image, self.place(pair.image), 3),
            (pair.label, self.place(pair.label, encoding), 2),
        ):
            fresh = decode_label(source, encoding=encoding) if dimensions == 2 else read_image(source)
            try:
                reason = "" if np.array_equal(_mapped(place, dimensions), fresh) else "its pixels differ"
            except FileNotFoundError:
                continue
            except (OSError, ValueError, EOFError) as error:
                reason = str(error)
            if reason:
                place.unlink(missing_ok=True)
                wrong.append(f"{place} of {source}: {reason}")
        return wrong


def _mapped(place: Path, dimensions: int) -> np.ndarray:
    array = np.load(place, mmap_mode="r", allow_pickle=False)
    if array.dtype != np.uint8 or array.ndim != dimensions:
        raise ValueError(f"{array.dtype} with {array.ndim} dimensions")
    return array


def _write(place: Path, array: np.ndarray, source: str) -> None:
    try:
        with atomic_path(place) as temporary, temporary.open("wb") as file:
            np.save(file, array)
    except OSError as error:
        raise UserError(
            f"{place}: the decoded form of {source} ({gigabytes(array.nbytes)}) cannot be written ({error.strerror}); "
            "make room, choose another --frame_cache, or leave it out"
        ) from error


def gigabytes(count: int) -> str:
    """Return a number of bytes as people write it."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
