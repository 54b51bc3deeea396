"""Loaders for training, evaluation and covariance statistics, built from the config."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.class_uniform import source_centroids
from datasets.domains import Domain, Pair, find_pairs, get_domain, list_hash, load_domains
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
from transforms.protocols import CentreSquare, NativeSize, Protocol
from transforms.recipes import build_draws, build_geometry, statistics_draws
from utils.errors import UserError

_NO_CENTROIDS = np.zeros((0, 4), dtype=np.int32)


class TrainingBatch(NamedTuple):
    """A micro-batch: images (B, 3, h, w) uint8, labels (B, h, w) uint8, draws (B, D) float32, names."""

    images: Tensor
    labels: Tensor
    draws: Tensor
    names: list[str]


def _collate(samples: Sequence[Sample]) -> TrainingBatch:
    images, labels, draws, names = zip(*samples, strict=True)
    return TrainingBatch(torch.stack(images), torch.stack(labels), torch.stack(draws), list(names))


def _single(samples: Sequence[Any]) -> Any:
    return samples[0]


def choose_workers(asked: int) -> int:
    """Return the number of loader workers of this process; -1 shares the cores among the processes of the node."""
    if asked < -1:
        raise UserError(f"--num_workers {asked}: must be a number of processes, 0 for none or -1 for as many as fit")
    if asked >= 0:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)))


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
    """Micro-batches of this process, epoch by epoch; every epoch has the same number of steps."""

    batches: GlobalBatches
    loader: DataLoader[TrainingBatch]
    text: str

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

    def describe(self) -> str:
        """Return one line for the log."""
        return self.text


def build_training_loader(cfg: Any, *, jitter: str, rank: int, world_size: int) -> TrainingLoader:
    """Return the loader of the source domains; `jitter` names the strengths of the colour jitter (diia, robustnet).

    Every process calls it; with class-uniform sampling the first one scans the labels once.
    """
    domains = load_domains(cfg)
    chosen = [get_domain(domains, name) for name in cfg.DATASET.TRAIN]
    if not chosen or len({domain.name for domain in chosen}) < len(chosen):
        raise UserError("--dataset: name one or several source data sets, each once")
    pools = [LabelledPairs(tuple(_training_pairs(cfg, domain)), domain.encoding) for domain in chosen]
    centroids = [_centroids(cfg, domain, pool.pairs) for domain, pool in zip(chosen, pools, strict=True)]
    sources = [Source(len(pool.pairs), rows) for pool, rows in zip(pools, centroids, strict=True)]
    if cfg.DATASET.IMAGE_UNIFORM_SAMPLING:
        sources = [_pooled(sources)]
    plan = EpochPlan(
        tuple(sources), cfg.RUN.SEED, fraction=cfg.DATASET.CLASS_UNIFORM_PCT, uniform_epochs=cfg.DATASET.MAX_CU_EPOCH
    )
    batches = GlobalBatches(plan, cfg.OPTIM.BATCH_SIZE, cfg.OPTIM.ACCUMULATE, rank, world_size)
    dataset = TrainingSet(pools, geometry=build_geometry(cfg), draws=build_draws(cfg, jitter=jitter), seed=cfg.RUN.SEED)
    loader = _loader(dataset, cfg=cfg, collate=_collate, persistent=True, batch_sampler=batches)
    return TrainingLoader(batches, loader, _describe(cfg, chosen, pools, batches, loader.num_workers))


def _training_pairs(cfg: Any, domain: Domain) -> list[Pair]:
    return find_pairs(domain, cfg.DATASET.CITY_MODE if domain.name == "cityscapes" else "train")


def _centroids(cfg: Any, domain: Domain, pairs: Sequence[Pair]) -> np.ndarray:
    if not 0 <= cfg.DATASET.CLASS_UNIFORM_PCT <= 1:
        raise UserError(f"--class_uniform_pct {cfg.DATASET.CLASS_UNIFORM_PCT}: must be a share from 0 to 1")
    if cfg.DATASET.CLASS_UNIFORM_PCT == 0:
        return _NO_CENTROIDS
    tile = domain.tile or cfg.DATASET.CLASS_UNIFORM_TILE
    if tile < 1:
        raise UserError(f"--class_uniform_tile {tile}: a tile needs at least one pixel")
    workers = choose_workers(cfg.DATASET.NUM_WORKERS)
    return source_centroids(
        pairs,
        encoding=domain.encoding,
        tile=tile,
        name=domain.name,
        cache_dir=cfg.DATASET.CACHE_DIR,
        workers=workers,
    )


def _pooled(sources: Sequence[Source]) -> Source:
    """Join the sources into one."""
    starts = np.cumsum([0] + [source.num_images for source in sources])
    rows = [source.centroids + np.array([start, 0, 0, 0]) for source, start in zip(sources, starts, strict=False)]
    return Source(int(starts[-1]), np.concatenate(rows))


def _describe(
    cfg: Any, domains: Sequence[Domain], pools: Sequence[LabelledPairs], batches: GlobalBatches, workers: int
) -> str:
    counts = ", ".join(f"{domain.name} {len(pool.pairs)}" for domain, pool in zip(domains, pools, strict=True))
    share = cfg.DATASET.CLASS_UNIFORM_PCT
    text = f"training images: {counts}; {batches.steps_per_epoch} steps of {batches.global_batch} per epoch"
    text += f"; class-uniform share {share:g}" if share else "; plain sampling"
    if len(domains) > 1:
        text += "; pooled" if cfg.DATASET.IMAGE_UNIFORM_SAMPLING else "; equal shares per domain"
    return f"{text}; {workers} loader workers per process"


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

    def __len__(self) -> int:
        """Return the number of images of this process."""
        return len(self.loader)


def build_evaluation_loader(
    cfg: Any, domain: Domain, *, split: str, rank: int, world_size: int, limit: int = 0
) -> EvaluationLoader:
    """Return the loader of a split to score; process `rank` gets images rank, rank + world_size, ...

    With `limit` > 0 that many images are taken, evenly spread over the sorted list.
    """
    pairs = find_pairs(domain, split)
    if 0 < limit < len(pairs):
        pairs = [pairs[index * len(pairs) // limit] for index in range(limit)]
    protocol = _protocol(cfg.EVAL.PROTOCOL, domain)
    dataset = EvaluationSet(LabelledPairs(tuple(pairs), domain.encoding), protocol=protocol)
    share = range(rank, len(pairs), world_size)
    loader = _loader(dataset, cfg=cfg, collate=_single, batch_size=1, sampler=share)
    return EvaluationLoader(loader, len(pairs), list_hash(pairs), protocol.text)


def _protocol(name: str, domain: Domain) -> Protocol:
    return CentreSquare() if name == "robustnet" and domain.name == "mapillary" else NativeSize()


def build_statistics_loader(
    cfg: Any, domain: Domain, *, trial: int, rank: int, world_size: int
) -> DataLoader[StatisticsSample]:
    """Return whole training images with the draws of their photometric copy, one at a time.

    The first WHITENING.STAT_IMAGES of an order that depends on (seed, trial); process `rank` gets every world_size-th.
    """
    pairs = find_pairs(domain, cfg.DATASET.CITY_MODE if domain.name == "cityscapes" else "train", need_labels=False)
    order = np.random.default_rng((cfg.RUN.SEED, 2, trial)).permutation(len(pairs))[: cfg.WHITENING.STAT_IMAGES]
    picks = [Pick(int(item), (1 << 60) + (trial << 32) + position) for position, item in enumerate(order)]
    dataset = StatisticsSet(pairs, draws=statistics_draws(), seed=cfg.RUN.SEED)
    return _loader(dataset, cfg=cfg, collate=_single, batch_size=1, sampler=picks[rank::world_size])
