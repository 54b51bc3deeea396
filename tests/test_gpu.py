"""What only a GPU does; skipped where there is none."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

import train
from datasets.domains import BUILTIN
from datasets.loaders import DeviceBatches
from datasets.segmentation import TrainingBatch
from evaluation.more_metrics import MoreCounts
from evaluation.protocols import Inference
from network.outputs import SegmentorOutput
from run import share_batch_norms
from tests import reference
from tests.runs import read_weights, run_folder, train_arguments
from tests.test_criterion import build
from transforms.appearance import STD, Appearance, AppearanceParams, AppearanceSampler, edge_target
from transforms.style_augmentation import StyleAugmentation
from utils.logs import read_history

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
DEVICE = torch.device("cuda")


def sampled(sampler: AppearanceSampler, count: int) -> AppearanceParams:
    rng = np.random.default_rng(0)
    collated: AppearanceParams = default_collate([sampler(rng) for _ in range(count)])
    return collated


def pictures(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 61, 83), dtype=np.uint8))


@pytest.mark.parametrize("bilateral", [False, True])
def test_colour_blur_and_edges_are_the_cpus(bilateral: bool) -> None:
    images = pictures(24)
    params = sampled(AppearanceSampler(0.9, (0.8, 0.8, 0.8, 0.3), blur=True, bilateral=bilateral), 24)
    params = params._replace(order=torch.tensor(list(permutations(range(4)))))
    difference = Appearance()(images.to(DEVICE), params).cpu() - Appearance()(images, params)
    assert (difference * torch.tensor(STD).reshape(3, 1, 1) * 255).abs().max() < 0.02  # grey levels
    assert torch.equal(edge_target(images.to(DEVICE)).cpu(), edge_target(images)), "whole numbers: the same bits"


@pytest.mark.parametrize("options", [{"fda": 0.1}, {"randconv": 1.0}, {"randconv": 1.0, "repeats": 4}], ids=str)
def test_styles_are_the_cpus(options: dict[str, Any]) -> None:
    colours, streams, augment = pictures(8).float(), torch.arange(1, 9), StyleAugmentation(**options)
    with torch.backends.cudnn.flags(allow_tf32=False):
        found = augment(colours.to(DEVICE), streams).cpu()
    assert (found - augment(colours, streams)).abs().max() < 0.1  # grey levels


@pytest.mark.parametrize("style", [None, StyleAugmentation(0.1, 1.0, 1, 9), StyleAugmentation(0.1, 1.0, 4, 9)], ids=str)
def test_the_appearance_does_not_wait_for_the_device(style: StyleAugmentation | None) -> None:
    sampler = AppearanceSampler(0.9, (0.8, 0.8, 0.8, 0.3), blur=True, style=True)
    images, params, appearance = pictures(8).to(DEVICE), sampled(sampler, 8), Appearance(style=style)
    appearance(images, params)  # constants are copied once
    torch.cuda.set_sync_debug_mode("error")
    try:
        appearance(images, params), edge_target(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_copied_on_a_stream_of_their_own_are_the_same() -> None:
    generator, batches = torch.Generator().manual_seed(0), []
    for index in range(6):
        images = torch.randint(0, 256, (4, 3, 256, 256), dtype=torch.uint8, generator=generator).pin_memory()
        labels = torch.randint(0, 19, (4, 256, 256), dtype=torch.uint8, generator=generator).pin_memory()
        params = sampled(AppearanceSampler(0.5, (0.8, 0.8, 0.8, 0.3), blur=True), 4)
        batches.append(TrainingBatch(images, labels, params, [f"{index}.png"]))
    to_device, busy, moved = DeviceBatches(DEVICE), torch.randn(2048, 2048, device=DEVICE), []
    for batch in to_device(iter(batches)):
        busy = (busy @ busy).clamp(-1, 1)  # the copy of the next batch runs beside it
        assert batch.images.device.type == batch.labels.device.type == "cuda"
        assert all(values.device.type == "cpu" for values in batch.params)
        moved.append((batch.images.clone(), batch.labels.clone(), batch.names))
    assert len(moved) == 6 and 0 <= to_device.wait_share() <= 1
    for (images, labels, names), batch in zip(moved, batches, strict=True):
        assert torch.equal(images.cpu(), batch.images) and torch.equal(labels.cpu(), batch.labels)
        assert names == batch.names


def test_a_scaled_step_in_float16() -> None:
    torch.manual_seed(0)
    network = reference.small_network("diia").to(DEVICE)
    criterion, scaler = build("diia").to(DEVICE), torch.amp.GradScaler("cuda", init_scale=1024.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    images, labels, edges = (tensor.to(DEVICE) for tensor in reference.sample())

    def step(factor: float) -> bool:
        """Tell whether the step changed the weights."""
        before = [parameter.detach().clone() for parameter in network.parameters()]
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            output: SegmentorOutput = network(images)
        assert output.aux is not None and output.aux.dtype == torch.float16
        total = criterion.total(criterion(output.float(), labels.long(), edges, whiten=False))
        assert total.isfinite()
        scaler.scale(total * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(parameter.isfinite().all() for parameter in network.parameters())
        return any(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))

    assert step(1.0) and scaler.get_scale() == 1024
    assert not step(float("inf")) and scaler.get_scale() == 512, "an overflow halves the scale and leaves the weights"


def test_synchronised_batch_norm_on_one_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, images = reference.small_network("base").to(DEVICE).train(), reference.sample()[0].to(DEVICE)
    for module in network.modules():
        if hasattr(module, "p"):
            module.p = 0.0  # no dropout
    with torch.no_grad():
        expected = network(images).fused
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        converted = share_batch_norms(network)
        assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
        output = converted(images).fused
        output.sum().backward()
        torch.testing.assert_close(output.detach(), expected, atol=1e-2, rtol=1e-2)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("amp", ["off", "fp16", "bf16", "auto"])
def test_a_short_training(small_camvid: Path, tmp_path: Path, amp: str) -> None:
    flags = ("--backbone", "resnet18", "--device", "cuda", "--num_workers", "2", "--amp", amp)
    train.main(train_arguments(small_camvid, tmp_path, *flags))
    folder = run_folder(tmp_path)
    assert read_weights(folder / "last.pth")["progress"]["step"] == 4
    losses = [row["loss/train_loss"] for row in read_history(folder / "history.jsonl") if "loss/train_loss" in row]
    assert len(losses) == 4 and np.isfinite(losses).all()
    assert any((folder / "scores").iterdir())


def test_protocols_and_counts_are_the_cpus() -> None:
    generator = torch.Generator().manual_seed(0)
    images, truth = (torch.randn(2, 19, 90, 130, generator=generator) for _ in range(2))
    inference = Inference(window=(64, 64), stride=(48, 48), scales=(0.5, 1.0), flip=True)
    logits = inference(torch.sin, images)
    torch.testing.assert_close(inference(torch.sin, images.to(DEVICE)).cpu(), logits, rtol=1e-4, atol=1e-4)
    label = torch.where(truth[:, 0] > 1.5, 255, truth.argmax(1)).byte()
    found = []
    for device in ("cpu", "cuda"):
        more = MoreCounts.of_domain(BUILTIN["camvid"], device=torch.device(device))
        truths, predictions = label.to(device), logits.argmax(1).byte().to(device)
        more.add_confidences(logits.to(device), truths, predictions)
        more.add_boundaries(truths, predictions)
        found.append(more)
    assert torch.equal(found[1].boundaries.cpu(), found[0].boundaries)
    moved = (found[1].confidences.cpu().cumsum(2) - found[0].confidences.cumsum(2)).abs().max()
    assert moved <= 2 and found[0].confidences.sum() > 1000, "a pixel at the edge of a bin may change it"
