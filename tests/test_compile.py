"""Compiled networks: one graph without breaks, the same weights, and checkpoints that go either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import train
from network import build_network
from run import _compiled
from tests import reference
from tests.runs import build_run, read_weights, run_folder, train_arguments
from tests.street_data import make_cfg
from utils.errors import UserError


@pytest.mark.parametrize("method", ["base", "diia"])
def test_a_network_is_one_graph(method: str) -> None:
    network = reference.small_network(method).train()
    explained: Any = torch._dynamo.explain(network)(reference.sample()[0])
    assert explained.graph_count == 1 and explained.graph_break_count == 0, explained.break_reasons
    torch._dynamo.reset()


def test_a_compiled_run_computes_what_a_plain_one_does(
    small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_with: Any = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **more: compile_with(*args, backend="aot_eager", **more))
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/g++")
    flags = (
        "--backbone",
        "resnet18",
        "--output_stride",
        "32",
        "--method",
        "base",
        "--max_iter",
        "2",
        "--val_limit",
        "1",
    )
    train.main(train_arguments(small_camvid, tmp_path / "plain", *flags))
    train.main(train_arguments(small_camvid, tmp_path / "compiled", *flags, "--compile"))
    plain, compiled = (read_weights(run_folder(tmp_path / name) / "last.pth") for name in ("plain", "compiled"))
    assert plain["network"].keys() == compiled["network"].keys()
    for name, value in plain["network"].items():
        torch.testing.assert_close(compiled["network"][name], value, atol=1e-3, rtol=1e-2, msg=name)
    last = str(run_folder(tmp_path / "compiled") / "last.pth")
    resumed = train_arguments(small_camvid, tmp_path / "compiled", *flags, "--max_iter", "3", "--resume", last)
    train.main(resumed)
    assert read_weights(Path(last))["progress"]["step"] == 3
    torch._dynamo.reset()


def test_a_compiled_network_may_compute_blocks_again() -> None:
    image, found = reference.sample()[0], list[tuple[dict[str, torch.Tensor], list[torch.Tensor | None]]]()
    for compiled, again in ((False, False), (True, True)):
        torch.manual_seed(0)
        network = reference.small_network("base").train()
        network.backbone.checkpoint_blocks(wanted=again)
        run: Any = torch.compile(network, backend="aot_eager") if compiled else network
        output = run(image)
        (output.fused.square().mean() + output.aux.square().mean()).backward()
        found.append((network.state_dict(), [parameter.grad for parameter in network.parameters()]))
    (state, gradients), (other_state, other_gradients) = found
    torch.testing.assert_close(other_state, state, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(other_gradients, gradients, atol=1e-4, rtol=1e-3)
    torch._dynamo.reset()


def test_without_a_compiler_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    network, nothing = build_network(make_cfg(METHOD="base")), torch.nn.Identity()
    with pytest.raises(UserError, match="--compile: there is no C\\+\\+ compiler no-such-compiler here; install one"):
        _compiled(network, nothing, torch.device("cpu"))  # type: ignore[arg-type]


def test_the_weights_are_shared(small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/g++")
    parts = build_run(train_arguments(small_camvid, tmp_path, "--backbone", "resnet18", "--compile"))
    assert not [name for name in parts.network.state_dict() if "_orig_mod" in name]
    assert not [name for name in parts.criterion.state_dict() if "_orig_mod" in name]
    assert [*parts.model.parameters()] == [*parts.network.parameters()]
