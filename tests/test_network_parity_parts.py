"""Parts of the network and of its losses against the figures of the original implementation, each alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet

from loss import build_criterion, covariance, whitening_loss
from network.backbones import residual_sum
from network.diia import TripleAggregation
from network.layout import coarse_layout
from network.style import SITE_KINDS, build_site
from tests import reference
from tests.reference import gap
from tests.street_data import make_cfg

DIMS = (64, 256, 512)
OUTPUT, LOSS = 3e-5, 1e-5


def test_masks_of_two_trials(golden: Path) -> None:
    wanted = np.load(golden / "isw.npz")
    network = reference.small_network("isw")
    criterion = build_criterion(make_cfg(METHOD="isw"), method=network.method, style_channels=DIMS)
    whitening: Any = criterion.whitening
    for trial in (0, 1):
        whitening.intersect_masks(reference.trial_masks(trial))
        for width, mask, count in zip(DIMS, whitening.masks, whitening.num_sensitive(), strict=True):
            stored = np.unpackbits(wanted[f"mask_t{trial + 1}_{width}"], count=width * width).reshape(width, width)
            np.testing.assert_array_equal(mask.numpy(), stored)
            assert count == wanted[f"num_sensitive_t{trial + 1}_{width}"]


def test_number_of_sensitive_covariances_is_carried() -> None:
    first, second = reference.trial_masks(0), reference.trial_masks(1)
    counts = [int((a & b).sum()) for a, b in zip(first, second, strict=True)]
    assert counts == reference.carried()["diia_isw"]["train_a"]["num_sensitive"]


def test_covariances_and_whitening_losses(golden: Path) -> None:
    wanted = np.load(golden / "isw.npz")
    for width, height, length in ((64, 12, 20), (256, 12, 20), (512, 6, 10)):
        values = reference.stream(f"fmap/{width}").standard_normal((2, width, height, length)).astype(np.float32)
        values[:, 1::2] += values[:, ::2]
        maps = F.instance_norm(torch.from_numpy(values))
        thin = 1 if width == 64 else 4
        assert gap(covariance(maps)[:, ::thin, ::thin], wanted[f"cov_{width}"]) < OUTPUT
        mask = np.unpackbits(wanted[f"mask_t2_{width}"], count=width * width).reshape(width, width)
        found = whitening_loss(maps, mask=torch.from_numpy(mask).bool())
        assert found.item() == pytest.approx(wanted[f"wtloss_{width}"].item(), rel=LOSS)


LOGITS = {"wide": (2, 48, 64, 2.0), "small": (2, 48, 64, 0.3), "single": (1, 33, 47, 0.5), "tiny": (2, 3, 3, 0.3)}


@pytest.mark.parametrize("tag", LOGITS)
def test_layouts(tag: str, golden: Path) -> None:
    batch, height, width, scale = LOGITS[tag]
    logits = scale * reference.stream(f"logits/{tag}").standard_normal((batch, 19, height, width))
    if tag == "small":
        logits[:, [5, 7]] = -9
    layout = coarse_layout(torch.from_numpy(logits.astype(np.float32)))
    np.testing.assert_array_equal(layout.unsqueeze(1).numpy(), np.load(golden / "parts.npz")[f"layout_{tag}"])


def test_layout_of_probabilities(golden: Path) -> None:
    logits = 3 * reference.stream("logits/prob").standard_normal((2, 19, 24, 32))
    wanted = np.load(golden / "parts.npz")["layout_prob"]
    layout = coarse_layout(torch.from_numpy(logits.astype(np.float32)), confidence="softmax")
    assert (layout.unsqueeze(1).numpy() != wanted).mean() < 2e-3


def test_attention_alone(golden: Path) -> None:
    tiam = TripleAggregation(2048)
    originals = {
        f"{part}.{leaf}": f"{part}_conv.{leaf}"
        for part in ("query", "key", "value", "up")
        for leaf in ("weight", "bias")
    }
    state = tiam.state_dict()
    originals["gamma"] = "gamma"
    tiam.load_state_dict({ours: reference.fill(name, state[ours].shape) for ours, name in originals.items()})
    shapes = {"x": (1.0, 2048), "struct": (200.0, 256), "depth": (1.0, 256)}
    maps = [
        torch.from_numpy((scale * reference.stream(f"pam/{name}").standard_normal((2, width, 6, 9))).astype(np.float32))
        for name, (scale, width) in shapes.items()
    ]
    with torch.no_grad():
        assert gap(tiam(*maps), np.load(golden / "parts.npz")["pam"]) < OUTPUT


@pytest.mark.parametrize(
    ("name", "kind", "channels", "width"),
    [("bottleneck", resnet.Bottleneck, 64, 16), ("basic", resnet.BasicBlock, 32, 32)],
)
@pytest.mark.parametrize("code", range(5))
def test_block_with_a_style_site(
    code: int, name: str, kind: Callable[..., Any], channels: int, width: int, golden: Path
) -> None:
    wanted, block = np.load(golden / "parts.npz"), kind(channels, width)
    site: Any = build_site(channels, kind=SITE_KINDS[code]) if code else torch.nn.Identity()
    for module, prefix in ((block, ""), (site, "instance_norm_layer.")):
        state = module.state_dict()
        fills = {key: reference.fill(f"{name}.iw{code}.{prefix}{key}", value.shape) for key, value in state.items()}
        module.load_state_dict(fills)
    maps = reference.stream(f"block/{name}").standard_normal((2, channels, 10, 14)).astype(np.float32)
    with torch.no_grad():
        captured = site(residual_sum(block.eval(), torch.from_numpy(maps)))
        assert gap(captured.relu(), wanted[f"{name}_iw{code}"]) < OUTPUT
    assert (SITE_KINDS.get(code) == "whiten") == bool(wanted[f"{name}_iw{code}_nw"]), "captured"
    if wanted[f"{name}_iw{code}_nw"]:
        assert gap(captured, wanted[f"{name}_iw{code}_w"]) < OUTPUT
