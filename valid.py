"""Evaluate a weight file, a graph or a folder of predictions on domains that it never saw.

python valid.py WEIGHTS.pth --val_dataset cityscapes bdd100k synthia mapillary
python valid.py --model STREET.onnx --val_dataset cityscapes
python valid.py --predictions DIR --val_dataset cityscapes
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import config
from utils.errors import UserError, first_few, run_entry_point

if __name__ == "__main__":
    run_entry_point(partial(config.read_flags, program="valid"))  # before the slow imports: --help, wrong flags

import torch

import inference
from config import Config
from datasets.checks import refuse_or_warn
from datasets.domains import load_domains
from datasets.loaders import build_evaluation_loader
from datasets.splits import Splits
from evaluation import Evaluator, Report, build_evaluator
from evaluation.description import describe_checkpoint
from evaluation.evaluator import Labeller, Predictor
from evaluation.examples import Example, examples_of
from evaluation.graphs import is_graph, open_graph
from evaluation.page import About, Mask, make_page, whitening_masks
from evaluation.predictions import open_predictions
from loss import build_criterion
from loss.whitening import Whitening
from network import Segmentor
from network.scoring import scoring_copy
from transforms.corruptions import parse_corruptions
from utils import checkpoint, distributed, logs, signals
from utils.files import beside, new_folder
from utils.pictures import Picture

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
            logs.write_line(report.to_text())  # first: what cannot be written is on the screen
            report.write(result_folder(cfg))
            logs.write_line(f"results: {result_folder(cfg)}")


class Candidate(NamedTuple):
    """What is evaluated, what the report says of it, by what, and the domains that it was trained on."""

    model: Predictor | Labeller | None  # None: files, which are found by split
    weights: dict[str, Any]
    evaluator: Evaluator
    sources: Sequence[str] = ()  # where it is known
    settings: Mapping[str, Any] = MappingProxyType({})  # of the training, those that are no defaults
    masks: Sequence[Mask] = ()

    def about(self, cfg: Config) -> About:
        folder = Path(cfg.RUN.SNAPSHOT or cfg.EVAL.PREDICTIONS).parent
        return About(folder, self.settings, shlex.join(sys.argv), logs.versions())


def evaluate(cfg: Config, device: torch.device) -> Report:
    """Evaluate what the flags name on every domain of --val_dataset; every process returns the same report."""
    if not cfg.RUN.SNAPSHOT and not cfg.EVAL.PREDICTIONS:
        raise UserError("nothing to evaluate: give a weight file, --model FILE.onnx or --predictions DIR")
    if not cfg.DATASET.VAL:
        raise UserError("no domain to evaluate on: give --val_dataset NAME ...")
    if not cfg.EVAL.OUT:
        keep_other_scores(result_folder(cfg), of={*cfg.DATASET.VAL})
    looks = None, *parse_corruptions(cfg.EVAL.CORRUPT)  # of every image: as it is, and corrupted
    candidate = open_network(cfg, device) if needs_network(cfg) else open_other(cfg, device)
    splits = Splits(load_domains(cfg))
    opened = [splits.open(name, cfg.DATASET.SPLIT) for name in dict.fromkeys(cfg.DATASET.VAL)]
    findings = dict[str, list[str]]()
    if cfg.DATASET.QUICK_CHECK:
        needed = [(split.domain.name, split.name) for split in opened]
        findings = distributed.from_main(partial(refuse_or_warn, splits, needed, evaluated=""))
    loaders = [
        build_evaluation_loader(cfg, split, corruption=look, limit=cfg.EVAL.LIMIT, **distributed.share())
        for split in opened
        for look in looks
    ]
    groups = [loaders] if candidate.model else [[loader] for loader in loaders]
    models = [candidate.model or open_predictions(cfg, group[0].split) for group in groups]
    report, sheets, examples = Report(candidate.weights, []), list[Picture](), list[list[Example]]()
    with new_folder(result_folder(cfg)):  # where nothing can be written, nothing is evaluated
        for model, group in zip(models, groups, strict=True):
            rows, plots, per_image = candidate.evaluator(
                model, group, sources=candidate.sources, domains=splits.domains, findings=findings
            )
            report.rows.extend(rows)
            report.per_image.update(per_image if cfg.EVAL.PER_IMAGE else {})
            sheets += plots
            if cfg.EVAL.REPORT:
                examples += examples_of(candidate.evaluator, model, group, per_image)
    page = ""
    if cfg.EVAL.REPORT:
        page = make_page(report, candidate.about(cfg), examples=examples, masks=candidate.masks, plots=sheets)
    return replace(report, page=page, pictures=sheets)


def needs_network(cfg: Config) -> bool:
    """Return whether our own weights are evaluated; flags that contradict --predictions raise `UserError`."""
    settings = cfg.EVAL
    if settings.PREDICTIONS and cfg.RUN.SNAPSHOT:
        raise UserError(
            f"--predictions {settings.PREDICTIONS} and {cfg.RUN.SNAPSHOT} are two things to evaluate; give one of them"
        )
    of_networks = {"--eval_protocol": settings.PROTOCOL != "full", "--scales": settings.SCALES, "--flip": settings.FLIP}
    of_networks |= {
        "--amp": cfg.OPTIM.AMP != "off",
        "--visualize_feature": settings.VISUALIZE,
        "--corrupt": settings.CORRUPT,
    }
    given = ", ".join(flag for flag, value in of_networks.items() if value)
    if settings.PREDICTIONS and given:
        raise UserError(f"{given}: is for what computes predictions, those of --predictions are there; leave it out")
    return not settings.PREDICTIONS and not is_graph(cfg.RUN.SNAPSHOT)


def open_network(cfg: Config, device: torch.device) -> Candidate:
    content = checkpoint.read(cfg.RUN.SNAPSHOT)
    network, saved, weights = load_network(cfg, content)
    network.place(device)
    logger.info("built %s", weights["network"])
    shown = cfg.EVAL.VISUALIZE or cfg.EVAL.REPORT
    whitening = load_whitening(saved, network, content, path=cfg.RUN.SNAPSHOT) if shown else None
    evaluator = build_evaluator(cfg, network, recipe=saved, whitening=whitening, device=device)
    sources = weights.get("source", "").split()  # published files do not say what they were trained on
    settings = config.changed(saved) if "source" in weights else {}
    masks = whitening_masks(whitening, network.style_names)
    return Candidate(scoring_copy(network), weights, evaluator, sources, settings, masks)


def open_other(cfg: Config, device: torch.device) -> Candidate:
    """Open the graph of --model, or announce the files of --predictions."""
    evaluator = build_evaluator(cfg, None, recipe=cfg, whitening=None, device=device)
    if cfg.EVAL.PREDICTIONS:
        name = Path(os.path.realpath(cfg.EVAL.PREDICTIONS)).name
        weights = {"file": cfg.EVAL.PREDICTIONS, "checkpoint": "predictions", "method": name}
        return Candidate(None, weights, evaluator)
    if cfg.EVAL.VISUALIZE:
        raise UserError(
            f"--visualize_feature: shows what networks of ours compute, not {cfg.RUN.SNAPSHOT}; leave it out"
        )
    graph = open_graph(cfg, device)
    logger.info("opened %s", graph.describe())
    sources, method = graph.metadata.get("source", ""), graph.metadata.get("method") or Path(cfg.RUN.SNAPSHOT).stem
    weights = {"file": cfg.RUN.SNAPSHOT, "checkpoint": "graph", "method": method}
    weights |= {"source": sources, "network": graph.describe(), "normalisation": graph.normalisation}
    return Candidate(graph, weights, replace(evaluator, normalise=graph.normalise), sources.split())


def load_network(cfg: Config, content: dict[str, Any]) -> tuple[Segmentor, Config, dict[str, Any]]:
    """Return what `inference.load_network` does, and what the report says about the weights."""
    network, saved = inference.load_network(cfg, content)
    weights: dict[str, Any] = {"file": cfg.RUN.SNAPSHOT}
    if checkpoint.is_ours(content):
        weights |= {"checkpoint": content["kind"], **describe_checkpoint(network, saved, content)}
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


def keep_other_scores(folder: Path, *, of: set[str]) -> None:
    """Raise `UserError` where a folder holds scores on other domains than those that are evaluated."""
    try:
        rows = json.loads((folder / "scores.json").read_bytes())["domains"]
        others = sorted({row["domain"] for row in rows} - of)
    except (OSError, ValueError, KeyError, TypeError):  # none, or none of ours
        return
    if others:
        raise UserError(f"{folder}: holds scores on {first_few(others)}, which these replace; name another with --out")


def result_folder(cfg: Config) -> Path:
    """Return --out, by default a folder beside the weight file or the predictions named after them and the split."""
    if cfg.EVAL.OUT:
        return Path(cfg.EVAL.OUT)
    if cfg.EVAL.PREDICTIONS:
        predictions = Path(os.path.realpath(cfg.EVAL.PREDICTIONS))
        return predictions.with_name(f"scores_{predictions.name}_{cfg.DATASET.SPLIT}")
    weights = cfg.RUN.SNAPSHOT
    name = Path(weights).name.removesuffix(".pth")  # last.onnx and net_v1.2 are others than last.pth and net_v1.3
    return beside(weights, f"scores_{name}_{cfg.DATASET.SPLIT}")


if __name__ == "__main__":
    run_entry_point(main)
