"""Loaders for training, evaluation and covariance statistics, built from the config."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from datasets.class_uniform import source_centroids
from datasets.domains import CITYSCAPES_COARSE, Domain, Pair, find_pairs, get_domain, list_hash, load_domains
from datasets.frames import FrameCache
from datasets.plan import EpochPlan, GlobalBatches, Pick, Source
from datasets.segmentation import (
    EvaluationSample,
    EvaluationSet,
    LabelledPairs,
    Sample,
    StatisticsSample,
    StatisticsSet,
    TrainingSet,
)
from transforms.appearance import AppearanceParams
from transforms.build import build_appearance_sampler, build_geometry, statistics_sampler
from transforms.protocols import CentreSquare, NativeSize
from utils.errors import UserError

_NO_CENTROIDS = np.zeros((0, 4), dtype=np.int32)


class TrainingBatch(NamedTuple):
    """A micro-batch: images (B, 3, h, w) uint8, labels (B, h, w) uint8, appearance parameters, names."""

    images: Tensor
    labels: Tensor
    params: AppearanceParams
    names: list[str]


def _collate(samples: list[Sample]) -> TrainingBatch:
    images, labels, params, names = default_collate(samples)
    return TrainingBatch(images, labels, params, list(names))


def choose_workers(asked: int) -> int:
    """Return the number of loader workers of this process; -1 shares the cores among the processes of the node."""
    if asked >= 0:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)))


def _loader(dataset: Any, *, cfg: Any, collate: Any, persistent: bool = False, **order: Any) -> DataLoader[Any]:
    workers = choose_workers(cfg.DATASET.NUM_WORKERS)
    return DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available() and cfg.RUN.DEVICE != "cpu",
        persistent_workers=persistent and workers > 0,
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
    text: str
    cached: bool

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.batches.steps_per_epoch

    @property
    def num_images(self) -> int:
        """Images of all source domains."""
        return sum(source.num_images for source in self.batches.plan.sources)

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[TrainingBatch]:
        """Yield the micro-batches of an epoch from a step on, without reading what comes before."""
        assert 0 <= start_step <= self.steps_per_epoch
        self.batches.epoch, self.batches.start_step = epoch, start_step
        return iter(self.loader)

    def advice(self) -> str:
        """Say what makes the data come faster."""
        cores, workers = choose_workers(-1), self.loader.num_workers
        ways = [f"raise --num_workers above {workers}"] if workers < cores else []
        if not self.cached:
            ways.append("keep decoded frames with --cache DIR")
        return " or ".join(ways) or f"{cores} workers and the cache are in use already; use a faster disk"


def build_training_loader(cfg: Any, *, jitter: str, rank: int, world_size: int) -> TrainingLoader:
    """Return the loader of the source domains; `jitter` names the strengths of the colour jitter (diia, robustnet).

    Every process calls it; with class-uniform sampling the first one scans the labels once.
    """
    domains = load_domains(cfg)
    chosen = [get_domain(domains, name) for name in cfg.DATASET.TRAIN]
    if len({domain.name for domain in chosen}) < len(chosen):
        raise UserError("--dataset: name one or several source data sets, each once")
    pools = [
        LabelledPairs(tuple(find_pairs(domain, training_split(cfg, domain))), domain.encoding) for domain in chosen
    ]
    centroids = [_centroids(cfg, domain, pool.pairs) for domain, pool in zip(chosen, pools, strict=True)]
    sources = [Source(len(pool.pairs), rows) for pool, rows in zip(pools, centroids, strict=True)]
    text = _describe_images(cfg, chosen, sources)
    if cfg.DATASET.COARSE_BOOST_CLASSES:
        coarse, sources = _boosted(cfg, chosen, sources)
        pools.append(coarse)
        text += f", and {len(coarse.pairs)} coarse frames for rare classes"
    cache = frame_cache(cfg)
    if cache is not None and os.environ.get("LOCAL_RANK", "0") == "0":  # one process per node looks at its disk
        cache.reserve([(pool.pairs, pool.encoding) for pool in pools])
    if cfg.DATASET.IMAGE_UNIFORM_SAMPLING:
        sources = [_pooled(sources)]
    plan = EpochPlan(
        tuple(sources), cfg.RUN.SEED, fraction=cfg.DATASET.CLASS_UNIFORM_PCT, uniform_epochs=cfg.DATASET.MAX_CU_EPOCH
    )
    batches = GlobalBatches(plan, cfg.OPTIM.BATCH_SIZE, cfg.OPTIM.ACCUMULATE, rank, world_size)
    sampler = build_appearance_sampler(cfg, jitter=jitter)
    dataset = TrainingSet(pools, geometry=build_geometry(cfg), sampler=sampler, seed=cfg.RUN.SEED, cache=cache)
    loader = _loader(dataset, cfg=cfg, collate=_collate, persistent=True, batch_sampler=batches)
    text += f"; {batches.steps_per_epoch} steps of {batches.global_batch} per epoch"
    text += f"; {loader.num_workers} loader worker(s) per process"
    return TrainingLoader(batches, loader, text, cached=cache is not None)


def training_split(cfg: Any, domain: Domain) -> str:
    """Return the split of a domain that is trained on."""
    return str(cfg.DATASET.CITY_MODE) if domain.name == "cityscapes" else "train"


def _centroids(cfg: Any, domain: Domain, pairs: Sequence[Pair]) -> np.ndarray:
    if cfg.DATASET.CLASS_UNIFORM_PCT == 0:
        return _NO_CENTROIDS
    return source_centroids(
        pairs,
        encoding=domain.encoding,
        tile=domain.tile or cfg.DATASET.CLASS_UNIFORM_TILE,
        name=domain.name,
        cache_dir=cfg.DATASET.CACHE_DIR,
        workers=choose_workers(cfg.DATASET.NUM_WORKERS),
    )


def _pooled(sources: Sequence[Source]) -> Source:
    """Join the sources into one."""
    starts = np.cumsum([0] + [source.num_images for source in sources])
    rows = [source.centroids + np.array([start, 0, 0, 0]) for source, start in zip(sources, starts, strict=False)]
    return Source(int(starts[-1]), np.concatenate(rows))


def _boosted(cfg: Any, domains: Sequence[Domain], sources: Sequence[Source]) -> tuple[LabelledPairs, list[Source]]:
    """Add the centroids of some classes in Cityscapes' coarse frames to its source; the frames come after all others.

    The coarse frames are only ever drawn for these classes; plain images stay the fine ones.
    """
    names = [domain.name for domain in domains]
    if "cityscapes" not in names or cfg.DATASET.CLASS_UNIFORM_PCT == 0:
        raise UserError("--coarse_boost_classes needs --dataset cityscapes and a --class_uniform_pct above 0")
    index = names.index("cityscapes")
    coarse = replace(CITYSCAPES_COARSE, root=domains[index].root)
    pool = LabelledPairs(tuple(find_pairs(coarse, "train")), coarse.encoding)
    rows = _centroids(cfg, coarse, pool.pairs)
    rows = rows[np.isin(rows[:, 1], cfg.DATASET.COARSE_BOOST_CLASSES)]
    counts = [source.num_images for source in sources]
    rows = rows + np.array([sum(counts) - sum(counts[:index]), 0, 0, 0], dtype=np.int32)  # the plan adds its start
    boosted = replace(sources[index], centroids=np.concatenate([sources[index].centroids, rows]))
    return pool, [*sources[:index], boosted, *sources[index + 1 :]]


def frame_cache(cfg: Any) -> FrameCache | None:
    """Return the run's folder of decoded frames, if it has one."""
    return FrameCache(Path(cfg.DATASET.FRAMES_DIR).expanduser().resolve()) if cfg.DATASET.FRAMES_DIR else None


def _describe_images(cfg: Any, domains: Sequence[Domain], sources: Sequence[Source]) -> str:
    counts = ", ".join(f"{domain.name} {source.num_images}" for domain, source in zip(domains, sources, strict=True))
    share = cfg.DATASET.CLASS_UNIFORM_PCT
    text = f"training images: {counts}; " + (f"class-uniform share {share:g}" if share else "plain sampling")
    if len(domains) > 1:
        text += "; pooled" if cfg.DATASET.IMAGE_UNIFORM_SAMPLING else "; equal shares per domain"
    return text + (f"; decoded frames in {cfg.DATASET.FRAMES_DIR}" if cfg.DATASET.FRAMES_DIR else "")


@dataclass(eq=False)
class EvaluationLoader:
    """The share of one process of a list of images, one at a time.

    Attributes:
        num_images: images of the whole list, over all processes.
        list_hash: 12 hex digits that name the list.
        protocol: words for how the images are scored.
    """

    loader: DataLoader[EvaluationSample]
    num_images: int
    list_hash: str
    protocol: str

    def __iter__(self) -> Iterator[EvaluationSample]:
        """Yield the samples of this process."""
        return iter(self.loader)


def build_evaluation_loader(
    cfg: Any, domain: Domain, *, split: str, rank: int, world_size: int, limit: int = 0
) -> EvaluationLoader:
    """Return the loader of a split to score; process `rank` gets images rank, rank + world_size, ...

    With `limit` > 0 that many images are taken, evenly spread over the sorted list.
    """
    pairs = find_pairs(domain, split)
    if 0 < limit < len(pairs):
        pairs = [pairs[index * len(pairs) // limit] for index in range(limit)]
    protocol = CentreSquare() if cfg.EVAL.PROTOCOL == "robustnet" and domain.name == "mapillary" else NativeSize()
    dataset = EvaluationSet(LabelledPairs(tuple(pairs), domain.encoding), protocol=protocol)
    share = range(rank, len(pairs), world_size)
    loader = _loader(dataset, cfg=cfg, collate=itemgetter(0), batch_size=1, sampler=share)
    return EvaluationLoader(loader, len(pairs), list_hash(pairs), protocol.text)


def build_evaluation_loaders(
    cfg: Any, names: Iterable[str], *, split: str, rank: int, world_size: int, limit: int = 0
) -> list[tuple[Domain, EvaluationLoader]]:
    """Return the named domains, each once, with their loaders; a missing folder shows before anything is scored."""
    domains = load_domains(cfg)
    chosen = [get_domain(domains, name) for name in dict.fromkeys(names)]
    return [
        (domain, build_evaluation_loader(cfg, domain, split=split, rank=rank, world_size=world_size, limit=limit))
        for domain in chosen
    ]


def build_statistics_loader(
    cfg: Any, domain: Domain, *, trial: int, rank: int, world_size: int
) -> DataLoader[StatisticsSample]:
    """Return whole training images with the parameters of their augmented view, one at a time.

    The first WHITENING.STAT_IMAGES of an order that depends on (seed, trial); process `rank` gets every world_size-th.
    """
    pairs = find_pairs(domain, training_split(cfg, domain), need_labels=False)
    order = np.random.default_rng((cfg.RUN.SEED, 2, trial)).permutation(len(pairs))[: cfg.WHITENING.STAT_IMAGES]
    picks = [Pick(int(item), (1 << 60) + (trial << 32) + position) for position, item in enumerate(order)]
    dataset = StatisticsSet(pairs, sampler=statistics_sampler(), seed=cfg.RUN.SEED, cache=frame_cache(cfg))
    return _loader(dataset, cfg=cfg, collate=itemgetter(0), batch_size=1, sampler=picks[rank::world_size])
