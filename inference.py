"""Weights in, labels of images out: what valid.py, predict.py and the use from Python share.

from inference import load
model = load("last.pth")
labels = model.segment("street.jpg")  # (H, W) uint8 train ids
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch

import config
from config import Config
from datasets.codec import read_photo
from evaluation.graphs import LabelsGraph, LogitsGraph, is_graph, open_graph
from evaluation.metrics import argmax_classes
from evaluation.protocols import Inference, build_inference, large_enough
from network import Method, Segmentor, architecture_of, build_network
from network.outputs import logit_parts
from network.scoring import scoring_copy
from network.tuning import merge_lora
from network.weights import build_published, load_weights
from transforms import build_normalisation
from utils import checkpoint, distributed
from utils.device import autocast_dtype
from utils.errors import UserError, reason
from utils.pictures import Array as Array

logger = logging.getLogger(__name__)
SAVE_MEMORY = "use --eval_protocol sliding (smaller --window) or half, --amp auto, or --bs_mult_val 1"
Picture: TypeAlias = Array | str | Path


def load(weights: str | Path, *, device: str | torch.device = "auto", **flags: Any) -> Model:
    """Return the model of a weight file, ready to segment.

    Args:
        weights: a checkpoint of ours, weights that RobustNet or DIIA published, or an ONNX file of any program.
        device: auto (a GPU where there is one), or any name that torch knows.
        flags: valid.py's without dashes. amp="auto" is mixed precision; eval_protocol="half" or "sliding", window,
            stride, scales, flip and average choose the views of an image; published weights need what names their
            network: arch, backbone, output_stride, method, wt_layer, and layout_confidence, mean, std and image_in
            where they are not the published ones; ONNX files with float inputs need mean and std.

    Raises:
        UserError: the file cannot be read, or does not fit the network.
    """
    words = ["--snapshot", str(weights)]
    for name, value in flags.items():
        if value is not False:
            values = value if isinstance(value, (list, tuple)) else [] if value is True else [value]
            words += [f"--{name}", *map(str, values)]
    cfg = config.parse(words, program="valid")
    if cfg.EVAL.PROTOCOL == "robustnet":
        raise UserError("--eval_protocol robustnet: is a crop of Mapillary's frames; use full, half or sliding")
    try:
        known = device in config.KEYS["RUN.DEVICE"].choices
        place = distributed.choose_device(str(device), -1) if known else torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device}: is not to be had ({reason(error)}); take auto, cpu or cuda") from error
    if is_graph(cfg.RUN.SNAPSHOT):
        graph = open_graph(cfg, place)
        return Model(graph, graph.normalise, place, None, build_inference(cfg), cfg.EVAL.BATCH_SIZE)
    built, recipe = load_network(cfg, checkpoint.read(cfg.RUN.SNAPSHOT))
    dtype = autocast_dtype(place, amp=cfg.OPTIM.AMP)
    network, normalise = scoring_copy(built.place(place)), build_normalisation(recipe)
    return Model(network, normalise, place, dtype, build_inference(cfg), cfg.EVAL.BATCH_SIZE)


@dataclass(frozen=True)
class Model:
    """A network on its device, or a graph, with the normalisation that it was trained with.

    The network is a copy for scoring, without batch norms; `load_network` returns one as it was trained.
    """

    network: Segmentor | LogitsGraph | LabelsGraph
    normalise: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device
    autocast_dtype: torch.dtype | None
    views: Inference
    batch_size: int = 1

    @overload
    def segment(self, image: Picture, *, probabilities: bool = False) -> Array: ...

    @overload
    def segment(self, image: list[Any], *, probabilities: bool = False) -> list[Array]: ...

    def segment(self, image: Picture | list[Any], *, probabilities: bool = False) -> Array | list[Array]:
        """Return the train ids of an image, (H, W) uint8, or the probabilities of its classes, (C, H, W) float32.

        Args:
            image: (H, W, 3) uint8 RGB, the path of a file, or a list of these, which gives a list; see `maps`.
            probabilities: of every class, instead of the number of the most probable one.
        """
        images, name = image if isinstance(image, list) else [image], "probabilities" if probabilities else "labels"
        results = [found[name] for found in self.maps(map(as_array, images), [name])]
        return results if isinstance(image, list) else results[0]

    @property
    def map_names(self) -> tuple[str, ...]:
        """What `maps` can give: the last two where the network has DIIA's branches; of some graphs labels alone."""
        if isinstance(self.network, LabelsGraph):
            return ("labels",)
        parts: Collection[str] = self.network.method.parts if isinstance(self.network, Segmentor) else ()
        return ("labels", "probabilities", "confidence", *(name for name in ("edge", "layout") if name in parts))

    @torch.inference_mode()
    def maps(self, images: Iterable[Array], names: Collection[str]) -> list[dict[str, Array]]:
        """Return what the network says of images (H, W, 3) uint8, by name, one dictionary per image.

        Up to `batch_size` neighbours of equal size go through the network together. DIIA takes the thresholds of its
        layout over them, so that there an image's labels depend on them a little.

        Args:
            names: of labels, (H, W) uint8 train ids; probabilities, (C, H, W) float32; confidence, (H, W) float32, the
                largest probability; edge, (H, W) float32, about 0..255; layout, (H, W) uint8, DIIA's coarse layout in
                train ids, 255 where it is not confident.
        """
        results = list[dict[str, Array]]()
        for _, neighbours in groupby(images, key=np.shape):
            while group := list(islice(neighbours, self.batch_size)):
                batch = torch.from_numpy(np.stack(group)).to(self.device)  # (B, H, W, 3)
                found = self._batch_maps(batch.permute(0, 3, 1, 2).contiguous(), names)
                results += [dict(zip(found, parts, strict=True)) for parts in zip(*found.values(), strict=True)]
        return results

    def _batch_maps(self, images: torch.Tensor, names: Collection[str]) -> dict[str, Array]:
        if missing := sorted({*names} - {*self.map_names}):
            raise UserError(f"this model gives {', '.join(self.map_names)}, not {', '.join(missing)}")
        if isinstance(self.network, LabelsGraph):
            return dict.fromkeys(names, self.network.labels(images, ()).cpu().numpy())
        dtype = self.autocast_dtype
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            normalised = self.normalise(images)
            network, branches = self.network, {"edge", "layout"} & set(names)
            with large_enough(normalised):
                output: Any = network(normalised) if branches and isinstance(network, Segmentor) else None
            single = output is not None and self.views == Inference()
            logits = output.evaluated().float() if single else self.views.logits(network, normalised)
        makers: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "labels": argmax_classes,
            "probabilities": lambda part: part.softmax(1),
            "confidence": lambda part: (part.amax(1) - part.logsumexp(1)).exp(),
        }
        found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for _, part in logit_parts(logits):
            for name in set(names) - branches:
                found[name].append(makers[name](part).cpu())
        if branches:
            found |= {name: [maps.cpu()] for name, maps in output.branches().items() if name in branches}
        return {name: torch.cat(parts, -2).numpy() for name, parts in found.items()}


def as_array(image: Picture) -> Array:
    """Return an image or the content of its file as (H, W, 3) uint8 RGB, or raise `UserError`."""
    if isinstance(image, (str, os.PathLike)):
        return read_photo(str(image))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        told = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"an image is a path or an array (H, W, 3) uint8 RGB, not {told}")
    return image


def load_network(cfg: Config, content: dict[str, Any]) -> tuple[Segmentor, Config]:
    """Build the network of the weight file --snapshot, whose content was read, and load it.

    Returns:
        The network, and the config that its normalisation follows: the file's, or `cfg` where it has none.

    Raises:
        UserError: the file does not fit; for files without a config the head told from its names contradicts --method.
    """
    path = cfg.RUN.SNAPSHOT
    if not checkpoint.is_ours(content):
        return build_published(cfg, content, path=path), cfg
    saved = config.from_dict(content["config"], source=path)
    network = build_network(saved)
    load_weights(network, content, path=path)
    if saved.NETWORK.TUNE == "lora":
        merge_lora(network)
    _warn_of_unused(cfg, saved, network.method, path)
    return network, saved


def _warn_of_unused(cfg: Config, saved: Config, method: Method, path: str) -> None:
    """Name the flags that ask for another network than the one that a checkpoint was trained with."""
    requested = cfg.NETWORK
    flags: dict[str, tuple[str, str]] = {}  # flags -> what they ask for, what the checkpoint holds
    if any(requested[key] != _default(key) for key in ("ARCH", "BACKBONE", "OUTPUT_STRIDE")):
        flags["--arch, --backbone, --output_stride"] = str(architecture_of(cfg)), str(architecture_of(saved))
    if requested.METHOD != _default("METHOD"):
        flags["--method"] = requested.METHOD, method.name
    if requested.WT_LAYER is not None:
        flags["--wt_layer"] = " ".join(map(str, requested.WT_LAYER)), " ".join(map(str, method.codes))
    if cfg.AUGMENT.IMAGE_IN or cfg.AUGMENT.MEAN or cfg.AUGMENT.STD:
        flags["--mean, --std, --image_in"] = str(build_normalisation(cfg)), str(build_normalisation(saved))
    if cfg.LOSS.LAYOUT_CONFIDENCE != config.KEYS["LOSS.LAYOUT_CONFIDENCE"].default:
        flags["--layout_confidence"] = cfg.LOSS.LAYOUT_CONFIDENCE, saved.LOSS.LAYOUT_CONFIDENCE
    for flag, (wanted, actual) in flags.items():
        if wanted != actual:
            logger.warning("%s: %s is not used, %s was trained with %s", flag, wanted, path, actual)


def _default(key: str) -> Any:
    return config.KEYS[f"NETWORK.{key}"].default
