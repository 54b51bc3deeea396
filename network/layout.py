"""DIIA's coarse layout: what the network itself is confident of, the target and the input of layout reconstruction."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from network.outputs import SmallLogits, cached_parts, largest_class, logit_parts
from utils import IGNORE
from utils.parallel import opencv

CAP = 0.99  # of the layout's thresholds
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

    Each class's median is selected among the pixels of its level alone. A trained network's logits are mostly above the
    cap, and where the median of a class is, nothing needs an order.
    """
    planes, cap = scores.numpy(), np.float32(CAP)
    batch, classes, height, width = planes.shape
    values, labels, levels = (np.empty((batch, height, width), kind) for kind in (np.float32, np.uint8, np.uint8))
    layout, parts = np.empty(labels.shape, np.int64), cached_parts(planes)
    thresholds, median_levels = np.full(256, cap), np.zeros(256, np.uint8)  # by class, as long as LUT wants them

    def search(part: tuple[int, slice]) -> np.ndarray:
        """Fill values, labels and levels, 1 to 254 below the cap, else 255; count each class's pixels by level."""
        value, label, level = values[part], labels[part], levels[part]
        largest_class(planes[part[0], :, part[1]], value, label)
        level[...] = np.fmin(np.fmax(value, cap / 128), cap) * (254.5 / cap)  # 1 for nan
        level += value >= cap
        counts: np.ndarray = opencv().calcHist([label, level], [0, 1], None, [classes, 256], [0, classes, 0, 256])
        return counts.astype(np.int64)  # float32, exact

    def select(part: tuple[int, slice]) -> tuple[np.ndarray, np.ndarray]:
        chosen = levels[part] == opencv().LUT(labels[part], median_levels)
        return values[part][chosen], labels[part][chosen]

    def write(part: tuple[int, slice]) -> None:
        weak = (values[part] < opencv().LUT(labels[part], thresholds)).view(np.uint8)
        layout[part] = labels[part] | -weak  # -1 is 255

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        ends = np.stack(list(pool.map(search, parts))).sum(0).cumsum(1)  # (classes, 256)
        if np.isnan(values.max(initial=0)):
            return None
        middle = np.round(ends[:, -1] / 2).astype(int)  # Parity: halves to the even number
        found = (ends <= middle[:, None]).sum(1)
        low = np.flatnonzero(found < 255)
        median_levels[low] = found[low]
        if low.size:
            near, of = map(np.concatenate, zip(*pool.map(select, parts), strict=True))
            for c in low:
                place = middle[c] - ends[c, found[c] - 1]
                thresholds[c] = np.partition(near[of == c], place)[place]
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
    """Return the medians without bit casts and stable sorts, which ONNX lacks."""
    classes, order = labels.flatten(), values.flatten().argsort()
    number = order.shape[0]  # unlike len, it stays free in a graph
    order = order[(classes[order] * number + torch.arange(number, device=order.device)).argsort()]
    counts = classes.new_zeros(num_classes).scatter_add(0, classes, torch.ones_like(classes))
    middle = counts.cumsum(0) - counts + (counts / 2).round().long()
    return torch.where(counts > 0, values.flatten()[order[middle.clamp(max=number - 1)]], 0.0)
