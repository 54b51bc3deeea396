"""What every process reads: the order of an epoch as a pure function of seed, epoch and position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from datasets.labels import NUM_CLASSES
from utils.errors import UserError


class Pick(NamedTuple):
    """A complete work order: which pair, which random stream, and the pixel (x, y) that the crop must hold."""

    item: int
    stream: int
    focus: tuple[int, int] | None = None


def sample_rng(seed: int, stream: int) -> np.random.Generator:
    """Return the generator of one sample of one epoch."""
    return np.random.default_rng((seed, 1, stream))


@dataclass(frozen=True, eq=False)
class Source:
    """One pool of training images: their number, and the class centroids, rows (image, class, x, y), (n, 4) int."""

    num_images: int
    centroids: np.ndarray


def _wrapped(population: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Take `count` rows in random order; every row is taken once before any is taken again."""
    rounds = [rng.permutation(len(population)) for _ in range(-(-count // len(population)))]
    return population[np.concatenate(rounds)[:count]] if rounds else population[:0]


def source_epoch(source: Source, *, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Return one epoch of a source in list order: (N, 3) int, image and focus (x, y), -1 for no focus.

    A share `fraction` of the N images is drawn by class, k = int(N * fraction / 19) of each; the rest is plain. Classes
    that occur nowhere leave their share to plain images, so that an epoch always has N.
    """
    per_class = int(source.num_images * fraction / NUM_CLASSES)
    rows = []
    for index in range(NUM_CLASSES if per_class else 0):
        found = source.centroids[source.centroids[:, 1] == index]
        if len(found):
            rows.append(_wrapped(found, per_class, rng)[:, [0, 2, 3]])
    plain = np.full((source.num_images, 3), -1)
    plain[:, 0] = np.arange(source.num_images)
    count = source.num_images - sum(len(part) for part in rows)
    return np.concatenate([_wrapped(plain, count, rng), *rows])


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The order of every epoch over one or several sources.

    Several sources get equal shares: the smaller ones are gone through again until each fills the length of the
    largest, and every run of as many positions as there are sources holds one image of each. From epoch
    `uniform_epochs` on, sampling is plain.
    """

    sources: tuple[Source, ...]
    seed: int
    fraction: float = 0.0
    uniform_epochs: int = 1 << 62

    @property
    def length(self) -> int:
        """Number of positions of an epoch."""
        return len(self.sources) * max(source.num_images for source in self.sources)

    def order(self, epoch: int) -> np.ndarray:
        """Return (length, 3) int: item in the joined list of all sources, and focus (x, y) or -1."""
        rng = np.random.default_rng((self.seed, 0, epoch))
        fraction = self.fraction if epoch < self.uniform_epochs else 0.0
        share, start, parts = self.length // len(self.sources), 0, []
        for source in self.sources:
            rounds = -(-share // source.num_images)
            rows = [rng.permutation(source_epoch(source, fraction=fraction, rng=rng)) for _ in range(rounds)]
            part = np.concatenate(rows)[:share] + np.array([start, 0, 0])
            parts.append(part)
            start += source.num_images
        joined = np.stack(parts, axis=1)  # (share, sources, 3)
        turn = np.argsort(rng.random(joined.shape[:2]), axis=1) if len(parts) > 1 else np.zeros((share, 1), int)
        return np.take_along_axis(joined, turn[:, :, None], axis=1).reshape(-1, 3)


@dataclass
class GlobalBatches:
    """Batch sampler of one process: step s of an epoch covers positions [s*G, (s+1)*G) over all processes.

    Letters: B images per process and forward, W processes, A micro-batches per step, G = B * W * A. Micro-batch a of
    rank r starts at s*G + a*B*W + r*B. Positions that do not fill a step are left out.
    """

    plan: EpochPlan
    batch_size: int
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1
    epoch: int = 0
    start_step: int = 0

    def __post_init__(self) -> None:
        """Refuse an epoch that does not fill a single step."""
        if self.steps_per_epoch == 0:
            raise UserError(
                f"an epoch of {self.plan.length} images does not fill one batch of {self.global_batch} "
                f"(--bs_mult {self.batch_size} x {self.world_size} processes x --accumulate {self.accumulate}); "
                "lower --bs_mult or --accumulate, or use more images"
            )

    @property
    def global_batch(self) -> int:
        """Images per optimizer step over all processes."""
        return self.batch_size * self.world_size * self.accumulate

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.plan.length // self.global_batch

    def __len__(self) -> int:
        """Return the number of micro-batches of this process from `start_step` on."""
        return (self.steps_per_epoch - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Pick]]:
        """Yield the picks of every micro-batch of this process."""
        order = self.plan.order(self.epoch)
        for micro_batch in range(self.start_step * self.accumulate, self.steps_per_epoch * self.accumulate):
            start = (micro_batch * self.world_size + self.rank) * self.batch_size
            yield [_pick(order[position], self.epoch, position) for position in range(start, start + self.batch_size)]


def _pick(row: Sequence[int], epoch: int, position: int) -> Pick:
    item, x, y = (int(value) for value in row)
    return Pick(item, (epoch << 32) + position, None if x < 0 else (x, y))
