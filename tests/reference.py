"""The rule that the reference values were made by: weights and inputs rebuilt from names."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from loss.whitening import MaskStatistics
from network import BACKBONES, Architecture, Segmentor, assemble, resolve_method
from network.weights import convert_published
from tests.street_data import make_cfg

R50 = "network.deepv3.DeepR50V3PlusD"
R101 = "network.deepv3.DeepR101V3PlusD"
# RobustNet's networks: key -> ending of network.deepv3.Deep, method, codes where they are not the method's.
ROBUSTNET: dict[str, tuple[str, str, tuple[int, ...] | None]] = {
    **{f"r50_{method}": ("R50V3PlusD", method, None) for method in ("base", "ibn", "is", "iw", "irw", "isw", "sw")},
    "r50os8_base": ("R50V3PlusD_OS8", "base", None),
    "r101_base": ("R101V3PlusD", "base", None),
    "r101os8_base": ("R101V3PlusD_OS8", "base", None),
    "r101os8_ibn": ("R101V3PlusD_OS8", "ibn", (4, 4, 0, 4, 4, 0, 0)),
    "r101os8_isw": ("R101V3PlusD_OS8", "isw", (2, 2, 0, 2, 2, 0, 0)),
    "r101os8_isw_cty": ("R101V3PlusD_OS8", "isw", None),
    "r18_base": ("R18V3PlusD", "base", None),
    "r18_isw": ("R18V3PlusD", "isw", None),
    **{f"mobile_{method}": ("MobileNetV3PlusD", method, None) for method in ("base", "ibn", "isw")},
    "mobileos8_base": ("MobileNetV3PlusD_OS8", "base", None),
    **{f"shuffle_{method}": ("ShuffleNetV3PlusD", method, None) for method in ("base", "ibn", "isw")},
    "shuffle_isw_fixed": ("ShuffleNetV3PlusD", "isw", None),
    "shuffleos8_base": ("ShuffleNetV3PlusD_OS8", "base", None),
    "shuffleos32_base": ("ShuffleNetV3PlusD_OS32", "base", None),
}
# DIIA's networks: key -> --arch, codes.
DIIA = {
    "r50_isw": (R50, (0, 0, 2, 2, 2, 0, 0)),
    "r50_base": (R50, (0, 0, 0, 0, 0, 0, 0)),
    "r50_ibn": (R50, (0, 0, 4, 4, 4, 0, 0)),
    "r101_isw": (R101, (2, 2, 2, 2, 2, 0, 0)),
}
VALUES = Path(__file__).with_name("reference_values.json")


def robustnet(key: str) -> Config:
    """The options of one of RobustNet's networks."""
    arch, method, codes = ROBUSTNET[key]
    return make_cfg(METHOD=method, WT_LAYER=codes, ARCH=f"network.deepv3.Deep{arch}")


def stream(name: str) -> np.random.RandomState:
    """Random numbers that depend on a name only."""
    return np.random.RandomState(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little"))


def fill(name: str, shape: Iterable[int]) -> Tensor:
    """The value of the entry `name` (a name of the original network)."""
    shape, draws, leaf = tuple(shape), stream(name), name.split(".")[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if name == "gamma":
        return torch.full(shape, 0.5)
    if leaf in ("sw_mean_weight", "sw_var_weight"):
        values = 0.5 * draws.standard_normal(shape)
    elif leaf == "running_cov":
        groups, width, _ = shape
        factors = draws.standard_normal((groups, width, 2 * width))
        values = 0.5 * np.eye(width) + 0.5 * factors @ factors.transpose(0, 2, 1) / (2 * width)
    elif leaf == "running_var":
        values = draws.uniform(0.5, 1.5, shape)
    elif leaf in ("running_mean", "bias"):
        values = 0.1 * draws.standard_normal(shape)
    elif len(shape) == 1:
        values = draws.uniform(*((0.1, 0.2) if name.endswith("bn3.weight") else (0.8, 1.2)), shape)
    else:
        spread = {"query_conv": 3e-4, "key_conv": 5e-3}.get(name.split(".")[0], (2 / np.prod(shape[1:])) ** 0.5)
        values = spread * draws.standard_normal(shape)
        if name.startswith("final2"):
            values = 0.4 * (values - values.mean(1, keepdims=True))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def fill_network(network: Segmentor, original_names: Iterable[str]) -> dict[str, str]:
    """Load the rule's weights strictly and switch dropout off; returns our name -> the original's."""
    state = network.state_dict()
    names = convert_published({name: name for name in original_names}, network, path="the original")
    assert names.keys() == state.keys(), names.keys() ^ state.keys()
    network.load_state_dict({ours: fill(original, state[ours].shape) for ours, original in names.items()})
    for layer in network.modules():
        if isinstance(layer, nn.Dropout2d):
            layer.p = 0.0
    return names


def inputs(tag: str, batch: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 3, H, W), labels (B, H, W) with 255, edges (B, H, W) 0..255."""
    rows, columns = -(-height // 16), -(-width // 16)

    def tiles(values: np.ndarray) -> np.ndarray:
        return values.repeat(16, axis=-2).repeat(16, axis=-1)[..., :height, :width]

    draws = stream(f"input/{tag}")
    images = 0.8 * tiles(draws.standard_normal((batch, 3, rows, columns)))
    images = images + 0.5 * draws.standard_normal((batch, 3, height, width))
    labels = stream(f"gts/{tag}").randint(0, 21, (batch, rows, columns))
    edges = np.floor(stream(f"boundary/{tag}").exponential(20.0, (batch, height, width))).clip(max=255)
    return (
        torch.from_numpy(images.astype(np.float32)),
        torch.from_numpy(tiles(np.where(labels > 18, 255, labels)).astype(np.int64)),
        torch.from_numpy(edges.astype(np.float32)),
    )


def variance(tag: str, channels: int) -> Tensor:
    """A heavy-tailed variance matrix, zero on and below the diagonal."""
    values = np.exp(stream(f"variance/{tag}/{channels}").standard_normal((channels, channels)) - 5)
    return torch.from_numpy(np.triu(values, 1).astype(np.float32))


def trial_masks(trial: int, channels: Iterable[int] = (64, 256, 512), *, clusters: int = 3) -> list[Tensor]:
    """The masks of one trial over two images with the rule's variances."""
    channels = list(channels)
    statistics = MaskStatistics(channels, clusters=clusters)
    *sums, count = statistics.tensors()
    for image in (0, 1):
        for total, width in zip(sums, channels, strict=True):
            total += variance(f"t{trial}_r{image}", width)
        count += 1
    return statistics.masks()


def published(test_data: Path, key: str, path: Path) -> list[str]:
    """Write one of the original's checkpoints, every entry the rule's; returns the flags that name its network."""
    if key.startswith("rn/"):
        ending, method, codes = ROBUSTNET[key.removeprefix("rn/")]
        arch, codes = f"network.deepv3.Deep{ending}", codes or resolve_method(method).codes
    else:
        arch, codes = DIIA[key]
    state = {f"module.{name}": fill(name, shape) for name, shape in shapes(test_data, key).items()}
    content = {"state_dict": state, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 9}, "epoch": 103}
    torch.save(content | {"mean_iu": np.float64(0.3), "command": "python train.py"}, path)
    return ["--arch", arch, "--wt_layer", *map(str, codes)]


def shapes(test_data: Path, key: str) -> Mapping[str, list[int]]:
    """Names and shapes of one configuration of the original; keys of RobustNet's networks start with `rn/`."""
    file = "robustnet/state_dict_shapes_rn.json" if key.startswith("rn/") else "state_dict_shapes.json"
    return json.loads((test_data / "golden" / file).read_text())[key.removeprefix("rn/")]


def carried() -> dict[str, Any]:
    """The reference values that live in the repository."""
    return json.loads(VALUES.read_text())


def gap(found: Any, wanted: Any) -> float:
    """Largest difference, relative to the largest wanted value."""
    found, wanted = np.asarray(found, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def small_network(method: str = "diia", *, codes: Iterable[int] | None = None, deep_stem: bool = False) -> Any:
    """A network of the given method with one block per stage: quick to build and run."""
    row = resolve_method(method, None if codes is None else list(codes))
    spec: Any = BACKBONES["resnet101_deep" if deep_stem else "resnet50"]
    return assemble(Architecture(dataclasses.replace(spec, blocks=(1, 1, 1, 1)), 16), method=row)


def sample(batch: int = 2, height: int = 48, width: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Small inputs: images, labels, edges."""
    return inputs("small", batch, height, width)
