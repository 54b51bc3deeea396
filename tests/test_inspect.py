"""Class statistics of small domains: against a slow count, against the order and the crops of a real training."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import config
from datasets.domains import load_domains
from datasets.labels import CLASS_NAMES, PALETTE
from datasets.loaders import build_training_loader
from datasets.sampling import EpochPlan, Source, class_centroids
from datasets.splits import Splits, find_pairs
from scripts import inspect_data as inspect
from tests.street_data import ROOTS, blocks, write_domain, write_pair
from utils.errors import UserError

COUNT, ROOT = 45, Path(__file__).resolve().parents[1]
RARE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 labels of a domain whose class 16 is in two of them and whose classes 17 and 18 do not occur."""
    root = tmp_path_factory.mktemp("street")
    for number in range(COUNT):
        write_pair(root, "bdd100k", "train", number, label_of(number))
    return root


def label_of(number: int) -> np.ndarray:
    return blocks(number, (48, 80), classes=[*range(9), *([RARE] if number in (3, 11) else [])], block=4)


def opts(folder: Path, cache: Path, *more: str) -> list[str]:
    fixed = (f"DATASET.BDD_DIR={folder}", f"DATASET.CENTROID_CACHE={cache}", "DATASET.CLASS_UNIFORM_TILE=32")
    return ["--opts", *fixed, "DATASET.NUM_WORKERS=0", "AUGMENT.CROP_SIZE=32", *more]


def inspected(folder: Path, cache: Path, *, share: float = 0.9, samples: int = 60) -> tuple[Any, inspect.Inspection]:
    arguments = ["--dataset", "bdd100k", "--bs_mult", "1", *opts(folder, cache, f"DATASET.CLASS_UNIFORM_PCT={share}")]
    cfg = config.parse(arguments, program="train")
    domain = load_domains(cfg)["bdd100k"]
    pairs = find_pairs(domain, "train")
    return cfg, inspect.inspect_domain(cfg, domain, pairs, split="train", share=share, samples=samples)


def test_pixels_images_and_centroids_are_counted(folder: Path, tmp_path: Path) -> None:
    columns = inspected(folder, tmp_path)[1].columns
    labels = [label_of(number) for number in range(COUNT)]
    for row, index in enumerate([*range(19), 255]):
        pixels = [int((label == index).sum()) for label in labels]
        assert columns["pixel_share"][row] == pytest.approx(sum(pixels) / (COUNT * 48 * 80))
        assert columns["images"][row] == sum(number > 0 for number in pixels)
        assert columns["image_share"][row] == pytest.approx(columns["images"][row] / COUNT)
        found = sum(int((class_centroids(label, tile=32)[:, 0] == index).sum()) for label in labels)
        assert columns["centroids"][row] == found
    assert columns["images"][RARE] == 2 and columns["images"][17] == 0


@pytest.mark.parametrize(("share", "each", "more"), [(0.9, 2, 0), (0.8, 1, 8)])  # 36 = 19 + 17, 8 = 17 * 10 // 19
def test_samples_are_aimed_and_drawn_as_the_plan_of_a_training_does(
    folder: Path, tmp_path: Path, share: float, each: int, more: int
) -> None:
    found = inspected(folder, tmp_path, share=share)[1]
    columns = found.columns
    labels = [label_of(number) for number in range(COUNT)]
    rows = [np.insert(class_centroids(label, tile=32), 0, item, axis=1) for item, label in enumerate(labels)]
    plan = EpochPlan((Source(COUNT, np.concatenate(rows)),), 5, fraction=share)
    orders = [plan.order(epoch) for epoch in range(300)]
    assert columns["aimed"].tolist() == [each] * 9 + [0] * 7 + [each] + [0] * 3
    assert {int((order[:, 1] >= 0).sum()) for order in orders} == {10 * each + more}
    assert f"{10 * each + more} of the 45 samples of an epoch are aimed at a class, {each} at each" in found.sentences()
    assert ("one more at 8 of the 10 classes" in found.sentences()) == (more > 0)
    holds = np.array([[(label == index).any() for index in [*range(19), 255]] for label in labels])
    measured = np.mean([holds[order[:, 0]].mean(axis=0) for order in orders], axis=0)
    np.testing.assert_allclose(columns["sampled_uniform"], measured, atol=0.01)
    assert columns["sampled_uniform"][RARE] > 1.5 * columns["image_share"][RARE]


@pytest.mark.parametrize("kind", ["plain", "uniform"])
def test_the_crops_are_those_that_a_training_gets(folder: Path, tmp_path: Path, kind: str) -> None:
    cfg, found = inspected(folder, tmp_path)
    arguments = opts(folder, tmp_path, f"DATASET.CLASS_UNIFORM_PCT={0.9 if kind == 'uniform' else 0}")
    cfg = config.parse(["--dataset", "bdd100k", "--bs_mult", "1", *arguments], program="train")
    loader = build_training_loader(cfg, Splits(load_domains(cfg)), jitter="diia", rank=0, world_size=1)
    labels = [batch.labels.numpy() for epoch in (0, 1) for batch in loader.epoch(epoch)][:60]
    for row, index in enumerate([*range(19), 255]):
        masks = [label == index for label in labels]
        assert found.columns[f"crops_{kind}"][row] == pytest.approx(np.mean([mask.any() for mask in masks]))
        assert found.columns[f"crop_pixels_{kind}"][row] == pytest.approx(np.mean(masks))


def test_pixel_counts_are_kept_until_a_label_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_domain(tmp_path, "bdd100k", train=3)
    first = inspected(tmp_path, tmp_path / "cache", samples=1)[1].columns["pixel_share"]
    count, titles = inspect.parallel_map, []

    def watched(*args: Any, title: str, **kwargs: Any) -> Any:
        titles.append(title)
        return count(*args, title=title, **kwargs)

    monkeypatch.setattr(inspect, "parallel_map", watched)
    again = inspected(tmp_path, tmp_path / "cache", samples=1)[1].columns["pixel_share"]
    assert "pixels of bdd100k" not in titles
    np.testing.assert_array_equal(first, again)
    write_pair(tmp_path, "bdd100k", "train", 0, np.full((45, 80), 13, np.uint8))
    changed = inspected(tmp_path, tmp_path / "cache", samples=1)[1].columns["pixel_share"]
    assert "pixels of bdd100k" in titles and changed[13] > first[13] + 0.2


def test_a_domain_too_small_for_its_share_says_so(tmp_path: Path) -> None:
    write_domain(tmp_path, "bdd100k", train=3)
    found = inspected(tmp_path, tmp_path / "cache", share=0.3, samples=4)[1]
    assert "changes nothing, because 3 x 0.3 is too small" in found.sentences()
    np.testing.assert_array_equal(found.columns["crops_plain"], found.columns["crops_uniform"])
    np.testing.assert_allclose(found.columns["image_share"], found.columns["sampled_uniform"])


def test_the_bars_carry_the_names_of_their_classes(folder: Path, tmp_path: Path) -> None:
    one = inspected(folder, tmp_path, samples=5)[1]
    turned = {name: np.concatenate((values[:19][::-1], values[19:])) for name, values in one.columns.items()}
    figure = inspect.plot_classes([one, inspect.Inspection("turned", turned, one.how)])
    figure.canvas.draw()
    for panel, columns in ((figure.axes[0], one.columns), (figure.axes[3], turned)):
        names = [text.get_text() for text in panel.get_yticklabels()]
        assert sorted(names) == sorted(CLASS_NAMES)
        widths = [bar.get_width() for bar in panel.patches]
        assert widths == sorted(widths)
        for name, bar in zip(names, panel.patches, strict=True):
            index = CLASS_NAMES.index(name)
            assert bar.get_width() == pytest.approx(100 * columns["pixel_share"][index])
            np.testing.assert_allclose(bar.get_facecolor()[:3], PALETTE[index] / 255)
        assert len([text for text in panel.texts if text.get_text() == "does not occur"]) == 9


def test_the_program_prints_and_writes_one_table_per_domain(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_domain(tmp_path / "city", "cityscapes", train=3)
    more = f"DATASET.{ROOTS['cityscapes']}={tmp_path / 'city'}"
    arguments = ["bdd100k", "cityscapes", "--samples", "6", "--out", str(tmp_path / "out")]
    inspect.main([*arguments, *opts(folder, tmp_path, more)])
    text = capsys.readouterr().out
    assert "0.5 is taken here" in text and "bdd100k/train: 45 images" in text and "cityscapes/train: 3 images" in text
    with (tmp_path / "out" / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [*CLASS_NAMES, "ignored"] * 2
    assert {(row["domain"], row["samples"], row["share"], row["seed"]) for row in rows} == {
        ("bdd100k", "6", "0.5", "304"),
        ("cityscapes", "6", "0.5", "304"),
    }
    assert sum(float(row["pixel_share"]) for row in rows[:20]) == pytest.approx(1)
    assert (tmp_path / "out" / "classes.md").read_text().count("| traffic light |") == 2
    with Image.open(tmp_path / "out" / "classes.png") as picture:
        assert 1000 < picture.width <= 2000


def test_the_share_of_the_configuration_and_of_the_flag_are_taken(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bdd100k", "--samples", "1", "--out", str(tmp_path)]
    inspect.main([*arguments, *opts(folder, tmp_path, "DATASET.CLASS_UNIFORM_PCT=0.8")])
    assert "share 0.8, tiles of 32: 18 of the 45" in (text := capsys.readouterr().out) and "taken here" not in text
    inspect.main([*arguments, "--class_uniform_pct", "1", *opts(folder, tmp_path, "DATASET.CLASS_UNIFORM_PCT=0.8")])
    assert "share 1, tiles of 32: 23 of the 45" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bdd100k", "--samples", "0"], "--samples 0"),
        (["bdd100k", "--class_uniform_pct", "1.5"], "from 0 to 1"),
        (["bdd100k", "--split", "val"], "bdd100k/val: no image matches"),
        (["bdd100k", "--out", "FILE"], "the folder cannot be made"),
        ([], "name one or several data sets"),
    ],
)
def test_mistakes_are_told_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "FILE").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        inspect.main([*arguments, *opts(folder, tmp_path / "cache")])
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_run_as_a_module_it_leaves_pythons_own_inspect_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.inspect_data", "gtaw"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: unknown data set 'gtaw'") and done.stderr.count("\n") == 1
    assert "did you mean 'gtav'" in done.stderr
