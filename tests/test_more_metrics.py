"""Boundary and calibration scores against slow definitions and scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import sklearn.metrics
import torch

from datasets.domains import BUILTIN
from datasets.labels import NUM_CLASSES
from evaluation import more_metrics
from evaluation.more_metrics import (
    BANDS,
    TITLES,
    MoreCounts,
    boundary_counts,
    boundary_scores,
    calibration_scores,
    confidence_counts,
    plot_reliability,
    reliability,
)
from tests.street_data import blocks

CLASSES = range(5)


def maps(seed: int, size: tuple[int, int] = (40, 60)) -> tuple[np.ndarray, np.ndarray]:
    """Return a truth with ignored pixels, and a prediction that is its shifted twin with some noise."""
    label = blocks(seed, (size[0] + 1, size[1] + 2), classes=list(CLASSES))
    truth, shifted = label[: size[0], : size[1]], label[1:, 2:]
    rng = np.random.default_rng(seed)
    noisy = (shifted > 4) | (rng.random(size) < 0.02)
    return truth, np.where(noisy, rng.integers(0, 5, size), shifted).astype(np.uint8)


def counts_of(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    pair = (torch.from_numpy(array)[None] for array in (truth, prediction))
    return boundary_counts(*pair, num_classes=5).numpy()


def distance(mask: np.ndarray) -> np.ndarray:
    """Steps in rows or columns to the nearest pixel of a mask."""
    if not mask.any():
        return np.full(mask.shape, 10_000)
    return np.asarray(scipy.ndimage.distance_transform_cdt(~mask, metric="chessboard"))


def band_of(label: np.ndarray, c: int, ignored: np.ndarray, reach: int) -> np.ndarray:
    """Pixels of a class at most `reach` steps from a labelled pixel of another class or from what is off the image."""
    other = np.pad((label != c) & ~ignored, 1, constant_values=True)
    return np.asarray((label == c) & ~ignored & (distance(other)[1:-1, 1:-1] <= reach))


@pytest.mark.parametrize("seed", range(4))
def test_boundary_scores_are_those_of_distances(seed: int) -> None:
    truth, prediction = maps(seed)
    ignored, found = truth == 255, boundary_scores(counts_of(truth, prediction), classes=CLASSES)
    assert ignored.any()
    for band in BANDS:
        reach = max(round(band * np.hypot(40, 60)), 1)
        ious, f_scores = [], []
        for c in CLASSES:
            one, two = (band_of(label, c, ignored, reach) for label in (truth, prediction))
            ious.append((one & two).sum() / (one | two).sum())
            contours = []
            for label in (truth, prediction):  # within the image
                others = (label != c) & ~ignored
                contours.append((label == c) & ~ignored & (distance(others) <= 1))
            precision = (distance(contours[0])[contours[1]] <= reach).mean()
            recall = (distance(contours[1])[contours[0]] <= reach).mean()
            f_scores.append(2 * precision * recall / (precision + recall))
        assert found[f"boundary_iou_{100 * band:g}"] == pytest.approx(np.mean(ious))
        assert found[f"boundary_f_{100 * band:g}"] == pytest.approx(np.mean(f_scores))
        assert 0.05 < np.mean(ious) < 0.95


def test_without_ignored_pixels_the_band_is_the_published_erosion() -> None:
    truth, prediction = (np.minimum(label, 4) for label in maps(1))
    counts = counts_of(truth, prediction)
    for band, rows in zip(BANDS, counts, strict=True):
        for c in CLASSES:
            masks = []
            for label in (truth, prediction):
                reach = max(round(band * np.hypot(40, 60)), 1)
                square = np.ones((3, 3), bool)
                masks.append((label == c) & ~scipy.ndimage.binary_erosion(label == c, square, iterations=reach))
            assert rows[:3, c].tolist() == [masks[0].sum(), masks[1].sum(), (masks[0] & masks[1]).sum()]


def test_boundary_counts_of_a_batch_are_sums_and_a_perfect_prediction_scores_one() -> None:
    pairs = [maps(seed) for seed in (5, 6)]
    batch = [torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True)]
    total = boundary_counts(*batch, num_classes=5).numpy()
    assert (total == counts_of(*pairs[0]) + counts_of(*pairs[1])).all()
    truth = pairs[0][0]
    perfect = boundary_scores(counts_of(truth, np.minimum(truth, 4)), classes=CLASSES)  # any class where it is ignored
    assert set(perfect.values()) == {1.0}


def test_classes_without_a_border_are_left_out_and_missed_ones_are_zero() -> None:
    truth, prediction = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    truth[4, 4] = 1
    found = boundary_scores(counts_of(truth, prediction), classes=CLASSES)
    assert found["boundary_f_1"] == 0  # no predicted contour at all, neither around class 0 nor of class 1
    counts = counts_of(prediction, prediction)
    assert np.isnan(boundary_scores(counts, classes=CLASSES)["boundary_f_1"])
    assert boundary_scores(counts, classes=CLASSES)["boundary_iou_1"] == 1  # along the edge of the image


@pytest.mark.parametrize("reach", range(1, 9))
def test_what_is_seen_is_a_square(reach: int) -> None:
    point = torch.zeros(1, 21, 23, dtype=torch.int32)
    point[0, 10, 11] = 6
    expected = torch.zeros_like(point)
    expected[0, 10 - reach : 11 + reach, 11 - reach : 12 + reach] = 6
    assert torch.equal(more_metrics._seen(point, reach=reach), expected)


def prediction_of(seed: int, *, sharpness: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits (2,5,40,50), truth and prediction; the sharper, the surer a network is beyond its accuracy."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 6, (2, 40, 50), generator=generator)
    logits = torch.randn(2, 5, 40, 50, generator=generator)
    logits.scatter_add_(1, truth.clamp(max=4)[:, None], torch.full((2, 1, 40, 50), 1.5))
    logits *= sharpness
    return logits, torch.where(truth == 5, 255, truth).byte(), logits.argmax(1).byte()


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 8.0])  # under-, well and overconfident, there nearly all above 0.999
def test_calibration_is_that_of_single_pixels(sharpness: float) -> None:
    logits, truth, prediction = prediction_of(0, sharpness=sharpness)
    found = calibration_scores(confidence_counts(logits, truth, prediction, num_classes=5).numpy(), classes=CLASSES)
    kept = (truth != 255).numpy()
    confidence = logits.double().softmax(1).amax(1).numpy()[kept]
    wrong = (truth != prediction).numpy()[kept]
    ece = 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            ece += inside.mean() * abs((~wrong[inside]).mean() - confidence[inside].mean())
    assert found["ece"] == pytest.approx(ece, abs=2e-3)
    assert found["error_auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(wrong, -confidence), abs=1e-3)
    false, true, _ = sklearn.metrics.roc_curve(wrong, -confidence, drop_intermediate=False)
    assert found["error_fpr95"] == pytest.approx(false[np.argmax(true >= 0.95)], abs=5e-3)


def test_reliability_by_hand() -> None:
    probability = torch.tensor([0.7, 0.7, 0.7, 0.7, 0.95, 1.0])
    logits = torch.stack((probability, 1 - probability)).log()[None, :, None]  # (1,2,1,6), the last one infinite
    truth = torch.tensor([[[0, 0, 1, 1, 0, 0]]], dtype=torch.uint8)
    counts = confidence_counts(logits, truth, torch.zeros_like(truth), num_classes=2).numpy()
    assert counts.sum() == 6 and counts[1, 0].sum() == 2
    pixels, confidence, accuracy = reliability(counts, classes=(0, 1))
    assert pixels.tolist() == [0] * 10 + [4, 0, 0, 0, 2]
    assert confidence[10] == pytest.approx(0.7, abs=1e-3) and confidence[14] == pytest.approx(0.975, abs=1e-3)
    assert (accuracy[10], accuracy[14]) == (0.5, 1.0)
    found = calibration_scores(counts, classes=(0, 1))
    assert found["ece"] == pytest.approx(4 / 6 * 0.2 + 2 / 6 * 0.025, abs=1e-3)
    assert found["error_auroc"] == pytest.approx((2 * 2 + 2 * 2 / 2) / (2 * 4))
    assert found["error_fpr95"] == pytest.approx(2 / 4)
    only = calibration_scores(counts, classes=(0,))  # class 0 has no error: no rank to speak of
    assert np.isnan(only["error_auroc"]) and np.isnan(only["error_fpr95"]) and only["ece"] > 0


def test_counts_follow_the_domains_classes() -> None:
    domain = replace(BUILTIN["camvid"], merge=((3, 2),), classes=(0, 1, 2))
    truth = torch.tensor([[[3, 2, 0, 4, 255, 1]]], dtype=torch.uint8)
    prediction = torch.tensor([[[2, 3, 0, 4, 1, 5]]], dtype=torch.uint8)
    more = MoreCounts.of_domain(domain, device=torch.device("cpu"))
    logits = torch.nn.functional.one_hot(prediction.long(), NUM_CLASSES).permute(0, 3, 1, 2).float()
    for _ in range(2):
        more.add_confidences(logits, truth, prediction)
        more.add_boundaries(truth, prediction)
    by_class = more.confidences.sum(2)
    assert by_class.sum() == 8 and by_class[:3].tolist() == [[0, 2], [2, 0], [0, 4]]  # walls count as buildings
    assert list(more.scores(domain.classes)) == list(TITLES)


def test_the_reliability_diagram_draws() -> None:
    logits, truth, prediction = prediction_of(0, sharpness=2.0)
    counts = confidence_counts(logits, truth, prediction, num_classes=5)
    picture = plot_reliability(counts, classes=CLASSES, title="town: 4 images of val (list abc), native size")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and len(np.unique(picture)) > 20
    empty = plot_reliability(torch.zeros_like(counts), classes=CLASSES, title="nothing")
    assert empty.shape == picture.shape
