"""The plain network, losses and statistics that the benchmarks compare with compute what ours do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import config
from benchmarks import plain
from loss import MaskStatistics, build_criterion
from network import build_network
from network.layout import coarse_layout
from tests import reference


@pytest.fixture(scope="module")
def networks() -> tuple[Any, plain.Network, Any]:
    """Ours and the plain one with the same weights, without dropout, and our criterion with masks."""
    cfg = config.parse(["--method", "diia"], program="train")
    ours = build_network(cfg)
    reference.fill_network(ours, reference.carried()["diia_isw"]["names"])
    theirs = plain.Network()
    theirs.load_state_dict(ours.state_dict())
    criterion: Any = build_criterion(cfg, method=ours.method, style_channels=ours.style_channels)
    criterion.whitening.intersect_masks(reference.trial_masks(0, ours.style_channels))
    for network in (ours, theirs):
        for layer in network.modules():
            if isinstance(layer, nn.Dropout2d):
                layer.p = 0.0
    return ours, theirs, criterion


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    return reference.inputs("a", 2, 96, 128)


def test_evaluation_and_statistics_are_ours(networks: Any, batch: Any) -> None:
    ours, theirs, _ = networks
    images, labels, _ = batch
    for network in (ours, theirs):
        network.eval()
    with torch.no_grad():
        logits, output = ours.predict(images), theirs(images)
        statistics = MaskStatistics(ours.style_channels, clusters=3)
        statistics.update(ours.style_features(images))
    assert reference.gap(0.5 * output.coarse + output.fused, logits) < 3e-5
    for found, wanted in zip(plain.pair_variances(theirs, images), statistics.variances(), strict=True):
        assert reference.gap(found, wanted) < 1e-4
    wanted_counts = torch.zeros(19, 19, dtype=torch.int64)
    for truth, predicted in zip(labels.flatten().tolist(), logits.argmax(1).flatten().tolist(), strict=True):
        if truth < 19:
            wanted_counts[truth, predicted] += 1
    counts, loss = plain.evaluate(theirs, images, labels)
    assert (torch.from_numpy(counts) - wanted_counts).abs().sum() <= 4
    wanted_loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255).item()
    assert loss == pytest.approx(wanted_loss, rel=1e-5)


def test_a_training_step_is_ours(networks: Any, batch: Any) -> None:
    ours, theirs, criterion = networks
    batch = (batch[0].double(), *batch[1:])
    for network in (ours, theirs):
        network.double().train()  # rounding would hide small differences
    terms = criterion(ours(batch[0]), *batch[1:], whiten=True)
    criterion.total(terms).backward()
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4) for n in (ours, theirs)]
    optimizers[0].step()
    found = plain.train_step(theirs, optimizers[1], *batch, masks=criterion.whitening.masks)
    assert found.keys() == terms.keys()
    for name, term in terms.items():
        assert found[name].item() == pytest.approx(term.item(), rel=1e-3 if name == "layout" else 1e-5), name
    state = ours.state_dict()
    assert max(reference.gap(value, state[name]) for name, value in theirs.state_dict().items()) < 1e-8


def test_a_layout_is_ours() -> None:
    logits = torch.randn(3, 19, 24, 40, generator=torch.Generator().manual_seed(0))
    logits[:, 5] -= 50  # an absent class
    logits[0, 7, 0, :3] += 50
    logits[:, 7].sub_(100).add_(100 * (torch.arange(3 * 960).view(3, 24, 40) < 3))  # a class of three pixels
    for scaled in (logits, logits - 3, logits * 0.1):
        assert torch.equal(plain.coarse_layout(scaled).squeeze(1).long(), coarse_layout(scaled))
