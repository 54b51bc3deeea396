"""Contact sheets: what they show is what the training set delivers; drawn on small domains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

import config
from datasets.domains import load_domains
from datasets.labels import CLASS_NAMES, PALETTE
from datasets.sampling import Pick, sample_rng
from datasets.segmentation import TrainingSet, read_pair
from datasets.splits import Split, find_pairs
from scripts import browse_data as browse
from scripts.browse_data import COLUMNS, CROP, FRAME, WIDTH, Pipeline, build_pipeline, frame_cells
from tests.street_data import blocks, paint, write_domain
from transforms import JITTER_STRENGTHS, build_appearance
from transforms.appearance import AppearanceParams, edge_target
from transforms.geometry import Geometry, make_view
from utils.errors import UserError

RECIPE = ("AUGMENT.COLOR_AUG=0.5", "AUGMENT.GBLUR=true")


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("camvid")
    write_domain(root, "camvid", train=9)
    return root


def make_pipeline(cfg: Any, *, tile: int = 16) -> Pipeline:
    return build_pipeline(cfg, tile=tile)


def parse(*opts: str) -> Any:
    return config.parse(["--opts", "AUGMENT.CROP_SIZE=32", *opts], program="train")


@pytest.mark.parametrize(
    "more", [(), ("AUGMENT.RROTATE=30",), ("AUGMENT.CROP_SIZE=100",), ("AUGMENT.CROP_NOPAD=true",)]
)
def test_a_frame_is_delivered_as_the_training_set_delivers_it(camvid: Path, more: tuple[str, ...]) -> None:
    cfg = parse(f"DATASET.CAMVID_DIR={camvid}", *RECIPE, *more)
    domain, pipeline = load_domains(cfg)["camvid"], make_pipeline(cfg)
    pairs = find_pairs(domain, "train")
    training = TrainingSet(
        [Split(domain, "train", tuple(pairs))],
        geometry=pipeline.geometry,
        sampler=pipeline.sampler,
        seed=cfg.RUN.SEED,
    )
    mirrored = set()
    for item, pair in enumerate(pairs):
        image, label = (np.asarray(part) for part in read_pair(pair, encoding=domain.encoding))
        found = pipeline.focus(label, item=item)
        assert found is not None
        start = make_view(image, label, focus=found[1])
        got = pipeline.deliver(start, item=item)
        sample = training[Pick(item, item, found[1])]
        np.testing.assert_array_equal(got.view.image, sample.image.permute(1, 2, 0))
        np.testing.assert_array_equal(got.view.label, sample.label)
        assert all(map(torch.equal, got.params, sample.params))
        assert 0.5 <= got.shown[0] / label.shape[1] <= 2
        if not cfg.AUGMENT.RROTATE:
            unflipped = Geometry(pipeline.geometry.steps[:-1])(start, sample_rng(cfg.RUN.SEED, item))
            shown = unflipped.label
            np.testing.assert_array_equal(sample.label, shown[:, ::-1] if got.mirrored else shown)
        mirrored.add(got.mirrored)
        cells = frame_cells(pair.name, image, label, item=item, pipeline=pipeline)
        assert cells[1].lines == (f"focus: {CLASS_NAMES[found[0]]}",)
        assert cells[2].lines[0].endswith(f": {got.shown[0]}x{got.shown[1]}")
        assert cells[2].lines[1].endswith("mirrored") == got.mirrored
        assert cells[3].lines[0] == f"jitter {'on' if sample.params.jitter else 'off'}"
    assert mirrored == {True, False}


@pytest.mark.parametrize(
    ("opts", "strengths"),
    [
        ((), "diia"),
        (("NETWORK.METHOD=isw",), "robustnet"),
        (("NETWORK.METHOD=base",), "robustnet"),
        (("NETWORK.METHOD=isw", "AUGMENT.JITTER=diia"), "diia"),
        (("AUGMENT.JITTER=robustnet",), "robustnet"),
    ],
)
def test_the_jitter_is_that_of_the_runs_method(opts: tuple[str, ...], strengths: str) -> None:
    assert build_pipeline(parse(*opts), tile=0).sampler.strengths == JITTER_STRENGTHS[strengths]


@pytest.mark.parametrize("per_image", ["true", "false"])
def test_the_network_sees_the_normalised_form_of_what_is_drawn(per_image: str) -> None:
    cfg = parse(*RECIPE, f"AUGMENT.IMAGE_IN={per_image}")
    pipeline, image = make_pipeline(cfg), paint(blocks(1, (32, 32)))
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()
    on = []
    for item in range(6):
        params = pipeline.sampler(np.random.default_rng(item))
        shown = torch.from_numpy(pipeline.seen(image, params).copy()).permute(2, 0, 1)[None]
        received = build_appearance(cfg)(batch, default_collate([params]))
        unrounded = build_appearance(cfg).normalisation(shown)
        assert (received - unrounded).abs().max() < 0.2
        on.append(bool(params.jitter))
    assert True in on and False in on
    untouched = AppearanceParams(*map(torch.zeros_like, params))
    np.testing.assert_array_equal(pipeline.seen(image, untouched), image)


def test_the_focus_is_on_its_class_and_every_class_gets_its_turn() -> None:
    pipeline, label = make_pipeline(parse()), blocks(3, (64, 64), classes=[0, 5, 13])
    label[:2] = 255
    seen = set()
    for item in range(40):
        found = pipeline.focus(label, item=item)
        assert found is not None and label[found[1][1], found[1][0]] == found[0]
        seen.add(found[0])
    assert seen == {0, 5, 13}
    assert pipeline.focus(np.full((64, 64), 255, np.uint8), item=0) is None
    assert make_pipeline(parse(), tile=0).focus(label, item=0) is None


@pytest.mark.parametrize(
    ("option", "kind", "field"), [("GBLUR", "Gaussian", "sigma"), ("BBLUR", "bilateral", "bilateral")]
)
def test_the_blur_is_told(option: str, kind: str, field: str) -> None:
    pipeline, label = make_pipeline(parse(f"AUGMENT.{option}=true")), blocks(3, (64, 64))
    cells = frame_cells("", paint(label), label, item=0, pipeline=pipeline)
    sigma = getattr(pipeline.deliver(make_view(paint(label), label, focus=None), item=0).params, field)
    assert cells[3].lines[1] == f"{kind} blur, sigma {sigma:.2f}" and sigma > 0


def test_a_row_shows_frame_labels_crop_cross_and_edges() -> None:
    label = np.full((100, 200), 13, np.uint8)
    label[40:60, 90:110] = 255
    image = np.full((100, 200, 3), 100, np.uint8)
    image[:, 100:] = 200
    pipeline = make_pipeline(parse("AUGMENT.CROP_SIZE=300", "AUGMENT.SCALE_MIN=1", "AUGMENT.SCALE_MAX=1"), tile=64)
    cells = frame_cells("name.png", image, label, item=0, pipeline=pipeline)
    boxes = [FRAME, FRAME, *[CROP] * 4]
    for cell, (width, height) in zip(cells, boxes, strict=True):
        assert cell.picture.shape[1] == width or cell.picture.shape[0] == height
    assert cells[0].lines == ("name.png", "200x100") and cells[3].lines == ("jitter off", "no blur")
    mixed = (0.5 * 200 + 0.5 * PALETTE[13]).round()
    assert (cells[1].picture[5, -5] == mixed).all()
    assert (cells[1].picture == 255).all(axis=2).any() and (cells[2].picture == 255).all(axis=2).any()
    assert not (frame_cells("", image, label, item=0, pipeline=make_pipeline(parse(), tile=0))[1].picture == 255).any()
    assert set(np.unique(cells[2].picture[:90])) == {0, 70}, "the border of a small frame is ignored: black, hatched"
    assert (cells[4].picture == PALETTE[13]).all(axis=2).mean() == pytest.approx(19600 / 90000, abs=0.01)
    assert cells[4].lines == ("1 class", f"{1 - 19600 / 90000:.1%} ignored")
    edges = edge_target(torch.from_numpy(cells[3].picture.copy()).permute(2, 0, 1)[None])[0].numpy()
    np.testing.assert_array_equal(cells[5].picture[..., 0], edges)
    assert edges.max() > 200


def test_a_domain_becomes_one_sheet_with_the_legend_of_its_classes(
    camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heights = []
    for count in (2, 3, 50):
        out = tmp_path / f"{count}.png"
        arguments = ["camvid", "--count", str(count), "--out", str(out)]
        browse.main([*arguments, "--opts", f"DATASET.CAMVID_DIR={camvid}", "AUGMENT.CROP_SIZE=64"])
        assert str(out) in capsys.readouterr().out
        sheet = np.asarray(Image.open(out))
        assert sheet.shape[1] == WIDTH <= 2000
        heights.append(sheet.shape[0])
        legend = {tuple(map(int, colour)) for colour in sheet[-40:].reshape(-1, 3)}
        shown = {index for index in range(19) if tuple(map(int, PALETTE[index])) in legend}
        assert shown <= {0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 13} and len(shown) > 5
    row = heights[1] - heights[0]
    assert 300 < row < 360 and heights[2] == heights[0] + 7 * row, "50 of 9 frames are 9"


def test_frames_are_spread_over_the_split(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, names = parse(f"DATASET.CAMVID_DIR={camvid}"), []
    cells = frame_cells

    def watched(name: str, *args: Any, **kwargs: Any) -> Any:
        names.append((name, kwargs["item"]))
        return cells(name, *args, **kwargs)

    monkeypatch.setattr(browse, "frame_cells", watched)
    browse.browse(cfg, load_domains(cfg)["camvid"], split="train", count=3)
    assert names == [("00000.png", 0), ("00003.png", 3), ("00006.png", 6)]


def test_long_names_lose_their_start() -> None:
    cells = [browse.Cell(np.full((4, width, 3), 90, np.uint8), ("x" * 500,)) for width, _ in COLUMNS.values()]
    row = np.asarray(browse._render_row(cells))
    left = browse.MARGIN
    for width, _ in COLUMNS.values():
        gap = row[:, left + width : left + width + browse.MARGIN - 1]
        assert (gap == 255).all(), "text runs into the next column"
        assert (row[6:, left : left + width] < 128).any()
        left += width + browse.MARGIN


def test_the_recipe_is_the_published_one_unless_something_else_is_said(
    camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def look(cfg: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        seen.append(cfg)
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(browse, "browse", look)
    out = ["camvid", "--out", str(tmp_path)]
    browse.main(out)
    browse.main([*out, "--opts", "AUGMENT.GBLUR=false", "DATASET.CLASS_UNIFORM_PCT=0"])
    (tmp_path / "run.yaml").write_text("AUGMENT: {CROP_SIZE: 99}\n")
    browse.main([*out, "--config", str(tmp_path / "run.yaml")])
    found = [(cfg.AUGMENT.COLOR_AUG, cfg.AUGMENT.GBLUR, cfg.DATASET.CLASS_UNIFORM_PCT) for cfg in seen]
    assert found == [(0.5, True, 0.5), (0.5, False, 0.0), (0.0, False, 0.0)]
    assert seen[2].AUGMENT.CROP_SIZE == 99
    assert (tmp_path / "camvid.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["camvid", "--count", "0"], "--count 0"),
        (["camvid", "gtav", "--out", "a.png"], "one file cannot hold 2 sheets"),
        (["camvit"], "unknown data set 'camvit'.*did you mean 'camvid'"),
        ([], "name one or several"),
        (["camvid", "--split", "rain"], "has no split 'rain'"),
        (["camvid", "--out", "FILE/a.png"], "the folder cannot be made"),
        (["camvid", "--out", "FOLDER.png"], "the picture cannot be written"),
        (["camvid", "--opts", "AUGMENT.GLUR=true"], "AUGMENT.GLUR"),
    ],
)
def test_mistakes_are_told(
    camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    (tmp_path / "FOLDER.png").mkdir()
    with pytest.raises(UserError, match=sentence):
        browse.main([*arguments, "--opts", f"DATASET.CAMVID_DIR={camvid}", "AUGMENT.CROP_SIZE=64"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FILE", "FOLDER.png"]
