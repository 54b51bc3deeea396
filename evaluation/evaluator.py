"""Scoring: every pixel of every image of a split, into one integer confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from evaluation.metrics import argmax_classes, confusion_matrix
from utils import distributed

T = TypeVar("T")


class Samples(Protocol):
    """This process's share of a split; every sample has `image` (3,h,w) uint8, `label` (h,w) uint8 and `name`."""

    num_images: int

    def __iter__(self) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Evaluation:
    """What scoring a split gave.

    confusion: (C, C) int64 over all processes, rows = truth. loss: mean cross entropy per labelled pixel.
    pictures: (image (h,w,3), truth (h,w), prediction (h,w)) of a few images, uint8.
    """

    confusion: np.ndarray
    loss: float
    num_images: int
    pictures: list[tuple[np.ndarray, np.ndarray, np.ndarray]]


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    samples: Samples,
    *,
    normalise: Callable[[Tensor], Tensor],
    device: torch.device,
    name: str,
    num_classes: int,
    batch_size: int = 1,
    autocast_dtype: torch.dtype | None = None,
    num_pictures: int = 0,
    ignore: int = 255,
) -> Evaluation:
    """Score a network on a split; the processes share the images and every one of them returns the same counts.

    Args:
        network: has `predict(images) -> logits` at the size of the images; is put in evaluation mode and back.
        normalise: (B,3,h,w) uint8 -> float, on the device.
        batch_size: neighbours of equal size that go through the network together. DIIA's layout thresholds are taken
            over the batch, so scores are independent of it only at 1.
        num_pictures: images of rank 0's share to keep, evenly spaced.
    """
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    loss = torch.zeros(3, dtype=torch.float64, device=device)  # sum over pixels, pixels, images
    share = -(-samples.num_images // distributed.world_size())  # images of rank 0
    spacing = max(share // num_pictures, 1) if num_pictures and distributed.is_main() else 0
    pictures: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    training = network.training
    network.eval()
    bar = tqdm(total=share, desc=f"score {name}", unit="image", disable=not distributed.is_main(), leave=False)
    seen = 0
    for group in cudnn_benchmark_off(_same_size(samples, batch_size)):
        images = torch.stack([sample.image for sample in group]).to(device)  # (B,3,h,w)
        labels = torch.stack([sample.label for sample in group]).to(device)  # (B,h,w) uint8
        with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
            logits = network.predict(normalise(images)).float()  # type: ignore[operator]
        predictions = argmax_classes(logits)
        counts += confusion_matrix(labels, predictions, num_classes=num_classes)
        loss[0] += F.cross_entropy(logits, labels.long(), ignore_index=ignore, reduction="sum").double()
        loss[1] += (labels != ignore).sum()
        loss[2] += len(group)
        for offset, sample in enumerate(group):
            if spacing and len(pictures) < num_pictures and (seen + offset) % spacing == 0:
                prediction = predictions[offset].cpu().numpy()
                pictures.append((sample.image.permute(1, 2, 0).numpy(), sample.label.numpy(), prediction))
        seen += len(group)
        bar.update(len(group))
    bar.close()
    network.train(training)
    distributed.all_reduce_sum(counts)
    total, pixels, images_scored = distributed.all_reduce_sum(loss).tolist()
    assert images_scored == samples.num_images, (images_scored, samples.num_images)
    return Evaluation(
        confusion=counts.cpu().numpy(),
        loss=total / pixels if pixels else float("nan"),
        num_images=samples.num_images,
        pictures=pictures,
    )


def cudnn_benchmark_off(items: Iterable[T]) -> Iterator[T]:
    """Yield the items while cuDNN does not search for the fastest kernels: with sizes that vary it cannot pay off."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield from items
    finally:
        torch.backends.cudnn.benchmark = before


def _same_size(samples: Iterable[Any], batch_size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for sample in samples:
        if group and (len(group) == batch_size or sample.image.shape != group[0].image.shape):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group
