"""The published method and its data path written down plainly, for `benchmarks --against plain` to compare with.

DIIA with ISW on a ResNet-50 at output stride 16, one line of PyTorch per line of the papers: every head runs in every
forward, every map of logits is enlarged to the size of the input, the coarse layout is numpy's on the CPU. Parameters
have the names that `network` gives them, so one state dict fits both. B batch, C channels, H x W size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from skimage.filters import gaussian
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.transforms import functional

from datasets.labels import NUM_CLASSES, PALETTE
from datasets.splits import Pair
from transforms.appearance import MEAN, STD, AppearanceParams

IGNORE, CROP = 255, 768
WIDTHS = (64, 256, 512)  # of the whitened maps


class Output(NamedTuple):
    """What a forward returns; all logits and `edge` at the size of the input, `aux` at a sixteenth."""

    coarse: Tensor
    fused: Tensor
    layout: Tensor
    layout_logits: Tensor
    edge: Tensor
    edge_logits: Tensor
    aux: Tensor | None  # in training
    style: list[Tensor]  # in training the standardised maps (B, C, h, w), in evaluation their covariances (B, C, C)


def unit(
    inside: int, outside: int, kernel: int = 1, *, stride: int = 1, rate: int = 1, bias: bool = False
) -> nn.Module:
    conv = nn.Conv2d(inside, outside, kernel, stride, rate * (kernel // 2), rate, bias=bias)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outside), relu=nn.ReLU(inplace=True)))


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


class ASPP(nn.Module):
    def __init__(self, inside: int) -> None:
        super().__init__()
        self.pool = unit(inside, 256)
        rates = [unit(inside, 256, 3, rate=rate) for rate in (6, 12, 18)]
        self.branches = nn.ModuleList([unit(inside, 256), *rates])

    def forward(self, maps: Tensor) -> Tensor:
        pooled = resize(self.pool(F.adaptive_avg_pool2d(maps, 1)), maps.shape[2:])
        return torch.cat([pooled, *(branch(maps) for branch in self.branches)], 1)


class Head(nn.Module):
    """Two 3x3 layers and a classifier, as every branch ends."""

    def __init__(self, inside: int = 256) -> None:
        super().__init__()
        self.refine = nn.Sequential(unit(inside, 256, 3), unit(256, 256, 3))
        self.classify = nn.Conv2d(256, NUM_CLASSES, 1)

    def decode(self, maps: Tensor) -> Tensor:
        return self.classify(self.refine(maps))


class Decoder(Head):
    def __init__(self, inside: int, *, skip: int = 0) -> None:
        super().__init__(256 + skip)
        self.aspp, self.reduce = ASPP(inside), unit(1280, 256)
        if skip:
            self.skip = unit(256, skip)

    def forward(self, top: Tensor, low: Tensor | None = None) -> Tensor:
        context = self.reduce(self.aspp(top))
        if low is not None:
            context = torch.cat([self.skip(low), resize(context, low.shape[2:])], 1)
        return self.decode(context)


class Layout(Head):
    def __init__(self) -> None:
        super().__init__()
        last = [unit(64, 128, 3, stride=2, bias=True), nn.Conv2d(128, 256, 3, 2, 1)]
        self.encoder = nn.Sequential(unit(1, 64, 3, stride=2), nn.MaxPool2d(3, 2, 1), *last)


class Edge(Head):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(unit(256, 128, bias=True), nn.Conv2d(128, 64, 3, padding=1))
        self.decoder = nn.Sequential(unit(64, 256, 3, stride=2, bias=True), nn.Conv2d(256, 256, 3, 2, 1))


class Aggregation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Conv2d(256, 128, 1), nn.Conv2d(256, 128, 1)
        self.value, self.up = nn.Conv2d(2048, 128, 1), nn.Conv2d(2048, 128, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, top: Tensor, layout: Tensor, edge: Tensor) -> Tensor:
        query, key, value = self.query(layout).flatten(2), self.key(edge).flatten(2), self.value(top).flatten(2)
        weights = torch.bmm(query.transpose(1, 2), key).softmax(2)  # (B, hw, hw)
        mixed = torch.bmm(value, weights.transpose(1, 2)).unflatten(2, top.shape[2:])
        return self.gamma * mixed + self.up(top)


class Aux(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.dropout = unit(1024, 512, 3, bias=True), nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(512, NUM_CLASSES, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.classify(self.dropout(self.reduce(maps)))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet50(replace_stride_with_dilation=[False, False, True])
        self.backbone.layer4[0].conv2.dilation = self.backbone.layer4[0].conv2.padding = (2, 2)
        self.backbone.bn1, self.backbone.fc = nn.InstanceNorm2d(64), nn.Identity()
        self.norm1, self.norm2 = nn.InstanceNorm2d(256), nn.InstanceNorm2d(512)
        self.coarse, self.fused = Decoder(2048), Decoder(128, skip=48)
        self.layout, self.edge, self.aggregate, self.aux = Layout(), Edge(), Aggregation(), Aux()

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Return the outputs of stages 1, 3 and 4 and the standardised maps."""
        net = self.backbone
        style, low_level = [net.bn1(net.conv1(images))], []
        maps = net.maxpool(F.relu(style[0]))
        for stage, norm in ((net.layer1, self.norm1), (net.layer2, self.norm2)):
            *first, last = stage
            for block in first:
                maps = block(maps)
            out = last.relu(last.bn1(last.conv1(maps)))
            out = last.relu(last.bn2(last.conv2(out)))
            style.append(norm(last.bn3(last.conv3(out)) + maps))
            maps = F.relu(style[-1])
            low_level.append(maps)
        third = net.layer3(maps)
        return low_level[0], third, net.layer4(third), style

    def forward(self, images: Tensor) -> Output:
        size = images.shape[2:]
        low, third, top, style = self.features(images)
        coarse = resize(self.coarse(top), size)
        layout = coarse_layout(coarse)
        layout_features = self.layout.encoder(layout)
        layout_logits = resize(self.layout.decode(layout_features), size)
        edge_maps = self.edge.encoder(low)
        edge = resize(edge_maps.mean(1, keepdim=True), size)
        edge_features = self.edge.decoder(edge_maps)
        edge_logits = resize(self.edge.decode(edge_features), size)
        fused = resize(self.fused(self.aggregate(top, layout_features, edge_features), low), size)
        aux = self.aux(third) if self.training else None
        style = style if self.training else [covariance(maps) for maps in style]
        return Output(coarse, fused, layout, layout_logits, edge, edge_logits, aux, style)


def coarse_layout(logits: Tensor) -> Tensor:
    """Map logits to (B, 1, H, W) float: the class where its logit reaches the class's median or 0.99, else 255."""
    values, labels = (part.cpu().numpy() for part in logits.detach().max(1))
    layout = labels.copy()
    for index in range(NUM_CLASSES):
        ordered = np.sort(values[labels == index])
        threshold = min(ordered[round(len(ordered) / 2)], 0.99) if len(ordered) else 0
        layout[(labels == index) & (values < threshold)] = IGNORE
    return torch.from_numpy(layout).unsqueeze(1).to(logits)


def covariance(maps: Tensor) -> Tensor:
    flat = maps.flatten(2)
    unit_matrix = torch.eye(flat.shape[1], device=maps.device)
    return torch.bmm(flat, flat.transpose(1, 2)) / (flat.shape[2] - 1) + 1e-5 * unit_matrix


def losses(output: Output, labels: Tensor, edges: Tensor, masks: Sequence[Tensor] = ()) -> dict[str, Tensor]:
    """Return the terms by the names that `loss` gives them; the whitening one where there are masks (C, C)."""
    assert output.aux is not None
    small = F.interpolate(labels.unsqueeze(1).float(), size=output.aux.shape[2:], mode="nearest").squeeze(1).long()
    pairs = {"fused": (output.fused, labels), "aux": (output.aux, small), "coarse": (output.coarse, labels)}
    pairs["layout"] = (output.layout_logits, output.layout.squeeze(1).long())
    pairs["edge_logits"] = (output.edge_logits, labels)
    terms = {name: F.cross_entropy(*pair, ignore_index=IGNORE) for name, pair in pairs.items()}
    terms["edge"] = F.l1_loss(output.edge.squeeze(1), edges)
    if masks:
        sums = [
            ((covariance(maps) * mask).abs().sum((1, 2)) / mask.sum()).clamp(min=0).mean()
            for maps, mask in zip(output.style, masks, strict=True)
        ]
        terms["whitening"] = torch.stack(sums).mean()
    return terms


def total(terms: dict[str, Tensor]) -> Tensor:
    damped = 0.01 if terms["layout"].item() > 3 else 1
    value = 0.5 * terms["coarse"] + 0.1 * terms["aux"] + terms["fused"] + 0.1 * damped * terms["layout"]
    return value + 0.1 * terms["edge_logits"] + 0.001 * terms["edge"] + 0.6 * terms.get("whitening", 0)


def train_step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    edges: Tensor,
    *,
    masks: Sequence[Tensor],
) -> dict[str, Tensor]:
    optimizer.zero_grad()
    terms = losses(network(images), labels, edges, masks)
    total(terms).backward()
    optimizer.step()
    return terms


@torch.no_grad()
def evaluate(network: Network, images: Tensor, labels: Tensor) -> tuple[np.ndarray, float]:
    """Return the confusion matrix (19, 19) of truth against prediction, and the loss."""
    output = network(images)
    logits = 0.5 * output.coarse + output.fused
    loss = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE).item()
    return counts(logits.max(1).indices.cpu().numpy(), labels.cpu().numpy()), loss


@torch.no_grad()
def pair_variances(network: Network, pair: Tensor) -> list[Tensor]:
    """Return the variance (C, C) of every covariance over a pair (2, 3, H, W), zero on and below the diagonal."""
    return [torch.triu(matrices, diagonal=1).var(0) for matrices in network(pair).style]


def train_ids(path: str) -> np.ndarray:
    """Decode a colour label by one comparison per class."""
    colours = np.asarray(Image.open(path).convert("RGB"))
    label = np.full(colours.shape[:2], 255, np.uint8)
    for index, colour in enumerate(PALETTE):
        label[(colours == colour).all(axis=2)] = index
    return label


def crop(pair: Pair, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Decode, scale, crop and flip image and label on the whole frame, with the random numbers that ours takes."""
    image, label = Image.open(pair.image).convert("RGB"), Image.fromarray(train_ids(pair.label))
    scale = rng.uniform(0.5, 2.0)
    size = (int(image.width * scale), int(image.height * scale))
    image, label = image.resize(size, Image.Resampling.BICUBIC), label.resize(size, Image.Resampling.NEAREST)
    border = tuple((CROP - side) // 2 + 1 if side < CROP else 0 for side in size)
    image, label = ImageOps.expand(image, border, 0), ImageOps.expand(label, border, 255)
    left, top = (int(rng.integers(0, side - CROP, endpoint=True)) for side in image.size)
    image, label = (part.crop((left, top, left + CROP, top + CROP)) for part in (image, label))
    if rng.random() < 0.5:
        image, label = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (image, label))
    return image, label


def appearance(image: Image.Image, params: AppearanceParams) -> tuple[torch.Tensor, np.ndarray]:
    """Return the jittered, blurred and normalised image and the edge target of the image before."""
    grey = cv2.cvtColor(np.asarray(image, dtype=np.float32), cv2.COLOR_BGR2GRAY)
    edges = np.minimum(np.abs(cv2.Sobel(grey, cv2.CV_16S, 1, 0)), 255).astype(np.float32)
    names = ("brightness", "contrast", "saturation", "hue")
    for index in params.order.tolist() if params.jitter else ():
        image = getattr(functional, f"adjust_{names[index]}")(image, params.factors[index].item())
    blurred = gaussian(np.asarray(image), sigma=params.sigma.item(), channel_axis=2)
    return functional.normalize(torch.from_numpy(blurred.transpose(2, 0, 1)).float(), MEAN, STD), edges


def centroids(label: np.ndarray) -> list[tuple[int, int, int]]:
    """Find the centre of mass of every class, tile by tile and class by class."""
    rows, (height, width) = [], label.shape
    for top in range(0, height - 1023, 1024):
        for left in range(0, width - 1023, 1024):
            tile = label[top : top + 1024, left : left + 1024]
            for index in range(NUM_CLASSES):
                y, x = np.nonzero(tile == index)
                if len(y):
                    rows.append((index, left + int(x.mean()), top + int(y.mean())))
    return rows


def borders(label: np.ndarray) -> np.ndarray:
    """Return (20, H, W) uint8: which classes occur in the 3x3 neighbourhood, one shifted one-hot map after another."""
    padded = np.pad(np.minimum(label, NUM_CLASSES), 1, constant_values=NUM_CLASSES)
    planes = np.zeros((NUM_CLASSES + 1, *label.shape), np.uint8)
    for y, x in np.ndindex(3, 3):
        part = padded[y : y + label.shape[0], x : x + label.shape[1]]
        planes |= (part[None] == np.arange(NUM_CLASSES + 1)[:, None, None]).astype(np.uint8)
    return planes


def counts(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Count truth against prediction, of equal shapes, with numpy."""
    valid = label < NUM_CLASSES
    cells = NUM_CLASSES * label[valid].astype(np.int64) + prediction[valid]
    return np.bincount(cells, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)
