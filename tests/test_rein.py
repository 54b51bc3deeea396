"""Rein follows the paper's equations, starts as the frozen network and trains what it adds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from network.tuning import Rein, insert_rein

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}
MODELS: dict[str, dict[str, Any]] = {  # with a class token; with registers; with rope; maps without prefix
    "vit_tiny_patch16_224": {"img_size": 32},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28},
    "eva02_tiny_patch14_224": {"img_size": 28},
    "samvit_base_patch16": {"img_size": 32, "global_attn_indexes": (1,)},
}


def build(name: str) -> tuple[Any, Tensor]:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL, **MODELS[name]).eval().requires_grad_(False)
    return model, torch.randn(2, 3, MODELS[name]["img_size"], MODELS[name]["img_size"])


def randomise(rein: Rein) -> None:
    for parameter in rein.parameters():
        nn.init.normal_(parameter, std=0.3)


def test_the_refinement_is_that_of_the_equations() -> None:
    torch.manual_seed(0)
    rein = Rein(6, num_blocks=3, length=5, rank=2).double()
    randomise(rein)
    features = torch.randn(4, 6).double()
    state = {name: value.detach() for name, value in rein.named_parameters()}
    w_t, w_f = state["token_layer.weight"].T, state["feature_layer.weight"].T
    for i in range(3):
        tokens = torch.einsum("mr,rc->mc", state["tokens_a"][i], state["tokens_b"][i])
        wanted = torch.empty(4, 6).double()
        for n, feature in enumerate(features):
            scores = torch.stack([(feature * token).sum() / 6**0.5 for token in tokens]).exp()
            shares = scores / scores.sum()
            chosen = sum(shares[m] * (tokens[m] @ w_t + state["token_layer.bias"]) for m in range(1, 5))
            wanted[n] = feature + (chosen + feature) @ w_f + state["feature_layer.bias"]
        torch.testing.assert_close(rein(features, index=i), wanted)


def test_sizes_of_the_paper() -> None:
    with torch.device("meta"):
        rein = Rein(1024, num_blocks=24)
    blocks, layers = 24 * (100 * 16 + 16 * 1024), 2 * (1024 * 1024 + 1024)
    assert sum(parameter.numel() for parameter in rein.parameters()) == blocks + layers


@pytest.mark.parametrize("name", MODELS)
def test_a_new_network_computes_what_the_frozen_one_does(name: str) -> None:
    model, images = build(name)
    state, before = model.state_dict(), model.forward_features(images)
    rein = insert_rein(model, length=7, rank=3)
    torch.testing.assert_close(model.forward_features(images), before)  # with gradients SAM attends by another kernel
    added = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert added == {f"rein.{name}" for name, _ in rein.named_parameters()}, "the shared layers once"
    renamed = {name.replace(".block.", ".", 1) for name in model.state_dict()}
    assert renamed - {name for name in renamed if name.startswith("rein.")} == state.keys()
    randomise(rein)
    assert not torch.allclose(model.forward_features(images), before)


@pytest.mark.parametrize("name", MODELS)
def test_patch_tokens_alone_are_refined_behind_every_block(name: str) -> None:
    model, images = build(name)
    rein = insert_rein(model, length=7, rank=3)
    randomise(rein)
    for index, block in enumerate(model.blocks):
        seen: dict[str, Any] = {}
        block.block.register_forward_hook(lambda _, __, out, seen=seen: seen.update(inside=out))
        block.register_forward_hook(lambda _, __, out, seen=seen: seen.update(outside=out))
        model.forward_features(images)
        inside, outside = seen["inside"], seen["outside"]
        prefix = {"vit_tiny_patch16_224": 1, "vit_small_patch14_reg4_dinov2": 5, "eva02_tiny_patch14_224": 1}.get(name)
        assert outside.shape == inside.shape
        assert prefix is None or torch.equal(outside[:, :prefix], inside[:, :prefix])
        patches = inside[:, prefix:] if prefix else inside.flatten(1, 2)
        refined = outside[:, prefix:] if prefix else outside.flatten(1, 2)
        torch.testing.assert_close(refined, rein(patches, index=index))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_part_after_the_first_step(name: str, checkpointing: bool) -> None:
    model, images = build(name)
    rein = insert_rein(model, length=7, rank=3)
    model.train().set_grad_checkpointing(checkpointing)
    frozen = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("rein.")}
    optimizer = torch.optim.SGD(rein.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        model.forward_features(images)[:, 1:].square().sum().backward()
        reached = {name for name, parameter in rein.named_parameters() if parameter.grad.any()}  # type: ignore[union-attr]
        everything = {name for name, _ in rein.named_parameters()}
        assert reached == (everything if step else {"feature_layer.weight", "feature_layer.bias"})
        assert not step or all(part.any() for part in rein.tokens_a.grad), "the tokens of every block"  # type: ignore[union-attr]
        optimizer.step()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in frozen.items())


def test_a_copy_has_its_own_tokens() -> None:
    model, images = build("vit_tiny_patch16_224")
    rein = insert_rein(model)
    average, before = copy.deepcopy(model), model.forward_features(images)
    randomise(rein)
    assert torch.equal(average.forward_features(images), before)
    average.load_state_dict(model.state_dict())
    assert torch.equal(average.forward_features(images), model.forward_features(images))
