"""What makes a network see other styles: each computes what its paper says, and leaves alone what it should."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy.signal import correlate2d
from torch.utils.data import default_collate

import train
from network import BACKBONES, build_network
from network.backbones import Backbone
from network.style import MixStyle, mix_style
from run import Run
from scripts.browse_data import build_pipeline
from tests.runs import build_run, launch, read_weights, run_folder, train_arguments
from tests.street_data import make_cfg
from tests.test_processes import FROZEN
from tests.test_train import assert_same
from transforms import build_appearance, build_appearance_sampler, statistics_sampler
from transforms.appearance import MEAN, STD, Normalisation
from transforms.geometry import make_view
from transforms.style_augmentation import (
    RECOLOURINGS,
    StyleAugmentation,
    adversarial_style,
    mix_amplitudes,
    progressive_convolution,
    random_convolution,
    recolour,
)
from utils import distributed
from utils.errors import UserError
from utils.logs import LossMeter, read_history


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


# ------------------------------------------------------------------------------------------------- RandConv


def correlated(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return the cross-correlation of (3, H, W) with (3, 3, k, k), zeros around the image."""
    planes = [
        sum(correlate2d(plane, part, mode="same") for plane, part in zip(image, row, strict=True)) for row in kernel
    ]
    return np.stack(planes)


def test_randconv_mixes_an_image_with_its_random_convolution() -> None:
    image, sizes = random_maps(1)[0], set()
    for seed in range(12):
        out, rng = random_convolution(image, np.random.default_rng(seed)), np.random.default_rng(seed)
        size = int(rng.choice((1, 3, 5, 7)))
        kernel, share = rng.normal(0, (3 * size * size) ** -0.5, (3, 3, size, size)), rng.random()
        expected = share * image.double().numpy() + (1 - share) * correlated(image.double().numpy(), kernel)
        np.testing.assert_allclose(out, expected, atol=1e-4)
        sizes.add(size)
    assert sizes == {1, 3, 5, 7}


def test_progressive_convolutions_repeat_one_block() -> None:
    image, lengths = random_maps(1)[0], set()
    for seed in range(12):
        out, rng = progressive_convolution(image, np.random.default_rng(seed), repeats=4), np.random.default_rng(seed)
        kernel, affine = rng.normal(0, (3 * 9) ** -0.5, (3, 3, 3, 3)), rng.normal(0, 0.5, (2, 3))
        sigma, values = rng.uniform(0.01, 1), image.double().numpy()
        for down, across in np.ndindex(3, 3):
            kernel[:, :, down, across] *= np.exp(-((down - 1) ** 2 + (across - 1) ** 2) / (2 * sigma**2))
        lengths.add(length := int(rng.integers(1, 5)))
        for _ in range(length):
            values = correlated(values, kernel)
            for c in range(3):
                centred = (values[c] - values[c].mean()) / (values[c].std() + 1e-5)
                values[c] = np.tanh(affine[0, c] * centred + affine[1, c])
        np.testing.assert_allclose(out, values, atol=2e-3)
    assert lengths == {1, 2, 3, 4}


@pytest.mark.parametrize("repeats", [1, 3])
def test_each_image_has_a_convolution_of_its_own_with_a_probability(repeats: int) -> None:
    images, streams = pictures(40, (48, 61)).float(), torch.arange(1, 41)
    augment, threads = StyleAugmentation(randconv=0.5, repeats=repeats), torch.get_num_threads()
    out = augment(images.clone(), streams)
    changed = (out != images).flatten(1).any(1)
    assert 8 < changed.sum() < 32
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            for index in range(6):
                alone = augment(images[index : index + 1].clone(), streams[index : index + 1])[0]
                assert torch.equal(alone, out[index]), "the same bits in every batch"
    finally:
        torch.set_num_threads(threads)
    both = augment(images[:1].repeat(40, 1, 1, 1), streams)
    assert len({image.sum().item() for image in both[changed]}) == changed.sum()


def test_pictures_show_convolved_images_within_the_range_of_colours(tmp_path: Path) -> None:
    appearance = build_appearance(make_cfg(tmp_path, RANDCONV=1.0))
    sampler = build_appearance_sampler(make_cfg(tmp_path, RANDCONV=1.0, COLOR_AUG=0.0, GBLUR=False), jitter="diia")
    params = default_collate([sampler(np.random.default_rng(seed)) for seed in range(3)])
    received = appearance(pictures(), params)
    statistics = 255 * torch.tensor((MEAN, STD)).reshape(2, 3, 1, 1)
    expected = (received * statistics[1] + statistics[0]).clamp(0, 255)
    assert (appearance.colours(pictures(), params).float() - expected).abs().max() < 0.51


# ---------------------------------------------------------------------------------------------- RandAugment


def by_pillow(image: torch.Tensor, name: str, *, level: float, sign: int) -> np.ndarray:
    """Return (3, H, W) of Pillow's operation, which RandAugment's authors used."""
    picture, factor = Image.fromarray(image.permute(1, 2, 0).numpy()), 1 + 0.9 * level * sign
    enhance = {"adjust_brightness": "Brightness", "adjust_contrast": "Contrast", "adjust_saturation": "Color"}
    enhance["sharpen"] = "Sharpness"
    if name in enhance:
        picture = getattr(ImageEnhance, enhance[name])(picture).enhance(factor)
    elif name != "identity":
        arguments: dict[str, list[float]] = {"posterize": [8 - round(4 * level)], "solarize": [255 * (1 - level)]}
        picture = getattr(ImageOps, name)(picture, *arguments.get(name, []))
    return np.asarray(picture).transpose(2, 0, 1)


@pytest.mark.parametrize("name", RECOLOURINGS)
@pytest.mark.parametrize(("level", "sign"), [(0.3, 1), (0.3, -1), (1.0, 1), (1.0, -1)])
def test_recolourings_are_pillows(name: str, level: float, sign: int) -> None:
    for image in pictures():
        out = recolour(image.clone(), name, level=level, sign=sign)
        assert out.dtype == torch.uint8 and out.shape == image.shape
        difference = np.abs(out.numpy().astype(int) - by_pillow(image, name, level=level, sign=sign))
        assert difference.max() <= (1 if name != "adjust_saturation" else 2)  # Pillow rounds the grey image
        assert (name == "identity") == torch.equal(out, image)


def test_every_image_gets_two_recolourings_each_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, float, int]] = []

    def noted(image: torch.Tensor, name: str, *, level: float, sign: int) -> torch.Tensor:
        calls.append((name, level, sign))
        return image + 1

    monkeypatch.setattr("transforms.style_augmentation.recolour", noted)
    images = torch.full((900, 3, 2, 2), 7.3)
    out = StyleAugmentation(magnitude=9)(images.clone(), torch.arange(1, 901))
    assert (out == 9).all() and len(calls) == 1800
    counts = [sum(name == known for name, _, _ in calls) for known in RECOLOURINGS]
    assert min(counts) > 150 and max(counts) < 250, "200 each"
    assert {level for _, level, _ in calls} == {0.3}
    assert sum(sign for _, _, sign in calls) == pytest.approx(0, abs=150)


def test_the_sheet_of_browse_data_shows_the_styles_of_single_images(tmp_path: Path) -> None:
    image = pictures(1)[0].permute(1, 2, 0).numpy()
    start = make_view(image, np.zeros(image.shape[:2], np.uint8), focus=None)
    for options in ({"RANDAUGMENT": 20}, {"RANDCONV": 1.0}):
        pipeline = build_pipeline(make_cfg(tmp_path, COLOR_AUG=0.0, GBLUR=False, **options), tile=0)
        changed = 0
        for item in range(5):
            view, params, *_ = pipeline.deliver(start, item=item)
            changed += not np.array_equal(pipeline.seen(view.image, params), view.image)
        assert changed >= 3


def test_recolourings_are_functions_of_the_stream(tmp_path: Path) -> None:
    appearance = build_appearance(make_cfg(tmp_path, RANDAUGMENT=9))
    sampler = build_appearance_sampler(make_cfg(tmp_path, RANDAUGMENT=9), jitter="diia")
    samples, images = [sampler(np.random.default_rng(seed)) for seed in range(6)], pictures(6)
    whole = appearance(images, default_collate(samples))
    for index, params in enumerate(samples):
        assert torch.equal(appearance(images[index : index + 1], default_collate([params]))[0], whole[index])
    plain = appearance(images, default_collate([params._replace(stream=torch.tensor(0)) for params in samples]))
    assert (whole != plain).flatten(1).any(1).sum() >= 4


# ------------------------------------------------------------------------------------------------- AdvStyle


def test_advstyle_is_a_step_of_gradient_ascent_on_means_and_deviations() -> None:
    images, target = random_maps(), random_maps(seed=1)

    def losses(images: torch.Tensor) -> torch.Tensor:
        return (images.sin() - target).square().mean((1, 2, 3))  # (B,)

    mean = images.mean((2, 3), keepdim=True).requires_grad_()
    deviation = images.std((2, 3), correction=0, keepdim=True).requires_grad_()
    content = ((images - mean) / deviation).detach()
    losses(content * deviation + mean).sum().backward()
    assert mean.grad is not None and deviation.grad is not None
    expected = content * (deviation + 0.3 * deviation.grad) + mean + 0.3 * mean.grad
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses(leaf).sum(), leaf)
    styled = adversarial_style(images, gradient, step_size=0.3)
    torch.testing.assert_close(styled, expected.detach(), rtol=1e-4, atol=1e-5)
    assert (losses(styled) > losses(images)).all()
    gradient[0, 0, 0, 0], gradient[1, 0, 0, 0] = float("inf"), float("nan")
    assert adversarial_style(images, gradient, step_size=0.3).isfinite().all()


@pytest.mark.parametrize("scaled", [False, True])
def test_advstyle_trains_on_plain_and_on_harder_images(
    scaled: bool, full_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images do not depend on the scale of the gradients, and each of two micro-batches is a quarter of the sum."""
    if scaled:
        scaler = torch.amp.GradScaler
        monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=1024.0))
    plain = ("--method", "base", "--scale_min", "1", "--clip_grad_norm", "1e9")
    torch.manual_seed(0)
    run = build_run(train_arguments(full_camvid, tmp_path, *plain, "--advstyle", "0.1"))
    run.model.eval()  # batch norm would see another batch, dropout other masks
    run.optimizer.param_groups[0]["lr"] = 0.0  # the weights stay
    batches = run.loader.epoch(0)
    micro_batches, expected, harder = [next(batches), next(batches)], [], []

    def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return run.criterion.total(run.criterion(run.network(images), labels.long(), whiten=False))

    for batch in micro_batches:
        leaf, own = run.appearance(batch.images, batch.params).requires_grad_(), []
        for index in range(2):  # image by image
            gradient = torch.autograd.grad(loss(leaf[index : index + 1], batch.labels[index : index + 1]), leaf)[0]
            own.append(gradient[index])
        styled = adversarial_style(leaf.detach(), torch.stack(own), step_size=0.1)
        totals = [loss(images, batch.labels) for images in (leaf.detach(), styled)]
        harder.append(totals[1] > totals[0])
        expected.append(torch.autograd.grad(sum(totals) / 4, list(run.network.parameters())))  # type: ignore[arg-type]
    assert all(harder)
    meter = LossMeter()
    train.train_step(run, meter, micro_batches)
    for parameter, *parts in zip(run.network.parameters(), *expected, strict=True):
        torch.testing.assert_close(parameter.grad, sum(parts), rtol=2e-3, atol=1e-5)
    terms = meter.read()
    assert terms["train_loss"] < terms["advstyle"], "which is the harder half of it"


def test_advstyle_reaches_the_images_through_a_frozen_backbone(full_camvid: Path, tmp_path: Path) -> None:
    frozen = ("--method", "linear", "--backbone", "timm/vit_tiny_patch16_224", "--tune", "frozen", "--advstyle", "0.1")
    run = build_run(train_arguments(full_camvid, tmp_path, *frozen))
    run.model.train()
    meter = LossMeter()
    train.train_step(run, meter, [next(run.loader.epoch(0))])
    assert meter.read().keys() == {"train_loss", "fused", "advstyle"}


# ----------------------------------------------------------------------------------------------- whole runs

SINGLE = (
    *("--advstyle", "0.5", "--randaugment", "9", "--randconv", "0.5", "--randconv_repeats", "3"),
    *("--label_smoothing", "0.1"),
)
MIXING = ("--mixstyle", "0.7", "--fda", "0.1")


def test_resumed_with_every_style_augmentation_is_the_same(small_camvid: Path, tmp_path: Path) -> None:
    steps = ("--accumulate", "2", "--cov_stat_epoch", "0", "--save_interval", "1", "--method", "isw", "--amp", "bf16")
    flags = (*SINGLE, *MIXING, *steps, "--val_limit", "1")
    train.main(train_arguments(small_camvid, tmp_path / "a", *flags))
    original, arguments = train.train_step, train_arguments(small_camvid, tmp_path / "b", *flags)

    def dies(run: Run, *rest: Any) -> Any:
        if run.progress.step == 3:
            raise KeyboardInterrupt
        return original(run, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "train_step", dies)
        train.main(arguments)
    train.main([*arguments, "--resume", "auto"])
    straight, resumed = (read_weights(run_folder(tmp_path / name) / "last.pth") for name in "ab")
    assert straight["progress"]["step"] == 4
    for part in ("network", "criterion", "optimizer"):
        assert_same(straight[part], resumed[part], part)
    scores = json.loads((run_folder(tmp_path / "a") / "scores" / "scores.json").read_text())
    assert scores["weights"]["method"].startswith("isw+mixstyle=0.7+advstyle=0.5+fda=0.1+randaugment=9+")


def test_single_images_train_with_what_mixes_none(small_camvid: Path, tmp_path: Path) -> None:
    more = ("--bs_mult", "1", "--max_iter", "2", "--val_limit", "1", "--dump_augmentation_images")
    train.main(train_arguments(small_camvid, tmp_path, *SINGLE, "--method", "diia", *more))
    lines = read_history(run_folder(tmp_path) / "history.jsonl")
    assert all(np.isfinite(line["loss/advstyle"]) for line in lines if "loss/train_loss" in line)
    assert (run_folder(tmp_path) / "pictures" / "first_batch.png").exists()


def test_two_processes_change_the_styles_that_one_does(full_camvid: Path, tmp_path: Path) -> None:
    plain = ("--method", "base", "--scale_min", "1.0", "--max_iter", "1", "--accumulate", "2")
    program, weights = tmp_path / "train_frozen.py", []
    program.write_text(FROZEN)
    for processes, batch in ((1, "4"), (2, "2")):
        out = tmp_path / str(processes)
        flags = (*SINGLE, *plain, "--bs_mult", batch, "--val_limit", "1", "--no_val_source")
        launch(str(program), train_arguments(full_camvid, out, *flags), processes=processes)
        weights.append(read_weights(run_folder(out) / "last.pth")["optimizer"]["state"])
    one, two = weights
    for index, state in one.items():
        expected, found = state["momentum_buffer"], two[index]["momentum_buffer"]
        assert float((found - expected).norm()) <= 1e-3 * float(expected.norm()) + 1e-9, index
