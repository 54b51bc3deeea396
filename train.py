"""Train one network on one or several source domains and evaluate it on domains that it never saw.

python train.py --dataset gtav --val_dataset cityscapes ...            one process
torchrun --nproc_per_node 4 train.py ...                               four
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

import config
from datasets.checks import quick_check
from datasets.domains import get_domain, load_domains
from datasets.loaders import (
    DeviceBatches,
    EvaluationLoader,
    TrainingBatch,
    TrainingLoader,
    build_evaluation_loaders,
    build_training_loader,
    training_split,
)
from datasets.splits import Split, Splits
from evaluation import Evaluator, Report, build_evaluator
from evaluation.covariances import update_masks, whitened_splits
from evaluation.features import plot_batch
from evaluation.report import selection_scores
from loss import Criterion, build_criterion
from network import Segmentor, build_network, load_pretrained, resolve_jitter
from network.legacy import load_weights
from optimizer import apply_settings, build_average, build_optimizer, build_scheduler, update_average
from transforms.appearance import Appearance
from transforms.build import build_appearance
from transforms.edges import edge_target
from utils import checkpoint, distributed, logs, pictures
from utils.checkpoint import RunState
from utils.errors import UserError, run_entry_point
from utils.runs import Records, Start, check_continuation, find_start, open_records

SLOW_DATA = 0.2  # share of the time waiting for data from which the log says what to do
REPOSITORY = Path(__file__).resolve().parent
logger = logging.getLogger("train")


@dataclass(kw_only=True)
class Run(RunState):
    """The parts of a run: those that change from step to step, which a checkpoint holds, and the others."""

    cfg: Any
    device: torch.device
    network: Segmentor
    model: nn.Module  # the network as the processes share it
    criterion: Criterion
    average: Segmentor | None = None  # with the averaged weights (EMA)
    loader: TrainingLoader
    to_device: DeviceBatches
    splits: Splits
    targets: list[EvaluationLoader]  # with the sources' val splits
    whitened: list[Split]  # whose covariances give ISW's masks
    appearance: Appearance
    evaluator: Evaluator
    steps_per_epoch: int
    autocast_dtype: torch.dtype | None

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


def main(argv: Sequence[str] | None = None) -> None:
    cfg = config.parse(argv, program="train")
    cfg = shortened(cfg) if cfg.RUN.TEST_MODE else cfg
    distributed.set_deterministic(wanted=cfg.RUN.DETERMINISTIC)
    device = distributed.choose_device(cfg.RUN.DEVICE, cfg.RUN.LOCAL_RANK)
    torch.backends.cudnn.benchmark = not cfg.RUN.DETERMINISTIC  # one crop size: worth the search
    torch.manual_seed(cfg.RUN.SEED)  # the weights that no file gives
    with distributed.process_group(device, cfg.RUN.DIST_URL):
        logs.setup_logging()
        splits, start = Splits(load_domains(cfg)), find_start(cfg)
        if cfg.DATASET.QUICK_CHECK and distributed.is_main():
            check_data(cfg, splits)
        run = build_run(cfg, splits, device=device, start=start)
        restore(run, start)
        yaml = config.to_yaml(cfg)
        records = open_records(cfg, start, step=run.progress.step, config_yaml=yaml, repository=REPOSITORY)
        log_start(run, start)
        fit(run, records)
        records.writer.close()


def shortened(cfg: Any) -> Any:
    """Return the config of --test_mode: a few steps, few images, every part of a run."""
    plain = config.to_dict(cfg)
    plain["OPTIM"].update(MAX_ITER=min(cfg.OPTIM.MAX_ITER, 4), RLX_OFF_ITER=min(cfg.OPTIM.RLX_OFF_ITER, 2))
    plain["WHITENING"].update(COV_STAT_EPOCH=0, TRIALS=1, STAT_IMAGES=2)
    plain["EVAL"]["LIMIT"] = 2
    return config.from_dict(plain)


def check_data(cfg: Any, splits: Splits) -> None:
    """Look at a sample of all splits that the run reads with labels; raise for what would stop it, log the rest."""
    needed = [(name, training_split(cfg, name)) for name in cfg.DATASET.TRAIN]
    needed += [(name, "val") for name in (*(cfg.DATASET.TRAIN if cfg.EVAL.SOURCE else ()), *cfg.DATASET.VAL)]
    domains_with_splits = [(get_domain(splits.domains, name), split) for name, split in needed]
    for fault in quick_check(domains_with_splits, list_one=splits.listing):
        if fault.severity == "fatal":
            raise UserError(fault.sentence())
        logger.warning(fault.sentence())


def build_run(cfg: Any, splits: Splits, *, device: torch.device, start: Start) -> Run:
    """Build everything with the weights that the run starts from; nothing is trained or written yet."""
    network, world_size = build_network(cfg), distributed.world_size()
    share = {"rank": distributed.rank(), "world_size": world_size}
    loader = build_training_loader(cfg, splits, jitter=resolve_jitter(cfg), **share)
    targets = evaluation_loaders(cfg, splits, limit=cfg.EVAL.LIMIT)
    whitened = whitened_splits(cfg, network.method, splits)
    if start.checkpoint is None and cfg.RUN.SNAPSHOT:
        load_weights(network, checkpoint.read(cfg.RUN.SNAPSHOT), path=cfg.RUN.SNAPSHOT)
    elif start.checkpoint is None:
        load_pretrained(network, cfg.NETWORK.PRETRAINED)
    criterion = build_criterion(cfg, method=network.method, style_channels=network.style_channels).to(device)
    if cfg.NETWORK.SYNCBN and device.type == "cuda" and world_size > 1:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[assignment]
    network.to(device)
    average, optimizer = build_average(cfg, network), build_optimizer(cfg, network)
    model: nn.Module = network
    if world_size > 1:
        model = DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
    dtype = distributed.autocast_dtype(device, wanted=cfg.OPTIM.FP16)
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
        targets=targets,
        whitened=whitened,
        appearance=build_appearance(cfg),
        evaluator=build_evaluator(cfg, average or network, recipe=cfg, whitening=criterion.whitening, device=device),
        steps_per_epoch=min(loader.steps_per_epoch, 2) if cfg.RUN.TEST_MODE else loader.steps_per_epoch,
        autocast_dtype=dtype,
    )


def evaluation_loaders(cfg: Any, splits: Splits, *, limit: int) -> list[EvaluationLoader]:
    """Return the sources and targets with their val splits, of which `limit` images are taken (0: all)."""
    names = [*(cfg.DATASET.TRAIN if cfg.EVAL.SOURCE else []), *cfg.DATASET.VAL]
    share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    return build_evaluation_loaders(cfg, splits, names, split="val", limit=limit, **share)


def restore(run: Run, start: Start) -> None:
    """Take over the state of the checkpoint that the run resumes from, if there is one."""
    cfg, path = run.cfg, start.checkpoint
    if path is None:
        return
    content = checkpoint.read_checkpoint(path)
    saved, now = (config.to_dict(tree) for tree in (config.from_dict(content["config"], source=str(path)), cfg))
    batch = run.loader.batches.global_batch
    check_continuation(content, saved, now, path=path, steps_per_epoch=run.steps_per_epoch, global_batch=batch)
    run.load(content, path=path)
    apply_settings(cfg, run.optimizer, run.scheduler)


def log_start(run: Run, start: Start) -> None:
    """Log what was built and what the run starts from."""
    cfg, batches, progress, method = run.cfg, run.loader.batches, run.progress, run.network.method
    weights = f"weights: {cfg.RUN.SNAPSHOT or cfg.NETWORK.PRETRAINED}"
    if start.checkpoint is not None:
        weights = f"resuming {start.checkpoint} at epoch {progress.epoch}, step {progress.step}"
    size = f"{batches.batch_size} x {batches.accumulate} images each: {batches.global_batch} per step"
    processes = f"{batches.world_size} process(es) on {run.device.type}"
    logger.info("built %s", run.network.describe())
    logger.info("source: %s", run.loader.text)
    logger.info("%s", weights)
    logger.info("%s, %s, %d steps per epoch", processes, size, run.steps_per_epoch)
    published = method.recipe_batch(cfg.DATASET.TRAIN)
    if batches.global_batch != published:
        text = "%d images per step, the published recipe of %s has %d: change --accumulate or expect other numbers"
        logger.warning(text, batches.global_batch, method.name, published)


def fit(run: Run, records: Records) -> None:
    """Train until --max_iter steps (or --max_epoch epochs) are done, then evaluate every image of every target."""
    cfg, progress, last_step = run.cfg, run.progress, run.last_step
    options = {"desc": "train", "unit": "step", "disable": not distributed.is_main()}
    with tqdm(total=last_step, initial=progress.step, **options) as records.bar:
        while True:
            if progress.step_in_epoch == run.steps_per_epoch:  # also where a resumed run was killed in end_epoch
                end_epoch(run, records)
            if progress.step >= last_step:
                break
            train_epoch(run, records)
    records.meter.check_finite()
    if records.evaluated_at != progress.step or (cfg.EVAL.LIMIT and not cfg.RUN.TEST_MODE):
        if not cfg.RUN.TEST_MODE:
            run.targets = evaluation_loaders(cfg, run.splits, limit=0)
        evaluate(run, records, keep_best=not cfg.EVAL.LIMIT)  # bests are compared on one list of images
    save(run, records, "last")
    logger.info("finished at step %d; run folder %s", progress.step, records.folder)


def train_epoch(run: Run, records: Records) -> None:
    """Train the rest of the current epoch, or up to the last step of the run."""
    cfg, progress, meter, last_step = run.cfg.RUN, run.progress, records.meter, run.last_step
    run.model.train()
    batches = run.to_device(run.loader.epoch(progress.epoch, start_step=progress.step_in_epoch))
    for _ in range(min(run.steps_per_epoch - progress.step_in_epoch, last_step - progress.step)):
        micro_batches = [next(batches) for _ in range(run.cfg.OPTIM.ACCUMULATE)]
        if progress.step == 0 and cfg.DUMP_AUGMENTATION and distributed.is_main():
            image = plot_batch(micro_batches[0], run.appearance)
            pictures.save_png(image, records.folder / "pictures" / "first_batch.png")
        gradient_norm = train_step(run, meter, micro_batches)
        progress.step += 1
        progress.step_in_epoch += 1
        records.bar.update()
        if progress.step % cfg.LOG_INTERVAL == 0 or progress.step == last_step:
            meter.check_finite()
            log_step(run, records, gradient_norm)
        if cfg.SAVE_INTERVAL and progress.step % cfg.SAVE_INTERVAL == 0:
            meter.check_finite()
            save(run, records, "last")


def train_step(run: Run, meter: logs.LossMeter, micro_batches: Sequence[TrainingBatch]) -> Tensor | None:
    """Do one optimizer step on the sum of the micro-batches' mean gradients; return its norm where it is limited."""
    optim, step, gradient_norm = run.cfg.OPTIM, run.progress.step, None
    run.optimizer.zero_grad(set_to_none=True)
    whitening, relax = run.criterion.whitening, not 0 <= optim.RLX_OFF_ITER <= step  # below 0: to the end
    whiten = whitening is not None
    if whitening is not None and whitening.selective:  # ISW waits for its masks
        whiten = whitening.has_masks and run.progress.epoch > run.cfg.WHITENING.COV_STAT_EPOCH
    for index, batch in enumerate(micro_batches):
        # dropout is a function of (seed, step): nothing random needs to be saved, and every process draws the same
        torch.manual_seed(_stream(run.cfg.RUN.SEED, step, index))
        images, labels = batch.images, batch.labels.long()  # (B,3,H,W) uint8, (B,H,W)
        edges = edge_target(images) if run.network.method.head == "diia" else None  # (B,H,W)
        shared = index == len(micro_batches) - 1 or not isinstance(run.model, DistributedDataParallel)
        with contextlib.nullcontext() if shared else run.model.no_sync():  # type: ignore[operator]
            inputs, dtype = run.appearance(images, batch.draws), run.autocast_dtype
            with torch.autocast(run.device.type, dtype=dtype, enabled=dtype is not None):
                output = run.model(inputs)
            if dtype is not None:
                output = output.float()  # losses and covariances would overflow in half precision
            terms = run.criterion(output, labels, edges, whiten=whiten, relax=relax)
            total = run.criterion.total(terms)
            run.scaler.scale(total / len(micro_batches)).backward()
        meter.add(step, terms, total, batch.names)
    if run.device.type == "cpu":
        meter.check_finite()
    if optim.CLIP_GRAD_NORM:
        run.scaler.unscale_(run.optimizer)
        gradient_norm = clip_grad_norm_(run.network.parameters(), optim.CLIP_GRAD_NORM)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.scheduler.step()
    if run.average is not None:
        update_average(run.average, run.network, decay=optim.EMA_DECAY)
    return gradient_norm


def end_epoch(run: Run, records: Records) -> None:
    """Collect the whitening masks and evaluate where it is due, then save and go on to the next epoch."""
    cfg, progress = run.cfg, run.progress
    records.meter.check_finite()
    due = progress.epoch == cfg.WHITENING.COV_STAT_EPOCH
    if cfg.WHITENING.DYNAMIC:
        due = (progress.epoch + 1) % (cfg.WHITENING.COV_STAT_EPOCH + 1) == 0
    if run.whitened and due:
        collect_masks(run, records)
    if cfg.EVAL.INTERVAL and (progress.epoch + 1) % cfg.EVAL.INTERVAL == 0:
        evaluate(run, records)
    progress.epoch += 1
    progress.step_in_epoch = 0
    save(run, records, "last")


def collect_masks(run: Run, records: Records) -> None:
    """Choose ISW's masks from the whitened domains, and log and plot them."""
    step, whitening, plotter = run.progress.step, run.criterion.whitening, run.evaluator.plotter
    assert whitening is not None
    appearance, device = run.appearance, run.device
    variances = update_masks(run.cfg, whitening, run.network, run.whitened, appearance=appearance, device=device)
    sensitive = whitening.num_sensitive()
    logger.info("epoch %d: whitening masks keep %s entries", run.progress.epoch, sensitive)
    records.writer.scalars({f"whitening/sensitive_{i}": float(n) for i, n in enumerate(sensitive)}, step)
    if plotter is not None and distributed.is_main():
        image = plotter.plot_masks(variances)
        records.show([pictures.Picture("whitening/masks", "features/masks.png", image)], step)


def evaluate(run: Run, records: Records, *, keep_best: bool = True) -> None:
    """Evaluate the sources' val split and the targets, keep the best, write tables, scalars and pictures."""
    distributed.broadcast_buffers(run.evaluated_network)
    cfg, progress, sources = run.cfg, run.progress, run.cfg.DATASET.TRAIN
    rows, plots = run.evaluator(run.evaluated_network, run.targets, sources=sources)
    for row in rows:
        if not row.subset:
            records.writer.scalars(row.scalars(), progress.step)
    records.show(plots, progress.step)
    records.evaluated_at = progress.step
    weights = {
        "file": str(records.folder / "last.pth"),
        "checkpoint": "last",
        "step": progress.step,
        "epoch": progress.epoch,
        "ema": cfg.OPTIM.EMA_DECAY or None,
        "seed": cfg.RUN.SEED,
        "source": " ".join(sources),
        "method": run.network.method.label,
        "network": run.network.describe(),
    }
    report = Report(weights, rows)
    if distributed.is_main():
        report.write(records.folder / "scores")
    logger.info("step %d\n%s", progress.step, report.to_text())
    best = selection_scores(rows, sources=sources, targets=cfg.DATASET.VAL) if keep_best else {}
    for name, value in best.items():
        if value > run.best.get(name, -1.0):  # never where it is nan
            run.best[name] = value
            save(run, records, f"best_{name}")


def log_step(run: Run, records: Records, gradient_norm: Tensor | None) -> None:
    """Write the means of the loss terms since the last time to the bar, the text log and TensorBoard."""
    progress, terms, waited = run.progress, records.meter.read(), run.to_device.wait_share()
    run.to_device.restart()
    scalars = {f"loss/{name}": value for name, value in terms.items()}
    scalars |= {} if gradient_norm is None else {"optim/grad_norm": float(gradient_norm)}
    scalars |= {"optim/lr": run.optimizer.param_groups[0]["lr"], "time/data_wait": waited}
    records.writer.scalars(scalars, progress.step)
    records.bar.set_postfix(loss=f"{terms['train_loss']:.3f}", epoch=progress.epoch)
    place = f"epoch {progress.epoch}, step {progress.step}/{run.last_step}, lr {scalars['optim/lr']:.5f}"
    text = ", ".join(f"{name} {value:.4f}" for name, value in terms.items())
    logger.info("%s: %s; %.0f%% of the time waiting for data", place, text, 100 * waited)
    if waited > SLOW_DATA and not records.told_of_slow_data:
        records.told_of_slow_data = True
        logger.warning("the device waits for data %.0f%% of the time: %s", 100 * waited, run.loader.advice())


def save(run: Run, records: Records, kind: str) -> None:
    """Write the checkpoint `kind`.pth with everything that the next step depends on; never with broken weights."""
    if distributed.is_main():
        run.save(
            records.folder / f"{kind}.pth",
            config=config.to_dict(run.cfg),
            versions=records.versions,
            world_size=distributed.world_size(),
        )


def _stream(seed: int, step: int, micro_batch: int) -> int:
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0]) >> 1


if __name__ == "__main__":
    run_entry_point(main)
