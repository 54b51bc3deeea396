"""Time a training step and its parts: `python -m benchmarks.parts [--device cuda] [--runs 7] [ROW ...]`.

The original's figures are medians on two CPU cores in float32, for the same work.
"""

from __future__ import annotations

from itertools import count

import torch
from torch.utils.data import default_collate

import config
from benchmarks import Row, Work, make_parser, report
from datasets.sampling import sample_rng
from evaluation.metrics import argmax_classes, confusion_matrix
from loss import MaskStatistics, build_criterion
from network import Segmentor, build_network
from network.layout import coarse_layout
from network.scoring import scoring_copy
from transforms.appearance import edge_target
from transforms.build import build_appearance, build_appearance_sampler

FLAGS = ["--method", "diia", "--clusters", "3", "--crop_size", "768", "--gblur", "--color_aug", "0.5"]


def make_network(device: torch.device) -> tuple[Segmentor, config.Config]:
    """Build DIIA's ResNet-50 network with random weights."""
    cfg = config.parse(FLAGS, program="train")
    torch.manual_seed(0)
    return build_network(cfg).to(device), cfg


def training_step(size: int, device: torch.device) -> Work:
    """Forward, losses, backward and optimizer step on two images."""
    network, cfg = make_network(device)
    criterion = build_criterion(cfg, method=network.method, style_channels=network.style_channels).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    images = torch.randn(2, 3, size, size, device=device)
    labels = torch.randint(0, 19, (2, size, size), device=device)
    edges = torch.rand(2, size, size, device=device) * 255
    while True:
        optimizer.zero_grad()
        criterion.total(criterion(network(images), labels, edges, whiten=False)).backward()
        yield optimizer.step()


def appearance(batch: int, size: int, device: torch.device) -> Work:
    """What the device does with a batch before the network: colour, blur, normalisation, edge target."""
    cfg = config.parse(FLAGS, program="train")
    sampler, apply = build_appearance_sampler(cfg, jitter="diia"), build_appearance(cfg)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    for run in count():
        params = default_collate([sampler(sample_rng(run, number)) for number in range(batch)])
        yield apply(images, params), edge_target(images)


@torch.inference_mode()
def evaluation(height: int, width: int, device: torch.device) -> Work:
    """Predictions and counts of one image, as the evaluator makes them."""
    network = scoring_copy(make_network(device)[0])
    images = torch.randn(1, 3, height, width, device=device)
    labels = torch.randint(0, 19, (1, height, width), dtype=torch.uint8, device=device)
    while True:
        found = torch.cat([argmax_classes(part) for _, part in network.small_logits(images).parts()], dim=1)
        yield confusion_matrix(labels, found, num_classes=19).cpu()


@torch.inference_mode()
def statistics(device: torch.device) -> Work:
    """Covariance statistics of one pair at GTAV's size."""
    network = make_network(device)[0].eval()
    pair = torch.randn(2, 3, 1052, 1914, device=device)
    sums = MaskStatistics(network.style_channels, clusters=3, device=device)
    while True:
        yield sums.update(network.style_features(pair))


def layout(device: torch.device) -> Work:
    maps = torch.randn(8, 19, 768, 768, device=device)
    while True:
        yield coarse_layout(maps).cpu()


def make_rows(device: torch.device) -> dict[str, Row]:
    return {
        "training step, diia, 2 x 256": Row(training_step(256, device), original="1.145 s"),
        "training step, diia, 2 x 384": Row(training_step(384, device), original="2.30 s"),
        "colour, blur, normalisation, edges, 2 x 256": Row(appearance(2, 256, device)),
        "colour, blur, normalisation, edges, 8 x 768": Row(appearance(8, 768, device)),
        "evaluation, 512x1024": Row(evaluation(512, 1024, device), original="1.465 s"),
        "evaluation, 1024x2048": Row(evaluation(1024, 2048, device), original="8.69 s"),
        "covariance statistics, one pair 1052x1914": Row(statistics(device), original="8.39 s"),
        "coarse layout, 8 x 768x768": Row(layout(device), original="363 ms"),
    }


if __name__ == "__main__":
    parser = make_parser("parts", "Time a training step and its parts.", runs=7, threads=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    report(make_rows(torch.device(args.device)), args, device=torch.device(args.device))
