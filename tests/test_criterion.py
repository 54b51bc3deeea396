"""The terms, their weights and their sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from loss import build_criterion
from loss.criterion import CLASS_WEIGHTS, Criterion
from loss.terms import balanced_edge_entropy, cross_entropy, downsample_labels, ignore_easy_pixels
from network.methods import METHODS
from network.outputs import SegmentorOutput
from tests.street_data import make_cfg


def made_up_output(size: int = 8) -> Any:
    generator = torch.Generator().manual_seed(0)

    def logits(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, requires_grad=True)

    full = (2, 19, size, size)
    return SegmentorOutput(
        fused=logits(*full),
        aux=logits(2, 19, 2, 2),
        coarse=logits(*full),
        layout=torch.randint(0, 19, (2, size, size), generator=generator),
        layout_logits=logits(*full),
        edge=logits(2, 1, size, size),
        edge_logits=logits(*full),
        style=(logits(2, 4, 6, 6), logits(2, 6, 3, 3)),
    )


def build(name: str = "diia", **changes: Any) -> Any:
    cfg = make_cfg(METHOD=name, CROP_SIZE=8, **changes)
    return build_criterion(cfg, method=METHODS[name], style_channels=(4, 6))


def some_labels() -> torch.Tensor:
    labels = torch.randint(0, 19, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    labels[:, :2] = 255
    return labels


def test_edges_and_the_rest_weigh_alike() -> None:
    target = torch.zeros(2, 4, 5)
    target[0, 0], target[1, 2, 3] = 255, 255  # 5 of 20 pixels and one
    chance = torch.full((2, 1, 4, 5), 255 / 4, requires_grad=True)
    wanted = []
    for share in (5 / 20, 1 / 20):
        edges, rest = share * (1 - share), (1 - share) * share
        wanted.append((edges * np.log(4) + rest * np.log(4 / 3), edges + rest))
    loss = balanced_edge_entropy(chance, target)
    torch.testing.assert_close(loss.item(), sum(part for part, _ in wanted) / sum(weight for _, weight in wanted))
    loss.backward()
    assert chance.grad is not None
    per_image = chance.grad[:, 0]
    assert float(per_image[0, 0].sum() + 3 * per_image[0, 1:].sum()) == pytest.approx(0, abs=1e-7), "4 : 4/3 at 1/4"
    assert balanced_edge_entropy(chance, torch.zeros(2, 4, 5)).isfinite(), "no edge at all"
    assert balanced_edge_entropy(torch.full((2, 1, 4, 5), 255.00003), target).isfinite(), "upsampled in float32"
    criterion = build("diia-v2")
    assert criterion.weights["edge"] == criterion.weights["edge_logits"] == 0.1
    assert build("diia-v2-old-edge").weights["edge"] == 0.001
    old, plain = build("diia-v2-old-losses").weights, build("base").weights
    assert (criterion.weights["coarse"], criterion.weights["aux"]) == (plain["fused"], plain["aux"])
    assert (old["coarse"], old["aux"]) == (0.5, 0.1) and old["edge"] == 0.1


def test_terms_and_weights_of_diia() -> None:
    criterion, output, labels = build(), made_up_output(), some_labels()
    edges = torch.full((2, 8, 8), 7.0)
    criterion.whitening.intersect_masks([torch.ones(4, 4).triu(1).bool(), torch.ones(6, 6).triu(1).bool()])
    terms = criterion(output, labels, edges, whiten=True)
    entropy = {"fused": output.fused, "coarse": output.coarse, "edge_logits": output.edge_logits}
    for name, logits in entropy.items():
        torch.testing.assert_close(terms[name], F.cross_entropy(logits, labels, ignore_index=255))
    torch.testing.assert_close(terms["layout"], F.cross_entropy(output.layout_logits, output.layout))
    torch.testing.assert_close(terms["aux"], F.cross_entropy(output.aux, labels[:, ::4, ::4], ignore_index=255))
    torch.testing.assert_close(terms["edge"], (output.edge - 7).abs().mean())
    weights = {
        "coarse": 0.5,
        "aux": 0.1,
        "fused": 1,
        "layout": 0.1,
        "edge_logits": 0.1,
        "edge": 0.001,
        "whitening": 0.6,
    }
    assert criterion.weights == weights and terms.keys() == weights.keys()
    small = {**terms, "layout": torch.tensor(2.9)}
    wanted = torch.stack([weights[name] * value for name, value in small.items()]).sum()
    torch.testing.assert_close(criterion.total(small), wanted)


def test_large_layout_loss_is_damped() -> None:
    criterion = build()
    layout: Any = torch.tensor(3.5, requires_grad=True)
    total = criterion.total({"layout": layout})
    total.backward()
    assert total.item() == pytest.approx(0.1 * 0.01 * 3.5) and layout.grad.item() == pytest.approx(0.001)
    assert criterion.total({"layout": torch.tensor(3.0)}).item() == pytest.approx(0.3)


@pytest.mark.parametrize("weighted", [False, True])
def test_smoothed_labels(weighted: bool) -> None:
    """Each target is 0.8 of its class and 0.2 of all classes alike; each class counts with its weight."""
    output, labels = made_up_output(), some_labels()
    terms = build("diia", LABEL_SMOOTHING=0.2, CLASS_WEIGHTS=weighted)(
        output, labels, torch.zeros(2, 8, 8), whiten=False
    )
    weight = torch.tensor(CLASS_WEIGHTS) if weighted else torch.ones(19)
    valid = labels != 255
    target = 0.8 * F.one_hot(labels.where(valid, 0), 19) + 0.2 / 19  # (B, H, W, C)
    for name, logits in (("fused", output.fused), ("coarse", output.coarse), ("edge_logits", output.edge_logits)):
        pixels = -(target * weight * logits.softmax(1).log().movedim(1, 3)).sum(3)
        expected = pixels[valid].sum() / weight[labels[valid]].sum()
        torch.testing.assert_close(terms[name], expected)
    layout = F.cross_entropy(output.layout_logits, output.layout, weight=weight)
    torch.testing.assert_close(terms["layout"], layout)


def test_plain_head() -> None:
    criterion = build("irw")
    terms = criterion(made_up_output(), some_labels(), whiten=True)
    assert (
        criterion.weights == {"fused": 1.0, "aux": 0.4, "whitening": 0.6} and terms.keys() == criterion.weights.keys()
    )
    assert build("base").weights == {"fused": 1.0, "aux": 0.4}
    assert criterion.whitening.margins == [0.0, 0.0]  # 6 and 15 entries, a 64th of them
    assert build("irw", RELAX_DENOM=3.0).whitening.margins == [2.0, 5.0]


def test_unknown_terms_and_heads_raise() -> None:
    with pytest.raises(KeyError, match="boundary"):
        build().total({"boundary": torch.tensor(1.0)})
    with pytest.raises(KeyError, match="other"):
        Criterion(head="other", whitening=None, whitening_weight=0.0)
    with pytest.raises(AssertionError, match="no masks yet"):
        build("isw")(made_up_output(), some_labels(), whiten=True)
    with pytest.raises(AssertionError, match="no whitening"):
        build("base")(made_up_output(), some_labels(), whiten=True)


def test_all_ignored_labels_give_zero_terms() -> None:
    output, labels = made_up_output(), torch.full((2, 8, 8), 255)
    output = output._replace(layout=labels)
    for class_weights in (False, True):
        criterion = build(CLASS_WEIGHTS=class_weights)
        terms = criterion(output, labels, torch.zeros(2, 8, 8), whiten=False)
        for name in ("fused", "aux", "coarse", "layout", "edge_logits"):
            assert terms[name].item() == 0
            terms[name].backward(retain_graph=True)
        assert not output.fused.grad.any() and output.fused.grad.isfinite().all()


def test_class_weights_weigh_the_mean() -> None:
    assert len(CLASS_WEIGHTS) == 19
    output, labels, criterion = made_up_output(), some_labels(), build("base", CLASS_WEIGHTS=True)
    wanted = F.cross_entropy(output.fused, labels, weight=torch.tensor(CLASS_WEIGHTS), ignore_index=255)
    torch.testing.assert_close(criterion(output, labels, whiten=False)["fused"], wanted)
    assert not criterion.state_dict(), "fixed weights are no state"


def hard_pixels(logits: torch.Tensor, labels: torch.Tensor, *, threshold: float, least: int) -> torch.Tensor:
    """The definition: below the threshold, or among the `least` lowest probabilities of the labelled pixels."""
    probabilities = logits.double().softmax(1).gather(1, labels.where(labels < 19, 0)[:, None])[:, 0]
    valid = labels != 255
    lowest = probabilities[valid].sort().values[: max(least, 0)]
    hard = probabilities < threshold
    return valid & (hard | (probabilities <= lowest[-1]) if len(lowest) else hard)


@pytest.mark.parametrize(("threshold", "least"), [(0.1, 0), (0.02, 60), (0.7, 10), (1.0, 0), (1e-9, 500), (1e-9, 1)])
def test_hard_pixels_follow_the_definition(threshold: float, least: int) -> None:
    logits, labels = made_up_output().fused, some_labels()
    wanted = labels.where(hard_pixels(logits, labels, threshold=threshold, least=least), 255)
    assert torch.equal(
        ignore_easy_pixels(logits, labels, threshold=threshold, min_share=least / labels.numel()), wanted
    )
    assert (threshold, least) == (1e-9, 1) or 1 < (wanted != 255).sum() < 97


def test_certain_pixels_are_kept_where_so_many_are_asked_for() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, 0] = 255
    logits = torch.nn.functional.one_hot(labels.clamp(max=18), 19).movedim(-1, 1) * 1000.0  # probability 1
    kept = ignore_easy_pixels(logits, labels, threshold=0.7, min_share=0.25)
    assert torch.equal(kept, labels), "ties are all kept"
    assert (ignore_easy_pixels(logits, labels, threshold=0.7, min_share=0.0) == 255).all()


@pytest.mark.parametrize("class_weights", [False, True])
def test_terms_of_diia_over_hard_pixels(class_weights: bool) -> None:
    output, labels, edges = made_up_output(), some_labels(), torch.zeros(2, 8, 8)
    options: Any = {"CLASS_WEIGHTS": class_weights}
    criterion = build(**options, OHEM_THRESH=0.02, OHEM_MIN_KEPT=16)  # of the 64 pixels of a crop
    terms, plain = (some(output, labels, edges, whiten=False) for some in (criterion, build(**options)))
    truths = dict.fromkeys(("fused", "coarse", "edge_logits"), labels) | {"aux": downsample_labels(labels, size=(2, 2))}
    for name, truth in truths.items():
        logits = getattr(output, name)
        kept = hard_pixels(logits, truth, threshold=0.02, least=truth.numel() // 4)
        weight = torch.tensor(CLASS_WEIGHTS) if class_weights else None
        wanted = F.cross_entropy(logits, truth.where(kept, 255), weight=weight, ignore_index=255)
        torch.testing.assert_close(terms[name], wanted)
        assert terms[name] > plain[name] or name == "aux"  # which is small here
    for name in ("layout", "edge"):  # the network's own labels are no truth to be mined
        assert torch.equal(terms[name], plain[name])


def test_labels_shrink_by_nearest_pixel() -> None:
    labels = torch.arange(30).view(1, 5, 6)
    wanted = labels[:, [0, 2]][:, :, [0, 2, 4]]
    assert torch.equal(downsample_labels(labels, size=(2, 3)), wanted)


def test_half_precision_logits_are_summed_in_single() -> None:
    logits, labels = torch.randn(1, 19, 64, 64), torch.randint(0, 19, (1, 64, 64))
    torch.testing.assert_close(
        cross_entropy(logits.half(), labels), cross_entropy(logits, labels), rtol=1e-3, atol=1e-3
    )


def test_state_holds_the_masks() -> None:
    criterion = build("isw")
    assert set(criterion.state_dict()) == {"whitening.mask0", "whitening.mask1", "whitening.masks_ready"}
    criterion.whitening.intersect_masks([torch.ones(4, 4).triu(1).bool(), torch.ones(6, 6).triu(1).bool()])
    other = build("isw")
    assert not other.whitening.has_masks
    other.load_state_dict(criterion.state_dict())
    assert other.whitening.has_masks and other.whitening.num_sensitive() == [6, 15]
    assert build("base").whitening is None


@pytest.mark.parametrize("options", [{}, {"RELAX_BORDERS": True}])
def test_a_cross_entropy_keeps_its_logits_alone(options: dict[str, Any]) -> None:
    output, labels, saved = made_up_output(), some_labels(), dict[int, int]()

    def pack(value: torch.Tensor) -> torch.Tensor:
        if value.is_floating_point():
            saved[value.untyped_storage().data_ptr()] = value.numel()
        return value

    criterion = build("base", **options)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        total = criterion(SegmentorOutput(output.fused), labels, whiten=False)["fused"]
    del saved[output.fused.data_ptr()]
    assert sum(saved.values()) <= 2 * labels.numel(), "no map of all classes beside the logits"
    (gradient,) = torch.autograd.grad(total, output.fused)
    if not options:
        valid, truth = labels != 255, F.one_hot(labels.clamp(max=18), 19).movedim(3, 1)
        expected = (output.fused.softmax(1) - truth) * valid[:, None]
        torch.testing.assert_close(gradient, expected / valid.sum())
