"""The data sets: files in, uint8 tensors out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.codec import Encoding
from datasets.frames import FrameCache, decode
from datasets.sampling import Pick, sample_rng
from datasets.splits import Pair, Split
from transforms.appearance import AppearanceParams, AppearanceSampler
from transforms.corruptions import Corruption
from transforms.geometry import Geometry, Protocol, make_view
from utils.errors import UserError
from utils.parallel import opencv


class Sample(NamedTuple):
    """One training sample: image (3, h, w) uint8, label (h, w) uint8, parameters of its appearance, name."""

    image: Tensor
    label: Tensor
    params: AppearanceParams
    name: str


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
