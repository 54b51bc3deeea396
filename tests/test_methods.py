"""The rows of methods, and every one of them taking a training step."""

from __future__ import annotations

import pytest
import torch

from loss import build_criterion
from network.methods import METHODS, method_for, resolve_method
from tests import reference
from utils.errors import UserError


def test_rows_say_what_was_published() -> None:
    assert list(METHODS) == ["base", "ibn", "is", "iw", "irw", "isw", "diia"]
    assert {name: row.whitening for name, row in METHODS.items() if row.whitening} == {
        "iw": "irw",
        "irw": "irw",
        "isw": "isw",
        "diia": "isw",
    }
    assert METHODS["irw"].relax_denom == 64 and METHODS["iw"].relax_denom == 0
    assert METHODS["diia"].head == "diia" and METHODS["diia"].recipe_batch == 32 and METHODS["diia"].jitter == "diia"


def test_codes_override_the_row() -> None:
    baseline = resolve_method("diia", [0] * 7)
    assert baseline.head == "diia" and baseline.whitening is None
    assert resolve_method("diia", [0, 0, 1, 1, 1, 0, 0]).whitening == "irw"
    assert resolve_method("isw", [0, 0, 2, 0, 2, 0, 4]).codes == (0, 0, 2, 0, 2, 0, 4)
    assert resolve_method("ibn") is METHODS["ibn"]


@pytest.mark.parametrize(
    ("name", "codes", "words"),
    [
        ("diai", None, "did you mean 'diia'"),
        ("base", [0, 0, 2, 2, 2, 0, 0], "use --method isw"),
        ("isw", [0] * 7, "use --method base"),
        ("isw", [0, 0, 1, 1, 1, 0, 0], "use --method irw"),
        ("ibn", [0, 0, 3, 3, 3, 0, 0], "use --method is"),
        ("diia", [0, 0, 1, 2, 0, 0, 0], "cannot be mixed"),
        ("diia", [0, 0, 5, 5, 5, 0, 0], "not available yet"),
    ],
)
def test_contradictions_are_refused(name: str, codes: list[int] | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve_method(name, codes)


def test_method_of_a_weight_file() -> None:
    assert method_for(head="plain", codes=[0, 0, 4, 4, 4, 0, 0]).name == "ibn"
    assert method_for(head="plain", codes=[0] * 7).name == "base"
    assert method_for(head="diia", codes=[0] * 7).head == "diia"


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_receives_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    cfg, network = reference.options(name), reference.small_network(name)
    criterion = build_criterion(cfg, method=network.method, style_channels=network.style_channels)
    if network.method.whitening == "isw":
        criterion.intersect_masks([torch.ones(c, c, dtype=torch.bool).triu(1) for c in network.style_channels])
    images, labels, edges = reference.sample()
    terms = criterion(network(images), labels, edges, whiten=criterion.has_masks)
    criterion.total(terms).backward()
    assert terms.keys() == criterion.weights.keys()
    bad = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert not bad
    still = {key for key, value in network.named_parameters() if not value.grad.any()}
    # The attention's gate starts at zero, so its three inputs wait for it.
    waiting = {f"aggregate.{part}.{leaf}" for part in ("query", "key", "value") for leaf in ("weight", "bias")}
    assert still == (waiting if name == "diia" else set())


@pytest.mark.parametrize("name", ["base", "diia"])
def test_a_batch_of_one_trains(name: str) -> None:
    torch.manual_seed(0)
    network = reference.small_network(name)
    criterion = build_criterion(reference.options(name), method=network.method, style_channels=network.style_channels)
    images, labels, edges = reference.sample(1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    criterion.total(criterion(network(images), labels, edges, whiten=False)).backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in network.parameters())
    # One value has no variance: the pooled branch keeps its running statistics, every other norm updates.
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    means = {key for key in before if key.endswith("running_mean")}
    assert {key for key in means if "aspp.pool" in key} == means - moved


def test_frozen_batch_norms_keep_their_statistics() -> None:
    network = reference.small_network("base")
    network.freeze_bn = True
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images, _, _ = reference.sample()
    network(images).fused.mean().backward()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training and network.head.refine[0].norm.weight.grad is not None
