"""Published weight files turned into checkpoints that know their network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import config
import train
import valid
from network import build_network
from network.weights import build_published, published_arch, published_state
from scripts import convert_weights as convert
from tests import reference
from tests.runs import run_folder, train_arguments
from utils import checkpoint
from utils.errors import UserError

ALL = [*reference.DIIA, *(f"rn/{key}" for key in reference.ROBUSTNET)]


def load(path: Path, *flags: str) -> Any:
    """The network that valid.py builds for a file."""
    return valid.load_network(config.parse(["--snapshot", str(path), *flags], program="valid"), checkpoint.read(path))


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("key", ALL)
def test_every_published_file_fits_the_network_of_its_flags(
    key: str, test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One stored number per entry: names and shapes decide.
    monkeypatch.setattr(reference, "fill", lambda name, shape: torch.full((), float(len(name))).expand(shape))
    flags = reference.published(test_data, key, tmp_path / "published.pth")
    content = checkpoint.read(tmp_path / "published.pth")
    cfg = config.parse(flags, program="valid")
    with torch.device("meta"):
        network = build_published(cfg, content, path="published.pth")
    assert network.method.head == ("plain" if key.startswith("rn/") else "diia")
    assert list(network.method.codes) == [int(code) for code in flags[-7:]]
    dropped = next(name for name in content["state_dict"] if "layer3" in name)
    value = content["state_dict"].pop(dropped)
    with (
        torch.device("meta"),
        pytest.raises(UserError, match=r"published\.pth: does not fit .*Missing .*backbone\.(lay|fea|stage4)"),
    ):
        build_published(cfg, content, path="published.pth")
    content["state_dict"] |= {dropped: value, "module.layer9.odd": value}
    with torch.device("meta"), pytest.raises(UserError, match=r"published\.pth: 1 names are not .*layer9\.odd"):
        build_published(cfg, content, path="published.pth")


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("key", ALL)
def test_names_and_shapes_are_published_as_the_originals_have_them(key: str, test_data: Path) -> None:
    wanted = reference.shapes(test_data, key)
    arch, codes = reference.DIIA.get(key, ("", None))
    cfg = reference.make_cfg(METHOD="diia", WT_LAYER=codes, ARCH=arch) if arch else reference.robustnet(key[3:])
    with torch.device("meta"):
        network = build_network(cfg)
    assert published_arch(network) == cfg.NETWORK.ARCH
    assert {name: list(value.shape) for name, value in published_state(network).items()} == wanted


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ("--backbone timm/test_vit --method base --output_stride 16", "base on timm/test_vit"),
        ("--backbone resnet18 --output_stride 32 --method linear", "linear on ResNet-18, output stride 32"),
        ("--backbone resnet50 --method diia-no-edge", "diia-no-edge on ResNet-50"),
        ("--backbone resnet50 --method diia-v2-old-sites", "diia-v2-old-sites on ResNet-50"),
        ("--backbone resnet50 --method isw --wt_layer 0 0 2 6 2 0 0", "isw on ResNet-50"),
        ("--backbone resnet50 --method diia-coarse", "diia-coarse on ResNet-50"),
        ("--backbone resnet18 --output_stride 32 --method diia", "diia on ResNet-18"),
        ("--backbone resnet18 --output_stride 16 --method base", "base on ResNet-18, output stride 16"),
        ("--backbone mnasnet_05 --method base", "base on MNASNet 0.5"),
    ],
)
def test_what_the_originals_do_not_have_is_not_published(flags: str, what: str) -> None:
    with torch.device("meta"):
        network = build_network(config.parse(flags.split(), program="train"))
    message = f"--format published: neither RobustNet nor DIIA has the method {what}.*; use --format safetensors or hub"
    with pytest.raises(UserError, match=message):
        published_arch(network)


@pytest.mark.parametrize("key", ["r50_isw", "rn/r101os8_isw", "rn/r50_sw", "rn/mobile_ibn", "rn/shuffle_isw"])
def test_a_converted_file_is_the_network_of_the_published_one(key: str, test_data: Path, tmp_path: Path) -> None:
    published, ours = tmp_path / "published.pth", tmp_path / "new folder" / "ours.pth"
    flags = reference.published(test_data, key, published)
    convert.main([str(published), *flags, "--out", str(ours)])
    network, saved, about = load(ours)
    wanted, _, _ = load(published, *flags)
    assert (saved.NETWORK.ARCH, about["checkpoint"], about["epoch"]) == (flags[1], "converted", 103)
    assert not about.keys() & {"source", "seed", "step"}, "a published file does not say them"
    assert network.describe() == wanted.describe() == about["network"]
    state = wanted.state_dict()
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    for file in (published, ours):
        file.unlink()  # hundreds of megabytes each


@pytest.fixture(scope="module")
def mobile(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A published MobileNetV2 and the flags that name it."""
    path = tmp_path_factory.mktemp("mobile") / "published.pth"
    return path, reference.published(test_data, "rn/mobile_isw", path)


def test_the_scores_are_those_of_the_published_file(
    mobile: tuple[Path, list[str]], small_camvid: Path, tmp_path: Path
) -> None:
    published, flags = mobile
    flags = [*flags, *"--mean 0.5 0.4 0.3 --std 0.2 0.2 0.3 --layout_confidence softmax".split()]
    ours = tmp_path / "ours.pth"
    convert.main([str(published), "--out", str(ours), *flags])
    assert checkpoint.read(ours)["config"]["LOSS"]["LAYOUT_CONFIDENCE"] == "softmax"
    data = ["--val_dataset", "camvid", "--num_workers", "0", "--device", "cpu"]
    data += ["--opts", f"DATASET.CAMVID_DIR={small_camvid}"]
    valid.main(["--snapshot", str(ours), "--out", str(tmp_path / "ours"), *data])
    valid.main(["--snapshot", str(published), *flags, "--out", str(tmp_path / "published"), *data])
    found, wanted = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("ours", "published"))
    assert found["domains"] == wanted["domains"]
    assert found["weights"]["network"] == wanted["weights"]["network"]
    assert found["weights"]["checkpoint"] == "converted"
    assert "source" not in found["weights"]


def test_training_starts_from_a_converted_file_but_cannot_continue_it(
    mobile: tuple[Path, list[str]], small_camvid: Path, tmp_path: Path
) -> None:
    published, flags = mobile
    ours = tmp_path / "ours.pth"
    convert.main([str(published), "--out", str(ours), *flags])
    arguments = ["--snapshot", str(ours), "--arch", flags[1], "--method", "isw", "--lr", "1e-9"]
    run = train_arguments(small_camvid, tmp_path / "out", *arguments, "--backbone", "", "--max_iter", "1")
    train.main(run)
    trained = checkpoint.read_checkpoint(run_folder(tmp_path / "out") / "last.pth")["network"]
    weight = "head.classify.weight"
    torch.testing.assert_close(trained[weight], reference.fill("final2.0.weight", trained[weight].shape))
    for flag in (["--restore_optimizer"], ["--resume", str(ours)]):
        with pytest.raises(UserError, match=r"ours\.pth: holds weights but no run to continue"):
            train.main([*run, *flag])


def test_what_cannot_be_converted_is_refused(mobile: tuple[Path, list[str]], tmp_path: Path) -> None:
    published, flags = mobile
    ours = tmp_path / "ours.pth"
    ours.write_bytes(b"precious")

    def refused(*arguments: str) -> str:
        with pytest.raises(UserError) as caught:
            convert.main([*arguments, "--out", str(ours)])
        return str(caught.value)

    assert "exists already" in refused(str(published), *flags)
    assert ours.read_bytes() == b"precious"
    ours.unlink()
    assert "there is no such weight file" in refused(str(tmp_path / "none.pth"), *flags)
    assert "has the plain head and no config; give --method or --wt_layer" in refused(str(published), *flags[:2])
    assert "has the plain head, which --method diia-coarse does not" in refused(
        str(published), *flags[:2], "--method", "diia-coarse"
    )
    assert "did you mean 'isw'" in refused(str(published), *flags[:2], "--method", "isww")
    other = refused(str(published), "--arch", reference.R50, *flags[2:])
    assert "published.pth: does not fit" in other and "backbone.layer1" in other
    with pytest.raises(UserError, match=r"ours\.safetensors: a checkpoint ends in \.pth; name another file"):
        convert.main([str(published), *flags, "--out", str(ours.with_suffix(".safetensors"))])
    assert not list(tmp_path.iterdir()), "nothing half written is left"

    convert.main([str(published), *flags, "--out", str(ours)])
    again = tmp_path / "again.pth"
    with pytest.raises(UserError, match=r"ours\.pth: is a checkpoint of train\.py or convert_weights already"):
        convert.main([str(ours), "--out", str(again)])
    before = ours.stat().st_mtime_ns
    convert.main([str(published), *flags, "--out", str(ours), "--overwrite"])
    assert ours.stat().st_mtime_ns > before
