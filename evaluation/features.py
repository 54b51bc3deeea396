"""What a network computes inside for single images, as pictures: covariances, masks, edge maps, layouts, attention.

Letters: H, W pixels; C channels; N query pixels; h x w cells of the last features. Pictures are uint8 RGB.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from datasets.labels import CLASS_NAMES, IGNORE, PALETTE
from datasets.segmentation import TrainingBatch
from loss.whitening import Whitening, covariance
from network import Segmentor
from network.diia import DIIASegmentor
from network.methods import Method
from network.timm_backbone import TimmBackbone
from transforms.appearance import Appearance, edge_target
from utils.errors import UserError
from utils.parallel import opencv
from utils.pictures import (
    Array,
    class_legend,
    colorize,
    contact_sheet,
    figure_panels,
    new_figure,
    render,
    show,
    show_heat,
)

NUM_QUERIES = 6  # pixels whose attention is plotted where none are named
LARGEST_MASK = 256  # cells a side
NOTE = (
    "Covariances between the channels of one standardised map,\nabout 1 on the diagonal.\n"
    "The whitening loss pushes those in the mask towards 0."
)
logger = logging.getLogger(__name__)


class Activations(NamedTuple):
    """What a network computes for one image; empty or None where the method does not have it."""

    augmented: Array  # (H,W,3) uint8, the photometrically augmented view
    covariances: list[Array]  # (2,C,C) per site, of augmented view and image
    edge: Array | None  # (H,W) reconstructed edge map
    edge_target: Array | None  # (H,W)
    layout: Array | None  # (H,W) coarse layout, 255 where not confident
    attention: dict[str, Array]  # whose -> (N,h,w) weights of all cells for each query pixel, summing to one


@dataclass(frozen=True)
class FeaturePlotter:
    """Plots what a network computes inside for single images.

    Attributes:
        whitening: holds the masks, None where the method has none.
        augment: makes the photometrically augmented view of an image (transforms.build_fixed_augmentation).
        pixels: x y x y ... of the pixels whose attention is plotted; none: in the middle of the largest classes.
    """

    network: Segmentor
    whitening: Whitening | None
    augment: Callable[[Tensor], tuple[Tensor, Tensor]]
    device: torch.device
    autocast_dtype: torch.dtype | None = None
    pixels: Sequence[int] = ()

    def __post_init__(self) -> None:
        method, attends = self.network.method, self.network.attends or self.network.backbone.attends
        if not (self.network.style_channels or {"edge", "layout"} & set(method.parts) or attends):
            raise UserError(
                f"--visualize_feature: {method.label} has no whitening, no branches and no attention to show; "
                "leave it out and see the predictions of --pictures"
            )
        if self.pixels and not attends:
            raise UserError(f"--attention_pixels: {method.label} has no attention; leave the pixels out")

    def __call__(self, image: Array, truth: Array, prediction: Array, *, merged: Array) -> dict[str, Array]:
        """Return a picture of each kind that the method has.

        Args:
            image: (H,W,3) uint8.
            truth, prediction: (H,W).
            merged: (256,) class under which each class is shown.
        """
        queries = self._queries(truth) if self.network.attends or self.network.backbone.attends else {}
        values = self.activations(image, list(queries.values()))
        plots = {}
        if values.covariances:
            plots["covariances"] = self._plot_covariances(image, values)
        if values.edge is not None or values.layout is not None:
            plots["branches"] = _plot_branches(image, truth, prediction, values, merged=merged)
        if values.attention:
            plots["attention"] = self._plot_attention(image, values.attention, queries)
        return plots

    @torch.inference_mode()
    def activations(self, image: Array, pixels: Sequence[tuple[int, int]] = ()) -> Activations:
        """Compute what is plotted of an image (H,W,3) uint8, with the attention of some pixels (x, y)."""
        network, training, dtype = self.network, self.network.training, self.autocast_dtype
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(self.device)
        augmented, pair = self.augment(tensor)
        network.eval()
        style, attention = network.style_features(pair) if network.style_channels else (), {}
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            output = network(pair[1:]).float()
            if pixels and isinstance(network, DIIASegmentor) and network.attends:
                attention["DIIA"] = _array(network.attention_of(pair[1:], pixels)[0])
            if pixels and isinstance(network.backbone, TimmBackbone) and network.backbone.attends:
                attention["backbone's last block"] = _array(network.backbone.attention_of(pair[1:], pixels)[0])
        network.train(training)
        edge, layout = output.edge, output.layout
        target = None if edge is None else edge_target(tensor[None], magnitude=network.method.edge_magnitude)
        return Activations(
            augmented=_array(augmented.permute(1, 2, 0)),
            covariances=[_array(covariance(maps)) for maps in style],
            edge=None if edge is None else _array(edge[0, 0]),
            edge_target=None if target is None else _array(target[0]),
            layout=None if layout is None else _array(layout[0]),
            attention=attention,
        )

    def plot_masks(self, variances: Sequence[Tensor]) -> Array:
        """Plot per site the mean variance matrix (C,C) of the statistics, a histogram of it, and the mask chosen."""
        assert self.whitening is not None
        sites, masks = self.network.style_names, self.whitening.masks
        figure = new_figure(3 * 4.2, 3.6 * len(sites))
        rows = figure.subplots(len(sites), 3, squeeze=False)
        for row, site, variance, mask in zip(rows, sites, variances, masks, strict=True):
            values, chosen = _array(variance), _array(mask)
            counted = np.triu(values > 0, 1)
            low, high = np.percentile(values[counted], (1, 100)) if counted.any() else (1e-9, 1.0)
            low = min(low, high / 1.01)
            shown = np.where(np.triu(np.ones_like(chosen), 1), np.maximum(values, low), np.nan)
            show(row[0], f"{site}: variance of the covariances", shown, bar=True, norm="log", vmin=low, vmax=high)
            parts = [values[counted & ~chosen], values[counted & chosen]]
            looks = {"histtype": "stepfilled", "alpha": 0.6, "label": ["left alone", "sensitive"]}
            row[1].hist(parts, bins=np.geomspace(low, high, 50), color=["tab:gray", "tab:red"], **looks)
            row[1].set_title(f"{site}: entries by variance", fontsize=10)
            row[1].set(xscale="log", yscale="symlog", xlabel="variance")
            row[1].legend(fontsize=8)
            self._show_mask(row[2], site, mask)
        return render(figure)

    def _queries(self, truth: Array) -> dict[str, tuple[int, int]]:
        height, width = truth.shape
        if not self.pixels:
            return class_centres(truth)
        places = list(zip(self.pixels[::2], self.pixels[1::2], strict=True))
        inside = [(x, y) for x, y in places if x < width and y < height]
        if len(inside) < len(places):
            logger.warning("--attention_pixels: not all lie in an image of %dx%d; those are left out", width, height)
        return {f"({x}, {y})": (x, y) for x, y in inside}

    def _plot_covariances(self, image: Array, values: Activations) -> Array:
        sites, shape = self.network.style_names, min(image.shape[0] / image.shape[1], 1)
        figure = new_figure(4 * 3.6, 3.4 * (shape + len(sites)))
        first, *rows = figure.subplots(1 + len(sites), 4, height_ratios=[shape, *(1 for _ in sites)])
        show(first[0], "image", image)
        show(first[1], "photometrically augmented", values.augmented)
        for panel in first[2:]:
            panel.set_axis_off()
        first[2].text(0, 0.5, NOTE, fontsize=10, va="center", in_layout=False)
        for number, (row, site, (augmented, plain)) in enumerate(zip(rows, sites, values.covariances, strict=True)):
            limit = _colour_limit(plain, augmented)
            scale = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
            show(row[0], f"{site}: covariances of the image", plain, bar=True, **scale)
            show(row[1], f"{site}: of the augmented view", augmented, bar=True, **scale)
            difference = augmented - plain
            limit = _colour_limit(difference)
            show(row[2], f"{site}: augmented minus image", difference, bar=True, cmap="PuOr_r", vmin=-limit, vmax=limit)
            if self.whitening is not None and self.whitening.has_masks:
                self._show_mask(row[3], site, self.whitening.masks[number])
            else:
                row[3].set_axis_off()
                row[3].text(0.5, 0.5, "no mask", ha="center")
        return render(figure)

    def _show_mask(self, panel: Any, site: str, mask: Tensor) -> None:
        assert self.whitening is not None
        channels, word = len(mask), "sensitive" if self.whitening.selective else "whitened"
        shown = adaptive_max_pool2d(mask[None].float(), min(channels, LARGEST_MASK))[0]  # single entries stay visible
        title = f"{site}: mask, {int(mask.sum())} of {channels * (channels - 1) // 2} {word}"
        show(panel, title, _array(shown), cmap="Greys", vmin=0, vmax=1)

    def _plot_attention(self, image: Array, attention: dict[str, Array], queries: dict[str, tuple[int, int]]) -> Array:
        number = len(queries) * len(attention)
        figure, panels = figure_panels(number, size=image.shape[:2], columns=min(2 + len(attention), number))
        title = "attention in multiples of equal weights"
        if isinstance(self.network, DIIASegmentor) and self.network.attends:
            assert self.network.aggregate is not None, "its gate is there"
            title += f"; the gate of DIIA's is {self.network.aggregate.gamma.item():.3g}"
        figure.suptitle(title, fontsize=11)
        places = ((index, name, whose) for index, name in enumerate(queries) for whose in attention)
        for panel, (index, name, whose) in zip(panels, places, strict=True):
            maps = attention[whose][index]
            show_heat(panel, image, maps, query=queries[name])
            share = np.sort(maps.flatten())[-max(1, maps.size // 10) :].sum()
            panel.set_title(f"{name}, {whose}\n10% of the cells get {share:.0%}", fontsize=10)
        return render(figure)


def _plot_branches(image: Array, truth: Array, prediction: Array, values: Activations, *, merged: Array) -> Array:
    labels: dict[str, Array] = {}
    if values.layout is not None:
        title = f"coarse layout, {np.mean(values.layout == IGNORE):.1%} void"
        labels = {title: merged[values.layout], "truth": truth, "prediction": prediction}
    number = 1 + len(labels) + 2 * (values.edge is not None)
    figure, panels = figure_panels(number, size=truth.shape, columns=2 if number == 4 else 3)
    show(panels[0], "image", image)
    if values.edge is not None and values.edge_target is not None:
        low, high = np.percentile(values.edge, (0.5, 99.5))
        show(panels[1], "edge map", values.edge, bar=True, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
        show(panels[2], "its target", values.edge_target, bar=True, cmap="gray", vmin=0, vmax=255)
    for panel, (title, label) in zip(panels[number - len(labels) :], labels.items(), strict=True):
        show(panel, title, colorize(label, palette=PALETTE), interpolation="nearest")
    if labels:
        classes = np.unique(np.concatenate([label.flatten() for label in labels.values()])).tolist()
        entries = [(CLASS_NAMES[index], PALETTE[index]) for index in classes if index != IGNORE]
        class_legend(figure, entries + [("void", np.zeros(3))] * (IGNORE in classes))
    return render(figure)


def plot_batch(batch: TrainingBatch, appearance: Appearance, *, method: Method) -> Array:
    """Return a batch as the network sees it: image, label, edge target, side by side."""
    images, labels = appearance.colours(batch.images, batch.params), batch.labels.cpu()
    edges = edge_target(batch.images, magnitude=method.edge_magnitude).byte().cpu()
    tiles: list[Array] = []
    for image, label, edge in zip(images, labels, edges, strict=True):
        tiles += [image.permute(1, 2, 0).numpy(), colorize(label.numpy(), palette=PALETTE)]
        tiles.append(edge[..., None].expand(-1, -1, 3).numpy())
    return contact_sheet(tiles, columns=3)


def class_centres(truth: Array) -> dict[str, tuple[int, int]]:
    """Return for the largest classes of a label (H,W) the pixel (x, y) farthest from their border, by name and place.

    Where nothing is labelled it is the middle of the image.
    """
    classes, counts = np.unique(truth[truth < len(CLASS_NAMES)], return_counts=True)
    centres, cv2 = {}, opencv()
    for index in classes[np.argsort(-counts, kind="stable")][:NUM_QUERIES]:
        depth = cv2.distanceTransform(np.pad((truth == index).astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = (int(place) for place in np.unravel_index(depth.argmax(), depth.shape))
        centres[f"{CLASS_NAMES[index]} ({x}, {y})"] = (x, y)
    height, width = truth.shape
    return centres or {f"({width // 2}, {height // 2})": (width // 2, height // 2)}


def _array(tensor: Tensor) -> Array:
    return tensor.cpu().numpy()


def _colour_limit(*matrices: Array) -> float:
    """Return almost the largest absolute entry off the diagonal."""
    off_diagonal = ~np.eye(len(matrices[0]), dtype=bool)
    return max(float(np.percentile(np.abs(np.stack(matrices)[:, off_diagonal]), 99.5)), 1e-6)
