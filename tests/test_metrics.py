"""Scores from counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.metrics import confusion_matrix, merge_classes, score

NAMES = [f"class {i}" for i in range(19)]


@given(st.integers(0, 2**32 - 1), st.integers(1, 400))
@settings(max_examples=30, deadline=None)
def test_confusion_matrix_counts_every_labelled_pixel(seed: int, pixels: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice([*range(5), 255], pixels)
    prediction = rng.integers(0, 5, pixels)
    found = confusion_matrix(torch.from_numpy(label), torch.from_numpy(prediction), num_classes=5).numpy()
    for truth in range(5):
        for guess in range(5):
            assert found[truth, guess] == ((label == truth) & (prediction == guess)).sum()
    assert found.sum() == (label != 255).sum()


def test_counts_stay_integers_beyond_float32() -> None:
    counts = torch.full((2, 2), 2**24, dtype=torch.int64)
    counts += confusion_matrix(torch.tensor([1]), torch.tensor([0]), num_classes=2)
    assert counts[1, 0] == 2**24 + 1


def test_scores_by_hand() -> None:
    confusion = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    found = score(confusion, ["a", "b", "c"])
    assert found.iou["a"] == pytest.approx(3 / 6)
    assert found.iou["b"] == pytest.approx(4 / 7)
    assert np.isnan(found.iou["c"])
    assert found.mean_iou == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert found.accuracy == pytest.approx(7 / 10)
    assert found.mean_class_accuracy == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert found.frequency_weighted_accuracy == pytest.approx(0.4 * 3 / 6 + 0.6 * 4 / 7)


def test_prediction_of_a_class_that_is_not_scored_is_wrong() -> None:
    confusion = np.array([[5, 0, 5], [0, 10, 0], [0, 0, 7]])
    found = score(confusion, ["a", "b", "c"], classes=(0, 1))
    assert found.iou == {"a": pytest.approx(0.5), "b": pytest.approx(1.0)}
    assert found.accuracy == pytest.approx(15 / 20)  # pixels of class c are left out


def test_merging_moves_truth_and_prediction() -> None:
    confusion = np.arange(9).reshape(3, 3)
    merged = merge_classes(confusion, [(2, 0)])
    assert merged.tolist() == [[0 + 2 + 6 + 8, 1 + 7, 0], [3 + 5, 4, 0], [0, 0, 0]]
    assert merged.sum() == confusion.sum()


def test_no_labelled_pixel_gives_nan_everywhere() -> None:
    found = score(np.zeros((2, 2), dtype=np.int64), ["a", "b"])
    assert np.isnan(found.mean_iou)
    assert np.isnan(found.accuracy)


@pytest.mark.parametrize("suffix", ["", "2"])
def test_scores_agree_with_the_original(golden: Path, suffix: str) -> None:
    values = np.load(golden / "numpy_level.npz")
    label, prediction = (torch.from_numpy(values[f"hist{suffix}_{kind}"]) for kind in ("gt", "pred"))
    confusion = confusion_matrix(label, prediction, num_classes=19).numpy()
    np.testing.assert_array_equal(confusion, values[f"hist{suffix}"])
    found = score(confusion, NAMES)
    np.testing.assert_allclose(list(found.iou.values()), values[f"iou{suffix}"], rtol=1e-12)
    assert found.mean_iou == pytest.approx(float(values[f"mean_iou{suffix}"]), rel=1e-12)
    if not suffix:
        assert found.accuracy == pytest.approx(float(values["acc"]), rel=1e-12)
        assert found.mean_class_accuracy == pytest.approx(float(values["acc_cls"]), rel=1e-12)
        assert found.frequency_weighted_accuracy == pytest.approx(float(values["fwavacc"]), rel=1e-12)
