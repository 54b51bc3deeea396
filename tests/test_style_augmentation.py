"""What makes a network see other styles: each computes what its paper says, and leaves alone what it should."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from network import BACKBONES, build_network
from network.backbones import Backbone
from network.style import MixStyle, mix_style
from tests.street_data import make_cfg
from transforms.appearance import Normalisation
from transforms.build import build_appearance, build_appearance_sampler, statistics_sampler
from transforms.style_augmentation import mix_amplitudes
from utils import distributed
from utils.errors import UserError


def random_maps(batch: int = 4, channels: int = 3, size: tuple[int, int] = (6, 7), *, seed: int = 0) -> torch.Tensor:
    maps = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))
    return maps * torch.arange(1.0, batch + 1)[:, None, None, None] + torch.arange(channels)[:, None, None]


def pictures(count: int = 3, size: tuple[int, int] = (24, 31)) -> torch.Tensor:
    """Return smooth images with some noise, uint8."""
    rng = np.random.default_rng(5)
    coarse = torch.from_numpy(rng.uniform(40, 200, (count, 3, 4, 4))).float()
    images = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return (images + torch.from_numpy(rng.normal(0, 8, images.shape)).float()).round().clamp(0, 255).byte()


# ------------------------------------------------------------------------------------------------- MixStyle


def test_mixstyle_mixes_means_and_deviations_and_leaves_the_content() -> None:
    maps, share, other = random_maps(), np.array([0.0, 0.25, 0.9, 1.0]), np.array([2, 0, 3, 1])
    out = mix_style(maps, torch.tensor(share, dtype=torch.float32), torch.tensor(other)).double().numpy()
    own = maps.double().numpy()
    for i, j in enumerate(other):
        for c in range(3):
            mean = share[i] * own[i, c].mean() + (1 - share[i]) * own[j, c].mean()
            deviation = share[i] * own[i, c].std() + (1 - share[i]) * own[j, c].std()
            assert out[i, c].mean() == pytest.approx(mean, abs=1e-5)
            assert out[i, c].std() == pytest.approx(deviation, rel=1e-5)
            content = (own[i, c] - own[i, c].mean()) / own[i, c].std()
            np.testing.assert_allclose((out[i, c] - mean) / deviation, content, atol=1e-5)


def test_mixstyles_statistics_are_constants_for_the_gradient() -> None:
    maps, share, other = random_maps(2).requires_grad_(), torch.tensor([0.3, 0.6]), torch.tensor([1, 0])
    weights = random_maps(2, seed=1)
    (mix_style(maps, share, other) * weights).sum().backward()
    deviation = maps.detach().std(dim=(2, 3), correction=0, keepdim=True)
    ratio = (share[:, None, None, None] * deviation + (1 - share)[:, None, None, None] * deviation[other]) / deviation
    torch.testing.assert_close(maps.grad, weights * ratio, rtol=1e-4, atol=1e-5)


def test_mixstyle_is_for_training_and_for_several_images_only() -> None:
    maps, layer, state = random_maps(), MixStyle(1.0), torch.get_rng_state()
    assert layer.eval()(maps) is maps and layer.train()(maps[:1]).equal(maps[:1])
    assert MixStyle(0.0).train()(maps) is maps
    assert torch.equal(torch.get_rng_state(), state), "what does nothing samples nothing"
    assert layer.train()(maps.bfloat16()).dtype == torch.bfloat16
    torch.manual_seed(0)
    steps = [MixStyle(0.3).train()(maps) is not maps for _ in range(2000)]
    assert np.mean(steps) == pytest.approx(0.3, abs=0.04)


def test_mixstyles_shares_are_betas_and_other_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[torch.Tensor] = []
    monkeypatch.setattr("network.style.mix_style", lambda maps, share, other: shares.append(share))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    layer, maps = MixStyle(1.0).train(), torch.zeros(500, 1, 1, 1)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.manual_seed(3)
        layer(maps)
    assert not torch.equal(*shares)
    values = torch.cat(shares)
    assert values.mean().item() == pytest.approx(0.5, abs=0.05)
    assert values.var().item() == pytest.approx(0.25 / 1.2, abs=0.02)  # 1 / (4 (2 alpha + 1))


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_a_backbone_mixes_the_outputs_of_stem_and_first_two_stages(name: str) -> None:
    spec = BACKBONES[name]
    spec = dataclasses.replace(spec, blocks=(1, 1, 1, 1)) if name == "resnet50" else spec  # type: ignore[call-arg]
    network: Any = build_network(make_cfg(METHOD="base", BACKBONE=name, MIXSTYLE=0.7))
    assert network.backbone.mix_style.probability == 0.7
    backbone: Any = Backbone(spec, sites={"stage1": "whiten"}).train()
    backbone.mix_style.probability = 1.0
    mixed: list[tuple[int, ...]] = []
    backbone.mix_style.register_forward_hook(lambda _, inputs, out: mixed.append(tuple(out.shape)))
    images = torch.randn(2, 3, 64, 64)
    outputs, style = backbone.outputs(images)
    assert [shape[1] for shape in mixed] == list(backbone.channels[:3])
    assert tuple(outputs[0].shape) == mixed[1] and tuple(outputs[1].shape) == mixed[2]
    torch.testing.assert_close(style[0].mean((2, 3)), torch.zeros(style[0].shape[:2]), atol=1e-4, rtol=0)
    backbone.eval()
    plain = Backbone(spec, sites={"stage1": "whiten"}).eval()
    plain.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        for found, expected in zip(backbone.outputs(images)[0], plain.outputs(images)[0], strict=True):
            assert torch.equal(found, expected), "evaluation and ISW's statistics"


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_lite0", "swin_tiny_patch4_window7_224"])
def test_mixstyle_in_networks_of_timm(name: str) -> None:
    network: Any = build_network(
        make_cfg(METHOD="base", BACKBONE=f"timm/{name}", OUTPUT_STRIDE=32, MIXSTYLE=1.0)
    ).train()
    backbone, mixed = network.backbone, list[tuple[int, ...]]()
    backbone.mix_style.register_forward_hook(lambda _, inputs, out: mixed.append(tuple(out.shape)))
    outputs, _ = backbone.outputs(torch.randn(2, 3, 64, 96))
    assert [shape[1] for shape in mixed] == list(backbone.channels[:3])
    assert [tuple(maps.shape) for maps in outputs[:2]] == mixed[1:]


def test_mixstyle_needs_stages() -> None:
    with pytest.raises(UserError, match=r"--mixstyle: timm/vit_tiny_patch16_224 gives no maps between its stages"):
        build_network(make_cfg(METHOD="base", BACKBONE="timm/vit_tiny_patch16_224", MIXSTYLE=0.5))


# ------------------------------------------------------------------------------------------------------ FDA


@pytest.mark.parametrize("size", [(24, 31), (23, 32)])
def test_fda_mixes_the_amplitudes_of_low_frequencies_and_keeps_all_phases(size: tuple[int, int]) -> None:
    images, share, beta = pictures(3, size).float(), torch.tensor([0.0, 0.3, 1.0]), 0.13
    out = mix_amplitudes(images, share, beta=beta).double().numpy()
    assert out.shape == images.shape
    before, after = np.fft.fft2(images.double().numpy()), np.fft.fft2(out)
    down, across = (np.abs(np.fft.fftfreq(length)) for length in size)
    low = (down <= beta)[:, None] & (across <= beta)
    assert low.sum() == (2 * int(beta * size[0]) + 1) * (2 * int(beta * size[1]) + 1)
    for i, other in ((0, 2), (1, 0), (2, 1)):
        own, theirs, weight = np.abs(before[i]), np.abs(before[other]), float(share[i])
        expected = np.where(low, (1 - weight) * own + weight * theirs, own)
        np.testing.assert_allclose(np.abs(after[i]), expected, rtol=1e-3, atol=0.05)
        phase = after[i] / np.abs(after[i]) * np.conj(before[i] / np.abs(before[i]))
        np.testing.assert_allclose(phase, 1, atol=0.01)


def test_fda_of_a_batch_depends_on_the_streams_alone(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path, COLOR_AUG=0.0, GBLUR=False, FDA=0.1)
    sampler, appearance, images = build_appearance_sampler(cfg, jitter="diia"), build_appearance(cfg), pictures()
    params = default_collate([sampler(np.random.default_rng(seed)) for seed in range(3)])
    assert len(set(params.stream.tolist())) == 3 and params.stream.min() > 0
    received = appearance(images, params)
    assert torch.equal(received, appearance(images, params)) and not torch.equal(received, Normalisation()(images))
    other = appearance(images, params._replace(stream=params.stream + 1))
    assert not torch.equal(received, other)
    alone = appearance(images[:1], type(params)(*(values[:1] for values in params)))
    assert torch.equal(alone, Normalisation()(images[:1])), "nobody to mix with"
    shown = appearance.colours(images, params)
    assert (Normalisation()(shown) - received).abs().max() < 0.01, "pictures show what the network receives"


def test_styles_are_not_in_the_statistics_and_change_no_other_random_number(tmp_path: Path) -> None:
    styled, plain = make_cfg(tmp_path, FDA=0.1), make_cfg(tmp_path)
    images = pictures(1)[0]
    params = statistics_sampler()(np.random.default_rng(0))
    assert params.stream == 0
    pairs = [build_appearance(cfg).pair(images, params) for cfg in (styled, plain)]
    assert torch.equal(*pairs)
    first, second = (build_appearance_sampler(cfg, jitter="diia")(np.random.default_rng(1)) for cfg in (styled, plain))
    assert second.stream == 0
    assert all(torch.equal(*values) for values in zip(first[:-1], second[:-1], strict=True))
    rng, again = np.random.default_rng(1), np.random.default_rng(1)
    build_appearance_sampler(plain, jitter="diia")(rng)
    [again.random() for _ in range(1 + 4 + 4 + 1)]  # jitter, order, factors, sigma: as before there were styles
    assert rng.random() == again.random()
