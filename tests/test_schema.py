"""Names in checkpoints: those of parameters and entries stay as they are, and files of schema 1 go on working."""

from __future__ import annotations

import copy
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import config
import train
import valid
from network import BACKBONES, Architecture, assemble, resolve_method
from network.weights import load_weights, upgrade_checkpoint
from tests import reference
from tests.runs import read_weights, run_folder, train_arguments
from utils import checkpoint

# How to build a network -> number of entries and hash of names and shapes, in schema 1 and today.
NETWORKS: dict[str, tuple[str, tuple[int, ...] | None, int, str, str]] = {
    "resnet18": ("ibn", None, 186, "f6f38498c91449cd", "e87a7bb19e9026fd"),
    "small deep": ("ibn", (4, 4, 4, 4, 4, 0, 0), 174, "dc4252beac75589c", "f63ecd38de59ebfc"),
    "small": ("sw", None, 180, "523e3a4fbecd3c80", "ba926e2c037a9516"),
    "mobilenet_v2": ("ibn", (0, 0, 4, 4, 4, 4, 0), 385, "c2023fa07cddc7f5", "34ba0824ac801ea6"),
    "mnasnet_10": ("ibn", (0, 0, 4, 4, 4, 4, 0), 385, "96b1ede3bd23c274", "f66db62e208cab5b"),
    "shufflenet_v2": ("ibn", (0, 0, 4, 4, 4, 4, 4), 401, "aa60bc0febea2913", "2db11d85d5b7f42b"),
}


def build(key: str) -> Any:
    method, codes, *_ = NETWORKS[key]
    if key.startswith("small"):
        return reference.small_network(method, codes=codes, deep_stem="deep" in key)
    return assemble(Architecture(BACKBONES[key], 16), method=resolve_method(method, codes))


def digest(names: list[str], state: Any) -> str:
    lines = [f"{name} {list(value.shape)}" for name, value in zip(names, state.values(), strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


PARTS = ("stem", "stage1", "stage2", "stage3", "stage4")


def schema_1(name: str, starts: tuple[int, ...]) -> str:
    """Return what schema 1 called an entry; `starts` are the first layers of a sequential network's stem and stages."""
    if layer := re.match(r"backbone\.(?:features|layers)\.(\d+)", name):
        part = max(i for i, start in enumerate(starts) if start <= int(layer[1]))
        return f"backbone.{PARTS[part]}.blocks.{int(layer[1]) - starts[part]}{name[layer.end() :]}"
    for new, old in (
        *((rf"sites\.stem{i + 1}\.", f"stem.norms.{i}.") for i in range(3)),
        (r"sites\.(\w+)\.", r"\1.site."),
        *((rf"stage{i + 1}\.", f"stage{i}.blocks.") for i in (1, 2, 3)),  # ShuffleNetV2
        *((rf"conv{i}\.0\.", f"{part}.conv.") for i, part in ((1, "stem"), (5, "stage4"))),
        *((rf"conv{i}\.1\.", f"{part}.norm.") for i, part in ((1, "stem"), (5, "stage4"))),
        *((rf"conv{i + 1}\.", f"stem.convs.{i}.") for i in range(3)),
        *((rf"bn{i + 1}\.", f"stem.norms.{i}.") for i in range(3)),
        (r"layer(\d)\.(\d+)\.bn", r"stage\1.blocks.\2.norm"),
        (r"layer(\d)\.(\d+)\.downsample\.0", r"stage\1.blocks.\2.shortcut.conv"),
        (r"layer(\d)\.(\d+)\.downsample\.1", r"stage\1.blocks.\2.shortcut.norm"),
        (r"layer(\d)\.", r"stage\1.blocks."),
    ):
        if re.match(rf"backbone\.{new}", name):
            return re.sub(rf"backbone\.{new}", f"backbone.{old}", name, count=1)
    return name


def downgrade(content: dict[str, Any], network: Any) -> dict[str, Any]:
    """Return the content of a checkpoint as it was in schema 1: old names in the old order of modules."""
    starts = (0, 8, 10, 11, 14) if network.backbone.spec.name.startswith("mnasnet") else (0, 2, 7, 11, 18)
    names = {name: schema_1(name, starts) for name in network.state_dict()}

    def place(name: str) -> tuple[int, int]:
        if not name.startswith("backbone."):
            return len(PARTS), 0
        part, kind = names[name].split(".")[1:3]
        return PARTS.index(part), ("convs", "conv", "blocks", "norms", "norm", "site").index(kind)

    ordered = sorted(names, key=place)
    parameters = [name for name, _ in network.named_parameters()]
    numbers = {name: number for number, name in enumerate(name for name in ordered if name in parameters)}
    moved = {numbers[parameters[number]]: value for number, value in content["optimizer"]["state"].items()}
    renamed = {part: {names[n]: content[part][n] for n in ordered} for part in ("network", "average") if content[part]}
    return {**content, **renamed, "schema": 1, "optimizer": {**content["optimizer"], "state": moved}}


@pytest.mark.parametrize("key", NETWORKS)
def test_names_and_shapes_of_parameters(key: str) -> None:
    _, _, count, _, today = NETWORKS[key]
    with torch.device("meta"):
        state = build(key).state_dict()
    assert (len(state), digest(list(state), state)) == (count, today)


@pytest.mark.parametrize("name", BACKBONES)
def test_torchvisions_names_are_those_of_the_backbone(name: str) -> None:
    """MIT CSAIL's deep stem: conv1 to conv3, bn1 to bn3."""
    from torchvision.models import get_model

    with torch.device("meta"):
        backbone = assemble(Architecture(BACKBONES[name], 8), method=resolve_method("base")).backbone
        theirs = get_model(BACKBONES[name].model or "resnet101").state_dict()
    wanted = {key: value.shape for key, value in theirs.items() if not key.startswith(("fc.", "classifier."))}
    if name == "resnet101_deep":
        stem = {f"bn{i}.{leaf}": wanted[f"bn1.{leaf}"] for i in (1, 2) for leaf in ("weight", "bias")}
        stem |= {"conv1.weight": (64, 3, 3, 3), "conv2.weight": (64, 64, 3, 3), "conv3.weight": (128, 64, 3, 3)}
        stem |= {f"bn3.{leaf}": (128,) for leaf in ("weight", "bias")} | {"layer1.0.conv1.weight": (64, 128, 1, 1)}
        found = {key: tuple(value.shape) for key, value in backbone.state_dict().items()}
        assert stem.items() <= found.items() and wanted.keys() <= found.keys()
    else:
        assert {key: value.shape for key, value in backbone.state_dict().items()} == wanted


def test_entries_of_a_checkpoint() -> None:
    assert checkpoint.SCHEMA == 2
    parts = {"network", "average", "criterion", "optimizer", "scheduler", "scaler"}
    assert checkpoint.KEYS == {"schema", "kind", *parts, "progress", "best", "config", "versions", "world_size", "data"}


def step(network: Any, optimizer: torch.optim.Optimizer) -> None:
    images, _, _ = reference.sample(2, 32, 32)
    torch.manual_seed(0)
    optimizer.zero_grad()
    output = network.train()(images)
    (output.fused.square().mean() + output.aux.square().mean()).backward()
    optimizer.step()


@pytest.mark.parametrize("key", NETWORKS)
def test_a_network_resumes_from_schema_1(key: str) -> None:
    torch.manual_seed(1)
    network, again = build(key), build(key)
    optimizers = [torch.optim.AdamW(part.parameters(), lr=1e-3) for part in (network, again)]
    step(network, optimizers[0])
    state = {name: value.clone() for name, value in network.state_dict().items()}
    average = {name: value / 2 if value.is_floating_point() else value for name, value in state.items()}
    content: dict[str, Any] = {"schema": 2, "network": state, "average": average}
    content["optimizer"] = copy.deepcopy(optimizers[0].state_dict())
    old = downgrade(content, network)
    _, _, count, recorded, _ = NETWORKS[key]
    assert (len(old["network"]), digest(list(old["network"]), old["network"])) == (count, recorded)
    assert list(old["optimizer"]["state"]) != list(content["optimizer"]["state"]), "another order of parameters"

    stranger = upgrade_checkpoint(old | {"average": {"another": torch.zeros(1)}}, again)
    assert stranger["average"].keys() == {"another"}, "loading it names what does not fit"
    upgraded = upgrade_checkpoint(old, again)
    assert upgraded["schema"] == checkpoint.SCHEMA and upgrade_checkpoint(upgraded, again) is upgraded
    again.load_state_dict(upgraded["network"])
    optimizers[1].load_state_dict(upgraded["optimizer"])
    for part, optimizer in zip((network, again), optimizers, strict=True):
        step(part, optimizer)
    found = again.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in network.state_dict().items())
    load_weights(again, old, path="old.pth")
    found = again.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in average.items()), "the average is what was evaluated"


def test_a_run_resumes_from_schema_1(small_camvid: Path, tmp_path: Path) -> None:
    flags = ("--backbone", "resnet18", "--method", "ibn", "--ema_decay", "0.5", "--val_limit", "1")

    def run(name: str, *more: str) -> Path:
        train.main(train_arguments(small_camvid, tmp_path / name, *flags, *more))
        return run_folder(tmp_path / name) / "last.pth"

    straight, file = read_weights(run("straight", "--max_iter", "2")), run("first", "--max_iter", "1")
    parsed = config.parse(["--snapshot", str(file)], program="valid")
    network, _, about = valid.load_network(parsed, checkpoint.read(file))
    torch.save(downgrade(read_weights(file), network), file)
    assert "backbone.stem.convs.0.weight" in read_weights(file)["network"]

    upgraded, _, same = valid.load_network(parsed, checkpoint.read(file))
    found = upgraded.state_dict()
    assert same == about and all(torch.equal(value, found[name]) for name, value in network.state_dict().items())
    resumed = read_weights(run("second", "--snapshot", str(file), "--restore_optimizer", "--max_iter", "2"))
    for part in ("network", "average"):
        assert all(torch.equal(value, resumed[part][name]) for name, value in straight[part].items())
    states = (content["optimizer"]["state"] for content in (straight, resumed))
    for wanted, value in zip(*(state.values() for state in states), strict=True):
        assert torch.equal(wanted["momentum_buffer"], value["momentum_buffer"])
