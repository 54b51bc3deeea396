"""The network, its losses and its statistics against the figures of the original implementation.

A selection of the figures is in the repository, all of them are used where DIIA_TEST_DATA is set. Outputs may differ by
3e-5 of the largest value, losses by 1e-5, gradient norms by 1 % and three times the original's own noise.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loss import build_criterion
from loss.whitening import MaskStatistics
from network import build_network
from tests import reference
from tests.reference import gap
from tests.street_data import make_cfg

DIMS = (64, 256, 512)
OUTPUT, LOSS = 3e-5, 1e-5
MOBILE_OUTPUT = 1e-4  # MobileNet: the original's own noise is larger
# RobustNet's networks with stored outputs, losses and gradients; of the others the size of the output is known.
STORED = "r50_base r50_irw r50_isw r50_sw r101os8_ibn mobile_base shuffle_ibn r18_base".split()
TERMS = ("coarse", "aux", "fused", "layout", "edge_logits", "edge", "whitening")
# The original's name of an intermediate tensor -> our module.
MODULES = {
    "aspp": "coarse.aspp",
    "bot_aspp": "coarse.reduce",
    "final1": "coarse.refine",
    "final2": "coarse.classify",
    "encoder_struct": "layout.encoder",
    "final1_struct": "layout.refine",
    "final2_struct": "layout.classify",
    "encoder_boundary": "edge.encoder",
    "decoder_boundary": "edge.decoder",
    "final2_boundary": "edge.classify",
    "query_conv": "aggregate.query",
    "key_conv": "aggregate.key",
    "value_conv": "aggregate.value",
    "up_conv": "aggregate.up",
    "pam": "aggregate",
    "aspp_sg": "fused.aspp",
    "bot_aspp_sg": "fused.reduce",
    "bot_fine_sg": "fused.skip",
    "final2_sg": "fused.classify",
}


@dataclasses.dataclass
class Step:
    """What one training step left behind, under the original's names."""

    terms: dict[str, float]
    total: float
    output: Any  # SegmentorOutput
    gradients: dict[str, Tensor]
    buffer_norms: dict[str, float]
    parameter_norms: dict[str, float]


def build(cfg: Any, names: Iterable[str]) -> tuple[Any, dict[str, str]]:
    network = build_network(cfg)
    return network, reference.fill_network(network, names)


def build_loss(network: Any) -> Any:
    cfg = make_cfg()
    criterion: Any = build_criterion(cfg, method=network.method, style_channels=network.style_channels)
    if network.method.whitening == "isw":
        for trial in (0, 1):
            criterion.whitening.intersect_masks(reference.trial_masks(trial, network.style_channels))
    return criterion


def train_step(network: Any, names: Mapping[str, str], batch: tuple[Tensor, Tensor, Tensor]) -> Step:
    criterion = build_loss(network)
    network.train()
    images, labels, edges = batch
    output = network(images)
    terms = criterion(output, labels, edges, whiten=criterion.whitening is not None)
    total = criterion.total(terms)
    total.backward()
    parameters = dict(network.named_parameters())
    gradients = {names[ours]: value.grad.clone() for ours, value in parameters.items()}
    statistics = {ours: value for ours, value in network.named_buffers() if value.is_floating_point()}
    buffers = {names[ours]: value.double().norm().item() for ours, value in statistics.items()}
    torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4).step()
    after = {names[ours]: value.detach().double().norm().item() for ours, value in parameters.items()}
    return Step({k: v.item() for k, v in terms.items()}, total.item(), output, gradients, buffers, after)


def zero_by_theory(name: str, sites: Mapping[str, str]) -> bool:
    """Tell biases whose effect the next norm removes, and the key's, which the softmax removes."""
    before_norm = ("encoder_struct.4.bias", "encoder_boundary.0.bias", "decoder_boundary.0.bias", "dsn.0.bias")
    last_block = {"stage1": "layer1.2", "stage2": "layer2.3", "stage3": "layer3.5", "stage4": "layer4.2"}
    return name in ("key_conv.bias", *before_norm, *(f"{last_block.get(site)}.bn3.bias" for site in sites))


def check_gradients(
    step: Step, wanted: Mapping[str, tuple[float, float]], *, sites: Mapping[str, str], share: float, floor: float = 0.0
) -> None:
    """Compare gradient norms with (norm, own noise) by name; those below `floor` of the largest are left out."""
    wanted = {name: value for name, value in wanted.items() if not np.isnan(value[0])}  # the original never uses it
    assert step.gradients.keys() == wanted.keys()
    smallest = floor * max(norm for norm, _ in wanted.values())
    wrong = []
    for name, (norm, noise) in wanted.items():
        found = step.gradients[name].double().norm().item()
        if norm >= smallest and not zero_by_theory(name, sites) and abs(found - norm) > share * norm + 3 * noise:
            wrong.append((name, found, norm))
    assert not wrong


def golden_gradients(values: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    noise = np.abs(values["grad_norm_alt"] - values["grad_norm"])
    return dict(zip(values["param_names"].tolist(), zip(values["grad_norm"], noise, strict=True), strict=True))


@dataclasses.dataclass
class Evaluated:
    """One DIIA network after an evaluation forward, then after a training step."""

    output: Any  # SegmentorOutput
    predicted: Tensor
    seen: dict[str, Tensor]
    statistics: MaskStatistics
    step: Step
    sites: dict[str, str]


@pytest.fixture(scope="module")
def diia() -> Evaluated:
    network, names = build(make_cfg(), reference.carried()["diia_isw"]["names"])
    network.eval()
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, path in MODULES.items():

        def keep(_: nn.Module, __: object, output: Any, name: str = name) -> None:
            seen[name] = (output[0] if isinstance(output, tuple) else output).clone()

        hooks.append(network.get_submodule(path).register_forward_hook(keep))
    images, _, _ = reference.inputs("b", 2, 160, 160)
    statistics = MaskStatistics(network.style_channels, clusters=3)
    with torch.no_grad():
        output = network(images)
        for hook in hooks:
            hook.remove()
        predicted = network.predict(images)
        stages, _ = network.backbone.outputs(images)
        seen |= {f"layer{number}": maps for number, maps in enumerate(stages, 1)}
        for index in (0, 1):
            pair = [reference.inputs(f"cov{index}_{kind}", 1, 128, 160)[0] for kind in ("ph", "or")]
            statistics.update(network.style_features(torch.cat(pair)))
    step = train_step(network, names, reference.inputs("a", 2, 128, 256))
    return Evaluated(output, predicted, seen, statistics, step, network.backbone.kinds)


def test_carried_evaluation(diia: Evaluated) -> None:
    wanted = reference.carried()["diia_isw"]["eval_b"]
    for name in ("coarse", "fused"):
        found = getattr(diia.output, name)
        assert list(found.shape) == wanted["shape"]
        assert gap(found[:, :, ::16, ::16].flatten(), wanted[f"{name}_s16"]) < OUTPUT
    counts = torch.bincount(diia.output.layout.flatten(), minlength=256)[[*range(19), 255]]
    assert np.abs(counts.numpy() - wanted["layout_counts"]).sum() <= 10
    assert torch.equal(diia.predicted, 0.5 * diia.output.coarse + diia.output.fused)


def test_carried_training_step(diia: Evaluated) -> None:
    wanted, step = reference.carried()["diia_isw"]["train_a"], diia.step
    assert list(wanted["losses"]) == list(TERMS) and step.terms.keys() == wanted["losses"].keys()
    for name, value in wanted["losses"].items():
        assert step.terms[name] == pytest.approx(value, rel=1e-3 if name == "layout" else LOSS), name
    assert step.total == pytest.approx(wanted["total"], rel=1e-4)
    check_gradients(step, wanted["grad_norm"], sites=diia.sites, share=0.01)
    assert step.parameter_norms == pytest.approx(wanted["param_norm_after_step"], rel=1e-5)
    assert step.buffer_norms == pytest.approx(wanted["buf_norm_after_fwd"], rel=1e-5)


def test_evaluation(diia: Evaluated, golden: Path) -> None:
    wanted = np.load(golden / "eval_isw_b.npz")
    assert gap(diia.output.coarse, wanted["main_out"]) < OUTPUT
    assert gap(diia.output.fused, wanted["main_out_sg"]) < OUTPUT
    assert gap(diia.predicted[:, :, ::8, ::8], wanted["combined_s8"]) < OUTPUT
    assert (diia.predicted.argmax(1).numpy() != wanted["combined_argmax"]).mean() < 1e-3
    assert (diia.output.layout.unsqueeze(1).numpy() != wanted["layout"]).mean() < 1e-3


def test_intermediate_tensors(diia: Evaluated, golden: Path) -> None:
    wanted = np.load(golden / "inter_isw_b.npz")
    assert set(wanted.files) == {*diia.seen, "softmax"}
    for name in diia.seen:
        found = diia.seen[name]
        assert gap(found[:, :: found.shape[1] // wanted[name].shape[1]], wanted[name]) < OUTPUT, name
    query, key = (diia.seen[f"{name}_conv"].flatten(2) for name in ("query", "key"))
    assert gap((query.transpose(1, 2) @ key).softmax(2), wanted["softmax"]) < OUTPUT


def test_statistics_of_the_network(diia: Evaluated, golden: Path) -> None:
    wanted = np.load(golden / "isw.npz")
    *sums, count = diia.statistics.tensors()
    assert count.item() == 2
    for width, total, mask in zip(DIMS, sums, diia.statistics.masks(), strict=True):
        thin = 2 if width == 512 else 1
        assert gap(total[::thin, ::thin], wanted[f"varsum_{width}"]) < 1e-4
        assert total.sum().item() == pytest.approx(wanted[f"varsum_total_{width}"].item(), rel=1e-5)
        stored = np.unpackbits(wanted[f"mask_stat_{width}"], count=width * width).reshape(width, width)
        assert (mask.numpy() != stored).sum() <= 2


def check_whole_step(step: Step, wanted: Any, *, sites: Mapping[str, str]) -> None:
    losses = dict(zip(TERMS, wanted["losses"].tolist(), strict=False))
    assert step.terms.keys() == losses.keys()
    for name, value in losses.items():
        assert step.terms[name] == pytest.approx(value, rel=1e-3 if name == "layout" else LOSS), name
    assert step.total == pytest.approx(wanted["total"].item(), rel=1e-4)
    assert (step.output.layout.unsqueeze(1).numpy() != wanted["layout"]).mean() < 1e-3
    check_gradients(step, golden_gradients(wanted), sites=sites, share=0.01)
    compared = 0
    for name in wanted.files:
        if name.startswith("grad:") and not zero_by_theory(name[5:], sites):
            assert gap(step.gradients[name[5:]], wanted[name]) < 0.01, name
            compared += 1
    assert compared >= 12
    norms = dict(zip(wanted["param_names"].tolist(), wanted["param_norm_after_step"].tolist(), strict=True))
    assert step.parameter_norms == pytest.approx(norms, rel=1e-5)
    buffers = dict(zip(wanted["buffer_names"].tolist(), wanted["buf_norm_after_fwd"].tolist(), strict=True))
    assert step.buffer_norms == pytest.approx(buffers, rel=1e-5)


def test_training_step(diia: Evaluated, golden: Path) -> None:
    check_whole_step(diia.step, np.load(golden / "train_isw_a.npz"), sites=diia.sites)


def test_training_step_without_style_sites(golden: Path, test_data: Path) -> None:
    network, names = build(make_cfg(WT_LAYER=[0] * 7), reference.shapes(test_data, "r50_base"))
    step = train_step(network, names, reference.inputs("a", 2, 128, 256))
    check_whole_step(step, np.load(golden / "train_base_a.npz"), sites={})


def is_os8(key: str) -> bool:
    return reference.ROBUSTNET[key][0].endswith("_OS8")


def predict(network: Any, key: str) -> Tensor:
    images, _, _ = reference.inputs(*(("rn8", 1, 96, 96) if is_os8(key) else ("rn", 2, 96, 128)))
    with torch.no_grad():
        return network.eval().predict(images)


@pytest.fixture(scope="module")
def plain() -> Callable[..., tuple[Tensor, Tensor, Step]]:
    """A function of key and names: prediction, the classifier's output in training, training step; made once."""
    made: dict[str, tuple[Tensor, Tensor, Step]] = {}

    def make(key: str, names: Iterable[str]) -> tuple[Tensor, Tensor, Step]:
        if key not in made:
            network, mapping = build(reference.robustnet(key), names)
            batch = reference.inputs(*(("rn8t", 2, 96, 96) if is_os8(key) else ("rn", 2, 96, 128)))
            classified: list[Tensor] = []
            prediction = predict(network, key)
            network.get_submodule("head.classify").register_forward_hook(lambda *args: classified.append(args[2]))
            step = train_step(network, mapping, batch)
            made[key] = prediction, classified[0].detach(), step
        return made[key]

    return make


def test_carried_plain_network(plain: Callable[..., tuple[Tensor, Tensor, Step]]) -> None:
    carried = reference.carried()["plain_irw"]
    prediction, _, step = plain("r50_irw", carried["names"])
    assert prediction.abs().max().item() == pytest.approx(carried["eval"]["absmax"], rel=OUTPUT)
    assert prediction.std().item() == pytest.approx(carried["eval"]["std"], rel=OUTPUT)
    assert gap(prediction[:, :, ::16, ::16].flatten(), carried["eval"]["fused_s16"]) < OUTPUT
    assert step.terms == pytest.approx(carried["train"]["losses"], rel=LOSS)
    assert step.total == pytest.approx(carried["train"]["total"], rel=LOSS)
    check_gradients(step, carried["train"]["grad_norm"], sites={}, share=0.02, floor=1e-4)


@pytest.mark.parametrize("key", STORED)
def test_plain_network(
    key: str, plain: Callable[..., tuple[Tensor, Tensor, Step]], golden: Path, test_data: Path
) -> None:
    wanted = np.load(golden / "robustnet" / f"net_{key}.npz")
    prediction, classified, step = plain(key, reference.shapes(test_data, f"rn/{key}"))
    output = MOBILE_OUTPUT if key.startswith("mobile") else OUTPUT
    assert gap(prediction[:, :, ::4, ::4], wanted["main_out_s4"]) < output
    assert gap(classified[:, :, ::2, ::2], wanted["train_final2_s2"]) < output
    assert gap(step.output.aux.detach(), wanted["train_dsn"]) < output
    losses = dict(zip(("fused", "aux", "whitening"), wanted["losses"].tolist(), strict=False))
    assert step.terms == pytest.approx(losses, rel=LOSS)
    assert step.total == pytest.approx(wanted["total"].item(), rel=LOSS)
    check_gradients(step, golden_gradients(wanted), sites={}, share=0.02, floor=1e-4)
    buffers = dict(zip(wanted["buffer_names"].tolist(), wanted["buf_norm_after_fwd"].tolist(), strict=True))
    assert step.buffer_norms == pytest.approx({name: buffers[name] for name in step.buffer_norms}, rel=1e-5)
    dead = buffers.keys() - step.buffer_norms.keys()
    assert not dead or (key.startswith("shuffle") and all(name.startswith("layer0.layer.0.1.") for name in dead))


@pytest.mark.parametrize("key", [key for key in reference.ROBUSTNET if key not in (*STORED, "shuffle_isw")])
def test_size_of_the_output(key: str, golden: Path, test_data: Path) -> None:
    wanted = json.loads((golden / "robustnet" / "noise_rn.json").read_text())[key]
    network, _ = build(reference.robustnet(key), reference.shapes(test_data, f"rn/{key}"))
    prediction = predict(network, key)
    output = MOBILE_OUTPUT if key.startswith("mobile") else OUTPUT
    assert prediction.abs().max().item() == pytest.approx(wanted["absmax"], rel=output)
    assert prediction.std().item() == pytest.approx(wanted["std"], rel=output)
