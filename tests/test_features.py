"""Pictures of a network's inside: the right numbers, in files and on TensorBoard, and never a change of the run."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import config
import train
import valid
from evaluation import features
from evaluation.features import FeaturePlotter, class_centres
from loss import collect_masks
from loss.whitening import Whitening, covariance
from network import DEFAULT_ARCH, assemble, resolve_architecture, resolve_method
from network.diia import TripleAggregation
from tests import reference
from tests.runs import build_run, launch, read_weights, run_folder, train_arguments
from transforms import build_fixed_augmentation, build_normalisation
from transforms.appearance import edge_target
from utils import pictures
from utils.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
TINY = ("--test_mode", "--max_iter", "2", "--val_interval", "1")
MERGED = np.arange(256, dtype=np.uint8)


def plotter(method: str, *more: str, pixels: tuple[int, ...] = (), fp16: bool = False) -> FeaturePlotter:
    """A drawer of a small network with open gates."""
    torch.manual_seed(0)
    network = reference.small_network(method)
    kind, whitening = network.method.whitening, None
    if kind is not None:
        whitening = Whitening(network.style_channels, kind=kind)
    if network.attends:
        torch.nn.init.constant_(network.aggregate.gamma, 0.5)
    return FeaturePlotter(
        network,
        whitening=whitening,
        augment=build_fixed_augmentation(config.parse(more, program="train")),
        device=torch.device("cpu"),
        autocast_dtype=torch.bfloat16 if fp16 else None,
        pixels=pixels,
    )


def label(height: int = 48, width: int = 64) -> np.ndarray:
    """Road below, sky above, a strip that is void."""
    truth = np.zeros((height, width), np.uint8)
    truth[: height // 3], truth[height // 3 : height // 2] = 10, 255
    return truth


def test_a_row_of_the_attention_is_that_of_the_full_softmax() -> None:
    torch.manual_seed(0)
    tiam = TripleAggregation(8, feature_channels=8)
    layout, edge = 100 * torch.randn(2, 8, 3, 4), 10 * torch.randn(2, 8, 3, 4)
    query, key = tiam.query(layout).flatten(2), tiam.key(edge).flatten(2)
    full = (query.transpose(1, 2) @ key).softmax(2)  # (B, hw, hw)
    assert full.max() > 0.5
    found = tiam.attention_of(torch.tensor([5, 0, 11]), layout, edge)
    torch.testing.assert_close(found, full[:, [5, 0, 11]].view(2, 3, 3, 4))
    torch.testing.assert_close(found.sum((2, 3)), torch.ones(2, 3))
    alone = tiam.attention_of(torch.tensor([1]), None, edge)
    torch.testing.assert_close(alone, tiam.attention_of(torch.tensor([1]), edge, edge))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tiam.attention_of(torch.tensor([1]), layout, edge).dtype == torch.float32


def test_pixels_ask_for_the_cells_whose_corners_coincide() -> None:
    network = reference.small_network("diia").eval()
    images = torch.randn(1, 3, 48, 64)
    asked: list[list[int]] = []
    network.aggregate.attention_of = lambda cells, *_: asked.append(cells.tolist())
    with torch.no_grad():
        network.attention_of(images, [(0, 0), (63, 0), (0, 47), (63, 47), (21, 23)])  # cells 21, 15.7 pixels apart
    assert asked == [[0, 3, 8, 11, 5]]


@pytest.mark.parametrize("normalisation", [(), ("--image_in",)])
def test_what_is_drawn_is_what_the_network_and_the_losses_see(normalisation: tuple[str, ...]) -> None:
    plot = plotter("diia", *normalisation)
    found = plot.activations(IMAGE, [(10, 40), (50, 5)])
    assert plot.network.training, "the mode of before"
    cfg = config.parse(normalisation, program="train")
    inputs = build_normalisation(cfg)(torch.from_numpy(IMAGE.transpose(2, 0, 1).copy())[None])
    network: Any = plot.network.eval()
    with torch.no_grad():
        output = network(inputs)
        attention = network.attention_of(inputs, [(10, 40), (50, 5)])[0]
        copies = build_normalisation(cfg)(torch.from_numpy(found.augmented.transpose(2, 0, 1).copy())[None])
        pairs = zip(network.style_features(inputs), network.style_features(copies), found.covariances, strict=True)
        for own, copy, matrices in pairs:
            np.testing.assert_allclose(matrices[1], covariance(own)[0], atol=1e-5)
            np.testing.assert_allclose(matrices[0], covariance(copy)[0], atol=0.02)  # the copy's colours are rounded
            assert np.abs(matrices[0] - matrices[1]).max() > 0.1
    assert found.edge is not None and found.edge_target is not None
    assert found.layout is not None and found.attention.keys() == {"DIIA"}
    np.testing.assert_allclose(found.edge, output.edge[0, 0], atol=1e-5)
    assert np.array_equal(found.edge_target, edge_target(torch.from_numpy(IMAGE.transpose(2, 0, 1).copy())[None])[0])
    assert np.array_equal(found.layout, output.layout[0])
    np.testing.assert_allclose(found.attention["DIIA"], attention, atol=1e-6)
    np.testing.assert_allclose(found.attention["DIIA"].sum((1, 2)), 1, atol=1e-5)


def test_the_copy_does_not_depend_on_the_normalisation() -> None:
    image = torch.from_numpy(IMAGE.transpose(2, 0, 1).copy())
    plain, own = (build_fixed_augmentation(config.parse(line, program="train"))(image) for line in ([], ["--image_in"]))
    assert torch.equal(plain[0], own[0]) and not torch.equal(plain[0], image)
    assert plain[1].shape == (2, 3, 48, 64) and not torch.allclose(plain[1], own[1])


@pytest.mark.parametrize(
    ("method", "kinds"),
    [
        ("isw", {"covariances"}),
        ("iw", {"covariances"}),
        ("diia", {"covariances", "branches", "attention"}),
        ("diia-no-edge", {"covariances", "branches", "attention"}),
        ("diia-no-layout", {"covariances", "branches", "attention"}),
        ("diia-no-aggregation", {"covariances", "branches"}),
        ("diia-no-whitening", {"branches", "attention"}),
        ("diia-coarse", {"covariances"}),
    ],
)
def test_each_method_plots_what_it_has(method: str, kinds: set[str]) -> None:
    drawn = plotter(method)(IMAGE, label(), label(), merged=MERGED)
    assert set(drawn) == kinds
    for picture in drawn.values():
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("method", ["base", "ibn", "sw"])
def test_methods_with_nothing_inside_are_refused(method: str) -> None:
    with pytest.raises(UserError, match=f"--visualize_feature: {method} has no whitening.*--pictures"):
        plotter(method)


@pytest.mark.parametrize("method", ["linear", "diia-no-whitening", "diia-no-aggregation"])
def test_the_attention_of_a_vit_stands_beside_that_of_the_head(method: str) -> None:
    torch.manual_seed(0)
    arch = resolve_architecture(DEFAULT_ARCH, backbone="timm/test_vit")
    network = assemble(arch, method=resolve_method(method, [0] * 7))
    plot = replace(plotter("diia"), network=network, whitening=None)
    pixels = [(10, 40), (50, 5), (63, 47)]
    found = plot.activations(IMAGE, pixels).attention
    assert list(found) == (["DIIA"] if method == "diia-no-whitening" else []) + ["backbone's last block"]
    model: Any = network.backbone.model.eval().model  # type: ignore[union-attr]
    inputs = build_normalisation(config.parse([], program="train"))(
        torch.from_numpy(IMAGE.transpose(2, 0, 1).copy())[None]
    )
    with torch.no_grad():
        tokens = model._pos_embed(model.patch_embed(inputs))
        for block in model.blocks[:-1]:
            tokens = block(tokens)
        last, (_, count, width) = model.blocks[-1], tokens.shape
        query, key, _ = (
            last.attn.qkv(last.norm1(tokens)).view(1, count, 3, last.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        )
        weights = (query @ key.mT * (width / last.attn.num_heads) ** -0.5).softmax(-1).mean(1)[0, 1:, 1:]
    rows = weights[[4 * (y // 16) + x // 16 for x, y in pixels]]
    wanted = (rows / rows.sum(1, keepdim=True)).view(3, 3, 4)
    np.testing.assert_allclose(found["backbone's last block"], wanted, atol=1e-5)
    assert model.blocks[-1].attn.fused_attn, "as before"
    assert {"attention"} <= set(plot(IMAGE, label(), label(), merged=MERGED))


def test_pixels_are_refused_without_attention() -> None:
    with pytest.raises(UserError, match="--attention_pixels: isw has no attention"):
        plotter("isw", pixels=(1, 2))


@pytest.mark.parametrize("size", [(96, 32), (33, 129), (32, 32)], ids=str)
def test_images_of_any_shape_in_mixed_precision(size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    nothing = np.full(size, 255, np.uint8)
    drawn = plotter("diia", fp16=True)(image, nothing, nothing, merged=MERGED)
    assert len(drawn) == 3 and all(max(picture.shape) < 2000 for picture in drawn.values())


def test_large_images_are_thinned_and_stay_in_place() -> None:
    _, (first, second) = pictures.figure_panels(2, size=(1600, 3200), columns=2)
    image = np.zeros((1600, 3200, 3), np.uint8)
    pictures.show(first, "image", image)
    pictures.show_heat(second, image, np.full((2, 4), 1 / 8), query=(3100, 1500))
    for panel in (first, second):
        assert panel.images[0].get_array().shape[:2] == (534, 1067)
    assert list(second.images[0].get_extent()) == [-0.5, 3199.5, 1599.5, -0.5]
    assert pictures.thinned(image[:1500, :1500]).shape == (1500, 1500, 3)


def test_default_pixels_lie_deep_in_the_largest_classes() -> None:
    assert class_centres(label(60, 90)) == {"road (14, 44)": (14, 44), "sky (9, 9)": (9, 9)}
    assert class_centres(np.full((6, 8), 255)) == {"(4, 3)": (4, 3)}
    many = np.repeat(np.arange(19), 10).reshape(19, 10)
    assert len(class_centres(many)) == features.NUM_QUERIES


def test_chosen_pixels_outside_of_an_image_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    plot = plotter("diia", pixels=(3, 4, 63, 47, 64, 0))
    with caplog.at_level(logging.WARNING):
        assert list(plot._queries(label()).values()) == [(3, 4), (63, 47)]
    assert "--attention_pixels: not all lie in an image of 64x48" in caplog.text
    assert "attention" not in plotter("diia", pixels=(64, 48))(IMAGE, label(), label(), merged=MERGED)


def test_panels_show_the_matrices_masks_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, Any] = {}

    def keep(panel: Any, title: str, array: np.ndarray, **scale: Any) -> None:
        shown[title] = np.array(array)
        pictures.show(panel, title, array, **scale)

    monkeypatch.setattr(features, "show", keep)
    plot = plotter("isw")
    assert plot.whitening is not None
    masks = [torch.rand(width, width).triu(1) > 0.9 for width in plot.network.style_channels]
    plot.whitening.intersect_masks(masks)
    variances = [torch.rand(width, width, dtype=torch.float64).triu(1) for width in plot.network.style_channels]
    plot(IMAGE, label(), label(), merged=MERGED)
    plot.plot_masks(variances)
    matrices = plot.activations(IMAGE).covariances[0]
    site = plot.network.style_names[0]
    assert np.array_equal(shown[f"{site}: covariances of the image"], matrices[1])
    assert np.array_equal(shown[f"{site}: augmented minus image"], matrices[0] - matrices[1])
    count = plot.whitening.num_sensitive()[0]
    assert np.array_equal(shown[f"{site}: mask, {count} of 2016 sensitive"], masks[0])
    drawn = np.nan_to_num(shown[f"{site}: variance of the covariances"])
    np.testing.assert_allclose(drawn, variances[0], atol=0.02)  # the lowest percent is shown alike


def test_the_collected_variances_are_the_mean_over_the_passes() -> None:
    network = reference.small_network("isw")
    settings: dict[str, Any] = {"clusters": 3, "device": torch.device("cpu")}
    passes = [[torch.randn(2, 3, 32, 32)], [torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)]]
    whitening = Whitening(network.style_channels, kind="isw")
    first, second, both = (
        collect_masks(whitening, network, part, **settings) for part in (passes[:1], passes[1:], passes)
    )
    for one, other, mean in zip(first, second, both, strict=True):
        assert one.max() > 0 and not torch.equal(one, other)
        torch.testing.assert_close(mean, (one + other) / 2)


def read_events(folder: Path) -> set[str]:
    """Return the tags of the pictures in a run's TensorBoard file."""
    from tensorboardX.proto.event_pb2 import Event

    tags = set()
    for file in (folder / "tb").glob("events*"):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            tags |= {value.tag for value in event.summary.value if value.HasField("image")}
            data = data[16 + length :]
    return tags


@pytest.fixture(scope="module")
def runs(small_camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Run folders of --test_mode with and without the flag."""
    folders = {}
    for seen in (True, False):
        out = tmp_path_factory.mktemp(f"seen{seen}")
        flags = ("--visualize_feature",) if seen else ()
        train.main(train_arguments(small_camvid, out, *TINY, "--amp", "bf16", *flags))
        folders[seen] = run_folder(out)
    return folders


def test_a_run_leaves_pictures_and_tags(runs: dict[bool, Path]) -> None:
    files = {path.name for path in (runs[True] / "pictures" / "features").iterdir()}
    assert files == {"masks.png", *(f"camvid_1_{kind}.png" for kind in ("covariances", "branches", "attention"))}
    assert Image.open(runs[True] / "pictures" / "features" / "masks.png").size[0] > 500
    tags = {"whitening/masks", "camvid_1/covariances", "camvid_1/branches", "camvid_1/attention"}
    assert read_events(runs[True]) == tags | {"camvid/predictions"}
    assert read_events(runs[False]) == {"camvid/predictions"}
    assert not (runs[False] / "pictures" / "features").exists()


def test_what_is_drawn_is_of_the_weights_that_are_scored(small_camvid: Path, tmp_path: Path) -> None:
    arguments = train_arguments(small_camvid, tmp_path, *TINY, "--visualize_feature", "--ema_decay", "0.5")
    run = build_run(arguments)
    assert run.average is not None and run.evaluator.plotter is not None
    assert run.evaluator.plotter.network is run.average


def test_drawing_changes_nothing_in_a_run(runs: dict[bool, Path]) -> None:
    with_pictures, without = (read_weights(runs[seen] / "last.pth") for seen in (True, False))
    for part in ("network", "criterion"):
        for name, value in without[part].items():
            assert torch.equal(value, with_pictures[part][name]), name


def test_valid_plots_with_the_masks_of_the_file(runs: dict[bool, Path], small_camvid: Path, tmp_path: Path) -> None:
    weights = str(runs[False] / "last.pth")
    arguments = ["--snapshot", weights, "--val_dataset", "camvid", "--out", str(tmp_path), "--device", "cpu"]
    arguments += ["--num_workers", "0", "--pictures", "1", "--visualize_feature", "--attention_pixels", "5", "6"]
    valid.main([*arguments, "--val_limit", "1", "--opts", f"DATASET.CAMVID_DIR={small_camvid}"])
    names = {f"camvid_1_{kind}.png" for kind in ("covariances", "branches", "attention")}
    assert {path.name for path in (tmp_path / "features").iterdir()} == names
    cfg, content = config.parse(arguments, program="valid"), read_weights(Path(weights))
    network, saved, _ = valid.load_network(cfg, content)
    whitening = valid.load_whitening(saved, network, content, path=weights)
    masks = [value for name, value in content["criterion"].items() if "mask" in name]
    assert whitening is not None and whitening.has_masks and list(cfg.EVAL.ATTENTION_PIXELS) == [5, 6]
    for found, mask in zip(whitening.masks, masks, strict=False):
        assert torch.equal(found, mask)


def test_a_run_with_nothing_to_show_does_not_start(small_camvid: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--visualize_feature: base has no whitening"):
        train.main(train_arguments(small_camvid, tmp_path, "--method", "base", "--visualize_feature"))
    assert not (tmp_path / "d").exists()


def test_the_first_of_two_processes_plots(small_camvid: Path, tmp_path: Path) -> None:
    launch("train.py", train_arguments(small_camvid, tmp_path, *TINY, "--visualize_feature"), processes=2)
    assert len(list((run_folder(tmp_path) / "pictures" / "features").iterdir())) == 4
