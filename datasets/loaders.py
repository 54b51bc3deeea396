"""Loaders for training, evaluation and covariance statistics, built from the config; and the way to the device."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from config import Config
from datasets.domains import CITYSCAPES_COARSE
from datasets.labels import CLASS_NAMES
from datasets.sampling import EpochPlan, GlobalBatches, Pick, Source, source_centroids
from datasets.segmentation import (
    EvaluationSample,
    EvaluationSet,
    FrameCache,
    StatisticsSample,
    StatisticsSet,
    TrainingBatch,
    TrainingSet,
    collate_training,
)
from datasets.splits import Split, Splits
from transforms import build_appearance_sampler, build_geometry, statistics_sampler
from transforms.corruptions import Corruption
from transforms.geometry import CentreSquare, NativeSize
from utils.distributed import check_same, is_main
from utils.errors import UserError
from utils.parallel import cores, leave_to_parent, starting_workers


def choose_workers(requested: int) -> int:
    """Return the number of loader workers of this process; -1 shares the cores among the processes of the node."""
    if requested >= 0:
        return requested
    return max(1, min(16, cores() // max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)))


class _Loader(DataLoader[Any]):
    def __iter__(self) -> Any:
        with starting_workers(self.num_workers):
            return super().__iter__()


def _loader(dataset: Any, *, cfg: Config, collate: Any, persistent: bool = False, **order: Any) -> DataLoader[Any]:
    workers = choose_workers(cfg.DATASET.NUM_WORKERS)
    return _Loader(
        dataset,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available() and cfg.RUN.DEVICE != "cpu",
        persistent_workers=persistent and workers > 0,
        worker_init_fn=leave_to_parent,
        generator=torch.Generator(),  # keeps the loader from drawing its own seed from the global stream
        **order,
    )


@dataclass(eq=False)
class TrainingLoader:
    """Micro-batches of this process, epoch by epoch; every epoch has the same number of steps.

    `text` describes them in one line; `cached` tells whether decoded frames are kept.
    """

    batches: GlobalBatches
    loader: DataLoader[TrainingBatch]
    sources: list[Split]
    text: str
    cached: bool
    started: Iterator[TrainingBatch] | None = None  # the first epoch, whose first batches the workers read already

    @property
    def steps_per_epoch(self) -> int:
        return self.batches.steps_per_epoch

    def start(self) -> None:
        """Let the workers read the first batches of a new run while the rest of it is built."""
        self.started = self.epoch(0) if self.loader.num_workers else None

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[TrainingBatch]:
        """Yield the micro-batches from a step on, without reading what comes before."""
        assert 0 <= start_step <= self.steps_per_epoch
        started, self.started = self.started, None
        if started is not None and (epoch, start_step) == (0, 0):
            return started
        self.batches.epoch, self.batches.start_step = epoch, start_step
        return iter(self.loader)

    def advice(self) -> str:
        most, workers = choose_workers(-1), self.loader.num_workers
        ways = [f"raise --num_workers above {workers}"] if workers < most else []
        ways += [] if self.cached else ["keep decoded frames with --frame_cache DIR"]
        return " or ".join(ways) or f"{most} workers and the cache are in use already; use a faster disk"


def training_split(cfg: Config, domain: str) -> str:
    return str(cfg.DATASET.CITY_MODE) if domain == "cityscapes" else "train"


def build_training_loader(cfg: Config, splits: Splits, *, jitter: str, rank: int, world_size: int) -> TrainingLoader:
    """Return the loader of the source domains; `jitter` names the strengths of the colour jitter (diia, robustnet).

    Every process calls it; with class-uniform sampling the first one scans the labels once.
    """
    data, names = cfg.DATASET, cfg.DATASET.TRAIN
    pools = [splits.open(name, training_split(cfg, name)) for name in names]
    if len(set(names)) < len(names):
        raise UserError("--dataset: name one or several source data sets, each once")
    check_same({f"{pool.domain.name}/{pool.name}": _sizes(pool) for pool in pools})
    sources = [Source(len(pool.pairs), _centroids(cfg, pool)) for pool in pools]
    if data.COARSE_BOOST_CLASSES:
        _add_coarse(cfg, splits, pools, sources)
    cache = frame_cache(cfg)
    if cache is not None and os.environ.get("LOCAL_RANK", "0") == "0":  # one process per node looks at its disk
        cache.reserve([(pool.pairs, pool.encoding) for pool in pools])
    if data.IMAGE_UNIFORM_SAMPLING:
        sources = [_pooled(sources)]
    plan = EpochPlan(tuple(sources), cfg.RUN.SEED, fraction=data.CLASS_UNIFORM_PCT, uniform_epochs=data.MAX_CU_EPOCH)
    batches = GlobalBatches(plan, cfg.OPTIM.BATCH_SIZE, cfg.OPTIM.ACCUMULATE, rank, world_size)
    sampler = build_appearance_sampler(cfg, jitter=jitter)
    dataset = TrainingSet(pools, geometry=build_geometry(cfg), sampler=sampler, seed=cfg.RUN.SEED, cache=cache)
    loader = _loader(dataset, cfg=cfg, collate=collate_training, persistent=True, batch_sampler=batches)
    seen = {int(index) for source in sources for index in np.unique(source.centroids[:, 1])}
    absent = ", ".join(name for index, name in enumerate(CLASS_NAMES) if index not in seen)
    aimed = f"{(plan.order(0)[:, 1] >= 0).sum()} of {plan.length} samples of the first epoch aimed at a class"
    parts = [
        ", ".join(f"{name} {len(pool.pairs)}" for name, pool in zip(names, pools, strict=False)),
        *(f"{len(pool.pairs)} coarse frames for rare classes" for pool in pools[len(names) :]),
        f"class-uniform share {plan.fraction:g}, {aimed}" if plan.fraction else "plain sampling",
        f"no label holds {absent}" if plan.fraction and absent else "",
        ("pooled" if data.IMAGE_UNIFORM_SAMPLING else "equal shares per domain") if len(names) > 1 else "",
        f"decoded frames in {data.FRAME_CACHE}" if cache else "",
        f"{batches.steps_per_epoch} steps of {batches.global_batch} per epoch",
        f"{loader.num_workers} loader worker(s) per process",
    ]
    text = f"training images: {'; '.join(filter(None, parts))}"
    return TrainingLoader(batches, loader, pools, text, cached=cache is not None)


def _sizes(split: Split) -> str:
    """Return what tells a copy of the data on another node: the sizes of 64 of its files, as a hash."""
    files = [path for pair in split.pairs[:: -(-len(split.pairs) // 32)] for path in (pair.image, pair.label)]
    sizes = [os.path.getsize(path) if os.path.exists(path) else -1 for path in files]
    return f"files of sizes {hashlib.sha256(repr(sizes).encode()).hexdigest()[:8]}"


def _centroids(cfg: Config, split: Split) -> np.ndarray:
    if cfg.DATASET.CLASS_UNIFORM_PCT == 0:
        return np.zeros((0, 4), dtype=np.int32)
    return source_centroids(
        split.pairs,
        encoding=split.encoding,
        tile=split.domain.tile,
        name=split.domain.name,
        cache_dir=cfg.DATASET.CENTROID_CACHE,
        workers=choose_workers(cfg.DATASET.NUM_WORKERS),
    )


def _pooled(sources: Sequence[Source]) -> Source:
    starts = np.cumsum([0] + [source.num_images for source in sources])
    rows = [source.centroids + np.array([start, 0, 0, 0]) for source, start in zip(sources, starts, strict=False)]
    return Source(int(starts[-1]), np.concatenate(rows))


def _add_coarse(cfg: Config, splits: Splits, pools: list[Split], sources: list[Source]) -> None:
    """Put Cityscapes' coarse frames behind all others, and their centroids of some classes into its source.

    The coarse frames are only ever sampled for these classes; plain images stay the fine ones.
    """
    if "cityscapes" not in cfg.DATASET.TRAIN or cfg.DATASET.CLASS_UNIFORM_PCT == 0:
        raise UserError("--coarse_boost_classes needs --dataset cityscapes and a --class_uniform_pct above 0")
    index, fine = cfg.DATASET.TRAIN.index("cityscapes"), splits.domains["cityscapes"]
    coarse = splits.open(replace(CITYSCAPES_COARSE, root=fine.root, tile=fine.tile), "train")
    rows = _centroids(cfg, coarse)
    rows = rows[np.isin(rows[:, 1], cfg.DATASET.COARSE_BOOST_CLASSES)]
    rows[:, 0] += sum(source.num_images for source in sources[index:])  # the plan adds those of the sources before
    sources[index] = sources[index]._replace(centroids=np.concatenate([sources[index].centroids, rows]))
    pools.append(coarse)


def frame_cache(cfg: Config) -> FrameCache | None:
    if not cfg.DATASET.FRAME_CACHE:
        return None
    return FrameCache(Path(os.path.realpath(cfg.DATASET.FRAME_CACHE)))


@dataclass(eq=False)
class EvaluationLoader:
    """One process's share of the images of a whole split, one at a time; `protocol` says how they are scored.

    `corruption` is "" or "NAME:SEVERITY".
    """

    loader: DataLoader[EvaluationSample]
    split: Split
    protocol: str
    corruption: str = ""

    @property
    def name(self) -> str:
        """The domain, with the corruption where there is one: "cityscapes fog:3"."""
        return f"{self.split.domain.name} {self.corruption}".rstrip()

    def __iter__(self) -> Iterator[EvaluationSample]:
        return iter(self.loader)

    def only(self, items: Sequence[int]) -> EvaluationLoader:
        """Return a loader of these images of the whole split; the first process gets them all, the others none."""
        split = replace(self.split, pairs=tuple(self.split.pairs[item] for item in items))
        share = list(items) if is_main() else []
        loader = DataLoader(self.loader.dataset, batch_size=1, sampler=share, collate_fn=itemgetter(0))
        return replace(self, loader=loader, split=split)


def build_evaluation_loader(
    cfg: Config, split: Split, *, rank: int, world_size: int, limit: int = 0, corruption: Corruption | None = None
) -> EvaluationLoader:
    """Return the loader of a split, or of `limit` > 0 of its images; process `rank` gets every world_size-th."""
    split = split.subset(limit)
    centred = cfg.EVAL.PROTOCOL == "robustnet" and split.domain.name == "mapillary"
    protocol = CentreSquare() if centred else NativeSize()
    share = range(rank, len(split.pairs), world_size)
    dataset = EvaluationSet(split, protocol=protocol, corruption=corruption)
    loader = _loader(dataset, cfg=cfg, collate=itemgetter(0), batch_size=1, sampler=share)
    if corruption is None:
        return EvaluationLoader(loader, split, protocol.text)
    return EvaluationLoader(loader, split, f"{corruption.text}, {protocol.text}", str(corruption))


def build_statistics_loader(
    cfg: Config, split: Split, *, trial: int, rank: int, world_size: int
) -> DataLoader[StatisticsSample]:
    """Return whole images of a split with the parameters of their photometrically augmented view, one at a time.

    The first WHITENING.STAT_IMAGES of an order that depends on (seed, trial); process `rank` gets every world_size-th.
    """
    order = np.random.default_rng((cfg.RUN.SEED, 2, trial)).permutation(len(split.pairs))[: cfg.WHITENING.STAT_IMAGES]
    picks = [Pick(int(item), (1 << 60) + (trial << 32) + position) for position, item in enumerate(order)]
    dataset = StatisticsSet(split.pairs, sampler=statistics_sampler(), seed=cfg.RUN.SEED, cache=frame_cache(cfg))
    return _loader(dataset, cfg=cfg, collate=itemgetter(0), batch_size=1, sampler=picks[rank::world_size])


class DeviceBatches:
    """Batches on the device; on a GPU they are copied on a stream of their own while the step before still runs.

    The parameters of the appearance stay on the CPU, where it reads them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.restart()

    def restart(self) -> None:
        """Count time and waiting from now on."""
        self.waits: list[tuple[Any, Any]] = []  # marks before and after each
        self.seconds, self.handed_over = 0.0, time.perf_counter()

    def __call__(self, batches: Iterator[TrainingBatch]) -> Iterator[TrainingBatch]:
        while True:
            start, before = time.perf_counter(), self._mark()
            batch = next(batches, None)
            if batch is None:
                return
            self.waits.append((before, self._mark()))
            self.handed_over = time.perf_counter()
            self.seconds += self.handed_over - start
            yield self._moved(batch)
            self.seconds += time.perf_counter() - self.handed_over

    def wait_share(self) -> float:
        """Return the share of the steps' time in which the device had nothing to do but wait; call it in a step."""
        if not self.waits:
            return 0.0
        if self.stream is None:
            waited = sum(after - before for before, after in self.waits)
        else:
            self.waits[-1][1].synchronize()  # then all before it have come too
            waited = sum(before.elapsed_time(after) for before, after in self.waits) / 1000
        return waited / (self.seconds + time.perf_counter() - self.handed_over)

    def _mark(self) -> float | torch.cuda.Event:
        """Return now: the clock's on the CPU; on a GPU an event, which comes when all work queued so far is done."""
        if self.stream is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _moved(self, batch: TrainingBatch) -> TrainingBatch:
        if self.stream is None:
            return batch
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            images = batch.images.to(self.device, non_blocking=True)
            labels = batch.labels.to(self.device, non_blocking=True)
        current.wait_stream(self.stream)
        for tensor in (images, labels):
            tensor.record_stream(current)  # its memory may not be given to another copy while the step reads it
        return batch._replace(images=images, labels=labels)
