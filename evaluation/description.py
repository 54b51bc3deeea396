"""What reports, exported files and model cards say of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from config import Config
from datasets.loaders import training_split
from network import Segmentor
from transforms import build_normalisation
from utils.checkpoint import CONVERTED, EXPORTED


def method_name(network: Segmentor, cfg: Config) -> str:
    """Return the method of a run with what is added to it, as scripts/ablation.sh takes it: base+mixstyle=0.5."""
    augment = cfg.AUGMENT
    added = {
        "mixstyle": augment.MIXSTYLE,
        "advstyle": augment.ADVSTYLE,
        "fda": augment.FDA,
        "randaugment": augment.RANDAUGMENT,
        "randconv": augment.RANDCONV,
        "randconv_repeats": augment.RANDCONV_REPEATS if augment.RANDCONV_REPEATS > 1 else 0,
        "label_smoothing": cfg.LOSS.LABEL_SMOOTHING,
        "ema_decay": cfg.OPTIM.EMA_DECAY,
    }
    return "+".join([network.method.label, *(f"{name}={value:g}" for name, value in added.items() if value)])


def describe_checkpoint(network: Segmentor, cfg: Config, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the report says of the weights of a checkpoint of ours, whose content was read.

    Converted ones do not say how they were trained: step, seed and source are left out.
    """
    averaged = bool(content["average"]) or (content["kind"] == EXPORTED and cfg.OPTIM.EMA_DECAY > 0)  # which is taken
    about = describe_weights(network, cfg, progress=content["progress"], averaged=averaged)
    unknown = ("step", "seed", "source") if content["kind"] == CONVERTED else ()
    return {name: value for name, value in about.items() if name not in unknown}


def describe_weights(network: Segmentor, cfg: Config, *, progress: Mapping[str, int], averaged: bool) -> dict[str, Any]:
    """Return what the report says of weights that were trained with a config."""
    splits = [(name, training_split(cfg, name)) for name in cfg.DATASET.TRAIN]
    return {
        "step": progress["step"],
        "epoch": progress["epoch"],
        "ema": cfg.OPTIM.EMA_DECAY if averaged else None,
        "seed": cfg.RUN.SEED,
        "source": " ".join(name if split == "train" else f"{name}/{split}" for name, split in splits),
        "method": method_name(network, cfg),
        "network": network.describe(),
        "normalisation": str(build_normalisation(cfg)),
    }
