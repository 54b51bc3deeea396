"""How logits are computed from images at test time: whole, halved or in windows, at several scales, flipped.

Letters: B images, C classes, H x W their own size, h x w the size of a view.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from config import Config
from network import Segmentor
from network.outputs import SmallLogits
from utils.errors import ImageError


@dataclass(frozen=True)
class Inference:
    """Runs a network on one or several views of images and averages what it predicts; by default one plain pass.

    Attributes:
        halved: whether every view has half the size.
        window, stride: height and width of the windows and of the steps between them; no window: views are taken whole.
        scales: factors of the views' size.
        flip: whether each scale has a mirrored view too.
        average: what is averaged over windows and views.
    """

    halved: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] = (768, 768)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    average: Literal["probabilities", "logits"] = "probabilities"

    def logits(self, model: Any, images: Tensor) -> Tensor | SmallLogits:
        """Return what a call returns for a model with `predict`; one plain pass of a `Segmentor` is not upsampled."""
        if not isinstance(model, Segmentor):
            return self(model.predict, images)
        sizes = self._sizes(images)
        if self.flip or len(sizes) > 1 or sizes[0] != images.shape[2:] or not self._fits(sizes[0]):
            return self(lambda view: model.small_logits(view).whole(), images)
        with large_enough(images):
            return model.small_logits(images)

    def __call__(self, predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Return logits (B, C, H, W) float32 of images (B, 3, H, W), logarithms where probabilities are averaged.

        `predict` maps normalised images (B, 3, h, w) to logits (B, C, h, w): `network.predict` or a function like it.
        """
        size, flips, sizes = images.shape[2:], (False, True) if self.flip else (False,), self._sizes(images)
        single = len(sizes) * len(flips) == 1 and self._fits(sizes[0])
        as_probabilities = self.average == "probabilities" and not single
        total: Tensor | None = None
        for view_size, flipped in product(sizes, flips):  # one by one: DIIA's thresholds are taken over a batch
            view = _resized(images, view_size)
            maps = self._predict(predict, view.flip(3) if flipped else view, as_probabilities=as_probabilities)
            maps = _resized(maps.flip(3) if flipped else maps, size)
            total = maps if total is None else total + maps
        assert total is not None
        if single:
            return total
        mean = total / (len(sizes) * len(flips))
        return mean.clamp_(min=torch.finfo(mean.dtype).tiny).log_() if as_probabilities else mean

    def _sizes(self, images: Tensor) -> list[tuple[int, ...]]:
        """Return the size of the views at each scale."""
        factors = [scale / 2 if self.halved else scale for scale in self.scales]
        return [tuple(max(round(factor * side), 1) for side in images.shape[2:]) for factor in factors]

    def _fits(self, size: Sequence[int]) -> bool:
        return self.window is None or all(side <= limit for side, limit in zip(size, self.window, strict=True))

    def _predict(self, predict: Callable[[Tensor], Tensor], view: Tensor, *, as_probabilities: bool) -> Tensor:
        """Return logits or probabilities (B, C, h, w) of a view (B, 3, h, w), by windows where it does not fit one."""

        def maps_of(part: Tensor) -> Tensor:
            with large_enough(part):
                logits = predict(part).float()
            return logits.softmax(1) if as_probabilities else logits

        size = view.shape[2:]
        if self.window is None or self._fits(size):
            return maps_of(view)
        spans = [window_weights(*sides) for sides in zip(size, self.window, self.stride, strict=True)]
        total: Tensor | None = None
        for (top, down), (left, across) in product(*spans):
            rows, columns = slice(top, top + len(down)), slice(left, left + len(across))
            maps = maps_of(view[:, :, rows, columns])
            total = maps.new_zeros(*maps.shape[:2], *size) if total is None else total
            total[:, :, rows, columns] += maps * (down[:, None] * across).to(maps.device)
        assert total is not None
        return total

    @property
    def resizing(self) -> str:
        """What a protocol says of the views' size, in words; nothing where images are taken as they are."""
        halved = ", images halved, logits back at native size" if self.halved else ""
        return halved + (", windows {}x{}, stride {}x{}".format(*self.window, *self.stride) if self.window else "")

    @property
    def views(self) -> str:
        """Scales and flips in words, and what is averaged where anything is."""
        text = " ".join(f"{scale:g}" for scale in self.scales) + (" and flipped" if self.flip else "")
        return f"{text}, mean of {self.average}" if self.window or self.flip or len(self.scales) > 1 else text


@contextmanager
def large_enough(images: Tensor) -> Iterator[None]:
    """Raise `ImageError` where a network's instance norms refuse images (B, 3, H, W): their maps have one pixel."""
    try:
        yield
    except ValueError as error:
        if not re.search("Expected more than 1 (spatial element|value per channel)", str(error)):
            raise
        height, width = images.shape[2:]
        raise ImageError(
            f"{width}x{height} pixels are too few for this network, whose strides leave one pixel to an instance norm; "
            "leave such images out, or enlarge them (--scales, --window)"
        ) from error


def window_weights(side: int, window: int, stride: int) -> list[tuple[int, Tensor]]:
    """Return start and weights of the windows along one axis; at every pixel the weights sum to one.

    A window's weights fall linearly towards its ends, so that the next one takes over without a seam; the last window
    ends with the axis. A shorter axis has one window of its own length.
    """
    window = min(window, side)
    starts = [*range(0, side - window, stride), side - window]
    tent, total = np.minimum(np.arange(1, window + 1), np.arange(window, 0, -1)), np.zeros(side)
    for start in starts:
        total[start : start + window] += tent
    return [(start, torch.from_numpy((tent / total[start : start + window]).astype(np.float32))) for start in starts]


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resample bilinearly, not antialiased, as mmsegmentation does at test time; half the size: means of 2x2 pixels."""
    return maps if maps.shape[2:] == tuple(size) else interpolate(maps, tuple(size), mode="bilinear")


def build_inference(cfg: Config) -> Inference:
    """Return how --eval_protocol, --scales and --flip run a network."""
    settings = cfg.EVAL
    (height, width), stride = settings.WINDOW, settings.STRIDE
    down, across = stride or (height * 3 // 4, width * 3 // 4)
    return Inference(
        halved=settings.PROTOCOL == "half",
        window=(height, width) if settings.PROTOCOL == "sliding" else None,
        stride=(down, across),
        scales=tuple(settings.SCALES) or (1.0,),
        flip=settings.FLIP,
        average=settings.AVERAGE,
    )
