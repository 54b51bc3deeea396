"""Evaluate a weight file on domains that it never saw.

python valid.py --snapshot WEIGHTS.pth --val_dataset cityscapes bdd100k synthia mapillary
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import config
import inference
from config import Config
from datasets.checks import refuse_or_warn
from datasets.domains import load_domains
from datasets.loaders import build_evaluation_loader
from datasets.splits import Splits
from evaluation import Report, build_evaluator
from evaluation.report import describe_weights
from loss import build_criterion
from loss.whitening import Whitening
from network import Segmentor
from utils import checkpoint, distributed, logs, pictures, signals
from utils.errors import UserError, run_entry_point
from utils.files import make_folder
from utils.hub import beside

logger = logging.getLogger("valid")


def main(argv: Sequence[str] | None = None) -> None:
    cfg = config.parse(argv, program="valid")
    distributed.set_deterministic(wanted=cfg.RUN.DETERMINISTIC)
    device = distributed.choose_device(cfg.RUN.DEVICE, cfg.RUN.LOCAL_RANK)
    timeout, save_memory = cfg.RUN.DIST_TIMEOUT, inference.SAVE_MEMORY
    group = distributed.process_group(device, cfg.RUN.DIST_URL, save_memory=save_memory, timeout=timeout)
    with signals.handled(), signals.deferred(), group:  # between two images: all results are written or none
        logs.setup_logging()
        report = evaluate(cfg, device)
        if distributed.is_main():
            report.write(result_folder(cfg))
            logs.write_line(report.to_text())
            logs.write_line(f"results: {result_folder(cfg)}")


def evaluate(cfg: Config, device: torch.device) -> Report:
    """Evaluate the weight file on every domain of --val_dataset; every process returns the same report."""
    if not cfg.RUN.SNAPSHOT:
        raise UserError("no weights to evaluate: give --snapshot FILE")
    if not cfg.DATASET.VAL:
        raise UserError("no domain to evaluate on: give --val_dataset NAME ...")
    content, folder = checkpoint.read(cfg.RUN.SNAPSHOT), result_folder(cfg)
    network, saved, weights = load_network(cfg, content)
    splits = Splits(load_domains(cfg))
    opened = [splits.open(name, cfg.DATASET.SPLIT) for name in dict.fromkeys(cfg.DATASET.VAL)]
    findings = dict[str, list[str]]()
    if cfg.DATASET.QUICK_CHECK:
        needed = [(split.domain.name, split.name) for split in opened]
        findings = distributed.from_main(partial(refuse_or_warn, splits, needed, evaluated=""))
    loaders = [build_evaluation_loader(cfg, split, limit=cfg.EVAL.LIMIT, **distributed.share()) for split in opened]
    network.to(device)
    logger.info("built %s", weights["network"])
    whitening = load_whitening(saved, network, content, path=cfg.RUN.SNAPSHOT) if cfg.EVAL.VISUALIZE else None
    evaluator = build_evaluator(cfg, network, recipe=saved, whitening=whitening, device=device)
    sources = saved.DATASET.TRAIN if "source" in weights else ()  # published files do not say what they were trained on
    make_folder(folder)  # where nothing can be written, nothing is evaluated
    rows, plots, per_image = evaluator(network, loaders, sources=sources, findings=findings)
    for _, file, image in plots:
        pictures.save_png(image, folder / file)
    return Report(weights, rows, per_image)


def load_network(cfg: Config, content: dict[str, Any]) -> tuple[Segmentor, Config, dict[str, Any]]:
    """Return what `inference.load_network` does, and what the report says about the weights."""
    network, saved = inference.load_network(cfg, content)
    weights: dict[str, Any] = {"file": cfg.RUN.SNAPSHOT}
    if checkpoint.is_ours(content):
        weights |= {"checkpoint": content["kind"]}
        averaged = bool(content["average"])
        weights |= describe_weights(network, saved, progress=content["progress"], averaged=averaged)
        if content["kind"] == checkpoint.CONVERTED:  # published weights do not say how they were trained
            weights = {key: value for key, value in weights.items() if key not in ("step", "seed", "source")}
    else:
        weights |= {"checkpoint": "published weights without a config", "epoch": content.get("epoch")}
        weights |= {"method": network.method.label, "network": network.describe()}
    return network, saved, weights


def load_whitening(saved: Config, network: Segmentor, content: dict[str, Any], *, path: str) -> Whitening | None:
    """Return the whitening term that a weight file was trained with; its masks come from the file where it has them."""
    criterion = build_criterion(saved, method=network.method, style_channels=network.style_channels)
    if state := content.get("criterion"):  # published files have none
        checkpoint.load_strictly(criterion, state, path=path)
    return criterion.whitening


def result_folder(cfg: Config) -> Path:
    """Return --out, by default a folder beside the weight file named after it and the split."""
    weights = cfg.RUN.SNAPSHOT
    return Path(cfg.EVAL.OUT or beside(weights, f"scores_{Path(weights).stem}_{cfg.DATASET.SPLIT}"))


if __name__ == "__main__":
    run_entry_point(main)
