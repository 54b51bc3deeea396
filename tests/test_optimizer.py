"""The optimiser honours its options; the schedules follow their formulas and the reference values."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import config
from config import Config
from network import BACKBONES, Architecture, assemble, resolve_method
from optimizer import apply_settings, build_average, build_optimizer, build_scheduler, poly, update_average
from tests.reference import small_network
from tests.street_data import make_cfg
from tests.test_borders import NoWaiting
from utils.errors import UserError

options = partial(make_cfg, MAX_ITER=10)


def rates(cfg: Config, *, steps: int) -> list[float]:
    optimizer = build_optimizer(cfg, nn.Linear(2, 2))
    scheduler = build_scheduler(cfg, optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_poly_follows_its_formula_and_ends_at_zero() -> None:
    assert rates(options(), steps=11) == pytest.approx([0.01 * (1 - i / 10) ** 0.9 for i in range(11)], abs=1e-15)
    assert poly(12, max_iter=10, exponent=0.9) == 0.0


def test_scaled_poly_starts_again() -> None:
    cfg = options(LR_SCHEDULE="scl-poly", RLX_OFF_ITER=4, RESCALE=0.5, REPOLY=1.5)
    before = [0.01 * (1 - i / 10) ** 0.9 for i in range(4)]
    after = [0.01 * 0.5 * (1 - (i - 4) / 6) ** 1.5 for i in range(4, 11)]
    assert rates(cfg, steps=11) == pytest.approx(before + after, abs=1e-15)


def test_poly_equals_the_reference(golden: Path) -> None:
    values = np.load(golden / "numpy_level.npz")
    np.testing.assert_allclose(rates(options(MAX_ITER=1000), steps=1000), values["poly_lr_max1000"], rtol=1e-12)
    for step, rate in values["poly_lr_formula_40000"]:
        assert 0.01 * poly(int(step), max_iter=40000, exponent=0.9) == pytest.approx(rate, rel=1e-12)


def test_a_first_step_that_the_scaler_leaves_out_is_no_warning() -> None:
    network, scaler = nn.Linear(1, 1), torch.amp.GradScaler("cpu")
    optimizer = build_optimizer(options(), network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = build_scheduler(options(), optimizer)
        scaler.scale(network(torch.ones(1, 1)).sum() * float("inf")).backward()
        before = network.weight.item()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    assert network.weight.item() == before and scheduler.last_epoch == 1


def test_a_first_step_that_the_scaler_leaves_out_leaves_no_momentum() -> None:
    networks = [nn.Linear(300, 200) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    for network, steps in zip(networks, (("inf", "1"), ("1",)), strict=True):
        optimizer, scaler = build_optimizer(options(), network), torch.amp.GradScaler("cpu", init_scale=2.0)
        for factor in steps:
            optimizer.zero_grad()
            scaler.scale(network(torch.ones(1, 300)).sum() * float(factor)).backward()
            junk = [torch.full((200, 300), 1e8) for _ in range(8)]  # what memory holds that is taken next
            del junk
            scaler.step(optimizer)
            scaler.update()
    torch.testing.assert_close(networks[0].weight, networks[1].weight)


def test_the_first_step_decays_every_weight_by_default() -> None:
    """With the published decay of 5e-4 a weight moves by lr * 5e-4 of itself, 5e-6: checked to the last bits."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).double()
    cfg = config.parse([], program="train")
    optimizer = build_optimizer(cfg, network)
    (network(torch.randn(2, 3, 6, 6).double()) ** 2).sum().backward()
    before = [
        (name, p.detach().clone(), p.grad.clone()) for name, p in network.named_parameters() if p.grad is not None
    ]
    optimizer.step()
    after = dict(network.named_parameters())
    assert len(before) == len(after) == 6 and (cfg.OPTIM.LR, cfg.OPTIM.WEIGHT_DECAY) == (0.01, 5e-4)
    for name, weight, gradient in before:
        torch.testing.assert_close(after[name], weight - 0.01 * (gradient + 5e-4 * weight), rtol=1e-13, atol=1e-15)
        if weight.any():  # a batch norm's shift starts at zero: nothing to decay
            assert not torch.allclose(after[name], weight - 0.01 * gradient, rtol=1e-8, atol=1e-12)


def test_two_steps_of_sgd_equal_the_formula() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 2.0)
    cfg = options(LR=0.1, WEIGHT_DECAY=0.5, MOMENTUM=0.9)
    optimizer = build_optimizer(cfg, network)
    scheduler = build_scheduler(cfg, optimizer)
    weight, speed = 2.0, 0.0
    for step in range(2):
        optimizer.zero_grad()
        network(torch.ones(1, 1)).sum().backward()  # gradient 1
        optimizer.step()
        scheduler.step()
        gradient = 1.0 + 0.5 * weight
        speed = gradient if step == 0 else 0.9 * speed + gradient
        weight -= 0.1 * (1 - step / 10) ** 0.9 * speed
    assert network.weight.item() == pytest.approx(weight, rel=1e-6)


def test_two_steps_of_adamw_equal_the_formula() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 2.0)
    optimizer = build_optimizer(options(NAME="adamw", LR=0.1, WEIGHT_DECAY=0.5), network)
    weight, mean, square = 2.0, 0.0, 0.0
    for step, gradient in enumerate((3.0, -1.0), start=1):
        optimizer.zero_grad()
        network(torch.full((1, 1), gradient)).sum().backward()
        optimizer.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        weight -= 0.1 * (0.5 * weight + mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)) ** 0.5 + 1e-8))
        assert network.weight.item() == pytest.approx(weight, rel=1e-5)


def test_the_average_follows_weights_and_statistics() -> None:
    assert build_average(options(), nn.Linear(2, 2)) is None
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = build_average(options(EMA_DECAY=0.75), network)
    assert average is not None and not any(p.requires_grad for p in average.parameters())
    wanted = {name: value.clone() for name, value in network.state_dict().items()}
    for seed in range(3):
        with torch.no_grad():
            next(network.parameters()).add_(seed)
        network(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)))
        with NoWaiting():
            update_average(average, network, decay=0.75)
        for name, value in network.state_dict().items():
            wanted[name] = 0.75 * wanted[name] + 0.25 * value if value.is_floating_point() else value.clone()
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, wanted[name])
    assert wanted["1.num_batches_tracked"] == 3 and wanted["1.running_mean"].any()
    assert not average.training and network.training


def test_only_trainable_parameters_are_optimised() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[0].requires_grad_(False)
    optimizer = build_optimizer(options(), network)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [
        id(p) for p in network[1].parameters()
    ]
    network.requires_grad_(False)
    with pytest.raises(UserError, match="no trainable parameter"):
        build_optimizer(options(), network)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["poly", "scl-poly"])
def test_a_resumed_schedule_continues(schedule: str, name: str, tmp_path: Path) -> None:
    cfg = options(LR_SCHEDULE=schedule, RLX_OFF_ITER=2, RESCALE=0.5, NAME=name)
    optimizer = build_optimizer(cfg, nn.Linear(2, 2))
    scheduler = build_scheduler(cfg, optimizer)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, tmp_path / "state.pth")
    state = torch.load(tmp_path / "state.pth", weights_only=True)

    network = nn.Linear(2, 2)
    optimizer = build_optimizer(cfg, network)
    scheduler = build_scheduler(cfg, optimizer)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    apply_settings(cfg, network, optimizer, scheduler)
    (group,) = optimizer.param_groups
    assert group.keys() == state["optimizer"]["param_groups"][0].keys() and ("momentum" in group) == (name == "sgd")
    resumed = []
    for _ in range(4):
        resumed.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert resumed == rates(cfg, steps=7)[3:]


def settings_by_name(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, tuple[float, float]]:
    """Return name -> rate and decay of every parameter."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    settings = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(settings) == sum(len(group["params"]) for group in optimizer.param_groups), "each in one group"
    return settings


def test_without_the_options_there_is_one_group_in_the_networks_order() -> None:
    network = small_network("ibn")
    (group,) = build_optimizer(options(LR=0.3, WEIGHT_DECAY=0.2), network).param_groups
    assert [*map(id, group["params"])] == [*map(id, network.parameters())]
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.3, 0.2, 0.9)


STAGES = {"conv1": 0, "bn1": 0, **{f"layer{i}": i for i in range(1, 5)}}  # of a ResNet: depth


@pytest.mark.parametrize("backbone_lr", [1.0, 0.1, 2.0])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_rates_of_heads_sites_and_stages(backbone_lr: float, layer_decay: float) -> None:
    network = small_network("ibn")
    cfg = options(NAME="adamw", LR=0.3, WEIGHT_DECAY=0.2, BACKBONE_LR=backbone_lr, LAYER_DECAY=layer_decay)
    optimizer = build_optimizer(cfg, network)
    assert optimizer.param_groups[0]["lr"] == 0.3, "what the log shows"
    found, seen = settings_by_name(optimizer, network), set()
    for name, _ in network.named_parameters():
        part, layer, *_ = name.split(".")
        wanted = 0.3
        if part == "backbone" and layer != "sites":
            wanted *= backbone_lr * layer_decay ** (5 - STAGES[layer])
        seen.add(layer if part == "backbone" else part)
        assert found.pop(name) == (pytest.approx(wanted), 0.2), name
    assert not found and seen == {"sites", "head", "aux", *(STAGES.keys() - {"bn1"})}  # stem1 has bn1's place


@pytest.mark.parametrize("name", BACKBONES)
def test_every_pretrained_parameter_has_a_depth(name: str) -> None:
    with torch.device("meta"):
        backbone: Any = assemble(Architecture(BACKBONES[name], 16), method=resolve_method("ibn")).backbone
    depths = [backbone.depth(key) for key, _ in backbone.named_parameters() if not key.startswith("sites.")]
    assert depths == sorted(depths) and set(depths) == set(range(5))


@pytest.mark.parametrize("backbone_lr", [1.0, 0.1])
def test_norms_biases_embeddings_and_tokens_keep_their_weights(backbone_lr: float) -> None:
    class Backbone(nn.Module):
        added = ("lora",)

    backbone = Backbone()
    for name in ("pos_embed", "cls_token", "reg_token"):
        backbone.register_parameter(name, nn.Parameter(torch.ones(1, 2, 3)))
    backbone.block = nn.ModuleDict({"token_mixer": nn.Linear(2, 2), "lora": nn.Linear(2, 2, bias=False)})
    network = nn.Sequential()
    network.add_module("backbone", backbone)
    network.add_module("head", nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    cfg = options(NAME="adamw", LR=0.3, WEIGHT_DECAY=0.2, BACKBONE_LR=backbone_lr, NO_NORM_DECAY=True)
    slow = pytest.approx(0.3 * backbone_lr)
    assert settings_by_name(build_optimizer(cfg, network), network) == {
        **{f"backbone.{name}": (slow, 0.0) for name in ("pos_embed", "cls_token", "reg_token")},
        **{f"backbone.block.token_mixer.{name}": (slow, 0.2 * (name == "weight")) for name in ("weight", "bias")},
        "backbone.block.lora.weight": (0.3, 0.2),
        **{f"head.{name}": (0.3, 0.2 * (name == "0.weight")) for name in ("0.weight", "0.bias", "1.weight", "1.bias")},
    }


@pytest.mark.parametrize("schedule", ["poly", "scl-poly"])
def test_the_warm_up_is_linear_and_multiplies_the_schedule(schedule: str) -> None:
    cfg = options(LR_SCHEDULE=schedule, RLX_OFF_ITER=2, RESCALE=0.5)
    plain = rates(cfg, steps=8)
    cfg.OPTIM.update(WARMUP_ITERS=4, WARMUP_RATIO=0.2)
    shares = [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1]
    assert rates(cfg, steps=8) == pytest.approx([rate * share for rate, share in zip(plain, shares, strict=True)])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_resume_lays_its_state_out_as_the_weights(name: str) -> None:
    """A GPU's weights lie in another order than a CPU's; the fused optimizers go through memory."""
    cfg, steps = options(NAME=name), []
    for layouts in ((torch.contiguous_format,) * 2, (torch.contiguous_format, torch.channels_last)):
        torch.manual_seed(0)
        network = small_network("base")
        before = build_optimizer(cfg, network.to(memory_format=layouts[0]))
        for parameter in network.parameters():
            parameter.grad = torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
        before.step()
        after = build_optimizer(cfg, network.to(memory_format=layouts[1]))
        after.load_state_dict(before.state_dict())
        apply_settings(cfg, network, after, build_scheduler(cfg, after))
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter).fill_(0.5)
        after.step()
        steps.append([parameter.detach().clone() for parameter in network.parameters()])
    assert all(map(torch.equal, *steps))


def test_a_resume_takes_the_rates_of_its_groups_from_its_own_command() -> None:
    network = small_network("ibn")
    cfg = options(NAME="adamw", BACKBONE_LR=0.1, NO_NORM_DECAY=True, WARMUP_ITERS=2)
    optimizer = build_optimizer(cfg, network)
    scheduler = build_scheduler(cfg, optimizer)
    optimizer.step()
    scheduler.step()
    state = optimizer.state_dict(), scheduler.state_dict()
    changed = options(NAME="adamw", BACKBONE_LR=0.5, NO_NORM_DECAY=True, WARMUP_ITERS=2, LR=0.4, WEIGHT_DECAY=0.7)
    optimizer = build_optimizer(changed, network)
    scheduler = build_scheduler(changed, optimizer)
    optimizer.load_state_dict(state[0])
    scheduler.load_state_dict(state[1])
    apply_settings(changed, network, optimizer, scheduler)
    share = (1e-6 + (1 - 1e-6) / 2) * 0.9**0.9  # step 1: half of the warm-up, 9 / 10 of the steps left
    for _ in range(2):
        found = settings_by_name(optimizer, network)
        assert found["head.refine.0.conv.weight"] == (pytest.approx(0.4 * share), 0.7)
        assert found["backbone.layer1.0.conv1.weight"] == (pytest.approx(0.2 * share), 0.7)
        assert found["backbone.layer1.0.bn1.bias"] == (pytest.approx(0.2 * share), 0.0)
        optimizer.step()
        scheduler.step()
        share = 0.8**0.9
