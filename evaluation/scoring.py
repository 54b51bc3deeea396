"""Domains scored: their counts, their scores, a picture of a few predictions of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.evaluator import cudnn_benchmark_off, evaluate
from evaluation.features import FeatureDrawer
from evaluation.metrics import nan_mean
from evaluation.report import DomainScore, domain_scores
from utils import pictures


@dataclass(frozen=True)
class Scorer:
    """Scores a network on domains, always in the same way.

    Attributes:
        normalise: (B,3,h,w) uint8 -> float, on the device.
        batch_size: images of equal size that go through the network together.
        num_pictures: images per domain that are drawn.
        features: draws what the network computes inside for these images, None for not.
    """

    normalise: Callable[[Tensor], Tensor]
    device: torch.device
    class_names: Sequence[str]
    palette: np.ndarray
    batch_size: int
    autocast_dtype: torch.dtype | None
    num_pictures: int
    features: FeatureDrawer | None = None

    def __call__(
        self, network: nn.Module, domains: Iterable[tuple[Any, Any]], *, split: str, sources: Sequence[str]
    ) -> tuple[list[DomainScore], list[pictures.Drawing]]:
        """Return the scores of all domains, of each its main counting first, and rank 0's pictures.

        Args:
            domains: anything with `name`, `merge`, `classes` and `subsets`, each with this process's share of the
                split: samples with `num_images`, `list_hash` and `protocol`.
            sources: names of the domains that the network was trained on.
        """
        rows, drawn = [], []
        for domain, samples in domains:
            scores, shown = self._score(network, domain, samples, split=split, is_source=domain.name in sources)
            rows += scores
            drawn += shown
        return rows, drawn

    def _score(
        self, network: nn.Module, domain: Any, samples: Any, *, split: str, is_source: bool
    ) -> tuple[list[DomainScore], list[pictures.Drawing]]:
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
            return rows, []
        merged = np.arange(256, dtype=np.uint8)  # what counts as one class is shown as one
        for source, target in domain.merge:
            merged[source] = target
        shown = [(image, merged[truth], merged[prediction]) for image, truth, prediction in found.pictures]
        sheet = pictures.comparison(shown, palette=self.palette, class_names=self.class_names)
        drawn = [pictures.Drawing(f"{domain.name}/predictions", f"{domain.name}.png", sheet)]
        if self.features is not None:
            for number, frame in enumerate(cudnn_benchmark_off(shown), 1):
                name = f"{domain.name}_{number}"
                for kind, picture in self.features(*frame, merged=merged).items():
                    drawn.append(pictures.Drawing(f"{name}/{kind}", f"features/{name}_{kind}.png", picture))
        return rows, drawn


def selection_scores(
    rows: Iterable[DomainScore], *, sources: Sequence[str], targets: Sequence[str]
) -> Mapping[str, float]:
    """Return the mean IoU by which the best checkpoints are chosen: of each target, and the sources' mean."""
    mean_iou = {row.domain: row.scores.mean_iou for row in rows if not row.subset}
    found = {name: mean_iou[name] for name in targets}
    return {**found, "source": nan_mean([mean_iou[name] for name in sources if name in mean_iou])}


def autocast_dtype(device: torch.device, *, wanted: bool) -> torch.dtype | None:
    """Return the type of mixed precision on a device: float16 on a GPU, bfloat16 on the CPU, None where not wanted."""
    if not wanted:
        return None
    return torch.float16 if device.type == "cuda" else torch.bfloat16
