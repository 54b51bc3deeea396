"""What a training reads: class centroids per tile, and the order of an epoch from seed, epoch and position alone."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.codec import Encoding, decode_label
from datasets.files import stamp
from datasets.labels import NUM_CLASSES
from datasets.splits import Pair
from utils.distributed import from_main
from utils.errors import UserError
from utils.files import atomic_path
from utils.parallel import parallel_map

log = logging.getLogger(__name__)

_VERSION = 1  # raise it when the rule of the centroids changes


class Pick(NamedTuple):
    """A complete work order: which pair, which random stream, and the pixel (x, y) that the crop must hold."""

    item: int
    stream: int
    focus: tuple[int, int] | None = None


def sample_rng(seed: int, stream: int) -> np.random.Generator:
    """Return the generator of one sample of one epoch."""
    return np.random.default_rng((seed, 1, stream))


class Source(NamedTuple):
    """One pool of training images: their number, and the class centroids, rows (image, class, x, y), (n, 4) int."""

    num_images: int
    centroids: np.ndarray


def _wrapped(population: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Take `count` rows in random order; every row is taken once before any is taken again."""
    rounds = [rng.permutation(len(population)) for _ in range(-(-count // len(population)))]
    return population[np.concatenate(rounds)[:count]] if rounds else population[:0]


def class_shares(num_images: int, *, fraction: float, present: int) -> tuple[int, int]:
    """Return how many samples of an epoch are aimed at each of `present` classes, and how many of them get one more.

    Parity: int(N * fraction / 19) of each, in all published sizes. In small domains that may lose more than a tenth of
    the share, all of it below 19 samples; then the remainder is dealt out, that of classes that occur nowhere left out.
    """
    share, each = int(num_images * fraction), int(num_images * fraction / NUM_CLASSES)
    rest = share - NUM_CLASSES * each
    return each, rest * present // NUM_CLASSES if 10 * rest > share else 0


def source_epoch(source: Source, *, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Return one epoch of a source in list order: (N, 3) int, image and focus (x, y), -1 for no focus.

    A share `fraction` of the N images is sampled by class (`class_shares`; `rng` chooses who gets one more); the rest
    is plain. Classes that occur nowhere leave their share to plain images, so that an epoch always has N.
    """
    by_class = [source.centroids[source.centroids[:, 1] == index] for index in range(NUM_CLASSES)]
    by_class = [centroids for centroids in by_class if len(centroids)]
    each, more = class_shares(source.num_images, fraction=fraction, present=len(by_class))
    counts = np.full(len(by_class), each)
    if more:
        counts[rng.permutation(len(by_class))[:more]] += 1
    rows = [_wrapped(*part, rng)[:, [0, 2, 3]] for part in zip(by_class, counts.tolist(), strict=True)]
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
        return len(self.sources) * max(source.num_images for source in self.sources)

    def order(self, epoch: int) -> np.ndarray:
        """Return (length, 3) int: item in the joined list of all sources, and focus (x, y) or -1."""
        rng = np.random.default_rng((self.seed, 0, epoch))
        fraction = self.fraction if epoch < self.uniform_epochs else 0.0
        share, start, parts = self.length // len(self.sources), 0, []
        for source in self.sources:
            rounds = -(-share // source.num_images)
            rows = [rng.permutation(source_epoch(source, fraction=fraction, rng=rng)) for _ in range(rounds)]
            parts.append(np.concatenate(rows)[:share] + np.array([start, 0, 0]))
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
        if self.steps_per_epoch == 0:
            raise UserError(
                f"an epoch of {self.plan.length} images does not fill one batch of {self.global_batch} "
                f"(--bs_mult {self.batch_size} x {self.world_size} processes x --accumulate {self.accumulate}); "
                "lower --bs_mult or --accumulate, or use more images"
            )

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world_size * self.accumulate

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.length // self.global_batch

    def __len__(self) -> int:
        """Return the number of micro-batches of this process from `start_step` on."""
        return (self.steps_per_epoch - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Pick]]:
        order = self.plan.order(self.epoch).tolist()
        for micro_batch in range(self.start_step * self.accumulate, self.steps_per_epoch * self.accumulate):
            start = (micro_batch * self.world_size + self.rank) * self.batch_size
            rows = enumerate(order[start : start + self.batch_size], (self.epoch << 32) + start)
            yield [Pick(item, stream, None if x < 0 else (x, y)) for stream, (item, x, y) in rows]


def class_centroids(label: np.ndarray, *, tile: int, on_class: bool = True) -> np.ndarray:
    """Return the centre of mass of every class in every tile.

    Tiles lie edge to edge from the top left; what is left over at the right and bottom is not used. A tile is never
    larger than the image.

    Args:
        label: (H, W) uint8 train ids.
        on_class: move a centre that lies off its class to the nearest pixel of the class in its tile; without it the
            centre is the original's, cut to whole pixels.

    Returns:
        (n, 3) int32 rows (class, x, y), by class, then by tile from left to right and top to bottom.
    """
    tile_h, tile_w = (min(tile, side) for side in label.shape)
    rows, columns = label.shape[0] // tile_h, label.shape[1] // tile_w
    used = np.ascontiguousarray(label[: rows * tile_h, : columns * tile_w])
    # Runs of one class along a line of a tile: labels are smooth, so there are far fewer runs than pixels.
    starts = np.empty(used.shape, dtype=bool)
    np.not_equal(used[:, 1:], used[:, :-1], out=starts[:, 1:])
    starts[:, ::tile_w] = True
    first = np.flatnonzero(starts)
    length = np.diff(first, append=used.size)
    index = used.ravel()[first]
    labelled = index < NUM_CLASSES
    first, length, index = first[labelled], length[labelled], index[labelled].astype(np.int64)
    y, x = np.divmod(first, used.shape[1])
    place = (index * rows + y // tile_h) * columns + x // tile_w  # in the order of the result
    count, sum_y, twice_sum_x = (
        np.bincount(place, weights).astype(np.int64) for weights in (length, length * y, length * (2 * x + length - 1))
    )
    present = np.flatnonzero(count)
    count = np.maximum(count, 1)
    centre_y, centre_x = sum_y // count, twice_sum_x // (2 * count)
    if on_class and len(present):
        nearest_x = np.clip(centre_x[place], x, x + length - 1)  # on each run
        distance = (y - centre_y[place]) ** 2 + (nearest_x - centre_x[place]) ** 2
        best = np.full(len(count), np.iinfo(np.int64).max)  # smallest distance, of equal ones the first run
        np.minimum.at(best, place, distance * len(first) + np.arange(len(first)))
        run = best[present] % len(first)
        centre_y[present], centre_x[present] = y[run], nearest_x[run]
    centres = (present // (rows * columns), centre_x[present], centre_y[present])
    return np.stack(centres, axis=1).astype(np.int32)


def source_centroids(
    pairs: Sequence[Pair], *, encoding: Encoding, tile: int, name: str, cache_dir: str, workers: int
) -> np.ndarray:
    """Return the centroids of all labels of a domain: (n, 4) int32 rows (image, class, x, y).

    The first process reads the cache or computes and writes it; the others receive the result, or its error. The cache
    file's name holds a key of all that made it: names, sizes and times of the labels, tile, encoding, this rule.
    """
    title = f"class centroids of {name}"

    def make() -> np.ndarray:
        work, labels = partial(_centroids_of_file, encoding=encoding, tile=tile), [pair.label for pair in pairs]
        parts = parallel_map(work, labels, workers=workers, title=title, unit="label")
        rows = [np.insert(part, 0, index, axis=1) for index, part in enumerate(parts)]
        return np.concatenate([np.zeros((0, 4), dtype=np.int32), *rows])

    def load() -> np.ndarray:
        key = cache_key(pairs, encoding=encoding, tile=tile)
        path = Path(cache_dir) / f"centroids_{name}_tile{tile}_{key}.npy"
        return load_or_compute(path, columns=4, title=title, make=make)

    return from_main(load)


def _centroids_of_file(label: str, *, encoding: Encoding, tile: int) -> np.ndarray:
    return class_centroids(decode_label(label, encoding=encoding), tile=tile)


def cache_key(pairs: Sequence[Pair], *, encoding: Encoding, tile: int) -> str:
    """Return 16 hex digits of all that decides the centroids."""
    made_by = hashlib.sha256(json.dumps([_VERSION, tile, repr(encoding), len(pairs)]).encode())
    for pair in pairs:
        made_by.update(os.fsencode("\t".join(map(str, (f"\n{pair.name}", pair.label, *stamp(pair.label))))))
    return made_by.hexdigest()[:16]


def load_or_compute(path: Path, *, columns: int, title: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the table (n, columns) of integers that a file keeps; made, and written, where there is none."""
    try:
        rows = np.load(path, allow_pickle=False)
        if rows.dtype.kind != "i" or rows.shape[1:] != (columns,):
            raise ValueError(f"not a table of {title}")
        log.info("%s from %s", title, path)
        return rows
    except FileNotFoundError:
        pass
    except Exception as error:  # what numpy raises depends on where the file is damaged
        log.warning("%s: cannot be read (%s); it is made again", path, error)
    rows = make()
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, rows)
    except OSError as error:
        log.warning("%s: cannot be written (%s); it will be made again in the next run", path, error)
    return rows
