"""What scripts.export writes besides graphs: weights under our names or the originals', and what a file tells."""

from __future__ import annotations

import argparse
import json
import shlex
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch

import config
from config import Config
from datasets.labels import CLASS_NAMES, PALETTE
from evaluation.description import describe_checkpoint
from evaluation.model_card import model_card, reports_on
from network import Segmentor
from network.weights import published_arch, published_state
from transforms.build import build_normalisation
from utils import checkpoint, version
from utils.errors import UserError
from utils.files import write


def describe(network: Segmentor, saved: Config, content: dict[str, Any], args: argparse.Namespace) -> dict[str, str]:
    """Return what a file says of itself, texts or JSON."""
    about = {"source": "", **describe_checkpoint(network, saved, content)}
    normalisation = build_normalisation(saved)
    moments = {name: json.dumps(getattr(normalisation, name)) for name in ("mean", "std")}
    if normalisation.per_image:
        moments = dict.fromkeys(moments, "of each image")
    return {
        "classes": json.dumps(CLASS_NAMES),
        "colours": json.dumps(PALETTE.tolist()),
        **{name: str(about[name]) for name in ("method", "source", "network")},
        "protocol": "native size, one scale, no flip, one image per batch",
        "input": f"{'normalised float32' if args.float else 'uint8'} RGB (N, 3, H, W)",
        "output": "logits (N, classes, H, W)" if args.logits else "train ids (N, H, W) uint8",
        "weights": "float16" if args.half else "float32",
        **moments,
        "project": f"DIIA {version()}",
    }


def halved(network: Segmentor) -> Segmentor:
    """Return a copy with weights in float16, or raise `UserError` where one of them is too large for that."""
    copy = deepcopy(network).half()
    for name, value in copy.state_dict().items():
        if not value.isfinite().all():
            raise UserError(f"--half: {name} has values above 65504, the largest of float16; leave it out")
    return copy


def published_flags(network: Segmentor, saved: Config) -> list[str]:
    """Return the flags of valid.py by which published weights are read, or raise `UserError` where nobody has any."""
    words = ["--arch", published_arch(network), "--wt_layer", *map(str, network.method.codes)]
    for key, value in (("MEAN", saved.AUGMENT.MEAN), ("STD", saved.AUGMENT.STD)):
        words += [config.KEYS[f"AUGMENT.{key}"].flag, *map(str, value)] if value else []
    words += ["--image_in"] if saved.AUGMENT.IMAGE_IN else []
    return [*words, "--layout_confidence", saved.LOSS.LAYOUT_CONFIDENCE]


def write_weights(
    path: Path,
    network: Segmentor,
    saved: Config,
    content: dict[str, Any],
    args: argparse.Namespace,
    *,
    metadata: dict[str, str],
) -> None:
    """Write the weights of a network that was read from `content`, and the texts of `describe` where there is room."""
    if args.format == "published":
        published = {f"module.{name}": value for name, value in published_state(network).items()}
        command = shlex.join(["python", "valid.py", *published_flags(network, saved)])
        about = {"epoch": content["progress"]["epoch"], "mean_iu": 0.0, "command": command}
        write(path, partial(torch.save, {"state_dict": published, **about}), what="the weights")
        return
    kind = checkpoint.CONVERTED if content["kind"] == checkpoint.CONVERTED else checkpoint.EXPORTED
    written = {**content, "kind": kind, "config": config.to_dict(saved), "network": network.state_dict()}
    if args.format == "safetensors":
        checkpoint.save_weights(path, written, metadata=metadata)
        return
    about = {"checkpoint": content["kind"], "backbone": network.backbone.spec.title}
    about |= describe_checkpoint(network, saved, content)
    same: dict[str, Any] = {
        name: about[name] for name in ("checkpoint", "step", "epoch", "seed", "method") if name in about
    }
    scores = reports_on(Path(args.weights), weights=same)
    about["weights"] = metadata["weights"]
    card = model_card(about, license_name=args.license or "unknown", scores=scores)
    checkpoint.save_folder(path, written, metadata=metadata, card=card)
