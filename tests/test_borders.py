"""Relaxed borders and image weights: the sets of classes, their weights, the loss, and its part in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import train
from loss.criterion import Criterion
from loss.terms import ImageTargets, cross_entropy, neighbour_classes
from tests.runs import train_arguments
from tests.test_criterion import build, made_up_output, some_labels


def planes(sets: Tensor, count: int) -> np.ndarray:
    """Sets (B, H, W) as (B, count, H, W) zeros and ones."""
    return torch.stack([(sets >> c) & 1 for c in range(count)], dim=1).numpy()


def some(seed: int, *, batch: int = 2, height: int = 6, width: int = 7, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits and labels, a fifth of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, height, width, generator=generator)
    labels = torch.randint(0, classes, (batch, height, width), generator=generator)
    return logits, labels.where(torch.rand(labels.shape, generator=generator) > 0.2, 255)


def direct(logits: Tensor, labels: Tensor, *, bound: float, whole_batch: bool, relaxed: bool, strict: Any) -> Tensor:
    """The loss from its definition, pixel by pixel in double precision, with gradient."""
    batch, classes, height, width = logits.shape
    probabilities = logits.double().softmax(1)
    sets, counts = {}, torch.zeros(batch, classes, dtype=torch.float64)
    for b, y, x in ((b, y, x) for b in range(batch) for y in range(height) for x in range(width)):
        own = int(labels[b, y, x])
        if own != 255:
            around = labels[b, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].flatten().tolist()
            sets[b, y, x] = [own] if not relaxed or own in strict else sorted(set(around) - {255})
            counts[b, sets[b, y, x]] += 1
    if whole_batch:
        counts = counts.sum(0, keepdim=True).expand_as(counts)
    weights = 1 + bound * (1 - counts / counts.sum(1, keepdim=True))
    total, share = torch.zeros((), dtype=torch.float64), 0.0
    for (b, y, x), found in sets.items():
        weight = float(weights[b, found].mean())
        total, share = total - weight * probabilities[b, found, y, x].sum().log(), share + weight
    return total / share


def loss_of(logits: Tensor, labels: Tensor, targets: ImageTargets) -> Tensor:
    num_classes = logits.shape[1]
    return cross_entropy(logits, targets.weigh(targets.sets(labels, num_classes=num_classes), num_classes=num_classes))


def test_neighbourhoods_of_the_original(golden: Path) -> None:
    values = np.load(golden / "numpy_level.npz")
    label = torch.from_numpy(values["label_img"][:60, :80])[None]
    expected = np.unpackbits(values["relaxed"], count=20 * 60 * 80).reshape(1, 20, 60, 80)
    np.testing.assert_array_equal(planes(neighbour_classes(label, num_classes=19), 20), expected)
    np.testing.assert_array_equal(planes(neighbour_classes(label.long(), num_classes=19), 20), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000), st.sets(st.integers(0, 3)))
def test_neighbourhoods_follow_the_rule(height: int, width: int, seed: int, strict: set[int]) -> None:
    labels = np.random.default_rng(seed).choice(np.array([0, 1, 2, 3, 255], np.uint8), (1, height, width))
    found = neighbour_classes(torch.from_numpy(labels), num_classes=4, strict=sorted(strict))
    padded = np.pad(np.minimum(labels[0], 4), 1, constant_values=4)
    for y in range(height):
        for x in range(width):
            own = min(int(labels[0, y, x]), 4)
            around = {own} if own in strict else set(padded[y : y + 3, x : x + 3].flatten().tolist())
            assert int(found[0, y, x]) == sum(1 << c for c in around)


@pytest.mark.parametrize("whole_batch", [False, True])
@pytest.mark.parametrize(
    ("relaxed", "strict"), [(False, ()), (True, ()), (True, (1, 3))], ids=["weights", "borders", "strict"]
)
@pytest.mark.parametrize("bound", [0.0, 1.0, 2.5])
def test_loss_and_gradient_agree_with_the_definition(
    bound: float, relaxed: bool, strict: tuple[int, ...], whole_batch: bool
) -> None:
    logits, labels = some(3)
    options: dict[str, Any] = {"bound": bound, "whole_batch": whole_batch, "relaxed": relaxed, "strict": strict}
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    found, expected = loss_of(ours, labels, ImageTargets(**options)), direct(theirs, labels, **options)
    assert found.item() == pytest.approx(expected.item(), rel=2e-6)
    found.backward()
    expected.backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)
    assert not ours.grad.movedim(1, -1)[labels == 255].any(), "an ignored pixel has no gradient"


def test_equal_weights_without_borders_are_the_plain_cross_entropy() -> None:
    logits, labels = some(5)
    found = loss_of(logits, labels, ImageTargets(bound=0.0, whole_batch=False, relaxed=False))
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, ignore_index=255))


def test_nothing_underflows() -> None:
    labels = torch.tensor([[[0, 1, 1]]])
    logits = torch.full((1, 4, 1, 3), -300.0)
    logits[:, 3] = 300.0
    logits.requires_grad_()
    found = loss_of(logits, labels, ImageTargets(bound=0.0, whole_batch=False, relaxed=True))
    found.backward()
    assert found.item() == pytest.approx(600 - 2 * float(np.log(2)) / 3, rel=1e-6)  # two of three have two classes
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad.any()


def test_all_ignored_gives_zero() -> None:
    logits, labels = some(1)
    logits.requires_grad_()
    for relaxed in (False, True):
        targets = ImageTargets(bound=1.0, whole_batch=False, relaxed=relaxed)
        found = loss_of(logits, torch.full_like(labels, 255), targets)
        found.backward()
        assert found.item() == 0 and logits.grad is not None and not logits.grad.any()


# ---------------------------------------------------------------------------------- the criterion


def test_terms_of_diia_with_borders() -> None:
    output, labels, edges = made_up_output(), some_labels(), torch.zeros(2, 8, 8)
    criterion = build("diia", RELAX_BORDERS=True, STRICT_CLASSES=(3,))
    targets = ImageTargets(bound=1.0, whole_batch=False, relaxed=True, strict=(3,))
    plain = build("diia")(output, labels, edges, whiten=False)
    terms = criterion(output, labels, edges, whiten=False)
    for name in ("fused", "coarse", "edge_logits"):
        torch.testing.assert_close(terms[name], loss_of(getattr(output, name), labels, targets))
        assert terms[name] < plain[name]
    small = targets.sets(labels, num_classes=19)[:, ::4, ::4]
    torch.testing.assert_close(terms["aux"], cross_entropy(output.aux, targets.weigh(small, num_classes=19)))
    torch.testing.assert_close(terms["layout"], plain["layout"])  # the network's own labels are no borders to relax
    unrelaxed = criterion(output, labels, edges, whiten=False, relax=False)
    weighted = build("diia", IMAGE_WEIGHTS=True)(output, labels, edges, whiten=False)
    for name, value in unrelaxed.items():
        assert torch.equal(value, weighted[name]), name  # the weights by image stay


def test_image_weights_stay_where_borders_are_switched_off() -> None:
    output, labels = made_up_output(), some_labels()
    criterion = build("base", IMAGE_WEIGHTS=True, WEIGHT_BOUND=2.0, BATCH_WEIGHTS=True)
    expected = loss_of(output.fused, labels, ImageTargets(bound=2.0, whole_batch=True, relaxed=False))
    for relax in (False, True):
        terms = criterion(output, labels, whiten=False, relax=relax)
        torch.testing.assert_close(terms["fused"], expected)
    assert terms.keys() == {"fused", "aux"}
    assert not torch.isclose(terms["fused"], cross_entropy(output.fused, labels))


class NoWaiting(TorchDispatchMode):
    """Refuses what would make the host wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "item")
        assert not any(name in str(func) for name in waits), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "changes",
    [{"RELAX_BORDERS": True, "STRICT_CLASSES": (1, 2)}, {"IMAGE_WEIGHTS": True}, {"OHEM_THRESH": 0.7}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_step_does_not_wait_for_the_device(changes: dict[str, Any]) -> None:
    output, labels = made_up_output(), some_labels()
    criterion = build("diia", **changes, OHEM_MIN_KEPT=5)
    with NoWaiting():
        terms = criterion(output, labels, torch.zeros(2, 8, 8), whiten=False)
        criterion.total(terms).backward()
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        terms["fused"].item()


def test_a_run_relaxes_borders_until_the_step_it_was_told(
    small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = Criterion.forward, []

    def watched(self: Criterion, *arguments: Any, **named: Any) -> Any:
        seen.append((named["relax"], self.targets))
        return original(self, *arguments, **named)

    monkeypatch.setattr(Criterion, "forward", watched)
    flags = ("--method", "base", "--max_iter", "3", "--no_val_source", "--val_dataset")
    relaxed = ("--jointwtborder", "--strict_bdr_cls", "5", "7", "--rlx_off_iter", "2")
    train.main(train_arguments(small_camvid, tmp_path, *flags, *relaxed))
    targets = ImageTargets(bound=1.0, whole_batch=False, relaxed=True, strict=(5, 7))
    assert seen == [(True, targets), (True, targets), (False, targets)]
