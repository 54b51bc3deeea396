"""Train one network on one or several source domains and score it on domains that it never saw.

python train.py --dataset gtav --val_dataset cityscapes ...            one process
torchrun --nproc_per_node 4 train.py ...                               four
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
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
from datasets.domains import Domain, get_domain, load_domains
from datasets.labels import CLASS_NAMES, PALETTE
from datasets.loaders import (
    EvaluationLoader,
    TrainingBatch,
    build_evaluation_loaders,
    build_statistics_loader,
    build_training_loader,
    training_split,
)
from datasets.prefetch import DeviceBatches
from evaluation.evaluator import cudnn_benchmark_off
from evaluation.features import FeatureDrawer
from evaluation.report import Report
from evaluation.scoring import Scorer, autocast_dtype, selection_scores
from loss import build_criterion, collect_masks, covariance
from network import build_network, load_pretrained
from network.legacy import load_weights
from optimizer import apply_settings, build_average, build_optimizer, build_scheduler
from transforms.build import build_appearance, build_fixed_augmentation, build_normalisation
from transforms.edges import edge_target
from utils import checkpoint, distributed, logs, pictures
from utils.errors import UserError, run_entry_point
from utils.runs import Start, check_continuation, find_start, open_folder, record_start
from utils.state import RunState

SLOW_DATA = 0.2  # share of the time waiting for data from which the log says what to do
REPOSITORY = Path(__file__).resolve().parent
logger = logging.getLogger("train")


class Trainer:
    """The parts of one run and the loop over them."""

    def __init__(self, cfg: Any, *, device: torch.device, start: Start) -> None:
        """Build everything and restore what the run continues from; nothing is trained or written yet."""
        self.cfg, self.device, self.start = cfg, device, start
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.terms = logs.LossMeter()
        self.gradient_norm: Tensor | None = None  # of the last step, where it is limited
        self.scored_at = -1
        self.to_device = DeviceBatches(device)
        self.advised = False

        self.domains = load_domains(cfg)
        self.network = build_network(cfg)
        self.method = self.network.method
        jitter = self.method.jitter if cfg.AUGMENT.JITTER == "method" else cfg.AUGMENT.JITTER
        self.loader = build_training_loader(cfg, jitter=jitter, rank=self.rank, world_size=self.world_size)
        self.scored = self._scored_domains(limit=cfg.EVAL.LIMIT)
        self.global_batch = self.loader.batches.global_batch
        self.steps_per_epoch = min(self.loader.steps_per_epoch, 2) if cfg.RUN.TEST_MODE else self.loader.steps_per_epoch
        self.whitened = self._whitened_domains()
        self.appearance = build_appearance(cfg)
        if start.checkpoint is None and cfg.RUN.SNAPSHOT:
            load_weights(self.network, checkpoint.read(cfg.RUN.SNAPSHOT), path=cfg.RUN.SNAPSHOT)
        elif start.checkpoint is None:
            load_pretrained(self.network, cfg.NETWORK.PRETRAINED)
        criterion = build_criterion(cfg, method=self.method, style_channels=self.network.style_channels)
        self.criterion = criterion.to(device)
        if cfg.NETWORK.SYNCBN and device.type == "cuda" and self.world_size > 1:
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)  # type: ignore[assignment]
        self.network.to(device)
        self.average = build_average(cfg, self.network)
        self.scored_network = self.network if self.average is None else self.average.network
        self.optimizer = build_optimizer(cfg, self.network)
        self.scheduler = build_scheduler(cfg, self.optimizer)
        self.autocast_dtype = autocast_dtype(device, wanted=cfg.OPTIM.FP16)
        self.scorer = Scorer(
            normalise=build_normalisation(cfg),
            device=device,
            class_names=CLASS_NAMES,
            palette=PALETTE,
            batch_size=cfg.EVAL.BATCH_SIZE,
            autocast_dtype=self.autocast_dtype,
            num_pictures=cfg.EVAL.PICTURES,
            features=self._feature_drawer() if cfg.EVAL.VISUALIZE else None,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.autocast_dtype == torch.float16)
        average = self.average.network if self.average is not None else None
        self.state = RunState(self.network, self.criterion, self.optimizer, self.scheduler, self.scaler, average)
        self._restore()
        self.progress = self.state.progress
        self.model: nn.Module = self.network
        if self.world_size > 1:
            self.model = DistributedDataParallel(self.network, device_ids=[device] if device.type == "cuda" else None)

    # ---------------------------------------------------------------------------------------------------- the loop

    def fit(self) -> None:
        """Train until --max_iter steps (or --max_epoch epochs) are done, then score on every image of every target."""
        cfg, progress = self.cfg, self.progress
        self.folder = open_folder(cfg, self.start)
        logs.setup_logging(self.folder / "log.txt")
        self.versions = record_start(self.folder, config.to_yaml(cfg), step=progress.step, repository=REPOSITORY)
        self._log_start()
        events = Path(cfg.RUN.TB_PATH) / cfg.RUN.DATE / cfg.RUN.EXP / self.folder.name / f"tb{cfg.RUN.TB_TAG}"
        self.board = logs.MetricWriter(events, self.folder / "history.jsonl", first_step=progress.step)
        self.to_device.restart()
        hidden = not distributed.is_main()
        self.last_step = cfg.OPTIM.MAX_ITER
        if cfg.OPTIM.MAX_EPOCH:
            left = (cfg.OPTIM.MAX_EPOCH - progress.epoch) * self.steps_per_epoch - progress.step_in_epoch
            self.last_step = min(self.last_step, progress.step + left)
        with tqdm(total=self.last_step, initial=progress.step, desc="train", unit="step", disable=hidden) as self.bar:
            while True:
                if progress.step_in_epoch == self.steps_per_epoch:  # also where a resumed run was killed in end_epoch
                    self.end_epoch()
                if progress.step >= self.last_step:
                    break
                self.train_epoch()
        self.terms.check_finite()
        if self.scored_at != progress.step or (cfg.EVAL.LIMIT and not cfg.RUN.TEST_MODE):
            if not cfg.RUN.TEST_MODE:
                self.scored = self._scored_domains(limit=0)
            self.score(keep_best=not cfg.EVAL.LIMIT)  # bests are compared on one list of images
        self.save("last")
        self.board.close()
        logger.info("finished at step %d; run folder %s", progress.step, self.folder)

    def train_epoch(self) -> None:
        """Train the rest of the current epoch, or up to the last step of the run."""
        cfg, progress = self.cfg, self.progress
        self.model.train()
        batches = self.to_device(self.loader.epoch(progress.epoch, start_step=progress.step_in_epoch))
        steps = min(self.steps_per_epoch - progress.step_in_epoch, self.last_step - progress.step)
        for _ in range(steps):
            micro_batches = [next(batches) for _ in range(cfg.OPTIM.ACCUMULATE)]
            if progress.step == 0 and cfg.RUN.DUMP_AUGMENTATION:
                self.draw_batch(micro_batches[0])
            self.train_step(micro_batches)
            progress.step += 1
            progress.step_in_epoch += 1
            self.bar.update()
            if progress.step % cfg.RUN.LOG_INTERVAL == 0 or progress.step == self.last_step:
                self.terms.check_finite()
                self.log_terms()
            if cfg.RUN.SAVE_INTERVAL and progress.step % cfg.RUN.SAVE_INTERVAL == 0:
                self.terms.check_finite()
                self.save("last")

    def train_step(self, micro_batches: Sequence[TrainingBatch]) -> None:
        """Do one optimizer step on the sum of the micro-batches' mean gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        whiten = self.whitening_is_on()
        relax = not 0 <= self.cfg.OPTIM.RLX_OFF_ITER <= self.progress.step  # below 0: to the end
        for index, batch in enumerate(micro_batches):
            # dropout is a function of (seed, step): nothing random needs to be saved, and every process draws the same
            torch.manual_seed(_stream(self.cfg.RUN.SEED, self.progress.step, index))
            images, labels = batch.images, batch.labels.long()  # (B,3,H,W) uint8, (B,H,W)
            edges = edge_target(images) if self.method.head == "diia" else None  # (B,H,W)
            last = index == len(micro_batches) - 1
            with contextlib.nullcontext() if last or self.world_size == 1 else self.model.no_sync():  # type: ignore[operator]
                inputs, mixed = self.appearance(images, batch.params), self.autocast_dtype
                with torch.autocast(self.device.type, dtype=mixed, enabled=mixed is not None):
                    output = self.model(inputs)
                if self.autocast_dtype is not None:
                    output = output.float()  # losses and covariances would overflow in half precision
                terms = self.criterion(output, labels, edges, whiten=whiten, relax=relax)
                total = self.criterion.total(terms)
                self.scaler.scale(total / len(micro_batches)).backward()
            self.terms.add(self.progress.step, terms, total, batch.names)
        if self.device.type == "cpu":
            self.terms.check_finite()
        if self.cfg.OPTIM.CLIP_GRAD_NORM:
            self.scaler.unscale_(self.optimizer)
            self.gradient_norm = clip_grad_norm_(self.network.parameters(), self.cfg.OPTIM.CLIP_GRAD_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        if self.average is not None:
            self.average.update(self.network)

    def whitening_is_on(self) -> bool:
        """Tell whether the whitening loss counts in this epoch: IRW always, ISW once its masks exist."""
        whitening = self.criterion.whitening
        if whitening is not None and whitening.selective:
            return whitening.has_masks and self.progress.epoch > self.cfg.WHITENING.COV_STAT_EPOCH
        return whitening is not None

    def end_epoch(self) -> None:
        """Collect the whitening masks and score where it is due, then save and go on to the next epoch."""
        cfg, progress = self.cfg, self.progress
        self.terms.check_finite()
        period = cfg.WHITENING.COV_STAT_EPOCH + 1
        due = (
            (progress.epoch + 1) % period == 0
            if cfg.WHITENING.DYNAMIC
            else progress.epoch == cfg.WHITENING.COV_STAT_EPOCH
        )
        if self.method.whitening == "isw" and due:
            self.collect_masks()
        if cfg.EVAL.INTERVAL and (progress.epoch + 1) % cfg.EVAL.INTERVAL == 0:
            self.score()
        progress.epoch += 1
        progress.step_in_epoch = 0
        self.save("last")

    # ---------------------------------------------------------------------------------------------------- whitening

    def collect_masks(self) -> None:
        """Find the style-sensitive covariances from pairs of a training image and its photometric copy (SPEC: ISW)."""
        cfg = self.cfg.WHITENING
        passes = (self._pairs(domain, trial) for trial in range(cfg.TRIALS) for domain in self.whitened)
        whitening = self.criterion.whitening
        assert whitening is not None
        found = collect_masks(whitening, self.network, passes, clusters=cfg.CLUSTERS, device=self.device)
        sensitive = whitening.num_sensitive()
        logger.info("epoch %d: whitening masks keep %s entries", self.progress.epoch, sensitive)
        self.board.scalars({f"whitening/sensitive_{i}": float(n) for i, n in enumerate(sensitive)}, self.progress.step)
        if self.scorer.features is not None and distributed.is_main():
            picture = self.scorer.features.draw_masks(found)
            self.show([pictures.Drawing("whitening/masks", "features/masks.png", picture)])

    def _pairs(self, domain: Domain, trial: int) -> Iterator[Tensor]:
        """Yield the photometric copy and the original (2, 3, H, W) of this process's share of the images."""
        title = f"covariances of {domain.name}, trial {trial + 1}/{self.cfg.WHITENING.TRIALS}"
        loader = self._statistics_loader(domain, trial)
        bar = tqdm(loader, desc=title, unit="image", leave=False, disable=not distributed.is_main())
        for image, params in cudnn_benchmark_off(bar):
            yield self.appearance.pair(image.to(self.device), params)

    def _whitened_domains(self) -> list[Domain]:
        if self.method.whitening != "isw":
            return []
        names = self.cfg.DATASET.COVSTAT or self.cfg.DATASET.TRAIN
        found = [get_domain(self.domains, name) for name in names]
        cfg = self.cfg.WHITENING
        if cfg.TRIALS < 1 or (cfg.CLUSTERS < 2 and not cfg.RELAX_DENOM):
            raise UserError(
                f"ISW needs --trials of at least 1 and --clusters of at least 2, not {cfg.TRIALS}, {cfg.CLUSTERS}"
            )
        for domain in found:
            self._statistics_loader(domain, trial=0)  # a missing folder shows now, not epochs later
        return found

    def _statistics_loader(self, domain: Domain, trial: int) -> Any:
        return build_statistics_loader(self.cfg, domain, trial=trial, rank=self.rank, world_size=self.world_size)

    # ---------------------------------------------------------------------------------------------------- scoring

    def score(self, *, keep_best: bool = True) -> None:
        """Score the sources' val split and the targets, keep the best, write tables, scalars and pictures."""
        distributed.broadcast_buffers(self.scored_network)
        step, sources = self.progress.step, self.cfg.DATASET.TRAIN
        rows, drawn = self.scorer(self.scored_network, self.scored, split="val", sources=sources)
        for row in rows:
            if not row.subset:
                values = {"mean_iu": row.scores.mean_iou, "acc": row.scores.accuracy, "val_loss": row.loss}
                values["acc_cls"] = row.scores.mean_class_accuracy
                self.board.scalars({f"{row.domain}/{key}": value for key, value in values.items()}, step)
        self.show(drawn)
        self.scored_at = step
        about = {
            "file": str(self.folder / "last.pth"),
            "checkpoint": "last",
            "step": step,
            "epoch": self.progress.epoch,
            "ema": self.cfg.OPTIM.EMA_DECAY or None,
            "seed": self.cfg.RUN.SEED,
            "source": " ".join(sources),
            "method": self.method.label,
            "network": self.network.describe(),
        }
        report = Report(about, rows)
        if distributed.is_main():
            report.write(self.folder / "scores")
        logger.info("step %d\n%s", step, report.to_text())
        best = selection_scores(rows, sources=sources, targets=self.cfg.DATASET.VAL) if keep_best else {}
        for name, value in best.items():
            if value > self.state.best.get(name, -1.0):  # never where it is nan
                self.state.best[name] = value
                self.save(f"best_{name}")

    def _scored_domains(self, *, limit: int) -> list[tuple[Domain, EvaluationLoader]]:
        names = [*(self.cfg.DATASET.TRAIN if self.cfg.EVAL.SOURCE else []), *self.cfg.DATASET.VAL]
        share = {"rank": self.rank, "world_size": self.world_size}
        return build_evaluation_loaders(self.cfg, names, split="val", limit=limit, **share)

    # ---------------------------------------------------------------------------------------------------- records

    def log_terms(self) -> None:
        """Write the means of the terms since the last time to the bar, the text log and TensorBoard."""
        step, values = self.progress.step, self.terms.read()
        rate, waited = self.optimizer.param_groups[0]["lr"], self.to_device.wait_share()
        self.to_device.restart()
        scalars = {f"loss/{name}": value for name, value in values.items()}
        if self.gradient_norm is not None:
            scalars["optim/grad_norm"] = float(self.gradient_norm)
        self.board.scalars({**scalars, "optim/lr": rate, "time/data_wait": waited}, step)
        self.bar.set_postfix(loss=f"{values['train_loss']:.3f}", epoch=self.progress.epoch)
        text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        logger.info(
            "epoch %d, step %d/%d, lr %.5f: %s; %.0f%% of the time waiting for data",
            self.progress.epoch, step, self.last_step, rate, text, 100 * waited,
        )  # fmt: skip
        if waited > SLOW_DATA and not self.advised:
            self.advised = True
            logger.warning("the device waits for data %.0f%% of the time: %s", 100 * waited, self.loader.advice())

    def show(self, drawn: Sequence[pictures.Drawing]) -> None:
        """Write pictures to the run's folder, in the place of those before, and to TensorBoard."""
        for tag, file, picture in drawn:
            pictures.save_png(picture, self.folder / "pictures" / file)
            self.board.picture(tag, picture, self.progress.step)

    def _feature_drawer(self) -> FeatureDrawer:
        return FeatureDrawer(
            self.scored_network,
            whitening=self.criterion.whitening,
            photometric_copy=build_fixed_augmentation(self.cfg),
            covariance=covariance,
            edge_target=edge_target,
            device=self.device,
            autocast_dtype=self.autocast_dtype,
            palette=PALETTE,
            class_names=CLASS_NAMES,
            pixels=self.cfg.EVAL.ATTENTION_PIXELS,
        )

    def draw_batch(self, batch: TrainingBatch) -> None:
        """Draw a batch as the network sees it: image, label, edge target."""
        if not distributed.is_main():
            return
        shown, edges = self.appearance.colours(batch.images, batch.params), edge_target(batch.images).byte().cpu()
        tiles: list[np.ndarray] = []
        for frame, label, edge in zip(shown, batch.labels.cpu(), edges, strict=True):
            tiles.append(frame.permute(1, 2, 0).numpy())
            tiles.append(pictures.colorize(label.numpy(), palette=PALETTE))
            tiles.append(edge[..., None].expand(-1, -1, 3).numpy())
        pictures.save_png(pictures.contact_sheet(tiles, columns=3), self.folder / "pictures" / "first_batch.png")

    def save(self, kind: str) -> None:
        """Write the checkpoint `kind`.pth with everything that the next step depends on; never with broken weights."""
        if distributed.is_main():
            self.state.save(
                self.folder / f"{kind}.pth",
                config=config.to_dict(self.cfg),
                versions=self.versions,
                world_size=self.world_size,
            )

    def _restore(self) -> None:
        cfg, path = self.cfg, self.start.checkpoint
        if path is None:
            return
        content = checkpoint.read_checkpoint(path)
        saved, now = (config.to_dict(tree) for tree in (config.from_dict(content["config"], source=str(path)), cfg))
        check_continuation(
            content, saved, now, path=path, steps_per_epoch=self.steps_per_epoch, global_batch=self.global_batch
        )
        self.state.load(content, path=path)
        apply_settings(cfg, self.optimizer, self.scheduler)

    def _log_start(self) -> None:
        cfg = self.cfg
        logger.info("run folder %s", self.folder)
        logger.info("built %s", self.network.describe())
        logger.info("source: %s", self.loader.text)
        if self.start.checkpoint is not None:
            logger.info(
                "continuing %s at epoch %d, step %d", self.start.checkpoint, self.progress.epoch, self.progress.step
            )
        else:
            logger.info("weights: %s", cfg.RUN.SNAPSHOT or cfg.NETWORK.PRETRAINED)
        logger.info(
            "%d process(es) on %s, %d x %d images each: %d per step, %d steps per epoch",
            self.world_size, self.device.type, cfg.OPTIM.BATCH_SIZE, cfg.OPTIM.ACCUMULATE, self.global_batch,
            self.steps_per_epoch,
        )  # fmt: skip
        published = self.method.recipe_batch(cfg.DATASET.TRAIN)
        if self.global_batch != published:
            logger.warning(
                "%d images per step, the published recipe of %s has %d: change --accumulate or expect other numbers",
                self.global_batch, self.method.name, published,
            )  # fmt: skip


def _stream(seed: int, step: int, micro_batch: int) -> int:
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0] >> 1)


def _shortened(cfg: Any) -> Any:
    """Return the config of --test_mode: a few steps, few images, every part of a run."""
    plain = config.to_dict(cfg)
    plain["OPTIM"].update(MAX_ITER=min(cfg.OPTIM.MAX_ITER, 4), RLX_OFF_ITER=min(cfg.OPTIM.RLX_OFF_ITER, 2))
    plain["WHITENING"].update(COV_STAT_EPOCH=0, TRIALS=1, STAT_IMAGES=2)
    plain["EVAL"]["LIMIT"] = 2
    return config.from_dict(plain)


def check_data(cfg: Any) -> None:
    """Look at a sample of all splits that the run reads with labels; raise for what would stop it, log the rest."""
    domains = load_domains(cfg)
    sources, targets = ([get_domain(domains, name) for name in names] for names in (cfg.DATASET.TRAIN, cfg.DATASET.VAL))
    needed = [(domain, training_split(cfg, domain)) for domain in sources]
    needed += [(domain, "val") for domain in (*(sources if cfg.EVAL.SOURCE else ()), *targets)]
    for fault in quick_check(needed):
        if fault.severity == "fatal":
            raise UserError(fault.sentence())
        logger.warning(fault.sentence())


def main(argv: Sequence[str] | None = None) -> None:
    cfg = config.parse(argv, program="train")
    cfg = _shortened(cfg) if cfg.RUN.TEST_MODE else cfg
    distributed.set_deterministic(wanted=cfg.RUN.DETERMINISTIC)
    device = distributed.choose_device(cfg.RUN.DEVICE, cfg.RUN.LOCAL_RANK)
    torch.backends.cudnn.benchmark = not cfg.RUN.DETERMINISTIC  # one crop size: worth the search
    torch.manual_seed(cfg.RUN.SEED)  # the weights that no file gives
    with distributed.process_group(device, cfg.RUN.DIST_URL):
        logs.setup_logging()
        if cfg.DATASET.QUICK_CHECK and distributed.is_main():
            check_data(cfg)
        Trainer(cfg, device=device, start=find_start(cfg)).fit()


if __name__ == "__main__":
    run_entry_point(main)
