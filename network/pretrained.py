"""ImageNet weights for a backbone: torchvision's by a verified download, or theirs and MIT CSAIL's from a file."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any

import torch
from torch import Tensor, nn

from network.resnet import ResNet
from network.segmentor import Segmentor
from utils import checkpoint, distributed
from utils.errors import UserError
from utils.legacy import convert_backbone_name, unwrap_state

log = logging.getLogger(__name__)


def load_pretrained(network: Segmentor, source: str) -> None:
    """Fill the backbone with ImageNet weights.

    Args:
        network: its backbone is changed in place.
        source: `none`, `torchvision` (downloaded once, checksum verified) or a file: torchvision's names, or those
            of MIT CSAIL's ResNets with three stem convolutions.

    Raises:
        UserError: no download, an unreadable file, or names and shapes that do not fit; everything is listed.
    """
    if source == "none":
        log.info("backbone: random weights (--pretrained none)")
        return
    backbone = network.backbone
    state = _download(backbone) if source == "torchvision" else unwrap_state(checkpoint.read(source))
    origin = f"--pretrained {source}"
    renamed = _to_backbone(state, backbone, origin=origin)
    _load_strictly(backbone, renamed, origin=origin, may_miss=("num_batches_tracked",))
    log.info("backbone: ImageNet weights from %s", source)


def _weights_url(backbone: ResNet) -> str:
    from torchvision.models import ResNet50_Weights  # slow to import

    urls = {"resnet50": ResNet50_Weights.IMAGENET1K_V1.url}
    if backbone.spec.name not in urls:
        raise UserError(_stem_sentence(backbone, "--pretrained torchvision"))
    return urls[backbone.spec.name]


def _stem_sentence(backbone: ResNet, origin: str) -> str:
    convs = {1: "one 7x7 convolution", 3: "three 3x3 convolutions"}
    ours, other = convs[len(backbone.spec.stem)], convs[4 - len(backbone.spec.stem)]
    files = {1: "torchvision's names", 3: "MIT CSAIL's deep-stem names"}[len(backbone.spec.stem)]
    return (
        f"{origin}: these weights have a stem of {other}, but {backbone.spec.title} here has {ours}; "
        f"give a file with {files} by --pretrained FILE, or use --pretrained none"
    )


def _download(backbone: ResNet) -> dict[str, Any]:
    url = _weights_url(backbone)
    for turn in (True, False):  # the first process fills the cache, the others read it
        if distributed.is_main() == turn:
            try:
                state = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
            except (OSError, RuntimeError, HTTPException, pickle.UnpicklingError) as error:
                raise UserError(
                    f"--pretrained torchvision: {url} could not be downloaded ({error}); "
                    "give a local copy by --pretrained FILE, or use --pretrained none"
                ) from error
        if turn:
            distributed.barrier()
    return unwrap_state(state)


def _to_backbone(state: Mapping[str, Any], backbone: ResNet, *, origin: str) -> dict[str, Tensor]:
    """Rename a classifier's weights to the backbone's names; the classifier and replaced norms are left out."""
    first = state.get("conv1.weight")
    if isinstance(first, Tensor) and first.shape[-1] != backbone.spec.stem[0][0]:
        raise UserError(_stem_sentence(backbone, origin))
    wanted = backbone.state_dict()
    replaced = tuple(f"stem.norms.{int(site[4:]) - 1}." for site in backbone.sites if site.startswith("stem"))
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith("fc."):
            continue
        # conv1, bn1, conv2 ... of the stem are layer0.0, layer0.1, layer0.3 ... in the names of the original
        stem = re.fullmatch(r"(conv|bn)([123])\.(\w+)", name)
        if stem:
            index = 3 * (int(stem[2]) - 1) + (stem[1] == "bn")
            name = f"layer0.{index}.{stem[3]}"
        ours = convert_backbone_name(name) or name
        # Parity: an affine instance norm in the stem takes the weight and bias of the batch norm that it replaced.
        if ours.startswith(replaced) and ours not in wanted:
            continue
        converted[ours] = value
    # Style sites behind a stage have no counterpart in the file: they keep their values.
    return converted | {name: value for name, value in wanted.items() if ".site." in name}


def _load_strictly(module: nn.Module, state: Mapping[str, Any], *, origin: str, may_miss: Sequence[str] = ()) -> None:
    """Load weights by name; every missing, unexpected or differently shaped entry is listed in the error.

    Args:
        module: changed in place, and only if everything fits.
        state: name -> tensor.
        origin: file or flag to name in the error.
        may_miss: last parts of names that may be absent and then keep their value.

    Raises:
        UserError: names or shapes differ.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state and name.rsplit(".", 1)[-1] not in may_miss]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {_shape(state[name])}, must be {_shape(value)}"
        for name, value in own.items()
        if name in state and _shape(state[name]) != _shape(value)
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    problems = [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in found if names]
    if problems:
        raise UserError(f"{origin}: the weights do not fit the network; {'; '.join(problems)}")
    module.load_state_dict({**own, **state})


def _shape(value: Any) -> str:
    return "x".join(map(str, value.shape)) or "a number" if isinstance(value, Tensor) else type(value).__name__
