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
from datasets.labels import CLASS_NAMES, IGNORE, PALETTE
from datasets.loaders import build_evaluation_loaders
from network import METHODS, Segmentor, build_network, method_for
from transforms.recipes import build_normalisation
from utils import checkpoint, distributed, legacy, logs, pictures
from utils.errors import UserError, run_entry_point
from utils.files import make_folder
from utils.report import Report
from utils.scoring import Scorer, mixed_dtype

logger = logging.getLogger("valid")


def load_network(cfg: Any, path: str) -> tuple[Segmentor, Any, dict[str, Any]]:
    """Build the network of a weight file and load it.

    Returns:
        The network, the config that its normalisation follows, and what the report says about the weights.

    Raises:
        UserError: the file does not fit; for files without a config the head told from its names contradicts --method.
    """
    content = checkpoint.read(path)
    about: dict[str, Any] = {"file": path}
    if checkpoint.is_ours(content):
        saved = config.from_dict(content["config"])
        about.update(checkpoint=content["kind"], step=content["progress"]["step"], seed=saved.RUN.SEED)
        about.update(source=" ".join(saved.DATASET.TRAIN), epoch=content["progress"]["epoch"])
        network = build_network(saved)
        for key in ("ARCH", "METHOD"):
            asked, trained = cfg.NETWORK[key], saved.NETWORK[key]
            if asked not in (config.KEYS[f"NETWORK.{key}"].default, trained):
                logger.warning("--%s %s is not used: %s was trained with %s", key.lower(), asked, path, trained)
    else:
        saved = _config_of_published(cfg, content, path)
        about.update(checkpoint="published weights without a config", epoch=content.get("epoch"))
        network = build_network(saved)
    checkpoint.load_weights(network, content, path=path)
    about.update(method=network.method.label, network=network.describe())
    return network, saved, about


def _config_of_published(cfg: Any, content: dict[str, Any], path: str) -> Any:
    """Return the config with the method that the file's names and --wt_layer (or --method) say."""
    head: Any = legacy.detect_head(legacy.unwrap_state(content))
    asked, codes = METHODS.get(cfg.NETWORK.METHOD), cfg.NETWORK.WT_LAYER
    if asked is not None and asked.head == head:
        return cfg
    if cfg.NETWORK.METHOD != config.KEYS["NETWORK.METHOD"].default:
        raise UserError(f"{path}: has the {head} head, which --method {cfg.NETWORK.METHOD} does not")
    if codes is None:
        raise UserError(
            f"{path}: has the {head} head and no config; give --method or --wt_layer as it was trained with"
        )
    plain = config.to_dict(cfg)
    plain["NETWORK"]["METHOD"] = method_for(head=head, codes=codes).name
    return config.from_dict(plain)


def score(cfg: Any, device: torch.device) -> Report:
    """Score the weight file on every domain of --val_dataset; every process returns the same report."""
    if not cfg.RUN.SNAPSHOT:
        raise UserError("no weights to score: give --snapshot FILE")
    if not cfg.DATASET.VAL:
        raise UserError("no domain to score: give --val_dataset NAME ...")
    network, saved, about = load_network(cfg, cfg.RUN.SNAPSHOT)
    share = {"rank": distributed.rank(), "world_size": distributed.world_size(), "limit": cfg.EVAL.LIMIT}
    chosen = build_evaluation_loaders(cfg, cfg.DATASET.VAL, split=cfg.DATASET.SPLIT, **share)
    network.to(device)
    logger.info("built %s", about["network"])
    scorer = Scorer(
        normalise=build_normalisation(saved),
        device=device,
        class_names=CLASS_NAMES,
        palette=PALETTE,
        ignore=IGNORE,
        batch_size=cfg.EVAL.BATCH_SIZE,
        autocast_dtype=mixed_dtype(device, wanted=cfg.OPTIM.FP16),
        num_pictures=cfg.EVAL.PICTURES,
    )
    sources = saved.DATASET.TRAIN if "source" in about else ()  # published files do not say what they were trained on
    make_folder(result_folder(cfg))  # where nothing can be written, nothing is scored
    rows, drawn = scorer(network, chosen, split=cfg.DATASET.SPLIT, sources=sources)
    for name, picture in drawn.items():
        pictures.save_png(picture, result_folder(cfg) / f"{name}.png")
    return Report(about, rows)


def result_folder(cfg: Any) -> Path:
    """Return --out, by default a folder beside the weight file named after it and the split."""
    weights = Path(cfg.RUN.SNAPSHOT)
    return Path(cfg.EVAL.OUT) if cfg.EVAL.OUT else weights.with_name(f"scores_{weights.stem}_{cfg.DATASET.SPLIT}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program with the given arguments, by default those of the command line."""
    cfg = config.parse(argv, program="valid")
    logs.setup_logging()
    distributed.set_deterministic(wanted=cfg.RUN.DETERMINISTIC)
    device = distributed.choose_device(cfg.RUN.DEVICE, cfg.RUN.LOCAL_RANK)
    with distributed.process_group(device, cfg.RUN.DIST_URL):
        report = score(cfg, device)
        if distributed.is_main():
            report.write(result_folder(cfg))
            logs.write_line(report.to_text())
            logs.write_line(f"results: {result_folder(cfg)}")


if __name__ == "__main__":
    run_entry_point(main)
