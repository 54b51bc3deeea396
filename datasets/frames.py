"""Decoded frames on disk: a crop then reads only its own bytes, and all processes of a node share the pages."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from datasets.codec import Encoding, decode_label, image_size, read_image
from datasets.files import stamp
from datasets.splits import Pair
from utils.errors import UserError, WriteError
from utils.files import atomic_path, make_folder, tolerated

log = logging.getLogger(__name__)

_VERSION = 1  # raise it when decoding changes
_HEADER = 128  # bytes of a .npy file before its data
_LEFT_OVER = 3600  # seconds after which nobody writes to a temporary file any more
_BROKEN = (OSError, ValueError, EOFError)  # what a damaged .npy file raises


def decode(path: str, encoding: Encoding | None = None) -> np.ndarray:
    """Return an image, (H, W, 3) uint8 RGB, or with `encoding` a label's train ids, (H, W) uint8."""
    return read_image(path) if encoding is None else decode_label(path, encoding=encoding)


@dataclass(frozen=True)
class FrameCache:
    """A folder of decoded files, one .npy each, named by a key of all that made it.

    The key holds path, size and time of the source file, for labels the encoding, and the version of this rule: a
    source file that changes gets another name. Files appear whole under their name or not at all, so any number of
    processes may fill the folder at once and an interrupted build resumes where it stopped.
    """

    folder: Path
    required: bool = True  # False: where the disk is full, frames are decoded every time

    def read(self, path: str, encoding: Encoding | None = None) -> np.ndarray:
        """Return what `decode` does, memory-mapped, decoded and kept where missing; `UserError` over a full disk."""
        place = self.place(path, encoding)
        try:
            return _mapped(place, encoding)
        except (FileNotFoundError, PermissionError):  # the second of another user's, which writing tells once
            pass
        except _BROKEN as error:
            log.warning("%s: not the decoded form of %s (%s); it is made again", place, path, error)
        array = decode(path, encoding)
        with nullcontext() if self.required else tolerated(f"the frame cache {self.folder}"):
            try:
                with atomic_path(place) as temporary, temporary.open("wb") as file:
                    np.save(file, array)
            except OSError as error:
                raise WriteError(
                    f"{place}: the decoded form of {path} ({gigabytes(array.nbytes)}) cannot be written "
                    f"({error.strerror}); make room, choose another --frame_cache, or leave it out"
                ) from error
        return array

    def place(self, path: str, encoding: Encoding | None = None) -> Path:
        """Return where the decoded form of a file is kept: an image's, or with `encoding` a label's."""
        made_by = (_VERSION, os.path.abspath(path), *stamp(path), encoding)
        key = hashlib.sha256(repr(made_by).encode()).hexdigest()[:32]
        return self.folder / key[:2] / f"{key[2:]}.npy"

    def _places(self, pair: Pair, encoding: Encoding) -> set[Path]:
        return {self.place(pair.image), self.place(pair.label, encoding)}

    def missing(self, pairs: Sequence[Pair], *, encoding: Encoding) -> list[Pair]:
        """Return the pairs whose image or label is not there yet."""
        existing = set(self.folder.glob("??/*.npy"))  # listed once: a look at every file takes long on a network drive
        return [pair for pair in pairs if not self._places(pair, encoding) <= existing]

    def reserve(self, pools: Sequence[tuple[Sequence[Pair], Encoding]]) -> None:
        """Make the folder, remove what killed processes left; `UserError` where the disk lacks room for all pairs."""
        make_folder(self.folder)
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
        return sum(place.stat().st_size for pair in pairs for place in self._places(pair, encoding) if place.exists())

    def verify(self, pair: Pair, *, encoding: Encoding) -> list[str]:
        """Decode a pair again, remove what is there and differs, and return a clause on each such file."""
        wrong = []
        for path, of in ((pair.image, None), (pair.label, encoding)):
            fresh, place = decode(path, of), self.place(path, of)
            try:
                if np.array_equal(_mapped(place, of), fresh):
                    continue
                reason = "its pixels differ"
            except FileNotFoundError:
                continue
            except _BROKEN as error:
                reason = str(error)
            place.unlink(missing_ok=True)
            wrong.append(f"{place} of {path}: {reason}")
        return wrong


def _mapped(place: Path, encoding: Encoding | None) -> np.ndarray:
    array = np.load(place, mmap_mode="r", allow_pickle=False)
    if array.dtype != np.uint8 or array.ndim != (3 if encoding is None else 2):
        raise ValueError(f"{array.dtype} with {array.ndim} dimensions")
    return array


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
