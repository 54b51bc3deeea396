"""Views of an image and the average of what is predicted for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import config
from evaluation.protocols import Inference, build_inference, window_weights
from tests.test_evaluation import Frames, Threshold, evaluator


def image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network() -> Any:
    """Layers whose output depends on what surrounds a pixel, on the border and on the direction."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    return layers.requires_grad_(False)


def test_by_default_the_logits_are_the_networks_own(network: Any) -> None:
    images = image(20, 30)
    assert torch.equal(Inference()(network, images), network(images))
    assert build_inference(config.parse([], program="valid")) == Inference()
    assert (Inference().resizing, Inference().views) == ("", "1")


@given(st.integers(1, 200), st.integers(1, 120), st.data())
@settings(max_examples=60, deadline=None)
def test_the_weights_of_windows_sum_to_one_everywhere(side: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    total, spans = torch.zeros(side), window_weights(side, window, stride)
    for start, weights in spans:
        assert len(weights) == min(window, side) and (weights > 0).all()
        total[start : start + len(weights)] += weights
    torch.testing.assert_close(total, torch.ones(side))
    starts = [start for start, _ in spans]
    assert starts[0] == 0 and starts[-1] == max(side - window, 0)
    assert all(0 < step <= stride for step in np.diff(starts))


@pytest.mark.parametrize("window", [(20, 30), (64, 64), (20, 99)])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_a_window_that_covers_the_image_is_the_whole_image(network: Any, window: Any, average: Any) -> None:
    images = image(20, 30)
    for inference in (Inference(average=average), Inference(average=average, scales=(0.5, 1.0), flip=True)):
        windows = replace(inference, window=window, stride=(7, 9))
        assert torch.equal(inference(network, images), windows(network, images))


@pytest.mark.parametrize("size", [(50, 70), (16, 70), (9, 33)])
def test_windows_show_no_seam_in_maps_that_have_none(size: tuple[int, int]) -> None:
    down, across = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    linear = torch.stack((0.3 * down - 0.2 * across, torch.full(size, 7.0), 0.1 * down + across))[None]
    found = Inference(window=(16, 20), stride=(12, 15), average="logits")(lambda view: view, linear)
    torch.testing.assert_close(found, linear)
    found = Inference(window=(16, 20), stride=(12, 15))(lambda view: view, linear).softmax(1)
    torch.testing.assert_close(found, linear.softmax(1))


def test_windows_that_disagree_blend_into_each_other() -> None:
    calls = iter(range(100))
    found = Inference(window=(32, 32), stride=(16, 16), average="logits")(
        lambda view: torch.full((1, 1, *view.shape[2:]), float(next(calls))), torch.zeros(1, 3, 32, 80)
    )
    profile = found[0, 0, 5]  # four windows: 0, 1, 2, 3
    assert torch.equal(found[0, 0], profile.expand(32, 80))
    assert (profile[:16] == 0).all() and torch.allclose(profile[-16:], torch.tensor(3.0))
    assert (profile.diff() >= -1e-5).all() and profile.diff().max() < 2.001 / 17  # from one end of a tent to the next


def test_half_is_the_network_on_means_of_two_by_two_pixels(network: Any) -> None:
    images = image(20, 30)
    found = Inference(halved=True)(network, images)
    small = images.reshape(2, 3, 10, 2, 15, 2).mean((3, 5))
    expected = network(small).numpy()  # (2,4,10,15)
    # pixel i of 20 lies at (i + 0.5) / 2 - 0.5 of 10; beyond the outer centres the outer value holds
    rows, columns = (np.clip((np.arange(side) + 0.5) / 2 - 0.5, 0, side / 2 - 1) for side in (20, 30))
    where = np.meshgrid(rows, columns, indexing="ij")
    for sample in range(2):
        for channel in range(4):
            values = scipy.ndimage.map_coordinates(expected[sample, channel], where, order=1)
            np.testing.assert_allclose(found[sample, channel].numpy(), values, atol=1e-5)
    assert torch.equal(found, Inference(scales=(0.5,))(network, images))
    assert Inference(halved=True)(network, image(21, 31)).shape == (2, 4, 21, 31)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_flipping_an_image_flips_its_flip_averaged_prediction(network: Any, average: Any) -> None:
    images, inference = image(20, 30), Inference(flip=True, average=average)
    torch.testing.assert_close(inference(network, images.flip(3)).flip(3), inference(network, images))
    plain, mirrored = network(images), network(images.flip(3)).flip(3)
    assert not torch.allclose(plain, mirrored)
    expected = (plain + mirrored) / 2
    if average == "probabilities":
        expected = ((plain.softmax(1) + mirrored.softmax(1)) / 2).log()
    torch.testing.assert_close(inference(network, images), expected)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_scales_are_averaged_at_native_size(network: Any, average: Any) -> None:
    images, seen = image(20, 30), []

    def predict(view: Tensor) -> Tensor:
        seen.append(tuple(view.shape[2:]))
        return torch.stack((view[:, 0] * 0 + view.shape[2], view[:, 0] * 0), dim=1) / 10  # tells the scale

    found = Inference(scales=(0.5, 1.0, 2.0), average=average)(predict, images)
    assert seen == [(10, 15), (20, 30), (40, 60)]
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    expected = logits.mean(0) if average == "logits" else logits.softmax(1).mean(0).log()
    torch.testing.assert_close(found, expected[None, :, None, None].expand(2, 2, 20, 30))
    torch.testing.assert_close(Inference(scales=(1.0,), average=average)(network, images), network(images))


def test_probabilities_that_vanish_have_finite_logarithms() -> None:
    found = Inference(flip=True)(lambda view: view * 1e4, torch.tensor([1.0, 0.0])[None, :, None, None])
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("flags", "expected", "resizing", "views"),
    [
        ("--eval_protocol robustnet", Inference(), "", "1"),
        ("--eval_protocol half", Inference(halved=True), ", images halved, logits back at native size", "1"),
        (
            "--eval_protocol sliding",
            Inference(window=(1024, 1024), stride=(768, 768)),
            ", windows 1024x1024, stride 768x768",
            "1, mean of probabilities",
        ),
        (
            "--eval_protocol sliding --window 64 100 --average logits",
            Inference(window=(64, 100), stride=(48, 75), average="logits"),
            ", windows 64x100, stride 48x75",
            "1, mean of logits",
        ),
        (
            "--scales 0.5 1 --flip --average logits",
            Inference(scales=(0.5, 1.0), flip=True, average="logits"),
            "",
            "0.5 1 and flipped, mean of logits",
        ),
    ],
)
def test_flags_choose_the_views_and_the_protocol_says_them(
    flags: str, expected: Inference, resizing: str, views: str
) -> None:
    found = build_inference(config.parse(flags.split(), program="valid"))
    assert found == expected and (found.resizing, found.views) == (resizing, views)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_evaluator_scores_the_averaged_prediction(batch_size: int) -> None:
    class Left(Threshold):
        """Predicts class 1 in the left half of what it sees, so that a mirrored view says the opposite."""

        def predict(self, images: Tensor) -> Tensor:
            left = (torch.arange(images.shape[3]) < images.shape[3] // 2).expand(images.shape[0], *images.shape[2:])
            return torch.stack([~left, left], dim=1).float()

    inference = Inference(flip=True)
    found = evaluator(batch_size=batch_size, inference=inference).evaluate(Left(), Frames(), num_classes=2)
    assert found.loss == pytest.approx(np.log(2))  # both classes are equally likely everywhere
    plain = evaluator(batch_size=batch_size).evaluate(Left(), Frames(), num_classes=2)
    assert found.confusion[:, 1].sum() == 0 < plain.confusion[:, 1].sum()
