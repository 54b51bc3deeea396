"""The data sets: files in, uint8 tensors out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.codec import Encoding, decode_label, read_image
from datasets.frames import FrameCache
from datasets.sampling import Pick, sample_rng
from datasets.splits import Pair, Split
from transforms.appearance import AppearanceParams, AppearanceSampler
from transforms.geometry import Geometry, Protocol
from transforms.view import make_view
from utils.errors import UserError
from utils.opencv import opencv


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
    if cache is None:
        image, label = read_image(pair.image), decode_label(pair.label, encoding=encoding)
    else:
        image, label = cache.image(pair.image), cache.label(pair.label, encoding=encoding)
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


class TrainingSet(Dataset[Sample]):
    """Pairs of one or several domains, addressed by complete work orders."""

    def __init__(
        self,
        sources: Sequence[Split],
        *,
        geometry: Geometry,
        sampler: AppearanceSampler,
        seed: int,
        cache: FrameCache | None = None,
    ) -> None:
        self.sources, self.geometry, self.seed, self.cache = tuple(sources), geometry, seed, cache
        self.sampler = sampler
        self.starts = [0, *accumulate(len(source.pairs) for source in self.sources)]

    def __getitem__(self, pick: Pick) -> Sample:
        """Read, transform and hand over one sample; the same pick always gives the same sample."""
        index = bisect_right(self.starts, pick.item) - 1
        source = self.sources[index]
        pair = source.pairs[pick.item - self.starts[index]]
        image, label = read_pair(pair, encoding=source.encoding, cache=self.cache)
        rng = sample_rng(self.seed, pick.stream)
        view = self.geometry(make_view(image, label, focus=pick.focus), rng)
        return Sample(to_tensor(view.image), to_tensor(view.label), self.sampler(rng), pair.name)


class EvaluationSet(Dataset[EvaluationSample]):
    """Whole images with labels, brought to the form that the protocol scores."""

    def __init__(self, source: Split, *, protocol: Protocol) -> None:
        self.source, self.protocol = source, protocol

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.source.pairs)

    def __getitem__(self, index: int) -> EvaluationSample:
        """Read one pair."""
        pair = self.source.pairs[index]
        view = self.protocol(make_view(*read_pair(pair, encoding=self.source.encoding)))
        return EvaluationSample(to_tensor(view.image), to_tensor(view.label), pair.name)


class StatisticsSet(Dataset[StatisticsSample]):
    """Whole images without labels, addressed by (item, stream), with the parameters of their augmented view."""

    def __init__(
        self, pairs: Sequence[Pair], *, sampler: AppearanceSampler, seed: int, cache: FrameCache | None = None
    ) -> None:
        self.pairs, self.sampler, self.seed, self.cache = tuple(pairs), sampler, seed, cache

    def __getitem__(self, pick: Pick) -> StatisticsSample:
        """Read one image."""
        path = self.pairs[pick.item].image
        image = to_tensor(read_image(path) if self.cache is None else self.cache.image(path))
        return StatisticsSample(image, self.sampler(sample_rng(self.seed, pick.stream)))
