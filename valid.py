"""Score a weight file on domains that it never saw.

python valid.py --snapshot WEIGHTS.pth --val_dataset cityscapes bdd100k synthia mapillary
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import config
from datasets.labels import CLASS_NAMES, PALETTE
from datasets.loaders import build_evaluation_loaders
from evaluation.features import FeatureDrawer
from evaluation.report import Report
from evaluation.scoring import Scorer, autocast_dtype
from loss import build_criterion, covariance
from network import Method, Segmentor, architecture_of, build_network
from network.legacy import load_weights
from network.published import build_published
from transforms.build import build_fixed_augmentation, build_normalisation
from transforms.edges import edge_target
from utils import checkpoint, distributed, logs, pictures
from utils.errors import UserError, run_entry_point
from utils.files import make_folder

logger = logging.getLogger("valid")


def load_network(cfg: Any, content: dict[str, Any]) -> tuple[Segmentor, Any, dict[str, Any]]:
    """Build the network of the weight file --snapshot, whose content was read, and load it.

    Returns:
        The network, the config that its normalisation follows, and what the report says about the weights.

    Raises:
        UserError: the file does not fit; for files without a config the head told from its names contradicts --method.
    """
    path = cfg.RUN.SNAPSHOT
    about: dict[str, Any] = {"file": path}
    if checkpoint.is_ours(content):
        saved = config.from_dict(content["config"], source=path)
        about.update(checkpoint=content["kind"], epoch=content["progress"]["epoch"])
        about.update(ema=saved.OPTIM.EMA_DECAY if content["average"] else None)
        if content["kind"] != checkpoint.CONVERTED:  # published weights do not say how they were trained
            about.update(step=content["progress"]["step"], seed=saved.RUN.SEED, source=" ".join(saved.DATASET.TRAIN))
        network = build_network(saved)
        load_weights(network, content, path=path)
        _warn_of_unused(cfg, saved, network.method, path)
    else:
        saved, network = cfg, build_published(cfg, content, path=path)
        about.update(checkpoint="published weights without a config", epoch=content.get("epoch"))
    about.update(method=network.method.label, network=network.describe())
    return network, saved, about


def _warn_of_unused(cfg: Any, saved: Any, method: Method, path: str) -> None:
    """Name the flags that ask for another network than the one that a checkpoint was trained with."""
    asked = cfg.NETWORK
    named: dict[str, tuple[str, str]] = {}  # flags -> what they ask for, what the checkpoint holds
    if any(asked[key] != _default(key) for key in ("ARCH", "BACKBONE", "OUTPUT_STRIDE")):
        named["--arch, --backbone, --output_stride"] = str(architecture_of(cfg)), str(architecture_of(saved))
    if asked.METHOD != _default("METHOD"):
        named["--method"] = asked.METHOD, method.name
    if asked.WT_LAYER is not None:
        named["--wt_layer"] = " ".join(map(str, asked.WT_LAYER)), " ".join(map(str, method.codes))
    for flags, (wanted, own) in named.items():
        if wanted != own:
            logger.warning("%s: %s is not used, %s was trained with %s", flags, wanted, path, own)


def _default(key: str) -> Any:
    return config.KEYS[f"NETWORK.{key}"].default


def feature_drawer(
    cfg: Any, network: Segmentor, saved: Any, content: dict[str, Any], device: torch.device
) -> FeatureDrawer:
    """Return what draws the inside of a loaded network; masks come from the weight file where it has them."""
    criterion = build_criterion(saved, method=network.method, style_channels=network.style_channels)
    if state := content.get("criterion"):  # published files have none
        checkpoint.load_strictly(criterion, state, path=cfg.RUN.SNAPSHOT)
    return FeatureDrawer(
        network,
        whitening=criterion.whitening,
        photometric_copy=build_fixed_augmentation(saved),
        covariance=covariance,
        edge_target=edge_target,
        device=device,
        autocast_dtype=autocast_dtype(device, wanted=cfg.OPTIM.FP16),
        palette=PALETTE,
        class_names=CLASS_NAMES,
        pixels=cfg.EVAL.ATTENTION_PIXELS,
    )


def score(cfg: Any, device: torch.device) -> Report:
    """Score the weight file on every domain of --val_dataset; every process returns the same report."""
    if not cfg.RUN.SNAPSHOT:
        raise UserError("no weights to score: give --snapshot FILE")
    if not cfg.DATASET.VAL:
        raise UserError("no domain to score: give --val_dataset NAME ...")
    content = checkpoint.read(cfg.RUN.SNAPSHOT)
    network, saved, about = load_network(cfg, content)
    share = {"rank": distributed.rank(), "world_size": distributed.world_size(), "limit": cfg.EVAL.LIMIT}
    chosen = build_evaluation_loaders(cfg, cfg.DATASET.VAL, split=cfg.DATASET.SPLIT, **share)
    network.to(device)
    logger.info("built %s", about["network"])
    scorer = Scorer(
        normalise=build_normalisation(saved),
        device=device,
        class_names=CLASS_NAMES,
        palette=PALETTE,
        batch_size=cfg.EVAL.BATCH_SIZE,
        autocast_dtype=autocast_dtype(device, wanted=cfg.OPTIM.FP16),
        num_pictures=cfg.EVAL.PICTURES,
        features=feature_drawer(cfg, network, saved, content, device) if cfg.EVAL.VISUALIZE else None,
    )
    sources = saved.DATASET.TRAIN if "source" in about else ()  # published files do not say what they were trained on
    make_folder(result_folder(cfg))  # where nothing can be written, nothing is scored
    rows, drawn = scorer(network, chosen, split=cfg.DATASET.SPLIT, sources=sources)
    for _, file, picture in drawn:
        pictures.save_png(picture, result_folder(cfg) / file)
    return Report(about, rows)


def result_folder(cfg: Any) -> Path:
    """Return --out, by default a folder beside the weight file named after it and the split."""
    weights = Path(cfg.RUN.SNAPSHOT)
    return Path(cfg.EVAL.OUT) if cfg.EVAL.OUT else weights.with_name(f"scores_{weights.stem}_{cfg.DATASET.SPLIT}")


def main(argv: Sequence[str] | None = None) -> None:
    cfg = config.parse(argv, program="valid")
    distributed.set_deterministic(wanted=cfg.RUN.DETERMINISTIC)
    device = distributed.choose_device(cfg.RUN.DEVICE, cfg.RUN.LOCAL_RANK)
    with distributed.process_group(device, cfg.RUN.DIST_URL):
        logs.setup_logging()
        report = score(cfg, device)
        if distributed.is_main():
            report.write(result_folder(cfg))
            logs.write_line(report.to_text())
            logs.write_line(f"results: {result_folder(cfg)}")


if __name__ == "__main__":
    run_entry_point(main)
