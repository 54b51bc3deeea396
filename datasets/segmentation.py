"""The data sets: files in, uint8 tensors out; and decoded frames that are kept on disk.

A crop of a kept frame reads only its own bytes, and all processes of a node share the pages.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datasets.codec import Encoding, decode_label, image_size, read_image
from datasets.files import stamp
from datasets.sampling import Pick, sample_rng
from datasets.splits import Pair, Split
from transforms.appearance import AppearanceParams, AppearanceSampler
from transforms.corruptions import Corruption
from transforms.geometry import Geometry, Protocol, make_view
from utils.errors import UserError, WriteError
from utils.files import atomic_path, make_folder, tolerated
from utils.parallel import opencv

log = logging.getLogger(__name__)

_VERSION = 1  # raise it when decoding changes
_HEADER = 128  # bytes of a .npy file before its data
_LEFT_OVER = 3600  # seconds after which nobody writes to a temporary file any more


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

    def read(self, path: str, encoding: Encoding | None = None) -> np.ndarray:
        """Return what `decode` does, memory-mapped; decoded where missing and kept, unless the disk is full."""
        place = self.place(path, encoding)
        try:
            return _mapped(place, encoding)
        except (FileNotFoundError, PermissionError):  # the second of another user's, which writing tells once
            pass
        except Exception as error:  # what numpy raises depends on where the file is damaged
            log.warning("%s: not the decoded form of %s (%s); it is made again", place, path, error)
        array = decode(path, encoding)
        with tolerated(f"the frame cache {self.folder}"):
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
            except Exception as error:  # see `read`
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


class Sample(NamedTuple):
    """One training sample: image (3, h, w) uint8, label (h, w) uint8, parameters of its appearance, name."""

    image: Tensor
    label: Tensor
    params: AppearanceParams
    name: str


class TrainingBatch(NamedTuple):
    """A micro-batch: images (B, 3, h, w) uint8, labels (B, h, w) uint8, appearance parameters, names."""

    images: Tensor
    labels: Tensor
    params: AppearanceParams
    names: list[str]


def collate_training(samples: list[Sample]) -> TrainingBatch:
    images, labels, params, names = default_collate(samples)
    return TrainingBatch(images, labels, params, list(names))


class EvaluationSample(NamedTuple):
    """One image to score: image (3, h, w) uint8, label (h, w) uint8, name."""

    image: Tensor
    label: Tensor
    name: str


class StatisticsSample(NamedTuple):
    """One image for the covariance statistics: image (3, h, w) uint8, parameters of its augmented view."""

    image: Tensor
    params: AppearanceParams


def read_pair(pair: Pair, *, encoding: Encoding, cache: FrameCache | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the RGB image (H, W, 3) and the train ids (H, W), both uint8; unequal sizes are a `UserError`.

    With a cache both are memory-mapped, so that a crop reads only its own bytes.
    """
    read = decode if cache is None else cache.read
    image, label = read(pair.image), read(pair.label, encoding)
    if image.shape[:2] != label.shape:
        raise UserError(
            f"{pair.image}: the image is {image.shape[1]}x{image.shape[0]}, but its label {pair.label} is "
            f"{label.shape[1]}x{label.shape[0]}; they must have one size"
        )
    return image, label


def to_tensor(array: np.ndarray) -> Tensor:
    """Return (3, h, w) uint8 of an image (h, w, 3), or (h, w) of a label, with memory of its own."""
    if array.ndim == 2:
        return torch.from_numpy(np.array(array))
    planes = np.empty((3, *array.shape[:2]), dtype=np.uint8)
    opencv().split(array, list(planes))
    return torch.from_numpy(planes)


@dataclass(eq=False)
class TrainingSet(Dataset[Sample]):
    """Pairs of one or several domains, addressed by complete work orders."""

    sources: Sequence[Split]
    geometry: Geometry
    sampler: AppearanceSampler
    seed: int
    cache: FrameCache | None = None

    def __post_init__(self) -> None:
        self.starts = [0, *accumulate(len(source.pairs) for source in self.sources)]

    def pair(self, item: int) -> tuple[Pair, Encoding]:
        """Return the pair with a number in the joined list of all sources, and the encoding of its label."""
        index = bisect_right(self.starts, item) - 1
        return self.sources[index].pairs[item - self.starts[index]], self.sources[index].encoding

    def __getitem__(self, pick: Pick) -> Sample:
        """Read, transform and hand over one sample; the same pick always gives the same sample."""
        pair, encoding = self.pair(pick.item)
        image, label = read_pair(pair, encoding=encoding, cache=self.cache)
        rng = sample_rng(self.seed, pick.stream)
        view = self.geometry(make_view(image, label, focus=pick.focus), rng)
        return Sample(to_tensor(view.image), to_tensor(view.label), self.sampler(rng), pair.name)


@dataclass(eq=False)
class EvaluationSet(Dataset[EvaluationSample]):
    """Whole images with labels, corrupted if so wanted, then brought to the form that the protocol scores."""

    source: Split
    protocol: Protocol
    corruption: Corruption | None = None

    def __len__(self) -> int:
        return len(self.source.pairs)

    def __getitem__(self, index: int) -> EvaluationSample:
        pair = self.source.pairs[index]
        image, label = read_pair(pair, encoding=self.source.encoding)
        if self.corruption is not None:
            image = self.corruption(image, name=pair.name)
        view = self.protocol(make_view(image, label))
        return EvaluationSample(to_tensor(view.image), to_tensor(view.label), pair.name)


@dataclass(eq=False)
class StatisticsSet(Dataset[StatisticsSample]):
    """Whole images without labels, addressed by (item, stream), with the parameters of their augmented view."""

    pairs: Sequence[Pair]
    sampler: AppearanceSampler
    seed: int
    cache: FrameCache | None = None

    def __getitem__(self, pick: Pick) -> StatisticsSample:
        read = decode if self.cache is None else self.cache.read
        image = to_tensor(read(self.pairs[pick.item].image))
        return StatisticsSample(image, self.sampler(sample_rng(self.seed, pick.stream)))
