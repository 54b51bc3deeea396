"""DIIA's coarse layout: what the network itself is confident of, the target and the input of layout reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from network.upsampling import SmallLogits, logit_parts

IGNORE = 255
CAP = 0.99  # of the layout's thresholds
_PART = 1 << 15  # pixels at once: what is written stays in the cache
Confidence = Literal["logits", "softmax"]


def coarse_layout(logits: Tensor | SmallLogits, *, confidence: Confidence = "logits") -> Tensor:
    """Label the pixels of which the network is confident; the others become 255. Nothing here waits for the device.

    A pixel is kept where its value, its largest raw logit or its largest probability, reaches the upper median of the
    values of its class over the whole batch, capped at 0.99. Maps logits (B, classes, H, W) to (B, H, W) int64.
    """
    in_graph = torch.compiler.is_compiling()
    if isinstance(logits, Tensor) and logits.device.type == "cpu" and not in_graph:
        layout = _layout_on_cpu(_scores(logits, confidence).contiguous())
        if layout is not None:
            return layout
    num_classes, largest = (logits.maps[0] if isinstance(logits, SmallLogits) else logits).shape[1], []
    for _, part in logit_parts(logits):
        largest.append(_scores(part, confidence).max(1))  # (B, h, W) values and labels
    values, labels = largest[0] if len(largest) == 1 else map(partial(torch.cat, dim=1), zip(*largest, strict=True))
    medians = (_medians_in_graphs if in_graph else _medians)(values, labels, num_classes)
    return torch.where(values < medians.clamp(max=CAP)[labels], IGNORE, labels)


def _scores(logits: Tensor, confidence: Confidence) -> Tensor:
    """Return what is compared, (B, classes, H, W) float32."""
    # Parity: the original compares raw logits with the cap of 0.99, not probabilities.
    scores = logits.detach().float()
    return scores.softmax(1) if confidence == "softmax" else scores


def _layout_on_cpu(scores: Tensor) -> Tensor | None:
    """Return the layout of scores (B, classes, H, W) with parts that fit a core's cache; None where one is nan.

    A trained network's logits are mostly above the cap, and where the median of a class is, nothing needs an order.
    """
    planes, threads, cap = scores.numpy(), torch.get_num_threads(), np.float32(CAP)
    batch, classes, height, width = planes.shape
    values, labels = (np.zeros((batch, height, width), kind) for kind in (np.float32, np.uint8))
    layout, rows = np.empty(labels.shape, np.int64), max(_PART // width, 1)
    thresholds = np.full(classes, cap)

    def search(part: tuple[int, slice]) -> np.ndarray:
        """Fill values and labels; return how many pixels each class has, and how many of them are below the cap."""
        image, index, best = planes[part[0], :, part[1]], labels[part], values[part]
        number = np.empty(index.shape, np.uint8)  # first 1 where a class is better, then its number
        np.copyto(best, image[0])
        for c in range(1, classes):
            np.greater(image[c], best, out=number.view(bool))
            np.multiply(number, np.uint8(c), out=number)
            np.maximum(index, number, out=index)
            np.maximum(best, image[c], out=best)
        return np.stack([np.bincount(of.ravel(), minlength=classes) for of in (index, index[best < cap])])

    def split(part: tuple[int, slice]) -> list[np.ndarray]:
        return [values[part][labels[part] == c] for c in low]

    def median(c: int, pieces: Sequence[np.ndarray]) -> None:
        ordered = np.concatenate(pieces)
        ordered.partition(middle[c])
        thresholds[c] = ordered[middle[c]]

    def write(part: tuple[int, slice]) -> None:
        weak = values[part] < thresholds.take(labels[part], mode="clip")  # no class is left out: clip checks nothing
        layout[part] = np.where(weak, np.uint8(IGNORE), labels[part])

    parts = [(image, slice(top, top + rows)) for image in range(batch) for top in range(0, height, rows)]
    with ThreadPoolExecutor(threads) as pool:
        counts, below = np.sum(list(pool.map(search, parts)), axis=0)
        if np.isnan(values.max(initial=0)):
            return None
        middle = np.round(counts / 2).astype(int)  # Parity: halves to the even number
        low = np.flatnonzero(below > middle).astype(np.uint8)  # as the labels: compared without a copy
        list(pool.map(median, low, zip(*pool.map(split, parts), strict=True)))
        list(pool.map(write, parts))
    return torch.from_numpy(layout)


def _medians(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the upper median of each class's values, 0 without any, by counting the halves of their bits in turn."""
    bits = values.contiguous().view(torch.int32).flatten()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() + 2**31  # 0 .. 2^32 - 1, in the order of the floats
    classes, ones = labels.flatten(), torch.ones_like(bits)
    numbers = position = medians = torch.zeros(num_classes, dtype=torch.long, device=bits.device)
    for first, half in ((True, ordered >> 16), (False, ordered & 0xFFFF)):
        counts = torch.zeros(num_classes << 16, dtype=torch.int32, device=bits.device)
        sums = counts.scatter_add_(0, (classes << 16) + half, ones).view(num_classes, -1).cumsum(1)
        if first:
            # Parity: Python's round takes halves to the even number, so three values give the last one.
            numbers, position = sums[:, -1], (sums[:, -1] / 2).round().long()
        found = (sums <= position[:, None]).sum(1).clamp(max=0xFFFF)  # the half in which the position lies
        before = sums.gather(1, (found - 1).clamp(min=0)[:, None])[:, 0]
        position = position - torch.where(found > 0, before, 0)
        medians, ones = (medians << 16) + found, (half == found[classes]).int()
    medians = (medians - 2**31).int()
    medians = torch.where(medians < 0, medians ^ 0x7FFFFFFF, medians).view(torch.float32)
    return torch.where(numbers > 0, medians, 0.0)


def _medians_in_graphs(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Do the same without bit casts and stable sorts, which ONNX lacks."""
    classes, order = labels.flatten(), values.flatten().argsort()
    number = order.shape[0]  # unlike len, it stays free in a graph
    order = order[(classes[order] * number + torch.arange(number, device=order.device)).argsort()]
    counts = classes.new_zeros(num_classes).scatter_add(0, classes, torch.ones_like(classes))
    middle = counts.cumsum(0) - counts + (counts / 2).round().long()
    return torch.where(counts > 0, values.flatten()[order[middle.clamp(max=number - 1)]], 0.0)
