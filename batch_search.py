"""The largest batch of a training step that fits into memory (train.py --find_batch)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from config import Config
from datasets.domains import load_domains
from datasets.segmentation import TrainingBatch
from datasets.splits import Splits
from nonfinite import Gradients
from run import Run, build_run
from utils import distributed
from utils.device import peak_memory
from utils.errors import UserError, lacks_memory
from utils.logs import write_line
from utils.runs import Start

MOST = 1024  # images that are tried at most
SHARE = 0.9  # of the CPU's memory that a step may take: other programs and the loader's workers need some too
logger = logging.getLogger("train")


def find_batch(cfg: Config, *, device: torch.device, gradients: Gradients) -> None:
    """Print the largest --bs_mult whose step fits, and the --accumulate that gives the images per step of the recipe.

    Steps of 1, 2, 4 ... images are done, then of sizes between the last that fitted and the first that did not. On a
    GPU each is tried; on a CPU, where the system would kill what takes too much, one is tried only if the growth of
    the peak memory so far leaves room for it. No run folder is made.
    """
    if distributed.world_size() > 1:
        raise UserError("--find_batch: looks for the batch of one process; start it without a launcher")
    run = build_run(cfg, Splits(load_domains(cfg)), device=device, start=Start())
    _with_every_loss(run)
    batch = next(iter(run.loader.epoch(0)))
    fits = _OnCpu(_memory(Path("/proc/meminfo"))) if device.type == "cpu" else _on_gpu
    found, refused = 0, 1
    while refused <= MOST and fits(run, batch, refused, gradients):
        found, refused = refused, 2 * refused
    low, high = found, min(refused, MOST + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(run, batch, middle, gradients) else (low, middle)
    if not low:
        raise UserError(f"--find_batch: not even one crop of {cfg.AUGMENT.CROP_SIZE} fits; lower --crop_size")
    images = run.network.method.recipe_batch(cfg.DATASET.TRAIN)
    best = max(size for size in range(1, low + 1) if images % size == 0)
    write_line(
        f"largest batch that fits: --bs_mult {low}; the recipe of {run.network.method.name} has {images} images per "
        f"step: --bs_mult {best} --accumulate {images // best} on one process, divided by the number of processes"
    )


def _with_every_loss(run: Run) -> None:
    """Let the steps be those of the whole run: with the whitening loss, which ISW adds later on."""
    whitening = run.criterion.whitening
    if whitening is not None and whitening.selective:
        whitening.intersect_masks([torch.ones_like(mask).triu(1) for mask in whitening.masks])
        run.progress.epoch = run.cfg.WHITENING.COV_STAT_EPOCH + 1
    run.model.train()


def _step(run: Run, batch: TrainingBatch, size: int, gradients: Gradients) -> None:
    """Do a whole step on `size` images, those of a batch over and over.

    Where the recipe has more, it is one of two micro-batches: the second needs room beside the gradients of the first.
    """
    index = torch.arange(size) % len(batch.images)
    parts: Any = (values if values is None else values[index] for values in batch.params)
    params = type(batch.params)(*parts)
    one = TrainingBatch(batch.images[index], batch.labels[index], params, [batch.names[i] for i in index.tolist()])
    run.optimizer.zero_grad(set_to_none=True)
    if run.cfg.OPTIM.COMPILE:
        torch.compiler.reset()  # which would compile for a few sizes and run the others uncompiled
    accumulates = size < run.network.method.recipe_batch(run.cfg.DATASET.TRAIN)
    gradients(run, list(run.to_device(iter([one, one] if accumulates else [one]))))
    run.optimizer.step()


def _on_gpu(run: Run, batch: TrainingBatch, size: int, gradients: Gradients) -> bool:
    try:
        _step(run, batch, size, gradients)
        torch.cuda.synchronize()
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        run.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return False
    return True


class _OnCpu:
    """Tells whether a batch fits into so many bytes, by doing its step if the steps before say that it may."""

    def __init__(self, limit: float) -> None:
        self.limit, self.peaks = limit, dict[int, int]()  # images -> bytes

    def __call__(self, run: Run, batch: TrainingBatch, size: int, gradients: Gradients) -> bool:
        if len(self.peaks) > 1:
            (first, least), *_, (last, most) = sorted(self.peaks.items())
            growth = (most - least) / (last - first)
            if most + growth * (size - last) > self.limit:
                return False
        _step(run, batch, size, gradients)
        self.peaks[size] = int(peak_memory(run.device) * 2**20)
        logger.info("%d image(s): peak memory %.0f MiB", size, self.peaks[size] / 2**20)
        return self.peaks[size] <= self.limit


def _memory(file: Path) -> float:
    """Return how many bytes this process may hold: what is free now, or what its limits leave (RLIMIT_DATA, cgroup)."""
    import resource  # not on Windows

    own, page = Path("/proc/self/statm"), resource.getpagesize()
    limits = list[float]()
    if file.exists():
        kilobytes = dict(line.split()[:2] for line in file.read_text().splitlines())["MemAvailable:"]
        limits.append(int(kilobytes) * 1024 + int(own.read_text().split()[1]) * page)
    group = Path("/sys/fs/cgroup/memory.max")
    if group.exists() and (value := group.read_text().strip()).isdigit():
        limits.append(int(value))
    soft = resource.getrlimit(resource.RLIMIT_DATA)[0]
    limits += [soft] if soft != resource.RLIM_INFINITY else []
    if not limits:
        raise UserError("--find_batch: this system does not say how much memory is free; use it on a GPU or on Linux")
    return SHARE * min(limits)
