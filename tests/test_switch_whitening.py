"""Switchable whitening against the published figures, slow code of its own with eigenvectors, and two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from network.style import SyncSwitchWhiten2d, inverse_root
from tests import reference
from tests.reference import gap

TIED = {"tied": True, "iterations": 3, "group": 8, "affine": False}
# The figures' tag -> shape of the input, arguments of the layer.
PUBLISHED: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "sw64": ((4, 64, 10, 12), {}),
    "sw256": ((2, 256, 6, 8), {}),
    "sw32t3": ((3, 32, 5, 6), {"kind": 3}),
    "sw32t5": ((3, 32, 5, 6), {"kind": 5}),
    "sw32tie": ((3, 32, 5, 6), TIED),
}


@pytest.mark.parametrize("tag", PUBLISHED)
def test_layer_is_the_published_one(tag: str, golden: Path) -> None:
    shape, arguments = PUBLISHED[tag]
    wanted = np.load(golden / "robustnet" / "sw_layer.npz")
    layer = SyncSwitchWhiten2d(shape[1], **arguments)
    layer.load_state_dict({k: reference.fill(f"{tag}.{k}", v.shape) for k, v in layer.state_dict().items()})
    values = reference.stream(f"sw/input/{tag}").standard_normal(shape)
    values[:, 1::2] += values[:, ::2]
    values += 0.5 * reference.stream(f"sw/shift/{tag}").standard_normal((1, shape[1], 1, 1))
    maps = torch.from_numpy(values.astype(np.float32)).requires_grad_()
    probe = torch.from_numpy(reference.stream(f"sw/probe/{tag}").standard_normal(shape).astype(np.float32))
    assert gap(layer.eval()(maps).detach(), wanted[f"{tag}_eval"]) < 3e-6
    out = layer.train()(maps)
    (out * probe).sum().backward()
    found = {"train": out.detach(), "gx": maps.grad}
    found |= {f"g_{name}": value.grad for name, value in layer.named_parameters()}
    found |= {f"{name}_after": value for name, value in layer.named_buffers()}
    assert {f"{tag}_{name}" for name in (*found, "eval")} == {name for name in wanted.files if name.startswith(tag)}
    for name, value in found.items():
        assert gap(value, wanted[f"{tag}_{name}"]) < 3e-5, name


def made_up_layer(kind: int, **arguments: Any) -> SyncSwitchWhiten2d:
    """A layer in double precision with other than its first values."""
    torch.manual_seed(kind)
    layer = SyncSwitchWhiten2d(8, group=4, kind=kind, **arguments).double()
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(0.5 * torch.randn_like(value))
        layer.running_mean.normal_()
        factors = torch.randn(2, 4, 9, dtype=torch.float64)
        layer.running_cov.copy_(factors @ factors.mT / 9)
    return layer


def made_up_maps(batch: int = 3) -> Tensor:
    maps = torch.randn(batch, 8, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    maps[:, 1::2] += maps[:, ::2] + 2
    return maps.requires_grad_()


def slow(layer: SyncSwitchWhiten2d, maps: Tensor) -> Tensor:
    """The definition, group by group and image by image, Newton's steps taken on eigenvalues."""
    size = layer.group
    m = layer.sw_mean_weight.softmax(0)
    v = m if layer.sw_var_weight is None else layer.sw_var_weight.softmax(0)
    out = torch.zeros_like(maps)
    unit = torch.eye(size, dtype=maps.dtype)
    for g in range(maps.shape[1] // size):
        rows = slice(g * size, (g + 1) * size)
        everything = maps[:, rows].transpose(0, 1).reshape(size, -1)
        batch_mean, batch_cov = everything.mean(1), torch.cov(everything, correction=0)
        if not layer.training:
            batch_mean, batch_cov = layer.running_mean[g, :, 0], layer.running_cov[g]
        for i, image in enumerate(maps):
            flat = image[rows].flatten(1)
            own_mean, own_cov = flat.mean(1), torch.cov(flat, correction=0)
            if layer.kind == 5:
                mean = (m[0] + m[2]) * batch_mean + (m[1] + m[3]) * own_mean + m[4] * image.mean()
                cov = v[0] * batch_cov + v[1] * own_cov + v[4] * image.var() * unit
                cov = cov + v[0] * batch_cov.diagonal().diag() + v[1] * own_cov.diagonal().diag()
            else:
                mean, cov = m[0] * batch_mean + m[1] * own_mean, v[0] * batch_cov + v[1] * own_cov
                if layer.kind == 3:
                    mean, cov = mean + m[2] * image.mean(), cov + v[2] * image.var() * unit
            cov = cov + layer.eps * unit
            eigenvalues, vectors = torch.linalg.eigh(cov / cov.trace())
            roots = torch.ones_like(eigenvalues)
            for _ in range(layer.iterations):
                roots = 1.5 * roots - 0.5 * roots**3 * eigenvalues
            whitened = vectors @ roots.diag() @ vectors.T @ (flat - mean[:, None]) / cov.trace().sqrt()
            if layer.weight is not None and layer.bias is not None:
                whitened = layer.weight[rows, None] * whitened + layer.bias[rows, None]
            out[i, rows] = whitened.view_as(out[i, rows])
    return out


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kind", "arguments"), [(2, {}), (3, {}), (5, {}), (2, {"tied": True, "affine": False})])
def test_values_and_gradients_are_those_of_slow_code(kind: int, arguments: dict[str, Any], training: bool) -> None:
    layer, maps = made_up_layer(kind, **arguments).train(training), made_up_maps()
    before = {name: value.clone() for name, value in layer.named_buffers()}
    probe = torch.randn(maps.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    inputs = (maps, *layer.parameters())
    wanted = slow(layer, maps)
    wanted_gradients = torch.autograd.grad((wanted * probe).sum(), inputs)
    found = layer(maps)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    for mine, other in zip(torch.autograd.grad((found * probe).sum(), inputs), wanted_gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)
    everything = maps.detach().unflatten(1, (2, 4)).permute(1, 2, 0, 3, 4).flatten(2)  # (groups, 4, all positions)
    centred = everything - everything.mean(2, keepdim=True)
    seen = {"running_mean": everything.mean(2, keepdim=True), "running_cov": centred @ centred.mT / everything.shape[2]}
    for name, value in layer.named_buffers():
        kept = 0.99 * before[name] + 0.01 * seen[name] if training else before[name]
        torch.testing.assert_close(value, kept)


def test_newton_ends_at_the_inverse_root() -> None:
    factors = torch.randn(5, 6, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    covariances = factors @ factors.mT / 40
    eigenvalues, vectors = torch.linalg.eigh(covariances)
    wanted = vectors @ (eigenvalues**-0.5).diag_embed() @ vectors.mT
    far, near = (inverse_root(covariances, iterations=count) - wanted for count in (5, 15))
    assert near.abs().max() < 1e-9 < far.abs().max() < 1


def test_a_fresh_layer_whitens_each_image() -> None:
    layer = SyncSwitchWhiten2d(16, iterations=12).double().eval()
    assert not layer.running_mean.any() and not layer.running_cov.any()
    assert all((value == 1).all() for name, value in layer.named_parameters() if name != "bias")
    maps = torch.randn(2, 16, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = layer(3 + 4 * maps).detach()
    # Half of each image's mean and covariance is mixed with nothing: what comes out has twice the unit covariance.
    for image in out:
        spread = torch.cov(image.flatten(1), correction=0)
        torch.testing.assert_close(spread, 2 * torch.eye(16, dtype=torch.float64), atol=1e-4, rtol=0)


def test_half_precision_is_computed_in_single() -> None:
    layer, maps = SyncSwitchWhiten2d(32), torch.randn(2, 32, 6, 7).bfloat16()
    wanted = layer(maps.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(maps)
    assert found.dtype == torch.bfloat16 and torch.equal(found, wanted.bfloat16())
    assert layer.running_cov.dtype == torch.float32
    found.float().square().mean().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in layer.parameters())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="type 4"):
        SyncSwitchWhiten2d(32, kind=4)
    with pytest.raises(ValueError, match="multiple of 16 channels, not 24"):
        SyncSwitchWhiten2d(24)


def pass_through(kind: int, maps: Tensor, probe: Tensor) -> dict[str, Tensor]:
    """Output, gradients of the probed sum, and buffers after one training pass and one in evaluation."""
    layer, maps = made_up_layer(kind), maps.detach().requires_grad_()
    out = layer(maps)
    (out * probe).sum().backward()
    result = {"out": out.detach(), "eval": layer.eval()(maps).detach(), "input": maps.grad.clone()}  # type: ignore[union-attr]
    result |= {f"gradient.{k}": v.grad.clone() for k, v in layer.named_parameters()}  # type: ignore[union-attr]
    return result | {f"buffer.{name}": value for name, value in layer.named_buffers()}


def probe_of(maps: Tensor) -> Tensor:
    return torch.randn(maps.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def one_of_two(rank: int, folder: str) -> None:
    """What each of two processes does: its half of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    maps = made_up_maps(4)
    mine = slice(2 * rank, 2 * rank + 2)
    results = {kind: pass_through(kind, maps[mine], probe_of(maps)[mine]) for kind in (2, 3, 5)}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_do_what_one_does_with_the_joined_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    maps = made_up_maps(4)
    for kind in (2, 3, 5):
        first, second = (half[kind] for half in halves)
        for name, wanted in pass_through(kind, maps, probe_of(maps)).items():
            if name in ("out", "eval", "input"):
                torch.testing.assert_close(torch.cat([first[name], second[name]]), wanted)
            elif name.startswith("gradient"):
                torch.testing.assert_close(first[name] + second[name], wanted)
            else:
                assert torch.equal(first[name], second[name])
                torch.testing.assert_close(first[name], wanted)
