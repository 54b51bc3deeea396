"""timm's weights: its own downloads, files and renaming, with nothing missing or left over in silence."""

from __future__ import annotations

import hashlib
import http.server
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from network import BACKBONES, assemble, pretrained, resolve_architecture, resolve_method
from network.pretrained import load_pretrained
from network.tuning import restrict_tuning
from tests import reference
from tests.test_layering import ROOT
from tests.test_pretrained import backbone_of
from utils import checkpoint, distributed
from utils.errors import UserError

ADAPTER, WRAPPED = re.compile(r"\.(lora_[AB]|rein)\."), re.compile(r"(?<=\.)(base_layer|block)\.")
KINDS = ["test_vit", "test_resnet", "test_convnext", "test_efficientnet", "mobilenetv3_small_050"]  # of extractors


def network_of(name: str, *, tune: str = "", method: str = "linear") -> Any:
    """A network on timm's backbone, as a run builds it."""
    architecture = resolve_architecture("network.deepv3.DeepR50V3PlusD", backbone=f"timm/{name}", output_stride=32)
    network = assemble(architecture, method=resolve_method(method))
    if tune:
        restrict_tuning(network.backbone, tune, rank=2, tokens=3)
    return network


def weights_of(name: str, **options: Any) -> dict[str, Tensor]:
    """Entries of timm's whole network, classifier included, all of them random."""
    torch.manual_seed(1)
    state = timm.create_model(name, **options).state_dict()
    return {key: torch.rand_like(value) if value.is_floating_point() else value + 7 for key, value in state.items()}


def entries(network: Any) -> dict[str, Tensor]:
    """Entries of timm's part, under the names of timm's whole network where stages are not renamed."""
    return {key.removeprefix("model."): value for key, value in network.backbone.model.state_dict().items()}


def save(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as a hub of weights does, out of `folder`; `asked` collects the requests."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        if self.path.startswith("/moved"):  # as a sign-in page does
            self.send_response(302)
            self.send_header("Location", "/page.html")
            self.end_headers()
            return
        path = self.folder / self.path.strip("/").replace("/resolve/main/", "/")
        data = path.read_bytes() if path.is_file() else b""
        self.send_response(200 if data else 404)
        if not data:
            self.send_header("X-Error-Code", "RepoNotFound" if self.path.startswith("/api/") else "EntryNotFound")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", 40 * "0")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if self.path.startswith("/cut") else data)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, type[Hub]]]:
    """Address of a server on this machine, and its handler."""
    handler = type("Handler", (Hub,), {"folder": tmp_path / "hub", "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


LOAD = """
import json, sys
from network.pretrained import load_pretrained
from tests.test_timm_weights import network_of
from utils.errors import UserError
said = {}
for name in sys.argv[1:]:
    network = network_of(name)
    try:
        load_pretrained(network, "auto")
        said[name] = sum(float(value.double().sum()) for value in network.backbone.model.state_dict().values())
    except UserError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


def test_timms_hub_in_a_fresh_process(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    address, handler = hub
    good, absent, page, cut = (f"timm/test_{kind}.r160_in1k" for kind in ("resnet", "vit", "vit2", "vit3"))
    state = weights_of("test_resnet")
    for name in (good, page, cut):
        (handler.folder / name).mkdir(parents=True)
    save_file(state, handler.folder / good / "model.safetensors")
    (handler.folder / page / "model.safetensors").write_text("<!DOCTYPE html><html>Please sign in</html>")
    whole = (handler.folder / good / "model.safetensors").read_bytes()
    (handler.folder / cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE"))}
    env |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    names = [name.removeprefix("timm/") for name in (good, absent, page, cut)]
    run = partial(subprocess.run, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300, check=False)
    done = run([sys.executable, "-c", LOAD, *names])
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    kept = entries(network_of("test_resnet"))
    assert said[names[0]] == pytest.approx(sum(float(state[key].double().sum()) for key in kept))
    assert f"HEAD /{good}/resolve/main/model.safetensors" in handler.asked, "the hub's own client was at work"
    for name, words in zip(names[1:], ("404", "header", "header"), strict=True):
        assert said[name].startswith(f"--pretrained timm: timm cannot load weights of {name} (") and words in said[name]
        assert said[name].endswith(f"give the weights of {name} by --pretrained FILE, or use --pretrained none")
        damaged = f"remove the damaged copy of {name} below {tmp_path}/home and try again" in said[name]
        assert damaged == (words == "header")


def test_torchvisions_server(hub: tuple[str, type[Hub]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, handler = hub
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    handler.folder.mkdir()
    theirs = reference.small_network("base").backbone.state_dict()
    file = Path(save(handler.folder / "file", theirs))
    good = f"resnet50-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    file.rename(handler.folder / good)
    (handler.folder / "resnet50-0badc0de.pth").write_text("<html>moved</html>")
    network = reference.small_network("base")
    for name, words in (("resnet50-0badc0de.pth", "hash"), ("resnet50-12345678.pth", "404"), (good, "")):
        monkeypatch.setattr(pretrained, "_weights_url", lambda _, name=name: f"{address}/{name}")
        if words:
            with pytest.raises(UserError, match=f"{name} could not be downloaded .*{words}.*--pretrained FILE"):
                load_pretrained(network, "auto")
    load_pretrained(network, "auto")
    assert all(torch.equal(value, theirs[key]) for key, value in network.backbone.state_dict().items())


def test_a_download_that_is_not_whole_leaves_nothing_and_a_damaged_copy_is_replaced(
    hub: tuple[str, type[Hub]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    address, handler = hub
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    handler.folder.mkdir()
    theirs = reference.small_network("base").backbone.state_dict()
    whole = Path(save(handler.folder / "file", theirs)).read_bytes()
    digits = hashlib.sha256(whole).hexdigest()[:8]
    for name in ("cut", "good"):
        (handler.folder / f"{name}-{digits}.pth").write_bytes(whole)
    (handler.folder / "page.html").write_text("<html>Please sign in</html>")
    network, cache = reference.small_network("base"), tmp_path / "home/hub/checkpoints"

    def load(name: str) -> None:
        monkeypatch.setattr(pretrained, "_weights_url", lambda _: f"{address}/{name}-{digits}.pth")
        load_pretrained(network, "torchvision")

    for name in ("cut", "moved"):
        with pytest.raises(UserError, match=f"{name}-{digits}.pth could not be downloaded .*--pretrained FILE"):
            load(name)
        assert not list(cache.iterdir()), "nothing under the final name, nothing half written"
    load("good")
    asked = len(handler.asked)
    load("good")
    assert len(handler.asked) == asked, "out of the cache"
    for damage in (whole[:-100], whole[:500] + b"?" + whole[501:], b"<html>Please sign in</html>", b""):
        (cache / f"good-{digits}.pth").write_bytes(damage)
        caplog.clear()
        load("good")
        assert f"good-{digits}.pth: its checksum is not that of its name; it is downloaded again" in caplog.text
        assert (cache / f"good-{digits}.pth").read_bytes() == whole
    (cache / f"good-{digits}.pth").write_bytes(b"")
    (handler.folder / f"good-{digits}.pth").unlink()
    with pytest.raises(UserError, match=f"good-{digits}.pth could not be downloaded .*404"):
        load("good")
    assert all(torch.equal(value, theirs[key]) for key, value in network.backbone.state_dict().items())


@pytest.mark.parametrize(("rank", "order"), [(0, ["load", "barrier"]), (1, ["barrier", "load"])])
def test_the_first_process_downloads_first(rank: int, order: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    network, state = network_of("test_resnet"), weights_of("test_resnet")

    def weights(*_: Any, **__: Any) -> dict[str, Tensor]:
        done.append("load")
        return {key: state[key] for key in entries(network)}

    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "barrier", lambda: done.append("barrier"))
    monkeypatch.setattr(pretrained, "timm_weights", weights)
    load_pretrained(network, "timm")
    assert done == order


@pytest.mark.parametrize("name", KINDS)
def test_a_file_fills_every_entry(name: str, tmp_path: Path) -> None:
    network, state = network_of(name), weights_of(name)
    if name == "test_vit":
        save_file(state, file := tmp_path / "weights.safetensors")
    else:
        torch.save(state, file := tmp_path / "weights.pth")
    load_pretrained(network, str(file))
    found = entries(network)
    assert len(found) > 30
    for key, value in found.items():
        wanted = [state[key]] if key in state else state.values()  # some extractors rename stages
        assert any(value.shape == other.shape and torch.equal(value, other) for other in wanted), key


@pytest.mark.parametrize("name", KINDS)
def test_what_is_missing_or_left_over_is_named(name: str, tmp_path: Path) -> None:
    before = nn.Module.load_state_dict, logging.getLogger("timm.models").level
    network, state = network_of(name), weights_of(name)
    untouched = {key: value.clone() for key, value in network.state_dict().items()}
    dropped = next(key for key in state if "blocks" in key or "layer2" in key or "stages.1" in key)
    odd = {key: value for key, value in state.items() if key != dropped} | {"odd.weight": torch.ones(1)}
    with pytest.raises(UserError) as caught:
        load_pretrained(network, save(tmp_path / "odd.pth", odd))
    text = str(caught.value)
    assert (
        dropped in text and "odd.weight" in text and "classifier" not in text and len(text) < 700 + len(str(tmp_path))
    )
    wrong = state | {dropped: torch.ones(*state[dropped].shape, 2)}
    with pytest.raises(UserError, match=f"size mismatch for {dropped}: .*--pretrained FILE"):
        load_pretrained(network, save(tmp_path / "shape.pth", wrong))
    assert all(torch.equal(value, untouched[key]) for key, value in network.state_dict().items()), "nothing half loaded"
    assert (nn.Module.load_state_dict, logging.getLogger("timm.models").level) == before


@pytest.mark.parametrize("head", ["none", "other classes", "other name"])
def test_the_classifier_does_not_matter(head: str, tmp_path: Path) -> None:
    network, state = network_of("test_vit"), weights_of("test_vit", num_classes=10 if head == "other classes" else 1000)
    if head != "other classes":
        state = {key: value for key, value in state.items() if not key.startswith("head.")}
    if head == "other name":
        state |= {"classifier.weight": torch.ones(3, 64), "fc.bias": torch.ones(3)}
    load_pretrained(network, save(tmp_path / "head.pth", {"state_dict": {f"module.{k}": v for k, v in state.items()}}))
    assert all(torch.equal(value, state[key]) for key, value in entries(network).items())


def test_position_embeddings_are_resized_and_official_names_known(tmp_path: Path) -> None:
    """DINOv2's own file: a mask token beside the network's entries, positions of a larger image."""
    network = network_of("vit_small_patch14_dinov2")
    shape = entries(network)["pos_embed"].shape
    state = {
        key: torch.zeros_like(value)
        for key, value in timm.create_model("vit_small_patch14_dinov2").state_dict().items()
    }
    state |= {"mask_token": torch.zeros(1, 384), "pos_embed": torch.full((1, 1 + 20 * 20, 384), 0.5)}
    assert shape != state["pos_embed"].shape
    load_pretrained(network, save(tmp_path / "dinov2_vits14_pretrain.pth", state))
    found = entries(network)
    assert found["pos_embed"].shape == shape
    torch.testing.assert_close(found["pos_embed"], torch.full(shape, 0.5))
    assert not found["blocks.3.attn.qkv.weight"].any()


def test_backbone_of_our_own_checkpoint(tmp_path: Path) -> None:
    theirs = {
        key: torch.rand_like(value)
        for key, value in network_of("test_vit").state_dict().items()
        if value.is_floating_point()
    }
    theirs = network_of("test_vit").state_dict() | theirs
    parts: dict[str, Any] = {part: {} for part in checkpoint.KEYS - {"schema"}}
    checkpoint.save(tmp_path / "last.pth", parts | {"network": theirs, "kind": "last", "world_size": 1})
    for tune in ("", "lora", "rein"):
        network = network_of("test_vit", tune=tune)
        load_pretrained(network, str(tmp_path / "last.pth"))
        for key, value in network.backbone.state_dict().items():
            if not ADAPTER.search(key):
                assert torch.equal(value, theirs["backbone." + WRAPPED.sub("", key)]), key


@pytest.mark.parametrize(("name", "trained_as"), [("test_vit", "base"), ("test_resnet", "ibn")])
def test_of_a_checkpoint_the_sites_and_the_pyramid_of_another_method_stay_out(
    name: str, trained_as: str, tmp_path: Path
) -> None:
    theirs, network = network_of(name, method=trained_as).backbone.state_dict(), network_of(name)
    found = network.backbone.state_dict()
    assert any(key.startswith(("sites.", "pyramid.")) for key in theirs.keys() - found.keys())
    load_pretrained(network, save(tmp_path / "w.pth", {f"backbone.{key}": value for key, value in theirs.items()}))
    assert all(torch.equal(value, theirs[key]) for key, value in network.backbone.state_dict().items())


@pytest.mark.parametrize(("name", "tune"), [("test_vit", "lora"), ("test_convnext", "lora"), ("test_vit", "rein")])
def test_layers_that_adapters_wrap_are_filled(name: str, tune: str, tmp_path: Path) -> None:
    network = network_of(name, tune=tune)
    before = {key: value.clone() for key, value in network.backbone.state_dict().items() if ADAPTER.search(key)}
    load_pretrained(network, save(tmp_path / "w.pth", weights_of(name)))
    plain = network_of(name)
    load_pretrained(plain, str(tmp_path / "w.pth"))
    wanted, found = plain.backbone.state_dict(), network.backbone.state_dict()
    assert any(map(WRAPPED.search, found)) and len(before) > 5
    for key, value in found.items():
        if not key.startswith("pyramid."):
            assert torch.equal(value, before[key] if key in before else wanted[WRAPPED.sub("", key)]), key


def test_layers_of_a_published_backbone_that_lora_wraps(tmp_path: Path) -> None:
    theirs = backbone_of("mobilenet_v2").backbone.state_dict()
    architecture = resolve_architecture("network.deepv3.DeepR50V3PlusD", backbone="mobilenet_v2")
    network = assemble(architecture, method=resolve_method("base"))
    restrict_tuning(network.backbone, "lora", rank=2, tokens=3)
    load_pretrained(network, save(tmp_path / "w.pth", theirs))
    found = network.backbone.state_dict()
    assert any(".lora_" in key for key in found)
    assert all(torch.equal(v, theirs[k.replace(".base_layer", "")]) for k, v in found.items() if ".lora_" not in k)


@pytest.mark.parametrize("name", [name for name in BACKBONES if not name.startswith(("shuffle", "mnas"))])
def test_timms_weights_of_the_published_backbones_fit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def weights(create: Any, *, name: str, origin: str) -> dict[str, Tensor]:
        asked.append(name)
        with torch.device("meta"):
            return create().state_dict()

    monkeypatch.setattr(pretrained, "timm_weights", weights)
    with torch.device("meta"):
        load_pretrained(backbone_of(name), "timm")
    (twin,) = asked
    settings = timm.get_pretrained_cfg(twin)
    assert settings is not None and settings.has_weights


def test_sources_that_have_nothing(tmp_path: Path) -> None:
    for name in ("shufflenet_v2", "mnasnet_05"):
        with pytest.raises(UserError, match="--pretrained timm: timm has no such network; give torchvision's weights"):
            load_pretrained(backbone_of(name), "timm")
    network, missing = network_of("test_vit"), tmp_path / "missing.pth"
    with pytest.raises(
        UserError, match="--pretrained torchvision: torchvision has no such network; give timm's weights"
    ):
        load_pretrained(network, "torchvision")
    with pytest.raises(UserError, match=r"missing\.pth: there is no such file; give timm's weights of test_vit"):
        load_pretrained(network, str(missing))
