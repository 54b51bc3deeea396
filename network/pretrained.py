"""ImageNet weights for a backbone: torchvision's by a verified download, or theirs and MIT CSAIL's from a file."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from network.backbone import Backbone
from network.legacy import unwrap_state
from network.resnet import ResNet
from network.segmentor import Segmentor
from utils import checkpoint, distributed
from utils.errors import UserError

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
    if source != "torchvision" and not Path(source).is_file():
        raise UserError(f"--pretrained {source}: there is no such file; {_way_out(backbone)}")
    state = _download(backbone) if source == "torchvision" else unwrap_state(checkpoint.read(source))
    origin = f"--pretrained {source}"
    checkpoint.load_strictly(backbone, _to_backbone(state, backbone, origin=origin), path=origin)
    log.info("backbone: ImageNet weights from %s", source)


def _weights_url(backbone: Backbone) -> str:
    import torchvision.models  # slow to import

    if backbone.spec.weights is None:
        raise UserError(_stem_sentence(backbone, "--pretrained torchvision"))
    return getattr(torchvision.models, backbone.spec.weights).IMAGENET1K_V1.url


def _stem_sentence(backbone: Backbone, origin: str) -> str:
    convs, deep = ("one 7x7 convolution", "three 3x3 convolutions"), _has_deep_stem(backbone)
    return (
        f"{origin}: these weights have a stem of {convs[not deep]}, but {backbone.spec.title} has {convs[deep]}; "
        f"{_way_out(backbone)}"
    )


def _way_out(backbone: Backbone) -> str:
    file, other = "torchvision's weights", ""
    if _has_deep_stem(backbone):
        file = "MIT CSAIL's resnet101-imagenet.pth"
        other = " (or take --backbone resnet101 in place of --arch, which has torchvision's)"
    return f"give {file} for {backbone.spec.title} by --pretrained FILE{other}, or use --pretrained none"


def _has_deep_stem(backbone: Backbone) -> bool:
    return isinstance(backbone, ResNet) and len(backbone.spec.stem) == 3


def _download(backbone: Backbone) -> dict[str, Any]:
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


def _to_backbone(state: Mapping[str, Any], backbone: Backbone, *, origin: str) -> dict[str, Tensor]:
    """Rename a classifier's weights to the backbone's names; the classifier and replaced norms are left out."""
    first = state.get("conv1.weight")
    if isinstance(first, Tensor) and isinstance(backbone, ResNet) and first.shape[-1] != backbone.spec.stem[0][0]:
        raise UserError(_stem_sentence(backbone, origin))
    wanted, replaced, affine = backbone.state_dict(), backbone.replaced, (".weight", ".bias")
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(("fc.", "classifier.")):
            continue
        ours = backbone.torchvision_name(name)
        # Parity: an affine site in a ResNet's stem takes the weight and bias of the batch norm that it replaced.
        if ours.startswith(replaced) and (ours not in wanted or not ours.endswith(affine)):
            continue
        converted[ours] = value
    # What a file cannot have keeps its values: style sites behind a stage, all but the affine part of one in the stem.
    own = [name for name in wanted if ".site." in name or (name.startswith(replaced) and not name.endswith(affine))]
    return converted | {name: wanted[name] for name in own}
