"""Train one network on one or several source domains and evaluate it on domains that it never saw.

python train.py --dataset gtav --val_dataset cityscapes ...            one process
torchrun --nproc_per_node 4 train.py ...                               four
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import config
from utils.errors import Stopped, UserError, one_line, run_entry_point

if __name__ == "__main__":
    run_entry_point(partial(config.read_flags, program="train"))  # before the slow imports: --help, wrong flags

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

import batch_search
import nonfinite
from datasets.domains import load_domains
from datasets.segmentation import TrainingBatch
from datasets.splits import Splits
from evaluation import Report
from evaluation.description import describe_weights
from evaluation.features import plot_batch
from evaluation.report import selection_scores
from optimizer import update_average
from run import (
    Run,
    build_run,
    check_data,
    evaluation_loaders,
    log_start,
    report_page,
    restore,
    shortened,
    trained_lists,
    update_masks,
)
from transforms.appearance import edge_target
from transforms.style_augmentation import adversarial_style
from utils import distributed, logs, signals
from utils.device import keep_freed_memory
from utils.files import tolerated
from utils.runs import Records, check_processes, find_start, open_records

SAVE_MEMORY = (
    "lower --bs_mult (and raise --accumulate) or --crop_size, or use --grad_checkpoint or --amp auto; in an "
    "evaluation, --eval_protocol sliding or half, or --bs_mult_val 1"
)
SLOW_DATA = 0.2  # share of the time waiting for data from which the log says what to do
logger = logging.getLogger("train")


def main(argv: Sequence[str] | None = None) -> None:
    cfg = config.parse(argv, program="train")
    cfg = shortened(cfg) if cfg.RUN.TEST_MODE else cfg
    distributed.set_deterministic(wanted=cfg.RUN.DETERMINISTIC)
    device = distributed.choose_device(cfg.RUN.DEVICE, cfg.RUN.LOCAL_RANK)
    torch.backends.cudnn.benchmark = not cfg.RUN.DETERMINISTIC  # one crop size: worth the search
    torch.manual_seed(cfg.RUN.SEED)  # the weights that no file gives
    keep_freed_memory(device)
    group = distributed.process_group(device, cfg.RUN.DIST_URL, save_memory=SAVE_MEMORY, timeout=cfg.RUN.DIST_TIMEOUT)
    with signals.handled(), group:
        logs.setup_logging()
        if cfg.RUN.REPLAY:
            return nonfinite.replay(cfg, device=device, gradients=add_gradients)
        check_processes(cfg)
        if cfg.RUN.FIND_BATCH:
            return batch_search.find_batch(cfg, device=device, gradients=add_gradients)
        splits, start = Splits(load_domains(cfg)), find_start(cfg)
        findings = check_data(cfg, splits)
        run = build_run(cfg, splits, device=device, start=start)
        run.findings = findings
        restore(run, start)
        records = open_records(cfg, start, step=run.progress.step, config_yaml=config.to_yaml(cfg))
        records.saved_at, records.meter.keep = run.progress.step, partial(nonfinite.keep, run, records)
        last_words = logs.last_words(records.folder, save_memory=SAVE_MEMORY, step=lambda: run.progress.step)
        with records.held, last_words, signals.deferred():
            log_start(run, start)
            try:
                fit(run, records)
            except (Exception, Stopped):
                save_whole(run, records)
                raise


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
    if records.evaluated_at != progress.step:  # the last step counts among the best, on the same images
        evaluate(run, records)
    if cfg.EVAL.LIMIT and not cfg.RUN.TEST_MODE:
        evaluate(run, records, all_images=True, keep_best=False)
    save(run, records, "last")
    records.check_saved()
    logger.info("finished at step %d; run folder %s", progress.step, records.folder)


def train_epoch(run: Run, records: Records) -> None:
    """Train the rest of the current epoch, or up to the last step of the run."""
    cfg, progress, meter, last_step = run.cfg.RUN, run.progress, records.meter, run.last_step
    run.model.train()
    batches = run.to_device(run.loader.epoch(progress.epoch, start_step=progress.step_in_epoch))
    for _ in range(min(run.steps_per_epoch - progress.step_in_epoch, last_step - progress.step)):
        micro_batches = [next(batches) for _ in range(run.cfg.OPTIM.ACCUMULATE)]
        if progress.step == 0 and cfg.DUMP_AUGMENTATION and distributed.is_main():
            image = plot_batch(micro_batches[0], run.appearance, method=run.network.method)
            records.save_picture(image, "first_batch.png")
        with records.changing():
            gradient_norm = train_step(run, meter, micro_batches)
            progress.step += 1
            progress.step_in_epoch += 1
        records.bar.update()
        records.profiled()
        if progress.step % cfg.LOG_INTERVAL == 0 or progress.step == last_step:
            meter.check_finite()
            log_step(run, records, gradient_norm)
        if cfg.SAVE_INTERVAL and progress.step % cfg.SAVE_INTERVAL == 0:
            meter.check_finite()
            save(run, records, "last")
        signals.check()


def train_step(run: Run, meter: logs.LossMeter, micro_batches: Sequence[TrainingBatch]) -> Tensor | None:
    """Do one optimizer step on the sum of the micro-batches' mean gradients; return its norm where it is limited."""
    optim, gradient_norm = run.cfg.OPTIM, None
    run.optimizer.zero_grad(set_to_none=True)
    if not nonfinite.add_step(run, meter, micro_batches, gradients=add_gradients):
        run.scheduler.step()
        return None
    if optim.CLIP_GRAD_NORM:
        run.scaler.unscale_(run.optimizer)
        gradient_norm = clip_grad_norm_(run.network.parameters(), optim.CLIP_GRAD_NORM)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.scheduler.step()
    if run.average is not None:
        update_average(run.average, run.network, decay=optim.EMA_DECAY)
    return gradient_norm


def add_gradients(run: Run, micro_batches: Sequence[TrainingBatch]) -> nonfinite.Parts:
    """Add the gradients of a step's micro-batches; return of each the loss terms, their weighted sum and the names."""
    optim, step, losses = run.cfg.OPTIM, run.progress.step, []
    whitening, relax = run.criterion.whitening, not 0 <= optim.RLX_OFF_ITER <= step  # below 0: to the end
    whiten = whitening is not None
    if whitening is not None and whitening.selective:  # ISW waits for its masks
        whiten = whitening.has_masks and run.progress.epoch > run.cfg.WHITENING.COV_STAT_EPOCH
    ascent = run.cfg.AUGMENT.ADVSTYLE
    parts = len(micro_batches) * (2 if ascent else 1)
    for index, batch in enumerate(micro_batches):
        # dropout is a function of (seed, step): nothing random needs to be saved, and every process has the same
        torch.manual_seed(int(np.random.SeedSequence([run.cfg.RUN.SEED, step, index]).generate_state(1, "u8")[0]) >> 1)
        images, labels = batch.images, batch.labels.long()  # (B,3,H,W) uint8, (B,H,W)
        method = run.network.method
        edges = edge_target(images, magnitude=method.edge_magnitude) if method.head == "diia" else None  # (B,H,W)
        backward = partial(add_gradient, run, labels=labels, edges=edges, parts=parts, whiten=whiten, relax=relax)
        inputs, last = run.appearance(images, batch.params), index == len(micro_batches) - 1
        terms, total = backward(inputs.requires_grad_(ascent > 0), last=last and not ascent)
        if ascent:
            assert inputs.grad is not None
            scale = run.scaler.scale(torch.ones((), device=run.device)) / (parts * len(images))  # of each image's loss
            styled = adversarial_style(inputs.detach(), inputs.grad / scale, step_size=ascent)
            _, styled_total = backward(styled, last=last)
            terms, total = {**terms, "advstyle": styled_total}, (total + styled_total) / 2
        losses.append((terms, total, batch.names))
    return losses


def add_gradient(
    run: Run, inputs: Tensor, *, labels: Tensor, edges: Tensor | None, parts: int, last: bool, whiten: bool, relax: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Add one of the parts of a step's gradient, that of normalised images (B,3,H,W), and return their loss terms.

    Processes share what they have added in the last part. Returns the terms and their weighted sum.
    """
    shared, dtype = last or not isinstance(run.model, DistributedDataParallel), run.evaluator.autocast_dtype
    with contextlib.nullcontext() if shared else run.model.no_sync():  # type: ignore[operator]
        with torch.autocast(run.device.type, dtype=dtype, enabled=dtype is not None):
            output = run.model(inputs)
        if dtype is not None:
            output = output.float()  # losses and covariances would overflow in half precision
        terms = run.criterion(output, labels, edges, whiten=whiten, relax=relax)
        total = run.criterion.total(terms)
        run.scaler.scale(total / parts).backward()
    return terms, total


def end_epoch(run: Run, records: Records) -> None:
    """Collect the whitening masks and evaluate where it is due, then save and go on to the next epoch."""
    cfg, progress = run.cfg, run.progress
    records.meter.check_finite()
    whitening = run.criterion.whitening
    if whitening is not None and whitening.selective:
        due = progress.epoch >= cfg.WHITENING.COV_STAT_EPOCH and not whitening.has_masks
        if cfg.WHITENING.DYNAMIC:
            due = (progress.epoch + 1) % (cfg.WHITENING.COV_STAT_EPOCH + 1) == 0
        if due:
            if records.saved_at != progress.step:  # else a kill in what takes long would lose the steps
                save(run, records, "last")
            update_masks(run, records)
    if cfg.EVAL.INTERVAL and (progress.epoch + 1) % cfg.EVAL.INTERVAL == 0:
        evaluate(run, records)
    with records.changing():
        progress.epoch += 1
        progress.step_in_epoch = 0
    save(run, records, "last")


def evaluate(run: Run, records: Records, *, all_images: bool = False, keep_best: bool = True) -> None:
    """Evaluate on sources and targets, keep the best (compared on one list of images), write tables and pictures."""
    distributed.broadcast_buffers(run.evaluated_network)
    cfg, progress, sources = run.cfg, run.progress, run.cfg.DATASET.TRAIN
    if records.saved_at != progress.step:  # else a kill in what takes long would lose the steps
        save(run, records, "last")
    loaders = evaluation_loaders(cfg, run.splits, all_images=all_images)
    # the steps may be more than the last where a run is resumed with fewer of them than it has done
    final = progress.step >= run.last_step and (all_images or not cfg.EVAL.LIMIT or cfg.RUN.TEST_MODE)
    evaluator = replace(run.evaluator, per_image=cfg.EVAL.PER_IMAGE or final)
    weights = describe_weights(run.network, cfg, progress=asdict(progress), averaged=run.average is not None)
    trained = weights["source"].split()
    rows, plots, per_image = evaluator(
        run.evaluated_network, loaders, sources=trained, domains=run.splits.domains, findings=run.findings
    )
    for row in (row for row in rows if not row.subset and not all_images):  # curves are of one list of images
        records.writer.scalars(row.scalars(), progress.step)
    records.show(plots, progress.step)
    records.evaluated_at = progress.step
    weights = {"file": str(records.folder / "last.pth"), "checkpoint": "last", **weights}
    report = Report(weights, rows, per_image if cfg.EVAL.PER_IMAGE else {})
    write_scores(report, records.folder)
    logger.info("step %d\n%s", progress.step, report.to_text())
    best = selection_scores(rows, sources=sources, targets=cfg.DATASET.VAL) if keep_best else {}
    for name, value in best.items():
        if value > run.best.get(name, -1.0):  # never where it is nan
            with records.changing():  # the best score and its file
                before, run.best[name] = run.best.get(name, -1.0), value
                save(run, records, f"best_{name}")
                if f"best_{name}" in records.unsaved:  # it holds the score before
                    run.best[name] = before
    if final:
        page = report_page(run, records.folder, report, loaders=loaders, counts=per_image, plots=plots)
        write_scores(replace(report, page=page), records.folder)


def write_scores(report: Report, folder: Path) -> None:
    if distributed.is_main():
        with tolerated("the table of scores"):
            report.write(folder / "scores")


def log_step(run: Run, records: Records, gradient_norm: Tensor | None) -> None:
    """Write the means of the loss terms since the last time to the bar, the text log and TensorBoard."""
    progress, terms, waited = run.progress, records.meter.read(), run.to_device.wait_share()
    run.to_device.restart()
    scalars = {f"loss/{name}": value for name, value in terms.items()}
    scalars |= {} if gradient_norm is None else {"optim/grad_norm": float(gradient_norm)}
    scalars |= {"optim/lr": run.optimizer.param_groups[0]["lr"], "time/data_wait": waited}
    scalars |= {"train/skipped_steps": float(records.meter.skipped)} if records.meter.skipped else {}
    records.writer.scalars(scalars, progress.step)
    records.bar.set_postfix(loss=f"{terms.get('train_loss', np.nan):.3f}", epoch=progress.epoch)
    place = f"epoch {progress.epoch}, step {progress.step}/{run.last_step}, lr {scalars['optim/lr']:.3g}"
    text = ", ".join(f"{name} {value:.4f}" for name, value in terms.items()) or "every step left out"
    logger.info("%s: %s; %.0f%% of the time waiting for data", place, text, 100 * waited)
    if waited > SLOW_DATA and not records.told_of_slow_data:
        records.told_of_slow_data = True
        logger.warning("the device waits for data %.0f%% of the time: %s", 100 * waited, run.loader.advice())


def save(run: Run, records: Records, kind: str) -> None:
    """Write the checkpoint `kind`.pth with everything that the next step depends on; never with broken weights.

    A disk that takes none does not end the run.
    """
    if distributed.is_main():
        with records.saving(kind):
            file, lists = records.folder / f"{kind}.pth", trained_lists(run)
            run.save(file, config=config.to_dict(run.cfg), versions=records.versions, data=lists)
    if kind == "last" and kind not in records.unsaved:
        records.saved_at = run.progress.step


def save_whole(run: Run, records: Records) -> None:
    """Save what was trained since the last time before the run dies, unless a step was cut short or its loss broken.

    Waits for no other process: they may be dead. An end of an epoch that was cut short is done again after a resume.
    """
    try:
        if records.whole and records.meter.is_finite():
            if run.progress.step > records.saved_at:
                save(run, records, "last")
            if "last" not in records.unsaved and (records.folder / "last.pth").exists():
                logger.info("saved step %d; continue with --resume auto", run.progress.step)
    except (UserError, RuntimeError) as error:  # a full disk, broken weights, a lost GPU: what ended the run counts
        logger.warning("step %d is not saved: %s", run.progress.step, one_line(error))


if __name__ == "__main__":
    run_entry_point(main)
