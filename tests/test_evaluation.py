"""Scoring a split: every image, every pixel, any grouping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor, nn

import config
from datasets.domains import BUILTIN
from datasets.splits import Pair, Split
from evaluation import Evaluator
from evaluation.description import describe_weights
from network import resolve_method
from utils.errors import UserError


class Threshold(nn.Module):
    """Predicts class 1 where the red channel is bright."""

    def predict(self, images: Tensor) -> Tensor:
        bright = images[:, 0] > 0.5  # (B,h,w)
        return torch.stack([~bright, bright], dim=1).float()


class Frames:
    """Images of three sizes with their labels."""

    name, corruption = "frames", ""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.samples = []
        for index, size in enumerate([(8, 8), (8, 8), (8, 8), (6, 10), (4, 4)]):
            image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
            label = torch.randint(0, 3, size, generator=generator, dtype=torch.uint8)
            label[label == 2] = 255
            self.samples.append(SimpleNamespace(image=image, label=label, name=str(index)))
        self.split = SimpleNamespace(pairs=self.samples, domain=SimpleNamespace(name="frames"))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)


def evaluator(**settings: Any) -> Any:
    normalise: Any = lambda images: images.float() / 255  # noqa: E731
    return Evaluator(normalise=normalise, device=torch.device("cpu"), **settings)


def run(batch_size: int, pictures: int = 0) -> Any:
    return evaluator(batch_size=batch_size, num_pictures=pictures).evaluate(Threshold(), Frames(), num_classes=2)


def test_every_labelled_pixel_is_counted_once_whatever_the_grouping() -> None:
    found = run(1)
    labels = torch.cat([sample.label.flatten() for sample in Frames().samples])
    assert found.confusion.sum() == int((labels != 255).sum())
    assert found.confusion.sum(axis=1).tolist() == [int((labels == c).sum()) for c in (0, 1)]
    assert (run(2).confusion == found.confusion).all()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_counts_of_single_images_add_up(batch_size: int) -> None:
    found = evaluator(batch_size=batch_size, per_image=True).evaluate(Threshold(), Frames(), num_classes=2)
    assert (found.confusion == run(1).confusion).all() and run(1).images is None
    for counts, sample in zip(found.images, Frames().samples, strict=True):
        kept, bright = sample.label != 255, sample.image[0] / 255 > 0.5
        expected = sklearn.metrics.confusion_matrix(sample.label[kept], bright[kept].int(), labels=[0, 1])
        assert counts.tolist() == expected.tolist()


def test_loss_is_the_mean_over_pixels() -> None:
    total, pixels = 0.0, 0
    for sample in Frames().samples:
        logits = Threshold().predict(sample.image[None].float() / 255)
        total += float(
            nn.functional.cross_entropy(logits, sample.label[None].long(), ignore_index=255, reduction="sum")
        )
        pixels += int((sample.label != 255).sum())
    assert abs(run(1).loss - total / pixels) < 1e-6


def test_a_part_of_what_was_trained_on_is_no_unseen_domain() -> None:
    frames: Any = Frames()
    frames.split = Split(BUILTIN["acdc_fog"], "val", tuple(Pair(name, name, name) for name in "abcde"))
    frames.protocol = "native size"
    for source, is_source in (("acdc", True), ("acdc_night", False)):
        rows, _, _ = evaluator()(Threshold(), [frames], sources=[source], domains=BUILTIN, findings={})
        assert {row.is_source for row in rows} == {is_source}


def test_a_source_that_is_not_evaluated_adds_its_row_too() -> None:
    """A target is scored over the classes that an own domain with fewer classes trains."""
    frames: Any = Frames()
    frames.split = Split(BUILTIN["cityscapes"], "val", tuple(Pair(name, name, name) for name in "abcde"))
    frames.protocol = "native size"
    mine = replace(BUILTIN["cityscapes"], name="mine", classes=(0, 1))
    how: Any = {"sources": ["mine"], "domains": BUILTIN | {"mine": mine}, "findings": {}}
    rows, _, _ = evaluator()(Threshold(), [frames], **how)
    assert [(row.subset, row.scores.classes_in_mean) for row in rows if row.subset.startswith("2")] == [
        ("2 classes", 2)
    ]
    assert len(rows) > len(evaluator()(Threshold(), [frames], **how | {"domains": BUILTIN})[0])


def test_a_val_that_was_trained_on_says_so() -> None:
    frames: Any = Frames()
    frames.split = Split(BUILTIN["cityscapes"], "val", tuple(Pair(name, name, name) for name in "abcde"))
    frames.protocol = "native size"
    for source, said in (("cityscapes", "val"), ("cityscapes/trainval", "val (the training frames)")):
        (row, *_), _, _ = evaluator()(Threshold(), [frames], sources=[source], domains=BUILTIN, findings={})
        assert row.is_source and row.protocol.split == said
    cfg = config.parse(["--dataset", "cityscapes", "gtav", "--city_mode", "trainval"], program="train")
    network: Any = SimpleNamespace(method=resolve_method("base"), describe=str)
    about = describe_weights(network, cfg, progress={"step": 1, "epoch": 0}, averaged=False)
    assert about["source"].split() == ["cityscapes/trainval", "gtav"]


def test_pictures_are_spread_over_the_split() -> None:
    found = run(1, pictures=2)
    assert [picture[0].shape for picture in found.frames] == [(8, 8, 3), (8, 8, 3)]
    frames = Frames().samples
    assert (found.frames[1][0] == frames[2].image.permute(1, 2, 0).numpy()).all()


def test_the_mode_of_the_network_is_restored() -> None:
    network: Any = Threshold().train()
    evaluator().evaluate(network, cast(Any, Frames()), num_classes=2)
    assert network.training


def test_a_frame_too_small_for_instance_norms_is_named() -> None:
    class Normalised(Threshold):
        """Normalises maps at a stride of 8: those of the fourth frame, of 6x10 pixels, are 1x2, of the fifth 1x1."""

        def predict(self, images: Tensor) -> Tensor:
            small = images[:, :, ::8, ::8]
            nn.functional.instance_norm(small.repeat(1, 1, 1, 2) if images.shape[2] > 4 else small)
            return super().predict(images)

    with pytest.raises(UserError, match=r"^frames: 4: 4x4 pixels are too few for this network"):
        evaluator().evaluate(Normalised(), Frames(), num_classes=2)


class Bright:
    """Labels what `Threshold` predicts, without logits."""

    def __init__(self, *, blank: bool = False) -> None:
        self.blank = blank

    def labels(self, images: Tensor, names: list[str]) -> Tensor:
        assert images.dtype == torch.uint8 and len(names) == len(images)
        found = (images[:, 0] / 255 > 0.5).byte()
        return torch.full_like(found, 255) if self.blank else found


@pytest.mark.parametrize("batch_size", [1, 2])
def test_labels_without_logits_are_counted_alike(batch_size: int) -> None:
    found = evaluator(batch_size=batch_size, per_image=True).evaluate(Bright(), Frames(), num_classes=2)
    assert (found.confusion == run(1).confusion).all() and np.isnan(found.loss)
    with pytest.raises(UserError, match=r"^frames: 0: \d+ pixels that are labelled have no class in the prediction"):
        evaluator().evaluate(Bright(blank=True), Frames(), num_classes=2)
