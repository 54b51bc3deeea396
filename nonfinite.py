"""Training steps whose loss or gradient is not finite: told, kept, left out (--nan skip) and repeated (--replay)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils._pytree import tree_leaves

import config
from config import Config
from datasets.domains import load_domains
from datasets.sampling import Pick
from datasets.segmentation import TrainingBatch
from datasets.splits import Splits
from network.weights import upgrade_checkpoint
from run import Run, build_run, trained_lists
from utils import checkpoint, distributed
from utils.checkpoint import Progress
from utils.errors import UserError
from utils.files import read_whole, tolerated, write_text
from utils.logs import LossMeter, describe_loss, write_line
from utils.options import build_tree, flatten
from utils.runs import Records, Start, check_lists

MOST_IN_A_ROW = 20  # steps that --nan skip leaves out before the run ends: its weights give nothing else any more
Parts: TypeAlias = list[tuple[dict[str, Tensor], Tensor, list[str]]]  # terms, weighted sum and names per micro-batch
Gradients: TypeAlias = Callable[[Run, Sequence[TrainingBatch]], Parts]  # adds the gradients of a step's micro-batches
logger = logging.getLogger("train")


def is_finite(run: Run, parts: Parts, *, shared: bool) -> bool:
    """Tell whether a step's losses are finite; `shared`: those of all processes, on all alike, and the gradient too.

    What overflows in a gradient of float16 is left to the scaler.
    """
    finite = torch.stack([total for _, total, _ in parts]).isfinite().all()
    if not shared:
        return bool(finite)
    gradients = [parameter.grad for parameter in run.network.parameters() if parameter.grad is not None]
    if gradients and not run.scaler.is_enabled():
        finite = finite & get_total_norm(gradients).isfinite()
    return bool(distributed.all_reduce_min(int(finite), run.device))


def add_step(run: Run, meter: LossMeter, micro_batches: Sequence[TrainingBatch], *, gradients: Gradients) -> bool:
    """Add a step's gradients to the network and its losses to the meter; return False where --nan skip leaves it out.

    Without it a loss on the CPU is checked at once, one on a GPU when the log or a checkpoint is written.
    """
    skipped, on_cpu = run.cfg.OPTIM.NAN == "skip", run.device.type == "cpu"
    buffers = [buffer.clone() for buffer in run.network.buffers()] if skipped or on_cpu else []
    losses = gradients(run, micro_batches)
    if (skipped or on_cpu) and not is_finite(run, losses, shared=skipped):
        restore_buffers(run.network, buffers)
        if skipped:
            skip(run, meter, losses)
            return False
    for loss in losses:
        meter.add(run.progress.step, *loss)
    meter.skipped_in_a_row = 0
    if on_cpu:
        meter.check_finite()
    return True


def skip(run: Run, meter: LossMeter, parts: Parts) -> None:
    """Leave a step out that every process calls broken: count, keep and log it; `UserError` at too many in a row."""
    step = run.progress.step
    run.optimizer.zero_grad(set_to_none=True)
    meter.skipped += 1
    meter.skipped_in_a_row += 1
    broken = [describe_loss(*part) for part in parts if not part[1].isfinite()]
    sentences = [sentence for of_process in distributed.gather(broken) for sentence in of_process]
    why = "; ".join(sentences) or "the losses are finite, but their gradient is not"
    kept = f"; kept in {meter.keep(step)}" if meter.keep and distributed.is_main() else ""
    logger.warning("step %d is left out (%d so far): %s%s", step, meter.skipped, why, kept)
    if meter.skipped_in_a_row >= MOST_IN_A_ROW:
        raise UserError(
            f"step {step}: {MOST_IN_A_ROW} steps in a row are not finite ({why}); lower --lr and resume with "
            "--resume auto, or repeat a kept step with --replay FILE"
        )


def keep(run: Run, records: Records, step: int) -> Path:
    """Write what repeats a step of the current epoch on one process, below the run's folder, and return the file.

    The weights are kept beside it, of the first such step alone, where they are still those before the step.
    """
    progress, cfg = run.progress, config.to_dict(run.cfg)
    file = records.folder / "nonfinite" / f"step_{step}.json"
    start = progress.step_in_epoch - (progress.step - step)
    dataset: Any = run.loader.loader.dataset
    batches = []
    for rank in range(run.loader.batches.world_size):
        own = replace(run.loader.batches, rank=rank, epoch=progress.epoch, start_step=start)
        for picks in islice(own, own.accumulate):
            samples = [{"name": dataset.pair(pick.item)[0].name, **pick._asdict()} for pick in picks]
            batches.append({"rank": rank, "samples": samples})
    content = {"step": step, "epoch": progress.epoch, "step_in_epoch": start, "batches": batches}
    lists = trained_lists(run)
    with tolerated("what repeats a step"):  # a full disk must not hide why the step was kept
        write_text(file, json.dumps({**content, "data": lists, "config": cfg}, indent=1) + "\n")
    if step == progress.step and not list(file.parent.glob("*.pth")):
        with suppress(UserError):  # weights that are broken already, or a full disk: the file says enough
            run.save(file.with_suffix(".pth"), config=cfg, versions=records.versions, data=lists)
    return file


def replay(cfg: Config, *, device: torch.device, gradients: Gradients) -> None:
    """Do the step of --replay again on one process and print its losses and the first value that is not finite.

    Settings that differ from the defaults now win over those of the run.
    """
    file = Path(cfg.RUN.REPLAY)
    if distributed.world_size() > 1:
        raise UserError(f"--replay {file}: runs the batches of all processes in one; start it without a launcher")
    try:
        content: Any = json.loads(read_whole(file))
        step, epoch, batches = content["step"], content["epoch"], content["batches"]
        saved, lists = config.from_dict(content["config"], source=str(file)), content["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"--replay {file}: not a step that a run has kept ({reason}); give another file") from error
    places = file.with_suffix(".pth"), file.absolute().parent.parent / "last.pth"
    weights = next((path for path in places if path.exists()), None)
    if weights is None:
        raise UserError(f"--replay {file}: neither {file.stem}.pth is beside it nor last.pth in the run folder")
    cfg = config.from_dict(build_tree(dict(flatten(saved)) | config.changed(cfg) | {"OPTIM.COMPILE": False}))
    run = build_run(cfg, Splits(load_domains(cfg)), device=device, start=Start(weights))
    check_lists(lists, trained_lists(run), path=file, accepted=cfg.RUN.OTHER_DATA)
    held = checkpoint.read_checkpoint(weights)
    run.load(upgrade_checkpoint(held, run.network), path=weights)
    before = "the weights before it" if run.progress.step == step else f"weights of step {run.progress.step}"
    write_line(f"step {step} on {weights}, {before}")
    run.progress = Progress(epoch, content["step_in_epoch"], step)
    dataset: Any = run.loader.loader.dataset
    collate: Any = run.loader.loader.collate_fn
    buffers = [buffer.clone() for buffer in run.network.buffers()]
    first = list[str]()
    watch(run.network, first)
    run.model.train()
    for rank in sorted({batch["rank"] for batch in batches}):
        restore_buffers(run.network, buffers)
        run.optimizer.zero_grad(set_to_none=True)
        picks = [[_pick(**sample) for sample in batch["samples"]] for batch in batches if batch["rank"] == rank]
        micro_batches = run.to_device(collate([dataset[pick] for pick in part]) for part in picks)
        for number, (terms, total, names) in enumerate(gradients(run, list(micro_batches))):
            write_line(f"process {rank}, micro-batch {number}: {describe_loss(terms, total, names)}")
            first += [f"the loss term {name}" for name, value in terms.items() if not value.isfinite()]
    write_line(f"first value that is not finite: {first[0] if first else 'none'}")


def _pick(*, name: str, item: int, stream: int, focus: list[int] | None) -> Pick:
    return Pick(item, stream, None if focus is None else (focus[0], focus[1]))


def restore_buffers(module: nn.Module, values: Sequence[Tensor]) -> None:
    """Give a module's buffers (batch-norm statistics) the values that they had before a step."""
    for buffer, value in zip(module.buffers(), values, strict=True):
        buffer.copy_(value)


def watch(network: nn.Module, found: list[str]) -> None:
    """Add what is not finite to `found` as it arises: images, outputs of layers, innermost first, then gradients."""

    def look(what: str, values: Any) -> None:
        if any(isinstance(value, Tensor) and not value.isfinite().all() for value in tree_leaves(values)):
            found.append(what)

    network.register_forward_pre_hook(lambda _, images: look("the augmented images", images))
    for name, layer in network.named_modules():
        title = f"the output of {name or 'the network'} ({type(layer).__name__})"
        layer.register_forward_hook(lambda _layer, _inputs, output, title=title: look(title, output))
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            told = partial(look, f"the gradient of {name}")
            parameter.register_post_accumulate_grad_hook(lambda parameter, told=told: told(parameter.grad))
