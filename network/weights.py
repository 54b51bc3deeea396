"""Every way from a file into a network: ImageNet weights, what RobustNet and DIIA published, our own checkpoints."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import Config
from network import METHODS, build_network, method_for, resolve_method
from network.backbones import PARTS, Backbone, BackboneSpec, ResNetSpec
from network.deeplab import Segmentor
from network.methods import DEFAULT_METHOD, Head
from utils import checkpoint, distributed
from utils.errors import UserError

log = logging.getLogger(__name__)


def unwrap_state(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names and tensors of a read file: out of its `state_dict` (or `model`) entry, without `module.`."""
    content = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), content)
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def load_weights(network: Segmentor, content: dict[str, Any], *, path: str | Path) -> None:
    """Load a read weight file strictly: our checkpoint, or one that RobustNet or DIIA published (converted by name).

    Of a checkpoint with averaged weights (--ema_decay) these are taken: they are what was evaluated.

    Raises:
        UserError: entries are missing, unexpected or of another shape; every one is listed.
    """
    if checkpoint.is_ours(content):
        content = upgrade_checkpoint(content, network)
        state = content.get("average") or content["network"]
    else:
        state = convert_published(unwrap_state(content), network, path=path)
    checkpoint.load_strictly(network, state, path=path)


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
    backbone, origin = network.backbone, f"--pretrained {source}"
    assert isinstance(backbone, Backbone)
    if source != "torchvision" and not Path(source).is_file():
        raise _no_weights(origin, backbone.spec, "there is no such file")
    content = _download(_weights_url(backbone.spec)) if source == "torchvision" else checkpoint.read(source)
    checkpoint.load_strictly(backbone, _of_backbone(unwrap_state(content), backbone, origin=origin), path=origin)
    log.info("backbone: ImageNet weights from %s", source)


def _of_backbone(state: Mapping[str, Any], backbone: Backbone, *, origin: str) -> dict[str, Tensor]:
    """Leave the classifier and the batch norms out whose place a site has taken; what no file has stays as it is."""
    spec, first = backbone.spec, state.get("conv1.weight")
    if isinstance(spec, ResNetSpec) and isinstance(first, Tensor) and first.shape[-1] != spec.stem[0][0]:
        raise _no_weights(origin, spec)
    wanted = backbone.state_dict()
    loaded = {name: value for name, value in wanted.items() if name.startswith("sites.")}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        if module in backbone.replaced:
            site = f"{backbone.replaced[module]}.{leaf}"
            # Parity: an affine site in a ResNet's stem takes the weight and bias of the batch norm that it replaced.
            if isinstance(spec, ResNetSpec) and leaf in ("weight", "bias") and site in wanted:
                loaded[site] = value
        elif not name.startswith(("fc.", "classifier.")):
            loaded[name] = value
    return loaded


def _weights_url(spec: BackboneSpec) -> str:
    from torchvision.models import get_model_weights  # slow to import

    if spec.model is None:
        raise _no_weights("--pretrained torchvision", spec)
    return get_model_weights(spec.model)["IMAGENET1K_V1"].url


def _no_weights(origin: str, spec: BackboneSpec, why: str = "") -> UserError:
    """Return the error that says how to get weights, without `why` that these are for the other stem."""
    convs, deep = ("one 7x7 convolution", "three 3x3 convolutions"), spec.model is None
    why = why or f"these weights have a stem of {convs[not deep]}, but {spec.title} has {convs[deep]}"
    file, other = "torchvision's weights", ""
    if deep:
        file = "MIT CSAIL's resnet101-imagenet.pth"
        other = " (or take --backbone resnet101 in place of --arch, which has torchvision's)"
    return UserError(
        f"{origin}: {why}; give {file} for {spec.title} by --pretrained FILE{other}, or use --pretrained none"
    )


def _download(url: str) -> dict[str, Any]:
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
    return state


def build_published(cfg: Config, content: dict[str, Any], *, path: str) -> Segmentor:
    """Build the network that `cfg.NETWORK` and the names in a published file say together, and load the file.

    The default of --method gives way to the method that the file's head and --wt_layer stand for.

    Raises:
        UserError: the file's head contradicts --method, nothing says the style codes, or entries do not fit.
    """
    name, codes = cfg.NETWORK.METHOD, cfg.NETWORK.WT_LAYER
    head = detect_head(unwrap_state(content))
    if name not in METHODS or METHODS[name].head == head:
        method = resolve_method(name, codes)
    elif name != DEFAULT_METHOD:
        raise UserError(f"{path}: has the {head} head, which --method {name} does not")
    elif codes is None:
        hint = "give --method or --wt_layer as it was trained with"
        raise UserError(f"{path}: has the {head} head and no config; {hint}")
    else:
        method = method_for(head=head, codes=codes)
    network = build_network(cfg, method=method)
    load_weights(network, content, path=path)
    return network


def detect_head(state: Mapping[str, Any]) -> Head:
    """Tell from the original's names whether a file holds DIIA's heads or the ordinary one."""
    diia = re.compile(r"gamma$|(query|key|value|up)_conv\.|\w+?(_sg|_struct|_boundary)\.")
    return "diia" if any(diia.match(name) for name in state) else "plain"


def convert_published(state: Mapping[str, Any], network: Segmentor, *, path: str | Path) -> dict[str, Any]:
    """Turn RobustNet's or DIIA's names (without `module.`) into those of a network; the values stay untouched.

    What the original stores but never uses is left out, and named in the log.

    Raises:
        UserError: names that the original does not have, all of them listed.
    """
    modules, wanted = _head_modules(detect_head(state)), network.state_dict()
    converted: dict[str, Any] = {}
    unknown: list[str] = []
    unused: list[str] = []
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        ours = _backbone_name(name, network.backbone) if isinstance(network.backbone, Backbone) else None
        if ours is None and module in modules and (module or name == "gamma"):
            ours = f"{modules[module]}.{leaf}"
        if ours is None:
            unknown.append(name)
        elif _UNUSED.fullmatch(name) and ours not in wanted:
            unused.append(name)
        else:
            converted[ours] = value
    if unknown:
        raise UserError(f"{path}: {len(unknown)} names are not those of RobustNet or DIIA: {', '.join(unknown)}")
    if unused:
        log.info("%s: %d entries are never used by the original and left out: %s", path, len(unused), ", ".join(unused))
    return converted


# ShuffleNetV2's batch norms that a style site bypasses, a site on MobileNetV2's last convolution.
_UNUSED = re.compile(r"layer0\.layer\.0\.1\..+|layer4\.layer\.1\..+|layer4\.0\.instance_norm_layer\..+")


def _head_modules(head: Head) -> dict[str, str]:
    """Return the original's names of a head's layers -> ours; both heads have the same parts, at different places."""
    modules, places = {"dsn.4": "aux.classify"}, {"": "head"}
    pairs = {"dsn.0": "aux.reduce"}  # a convolution, whose batch norm has the next number -> the two
    if head == "diia":
        places = {"": "coarse", "_sg": "fused", "_struct": "layout", "_boundary": "edge"}
        modules |= {f"{part}_conv": f"aggregate.{part}" for part in ("query", "key", "value", "up")}
        modules |= {"": "aggregate", "encoder_struct.7": "layout.encoder.3"}  # gamma has no other name
        modules |= {f"{part}_boundary.3": f"edge.{part}.1" for part in ("encoder", "decoder")}
        pairs |= {f"{part}_boundary.0": f"edge.{part}.0" for part in ("encoder", "decoder")}
        pairs |= {"encoder_struct.0": "layout.encoder.0", "encoder_struct.4": "layout.encoder.2"}
    for end, place in places.items():
        modules[f"final2{end}.0"] = f"{place}.classify"
        pairs |= {f"aspp{end}.features.{i}.0": f"{place}.aspp.branches.{i}" for i in range(4)}
        pairs |= {f"aspp{end}.img_conv.0": f"{place}.aspp.pool", f"bot_aspp{end}.0": f"{place}.reduce"}
        pairs |= {f"final1{end}.{3 * i}": f"{place}.refine.{i}" for i in (0, 1)} | {f"bot_fine{end}.0": f"{place}.skip"}
    for conv, ours in pairs.items():
        sequence, _, index = conv.rpartition(".")
        modules |= {conv: f"{ours}.conv", f"{sequence}.{int(index) + 1}": f"{ours}.norm"}
    return modules


def _backbone_name(name: str, backbone: Backbone) -> str | None:
    """Turn RobustNet's name of a backbone's entry (`layer0.3.weight`) into ours (`backbone.conv2.weight`), else None.

    Its `layer0` is the stem, `layer1` to `layer4` are the stages; inside a block it has torchvision's names.
    """
    if site := re.fullmatch(r"layer([0-4])\.(?:\d+\.)?instance_norm_layer\.(.+)", name):
        return f"backbone.sites.{PARTS[int(site[1])]}.{site[2]}"
    if shuffle := re.fullmatch(r"layer(0\.layer\.0|4\.layer)\.(.+)", name):
        return f"backbone.{'conv5' if shuffle[1] == '4.layer' else 'conv1'}.{shuffle[2]}"
    block = re.fullmatch(r"(layer([0-4])\.(\d+))\.(.+)", name)
    if block is None:
        return None
    layers = backbone.blocks[PARTS[int(block[2])]]
    layer = layers[int(block[3])] if int(block[3]) < len(layers) else block[1]  # of another backbone: will not fit
    return f"backbone.{backbone.replaced.get(layer, layer)}.{block[4]}"


# Names of a backbone's entries in checkpoints of schema 1 -> RobustNet's.
_SCHEMA_1: tuple[tuple[str, str], ...] = (
    (r"^stage(\d)\.blocks\.", r"layer\1."),
    (r"^stem\.blocks\.", "layer0."),
    *((rf"^stem\.{name}s\.{i}\.", f"layer0.{3 * i + j}.") for i in range(3) for j, name in ((0, "conv"), (1, "norm"))),
    (r"\.norm([123])\.", r".bn\1."),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"^stage(\d)\.site\.", r"layer\1.instance_norm_layer."),
    (r"^stem\.site\.", "layer0.instance_norm_layer."),
    *((rf"^stem\.{name}\.", f"layer0.layer.0.{i}.") for i, name in enumerate(("conv", "norm"))),
    *((rf"^stage4\.{name}\.", f"layer4.layer.{i}.") for i, name in enumerate(("conv", "norm"))),
)


def upgrade_checkpoint(content: dict[str, Any], network: Segmentor) -> dict[str, Any]:
    """Return the content of a checkpoint in today's schema, to be loaded into `network`.

    Schema 1 had names of its own under `backbone.`, and the optimizer's state, which goes by number, in their order.
    """
    if content["schema"] == checkpoint.SCHEMA:
        return content

    def upgrade(name: str) -> str:
        part, _, published = name.partition(".")
        for old, new in _SCHEMA_1:
            published = re.sub(old, new, published)
        assert isinstance(network.backbone, Backbone), "schema 1 had no others"
        return (_backbone_name(published, network.backbone) if part == "backbone" else None) or name

    names = {name: upgrade(name) for name in content["network"]}
    numbers = {name: number for number, (name, _) in enumerate(network.named_parameters())}
    order = dict(enumerate(numbers[name] for name in names.values() if name in numbers))
    state = {order.get(number, number): value for number, value in content["optimizer"].get("state", {}).items()}
    renamed = {part: {names[name]: value for name, value in content[part].items()} for part in ("network", "average")}
    return content | renamed | {"schema": checkpoint.SCHEMA, "optimizer": content["optimizer"] | {"state": state}}
