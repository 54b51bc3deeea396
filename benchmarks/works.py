"""The works of `python -m benchmarks` that compute: step, evaluation, ISW's statistics, coarse layout, own images.

The networks have random weights. A plain work is the same one done by `benchmarks.plain` on the same inputs.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

import config
import predict
from benchmarks import Row, Work, plain
from datasets.codec import read_photo
from datasets.domains import BUILTIN
from datasets.labels import NUM_CLASSES
from datasets.loaders import EvaluationLoader
from datasets.sampling import sample_rng
from datasets.segmentation import EvaluationSample
from datasets.splits import Pair, Split
from evaluation import build_evaluator
from evaluation.protocols import Inference
from inference import Model
from loss import Criterion, MaskStatistics, build_criterion
from network import Segmentor, build_network
from network.layout import coarse_layout
from network.scoring import scoring_copy
from optimizer import build_optimizer
from transforms import build_appearance, build_appearance_sampler, build_normalisation
from transforms.appearance import MEAN, STD, edge_target
from utils.device import autocast_dtype, keep_freed_memory, training_dtype
from utils.parallel import cores

# The published recipe, at a rate with which random labels cannot make the weights diverge.
FLAGS = ("--method", "diia", "--clusters", "3", "--gblur", "--color_aug", "0.5", "--lr", "1e-4")


def make_network(device: torch.device, flags: Sequence[str]) -> tuple[Segmentor, config.Config]:
    cfg = config.parse([*FLAGS, *flags], program="train")
    torch.manual_seed(0)
    return build_network(cfg).place(device), cfg


def make_criterion(network: Segmentor, cfg: config.Config, device: torch.device) -> Criterion:
    criterion = build_criterion(cfg, method=network.method, style_channels=network.style_channels).to(device)
    if criterion.whitening is not None and criterion.whitening.selective:
        criterion.whitening.intersect_masks(make_masks(network.style_channels, device))
    return criterion


def make_masks(widths: Sequence[int], device: torch.device) -> list[Tensor]:
    """Return ISW's masks with a twentieth of the covariances."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(width, width, generator=generator) < 0.05).triu(1).to(device) for width in widths]


def make_batch(batch: int, size: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised images (B, 3, H, W), labels (B, H, W) int64 and edges (B, H, W) of noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *size, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (batch, *size), generator=generator)
    edges = torch.rand(batch, *size, generator=generator) * 255
    return images.to(device), labels.to(device), edges.to(device)


def step(batch: int, size: int, device: torch.device, flags: Sequence[str]) -> Work:
    """Forward, losses with the whitening term, backward and optimizer step."""
    network, cfg = make_network(device, flags)
    criterion, optimizer = make_criterion(network, cfg, device), build_optimizer(cfg, network)
    images, labels, edges = make_batch(batch, (size, size), device)
    dtype = training_dtype(device, amp=cfg.OPTIM.AMP)
    keep_freed_memory(device)  # as train.py does
    network.train()
    while True:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            output = network(images)
        terms = criterion(output if dtype is None else output.float(), labels, edges, whiten=True)
        del output  # as in train.py, where a function ends
        criterion.total(terms).backward()
        yield optimizer.step()


def plain_step(batch: int, size: int, device: torch.device) -> Work:
    torch.manual_seed(0)
    network, masks = plain.Network().to(device).train(), make_masks(plain.WIDTHS, device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    images, labels, edges = make_batch(batch, (size, size), device)
    while True:
        yield plain.train_step(network, optimizer, images, labels, edges, masks=masks)


def make_frame(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return an image (3, H, W) and its labels (H, W), uint8."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), generator=generator).byte()
    return image, torch.randint(0, NUM_CLASSES, (height, width), generator=generator).byte()


def evaluation(height: int, width: int, device: torch.device, flags: Sequence[str]) -> Work:
    """Confusion matrix and loss of one decoded image, as train.py and valid.py call it."""
    network, cfg = make_network(device, flags)
    network = scoring_copy(network)  # once per split
    evaluator = build_evaluator(cfg, None, recipe=cfg, whitening=None, device=device)
    frames = [EvaluationSample(*make_frame(height, width), "frame")]
    split = Split(BUILTIN["cityscapes"], "val", (Pair("frame.png", "frame.png", "frame"),))
    loader = EvaluationLoader(cast(Any, frames), split, "full resolution")
    while True:
        with contextlib.redirect_stderr(io.StringIO()):  # the bar
            result = evaluator.evaluate(network, loader)
        yield result.confusion


def plain_evaluation(height: int, width: int, device: torch.device) -> Work:
    torch.manual_seed(0)
    network, (image, labels) = plain.Network().to(device).eval(), make_frame(height, width)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    while True:
        images = ((image / 255 - mean) / deviation)[None]
        yield plain.evaluate(network, images.to(device), labels[None].to(device))


def statistics(height: int, width: int, device: torch.device, flags: Sequence[str]) -> Work:
    """Covariances of a pair and their variance."""
    network, pair = make_network(device, flags)[0].eval(), make_batch(2, (height, width), device)[0]
    sums = MaskStatistics(network.style_channels, clusters=3, device=device)
    keep_freed_memory(device)
    while True:
        with torch.inference_mode():
            sums.update(network.style_features(pair))
        yield sums


def plain_statistics(height: int, width: int, device: torch.device) -> Work:
    torch.manual_seed(0)
    network, pair = plain.Network().to(device).eval(), make_batch(2, (height, width), device)[0]
    sums: Any = 0
    while True:
        sums = [total + new for total, new in zip(sums or (0, 0, 0), plain.pair_variances(network, pair), strict=True)]
        yield sums


def layout(batch: int, size: int, device: torch.device, *, smooth: bool = False, plainly: bool = False) -> Work:
    """Of noise, or of smooth maps, on which no class's median reaches the cap."""
    generator, cells = torch.Generator().manual_seed(0), size // 32 if smooth else size
    logits = torch.randn(batch, NUM_CLASSES, cells, cells, generator=generator)
    if smooth:
        logits = 0.6 * F.interpolate(logits, size=(size, size), mode="bilinear")
    logits = logits.to(device)
    function: Any = plain.coarse_layout if plainly else coarse_layout
    while True:
        yield function(logits)


def appearance(batch: int, size: int, device: torch.device) -> Work:
    """What the device does with a batch before the network: colour, blur, normalisation, edge target."""
    cfg = config.parse(FLAGS, program="train")
    sampler, apply = build_appearance_sampler(cfg, jitter="diia"), build_appearance(cfg)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, 3, size, size), np.uint8)).to(device)
    for run in count():
        params = default_collate([sampler(sample_rng(run, number)) for number in range(batch)])
        yield apply(images, params), edge_target(images)


def prediction(number: int, device: torch.device, flags: Sequence[str], *, plainly: bool = False) -> Work:
    """What predict.py does with a folder of JPEGs of 640x480, once its weights are loaded; plainly one by one.

    MobileNetV2 with ISW; train ids and overlays are written.
    """
    network, cfg = make_network(device, ("--method", "isw", "--backbone", "mobilenet_v2", *flags))
    dtype = autocast_dtype(device, amp=cfg.OPTIM.AMP)
    model = Model(scoring_copy(network), build_normalisation(cfg), device, dtype, Inference())
    with tempfile.TemporaryDirectory() as folder:
        rng, jobs = np.random.default_rng(0), []
        for name in map(str, range(number)):
            jobs.append(predict.Job(Path(folder, f"{name}.jpg"), name))
            field = Image.fromarray(rng.integers(0, 256, (15, 20, 3), np.uint8))
            field.resize((640, 480), Image.Resampling.BICUBIC).save(jobs[-1].path)
        kinds = {kind: f"{kind}/{{path}}.png" for kind in ("train_ids", "overlay")}
        writer = predict.Writer(Path(folder, "out"), kinds, opacity=0.5, threads=min(cores(), 8))
        predicted = None if plainly else predict.predictor(model, names={"labels"})
        while True:
            if predicted is None:
                for job in jobs:
                    image = read_photo(str(job.path))
                    writer.save((job, image, {"labels": model.segment(image)}))
            else:
                with contextlib.redirect_stderr(io.StringIO()):  # the bar
                    predict.segment_images(jobs, predicted, writer)
            yield jobs


def make_rows(device: torch.device, *, flags: Sequence[str], tiny: bool) -> dict[str, Row]:
    """Return the rows of these works; `flags` are further ones of train.py for ours."""

    def pair(ours: Any, plainly: Any, *size: int) -> Row:
        return Row(partial(ours, *size, device, flags), partial(plainly, *size, device), alone=True)

    rows = {}
    for batch, size in [(2, 64)] if tiny else [(8, 768)] if device.type == "cuda" else [(2, 256), (2, 384)]:
        rows[f"step: diia, {batch} x {size}x{size}"] = pair(step, plain_step, batch, size)
    for height in (64,) if tiny else (512, 1024):
        rows[f"eval: {height}x{2 * height}"] = pair(evaluation, plain_evaluation, height, 2 * height)
    height, width = (64, 96) if tiny else (1052, 1914)
    rows[f"statistics: one pair {height}x{width}"] = pair(statistics, plain_statistics, height, width)
    batch, size = (2, 64) if tiny else (8, 768)
    for kind in ("", ", smooth"):
        both = [partial(layout, batch, size, device, smooth=bool(kind), plainly=plainly) for plainly in (False, True)]
        rows[f"layout: {batch} x {size}x{size}{kind}"] = Row(both[0], both[1], alone=True)
    number = 3 if tiny else 24
    both = [partial(prediction, number, device, flags, plainly=plainly) for plainly in (False, True)]
    rows[f"predict: {number} JPEGs of 640x480, train ids and overlays"] = Row(both[0], both[1], alone=True)
    for batch, size in ((2, 64),) if tiny else ((2, 256), (8, 768)):
        name = f"appearance: colour, blur, normalisation, edges, {batch} x {size}x{size}"
        rows[name] = Row(partial(appearance, batch, size, device))
    return rows
