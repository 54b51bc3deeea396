"""Every method on every backbone at every output stride.

By default: each of them at least once at full depth, and mixed style codes. All together, with one block in each stage
of a ResNet and each ResNet that then differs once, takes 8 minutes of one core:
`pytest -m exhaustive tests/test_every_network.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from loss import build_criterion
from network import BACKBONES, METHODS, Architecture, Segmentor, assemble, resolve_method
from network.backbones import BackboneSpec, ResNetSpec
from tests import reference
from tests.street_data import make_cfg
from utils.errors import UserError

SIZE = (48, 64)
# Backbones without whole groups for switchable whitening -> the channels that the sentence names.
NO_GROUPS = {"shufflenet_v2": 24, "mnasnet_05": 8, "mnasnet_10": 40}
TERMS = {
    "base": {"fused", "aux"},
    "iw": {"fused", "aux", "whitening"},
    "diia": {"coarse", "aux", "fused", "layout", "edge_logits", "edge", "whitening"},
    "diia-no-edge": {"coarse", "aux", "fused", "layout", "whitening"},
    "diia-no-layout": {"coarse", "aux", "fused", "edge_logits", "edge", "whitening"},
    "diia-no-aggregation": {"coarse", "aux", "fused", "layout", "edge_logits", "edge", "whitening"},
    "diia-no-whitening": {"coarse", "aux", "fused", "layout", "edge_logits", "edge"},
    "diia-coarse": {"fused", "aux", "whitening"},
}
TERMS["linear"] = {"fused"}
TERMS |= {name: TERMS["diia"] for name in METHODS if name.startswith("diia-v2")}
TERMS |= dict.fromkeys(("ibn", "is", "sw"), TERMS["base"]) | dict.fromkeys(("irw", "isw"), TERMS["iw"])


def shortened(spec: BackboneSpec) -> BackboneSpec:
    return dataclasses.replace(spec, blocks=(1, 1, 1, 1)) if isinstance(spec, ResNetSpec) else spec


def nameless(spec: BackboneSpec) -> str:
    return repr(dataclasses.replace(shortened(spec), name="", title="", model=None))


DIFFERENT = list({nameless(spec): name for name, spec in reversed(BACKBONES.items())}.values())[::-1]
STRIDES = {name: sorted(spec.dilations) for name, spec in BACKBONES.items()}
COVERING = [
    (method, name, STRIDES[name][turn % len(STRIDES[name])])
    for turn, method, name in zip(
        range(max(len(METHODS), len(BACKBONES))), itertools.cycle(METHODS), itertools.cycle(BACKBONES), strict=False
    )
]
MIXED = [
    ("isw", "resnet50", 16, (0, 0, 2, 5, 4, 3, 0)),
    ("irw", "resnet18", 8, (0, 0, 5, 1, 0, 1, 4)),
    ("sw", "resnet101_deep", 32, (5, 3, 4, 5, 0, 5, 5)),
    ("isw", "shufflenet_v2", 32, (0, 0, 2, 4, 3, 5, 2)),
    ("irw", "mobilenet_v2", 8, (0, 0, 1, 5, 4, 3, 0)),
    ("diia", "mobilenet_v2", 8, (0, 0, 5, 5, 2, 0, 0)),
    ("diia", "shufflenet_v2", 16, (0, 0, 4, 1, 3, 0, 0)),
    ("diia-no-layout", "resnet50", 4, (0, 0, 4, 1, 5, 0, 0)),
    ("diia-no-whitening", "mnasnet_10", 32, (0, 0, 4, 3, 4, 0, 0)),
]
PRODUCT = [(method, name, stride) for method in METHODS for name in DIFFERENT for stride in STRIDES[name]]


def build(method: str, name: str, stride: int, codes: tuple[int, ...] | None = None, *, short: bool = False) -> Any:
    spec = shortened(BACKBONES[name]) if short else BACKBONES[name]
    return assemble(Architecture(spec, stride), method=resolve_method(method, codes))


def loss_of(network: Segmentor) -> Any:
    criterion: Any = build_criterion(make_cfg(), method=network.method, style_channels=network.style_channels)
    if network.method.whitening == "isw":
        criterion.whitening.intersect_masks(
            [torch.ones(c, c, dtype=torch.bool).triu(1) for c in network.style_channels]
        )
    return criterion


def check_features(network: Segmentor, images: torch.Tensor) -> None:
    """Compare the sizes of the features with what was asked."""
    features, backbone = network.backbone(images), network.backbone
    for maps, stride in ((features.low_level, backbone.spec.low_stride), (features.top, backbone.output_stride)):
        assert maps.shape[2:] == tuple(-(-side // stride) for side in SIZE)
    assert tuple(maps.shape[1] for maps in features.style) == network.style_channels


def check_step(network: Segmentor, terms_wanted: set[str]) -> None:
    """Take a training step: every parameter receives a finite gradient."""
    criterion, (images, labels, edges) = loss_of(network), reference.sample(2, *SIZE)
    terms = criterion(network(images), labels, edges, whiten=criterion.whitening is not None)
    criterion.total(terms).backward()
    assert terms.keys() == terms_wanted
    bad = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert not bad
    still = {key for key, value in network.named_parameters() if not value.grad.any()}  # type: ignore[union-attr]
    # What is multiplied by zero at first waits: by the gate of the published attention, by the convolution behind it.
    waiting = {f"aggregate.{part}.{leaf}" for part in ("query", "key", "value") for leaf in ("weight", "bias")}
    gate, whole = ("attention" not in network.method.corrections, "content" in network.method.corrections)
    waiting |= {"aggregate.back.weight" if gate else "aggregate.gamma"} if whole else set()
    assert still == (waiting if "aggregation" in network.method.parts and (gate or whole) else set())


@torch.no_grad()
def check_scoring(network: Segmentor, again: Segmentor, images: torch.Tensor) -> None:
    """Compare what is scored with what a second network says that was filled with the first one's weights."""
    predicted = network.eval().predict(images)
    assert predicted.shape == (2, 19, *SIZE) and predicted.isfinite().all()
    check_features(network, images)
    again.load_state_dict(network.state_dict(), assign=True)
    assert torch.equal(again.eval().predict(images), predicted)


@pytest.mark.parametrize(
    ("method", "name", "stride", "codes", "short"),
    [
        *(pytest.param(*case, None, False) for case in COVERING),
        *(pytest.param(*case, False) for case in MIXED),
        *(pytest.param(*case, None, True, marks=pytest.mark.exhaustive) for case in PRODUCT),
    ],
)
def test_network(method: str, name: str, stride: int, codes: tuple[int, ...] | None, short: bool) -> None:
    torch.manual_seed(0)
    if method == "sw" and codes is None and name in NO_GROUPS:
        with pytest.raises(UserError, match=f"multiple of 16 channels, not {NO_GROUPS[name]}"):
            build(method, name, stride, short=short)
        return
    network = build(method, name, stride, codes, short=short)
    check_step(network, TERMS[method])
    with torch.device("meta"):
        again = build(method, name, stride, codes, short=short)
    check_scoring(network, again, reference.sample(2, *SIZE)[0])


def test_the_default_selection_covers_everything() -> None:
    methods, names, strides = (set(column) for column in zip(*COVERING, strict=True))
    assert methods == METHODS.keys() and names == BACKBONES.keys() and strides == {4, 8, 16, 32}
    assert {nameless(BACKBONES[name]) for name in DIFFERENT} == {nameless(spec) for spec in BACKBONES.values()}


@pytest.mark.parametrize("name", NO_GROUPS)
def test_switchable_whitening_needs_whole_groups(name: str) -> None:
    with pytest.raises(UserError, match=f"multiple of 16 channels, not {NO_GROUPS[name]}"), torch.device("meta"):
        build("sw", name, 16)


@pytest.mark.parametrize(
    ("method", "name", "stride"),
    [
        *((method, DIFFERENT[turn % 6], 16) for turn, method in enumerate(METHODS)),
        ("diia", "mobilenet_v2", 8),
        ("isw", "shufflenet_v2", 32),
        *(
            pytest.param(method, name, stride, marks=pytest.mark.exhaustive)
            for method, name, stride in PRODUCT
            if stride == 8 and not (method == "sw" and name in NO_GROUPS)
        ),
    ],
)
def test_compiles_as_one_graph(method: str, name: str, stride: int) -> None:
    """One stride each: another stride changes numbers in the graph's convolutions, not the code that is traced."""
    torch._dynamo.reset()
    network, (images, _, _) = build(method, name, stride, short=True), reference.sample(2, *SIZE)
    outputs = []
    for forward in (network, torch.compile(network, fullgraph=True, backend="eager")):
        torch.manual_seed(0)  # the auxiliary head's dropout
        with torch.no_grad():
            outputs.append(forward(images))
    for plain, compiled in zip(*outputs, strict=True):
        torch.testing.assert_close(compiled, plain)
