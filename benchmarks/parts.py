"""Time the parts of a run: `python benchmarks/parts.py [--device cuda] [--runs 7] [PART ...]`; prints a Markdown table.

The last column is the original's median on two CPU cores in float32, for the same work.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import config
from evaluation.metrics import argmax_classes, confusion_matrix
from loss import MaskStatistics, build_criterion
from network import Segmentor, build_network
from network.diia import coarse_layout
from utils.logs import write_line
from utils.tables import format_table

Work = Callable[[], object]


def network_of(method: str, device: torch.device) -> tuple[Segmentor, config.Config]:
    """Build a method's ResNet-50 network with random weights."""
    cfg = config.parse(["--method", method, "--clusters", "3", "--crop_size", "768", "--gblur"], program="train")
    torch.manual_seed(0)
    return build_network(cfg).to(device), cfg


def training_step(method: str, *, crop: int, device: torch.device) -> Work:
    """Forward, losses, backward and optimizer step on two images."""
    network, cfg = network_of(method, device)
    criterion = build_criterion(cfg, method=network.method, style_channels=network.style_channels).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    images = torch.randn(2, 3, crop, crop, device=device)
    labels = torch.randint(0, 19, (2, crop, crop), device=device)
    edges = torch.rand(2, crop, crop, device=device) * 255

    def work() -> None:
        optimizer.zero_grad()
        criterion.total(criterion(network(images), labels, edges, whiten=False)).backward()
        optimizer.step()

    return work


def evaluation(*, height: int, width: int, device: torch.device) -> Work:
    """Logits and counts of one image."""
    network, _ = network_of("diia", device)
    network.eval()
    images = torch.randn(1, 3, height, width, device=device)
    labels = torch.randint(0, 19, (1, height, width), dtype=torch.uint8, device=device)

    @torch.inference_mode()
    def work() -> object:
        return confusion_matrix(labels, argmax_classes(network.predict(images)), num_classes=19).cpu()

    return work


def statistics(device: torch.device) -> Work:
    """Covariance statistics of one pair at GTAV's size."""
    network, _ = network_of("diia", device)
    network.eval()
    pair = torch.randn(2, 3, 1052, 1914, device=device)
    sums = MaskStatistics(network.style_channels, clusters=3, device=device)

    @torch.inference_mode()
    def work() -> None:
        sums.update(network.style_features(pair))

    return work


def parts(device: torch.device) -> dict[str, tuple[Callable[[], Work], str]]:
    """Return, by name, how to set a part up and what the original takes for it."""
    logits = torch.Generator().manual_seed(0)

    def layout() -> Work:
        maps = torch.randn(8, 19, 768, 768, generator=logits).to(device)
        return lambda: coarse_layout(maps).cpu()

    return {
        "training step, diia, 2 x 256": (lambda: training_step("diia", crop=256, device=device), "1.145 s"),
        "training step, diia, 2 x 384": (lambda: training_step("diia", crop=384, device=device), "2.30 s"),
        "evaluation, 512x1024": (lambda: evaluation(height=512, width=1024, device=device), "1.465 s"),
        "evaluation, 1024x2048": (lambda: evaluation(height=1024, width=2048, device=device), "8.69 s"),
        "covariance statistics, one pair 1052x1914": (lambda: statistics(device), "8.39 s"),
        "coarse layout, 8 x 768x768": (layout, "363 ms"),
    }


def measure(work: Work, *, runs: int, device: torch.device) -> list[float]:
    """Return the seconds of every run after two that are not counted."""
    seconds = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[2:])


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description="Time the parts of a run.")
    parser.add_argument("parts", nargs="*", metavar="PART", help="beginnings of names; all by default")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each part")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    table = [["part", "median", "fastest", "slowest", "original, 2 CPU cores"]]
    for name, (setup, original) in parts(device).items():
        if not arguments.parts or name.startswith(tuple(arguments.parts)):
            seconds = measure(setup(), runs=arguments.runs, device=device)
            figures = (seconds[len(seconds) // 2], seconds[0], seconds[-1])
            table.append([name, *(f"{1000 * value:.0f} ms" for value in figures), original])
    write_line(format_table(table, "markdown"))


if __name__ == "__main__":
    main()
