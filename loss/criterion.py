"""The loss of a run: named terms of a network's output and their weighted sum."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from loss.terms import (
    ImageTargets,
    Truth,
    balanced_edge_entropy,
    cross_entropy,
    downsample_labels,
    edge_distance,
    ignore_easy_pixels,
)
from loss.whitening import Whitening
from network.outputs import SegmentorOutput

WEIGHTS: dict[str, dict[str, float]] = {
    "linear": {"fused": 1.0},
    "plain": {"fused": 1.0, "aux": 0.4},
    "diia": {"coarse": 0.5, "aux": 0.1, "fused": 1.0, "layout": 0.1, "edge_logits": 0.1, "edge": 0.001},
}
# Weights of the 19 classes for --cls_wt_loss, as in RobustNet's loss.py.
CLASS_WEIGHTS = (
    *(0.8373, 0.9180, 0.8660, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023),
    *(0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507),
)
CORRECTED = {  # by correction of diia-v2
    "edge": {"edge": WEIGHTS["diia"]["edge_logits"]},
    "losses": {"coarse": WEIGHTS["plain"]["fused"], "aux": WEIGHTS["plain"]["aux"]},
}
LAYOUT_LIMIT, LAYOUT_DAMPING = 3.0, 0.01


class Criterion(nn.Module):
    """Computes the terms that a head has; holds ISW's masks, which are part of its state."""

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        head: str,
        whitening: Whitening | None,
        whitening_weight: float,
        class_weights: Sequence[float] | None = None,
        targets: ImageTargets | None = None,
        smoothing: float = 0.0,
        ohem: tuple[float, float] | None = None,
        corrections: Collection[str] = (),
    ) -> None:
        """Keep the parts.

        Args:
            smoothing: of the labels; the coarse layout, which the network made itself and has to copy, is not smoothed.
            ohem: threshold and least share of `ignore_easy_pixels`.
            corrections: of diia-v2. `edge` makes the edge term `balanced_edge_entropy`, with the weight of the other
                DIIA terms; `losses` gives the coarse and the auxiliary term the weights of the plain head's terms.
        """
        super().__init__()
        self.head, self.whitening, self.targets, self.smoothing, self.ohem = head, whitening, targets, smoothing, ohem
        self.weights: dict[str, float] = dict(WEIGHTS[head])
        self.edge_loss = balanced_edge_entropy if "edge" in corrections else edge_distance
        for name in CORRECTED.keys() & set(corrections):
            self.weights |= CORRECTED[name]
        if whitening is not None:
            self.weights["whitening"] = whitening_weight
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(
        self, output: SegmentorOutput, labels: Tensor, edges: Tensor | None = None, *, whiten: bool, relax: bool = True
    ) -> dict[str, Tensor]:
        """Return the unweighted terms by name.

        Args:
            labels: (B, H, W) int64, 255 = ignored.
            edges: (B, H, W) edge target 0..255; DIIA's edge branch needs it.
            whiten: whether the whitening term is computed; ISW must have masks then.
            relax: whether borders are relaxed where the run asks for it; the image weights stay without it.
        """
        num_classes, targets = output.fused.shape[1], self.targets
        sets = labels if targets is None else targets.sets(labels, num_classes=num_classes, relax=relax)

        def weighed(sets: Tensor) -> Truth:
            return sets if targets is None else targets.weigh(sets, num_classes=num_classes)

        truth = weighed(sets)
        terms = {"fused": self._entropy(output.fused, truth)}
        if output.aux is not None:
            small = weighed(downsample_labels(sets, size=output.aux.shape[2:]))  # neighbours are full-size pixels
            terms["aux"] = self._entropy(output.aux, small)
        parts = output if self.head == "diia" else SegmentorOutput(output.fused)
        if parts.coarse is not None:
            terms["coarse"] = self._entropy(parts.coarse, truth)
        if parts.layout_logits is not None:
            assert parts.layout is not None
            terms["layout"] = cross_entropy(parts.layout_logits, parts.layout, weight=self.class_weights)
        if parts.edge is not None:
            assert edges is not None and parts.edge_logits is not None
            terms["edge_logits"] = self._entropy(parts.edge_logits, truth)
            terms["edge"] = self.edge_loss(parts.edge, edges)
        if whiten:
            assert self.whitening is not None, "this method has no whitening term"
            terms["whitening"] = self.whitening(output.style)
        return terms

    def _entropy(self, logits: Tensor, truth: Truth) -> Tensor:
        if self.ohem is not None and isinstance(truth, Tensor):
            truth = ignore_easy_pixels(logits, truth, threshold=self.ohem[0], min_share=self.ohem[1])
        return cross_entropy(logits, truth, weight=self.class_weights, smoothing=self.smoothing)

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of named terms; a name without a weight raises KeyError."""
        if unknown := [name for name in terms if name not in self.weights]:
            raise KeyError(f"no weight for the loss term {', '.join(unknown)}; known: {', '.join(self.weights)}")
        values = dict(terms)
        if (layout := terms.get("layout")) is not None:  # Parity: the original damps this term as long as it is large.
            values["layout"] = torch.where(layout.detach() > LAYOUT_LIMIT, LAYOUT_DAMPING, 1.0) * layout
        return torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
