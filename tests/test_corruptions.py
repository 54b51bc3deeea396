"""Corrupted images: formulas, seeds, what is refused, and the table of means."""

from __future__ import annotations

import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.domains import load_domains
from datasets.loaders import EvaluationLoader, build_evaluation_loader
from datasets.splits import Splits
from evaluation.report import corruption_table, robustness
from tests.street_data import blocks, make_cfg, save, write_domain, write_pair
from tests.test_report import report
from transforms.corruptions import NAMES, Corruption, parse_corruptions
from utils.errors import UserError, one_line


def image(size: tuple[int, int]) -> np.ndarray:
    """Return a smooth picture with edges, (H, W, 3) uint8."""
    y, x = np.mgrid[: size[0], : size[1]]
    waves = [100 + 60 * np.sin(x / 5) + 40 * ((y // 12 + x // 9 + channel) % 2) for channel in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("severity", "deviation"), enumerate((0.08, 0.12, 0.18, 0.26, 0.38), 1))
def test_gaussian_noise_has_the_published_deviations_and_the_names_seed(severity: int, deviation: float) -> None:
    clean = image((40, 56))
    noise = np.random.RandomState(zlib.crc32(f"gaussian_noise:{severity} val/a.png".encode()))
    expected = np.clip(clean / 255 + noise.normal(size=clean.shape, scale=deviation), 0, 1) * 255
    found = Corruption("gaussian_noise", severity)(clean, name="val/a.png")
    np.testing.assert_array_equal(found, expected.astype(np.uint8))


@pytest.mark.parametrize(("severity", "factor"), enumerate((0.4, 0.3, 0.2, 0.1, 0.05), 1))
def test_contrast_has_the_published_factors(severity: int, factor: float) -> None:
    clean = image((40, 56)).astype(float)
    mean = clean.mean(axis=(0, 1))
    found = Corruption("contrast", severity)(clean.astype(np.uint8), name="a")
    np.testing.assert_allclose(found, mean + factor * (clean - mean), atol=1)


@pytest.mark.parametrize("name", NAMES)
def test_every_corruption_is_seeded_and_grows_with_its_severity(name: str) -> None:
    clean = image((45, 150))
    kept, before = clean.copy(), np.random.get_state()[1].tobytes()  # type: ignore[index,union-attr] # noqa: NPY002
    found = [Corruption(name, severity)(clean, name="a") for severity in (1, 5)]
    again = [Corruption(name, severity)(clean, name="a") for severity in (5, 1)][::-1]
    assert np.random.get_state()[1].tobytes() == before  # type: ignore[index,union-attr] # noqa: NPY002
    np.testing.assert_array_equal(clean, kept)
    np.testing.assert_array_equal(found, again)
    assert all(picture.shape == clean.shape and picture.dtype == np.uint8 for picture in found)
    low, high = (np.square(picture.astype(float) - clean).mean() for picture in found)
    assert 0 < low < high
    sampled = name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert np.array_equal(Corruption(name, 1)(clean, name="b"), found[0]) != sampled


def test_what_corrupt_names() -> None:
    assert [str(row) for row in parse_corruptions(["fog:3", "snow", "fog:3", "snow:5"])] == [
        *("fog:3", "snow:1", "snow:2", "snow:3", "snow:4", "snow:5")
    ]
    assert len(parse_corruptions(["all"])) == 75 and parse_corruptions([]) == ()
    assert {row.name for row in parse_corruptions(["all:2"])} == set(NAMES) and len(parse_corruptions(["all:2"])) == 15


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "rain:2",
            "--corrupt rain:2: unknown corruption 'rain'; there are gaussian_noise, .*jpeg_compression, and all",
        ),
        ("frog", "unknown corruption 'frog'.*did you mean 'fog'"),
        ("fog:0", "--corrupt fog:0: a severity is 1 to 5, not '0'"),
        ("fog:6", "not '6'"),
        ("all:", "not ''"),
        ("fog:3:2", "not '3:2'"),
    ],
)
def test_mistakes_are_one_sentence(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_corruptions([word])


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    assert parse_corruptions([]) == ()
    with pytest.raises(UserError, match=r"--corrupt needs the package imagecorruptions-imaug .*pip install .*\.txt"):
        parse_corruptions(["fog:3"])


# ---------------------------------------------------------------------------------- loaders


def loader(root: Path, *, rank: int = 0, world_size: int = 1, workers: int = 0, look: str = "") -> EvaluationLoader:
    cfg = make_cfg(root, CAMVID_DIR=str(root), NUM_WORKERS=workers)
    corruption = parse_corruptions([look])[0] if look else None
    split = Splits(load_domains(cfg)).open("camvid", "val")
    return build_evaluation_loader(cfg, split, rank=rank, world_size=world_size, corruption=corruption)


@pytest.mark.parametrize("look", ["impulse_noise:2", "glass_blur:4", "fog:3"])
def test_images_are_the_same_with_any_number_of_processes_and_workers(tmp_path: Path, look: str) -> None:
    write_domain(tmp_path, "camvid", val=5)
    clean = {sample.name: sample for sample in loader(tmp_path)}
    whole = {sample.name: sample for sample in loader(tmp_path, look=look)}
    shares = [loader(tmp_path, look=look, rank=rank, world_size=2, workers=rank * 2) for rank in (1, 0)]
    parts = {sample.name: sample for share in shares for sample in share}
    assert len(whole) == 5 and whole.keys() == parts.keys() == clean.keys()
    for name, sample in whole.items():
        assert torch.equal(sample.image, parts[name].image) and torch.equal(sample.label, clean[name].label)
        assert not torch.equal(sample.image, clean[name].image)
    assert shares[0].name == f"camvid {look}" and loader(tmp_path).name == "camvid"
    assert shares[0].protocol.startswith(f"corrupted by {look} (imagecorruptions-imaug ")
    assert shares[0].protocol.endswith("), native size, every pixel")


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_are_too_small_are_named(tmp_path: Path, workers: int) -> None:
    write_pair(tmp_path, "camvid", "val", 0, blocks(0, (31, 64)))
    with pytest.raises(UserError) as caught:
        list(loader(tmp_path, look="fog:1", workers=workers))
    assert "val/00000.png: 64x31 pixels, but --corrupt takes images of at least 32x32" in one_line(caught.value)


def test_the_mapillary_square_is_cut_after_the_corruption(tmp_path: Path) -> None:
    save(tmp_path / "validation/images/a.jpg", image((64, 96)))
    save(tmp_path / "validation/labels/a.png", np.full((64, 96), 13, np.uint8))
    cfg = make_cfg(tmp_path, MAPILLARY_DIR=str(tmp_path), PROTOCOL="robustnet")
    split = Splits(load_domains(cfg)).open("mapillary", "val")
    look = Corruption("pixelate", 5)
    (sample,) = build_evaluation_loader(cfg, split, rank=0, world_size=1, corruption=look)
    row = sample.image[0, 768].float()  # blocks of 4 pixels, enlarged 24 times
    assert sample.image.shape == (3, 1536, 1536) and ((row[1:] - row[:-1]).abs() > 0.5).float().mean() < 0.9


# ---------------------------------------------------------------------------------- the report


def test_means_over_severities_and_corruptions() -> None:
    clean = report()
    scores = {"": 0.8, "fog:1": 0.6, "fog:5": 0.2, "snow:1": 0.5}
    rows = [
        replace(row, corruption=look, scores=replace(row.scores, mean_iou=value))
        for look, value in scores.items()
        for row in clean.rows
        if row.domain == "town"
    ]
    found = robustness([*rows, *clean.rows[2:]])
    assert list(found) == ["town", "town (2 classes)"]
    town = found["town"]
    assert town.corruptions == pytest.approx({"fog": 0.4, "snow": 0.5}) and town.clean == 0.8
    assert (town.mean, town.degradation) == pytest.approx((0.45, 1 - 0.45 / 0.8))
    table = corruption_table({"town": town})
    assert table[1:] == [
        ["fog", "40.00"],
        ["snow", "50.00"],
        ["mean over corruptions", "45.00"],
        ["clean", "80.00"],
        ["degradation", "43.75"],
    ]
    corrupted = replace(clean, rows=[*rows, *clean.rows[2:]])
    assert corrupted.mean_over_targets == pytest.approx((0.8 + 1) / 2)  # town and village, clean
    assert "town fog:5" in corrupted.to_text() and "fog" not in corrupted.class_table()[0]
    assert len(corrupted.protocol_lines()) == len(clean.protocol_lines()) + 1
    assert "mean over corruptions" in corrupted.to_markdown() and "corruptions" not in clean.to_text()


def test_without_a_clean_score_there_is_no_degradation() -> None:
    row = replace(report().rows[0], scores=replace(report().rows[0].scores, mean_iou=float("nan")))
    (found,) = robustness([row, replace(row, corruption="fog:1")]).values()
    assert np.isnan([found.clean, found.mean, found.degradation]).all()
