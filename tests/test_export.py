"""Exported files compute what the network computes, say what they are, and come whole or not at all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import config
import inference
import train
import valid
from datasets.labels import CLASS_NAMES, PALETTE
from network import Segmentor, build_network
from scripts import export
from tests.runs import train_arguments
from tests.test_docs import ROOT, blocks
from transforms import build_normalisation
from utils import checkpoint, version
from utils.errors import UserError

MOMENTS = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))  # of every case's normalisation
FLAGS = "--pretrained none --dataset gtav --mean 0.5 0.4 0.3 --std 0.2 0.25 0.3".split()
CASES = {
    "base": "--backbone resnet18 --method base",
    "isw": "--backbone resnet18 --method isw",
    "diia": "--backbone resnet18 --method diia",
    "diia-vit": "--backbone timm/test_vit --method diia-no-whitening",
    "lora": "--backbone timm/test_vit --method base --tune lora --lora_rank 4",
    "frozen": "--backbone timm/test_vit --method linear --tune frozen --image_in",
    "rein": "--backbone timm/test_vit --method base --tune rein",
    "convnext": "--backbone timm/test_convnext --method base --output_stride 32",
}
SIZE = ("--size", "97", "130")  # odd


def onnx_or_skip() -> None:
    if tuple(map(int, torch.__version__.split(".")[:2])) < export.ONNX_TORCH:
        pytest.skip(f"PyTorch {torch.__version__} is too old for --format onnx")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")


def write_checkpoint(path: Path, name: str, **entries: Any) -> nn.Module:
    """Write a checkpoint whose every part matters: running statistics, gates and updates that are not zero."""
    torch.manual_seed(0)
    cfg = config.parse([*FLAGS, *CASES[name].split()], program="train")
    network = build_network(cfg).train()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
            if key.endswith("gamma"):
                parameter.fill_(0.5)
        network(torch.randn(2, 3, 64, 96))
    content = {
        "kind": "best_source",
        "network": network.state_dict(),
        **{part: {} for part in ("criterion", "optimizer", "scheduler", "scaler", "best")},
        "progress": {"epoch": 3, "step_in_epoch": 0, "step": 40},
        "config": config.to_dict(cfg),
        "versions": {"git": "abc"},
        "world_size": 1,
    }
    checkpoint.save(path, content | entries)
    return network.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with base.pth, and what tests write there."""
    folder = tmp_path_factory.mktemp("export")
    write_checkpoint(folder / "base.pth", "base")
    return folder


def run(*arguments: str | Path) -> None:
    export.main([*map(str, arguments), *SIZE])


def pictures(*shape: int) -> Tensor:
    """Return noise, uint8."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def expected(network: Any, images: Tensor, *, per_image: bool = False) -> Tensor:
    """Return the logits for uint8 images, normalised here."""
    images = images / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in MOMENTS)
    if per_image:
        mean, std = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True) + 1e-5
    with torch.no_grad():
        logits: Tensor = network.predict((images - mean) / std)
    return logits


def run_onnx(file: Path, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def assert_labels(found: Tensor, logits: Tensor) -> None:
    """Labels are those of the largest logit, but for pixels that rounding decides."""
    assert found.dtype == torch.uint8 and found.shape == logits[:, 0].shape
    first, second = logits.topk(2, dim=1).values.unbind(1)
    clear = first - second > 1e-4
    assert torch.equal(found.long()[clear], logits.argmax(1)[clear]) and clear.float().mean() > 0.95


def real_frame() -> list[str]:
    """Return the flag with a frame of CamVid, where there are any."""
    data = os.environ.get("DIIA_TEST_DATA", "")
    frames = sorted(Path(data, "data", "camvid", "test").glob("*")) if data else []
    return ["--frames", str(frames[0])] if frames else []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("diia", "lora") else pytest.mark.exhaustive) for name in CASES]
)
def test_onnx_of_any_size(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx_or_skip()
    import onnx

    network = write_checkpoint(tmp_path / "last.pth", name)
    run(tmp_path / "last.pth", "--format", "onnx", "--dynamic", "--logits", *real_frame())
    assert capsys.readouterr().out.startswith("last.onnx: 100.0000 % of labels equal, logits differ by up to ")
    onnx.checker.check_model(str(tmp_path / "last.onnx"), full_check=True)
    for shape in ((1, 3, 97, 130), (3, 3, 71, 165)):
        images = pictures(*shape)
        logits = expected(network, images, per_image=name == "frozen")
        torch.testing.assert_close(run_onnx(tmp_path / "last.onnx", images), logits, rtol=1e-3, atol=1e-4)


def test_onnx_says_what_it_is(folder: Path) -> None:
    onnx_or_skip()
    import onnx

    run(folder / "base.pth", "--format", "onnx", "--out", folder / "labels.onnx")
    model = onnx.load(folder / "labels.onnx")
    (images,), (labels,) = model.graph.input, model.graph.output
    for value, name, shape in ((images, "images", [1, 3, 97, 130]), (labels, "labels", [1, 97, 130])):
        kind = value.type.tensor_type
        assert value.name == name and [dim.dim_value for dim in kind.shape.dim] == shape
        assert kind.elem_type == onnx.TensorProto.UINT8
    texts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(texts["classes"]) == list(CLASS_NAMES) and json.loads(texts["colours"]) == PALETTE.tolist()
    assert (tuple(json.loads(texts["mean"])), tuple(json.loads(texts["std"]))) == MOMENTS
    assert texts["method"] == "base" and texts["source"] == "gtav" and texts["project"] == f"DIIA {version()}"
    assert texts["network"].startswith("ResNet-18, output stride 16") and "one scale" in texts["protocol"]
    report = json.loads((folder / "labels.onnx.json").read_text())
    assert report["metadata"] == texts and report["equal_labels"] == 1 and report["frames"] == "smooth noise"
    assert 0 < report["largest_logit_difference"] < 1e-3 and min(report["seconds"].values()) > 0
    assert report["batches"] == [[1, 3, 97, 130]] * 2 and {"torch", "onnx", "onnxruntime"} < {*report["versions"]}
    network, images = export.load(str(folder / "base.pth"))[0], pictures(1, 3, 97, 130)
    assert_labels(run_onnx(folder / "labels.onnx", images), expected(network, images))
    (folder / "labels.onnx").rename(folder / "last.onnx")
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(folder / "street.png")
    _, (_, code) = blocks(ROOT / "docs" / "evaluation.md", "python")
    code += "\nassert labels.shape == (1, 97, 130) and labels.dtype == 'uint8'"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


@pytest.mark.parametrize("name", ["isw", pytest.param("diia-vit", marks=pytest.mark.exhaustive)])
def test_pt2(name: str, tmp_path: Path) -> None:
    network = write_checkpoint(tmp_path / "last.pth", name)
    run(tmp_path / "last.pth", "--format", "pt2", "--dynamic", "--float")
    texts = {"metadata.json": ""}
    module: Any = torch.export.load(tmp_path / "last.pt2", extra_files=texts).module()
    assert json.loads(texts["metadata.json"])["input"] == "normalised float32 RGB (N, 3, H, W)"
    for shape in ((1, 3, 97, 130), (3, 3, 71, 165)):
        images = torch.randn(*shape)
        with torch.no_grad():
            assert_labels(module(images), network.predict(images))  # type: ignore[operator]
    report = json.loads((tmp_path / "last.pt2.json").read_text())
    assert report["equal_labels"] == 1 and report["batches"] == [[1, 3, 97, 130]] * 2 + [[2, 3, 72, 97]]


def test_onnx_in_half_precision_and_openvino(tmp_path: Path) -> None:
    onnx_or_skip()
    import onnx

    network = write_checkpoint(tmp_path / "last.pth", "isw")
    for half in ((), ("--half",)):
        run(tmp_path / "last.pth", "--format", "onnx", *half, "--out", tmp_path / f"{len(half)}.onnx", *real_frame())
    report = json.loads((tmp_path / "1.onnx.json").read_text())
    assert 0.99 < report["equal_labels"] <= 1 and report["metadata"]["weights"] == "float16"
    kinds = {value.data_type for value in onnx.load(tmp_path / "1.onnx").graph.initializer if len(value.dims) == 4}
    assert onnx.TensorProto.FLOAT16 in kinds
    whole, half_size = ((tmp_path / f"{number}.onnx").stat().st_size for number in (0, 1))
    assert half_size < 0.55 * whole
    images = pictures(1, 3, 97, 130)
    logits = expected(network, images)
    found = run_onnx(tmp_path / "1.onnx", images)
    assert found.dtype == torch.uint8 and (found == logits.argmax(1)).float().mean() > 0.99
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # by itself it rounds to bfloat16 on processors that have it
    compiled = openvino.Core().compile_model(tmp_path / "0.onnx", "CPU", exact)
    labels = torch.from_numpy(compiled({"images": images.numpy()})[0])
    assert labels.dtype == torch.uint8
    assert (labels == run_onnx(tmp_path / "0.onnx", images)).float().mean() >= export.LEAST_EQUAL


def test_half_precision_of_weights_and_pt2(folder: Path, tmp_path: Path) -> None:
    network = write_checkpoint(tmp_path / "last.pth", "diia-vit")
    for name in ("pt2", "safetensors", "hub"):
        run(tmp_path / "last.pth", "--format", name, "--half")
        out = tmp_path / f"last{export.FORMATS[name][0]}"
        report = json.loads(out.with_name(f"{out.name}.json").read_text())
        assert 0.99 < report["equal_labels"] <= 1 and 1e-6 < report["largest_logit_difference"] < 0.05
    state, written = network.state_dict(), checkpoint.read(tmp_path / "last.safetensors")["network"]
    assert all(torch.equal(value, state[name].half()) for name, value in written.items() if state[name].dim() > 1)
    loaded = inference.load(tmp_path / "last_hub", device="cpu").network
    assert isinstance(loaded, Segmentor)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    content = checkpoint.read(folder / "base.pth")
    content["network"]["head.classify.weight"][0] = 1e5
    torch.save(content, tmp_path / "large.pth")
    with pytest.raises(UserError, match=r"--half: head\.classify\.weight has values above 65504"):
        run(tmp_path / "large.pth", "--format", "safetensors", "--half")


PUBLISHED = ["--backbone resnet50 --method diia", "--arch network.deepv3.DeepShuffleNetV3PlusD --method ibn"]
PUBLISHED += ["--arch network.deepv3.DeepMobileNetV3PlusD --method isw --half"]


@pytest.mark.parametrize("flags", PUBLISHED)
def test_published_weights_give_the_same_maps(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    half, flags = flags.endswith("--half"), flags.removesuffix(" --half")
    monkeypatch.setitem(CASES, "it", flags)
    write_checkpoint(tmp_path / "last.pth", "it")
    run(tmp_path / "last.pth", "--format", "published", *["--half"] * half)
    out = tmp_path / "last_published.pth"
    report, content = json.loads((tmp_path / f"{out.name}.json").read_text()), torch.load(out, weights_only=True)
    assert content.keys() == {"state_dict", "epoch", "mean_iu", "command"} and content["epoch"] == 3
    assert all(name.startswith("module.") for name in content["state_dict"])
    assert report["equal_labels"] == 1 or half
    words = content["command"].split()[2:]  # the flags that name the network and its normalisation
    cfg = config.parse(["--snapshot", str(out), *words], program="valid")
    again, saved = inference.load_network(cfg, checkpoint.read(out))
    own = config.parse(["--snapshot", str(tmp_path / "last.pth")], program="valid")
    ours, trained = inference.load_network(own, checkpoint.read(own.RUN.SNAPSHOT))
    state, normalise = ours.state_dict(), build_normalisation(saved)
    assert again.state_dict().keys() == state.keys() and normalise == build_normalisation(trained)
    wanted = {
        name: value.half().to(value) if half and value.is_floating_point() else value for name, value in state.items()
    }
    assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())
    images = pictures(1, 3, 97, 130)
    with torch.no_grad():
        maps = [net.eval().predict(normalise(images)) for net in (again, ours)]
    torch.testing.assert_close(*maps, rtol=0, atol=0.05 if half else 1e-4)


def test_what_cannot_be_published_is_refused_before_anything_is_written(folder: Path) -> None:
    before = sorted(folder.iterdir())
    message = "--format published: neither RobustNet nor DIIA has the method base on ResNet-18, output stride 16"
    with pytest.raises(UserError, match=message):
        run(folder / "base.pth", "--format", "published")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", ["lora", "rein"])
def test_safetensors_are_a_checkpoint(name: str, tmp_path: Path) -> None:
    network = write_checkpoint(tmp_path / "last.pth", name)
    run(tmp_path / "last.pth", "--format", "safetensors")
    cfg = config.parse(["--snapshot", str(tmp_path / "last.safetensors")], program="valid")
    content = checkpoint.read(cfg.RUN.SNAPSHOT)
    assert content["kind"] == "exported" and content["progress"]["step"] == 40 and content["versions"] == {"git": "abc"}
    assert not [key for key in content["network"] if "lora" in key or "base_layer" in key]
    loaded, saved, weights = valid.load_network(cfg, content)
    assert saved.NETWORK.TUNE == {"lora": "full"}.get(name, name) and saved.NETWORK.BACKBONE == "timm/test_vit"
    assert weights["source"] == "gtav" and weights["step"] == 40 and weights["checkpoint"] == "exported"
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval().predict(images), network.predict(images))  # type: ignore[operator]
    with pytest.raises(UserError, match="holds weights but no run to continue"):
        checkpoint.read_checkpoint(cfg.RUN.SNAPSHOT)


def test_safetensors_start_a_run_and_are_evaluated(full_camvid: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.pth", "base")
    run(tmp_path / "last.pth", "--format", "safetensors")
    weights = ("--snapshot", str(tmp_path / "last.safetensors"))
    train.main(train_arguments(full_camvid, tmp_path / "runs", *CASES["base"].split(), *weights, "--max_iter", "1"))
    opts = ("--val_dataset", "camvid", "--device", "cpu", "--opts", f"DATASET.CAMVID_DIR={full_camvid}")
    scores = []
    for file in ("last.pth", "last.safetensors"):
        valid.main(["--snapshot", str(tmp_path / file), "--out", str(tmp_path / file[5:]), "--pictures", "0", *opts])
        scores.append(json.loads((tmp_path / file[5:] / "scores.json").read_text())["domains"])
    assert scores[0] == scores[1]


def test_averaged_weights_are_exported(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other.pth", "frozen")
    average = {key: value * 2 for key, value in checkpoint.read(tmp_path / "other.pth")["network"].items()}
    trained = checkpoint.read(tmp_path / "other.pth")["config"]
    trained["OPTIM"]["EMA_DECAY"] = 0.9
    write_checkpoint(tmp_path / "last.pth", "frozen", average=average, config=trained)
    for name in ("safetensors", "hub"):
        run(tmp_path / "last.pth", "--format", name)
        path = str(tmp_path / f"last{export.FORMATS[name][0]}")
        written = checkpoint.read(path)["network"]
        assert written.keys() == average.keys() and all(torch.equal(written[key], average[key]) for key in written)
        cfg = config.parse([path], program="valid")
        assert valid.load_network(cfg, checkpoint.read(path))[2]["ema"] == 0.9, "as reports on the checkpoint say"


def test_what_published_weights_were_trained_on_stays_unknown(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ours.pth", "base", kind=checkpoint.CONVERTED)
    run(tmp_path / "ours.pth", "--format", "safetensors", "--frames", picture(tmp_path))
    report = json.loads((tmp_path / "ours.safetensors.json").read_text())
    assert report["metadata"]["source"] == "" and report["frames"] == [str(tmp_path / "street.png")]
    assert report["batches"] == [[1, 3, 97, 130]], "resized"
    assert checkpoint.read(tmp_path / "ours.safetensors")["kind"] == checkpoint.CONVERTED


def picture(folder: Path) -> str:
    file = folder / "street.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(file)
    return str(file)


@pytest.mark.parametrize("share", [0.9998, 0.99995])
def test_a_file_that_differs_is_told(
    share: float, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    open_weights = export.open_weights

    def open_wrong(path: Path, *, gives_logits: bool) -> export.RunFile:
        run_file = open_weights(path, gives_logits=gives_logits)

        def run_wrong(images: Tensor) -> tuple[Tensor, Tensor]:
            labels, logits = run_file(images)
            wrong = round((1 - share) * labels.numel())
            labels.view(-1)[:wrong] += 1
            return labels, logits + 0.25

        return run_wrong

    monkeypatch.setattr(export, "open_weights", open_wrong)
    arguments = [str(folder / "base.pth"), "--format", "safetensors", "--out", str(tmp_path / "wrong.safetensors")]
    arguments += ["--size", "200", "300"]
    if share < 0.9999:
        with pytest.raises(SystemExit) as stop:
            export.main(arguments)
        assert stop.value.code == 1
        assert "below 99.99 % equal labels: do not use wrong.safetensors" in capsys.readouterr().out
    else:
        export.main(arguments)
    report = json.loads((tmp_path / "wrong.safetensors.json").read_text())
    assert report["equal_labels"] == pytest.approx(share, abs=1e-9)
    assert report["largest_logit_difference"] == pytest.approx(0.25, abs=1e-4)


def test_normalisation_is_that_of_the_evaluation() -> None:
    class Identity(nn.Module):
        def predict(self, images: Tensor) -> Tensor:
            return images

    for flags in ([], ["--image_in"], ["--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.1", "0.3"]):
        normalise = build_normalisation(config.parse(flags, program="train"))
        network: Any = Identity()
        deployed = export.Deployed(network, normalisation=normalise, gives_logits=True)
        assert torch.equal(deployed(images := pictures(2, 3, 20, 30)), normalise(images))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--size 31 64", "--size 31 64: height and width are from 32 to 65535 pixels"),
        (
            "--format safetensors --dynamic --float",
            "--dynamic, --float: --format safetensors holds weights and no graph",
        ),
        ("--license mit", "--license: --format pt2 has no model card; leave it out, or use --format hub"),
        ("--format published --logits", "--logits: --format published holds weights and no graph"),
        ("--format published --out a.pt", r"--out a\.pt: a file of --format published ends in \.pth"),
        ("--out a.pth", r"--out a\.pth: a file of --format pt2 ends in \.pt2"),
        ("--frames missing.png", r"missing\.png: no such file"),
        ("--format pt2 --out {folder}/base.pth/a.pt2", "base.pth: the folder cannot be made"),
    ],
)
def test_bad_input_is_refused(flags: str, message: str, folder: Path) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match=message):
        export.main([str(folder / "base.pth"), "--format", "pt2", *SIZE, *flags.format(folder=folder).split()])
    assert sorted(folder.iterdir()) == before


def test_files_are_not_replaced_unasked_and_appear_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.safetensors"
    out.write_text("precious")
    arguments = (folder / "base.pth", "--format", "safetensors", "--out", out)
    with pytest.raises(UserError, match="exists already; name another one by --out or add --overwrite"):
        run(*arguments)
    monkeypatch.setattr(export, "open_weights", lambda path, gives_logits: [])  # cannot be called
    with pytest.raises(UserError, match=r"--format safetensors: the file does not run \('list' object"):
        run(*arguments, "--overwrite")
    assert out.read_text() == "precious" and [*tmp_path.iterdir()] == [out]
    monkeypatch.undo()
    run(*arguments, "--overwrite")
    assert checkpoint.read(out)["kind"] == "exported" and out.stat().st_mode & 0o777 == 0o666 & ~_umask(tmp_path)


def _umask(folder: Path) -> int:
    (folder / "probe").touch()
    return 0o666 & ~(folder / "probe").stat().st_mode


def test_weights_without_a_config_and_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "published.pth")
    with pytest.raises(
        UserError, match=r"published\.pth: holds no config; turn it .* python -m scripts\.convert_weights"
    ):
        run(tmp_path / "published.pth", "--format", "pt2")
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    with pytest.raises(UserError, match=r"--format onnx: needs PyTorch 2\.9 or newer, this is 2\.6\.0"):
        run(tmp_path / "published.pth", "--format", "onnx")
    monkeypatch.setattr(torch, "__version__", "2.14.0")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UserError, match="--format onnx: .*onnx.*; pip install onnx onnxscript onnxruntime"):
        run(tmp_path / "published.pth", "--format", "onnx")


def test_what_torch_cannot_trace_or_onnx_cannot_hold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Constraints violated\nmore")

    monkeypatch.setattr(torch.export, "export", fail)
    arguments = (folder / "base.pth", "--out", folder / "x.pt2", "--format", "pt2")
    for more, hint in (([], "use --format safetensors"), (["--dynamic"], "leave out --dynamic")):
        message = f"--format pt2: torch cannot trace this network (Constraints violated); {hint}"
        with pytest.raises(UserError, match=re.escape(message)):
            run(*arguments, *more)
    onnx_or_skip()
    monkeypatch.setattr(export, "LARGEST_ONNX", 10)
    with pytest.raises(
        UserError, match="--format onnx: one file holds 2 GiB, the weights are 0.1 GiB; use --format pt2"
    ):
        run(folder / "base.pth", "--format", "onnx", "--out", folder / "x.onnx")
