"""The parts of a run of train.py: which they are, how they are built from the config, what a checkpoint restores."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import config
from config import Config
from datasets.checks import refuse_or_warn
from datasets.loaders import (
    DeviceBatches,
    EvaluationLoader,
    TrainingLoader,
    build_evaluation_loader,
    build_statistics_loader,
    build_training_loader,
    training_split,
)
from datasets.splits import Split, Splits
from evaluation import Evaluator, Report, build_evaluator
from evaluation.evaluator import cudnn_benchmark_off
from evaluation.examples import examples_of
from evaluation.page import About, make_page, whitening_masks
from evaluation.report import ImageCounts
from loss import Criterion, build_criterion, collect_masks
from network import Method, Segmentor, build_network, resolve_jitter
from network.backbones import Backbone
from network.convolutions import DilatedConv2d
from network.pretrained import load_pretrained
from network.timm_backbone import TimmBackbone
from network.weights import load_weights, upgrade_checkpoint
from optimizer import apply_settings, build_average, build_optimizer, build_scheduler, describe_groups
from transforms import build_appearance
from transforms.appearance import Appearance
from utils import checkpoint, distributed, signals
from utils.checkpoint import RunState
from utils.device import training_dtype
from utils.errors import UserError
from utils.files import tolerated
from utils.pictures import Picture
from utils.runs import Records, Start, check_continuation, check_lists

logger = logging.getLogger("train")


@dataclass(kw_only=True)
class Run(RunState):
    """The parts of a run: those that change from step to step, which a checkpoint holds, and the others."""

    cfg: Config
    device: torch.device
    network: Segmentor
    model: nn.Module  # the network as the processes share it
    criterion: Criterion
    average: Segmentor | None = None  # with the averaged weights (EMA)
    loader: TrainingLoader
    to_device: DeviceBatches
    splits: Splits
    appearance: Appearance
    evaluator: Evaluator
    steps_per_epoch: int
    findings: dict[str, list[str]] = field(default_factory=dict)  # what is wrong with the evaluated data, by domain

    @property
    def evaluated_network(self) -> Segmentor:
        """The averaged weights where there are any."""
        return self.network if self.average is None else self.average

    @property
    def last_step(self) -> int:
        """The step at which --max_iter or --max_epoch ends the run."""
        optim, progress = self.cfg.OPTIM, self.progress
        left = (optim.MAX_EPOCH - progress.epoch) * self.steps_per_epoch - progress.step_in_epoch
        return int(min(optim.MAX_ITER, progress.step + left) if optim.MAX_EPOCH else optim.MAX_ITER)


def shortened(cfg: Config) -> Config:
    """Return the config of --test_mode: a few steps, few images, every part of a run."""
    plain = config.to_dict(cfg)
    plain["OPTIM"].update(MAX_ITER=min(cfg.OPTIM.MAX_ITER, 4), RLX_OFF_ITER=min(cfg.OPTIM.RLX_OFF_ITER, 2))
    plain["WHITENING"].update(COV_STAT_EPOCH=0, TRIALS=1, STAT_IMAGES=2)
    plain["EVAL"]["LIMIT"] = 2
    return config.from_dict(plain)


def check_data(cfg: Config, splits: Splits) -> dict[str, list[str]]:
    """Look at a sample of all splits that the run reads with labels; raise for what would stop it, log the rest.

    Returns by domain the sentences on the splits that are evaluated; nothing with --no_quick_check.
    """
    if not cfg.DATASET.QUICK_CHECK:
        return {}
    needed = [(name, training_split(cfg, name)) for name in cfg.DATASET.TRAIN]
    needed += [(name, "val") for name in evaluated_domains(cfg)]
    cache = cfg.DATASET.CENTROID_CACHE if cfg.DATASET.CLASS_UNIFORM_PCT else ""  # a folder that the run writes anyway
    return distributed.from_main(partial(refuse_or_warn, splits, needed, evaluated="val", cache=cache))


def build_run(cfg: Config, splits: Splits, *, device: torch.device, start: Start) -> Run:
    """Build everything with the weights that the run starts from; nothing is trained or written yet."""
    network, world_size = build_network(cfg), distributed.world_size()
    synchronised = cfg.NETWORK.SYNCBN and device.type == "cuda" and world_size > 1
    if cfg.NETWORK.FREEZE_BN and not network.pretrained_norms():
        raise UserError(f"--freeze_bn: {network.backbone.spec.title} has no batch norms; leave it out")
    _check_crop(cfg, network, batch_norm_over=2 if synchronised else cfg.OPTIM.BATCH_SIZE)
    loader = build_training_loader(cfg, splits, jitter=resolve_jitter(cfg), **distributed.share())
    evaluation_loaders(cfg, splits)  # what is missing shows now, not epochs later
    whitened_splits(cfg, network.method, splits)
    if start.checkpoint is None:  # else `restore` gives the network its weights
        loader.start()
        if cfg.RUN.SNAPSHOT:
            load_weights(network, checkpoint.read(cfg.RUN.SNAPSHOT), path=cfg.RUN.SNAPSHOT)
        else:
            load_pretrained(network, cfg.NETWORK.PRETRAINED)
        for layer in unreached_layers(cfg, network) if cfg.NETWORK.ZERO_UNREACHED_TAPS else ():
            layer.zero_outer_taps()
    criterion = build_criterion(cfg, method=network.method, style_channels=network.style_channels).to(device)
    if synchronised:
        network = share_batch_norms(network)
    network.place(device)
    average, optimizer = build_average(cfg, network), build_optimizer(cfg, network)
    model = _compiled(network, criterion, device) if cfg.OPTIM.COMPILE else network
    if world_size > 1:
        model = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=network.backbone.partly_unused,
            gradient_as_bucket_view=True,
        )
        if cfg.OPTIM.GRAD_COMPRESS == "bf16":
            distributed.compress_gradients(model)
    dtype = training_dtype(device, amp=cfg.OPTIM.AMP)
    return Run(
        cfg=cfg,
        device=device,
        network=network,
        model=model,
        criterion=criterion,
        optimizer=optimizer,
        scheduler=build_scheduler(cfg, optimizer),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        average=average,
        loader=loader,
        to_device=DeviceBatches(device),
        splits=splits,
        appearance=build_appearance(cfg),
        evaluator=build_evaluator(cfg, average or network, recipe=cfg, whitening=criterion.whitening, device=device),
        steps_per_epoch=min(loader.steps_per_epoch, 2) if cfg.RUN.TEST_MODE else loader.steps_per_epoch,
    )


def _compiled(network: Segmentor, criterion: Criterion, device: torch.device) -> nn.Module:
    """Compile the criterion in place; return the network compiled for training, whose weights it shares."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(f"--compile: there is no C++ compiler {compiler} here; install one, set CXX, or leave it out")
    criterion.compile(dynamic=False)
    return cast(nn.Module, torch.compile(network, dynamic=False))


def _check_crop(cfg: Config, network: Segmentor, *, batch_norm_over: int) -> None:
    """Raise `UserError` where a batch norm would have one pixel of a batch, or all taps are reached against a flag."""
    crop, stride = cfg.AUGMENT.CROP_SIZE, network.backbone.output_stride
    if batch_norm_over == 1 and crop <= stride:
        raise UserError(
            f"--crop_size {crop} is too small for the output stride {stride} with --bs_mult 1: one pixel is left to a "
            f"batch norm, which needs two; give a --crop_size above {stride}, or a --bs_mult of at least 2"
        )
    if cfg.NETWORK.ZERO_UNREACHED_TAPS and not unreached_layers(cfg, network):
        raise UserError(f"--zero_unreached_taps: crops of {crop} reach every tap of this head; leave it out")


def unreached_layers(cfg: Config, network: Segmentor) -> list[DilatedConv2d]:
    """Return the convolutions whose outer taps see only padding in a crop, so that nothing trains them."""
    side = -(-cfg.AUGMENT.CROP_SIZE // network.backbone.output_stride)
    return [layer for layer in network.modules() if isinstance(layer, DilatedConv2d) and layer.dilation[0] >= side]


def share_batch_norms(network: Segmentor) -> Segmentor:
    """Return the network with batch norms whose statistics are those of all processes."""
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    if isinstance(network.backbone, TimmBackbone):
        from timm.layers import convert_sync_batchnorm as convert  # torch's drops activations inside timm's norms
    shared: Segmentor = convert(network)
    return shared


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


def statistics_pairs(run: Run, split: Split, trial: int) -> Iterator[Tensor]:
    """Yield the augmented view and the original (2, 3, H, W) of this process's share of the images."""
    loader = build_statistics_loader(run.cfg, split, trial=trial, **distributed.share())
    title = f"covariances of {split.domain.name}, trial {trial + 1}/{run.cfg.WHITENING.TRIALS}"
    bar = tqdm(loader, desc=title, unit="image", leave=False, disable=not distributed.is_main())
    for image, params in cudnn_benchmark_off(signals.stoppable(bar)):
        yield run.appearance.pair(image.to(run.device), params)


def update_masks(run: Run, records: Records) -> None:
    """Give ISW new masks: the covariances that change most when only the appearance of an image does."""
    cfg, step, whitening, plotter = run.cfg, run.progress.step, run.criterion.whitening, run.evaluator.plotter
    assert whitening is not None
    splits, trials = whitened_splits(cfg, run.network.method, run.splits), range(cfg.WHITENING.TRIALS)
    passes = (statistics_pairs(run, split, trial) for trial in trials for split in splits)
    variances = collect_masks(whitening, run.network, passes, clusters=cfg.WHITENING.CLUSTERS, device=run.device)
    sensitive = whitening.num_sensitive()
    logger.info("epoch %d: whitening masks keep %s entries", run.progress.epoch, sensitive)
    records.writer.scalars({f"whitening/sensitive_{i}": float(n) for i, n in enumerate(sensitive)}, step)
    if plotter is not None and distributed.is_main():
        image = plotter.plot_masks(variances)
        records.show([Picture("whitening/masks", "features/masks.png", image)], step)


def restore(run: Run, start: Start) -> None:
    """Take over the state of the checkpoint that the run resumes from, if there is one."""
    cfg, path = run.cfg, start.checkpoint
    if path is None:
        return
    content = checkpoint.read_checkpoint(path)
    saved, batch = config.from_dict(content["config"], source=str(path)), run.loader.batches.global_batch
    check_continuation(content, saved, cfg, path=path, steps_per_epoch=run.steps_per_epoch, global_batch=batch)
    check_lists(content["data"], trained_lists(run), path=path, accepted=cfg.RUN.OTHER_DATA)
    run.load(upgrade_checkpoint(content, run.network), path=path)
    apply_settings(cfg, run.network, run.optimizer, run.scheduler)
    run.best = run.best if start.folder else {}  # a new folder has no files of them


def trained_lists(run: Run) -> dict[str, dict[str, Any]]:
    """Return how many images a run trains on and the hash of their list, by domain and split; ISW's with a mark."""
    splits = {split.title: split for split in run.loader.sources}
    whitened = whitened_splits(run.cfg, run.network.method, run.splits)  # without labels no unequal pair is left out
    splits |= {f"{split.title} (statistics)": split for split in whitened}
    return {title: {"images": len(split.pairs), "list": split.list_hash} for title, split in splits.items()}


def evaluation_loaders(cfg: Config, splits: Splits, *, all_images: bool = False) -> list[EvaluationLoader]:
    """Return the val splits of sources and targets, of which --val_limit images are taken."""
    limit = 0 if all_images else cfg.EVAL.LIMIT
    opened = [splits.open(name, "val") for name in dict.fromkeys(evaluated_domains(cfg))]
    return [build_evaluation_loader(cfg, split, limit=limit, **distributed.share()) for split in opened]


def evaluated_domains(cfg: Config) -> list[str]:
    return [*(cfg.DATASET.TRAIN if cfg.EVAL.SOURCE else []), *cfg.DATASET.VAL]


def report_page(
    run: Run,
    folder: Path,
    report: Report,
    *,
    loaders: Sequence[EvaluationLoader],
    counts: Mapping[str, ImageCounts],
    plots: Sequence[Picture],
) -> str:
    """Return the page of the run in a folder, as it stands (evaluation.page), from the counts of every image.

    Every process takes part. It is "" where a file of the run cannot be read.
    """
    examples = examples_of(run.evaluator, run.evaluated_network, loaders, counts)
    masks = whitening_masks(run.criterion.whitening, run.network.style_names)
    with tolerated("the page of the report"):
        return make_page(report, About(folder, config.changed(run.cfg)), examples=examples, masks=masks, plots=plots)
    return ""


def log_start(run: Run, start: Start) -> None:
    """Log what was built and what the run starts from."""
    cfg, batches, progress, method = run.cfg, run.loader.batches, run.progress, run.network.method
    weights = f"resuming {start.checkpoint} at epoch {progress.epoch}, step {progress.step}"
    weights = weights if start.checkpoint else f"weights: {cfg.RUN.SNAPSHOT or cfg.NETWORK.PRETRAINED}"
    size = f"{batches.batch_size} x {batches.accumulate} images each: {batches.global_batch} per step"
    processes = f"{batches.world_size} process(es) on {run.device.type}"
    logger.info("built %s", run.network.describe())
    logger.info("source: %s", run.loader.text)
    logger.info("%s", weights)
    logger.info("%s, %s, %d steps per epoch", processes, size, run.steps_per_epoch)
    if len(groups := describe_groups(run.optimizer)) > 1:
        logger.info("%d parameter groups\n%s", len(groups), "\n".join(groups))
    published = method.recipe_batch(cfg.DATASET.TRAIN)
    if isinstance(run.network.backbone, Backbone) and batches.global_batch != published:
        text = "%d images per step, the published recipe of %s has %d: change --accumulate or expect other numbers"
        logger.warning(text, batches.global_batch, method.name, published)
    epoch, whitening = cfg.WHITENING.COV_STAT_EPOCH, run.criterion.whitening
    if whitening is not None and whitening.selective and run.last_step <= (epoch + 1) * run.steps_per_epoch:
        logger.warning("ISW's masks of epoch %d come too late to whiten anything: lower --cov_stat_epoch", epoch)
    rates = sorted({layer.dilation[0] for layer in unreached_layers(cfg, run.network)})
    if rates and not (cfg.NETWORK.ZERO_UNREACHED_TAPS or cfg.RUN.SNAPSHOT):
        text = "--crop_size %d: the outer taps of the dilations %s see only padding and keep random weights, which "
        text += "larger images meet; give --crop_size %d or more, or --zero_unreached_taps"
        whole = rates[-1] * run.network.backbone.output_stride + 1
        logger.warning(text, cfg.AUGMENT.CROP_SIZE, ", ".join(map(str, rates)), whole)
