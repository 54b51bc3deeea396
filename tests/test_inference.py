"""Use from Python: load a weight file, segment images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import config
import valid
from inference import load
from network import Segmentor
from tests import reference
from tests.runs import save_random
from utils import checkpoint
from utils.errors import UserError

VIT = ("--backbone", "timm/test_vit", "--method", "base", "--mean", "0.4", "0.5", "0.6", "--std", "0.2", "0.3", "0.4")
DIIA = ("--backbone", "timm/test_vit", "--method", "diia-no-whitening")
STREET = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (40, 72, 3), dtype=np.uint8)


def expected(network: Segmentor, image: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
    """Return the logits (C, H, W) of an image that is normalised here."""
    scaled = (image / 255 - np.array(mean)) / np.array(std)  # (H, W, 3)
    with torch.no_grad():
        logits: np.ndarray = network.predict(torch.tensor(scaled.transpose(2, 0, 1)[None], dtype=torch.float32))[
            0
        ].numpy()
    return logits


def assert_labels(labels: np.ndarray, logits: np.ndarray) -> None:
    """Compare train ids (H, W) with logits (C, H, W), up to the rounding of the normalisation."""
    assert labels.dtype == np.uint8 and labels.shape == logits.shape[1:] and len(np.unique(labels)) > 1
    chosen = np.take_along_axis(logits, labels[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(chosen, logits.max(0), atol=1e-4)


def test_segment_reads_normalises_and_takes_the_largest(tmp_path: Path) -> None:
    network = save_random(tmp_path / "w.pth", *VIT)
    Image.fromarray(STREET).save(tmp_path / "street.png")
    model, logits = (
        load(str(tmp_path / "w.pth"), device="cpu"),
        expected(network, STREET, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]),
    )
    assert_labels(model.segment(STREET), logits)
    for path in (tmp_path / "street.png", str(tmp_path / "street.png")):
        np.testing.assert_array_equal(model.segment(path), model.segment(STREET))
    probabilities = model.segment(STREET, probabilities=True)
    assert probabilities.dtype == np.float32 and probabilities.shape == (19, 48, 80)
    wanted = np.exp(logits) / np.exp(logits).sum(0)
    np.testing.assert_allclose(probabilities, wanted, atol=1e-5)
    (maps,) = model.maps([STREET], ["confidence", "labels"])
    np.testing.assert_allclose(maps["confidence"], wanted.max(0), atol=1e-5)
    assert list(maps) == ["confidence", "labels"] and model.map_names == ("labels", "probabilities", "confidence")


def test_a_list_is_a_batch_of_any_sizes(tmp_path: Path) -> None:
    save_random(tmp_path / "w.pth", *VIT)
    model = load(tmp_path / "w.pth", device=torch.device("cpu"))
    images = [STREET, STREET[::-1].copy(), OTHER, STREET]
    found = model.segment(images, probabilities=True)
    assert model.segment([]) == [] and [part.shape for part in found] == [(19, *image.shape[:2]) for image in images]
    for image, part in zip(images, found, strict=True):
        np.testing.assert_allclose(part, model.segment(image, probabilities=True), atol=1e-5)


def test_a_batch_has_as_many_images_as_is_asked_for(tmp_path: Path) -> None:
    save_random(tmp_path / "w.pth", *VIT)
    for asked, sizes in ({}, [1] * 6), ({"bs_mult_val": 2}, [2, 2, 1, 1]):
        normalise = Mock(wraps=(model := load(tmp_path / "w.pth", device="cpu", **asked)).normalise)
        assert len(replace(model, normalise=normalise).segment([STREET] * 5 + [OTHER])) == 6
        assert [len(call.args[0]) for call in normalise.call_args_list] == sizes


def test_a_device_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    save_random(tmp_path / "w.pth", *VIT)
    for device in ("gpu", "cuda:99"):
        with pytest.raises(UserError, match=rf"^device {device}: is not to be had \(.+\); take auto, cpu or cuda$"):
            load(tmp_path / "w.pth", device=device)


def test_every_image_by_its_own_mean(tmp_path: Path) -> None:
    network = save_random(tmp_path / "w.pth", *VIT[:4], "--image_in")
    dark = STREET // 4
    mean, std = (dark / 255).mean((0, 1)), (dark / 255).std((0, 1), ddof=1) + 1e-5
    assert_labels(load(tmp_path / "w.pth", device="cpu").segment(dark), expected(network, dark, [*mean], [*std]))


@pytest.mark.parametrize(("method", "branch"), [("diia-no-edge", "layout"), ("diia-no-layout", "edge")])
def test_one_branch_of_two(method: str, branch: str, tmp_path: Path) -> None:
    save_random(tmp_path / "w.pth", *DIIA[:2], "--method", method, "--wt_layer", "0", "0", "0", "0", "0", "0", "0")
    model = load(tmp_path / "w.pth", device="cpu")
    (maps,) = model.maps([STREET], [branch, "labels"])
    assert maps[branch].shape == maps["labels"].shape == STREET.shape[:2] and model.map_names[3:] == (branch,)
    with pytest.raises(UserError, match=f"^this model gives labels, probabilities, confidence, {branch}, not edges$"):
        model.maps([STREET], ["edges"])


def test_diias_maps_come_from_the_same_pass(tmp_path: Path) -> None:
    network = save_random(tmp_path / "w.pth", *DIIA)
    model = load(tmp_path / "w.pth", device="cpu")
    assert model.map_names[3:] == ("edge", "layout")
    (maps,) = model.maps([STREET], model.map_names)
    np.testing.assert_array_equal(maps["labels"], model.segment(STREET))
    with torch.no_grad():
        output = network(model.normalise(torch.tensor(STREET.transpose(2, 0, 1)[None])))
    assert output.edge is not None and output.layout is not None
    np.testing.assert_allclose(maps["edge"], output.edge[0, 0].numpy(), rtol=1e-4, atol=1e-3)
    assert (maps["layout"] != output.layout[0].numpy()).mean() < 0.001
    assert maps["layout"].dtype == np.uint8 and 255 in maps["layout"] and maps["layout"].min() < 19


@pytest.mark.parametrize("flags", [(*DIIA[:2], "--method", "base", "--tune", "lora", "--lora_rank", "2"), DIIA])
def test_half_precision_and_lora(tmp_path: Path, flags: tuple[str, ...]) -> None:
    save_random(tmp_path / "w.pth", *flags)
    whole, half = (
        load(tmp_path / "w.pth", device="cpu", amp=amp).segment(STREET, probabilities=True) for amp in ("off", "bf16")
    )
    assert half.dtype == np.float32 and not np.array_equal(whole, half)
    np.testing.assert_allclose(whole, half, atol=0.2)


def test_views_are_averaged_as_in_the_evaluation(tmp_path: Path) -> None:
    network = save_random(tmp_path / "w.pth", *VIT)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    straight, mirrored = expected(network, STREET, mean, std), expected(network, STREET[:, ::-1], mean, std)[..., ::-1]
    softmax = [np.exp(logits) / np.exp(logits).sum(0) for logits in (straight, mirrored)]
    flipped = load(tmp_path / "w.pth", device="cpu", flip=True)
    np.testing.assert_allclose(flipped.segment(STREET, probabilities=True), (softmax[0] + softmax[1]) / 2, atol=1e-4)
    plain = load(tmp_path / "w.pth", device="cpu", flip=False)
    np.testing.assert_allclose(plain.segment(STREET, probabilities=True), softmax[0], atol=1e-4)
    windows = load(tmp_path / "w.pth", device="cpu", eval_protocol="sliding", window=[32, 32], stride=(16, 16))
    assert not np.array_equal(windows.segment(STREET), plain.segment(STREET))
    save_random(tmp_path / "diia.pth", *DIIA)
    model = load(tmp_path / "diia.pth", device="cpu", flip=True)
    (maps,) = model.maps([STREET], ["labels", "edge"])
    np.testing.assert_array_equal(maps["labels"], model.segment(STREET))
    with pytest.raises(UserError, match="--eval_protocol robustnet: is a crop of Mapillary"):
        load(tmp_path / "w.pth", eval_protocol="robustnet")


def test_published_weights_take_flags_as_keywords(test_data: Path, tmp_path: Path) -> None:
    published = tmp_path / "published.pth"
    flags = reference.published(test_data, "rn/mobile_isw", published)
    assert (flags[0], flags[2]) == ("--arch", "--wt_layer")
    model = load(published, device="cpu", arch=flags[1], wt_layer=[*map(int, flags[3:])])
    wanted, _, _ = valid.load_network(
        config.parse(["--snapshot", str(published), *flags], program="valid"), checkpoint.read(published)
    )
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's
    logits = expected(wanted.eval(), STREET, mean, std)
    assert_labels(model.segment(STREET), logits)
    for keywords, message in (
        ({"wt_layers": [0]}, "there is no flag --wt_layers; did you mean '--wt_layer'"),
        ({}, "published.pth: has the plain head and no config; give --method or --wt_layer"),
        ({"wt_layer": (0, 0, 2, 2, 2, 0, 0), "backbone": "resnet18"}, "published.pth: does not fit what --arch"),
    ):
        with pytest.raises(UserError, match=message):
            load(published, device="cpu", **keywords)


@pytest.mark.parametrize("image", [STREET / 255, STREET[..., 0], STREET[None], None, 3])
def test_what_is_no_image_is_told(tmp_path: Path, image: object) -> None:
    save_random(tmp_path / "w.pth", *VIT)
    with pytest.raises(UserError, match=r"an image is a path or an array \(H, W, 3\) uint8 RGB, not"):
        load(tmp_path / "w.pth", device="cpu").segment(image)  # type: ignore[call-overload]


def test_weights_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    for path, message in (
        (tmp_path / "none", "none: there is no such weight file"),
        (tmp_path, "a folder without config.json and model.safetensors is none of weights; give a weight file, or"),
        (tmp_path / "text.pth", "not a readable weight file"),
    ):
        with pytest.raises(UserError, match=message):
            load(path)


@pytest.mark.parametrize("method", ["isw", "diia"])
def test_an_image_too_small_for_instance_norms_is_one_sentence(method: str, tmp_path: Path) -> None:
    save_random(tmp_path / "w.pth", "--backbone", "mobilenet_v2", "--method", method)
    model = load(tmp_path / "w.pth", device="cpu")
    names = [["labels"], *([["edge"]] if method == "diia" else [])]
    for wanted in names:
        with pytest.raises(UserError, match=r"^8x4 pixels are too few for this network, whose strides leave one"):
            model.maps([STREET[:4, :8]], wanted)
    with pytest.raises(UserError, match=r"^5x3 pixels .* \(--scales, --window\)"):
        load(tmp_path / "w.pth", device="cpu", scales=[0.0625]).segment(STREET)
    assert model.segment(STREET[:33, :33]).shape == (33, 33)
