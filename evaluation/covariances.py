"""ISW's masks from images: which domains give the statistics, and the pairs whose covariances are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from config import Config
from datasets.loaders import build_statistics_loader, training_split
from datasets.splits import Split, Splits
from evaluation.evaluator import cudnn_benchmark_off
from loss import collect_masks
from loss.whitening import Whitening
from network import Method, Segmentor
from transforms.appearance import Appearance
from utils import distributed
from utils.errors import UserError


def whitened_splits(cfg: Config, method: Method, splits: Splits) -> list[Split]:
    """Return the splits whose covariances give ISW's masks, none for other methods.

    Raises:
        UserError: settings with which no mask can be chosen, or a missing folder.
    """
    if method.whitening != "isw":
        return []
    settings = cfg.WHITENING
    if settings.TRIALS < 1 or (settings.CLUSTERS < 2 and not settings.RELAX_DENOM):
        raise UserError(
            f"ISW needs --trials of at least 1 and --clusters of at least 2, not {settings.TRIALS}, {settings.CLUSTERS}"
        )
    names = cfg.DATASET.COVSTAT or cfg.DATASET.TRAIN
    return [splits.open(name, training_split(cfg, name), need_labels=False) for name in names]


def update_masks(
    cfg: Config,
    whitening: Whitening,
    network: Segmentor,
    splits: Sequence[Split],
    appearance: Appearance,
    *,
    device: torch.device,
) -> list[Tensor]:
    """Give ISW new masks: the covariances that change most when only the appearance of an image does.

    Returns:
        The variance matrix (C, C) of each map's covariances, the mean over trials and splits.
    """

    def pairs(split: Split, trial: int) -> Iterator[Tensor]:  # (2, 3, H, W): augmented view, image
        share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        loader = build_statistics_loader(cfg, split, trial=trial, **share)
        title = f"covariances of {split.domain.name}, trial {trial + 1}/{cfg.WHITENING.TRIALS}"
        bar = tqdm(loader, desc=title, unit="image", leave=False, disable=not distributed.is_main())
        for image, params in cudnn_benchmark_off(bar):
            yield appearance.pair(image.to(device), params)

    passes = (pairs(split, trial) for trial in range(cfg.WHITENING.TRIALS) for split in splits)
    return collect_masks(whitening, network, passes, clusters=cfg.WHITENING.CLUSTERS, device=device)
