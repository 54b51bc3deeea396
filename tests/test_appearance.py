from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.codec import ENCODINGS, decode_label, read_image
from tests.street_data import make_cfg
from tests.test_geometry import PythonRandom, without_the_shift
from transforms import edges as edges_module
from transforms.appearance import (
    MEAN,
    NUM_DRAWS,
    STD,
    Appearance,
    AppearanceDraws,
    Normalisation,
    bilateral_blur,
    gaussian_blur,
    jitter,
)
from transforms.build import JITTER_STRENGTHS, build_appearance, build_draws, statistics_draws, statistics_pair
from transforms.edges import edge_target
from transforms.geometry import Geometry, RandomCrop, RandomFlip, RandomScale, Resize
from transforms.view import make_view

MEANS, STDS = torch.tensor(MEAN).reshape(3, 1, 1), torch.tensor(STD).reshape(3, 1, 1)


def pictures(count: int = 3, size: tuple[int, int] = (20, 24)) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, *size), dtype=np.uint8))


def row(
    *,
    jittered: bool = False,
    order: Sequence[int] = (0, 1, 2, 3),
    factors: Sequence[float] = (1, 1, 1, 0),
    sigma: float = 0,
    bilateral: float = 0,
) -> Tensor:
    """Return one sample's draws."""
    return torch.tensor([float(jittered), *order, *factors, sigma, bilateral], dtype=torch.float32)


def test_draws_keep_to_their_ranges() -> None:
    rng = np.random.default_rng(0)
    rows = np.stack([AppearanceDraws(0.5, (0.8, 0.8, 0.8, 0.3), blur=True)(rng) for _ in range(3000)])
    assert rows.shape == (3000, NUM_DRAWS) and abs(rows[:, 0].mean() - 0.5) < 0.05
    assert (np.sort(rows[:, 1:5], axis=1) == np.arange(4)).all()
    assert (abs(rows[:, 1:5].mean(axis=0) - 1.5) < 0.1).all()
    low, high = rows[:, 5:9].min(axis=0), rows[:, 5:9].max(axis=0)
    assert (np.abs(low - [0.2, 0.2, 0.2, -0.3]) < 0.02).all() and (np.abs(high - [1.8, 1.8, 1.8, 0.3]) < 0.02).all()
    assert rows[:, 9].min() >= 0.15 and rows[:, 9].max() <= 1.3 and rows[:, 9].max() > 1.25


def test_the_stream_does_not_depend_on_outcomes() -> None:
    first, second = np.random.default_rng(0), np.random.default_rng(0)
    AppearanceDraws(0.0, (0.8, 0.8, 0.8, 0.3), blur=True)(first)
    AppearanceDraws(1.0, (0.4, 0.4, 0.4, 0.1), blur=True)(second)
    assert first.random() == second.random()


def test_nothing_drawn_means_normalisation_only() -> None:
    images = pictures()
    out = Appearance()(images, torch.stack([row()] * 3))
    torch.testing.assert_close(out, (images / 255 - MEANS) / STDS)


def test_normalisation_per_image() -> None:
    out = Normalisation(per_image=True)(pictures())
    torch.testing.assert_close(out.mean(dim=(2, 3)), torch.zeros(3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(dim=(2, 3)), torch.ones(3, 3), atol=1e-3, rtol=0)
    assert torch.isfinite(Normalisation(per_image=True)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))).all()


def test_every_sample_gets_its_own_appearance() -> None:
    images = pictures(1).repeat(4, 1, 1, 1)
    draws = torch.stack(
        [row(), row(sigma=1.0), row(jittered=True, factors=(0.5, 1, 1, 0)), row(jittered=True, factors=(0.5, 1, 1, 0))]
    )
    out = Appearance()(images, draws)
    assert torch.equal(out[2], out[3]) and not torch.allclose(out[0], out[1]) and not torch.allclose(out[0], out[2])
    for index in range(4):  # a batch is no more than its samples
        torch.testing.assert_close(out[index], Appearance()(images[index : index + 1], draws[index : index + 1])[0])
    torch.testing.assert_close(out[2], (images[2] / 255 * 0.5 - MEANS) / STDS)


def both_ways(images: Tensor, draws: Tensor, *, per_image: bool = False) -> tuple[Tensor, Tensor]:
    """Return what the CPU computes with OpenCV and what other devices compute with torch."""

    class Elsewhere(Appearance):
        _with_opencv = Appearance._with_torch

    normalisation = Normalisation(per_image=per_image)
    return Appearance(normalisation)(images, draws), Elsewhere(normalisation)(images, draws)


@pytest.mark.parametrize("strengths", JITTER_STRENGTHS.values(), ids=JITTER_STRENGTHS)
def test_opencv_and_torch_agree(strengths: tuple[float, float, float, float]) -> None:
    images = pictures(40, (23, 37))
    images[::3, 1:] = images[::3, :1]  # grey
    images[1::3] = (images[1::3] > 127) * 255  # pure colours, black and white
    rng = np.random.default_rng(0)
    draws = torch.from_numpy(np.stack([AppearanceDraws(0.8, strengths, blur=index > 9)(rng) for index in range(40)]))
    first, second = both_ways(images, draws)
    difference = (first - second) * STDS * 255  # grey levels
    assert difference.abs().max() < 0.02
    assert not torch.allclose(first, Normalisation()(images), atol=0.1)


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_opencv_and_torch_agree_in_every_order(order: tuple[int, ...]) -> None:
    images = pictures(2)
    draws = torch.stack(
        [row(jittered=True, order=order, factors=factors) for factors in ((1.7, 0.4, 1.6, -0.3), (0.4, 1.7, 0.5, 0.3))]
    )
    first, second = both_ways(images, draws)
    assert ((first - second) * STDS * 255).abs().max() < 0.02


def test_opencv_and_torch_agree_per_image() -> None:
    images = pictures(2)
    draws = torch.stack([row(sigma=0.9), row(jittered=True, factors=(0.5, 1.2, 1.8, 0.2))])
    first, second = both_ways(images, draws, per_image=True)
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)


def test_blur_does_not_darken() -> None:
    images = torch.cat([torch.full((1, 3, 40, 50), 201, dtype=torch.uint8), pictures(1, (40, 50))])
    for blurred in both_ways(images, torch.stack([row(sigma=1.3)] * 2)):
        levels = (blurred * STDS + MEANS) * 255
        torch.testing.assert_close(levels[0], images[0].float(), atol=1e-3, rtol=0)
        assert abs(levels[1].mean() - images[1].float().mean()) < 0.1


def test_images_laid_out_otherwise_give_the_same() -> None:
    images, draws = pictures(2), torch.stack([row(sigma=0.9), row(jittered=True, factors=(0.5, 1.2, 1.8, 0.2))])
    other = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(Appearance()(images, draws), Appearance()(other, draws))
    assert torch.equal(edge_target(images), edge_target(other))


def test_the_order_of_the_operations_counts() -> None:
    image = pictures(1)[0] / 255
    factors = [1.7, 0.3, 1.5, 0.2]
    assert not torch.allclose(jitter(image, [0, 1, 2, 3], factors), jitter(image, [3, 2, 1, 0], factors))
    torch.testing.assert_close(jitter(image, [0], factors), (image * 1.7).clamp(0, 1))


@pytest.mark.parametrize("sigma", [0.15, 0.4, 0.87, 1.3])
def test_blur_is_scipys(sigma: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    images = pictures(2).float()
    blurred = gaussian_blur(images, [sigma, 0.0])
    sharp = images[0].numpy().astype(np.float64)
    expected = ndimage.gaussian_filter(sharp, (0, sigma, sigma), mode="nearest", truncate=4)
    np.testing.assert_allclose(blurred[0].numpy(), expected, atol=1e-3)
    torch.testing.assert_close(blurred[1], images[1], atol=0, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 0.75])
def test_bilateral_blur_follows_its_definition(sigma: float) -> None:
    images = pictures(2, (7, 9)).float()
    found = bilateral_blur(images, [sigma, 0.0])
    torch.testing.assert_close(found[1], images[1])
    reach, image = int(4 * sigma + 0.5), images[0].numpy().astype(np.float64)
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    for y, x in np.ndindex(7, 9):
        window = padded[:, y : y + 2 * reach + 1, x : x + 2 * reach + 1]
        down, across = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        far = ((window - image[:, y, x, None, None]) ** 2).sum(0) / (3 * image.std()) ** 2
        weight = np.exp(-0.5 * (far + (down**2 + across**2) / sigma**2))
        np.testing.assert_allclose(found[0, :, y, x], (window * weight).sum((1, 2)) / weight.sum(), rtol=1e-4)


def test_bilateral_blur_keeps_edges_and_runs_both_ways_in_place_of_the_gaussian() -> None:
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    images[..., 4:] = 255
    blurred = bilateral_blur(images.float(), [0.75])
    assert 1.5 * (blurred - images).abs().max() < (gaussian_blur(images.float(), [0.75]) - images).abs().max()
    assert torch.equal(bilateral_blur(torch.full((1, 3, 5, 5), 7.0), [0.5]), torch.full((1, 3, 5, 5), 7.0))
    first, second = both_ways(pictures(2), torch.stack([row(bilateral=0.7), row(jittered=True, bilateral=0.2)]))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)
    draws = AppearanceDraws(0.0, (0.8, 0.8, 0.8, 0.3), blur=True, bilateral=True)
    rows = np.stack([draws(np.random.default_rng(seed)) for seed in range(500)])
    assert not rows[:, 9].any() and 0.05 <= rows[:, 10].min() < 0.07 and 0.73 < rows[:, 10].max() <= 0.75


def test_edge_target_of_a_step() -> None:
    images = torch.zeros(1, 3, 5, 8, dtype=torch.uint8)
    images[:, 0, :, 4:] = 100  # red counts with blue's weight: 11.4 grey levels, times 4
    edges = edge_target(images)
    assert edges.dtype == torch.float32 and edges[0, 2].tolist() == [0, 0, 0, 46, 46, 0, 0, 0]
    assert edge_target(images.transpose(2, 3)).abs().max() == 0  # only across
    images[:, :, :, 4:] = 255
    assert edge_target(images).max() == 255


def test_edge_target_is_the_same_on_every_device_and_rounds_halves_to_even() -> None:
    images = pictures(3, (31, 45))
    assert torch.equal(edge_target(images), edges_module._with_torch(images))
    assert torch.equal(edge_target(images[..., :2, :2]), edges_module._with_torch(images[..., :2, :2]))
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
    draws = build_draws(make_cfg(tmp_path, COLOR_AUG=0.25, GBLUR=False), jitter="robustnet")
    assert draws == AppearanceDraws(0.25, (0.4, 0.4, 0.4, 0.1), blur=False)
    assert statistics_draws() == AppearanceDraws(1.0, JITTER_STRENGTHS["diia"], blur=True)


def test_statistics_pair_holds_the_changed_image_first(tmp_path: Path) -> None:
    image = pictures(1)[0]
    appearance = build_appearance(make_cfg(tmp_path))
    draws = torch.from_numpy(statistics_draws()(np.random.default_rng(0)))
    pair = statistics_pair(image, draws, appearance=appearance)
    torch.testing.assert_close(pair[1], (image / 255 - MEANS) / STDS)
    torch.testing.assert_close(pair[0], appearance(image[None], draws[None])[0])
    assert not torch.allclose(pair[0], pair[1])


# ---------------------------------------------------------------------------------- the original's values


def original_jitter_draws() -> tuple[list[int], list[float]]:
    """Draw from torch's global stream as torchvision's ColorJitter does."""
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
    blurred = gaussian_blur(image, [sigma])[0].permute(1, 2, 0).numpy()
    cut_off = blurred - values[f"gblur_s{seed}"]  # the original cuts the fraction off
    assert cut_off.min() > -1e-3 and cut_off.max() < 1 + 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_jitter_of_the_original(golden: Path, seed: int) -> None:
    values = np.load(golden / "numpy_level.npz")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order, factors = original_jitter_draws()
    changed = jitter(torch.from_numpy(values["p_img"]).permute(2, 0, 1) / 255, order, factors) * 255
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
        order, factors = original_jitter_draws() if jittered else ([0, 1, 2, 3], [1.0, 1.0, 1.0, 0.0])
    draws = row(jittered=jittered, order=tuple(order), factors=factors, sigma=0.15 + 1.15 * rng.random())
    out = Appearance()(image, draws[None])[0]
    difference = (out - torch.from_numpy(values[f"s{index}_img"])).mul(STDS).mul(255).abs()  # grey levels
    assert difference.mean() < 3 and difference.max() < 16
    edges = np.abs(edge_target(image)[0].numpy() - values[f"s{index}_sobel"])
    assert (edges > 0).mean() < 0.005 and edges.max() <= 4  # the crop differs by one grey level here and there
