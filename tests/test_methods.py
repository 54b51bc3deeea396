"""The rows of methods, and every one of them taking a training step."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from loss import build_criterion
from network.methods import METHODS, method_for, resolve_method
from tests import reference
from tests.street_data import make_cfg
from utils.errors import UserError


def test_rows_say_what_was_published() -> None:
    plain_and_published = ["base", "linear", "ibn", "is", "iw", "irw", "isw", "sw", "diia"]
    parts_off = ["no-edge", "no-layout", "no-aggregation", "no-whitening", "coarse"]
    put_back = ["edge", "confidence", "encoding", "attention", "content", "losses", "sites"]
    corrected = ["diia-v2", *(f"diia-v2-old-{name}" for name in put_back)]
    assert list(METHODS) == [*plain_and_published, *(f"diia-{part}" for part in parts_off), *corrected]
    assert {name: row.whitening for name, row in METHODS.items() if row.whitening and "-" not in name} == {
        "iw": "irw",
        "irw": "irw",
        "isw": "isw",
        "diia": "isw",
    }
    assert METHODS["sw"].codes == (0, 0, 5, 5, 5, 0, 0)
    assert METHODS["irw"].relax_denom == 64 and METHODS["iw"].relax_denom == 0
    assert METHODS["diia"].head == "diia" and METHODS["diia"].jitter == "diia"


def test_a_row_without_a_part_differs_from_diia_in_that_alone() -> None:
    whole = METHODS["diia"]
    for name, row in METHODS.items():
        if name.startswith("diia-no-") and name != "diia-no-whitening":
            missing = name.removeprefix("diia-no-")
            assert [part for part in whole.parts if part not in row.parts] == [missing]
            assert dataclasses.replace(row, name="diia", parts=whole.parts) == whole
            assert f"{name} (DIIA head without {missing}, wt_layer 0 0 2 2 2 0 0, ISW whitening)" == str(row)
    bare = METHODS["diia-no-whitening"]
    assert dataclasses.replace(bare, name="diia", codes=whole.codes, whitening="isw") == whole
    assert not METHODS["diia-coarse"].parts and METHODS["diia-coarse"].whitening == "isw"


def test_a_correction_left_out_is_the_only_difference() -> None:
    corrected, published = METHODS["diia-v2"], METHODS["diia"]
    assert dataclasses.replace(corrected, name="diia", corrections=(), codes=published.codes) == published
    assert str(corrected) == (
        "diia-v2 (DIIA head, corrected edge, confidence, encoding, attention, content, losses, "
        "wt_layer 0 0 6 6 6 0 0, ISW whitening)"
    )
    for name in corrected.corrections:
        row = METHODS[f"diia-v2-old-{name}"]
        assert set(corrected.corrections) - set(row.corrections) == {name}
        assert dataclasses.replace(row, name="diia-v2", corrections=corrected.corrections) == corrected
    assert dataclasses.replace(METHODS["diia-v2-old-sites"], name="diia-v2", codes=corrected.codes) == corrected


def test_codes_override_the_row() -> None:
    baseline = resolve_method("diia", [0] * 7)
    assert baseline.head == "diia" and baseline.whitening is None
    assert resolve_method("diia", [0, 0, 1, 1, 1, 0, 0]).whitening == "irw"
    assert resolve_method("isw", [0, 0, 2, 0, 2, 0, 4]).codes == (0, 0, 2, 0, 2, 0, 4)
    assert resolve_method("isw", [0, 0, 6, 6, 0, 0, 0]).whitening == "isw"
    assert resolve_method("ibn") is METHODS["ibn"]
    mixed = resolve_method("diia-no-edge", [0, 0, 5, 2, 3, 4, 0])
    assert mixed.parts == METHODS["diia-no-edge"].parts and mixed.whitening == "isw"
    assert resolve_method("sw", [0, 0, 5, 5, 4, 3, 0]).whitening is None
    assert resolve_method("diia", [0, 0, 5, 5, 5, 0, 0]).whitening is None


@pytest.mark.parametrize(
    ("name", "codes", "words"),
    [
        ("diai", None, "did you mean 'diia'"),
        ("base", [0, 0, 2, 2, 2, 0, 0], "use --method isw"),
        ("isw", [0] * 7, "use --method base"),
        ("isw", [0, 0, 1, 1, 1, 0, 0], "use --method irw"),
        ("ibn", [0, 0, 3, 3, 3, 0, 0], "use --method is"),
        ("diia", [0, 0, 1, 2, 0, 0, 0], "cannot be mixed"),
        ("isw", [0, 0, 6, 1, 0, 0, 0], "cannot be mixed"),
        ("sw", [0, 0, 4, 4, 4, 0, 0], "use --method ibn"),
        ("base", [0, 0, 5, 0, 4, 0, 0], "use --method sw"),
        ("diia-no-edges", None, "did you mean 'diia-no-edge'"),
        ("diia-no-whitening", [0, 0, 2, 2, 2, 0, 0], "use --method diia"),
    ],
)
def test_contradictions_are_refused(name: str, codes: list[int] | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve_method(name, codes)


def test_method_of_a_weight_file() -> None:
    assert method_for(head="plain", codes=[0, 0, 4, 4, 4, 0, 0]).name == "ibn"
    assert method_for(head="plain", codes=[0] * 7).name == "base"
    assert method_for(head="plain", codes=[0, 0, 5, 5, 5, 0, 0]).name == "sw"
    assert method_for(head="plain", codes=[0, 0, 5, 2, 2, 0, 0]).name == "isw"
    assert method_for(head="diia", codes=[0] * 7).parts == METHODS["diia"].parts


@pytest.mark.parametrize("name", ["base", "diia"])
def test_a_batch_of_one_trains(name: str) -> None:
    torch.manual_seed(0)
    network = reference.small_network(name)
    criterion = build_criterion(make_cfg(METHOD=name), method=network.method, style_channels=network.style_channels)
    images, labels, edges = reference.sample(1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    criterion.total(criterion(network(images), labels, edges, whiten=False)).backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in network.parameters())
    # One value has no variance: the pooled branch keeps its running statistics, every other norm updates.
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    means = {key for key in before if key.endswith("running_mean")}
    assert {key for key in means if "aspp.pool" in key} == means - moved


def test_frozen_batch_norms_are_those_of_the_backbone() -> None:
    network = reference.small_network("sw")
    network.freeze_bn = True
    network.backbone.sites["new"] = nn.BatchNorm2d(4)  # no pretrained statistics either; nothing runs it
    network.train()
    assert network.backbone.sites["new"].training
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images, _, _ = reference.sample()
    network(images).fused.mean().backward()
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    statistics = {key for key in before if "running_" in key or key.endswith("num_batches_tracked")}
    assert moved == {key for key in statistics if not key.startswith("backbone.") or ".sites.st" in key}
    assert network.training and network.backbone.layer1[0].bn1.weight.grad is not None, "the scales still train"
