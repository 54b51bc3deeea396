"""Scoring weight files: ours, and those published by others."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import config
import train
import valid
from datasets import splits
from datasets.domains import Domain
from evaluation.more_metrics import TITLES
from tests.runs import launch, run_folder, train_arguments
from tests.street_data import ROOTS, blocks, save, write_pair
from utils import checkpoint
from utils.errors import UserError


@pytest.fixture(scope="module")
def weights(small_camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of one step of the affine-IN method."""
    out = tmp_path_factory.mktemp("trained")
    train.main(train_arguments(small_camvid, out, "--backbone", "", "--method", "ibn", "--max_iter", "1"))
    return run_folder(out)


def score(file: Path, camvid: Path, out: Path, *more: str) -> dict[str, object]:
    arguments = [
        "--snapshot",
        str(file),
        "--val_dataset",
        "camvid",
        "--out",
        str(out),
        "--num_workers",
        "0",
        "--device",
        "cpu",
    ]
    valid.main([*arguments, "--pictures", "2", "--opts", f"DATASET.CAMVID_DIR={camvid}", *more])
    content: dict[str, object] = json.loads((out / "scores.json").read_text())
    return content


def test_a_checkpoint_needs_nothing_but_itself(
    weights: Path, small_camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = score(weights / "last.pth", small_camvid, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "scores.json",
        "scores.csv",
        "scores.md",
        "camvid.png",
    }
    about = content["weights"]
    assert isinstance(about, dict)
    assert "ibn" in about["network"]
    assert about["checkpoint"] == "last"
    assert about["seed"] == 304
    printed = capsys.readouterr().out
    assert "5 images of val" in printed
    assert "mean over targets" in printed


def test_an_option_that_does_not_exist_any_more_is_told_with_its_file(weights: Path) -> None:
    file = str(weights / "last.pth")
    content = checkpoint.read(file)
    content["config"]["OPTIM"]["FORMER"] = 1
    with pytest.raises(UserError, match=r"last\.pth: there is no option 'OPTIM\.FORMER'"):
        valid.load_network(config.parse(["--snapshot", file], program="valid"), content)


def test_the_score_is_the_one_that_training_wrote(weights: Path, small_camvid: Path, tmp_path: Path) -> None:
    expected = json.loads((weights / "scores" / "scores.json").read_text())
    assert score(weights / "last.pth", small_camvid, tmp_path)["domains"] == expected["domains"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--arch network.deepv3.DeepR50V3PlusD --method ibn --wt_layer 0 0 4 4 4 0 0", ""),
        ("--backbone resnet50 --output_stride 16", ""),
        (
            "--backbone resnet18 --output_stride 32",
            "--backbone, --output_stride: ResNet-18, output stride 32 is not used",
        ),
        ("--output_stride 8", "was trained with ResNet-50, output stride 16"),
        ("--method isw", "--method: isw is not used"),
        ("--wt_layer 0 0 2 2 2 0 0", "was trained with 0 0 4 4 4 0 0"),
        ("--layout_confidence softmax", "--layout_confidence: softmax is not used"),
    ],
)
def test_flags_that_a_checkpoint_does_not_follow_are_named(
    flags: str, words: str, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = str(weights / "last.pth")
    network, _, _ = valid.load_network(
        config.parse(["--snapshot", file, *flags.split()], program="valid"), checkpoint.read(file)
    )
    assert "ResNet-50, output stride 16, method ibn" in network.describe()
    found = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(found) == bool(words) and all(words in message for message in found), found


def test_another_split_and_a_limit_are_said(weights: Path, small_camvid: Path, tmp_path: Path) -> None:
    content = score(weights / "last.pth", small_camvid, tmp_path, "--split", "test", "--val_limit", "2")
    domains = content["domains"]
    assert isinstance(domains, list)
    assert domains[0]["protocol"]["images"] == 2
    assert "test" in domains[0]["protocol"]["split"]


@pytest.mark.parametrize(
    ("domain", "pattern", "count"),
    [
        ("cityscapes", "gtFine_trainvaltest/gtFine/val/aachen/aachen_{:05d}_000019_gtFine_labelIds.png", 8),
        ("synthia", "GT/LABELS/val/{:05d}.png", 8),
        ("cityscapes", "gtFine_trainvaltest/gtFine/val/aachen/aachen_{:05d}_000019_gtFine_labelIds.png", 2),
    ],
)
def test_train_ids_under_the_name_of_label_ids_are_told(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, domain: str, pattern: str, count: int
) -> None:
    for number in range(count):
        write_pair(tmp_path, domain, "val", number, blocks(number, (64, 64), block=4))
        save(tmp_path / pattern.format(number), blocks(number, (64, 64), block=4))
    flags = ["--snapshot", str(weights / "last.pth"), "--val_dataset", domain, "--out", str(tmp_path / "out")]
    flags += ["--num_workers", "0", "--device", "cpu", "--opts", f"DATASET.{ROOTS[domain]}={tmp_path}"]
    reason = f"{domain}/val: unexpected-values \\({count}, the first: .*likely train ids under the name of"
    if count == 8:
        with pytest.raises(UserError, match=reason):
            valid.main(flags)
        assert not (tmp_path / "out").exists()
    else:  # few labels may lack the classes that tell: they are scored, and told
        valid.main(flags)
        assert re.search(reason, caplog.text)
        assert re.search(
            reason, json.loads((tmp_path / "out" / "scores.json").read_text())["domains"][0]["findings"][0]
        )
    caplog.clear()
    valid.main([*flags[:-2], "--no_quick_check", *flags[-2:]])
    assert not re.search(reason, caplog.text)
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["domains"][0]["findings"] == []


def test_a_split_without_a_labelled_pixel_is_told(
    weights: Path, small_camvid: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, classes in (("val", None), ("test", [255])):
        for number in range(2):
            write_pair(tmp_path, "cityscapes", split, number, blocks(number, (64, 64), classes=classes))
    for split, told in (("val", 0), ("test", 1)):
        caplog.clear()
        more: tuple[str, ...] = ("--val_dataset", "camvid", "cityscapes", "--split", split)
        more += ("--opts", f"DATASET.CAMVID_DIR={small_camvid}", f"DATASET.CITYSCAPES_DIR={tmp_path}")
        content: Any = score(weights / "last.pth", small_camvid, tmp_path / split, *more)
        sentences = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(sentences) == told
        camvid, *rows = content["domains"]
        assert camvid["findings"] == [] and [row["findings"] for row in rows] == [sentences, sentences]
        assert [row["subset"] for row in rows] == ["", "11 classes"], "the source has no others"
        if told:
            assert re.match("cityscapes/test: no pixel of its labels has a class.*--split, .*predict.py", sentences[0])
            assert rows[0]["scores"]["mean_iou"] is None
            assert "- cityscapes/test: no pixel" in (tmp_path / split / "scores.md").read_text()


@pytest.mark.parametrize("configuration", ["r50_isw", "r50_base"])
def test_published_weights_score_by_name_rules(
    golden: Path, small_camvid: Path, tmp_path: Path, configuration: str
) -> None:
    shapes = json.loads((golden / "state_dict_shapes.json").read_text())[configuration]
    generator = torch.Generator().manual_seed(0)
    state = {f"module.{name}": 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state = {
        name: torch.zeros((), dtype=torch.long) if name.endswith("tracked") else value for name, value in state.items()
    }
    state = {name: torch.ones_like(value) if name.endswith("var") else value for name, value in state.items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "published.pth")
    codes = "0 0 2 2 2 0 0" if configuration == "r50_isw" else "0 0 0 0 0 0 0"
    content = score(tmp_path / "published.pth", small_camvid, tmp_path / "out", "--wt_layer", *codes.split())
    about = content["weights"]
    assert isinstance(about, dict)
    assert "DIIA" in about["network"]
    with pytest.raises(UserError, match="does not fit"):
        wrong = "0 0 0 0 0 0 0" if configuration == "r50_isw" else "0 0 2 2 2 0 0"
        score(tmp_path / "published.pth", small_camvid, tmp_path / "out", "--wt_layer", *wrong.split())


def test_corrupted_images_stand_beside_the_clean_ones(
    weights: Path, small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, find_pairs = list[str](), splits.find_pairs

    def count(domain: Domain, split: str, **options: Any) -> Any:
        listed.append(f"{domain.name}/{split}")
        return find_pairs(domain, split, **options)

    monkeypatch.setattr(splits, "find_pairs", count)
    clean: Any = score(weights / "last.pth", small_camvid, tmp_path / "clean", "--per_image")
    flags = ("--corrupt", "fog:3", "gaussian_noise:1", "fog:1", "--per_image")
    content: Any = score(weights / "last.pth", small_camvid, tmp_path / "out", *flags)
    assert listed == ["camvid/val"] * 2  # once per run
    rows = {row["corruption"]: row for row in content["domains"]}
    assert list(rows) == ["", "fog:3", "gaussian_noise:1", "fog:1"] and rows[""] == clean["domains"][0]
    assert content["mean_over_targets"] == clean["mean_over_targets"] and clean["robustness"] == {}
    assert {row["domain"] for row in rows.values()} == {"camvid"} and all(row["is_source"] for row in rows.values())
    assert len({json.dumps(row["confusion"]) for row in rows.values()}) == 4
    assert re.match(
        r"corrupted by fog:3 \(imagecorruptions-imaug \S+\), native", rows["fog:3"]["protocol"]["transform"]
    )
    iou = {look: row["scores"]["mean_iou"] for look, row in rows.items()}
    (found,) = content["robustness"].values()
    mean = ((iou["fog:3"] + iou["fog:1"]) / 2 + iou["gaussian_noise:1"]) / 2
    assert (found["mean"], found["degradation"]) == pytest.approx((mean, 1 - mean / iou[""]))
    assert (tmp_path / "out" / "camvid_fog_3.png").exists() and (tmp_path / "out" / "camvid.png").exists()
    assert "camvid,fog:3,,yes,mean_iou," in (tmp_path / "out" / "scores.csv").read_text()
    assert "camvid fog:3 (source)" in (tmp_path / "out" / "scores.md").read_text()
    with np.load(tmp_path / "out" / "per_image.npz") as counts:
        np.testing.assert_array_equal(counts["camvid fog:3/confusion"].sum(axis=0), rows["fog:3"]["confusion"])


def test_missing_weights_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = launch("valid.py", ["--snapshot", str(tmp_path / "none.pth"), "--val_dataset", "camvid"], check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "none.pth" in done.stderr


def test_protocols_and_more_metrics_stand_in_the_files(weights: Path, small_camvid: Path, tmp_path: Path) -> None:
    flags = "--eval_protocol sliding --window 64 64 --scales 0.5 1 --flip --more_metrics --split test --amp bf16"
    content = score(weights / "last.pth", small_camvid, tmp_path, *flags.split())
    domains = content["domains"]
    assert isinstance(domains, list)
    protocol, more = domains[0]["protocol"], domains[0]["more"]
    assert protocol["transform"] == "native size, every pixel, windows 64x64, stride 48x48, in bfloat16"
    assert protocol["scales"] == "0.5 1 and flipped, mean of probabilities"
    assert list(more) == list(TITLES) and all(0 <= value <= 1 for value in more.values())
    assert (tmp_path / "camvid_reliability.png").exists()
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert any(f",ece,{more['ece']!r}," in line and "windows 64x64" in line for line in lines)
    assert "boundary IoU (3 %)" in (tmp_path / "scores.md").read_text()


def test_counts_of_single_images_are_kept_where_asked_for(weights: Path, small_camvid: Path, tmp_path: Path) -> None:
    for flags, kept in ((["--per_image"], True), ([], False)):  # those of an earlier evaluation do not stay
        score(weights / "last.pth", small_camvid, tmp_path, *flags)
        assert (tmp_path / "per_image.npz").exists() == kept


def test_a_page_is_written_where_asked_for(weights: Path, small_camvid: Path, tmp_path: Path) -> None:
    for flags, written in ((["--report", "--more_metrics"], True), ([], False)):
        score(weights / "last.pth", small_camvid, tmp_path, *flags)
        assert (tmp_path / "report.html").exists() == written
        assert not (tmp_path / "per_image.npz").exists()
        if written:
            text = (tmp_path / "report.html").read_text()
    for words in ("reliability diagram", "train_loss", "val/", "NETWORK.METHOD", "Evaluation</h3>", "Training</h3>"):
        assert words in text


def test_what_cannot_be_written_is_on_the_screen(
    weights: Path,
    small_camvid: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = Mock(side_effect=UserError("no room"))
    monkeypatch.setattr("evaluation.report.save_png", full)
    with pytest.raises(UserError, match="no room"):
        score(weights / "last.pth", small_camvid, tmp_path / "out")
    assert "mean over targets" in capsys.readouterr().out and (tmp_path / "out" / "scores.json").exists()


def test_nothing_is_evaluated_where_nothing_can_be_written(
    weights: Path, small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Mock()
    monkeypatch.setattr("evaluation.Evaluator.__call__", evaluate)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UserError, match="the folder cannot be made .nothing can be written there.; choose another"):
        score(weights / "last.pth", small_camvid, tmp_path)
    evaluate.assert_not_called()


def test_scores_on_other_domains_are_kept(weights: Path, small_camvid: Path, tmp_path: Path) -> None:
    file = str(shutil.copy(weights / "last.pth", tmp_path))
    flags = [
        "--snapshot",
        file,
        "--num_workers",
        "0",
        "--device",
        "cpu",
        "--opts",
        f"DATASET.CAMVID_DIR={small_camvid}",
    ]
    for _ in range(2):  # the same once more replaces its own
        valid.main([*flags, "--val_dataset", "camvid"])
    before = (tmp_path / "scores_last_val" / "scores.json").read_bytes()
    with pytest.raises(UserError, match="scores_last_val: holds scores on camvid, which these replace; name another"):
        valid.main([*flags, "--val_dataset", "cityscapes"])
    assert (tmp_path / "scores_last_val" / "scores.json").read_bytes() == before
