"""One domain scored: its counts, its scores, a picture of a few predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils import pictures
from utils.evaluation import evaluate
from utils.report import DomainScore, domain_scores


@dataclass(frozen=True)
class Scorer:
    """Scores a network on domains, always in the same way.

    Attributes:
        normalise: (B,3,h,w) uint8 -> float, on the device.
        batch_size: images of equal size that go through the network together.
        num_pictures: images per domain that are drawn.
    """

    normalise: Callable[[Tensor], Tensor]
    device: torch.device
    class_names: Sequence[str]
    palette: np.ndarray
    ignore: int
    batch_size: int
    autocast_dtype: torch.dtype | None
    num_pictures: int

    def __call__(
        self, network: nn.Module, domain: Any, samples: Any, *, split: str, is_source: bool
    ) -> tuple[list[DomainScore], np.ndarray | None]:
        """Return the scores of a domain, the main counting first, and a picture (h,w,3) uint8 on rank 0.

        Args:
            domain: anything with `name`, `merge`, `classes` and `subsets`.
            samples: this process's share of the split, with `num_images`, `list_hash` and `protocol`.
        """
        found = evaluate(
            network,
            samples,
            normalise=self.normalise,
            device=self.device,
            name=domain.name,
            num_classes=len(self.class_names),
            batch_size=self.batch_size,
            autocast_dtype=self.autocast_dtype,
            num_pictures=self.num_pictures,
            ignore=self.ignore,
        )
        rows = domain_scores(
            found,
            domain=domain,
            is_source=is_source,
            split=split,
            list_hash=samples.list_hash,
            transform=samples.protocol,
            class_names=self.class_names,
        )
        if not found.pictures:
            return rows, None
        merged = np.arange(256, dtype=np.uint8)  # what counts as one class is shown as one
        for source, target in domain.merge:
            merged[source] = target
        shown = [(image, merged[truth], merged[prediction]) for image, truth, prediction in found.pictures]
        return rows, pictures.comparison(shown, palette=self.palette, class_names=self.class_names, ignore=self.ignore)


def mixed_dtype(device: torch.device, *, wanted: bool) -> torch.dtype | None:
    """Return the type of mixed precision on a device: float16 on a GPU, bfloat16 on the CPU, None where not wanted."""
    if not wanted:
        return None
    return torch.float16 if device.type == "cuda" else torch.bfloat16
