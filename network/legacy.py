"""Weights published by RobustNet or DIIA: their names turned into ours, with every unknown name listed."""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from utils import checkpoint
from utils.errors import UserError

T = TypeVar("T")
log = logging.getLogger(__name__)

_NORM_LEAF = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_SITE_LEAF = r"(weight|bias|sw_mean_weight|sw_var_weight|running_mean|running_cov)"
_BACKBONE_RULES: tuple[tuple[str, str], ...] = (
    (r"layer([1-4])\.(\d+)\.conv([123])\.weight", r"stage\1.blocks.\2.conv\3.weight"),
    (rf"layer([1-4])\.(\d+)\.bn([123])\.{_NORM_LEAF}", r"stage\1.blocks.\2.norm\3.\4"),
    (r"layer([1-4])\.(\d+)\.downsample\.0\.weight", r"stage\1.blocks.\2.shortcut.conv.weight"),
    (rf"layer([1-4])\.(\d+)\.downsample\.1\.{_NORM_LEAF}", r"stage\1.blocks.\2.shortcut.norm.\3"),
    (rf"layer([1-4])\.\d+\.instance_norm_layer\.{_SITE_LEAF}", r"stage\1.site.\2"),
    # MobileNetV2 and ShuffleNetV2: torchvision's names inside a block
    (r"layer0\.([01])\.((?:\d|conv)\..+)", r"stem.blocks.\1.\2"),
    (r"layer([1-4])\.(\d+)\.((?:\d|conv|branch[12])\..+)", r"stage\1.blocks.\2.\3"),
    (rf"layer0\.(?:1\.)?instance_norm_layer\.{_SITE_LEAF}", r"stem.site.\1"),
    (rf"layer4\.instance_norm_layer\.{_SITE_LEAF}", r"stage4.site.\1"),
    (r"layer0\.layer\.0\.0\.weight", "stem.conv.weight"),
    (rf"layer0\.layer\.0\.1\.{_NORM_LEAF}", r"stem.norm.\1"),
    (r"layer4\.layer\.0\.weight", "stage4.conv.weight"),
    (rf"layer4\.layer\.1\.{_NORM_LEAF}", r"stage4.norm.\1"),
)
# Parameters that the original stores but never uses, and the entry beside which they are so: ShuffleNetV2's batch norms
# that a style site bypasses, a site on MobileNetV2's last convolution.
_DEAD: tuple[tuple[str, str], ...] = (
    (r"layer0\.layer\.0\.1\..+", "layer0.instance_norm_layer.weight"),
    (r"layer4\.layer\.1\..+", "layer4.instance_norm_layer.weight"),
    (r"layer4\.0\.instance_norm_layer\..+", "layer4.0.0.weight"),
)
_STEM_RULE = re.compile(r"layer0\.([0-8])\.(\w+)")

# Beginnings of the original's names -> ours. A head's parts are shared by both networks, its place is not.
_PARTS: tuple[tuple[str, str], ...] = (
    (r"aspp{s}\.features\.(\d)\.0\.", r"aspp.branches.\1.conv."),
    (r"aspp{s}\.features\.(\d)\.1\.", r"aspp.branches.\1.norm."),
    (r"aspp{s}\.img_conv\.0\.", r"aspp.pool.conv."),
    (r"aspp{s}\.img_conv\.1\.", r"aspp.pool.norm."),
    (r"bot_aspp{s}\.0\.", r"reduce.conv."),
    (r"bot_aspp{s}\.1\.", r"reduce.norm."),
    (r"bot_fine{s}\.0\.", r"skip.conv."),
    (r"bot_fine{s}\.1\.", r"skip.norm."),
    (r"final1{s}\.0\.", r"refine.0.conv."),
    (r"final1{s}\.1\.", r"refine.0.norm."),
    (r"final1{s}\.3\.", r"refine.1.conv."),
    (r"final1{s}\.4\.", r"refine.1.norm."),
    (r"final2{s}\.0\.", r"classify."),
)
_HEADS = {"plain": {"": "head"}, "diia": {"": "coarse", "_sg": "fused", "_struct": "layout", "_boundary": "edge"}}
_FIXED: tuple[tuple[str, str], ...] = (
    (r"dsn\.0\.", "aux.reduce.conv."),
    (r"dsn\.1\.", "aux.reduce.norm."),
    (r"dsn\.4\.", "aux.classify."),
)
_DIIA_FIXED: tuple[tuple[str, str], ...] = (
    (r"encoder_struct\.0\.", "layout.encoder.0.conv."),
    (r"encoder_struct\.1\.", "layout.encoder.0.norm."),
    (r"encoder_struct\.4\.", "layout.encoder.2.conv."),
    (r"encoder_struct\.5\.", "layout.encoder.2.norm."),
    (r"encoder_struct\.7\.", "layout.encoder.3."),
    (r"encoder_boundary\.0\.", "edge.encoder.0.conv."),
    (r"encoder_boundary\.1\.", "edge.encoder.0.norm."),
    (r"encoder_boundary\.3\.", "edge.encoder.1."),
    (r"decoder_boundary\.0\.", "edge.decoder.0.conv."),
    (r"decoder_boundary\.1\.", "edge.decoder.0.norm."),
    (r"decoder_boundary\.3\.", "edge.decoder.1."),
    (r"(query|key|value|up)_conv\.", r"aggregate.\1."),
    (r"gamma$", "aggregate.gamma"),
)
_DIIA_ONLY = re.compile(r"(gamma$|(query|key|value|up)_conv\.|\w+?(_sg|_struct|_boundary)\.)")


def _rules(head: str) -> list[tuple[re.Pattern[str], str]]:
    rules = [*_FIXED, *(_DIIA_FIXED if head == "diia" else ())]
    for suffix, place in _HEADS[head].items():
        rules += [(pattern.replace("{s}", suffix), f"{place}.{ours}") for pattern, ours in _PARTS]
    return [(re.compile(pattern), ours) for pattern, ours in rules]


def unwrap_state(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names and tensors of a loaded file: out of its `state_dict` (or `model`) entry, without `module.`."""
    for key in ("state_dict", "model"):
        if isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def detect_head(state: Mapping[str, Any]) -> str:
    """Tell from the original's names whether a file holds DIIA's heads (`diia`) or the ordinary one (`plain`)."""
    return "diia" if any(_DIIA_ONLY.match(name.removeprefix("module.")) for name in state) else "plain"


def convert_backbone_name(name: str) -> str | None:
    """Turn a backbone's original name (`layer1.0.bn1.bias`) into ours (`stage1.blocks.0.norm1.bias`), else None."""
    stem = _STEM_RULE.fullmatch(name)
    if stem:
        index, part = divmod(int(stem[1]), 3)
        return None if part == 2 else f"stem.{('convs', 'norms')[part]}.{index}.{stem[2]}"
    for pattern, ours in _BACKBONE_RULES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(ours)
    return None


def convert_state_dict(
    state: Mapping[str, T], *, wanted: Container[str] | None = None, origin: str = "weights"
) -> dict[str, T]:
    """Turn RobustNet's or DIIA's names (with or without `module.`) into ours; the values stay untouched.

    Args:
        state: original name -> value.
        wanted: names of the network that is to be filled. What the original stores but never uses is left out, and
            named in the log; only a batch norm beside a site without parameters cannot be told without these names
            (the network leaves it out when it loads).
        origin: file to name in messages.

    Raises:
        UserError: names that the original does not have, all of them listed.
    """
    rules = _rules(detect_head(state))
    names = {name.removeprefix("module.") for name in state}
    converted: dict[str, T] = {}
    unknown: list[str] = []
    dead: list[str] = []
    for full_name, value in state.items():
        name = full_name.removeprefix("module.")
        ours = convert_backbone_name(name)
        if ours is not None:
            beside = next((beside for pattern, beside in _DEAD if re.fullmatch(pattern, name)), None)
            if beside and (beside in names if wanted is None else f"backbone.{ours}" not in wanted):
                dead.append(name)
            else:
                converted[f"backbone.{ours}"] = value
            continue
        match, target = next(((m, ours) for pattern, ours in rules if (m := pattern.match(name))), (None, ""))
        if match is None:
            unknown.append(full_name)
        else:
            converted[match.expand(target) + name[match.end() :]] = value
    if unknown:
        raise UserError(f"{origin}: {len(unknown)} names are not those of RobustNet or DIIA: {', '.join(unknown)}")
    if dead:
        log.info("%s: %d entries are never used by the original and left out: %s", origin, len(dead), ", ".join(dead))
    return converted


def load_weights(network: nn.Module, content: dict[str, Any], *, path: str | Path) -> None:
    """Load a read weight file strictly: our checkpoint, or one that RobustNet or DIIA published (converted by name).

    Of a checkpoint with averaged weights (--ema_decay) these are taken: they are what was scored.

    Raises:
        UserError: entries are missing, unexpected or of another shape; every one is listed.
    """
    if checkpoint.is_ours(content):
        state = content.get("average") or content["network"]
    else:
        state = convert_state_dict(unwrap_state(content), wanted=network.state_dict(), origin=str(path))
    checkpoint.load_strictly(network, state, path=path)
