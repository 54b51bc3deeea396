"""Colours, blur and edges against torchvision, SciPy, OpenCV, their definitions and the original's values."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms.v2 import functional as torchvision

from datasets.codec import ENCODINGS, decode_label, read_image
from tests.street_data import make_cfg
from tests.test_geometry import PythonRandom, without_the_shift
from transforms import JITTER_STRENGTHS, build_appearance, build_appearance_sampler, statistics_sampler
from transforms.appearance import (
    MEAN,
    STD,
    Appearance,
    AppearanceParams,
    AppearanceSampler,
    Normalisation,
    bilateral_blur,
    edge_target,
    gaussian_blur,
    jitter,
)
from transforms.geometry import Geometry, RandomCrop, RandomFlip, RandomScale, Resize, make_view

MEANS, STDS = torch.tensor(MEAN).reshape(3, 1, 1), torch.tensor(STD).reshape(3, 1, 1)
DIIA = JITTER_STRENGTHS["diia"]


def pictures(count: int = 3, size: tuple[int, int] = (20, 24)) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, *size), dtype=np.uint8))


def one(
    *,
    jitter: bool = False,
    order: Sequence[int] = (0, 1, 2, 3),
    factors: Sequence[float] = (1, 1, 1, 0),
    sigma: float = 0,
    bilateral: float = 0,
) -> AppearanceParams:
    """Return one sample's parameters."""
    numbers = [torch.tensor(values, dtype=torch.float32) for values in (factors, sigma, bilateral)] + [torch.tensor(0)]
    return AppearanceParams(torch.tensor(jitter), torch.tensor(order), *numbers)


def many(*samples: AppearanceParams) -> AppearanceParams:
    collated: AppearanceParams = default_collate(list(samples))
    return collated


def sampled(sampler: AppearanceSampler, count: int) -> AppearanceParams:
    rng = np.random.default_rng(0)
    return many(*(sampler(rng) for _ in range(count)))


def by_torchvision(image: Tensor, params: AppearanceParams) -> Tensor:
    """Return one image (3, H, W) uint8 jittered by torchvision, in 0..255."""
    colours, functions = image / 255, ("brightness", "contrast", "saturation", "hue")
    for index in params.order.tolist() if params.jitter else ():
        colours = getattr(torchvision, f"adjust_{functions[index]}")(colours, params.factors[index].item())
    return colours * 255


def by_scipy(colours: Tensor, sigma: float) -> Tensor:
    ndimage = pytest.importorskip("scipy.ndimage")
    sharp = colours.numpy().astype(np.float64)
    return torch.from_numpy(ndimage.gaussian_filter(sharp, (0, sigma, sigma), mode="nearest", truncate=4)).float()


def test_parameters_keep_to_their_ranges() -> None:
    params = sampled(AppearanceSampler(0.5, DIIA, blur=True), 3000)
    assert params.jitter.dtype == torch.bool and abs(params.jitter.float().mean() - 0.5) < 0.05
    assert torch.equal(params.order.sort(1).values, torch.arange(4).expand(3000, 4))
    assert ((params.order.float().mean(0) - 1.5).abs() < 0.1).all()
    low, high = params.factors.aminmax(dim=0)
    torch.testing.assert_close(low, torch.tensor([0.2, 0.2, 0.2, -0.3]), atol=0.02, rtol=0)
    torch.testing.assert_close(high, torch.tensor([1.8, 1.8, 1.8, 0.3]), atol=0.02, rtol=0)
    assert 0.15 <= params.sigma.min() and 1.25 < params.sigma.max() <= 1.3 and not params.bilateral.any()
    params = sampled(AppearanceSampler(0.0, DIIA, blur=True, bilateral=True), 500)
    assert not params.sigma.any() and not params.jitter.any()
    assert 0.05 <= params.bilateral.min() < 0.07 and 0.73 < params.bilateral.max() <= 0.75


def test_the_order_of_the_random_numbers() -> None:
    """A run's random numbers are part of what it is: jitter, order, three factors, hue, sigma."""
    params = AppearanceSampler(0.5, (0.8, 0.4, 1.5, 0.3), blur=True)(np.random.default_rng(7))
    rng = np.random.default_rng(7)
    assert params.jitter == (rng.random() < 0.5)
    assert params.order.tolist() == np.argsort([rng.random() for _ in range(4)]).tolist()
    limits = ((0.2, 1.8), (0.6, 1.4), (0, 2.5), (-0.3, 0.3))
    assert params.factors.tolist() == pytest.approx([rng.uniform(*limit) for limit in limits], rel=1e-6)
    assert params.sigma.item() == pytest.approx(0.15 + 1.15 * rng.random(), rel=1e-6)


def test_the_stream_does_not_depend_on_outcomes() -> None:
    first, second = np.random.default_rng(0), np.random.default_rng(0)
    AppearanceSampler(0.0, DIIA, blur=True)(first)
    AppearanceSampler(1.0, JITTER_STRENGTHS["robustnet"], blur=True)(second)
    assert first.random() == second.random()


def test_no_change_means_normalisation_only() -> None:
    images = pictures()
    assert torch.equal(Appearance()(images, many(*[one()] * 3)), Normalisation()(images))
    torch.testing.assert_close(Normalisation()(images), (images / 255 - MEANS) / STDS)
    assert torch.equal(Appearance().colours(images, many(*[one()] * 3)), images)


def test_normalisation_per_image() -> None:
    out = Normalisation(per_image=True)(pictures())
    torch.testing.assert_close(out.mean(dim=(2, 3)), torch.zeros(3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(dim=(2, 3)), torch.ones(3, 3), atol=1e-3, rtol=0)
    assert torch.isfinite(Normalisation(per_image=True)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))).all()


def test_every_sample_gets_its_own_appearance() -> None:
    images = pictures(1).repeat(4, 1, 1, 1)
    darker = one(jitter=True, factors=(0.5, 1, 1, 0))
    out = Appearance()(images, many(one(), one(sigma=1.0), darker, darker))
    assert torch.equal(out[2], out[3]) and not torch.allclose(out[0], out[1]) and not torch.allclose(out[0], out[2])
    torch.testing.assert_close(out[2], (images[2] / 255 * 0.5 - MEANS) / STDS)


@pytest.mark.parametrize("bilateral", [False, True])
@pytest.mark.parametrize("size", [(23, 37), (150, 203)])
def test_a_sample_has_the_same_bits_in_every_batch(size: tuple[int, int], bilateral: bool) -> None:
    images, sampler = pictures(8, size), AppearanceSampler(0.9, DIIA, blur=True, bilateral=bilateral)
    rng, threads = np.random.default_rng(1), torch.get_num_threads()
    samples = [sampler(rng) for _ in images]
    whole = Appearance()(images, many(*samples))
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            assert torch.equal(Appearance()(images, many(*samples)), whole)
            for index, params in enumerate(samples):
                assert torch.equal(Appearance()(images[index : index + 1], many(params))[0], whole[index])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("strengths", JITTER_STRENGTHS.values(), ids=JITTER_STRENGTHS)
def test_colours_are_torchvisions(strengths: tuple[float, float, float, float]) -> None:
    images = pictures(40, (23, 37))
    images[::3, 1:] = images[::3, :1]  # grey
    images[1::3] = (images[1::3] > 127) * 255  # pure colours, black and white
    rng = np.random.default_rng(0)
    samples = [AppearanceSampler(0.8, strengths, blur=index > 9)(rng) for index in range(40)]
    out = Appearance()(images, many(*samples))
    for image, params, found in zip(images, samples, out, strict=True):
        expected = by_scipy(by_torchvision(image, params), params.sigma.item())
        assert ((found * STDS + MEANS) * 255 - expected).abs().max() < 0.005  # grey levels
    assert not torch.allclose(out, Normalisation()(images), atol=0.1)


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_colours_are_torchvisions_in_every_order(order: tuple[int, ...]) -> None:
    images, factors = pictures(2), ((1.7, 0.4, 1.6, -0.3), (0.4, 1.7, 0.5, 0.3))
    samples = [one(jitter=True, order=order, factors=values) for values in factors]
    for image, params, found in zip(images, samples, jitter(images.float(), many(*samples)), strict=True):
        assert (found - by_torchvision(image, params)).abs().max() < 0.005


def test_colours_per_image() -> None:
    images, samples = pictures(2), [one(sigma=0.9), one(jitter=True, factors=(0.5, 1.2, 1.8, 0.2))]
    expected = torch.stack([by_torchvision(image, params) for image, params in zip(images, samples, strict=True)])
    expected[0] = by_scipy(expected[0], 0.9)
    normalisation = Normalisation(per_image=True)
    torch.testing.assert_close(
        Appearance(normalisation)(images, many(*samples)), normalisation(expected), atol=1e-4, rtol=0
    )


def test_blur_does_not_darken() -> None:
    images = torch.cat([torch.full((1, 3, 40, 50), 201, dtype=torch.uint8), pictures(1, (40, 50))])
    levels = (Appearance()(images, many(*[one(sigma=1.3)] * 2)) * STDS + MEANS) * 255
    torch.testing.assert_close(levels[0], images[0].float(), atol=1e-3, rtol=0)
    assert abs(levels[1].mean() - images[1].float().mean()) < 0.1


def test_images_laid_out_otherwise_give_the_same_and_stay_as_they_are() -> None:
    images, params = pictures(2), many(one(sigma=0.9), one(jitter=True, factors=(0.5, 1.2, 1.8, 0.2)))
    other = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(Appearance()(images, params), Appearance()(other, params))
    assert torch.equal(edge_target(images), edge_target(other))
    assert torch.equal(images, pictures(2))


def test_edge_magnitude_is_scipys_by_the_images_own_contrast() -> None:
    images = pictures(2)
    images[1] //= 8  # little contrast
    grey = (0.114 * images[:, 0] + 0.587 * images[:, 1] + 0.299 * images[:, 2]).numpy()
    for image, found in zip(grey, edge_target(images, magnitude=True), strict=True):
        strength = np.hypot(*(ndimage.sobel(image, axis=axis, mode="mirror") for axis in (0, 1)))
        wanted = (255 * strength / (strength.mean() + 3 * strength.std(ddof=1))).clip(max=255)
        torch.testing.assert_close(found, torch.from_numpy(wanted).float(), atol=0.05, rtol=0)
    assert float(edge_target(torch.zeros_like(images), magnitude=True).abs().max()) == 0


def test_the_order_of_the_operations_counts() -> None:
    images, factors = pictures(1), (1.7, 0.3, 1.5, 0.2)
    first, second = (one(jitter=True, order=order, factors=factors) for order in ((0, 1, 2, 3), (3, 2, 1, 0)))
    assert not torch.allclose(jitter(images.float(), many(first)), jitter(images.float(), many(second)), atol=1)
    alone = one(jitter=True, factors=(1.7, 1, 1, 0))
    torch.testing.assert_close(jitter(images.float(), many(alone)), (images * 1.7).clamp(0, 255), atol=1e-3, rtol=0)


@pytest.mark.parametrize("sigma", [0.15, 0.4, 0.87, 1.3])
def test_blur_is_scipys(sigma: float) -> None:
    images = pictures(2).float()
    blurred = gaussian_blur(images, torch.tensor([sigma, 0.0]))
    torch.testing.assert_close(blurred[0], by_scipy(images[0], sigma), atol=1e-3, rtol=0)
    assert torch.equal(blurred[1], images[1])


@pytest.mark.parametrize("sigma", [0.3, 0.75])
def test_bilateral_blur_follows_its_definition(sigma: float) -> None:
    images = pictures(2, (7, 9)).float()
    blurred = bilateral_blur(images, torch.tensor([sigma, 0.0]))
    torch.testing.assert_close(blurred[1], images[1])
    reach, image = int(4 * sigma + 0.5), images[0].numpy().astype(np.float64)
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    for y, x in np.ndindex(7, 9):
        window = padded[:, y : y + 2 * reach + 1, x : x + 2 * reach + 1]
        down, across = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        far = ((window - image[:, y, x, None, None]) ** 2).sum(0) / (3 * image.std()) ** 2
        weight = np.exp(-0.5 * (far + (down**2 + across**2) / sigma**2))
        np.testing.assert_allclose(blurred[0, :, y, x], (window * weight).sum((1, 2)) / weight.sum(), rtol=1e-4)


def test_bilateral_blur_keeps_edges_and_takes_the_place_of_the_gaussian() -> None:
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    images[..., 4:] = 255
    blurred, gaussian = (blur(images.float(), torch.tensor([0.75])) for blur in (bilateral_blur, gaussian_blur))
    assert 1.5 * (blurred - images).abs().max() < (gaussian - images).abs().max()
    plain = torch.full((1, 3, 5, 5), 7.0)
    assert torch.equal(bilateral_blur(plain, torch.tensor([0.5])), plain)
    images, params = pictures(2), many(one(bilateral=0.7), one(jitter=True, factors=(0.7, 1, 1, 0), bilateral=0.2))
    expected = bilateral_blur(torch.stack([images[0], images[1] * 0.7]), torch.tensor([0.7, 0.2]))
    torch.testing.assert_close(Appearance()(images, params), Normalisation()(expected), atol=1e-4, rtol=0)


def test_edge_target_of_a_step() -> None:
    images = torch.zeros(1, 3, 5, 8, dtype=torch.uint8)
    images[:, 0, :, 4:] = 100  # red counts with blue's weight: 11.4 grey levels, times 4
    edges = edge_target(images)
    assert edges.dtype == torch.float32 and edges[0, 2].tolist() == [0, 0, 0, 46, 46, 0, 0, 0]
    assert edge_target(images.transpose(2, 3)).abs().max() == 0  # only across
    images[:, :, :, 4:] = 255
    assert edge_target(images).max() == 255


def test_edge_target_is_exact_and_rounds_halves_to_even() -> None:
    images = pictures(3, (31, 45))
    exact = np.einsum("bchw,c->bhw", images.long().numpy(), [114, 587, 299])  # thousandths
    padded = np.pad(exact, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    across = padded[..., 2:] - padded[..., :-2]
    sobel = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    assert (sobel % 1000 == 500).any()
    np.testing.assert_array_equal(edge_target(images).numpy(), np.minimum(np.abs(np.rint(sobel / 1000)), 255))


def test_edge_target_is_opencvs() -> None:
    cv2 = pytest.importorskip("cv2")
    images = pictures(2, (31, 45))
    for image, edges in zip(images, edge_target(images), strict=True):
        grey = cv2.cvtColor(image.permute(1, 2, 0).numpy().astype(np.float32), cv2.COLOR_BGR2GRAY)
        expected = np.minimum(np.abs(cv2.Sobel(grey, cv2.CV_16S, 1, 0, ksize=3)), 255)
        difference = np.abs(edges.numpy() - expected)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.005


def test_recipes(tmp_path: Path) -> None:
    sampler = build_appearance_sampler(make_cfg(tmp_path, COLOR_AUG=0.25, GBLUR=False), jitter="robustnet")
    assert sampler == AppearanceSampler(0.25, (0.4, 0.4, 0.4, 0.1), blur=False)
    assert statistics_sampler() == AppearanceSampler(1.0, (0.8, 0.8, 0.8, 0.3), blur=True)


def test_a_pair_holds_the_augmented_view_first(tmp_path: Path) -> None:
    image = pictures(1)[0]
    appearance = build_appearance(make_cfg(tmp_path))
    params = statistics_sampler()(np.random.default_rng(0))
    pair = appearance.pair(image, params)
    torch.testing.assert_close(pair[1], (image / 255 - MEANS) / STDS)
    torch.testing.assert_close(pair[0], appearance(image[None], many(params))[0])
    assert not torch.allclose(pair[0], pair[1])


# ---------------------------------------------------------------------------------- the original's values


def original_jitter() -> tuple[list[int], list[float]]:
    """Sample from torch's global stream as torchvision's ColorJitter does."""
    order = torch.randperm(4).tolist()
    factors = [torch.empty(1).uniform_(0.2, 1.8).item() for _ in range(3)]
    return order, [*factors, torch.empty(1).uniform_(-0.3, 0.3).item()]


def test_edge_target_of_the_original(golden: Path) -> None:
    values = np.load(golden / "numpy_level.npz")
    edges = edge_target(torch.from_numpy(values["sobel_img"]).permute(2, 0, 1)[None])[0].numpy()
    difference = np.abs(edges - values["sobel_target"])
    assert difference.max() <= 1 and (difference > 0).mean() < 0.002  # rounding of halves


@pytest.mark.parametrize("seed", range(3))
def test_blur_of_the_original(golden: Path, seed: int) -> None:
    values = np.load(golden / "numpy_level.npz")
    sigma = 0.15 + 1.15 * random.Random(seed).random()
    image = torch.from_numpy(values["p_img"]).permute(2, 0, 1)[None].float()
    blurred = gaussian_blur(image, torch.tensor([sigma]))[0].permute(1, 2, 0).numpy()
    cut_off = blurred - values[f"gblur_s{seed}"]  # the original cuts the fraction off
    assert cut_off.min() > -1e-3 and cut_off.max() < 1 + 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_jitter_of_the_original(golden: Path, seed: int) -> None:
    values = np.load(golden / "numpy_level.npz")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order, factors = original_jitter()
    image = torch.from_numpy(values["p_img"]).permute(2, 0, 1)[None].float()
    changed = jitter(image, many(one(jitter=True, order=order, factors=factors)))[0]
    difference = np.abs(changed.permute(1, 2, 0).numpy() - values[f"jitter_s{seed}"])
    # Pillow rounds after every operation and keeps hue and saturation in 8 bits.
    assert difference.mean() < 2.5 and np.percentile(difference, 99) < 6 and difference.max() < 16


@pytest.mark.parametrize(("index", "focus"), [(0, None), (1, None), (2, (200, 100)), (3, (10, 170))])
def test_whole_training_samples_of_the_original(golden: Path, index: int, focus: tuple[int, int] | None) -> None:
    values = np.load(golden / "pipeline.npz")
    name = f"train/folder/{index + 1:05d}.png"
    label = decode_label(str(golden / "gtav/labels" / name), encoding=ENCODINGS["cityscapes_colours"])
    rng = PythonRandom(100 + index)
    view = RandomScale(0.5, 2.0)(make_view(read_image(str(golden / "gtav/images" / name)), label, focus=focus), rng)
    view = Geometry((RandomCrop(96), Resize(96), RandomFlip()))(without_the_shift(view, 96), rng)
    image = torch.from_numpy(np.array(view.image)).permute(2, 0, 1)[None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(100 + index)
        jittered = torch.rand(1).item() <= 0.5
        order, factors = original_jitter() if jittered else ([0, 1, 2, 3], [1.0, 1.0, 1.0, 0.0])
    params = one(jitter=jittered, order=order, factors=factors, sigma=0.15 + 1.15 * rng.random())
    out = Appearance()(image, many(params))[0]
    difference = (out - torch.from_numpy(values[f"s{index}_img"])).mul(STDS).mul(255).abs()  # grey levels
    assert difference.mean() < 3 and difference.max() < 16
    edges = np.abs(edge_target(image)[0].numpy() - values[f"s{index}_sobel"])
    assert (edges > 0).mean() < 0.005 and edges.max() <= 4  # the crop differs by one grey level here and there
