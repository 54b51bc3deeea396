"""From a file into a whole network: what RobustNet and DIIA published, and our own checkpoints."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from config import Config
from network import ARCHITECTURES, METHODS, Architecture, build_network, method_for, resolve_method
from network.backbones import PARTS, Backbone
from network.deeplab import Segmentor
from network.methods import DEFAULT_METHOD, Head
from network.methods import PARTS as DIIA_PARTS
from utils import checkpoint
from utils.errors import UserError, first_few

log = logging.getLogger(__name__)

_WRAPPINGS = ("state_dict", "model_state_dict", "model", "module", "network", "net")  # hold all weights
_PREFIX = re.compile(r"^((module|_orig_mod)\.)+")  # of DistributedDataParallel and torch.compile, in either order


def unwrap_state(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names and tensors of a read file, out of an entry like `state_dict` and without `module.`."""
    removed = []
    while wrapping := next((key for key in _WRAPPINGS if isinstance(content.get(key), Mapping)), None):
        content = content[wrapping]
        removed.append(f"the entry {wrapping}")
    removed += sorted({f"the prefix {prefix[0]}" for name in content if (prefix := _PREFIX.match(str(name)))})
    if removed:
        log.info("weight file: the weights lie below %s", ", ".join(removed))
    return {_PREFIX.sub("", str(name)): value for name, value in content.items()}


def backbone_entries(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries below `backbone.`, without it, of a whole network; all entries where none has it."""
    inside = {name.partition(".")[2]: value for name, value in state.items() if name.startswith("backbone.")}
    if not inside:
        return dict(state)
    log.info("weight file: %d entries below backbone. are taken, %d others not", len(inside), len(state) - len(inside))
    return {_PREFIX.sub("", name): value for name, value in inside.items()}


def load_weights(network: Segmentor, content: dict[str, Any], *, path: str | Path) -> None:
    """Load a read weight file strictly: our checkpoint, or one that RobustNet or DIIA published (converted by name).

    Of a checkpoint with averaged weights (--ema_decay) these are taken: they are what was evaluated.

    Raises:
        UserError: entries are missing, unexpected or of another shape; the first of each are named.
    """
    if checkpoint.is_ours(content):
        state = own_weights(content, network)
    else:
        state = convert_published(unwrap_state(content), network, path=path)
    checkpoint.load_strictly(network, state, path=path)


def own_weights(content: dict[str, Any], network: Segmentor) -> dict[str, Any]:
    """Return the entries of a checkpoint of ours: the averaged weights (--ema_decay) where it has them."""
    content = upgrade_checkpoint(content, network)
    return content.get("average") or content["network"]


def build_published(cfg: Config, content: dict[str, Any], *, path: str) -> Segmentor:
    """Build the network that `cfg.NETWORK` and the names in a published file say together, and load the file.

    The default of --method gives way to the method that the file's head and --wt_layer stand for.

    Raises:
        UserError: the file's head contradicts --method, nothing says the style codes, or entries do not fit.
    """
    name, codes = cfg.NETWORK.METHOD, cfg.NETWORK.WT_LAYER
    content = unwrap_state(content)
    head = detect_head(content)
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
        UserError: names that the original does not have, the first of which are listed.
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
        raise UserError(
            f"{path}: {len(unknown)} names are not those of RobustNet or DIIA: {first_few(unknown)}; name one of theirs"
        )
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


# Backbones that RobustNet ("plain") and DIIA run; of their other architectures none gets through a forward pass.
_ORIGINALS = {
    "plain": ("resnet18", "resnet50", "resnet101_deep", "mobilenet_v2", "shufflenet_v2"),
    "diia": ("resnet50", "resnet101_deep"),
}


def published_arch(network: Segmentor) -> str:
    """Return the --arch under which RobustNet or DIIA has this network, or raise `UserError` where neither has it."""
    backbone, method = network.backbone, network.method
    architecture = Architecture(backbone.spec, backbone.output_stride)
    whole = (method.head != "diia" or method.parts == DIIA_PARTS) and not method.corrections and 6 not in method.codes
    names = [name for name, row in ARCHITECTURES.items() if row == architecture]
    if not names or not whole or backbone.spec.name not in _ORIGINALS.get(method.head, ()):
        raise UserError(
            f"--format published: neither RobustNet nor DIIA has the method {method.name} on {architecture}; "
            "use --format safetensors or hub"
        )
    return names[0]


def published_state(network: Segmentor) -> dict[str, Any]:
    """Return the entries of a network that `published_arch` knows, under RobustNet's or DIIA's names.

    The batch norms of ShuffleNetV2 that a site has taken the place of, which the original keeps but never uses, are new
    ones.
    """
    backbone, state = network.backbone, network.state_dict()
    assert isinstance(backbone, Backbone)
    places = {ours: theirs for theirs, ours in _head_modules(network.method.head).items() if ours}  # module -> module
    for number, part in enumerate(PARTS):
        layers = backbone.blocks[part]
        places |= {f"backbone.{layer}": f"layer{number}.{index}" for index, layer in enumerate(layers)}
        places[f"backbone.sites.{part}"] = f"layer{number}.{len(layers) - 1}.instance_norm_layer"
    if backbone.spec.name == "shufflenet_v2":
        places |= {f"backbone.conv1.{index}": f"layer0.layer.0.{index}" for index in range(2)}
        places |= {f"backbone.conv5.{index}": f"layer4.layer.{index}" for index in range(2)}
        places |= {
            f"backbone.sites.{part}": f"layer{i}.instance_norm_layer" for i, part in ((0, "stem"), (4, "stage4"))
        }
        for site, norm in (("stem", "conv1.1"), ("stage4", "conv5.1")):
            if norm in backbone.replaced:
                entries = nn.BatchNorm2d(backbone.channels[PARTS.index(site)]).state_dict()
                state |= {f"backbone.{norm}.{leaf}": value for leaf, value in entries.items()}
    else:  # in a ResNet's stem the site has the name of the batch norm
        places |= {f"backbone.{site}": places[f"backbone.{norm}"] for norm, site in backbone.replaced.items()}
    published = dict[str, Any]()
    for name, value in state.items():
        module = name.rpartition(".")[0]
        while module not in places:
            module = module.rpartition(".")[0]
        published[f"{places[module]}{name.removeprefix(module)}".removeprefix(".")] = value
    return published


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
        if part != "backbone" or not isinstance(network.backbone, Backbone):  # schema 1 had no others
            return name
        return _backbone_name(published, network.backbone) or name

    numbers = {name: number for number, (name, _) in enumerate(network.named_parameters())}
    order = dict(enumerate(numbers[name] for name in map(upgrade, content["network"]) if name in numbers))
    state = {order.get(number, number): value for number, value in content["optimizer"].get("state", {}).items()}
    parts = ("network", "average")
    renamed = {part: {upgrade(name): value for name, value in content[part].items()} for part in parts}
    return content | renamed | {"schema": checkpoint.SCHEMA, "optimizer": content["optimizer"] | {"state": state}}
