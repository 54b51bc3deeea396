"""Coarse layout, attention and DIIA's forward, against slow code of their own."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from network.diia import TripleAggregation
from network.layout import coarse_layout
from tests import reference


def slow_layout(logits: np.ndarray, *, softmax: bool = False) -> np.ndarray:
    """The layout pixel by pixel: (B, classes, H, W) -> (B, H, W)."""
    if softmax:
        exponents = np.exp(logits - logits.max(1, keepdims=True))
        logits = exponents / exponents.sum(1, keepdims=True)
    labels, values = logits.argmax(1), logits.max(1)
    thresholds = {}
    for label in np.unique(labels):
        ordered = sorted(values[labels == label].tolist())
        thresholds[label] = min(ordered[min(round(len(ordered) / 2), len(ordered) - 1)], np.float32(0.99))
    layout = np.empty_like(labels)
    for place, label in np.ndenumerate(labels):
        layout[place] = 255 if values[place] < thresholds[label] else label
    return layout


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    batch=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    classes=st.integers(1, 19),
    scale=st.sampled_from([0.1, 0.5, 2.0, 50.0]),
    shift=st.sampled_from([0.0, -3.0]),
    steps=st.sampled_from([None, 2]),
)
def test_layout_is_the_slow_one(
    seed: int, batch: int, height: int, width: int, classes: int, scale: float, shift: float, steps: int | None
) -> None:
    logits = scale * np.random.default_rng(seed).standard_normal((batch, classes, height, width)) + shift
    if steps:
        logits = np.round(logits * steps) / steps  # many equal values
    logits = logits.astype(np.float32)
    found = coarse_layout(torch.from_numpy(logits))
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), slow_layout(logits))
    with mock.patch("torch.compiler.is_compiling", return_value=True):  # the form that graphs get
        assert torch.equal(coarse_layout(torch.from_numpy(logits)), found)
    with mock.patch("network.layout._layout_on_cpu", return_value=None):  # the form that other devices get
        assert torch.equal(coarse_layout(torch.from_numpy(logits)), found)


def test_layout_of_a_large_batch_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of several rows, of one row wider than a part, and the logits of a network in any memory format."""
    logits = np.random.default_rng(0).standard_normal((2, 19, 37, 50)).astype(np.float32) - 1
    expected = torch.from_numpy(slow_layout(logits))
    for size in (1, 50, 333, 1 << 17):
        monkeypatch.setattr("network.outputs._CACHED_PIXELS", size)
        assert torch.equal(coarse_layout(torch.from_numpy(logits)), expected)
    assert torch.equal(coarse_layout(torch.from_numpy(logits).to(memory_format=torch.channels_last)), expected)


def test_layout_waits_for_no_device() -> None:
    """On the meta device whatever needs a value on the host raises."""
    assert coarse_layout(torch.empty(2, 19, 8, 9, device="meta")).shape == (2, 8, 9)


def test_layout_with_nan_is_that_of_every_device() -> None:
    logits = torch.randn(2, 5, 8, 9, generator=torch.Generator().manual_seed(0))
    logits[0, 3, 2, 4] = logits[1, 0, 0, 0] = torch.nan
    found = coarse_layout(logits)
    assert found[0, 2, 4] == 3 and found[1, 0, 0] == 0, "nan is the largest, as torch's max says"
    with mock.patch("network.layout._layout_on_cpu", return_value=None):
        assert torch.equal(coarse_layout(logits), found)


@pytest.mark.parametrize("count", range(1, 9))
def test_layout_keeps_from_the_upper_median_on(count: int) -> None:
    """Halves of a count go to the even number, as Python rounds."""
    values = torch.arange(1, count + 1) / 20  # below the cap
    layout = coarse_layout(values.view(1, 1, 1, count))
    assert (layout == 0).sum() == count - min(round(count / 2), count - 1)


def test_layout_caps_the_threshold_and_keeps_equal_values() -> None:
    layout = coarse_layout(torch.tensor([0.98, 0.99, 5.0, 6.0, 7.0]).view(1, 1, 1, 5))
    assert layout.flatten().tolist() == [255, 0, 0, 0, 0]
    assert (coarse_layout(torch.zeros(1, 3, 4, 4)) == 0).all()


def test_layout_from_probabilities() -> None:
    logits = 3 * np.random.default_rng(0).standard_normal((2, 19, 12, 16)).astype(np.float32)
    found = coarse_layout(torch.from_numpy(logits), confidence="softmax").numpy()
    assert (found != slow_layout(logits, softmax=True)).mean() < 0.01  # single pixels at a threshold
    assert (found != coarse_layout(torch.from_numpy(logits)).numpy()).mean() > 0.1


def test_layout_passes_no_gradient_and_takes_half_precision() -> None:
    logits = torch.randn(1, 5, 6, 6, requires_grad=True)
    assert not coarse_layout(logits).requires_grad
    assert coarse_layout(logits.half()).dtype == torch.int64


def test_aggregation_is_attention_of_layout_over_edges() -> None:
    torch.manual_seed(0)
    tiam = TripleAggregation(32, feature_channels=16)
    torch.nn.init.constant_(tiam.gamma, 0.5)
    top, layout, edge = torch.randn(2, 32, 3, 4), 20 * torch.randn(2, 16, 3, 4), torch.randn(2, 16, 3, 4)
    query, key, value = (
        conv(maps).flatten(2) for conv, maps in ((tiam.query, layout), (tiam.key, edge), (tiam.value, top))
    )
    wanted = torch.zeros(2, 128, 12)
    for image in range(2):
        for i in range(12):
            weights = torch.stack([query[image, :, i] @ key[image, :, j] for j in range(12)]).softmax(0)
            wanted[image, :, i] = sum(weights[j] * value[image, :, j] for j in range(12))
    wanted = 0.5 * wanted.view(2, 128, 3, 4) + tiam.up(top)
    torch.testing.assert_close(tiam(top, layout, edge), wanted, rtol=1e-5, atol=1e-6)


def test_scaled_aggregation_divides_by_the_root_of_its_width_and_acts_at_once() -> None:
    torch.manual_seed(0)
    scaled, plain = (TripleAggregation(8, feature_channels=8, scaled=scaled) for scaled in (True, False))
    plain.load_state_dict(scaled.state_dict())
    assert float(scaled.gamma.detach()) == 1
    with torch.no_grad():
        plain.query.weight /= 128**0.5
        assert plain.query.bias is not None
        plain.query.bias /= 128**0.5
    maps = torch.randn(2, 8, 3, 4), 20 * torch.randn(2, 8, 3, 4), 20 * torch.randn(2, 8, 3, 4)
    torch.testing.assert_close(scaled(*maps), plain(*maps))
    assert not torch.allclose(scaled(*maps), scaled.up(maps[0]), atol=1e-3)
    cells = torch.tensor([0, 7])
    torch.testing.assert_close(scaled.attention_of(cells, *maps[1:]), plain.attention_of(cells, *maps[1:]))


def test_corrected_parts_read_planes_and_probabilities() -> None:
    network = reference.small_network("diia-v2").eval()
    images, _, _ = reference.sample()
    seen: dict[str, torch.Tensor] = {}
    network.get_submodule("layout.encoder").register_forward_pre_hook(lambda _, inputs: seen.update(planes=inputs[0]))
    network.get_submodule("edge.encoder").register_forward_hook(lambda _, __, maps: seen.update(maps=maps))
    with torch.no_grad():
        output = network(images)
    assert output.layout is not None and output.coarse is not None and output.edge is not None
    assert torch.equal(output.layout, coarse_layout(output.coarse, confidence="softmax"))
    wanted = torch.nn.functional.one_hot(output.layout.clamp(max=19), 20)[..., :19].permute(0, 3, 1, 2)
    assert (output.layout == 255).any() and torch.equal(seen["planes"], wanted.float())
    edge = 255 / (1 + (-seen["maps"].mean(1, keepdim=True)).exp())
    corners = (0, 0, -1, -1), (0, -1, 0, -1)  # of map and image, which coincide
    torch.testing.assert_close(output.edge[:, 0][:, corners[0], corners[1]], edge[:, 0][:, corners[0], corners[1]])


def test_first_step_has_no_attention_yet() -> None:
    tiam = TripleAggregation(8, feature_channels=8)
    top = torch.randn(1, 8, 2, 2)
    torch.testing.assert_close(tiam(top, torch.randn(1, 8, 2, 2), torch.randn(1, 8, 2, 2)), tiam.up(top))


class Largest(TorchDispatchMode):
    """Remembers how many values the largest tensor has that any operation returns."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))])
        return out


def test_attention_never_holds_all_pairs_of_positions() -> None:
    """At 1024x2048 and stride 8 they would take 4 GiB, in either direction."""
    tiam = TripleAggregation(8, feature_channels=8)
    maps = [torch.randn(1, 8, 32, 48, requires_grad=True) for _ in range(3)]
    with Largest() as largest:
        tiam(*maps).sum().backward()
    assert 0 < largest.size < (32 * 48) ** 2 / 4
    with Largest() as largest, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        tiam(*maps).sum().backward()
    assert largest.size >= (32 * 48) ** 2, "the mode sees what it should"


@pytest.mark.parametrize("scaled", [True, False])
def test_the_attention_adds_to_whole_content(scaled: bool) -> None:
    torch.manual_seed(0)
    tiam = TripleAggregation(8, feature_channels=8, scaled=scaled, whole=True)
    maps = [torch.randn(2, 8, 3, 4) for _ in range(3)]
    assert tiam.out_channels == 8 and torch.equal(tiam(*maps), maps[0])
    tiam(*maps).square().sum().backward()
    assert {name for name, value in tiam.named_parameters() if value.grad is not None and value.grad.any()} == {
        "back.weight" if scaled else "gamma"
    }
    torch.nn.init.normal_(tiam.back.weight)
    torch.nn.init.constant_(tiam.gamma, 0.5)
    narrow = TripleAggregation(8, feature_channels=8, scaled=scaled)
    narrow.load_state_dict(tiam.state_dict(), strict=False)
    torch.nn.init.zeros_(narrow.up.weight)
    torch.nn.init.zeros_(narrow.up.bias)
    added = torch.einsum("oi,bihw->bohw", tiam.back.weight[:, :, 0, 0], narrow(*maps))
    torch.testing.assert_close(tiam(*maps), maps[0] + added)


def test_one_branch_asks_and_answers() -> None:
    torch.manual_seed(0)
    tiam = TripleAggregation(8, feature_channels=8)
    torch.nn.init.constant_(tiam.gamma, 0.5)
    top, features = torch.randn(2, 8, 3, 4), torch.randn(2, 8, 3, 4)
    wanted = tiam(top, features, features)
    assert torch.equal(tiam(top, features, None), wanted) and torch.equal(tiam(top, None, features), wanted)
    with pytest.raises(AssertionError, match="needs a branch"):
        tiam(top, None, None)


def test_without_aggregation_the_gate_stays_closed() -> None:
    whole, part = (reference.small_network(name).eval() for name in ("diia", "diia-no-aggregation"))
    state = {name: value for name, value in whole.state_dict().items() if name in part.state_dict()}
    left_out = {name.rpartition(".")[0] for name in whole.state_dict().keys() - state.keys()}
    assert left_out == {"aggregate", "aggregate.query", "aggregate.key", "aggregate.value"}
    part.load_state_dict(state)
    images, _, _ = reference.sample()
    with torch.no_grad():
        for found, wanted in zip(part(images)[:-1], whole(images)[:-1], strict=True):
            torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(part.predict(images), whole.predict(images))


@pytest.mark.parametrize(
    ("method", "scored", "empty"),
    [
        ("diia-no-edge", {"coarse", "layout.encoder", "aggregate", "fused"}, {"edge", "edge_logits"}),
        ("diia-no-layout", {"coarse", "edge.encoder", "aggregate", "fused"}, {"layout", "layout_logits"}),
        ("diia-no-aggregation", {"coarse", "aggregate", "fused"}, set()),
        ("diia-coarse", {"coarse"}, {"coarse", "layout", "layout_logits", "edge", "edge_logits"}),
    ],
)
def test_without_a_part_only_the_others_run(method: str, scored: set[str], empty: set[str]) -> None:
    network, calls = reference.small_network(method).eval(), set()
    children = {name for name, _ in network.named_modules()}
    for name in children & {"coarse", "layout.encoder", "edge.encoder", "aggregate", "fused", "aux"}:
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.add(name))
    images, _, _ = reference.sample()
    with torch.no_grad():
        predicted, ran = network.predict(images), set(calls)
        output = network(images)
    assert ran == scored and calls >= scored | {"aux"}
    assert {name for name, value in output._asdict().items() if value is None} == empty
    assert torch.equal(predicted, output.fused if output.coarse is None else 0.5 * output.coarse + output.fused)


def test_outputs_have_their_shapes_and_predict_skips_the_training_heads() -> None:
    network = reference.small_network().eval()
    images, _, _ = reference.sample()
    calls: list[str] = []
    for name in ("aux", "layout.classify", "edge.classify"):
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        output = network(images)
        assert sorted(calls) == ["aux", "edge.classify", "layout.classify"]
        predicted = network.predict(images)
    assert len(calls) == 3, "predict ran a head that scoring does not need"
    full, (height, width) = (2, 19, 48, 64), (3, 4)
    assert output.fused.shape == output.coarse.shape == output.layout_logits.shape == output.edge_logits.shape == full
    assert output.aux.shape == (2, 19, height, width)
    assert output.layout.shape == (2, 48, 64) and output.layout.dtype == torch.int64
    assert output.edge.shape == (2, 1, 48, 64)
    assert torch.equal(predicted, 0.5 * output.coarse + output.fused)
    labels = set(output.layout.unique().tolist())
    assert labels <= {*range(19), 255} and 255 in labels


def test_odd_sizes_pass() -> None:
    network = reference.small_network().eval()
    with torch.no_grad():
        assert network.predict(torch.randn(1, 3, 50, 71)).shape == (1, 19, 50, 71)
