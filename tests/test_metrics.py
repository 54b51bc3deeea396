"""Scores from counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.metrics import argmax_classes, confusion_matrix, merge_classes, score

NAMES = [f"class {i}" for i in range(19)]


@given(st.integers(0, 2**32 - 1), st.integers(1, 400))
@settings(max_examples=30, deadline=None)
def test_confusion_matrix_counts_every_labelled_pixel(seed: int, pixels: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice([*range(5), 255], pixels)
    prediction = rng.integers(0, 5, pixels)
    found = confusion_matrix(torch.from_numpy(label), torch.from_numpy(prediction), num_classes=5).numpy()
    as_bytes = confusion_matrix(torch.from_numpy(label).byte(), torch.from_numpy(prediction).byte(), num_classes=5)
    np.testing.assert_array_equal(as_bytes.numpy(), found)
    for truth in range(5):
        for guess in range(5):
            assert found[truth, guess] == ((label == truth) & (prediction == guess)).sum()
    assert found.sum() == (label != 255).sum()


@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.sampled_from([(0, 1, 2, 3, 4, 5), (0, 2, 5), (4,)]))
@settings(max_examples=30, deadline=None)
def test_counts_and_scores_are_those_of_scikit_learn(seed: int, pixels: int, classes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    label, prediction = rng.choice([0, 1, 2, 4, 5, 255], pixels), rng.integers(0, 6, pixels)  # class 3 has no truth
    confusion = confusion_matrix(torch.from_numpy(label), torch.from_numpy(prediction), num_classes=6).numpy()
    expected = sklearn.metrics.confusion_matrix(label, prediction, labels=[*range(6), 255])
    np.testing.assert_array_equal(confusion, expected[:6, :6])

    found = score(confusion, NAMES[:6], classes=classes)
    kept = np.isin(label, classes)  # pixels of other classes are left out
    label, prediction = label[kept], prediction[kept]
    options = {"labels": list(classes), "average": None}
    iou = sklearn.metrics.jaccard_score(label, prediction, **options, zero_division=0) if kept.any() else np.array([])
    recall = sklearn.metrics.recall_score(label, prediction, **options, zero_division=np.nan) if kept.any() else iou
    seen = [c in label or c in prediction for c in classes]  # the others are nan here, 0 in scikit-learn
    assert [not np.isnan(value) for value in found.iou.values()] == seen
    np.testing.assert_allclose(np.array(list(found.iou.values()))[seen], iou[seen] if kept.any() else [], rtol=1e-12)
    if kept.any():
        assert found.mean_iou == pytest.approx(iou[seen].mean(), rel=1e-12)
        assert found.accuracy == pytest.approx((label == prediction).mean(), rel=1e-12)
        assert found.mean_class_accuracy == pytest.approx(np.nanmean(recall), rel=1e-12)


def test_counts_stay_integers_beyond_float32() -> None:
    counts = torch.full((2, 2), 2**24, dtype=torch.int64)
    counts += confusion_matrix(torch.tensor([1]), torch.tensor([0]), num_classes=2)
    assert counts[1, 0] == 2**24 + 1


def test_bytes_are_counted_beyond_float32() -> None:
    label = torch.ones(2**24 + 4, dtype=torch.uint8)
    label[0] = 255
    found = confusion_matrix(label, torch.zeros_like(label), num_classes=2)
    assert found.tolist() == [[0, 0], [2**24 + 3, 0]]
    assert confusion_matrix(label[:0], label[:0], num_classes=2).tolist() == [[0, 0], [0, 0]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 21), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_the_best_class_is_that_of_argmax(seed: int, batch: int, classes: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-2, 3, (batch, classes, height, width), generator=generator).float()  # many are equal
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0])
    chosen = torch.randint(0, 5, values.shape, generator=generator)
    rare = torch.rand(values.shape, generator=generator) < (0.05 if seed % 2 else 0)
    for logits in (values, torch.where(rare, odd[chosen], values), -values.abs().log()):
        expected = logits.argmax(dim=1)
        for given_logits in (logits, logits.double(), logits.contiguous(memory_format=torch.channels_last)):
            found = argmax_classes(given_logits)
            assert found.dtype == torch.uint8 and torch.equal(found.long(), expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_best_class_does_not_depend_on_parts_and_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("network.outputs._CACHED_PIXELS", 40)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    logits = torch.randn(3, 19, 11, 13, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.equal(argmax_classes(logits).long(), logits.argmax(dim=1))


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
    stacked = merge_classes(np.stack((confusion, 2 * confusion)), [(2, 0)])
    assert stacked.tolist() == [merged.tolist(), (2 * merged).tolist()]


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
