"""What a network computes inside for single images, and pictures of it.

Covariances, whitening masks, edge maps, coarse layouts, attention of chosen pixels.
Letters: H, W pixels; C channels; N chosen pixels; h x w cells of the last features. Pictures are uint8 RGB.
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

from utils.errors import UserError
from utils.figures import class_legend, image_panels, new_figure, render, show, show_heat
from utils.opencv import opencv
from utils.pictures import Array, colorize

NUM_ASKING = 6  # pixels whose attention is drawn where none are chosen
LARGEST_MASK = 256  # cells a side
VOID = 255
NOTE = (
    "Covariances between the channels of one standardised map,\nabout 1 on the diagonal.\n"
    "The whitening loss pushes those in the mask towards 0."
)
logger = logging.getLogger(__name__)


class Activations(NamedTuple):
    """What a network computes for one image; empty or None where the method does not have it."""

    copy: Array  # (H,W,3) uint8, the photometric copy
    covariances: list[Array]  # (2,C,C) per site, of copy and image
    edge: Array | None  # (H,W) reconstructed edge map
    target: Array | None  # (H,W) what it should be
    layout: Array | None  # (H,W) coarse layout, 255 where not confident
    attention: Array | None  # (N,h,w) weights of all cells for each chosen pixel, summing to one


@dataclass(frozen=True)
class FeatureDrawer:
    """Draws a network's inner values for single images.

    Attributes:
        network: a segmentor (network.deeplab).
        whitening: holds the masks (loss.whitening), None where the method has none.
        photometric_copy: (3,H,W) uint8 -> the copy, uint8, and the normalised pair (2,3,H,W) of copy and image.
        covariance: (B,C,h,w) -> (B,C,C).
        edge_target: (B,3,H,W) uint8 -> (B,H,W).
        pixels: x y x y ... of the pixels whose attention is drawn; none: in the middle of the largest classes.
    """

    network: Any
    whitening: Any
    photometric_copy: Callable[[Tensor], tuple[Tensor, Tensor]]
    covariance: Callable[[Tensor], Tensor]
    edge_target: Callable[[Tensor], Tensor]
    device: torch.device
    autocast_dtype: torch.dtype | None
    palette: Array
    class_names: Sequence[str]
    pixels: Sequence[int] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        network = self.network
        if not (network.style_channels or {"edge", "layout"} & set(network.method.parts)):
            raise UserError(
                f"--visualize_feature: {network.method.label} has no whitening, no branches and no attention to show; "
                "leave it out and see the predictions of --pictures"
            )
        if self.pixels and not network.attends:
            raise UserError(f"--attention_pixels: {network.method.label} has no attention; leave the pixels out")

    def __call__(self, image: Array, truth: Array, prediction: Array, *, merged: Array) -> dict[str, Array]:
        """Return a picture of each kind that the method has.

        Args:
            image: (H,W,3) uint8.
            truth, prediction: (H,W).
            merged: (256,) class under which each class is shown.
        """
        chosen = self._chosen(truth) if self.network.attends else {}
        inside = self.inside(image, list(chosen.values()))
        drawn = {}
        if inside.covariances:
            drawn["covariances"] = self._draw_covariances(image, inside)
        if inside.edge is not None or inside.layout is not None:
            drawn["branches"] = self._draw_branches(image, truth, prediction, inside, merged=merged)
        if inside.attention is not None:
            drawn["attention"] = self._draw_attention(image, inside.attention, chosen)
        return drawn

    @torch.inference_mode()
    def inside(self, image: Array, pixels: Sequence[tuple[int, int]] = ()) -> Activations:
        """Compute what is drawn of an image (H,W,3) uint8, with the attention of some pixels (x, y)."""
        network, training = self.network, self.network.training
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(self.device)
        copy, pair = self.photometric_copy(tensor)
        network.eval()
        style = network.style_features(pair) if network.style_channels else ()
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            output = network(pair[1:]).float()
            attention = network.attention_of(pair[1:], pixels)[0] if pixels else None
        network.train(training)
        edge, layout = output.edge, output.layout
        return Activations(
            copy=_array(copy.permute(1, 2, 0)),
            covariances=[_array(self.covariance(maps)) for maps in style],
            edge=None if edge is None else _array(edge[0, 0]),
            target=None if edge is None else _array(self.edge_target(tensor[None])[0]),
            layout=None if layout is None else _array(layout[0]),
            attention=None if attention is None else _array(attention),
        )

    def draw_masks(self, variances: Sequence[Tensor]) -> Array:
        """Draw per site the mean variance matrix (C,C) of the statistics, a histogram of it, and the mask chosen."""
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

    def _chosen(self, truth: Array) -> dict[str, tuple[int, int]]:
        """Return title -> (x, y) of the pixels that ask."""
        height, width = truth.shape
        if not self.pixels:
            return class_centres(truth, class_names=self.class_names)
        places = list(zip(self.pixels[::2], self.pixels[1::2], strict=True))
        inside = [(x, y) for x, y in places if x < width and y < height]
        if len(inside) < len(places):
            logger.warning("--attention_pixels: not all lie in an image of %dx%d; it is drawn without", width, height)
        return {f"({x}, {y})": (x, y) for x, y in inside}

    def _draw_covariances(self, image: Array, inside: Activations) -> Array:
        sites, shape = self.network.style_names, min(image.shape[0] / image.shape[1], 1)
        figure = new_figure(4 * 3.6, 3.4 * (shape + len(sites)))
        first, *rows = figure.subplots(1 + len(sites), 4, height_ratios=[shape, *(1 for _ in sites)])
        show(first[0], "image", image)
        show(first[1], "photometric copy", inside.copy)
        for panel in first[2:]:
            panel.set_axis_off()
        first[2].text(0, 0.5, NOTE, fontsize=10, va="center", in_layout=False)
        for number, (row, site, (copy, own)) in enumerate(zip(rows, sites, inside.covariances, strict=True)):
            limit = _robust(own, copy)
            scale = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
            show(row[0], f"{site}: covariances of the image", own, bar=True, **scale)
            show(row[1], f"{site}: of the copy", copy, bar=True, **scale)
            limit = _robust(copy - own)
            show(row[2], f"{site}: copy minus image", copy - own, bar=True, cmap="PuOr_r", vmin=-limit, vmax=limit)
            if self.whitening is not None and self.whitening.has_masks:
                self._show_mask(row[3], site, self.whitening.masks[number])
            else:
                row[3].set_axis_off()
                row[3].text(0.5, 0.5, "no mask", ha="center")
        return render(figure)

    def _show_mask(self, panel: Any, site: str, mask: Tensor) -> None:
        channels, word = len(mask), "sensitive" if self.whitening.selective else "whitened"
        shown = adaptive_max_pool2d(mask[None].float(), min(channels, LARGEST_MASK))[0]  # single entries stay visible
        title = f"{site}: mask, {int(mask.sum())} of {channels * (channels - 1) // 2} {word}"
        show(panel, title, _array(shown), cmap="Greys", vmin=0, vmax=1)

    def _draw_branches(
        self, image: Array, truth: Array, prediction: Array, inside: Activations, *, merged: Array
    ) -> Array:
        labels: dict[str, Array] = {}
        if inside.layout is not None:
            title = f"coarse layout, {np.mean(inside.layout == VOID):.1%} void"
            labels = {title: merged[inside.layout], "truth": truth, "prediction": prediction}
        number = 1 + len(labels) + 2 * (inside.edge is not None)
        figure, panels = image_panels(number, size=truth.shape, columns=2 if number == 4 else 3)
        show(panels[0], "image", image)
        if inside.edge is not None and inside.target is not None:
            low, high = np.percentile(inside.edge, (0.5, 99.5))
            show(panels[1], "edge map", inside.edge, bar=True, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            show(panels[2], "its target (Sobel)", inside.target, bar=True, cmap="gray", vmin=0, vmax=255)
        for panel, (title, label) in zip(panels[number - len(labels) :], labels.items(), strict=True):
            show(panel, title, colorize(label, palette=self.palette), interpolation="nearest")
        if labels:
            found = np.unique(np.concatenate([label.flatten() for label in labels.values()])).tolist()
            entries = [(self.class_names[index], self.palette[index]) for index in found if index != VOID]
            class_legend(figure, entries + [("void", np.zeros(3))] * (VOID in found))
        return render(figure)

    def _draw_attention(self, image: Array, weights: Array, chosen: dict[str, tuple[int, int]]) -> Array:
        figure, panels = image_panels(len(chosen), size=image.shape[:2], columns=min(3, len(chosen)))
        gate = self.network.aggregate.gamma.item()
        figure.suptitle(f"attention in multiples of equal weights; the gate is {gate:.3g}", fontsize=11)
        for panel, (title, place), maps in zip(panels, chosen.items(), weights, strict=True):
            show_heat(panel, image, maps, asking=place)
            share = np.sort(maps.flatten())[-max(1, maps.size // 10) :].sum()
            panel.set_title(f"{title}\n10% of the cells get {share:.0%}", fontsize=10)
        return render(figure)


def class_centres(truth: Array, *, class_names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return for the largest classes of a label (H,W) the pixel (x, y) farthest from their border, by name and place.

    Where nothing is labelled it is the middle of the image.
    """
    classes, counts = np.unique(truth[truth < len(class_names)], return_counts=True)
    chosen = {}
    for index in classes[np.argsort(-counts, kind="stable")][:NUM_ASKING]:
        cv2, padded = opencv(), np.pad((truth == index).astype(np.uint8), 1)
        depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = (int(place) for place in np.unravel_index(depth.argmax(), depth.shape))
        chosen[f"{class_names[index]} ({x}, {y})"] = (x, y)
    height, width = truth.shape
    return chosen or {f"({width // 2}, {height // 2})": (width // 2, height // 2)}


def _array(tensor: Tensor) -> Array:
    return tensor.cpu().numpy()


def _robust(*matrices: Array) -> float:
    """Return a limit for colours: almost the largest absolute entry off the diagonal."""
    apart = ~np.eye(len(matrices[0]), dtype=bool)
    return max(float(np.percentile(np.abs(np.stack(matrices)[:, apart]), 99.5)), 1e-6)
