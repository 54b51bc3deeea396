"""The dataset checker: a folder with each fault is named; healthy ones and real frames are not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets import checks
from datasets.checks import check_domain, quick_check, refuse_or_warn
from datasets.codec import ENCODINGS, Encoding
from datasets.domains import BUILTIN, Domain
from datasets.scan import DomainReport, Fault, Finding, discriminative_classes, look, scan
from datasets.splits import Pair, Splits, find_pairs, list_split
from scripts import check_data as check
from tests.street_data import (
    GTAV_PALETTE,
    TRAINABLE,
    blocks,
    mapillary_palette,
    paint,
    save,
    save_label,
    write_domain,
    write_pair,
)
from tests.test_domains import declare, domain_at
from utils.errors import UserError, run_entry_point

LABEL = blocks(0, (48, 64))
IMAGE = paint(LABEL)
NORMAL = {"count", "same-name"}  # small drawn sets have fewer images than the published ones, numbered per split


def examine(domain: Domain, *, quick: bool = True, splits: Sequence[str] = ()) -> DomainReport:
    return check_domain(domain, quick=quick, workers=1, splits=splits)


def examine_train(root: Path, name: str) -> DomainReport:
    return examine(domain_at(root, name), splits=("train",))


def found(report: DomainReport) -> list[Fault]:
    """Return the faults and notes but those of every small drawn set."""
    return [fault for fault in report.faults if fault.name not in NORMAL]


def only(report: DomainReport, name: str, severity: str) -> Fault:
    """Return the one fault there is, of this name and severity."""
    (fault,) = found(report)
    assert (fault.name, fault.severity) == (name, severity), fault
    assert report.healthy == (severity == "note")
    return fault


def train_labels(root: Path, pattern: str) -> list[Path]:
    paths = sorted(root.glob(pattern))
    assert paths
    return paths


# ---------------------------------------------------------------------------------- healthy sets


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", TRAINABLE)
def test_a_healthy_set_has_no_faults(tmp_path: Path, name: str, quick: bool) -> None:
    write_domain(tmp_path, name)
    report = examine(domain_at(tmp_path, name), quick=quick)
    assert report.healthy and not found(report)
    train, val = report.splits
    assert (train.images, train.labels, train.decoded) == (4, 4, 4)
    assert (val.split, val.images) == ("val", 4 if name == "kitti" else 2)
    assert len(list(tmp_path.glob(train.image_pattern))) == 4
    assert len(list(tmp_path.glob(train.label_pattern))) == 4
    assert sum(train.shares.values()) == pytest.approx(1) and list(train.shares)[-1] == "ignored"


def test_test_frames_of_dark_zurich_without_labels_are_fine(tmp_path: Path) -> None:
    write_domain(tmp_path, "darkzurich")
    save(tmp_path / "rgb_anon/test/night/GOPR0364/GOPR0364_frame_000001_rgb_anon.png", IMAGE)
    report = examine(domain_at(tmp_path, "darkzurich"))
    assert [(row.split, row.images, row.labels) for row in report.splits] == [("val", 2, 2), ("test", 1, 0)]
    assert only(report, "no-labels", "note").count == 1


def test_parts_of_a_data_set_are_checked_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_domain(tmp_path, "acdc")
    for names, checked in (([], ["acdc"]), (["acdc_fog"], ["acdc_fog"])):
        check.main([*names, "--quick", "--json", "--opts", f"DATASET.ACDC_DIR={tmp_path}"])
        assert [row["domain"] for row in json.loads(capsys.readouterr().out)["domains"]] == checked


def test_the_layout_that_is_there_is_named(tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / f"seg/images/train/{number}.jpg", IMAGE)
        save(tmp_path / f"seg/labels/train/{number}_train_id.png", LABEL)
    (train,) = examine(domain_at(tmp_path, "bdd100k")).splits
    assert (train.image_pattern, train.label_pattern) == ("seg/images/train/*.jpg", "seg/labels/train/*_train_id.png")


def test_shares_of_the_classes(tmp_path: Path) -> None:
    label = np.full((20, 30), 13, np.uint8)
    label[:5] = 255
    write_pair(tmp_path, "bdd100k", "train", 0, label)
    (train,) = examine(domain_at(tmp_path, "bdd100k")).splits
    assert {name: share for name, share in train.shares.items() if share} == {"car": 0.75, "ignored": 0.25}


def test_both_counts_of_gtav_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.PUBLISHED["gtav"] == {"train": (12403, 12388), "val": (6382,), "test": (6181,)}
    assert [checks.PUBLISHED[name]["train"][0] for name in ("cityscapes", "bdd100k", "mapillary", "synthia")] == [
        *(2975, 7000, 18000, 6580)
    ]
    write_domain(tmp_path, "gtav")
    for numbers, expected in (((9, 4), []), ((4,), []), ((9, 8), ["count"])):
        monkeypatch.setitem(checks.PUBLISHED, "gtav", {"train": numbers, "val": (2,)})
        report = examine(domain_at(tmp_path, "gtav"))
        assert [fault.name for fault in report.faults if fault.name != "same-name"] == expected and report.healthy
    (count,) = (fault for fault in report.faults if fault.name == "count")
    assert count.severity == "note" and count.count == 4 and "9 or 8 images" in count.advice


# ---------------------------------------------------------------------------------- what is not there


def test_no_folder(tmp_path: Path) -> None:
    fault = only(examine(domain_at(tmp_path / "nothing", "gtav")), "no-folder", "fatal")
    assert "set DATASET.GTAV_DIR in config.py" in fault.advice and fault.where == "gtav"
    assert only(examine(BUILTIN["gtav"]), "no-folder", "fatal").examples == ("DATASET.GTAV_DIR",)


def test_no_images(tmp_path: Path) -> None:
    faults = found(examine(domain_at(tmp_path, "gtav")))
    assert [(fault.where, fault.name, fault.severity) for fault in faults] == [
        (f"gtav/{split}", "no-images", "fatal") for split in ("train", "val", "test")
    ]
    assert "no image matches images/valid/*/*.png or" in faults[1].advice
    write_domain(tmp_path, "gtav", train=0)
    assert only(examine(domain_at(tmp_path, "gtav")), "no-images", "note").where == "gtav/train"
    assert only(examine(domain_at(tmp_path, "gtav"), splits=("train", "val")), "no-images", "fatal").count == 1
    with pytest.raises(UserError, match="synthia: has no split 'test'"):
        examine(domain_at(tmp_path, "synthia"), splits=("test",))


def test_an_archive_that_cannot_be_read_hides_nothing_else(tmp_path: Path) -> None:
    write_domain(tmp_path, "gtav")  # train and val; for test the archives are looked into
    (tmp_path / "10_labels.zip").write_bytes(b"cut off")
    report = examine(domain_at(tmp_path, "gtav"))
    fault = only(report, "unreadable", "fault")
    assert fault.where == "gtav/test" and [part.split for part in report.splits] == ["train", "val"]
    assert fault.sentence().startswith(f"gtav/test: {tmp_path}/10_labels.zip: is not a zip archive that can be read (")
    assert not quick_check([(domain_at(tmp_path, "gtav"), split) for split in ("train", "val")])
    (fault,) = quick_check([(domain_at(tmp_path, "gtav"), "test")])
    assert (fault.name, fault.severity) == ("unreadable", "fatal")


def test_what_a_user_declares_must_be_there_and_no_more(tmp_path: Path) -> None:
    fields = {"images": "'{split}/*.jpg'", "label": "{.jpg: .png}"}
    for suffix, array in ((".jpg", IMAGE), (".png", LABEL)):
        save(tmp_path / f"facades/val/a{suffix}", array)
    assert not found(examine(declare(tmp_path, **fields, splits="[val]")["mine"]))
    report = examine(declare(tmp_path, **fields, splits="[val, test]")["mine"])
    assert only(report, "no-images", "fatal").where == "mine/test"


@pytest.mark.parametrize("quick", [True, False])
def test_missing_label(tmp_path: Path, quick: bool) -> None:
    write_domain(tmp_path, "bdd100k")
    (tmp_path / "labels/train/00002_train_id.png").unlink()
    report = examine(domain_at(tmp_path, "bdd100k"), quick=quick)
    fault = only(report, "missing-label", "fatal")
    assert fault.examples == ("images/train/00002.jpg without labels/train/00002_train_id.png",)
    assert fault.where == "bdd100k/train" and (report.splits[0].images, report.splits[0].labels) == (4, 3)
    shutil.rmtree(tmp_path / "labels/val")
    first, second = found(examine(domain_at(tmp_path, "bdd100k"), quick=quick))
    assert first == fault and (second.where, second.count) == ("bdd100k/val", 2)
    assert "no label of this split is where it is expected" in second.advice


@pytest.mark.parametrize(("images", "kind"), [(700, "note"), (500, "fatal")])  # 6 are a hundredth of 600
def test_files_that_the_publisher_left_out_are_skipped_with_a_count(
    tmp_path: Path, images: int, kind: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "image.jpg", IMAGE)
    save(tmp_path / "label.png", LABEL)
    for folder in ("images/train", "labels/train"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(images):
        (tmp_path / f"images/train/{number:05d}.jpg").symlink_to(tmp_path / "image.jpg")
        (tmp_path / f"labels/train/{number + 6:05d}.png").symlink_to(tmp_path / "label.png")
    domain = domain_at(tmp_path, "bdd100k")
    bare, orphans = [fault for fault in examine(domain).faults if fault.name not in NORMAL | {"no-images"}]
    assert (bare.name, orphans.name) == ("missing-label", "label-without-image")
    assert bare.severity == kind and orphans.severity == ("note" if kind == "note" else "fault")
    assert len(bare.examples) == len(orphans.examples) == bare.count == 6
    for flag in ("--json", "--verbose", ""):
        opts = [*filter(None, [flag]), "--opts", f"DATASET.BDD_DIR={tmp_path}"]
        code, text, _ = run(capsys, "bdd100k", "--quick", *opts)
        named = [f"images/train/{number:05d}.jpg without labels/train/{number:05d}.png" for number in range(6)]
        named += [f"labels/train/{number + images:05d}.png" for number in range(6)]
        assert code == (kind == "fatal") and sum(name in text for name in named) == (12 if flag else 6)
        if flag == "--json":
            examples = [row["examples"] for row in json.loads(text)["domains"][0]["faults"]]
            assert [name for names in examples for name in names if "/train/" in name] == named
    if kind == "fatal":
        with pytest.raises(UserError, match=f"6 of {images} images have no label"):
            find_pairs(domain, "train")
    else:
        assert len(find_pairs(domain, "train")) == images - 6
        assert f"6 of {images} images are skipped because they have no label: images/train/00000.jpg" in caplog.text
        (tmp_path / "labels/train/00006.png").unlink()
        with pytest.raises(UserError, match=f"7 of {images} images have no label"):
            find_pairs(domain, "train")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_that_is_to_be_turned_is_pointed_out(tmp_path: Path, suffix: str) -> None:
    """Its label may have the same size and still be of the upright pixels."""
    exif = Image.Exif()
    for number, orientation in enumerate((1, 3, 0)):  # upright, upside down, none
        exif[0x0112] = orientation
        path = save(tmp_path / f"facades/images/{number}{suffix}", IMAGE)
        Image.fromarray(IMAGE).save(path, exif=exif)
        save(tmp_path / f"facades/labels/{number}.png", LABEL)
    fields = {"images": f"images/*{suffix}", "label": f"{{images/: labels/, {suffix}: .png}}", "splits": "[val]"}
    fault = only(examine(declare(tmp_path, **fields)["mine"]), "exif-orientation", "fault")
    assert fault.examples == (f"images/1{suffix}",) and "stored" in fault.advice


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("quick", [False, True])
def test_images_of_another_suffix_are_counted(
    tmp_path: Path, quick: bool, archived: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write_domain(tmp_path, "gtav")
    folder = tmp_path / "images/train/folder"
    (folder / "00001.png").rename(folder / "00001.PNG")
    for name in ("x.jpg", "y.txt"):
        shutil.copy(folder / "00002.png", folder / name)
    if archived:
        shutil.make_archive(str(tmp_path.with_suffix("")), "zip", tmp_path)
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        tmp_path.with_suffix(".zip").rename(tmp_path / "gtav.zip")
    domain = domain_at(tmp_path, "gtav")
    faults = {fault.name: fault for fault in found(examine(domain, quick=quick))}
    unread = ("images/train/folder/00001.PNG", "images/train/folder/x.jpg")
    assert faults["not-read"].examples == unread
    assert faults["not-read"].severity == "fault" and set(faults) == {"not-read", "label-without-image"}
    assert not caplog.text
    splits = Splits({"gtav": domain})
    for need_labels in (True, False):
        assert len(splits.open("gtav", "train", need_labels=need_labels).pairs) == 3
    findings = refuse_or_warn(splits, [("gtav", "train")], evaluated="train")
    assert any("not-read (2, the first: " in text for text in findings["gtav"])
    told = f"gtav/train: 2 images are not read because of their suffix, 3 are: {', '.join(unread)}; rename or convert"
    assert caplog.text.count(told) == 1 and caplog.text.count("not read") == 1


@pytest.mark.parametrize("archived", [False, True])
def test_a_folder_of_another_case_is_named(tmp_path: Path, archived: bool) -> None:
    (root := tmp_path / "root").mkdir()
    write_domain(tmp_path / "files", "gtav")

    def pack() -> None:
        if archived:
            shutil.make_archive(str(root / "gtav"), "zip", tmp_path / "files")
        else:
            shutil.copytree(tmp_path / "files", root, dirs_exist_ok=True)

    for path in (tmp_path / "files/labels/train").rglob("*.png"):
        path.rename(path.with_suffix(".PNG"))
    pack()
    with pytest.raises(UserError, match=r"4 of 4 images have no label.*00000.PNG is there, but case counts: rename"):
        find_pairs(domain_at(root, "gtav"), "train")
    shutil.rmtree(root)
    root.mkdir()
    for path in (tmp_path / "files/images/train").rglob("*.png"):
        path.rename(path.with_suffix(".PNG"))
    pack()
    words = r"no image matches images/train/.*; 4 have another suffix: .*00000.PNG.* and 1 more; rename .*case differ"
    with pytest.raises(UserError, match=words):
        find_pairs(domain_at(root, "gtav"), "train")
    assert re.search(words, only(examine(domain_at(root, "gtav"), splits=("train",)), "no-images", "fatal").advice)


def test_other_files_beside_images_are_no_images_of_another_suffix(tmp_path: Path) -> None:
    for name in ("a_rgb.png", "a_depth.tif", "a_rgb.txt", "a_rgb.json", "b_rgb.PNG", "a_rgb_mask.bmp"):
        save(tmp_path / "facades" / name, IMAGE) if name[-4:].lower() in (".png", ".bmp") else None
        (tmp_path / "facades" / name).touch()
    save(tmp_path / "facades/a_label.png", LABEL)
    fields = {"root": "facades", "images": "'*_rgb.png'", "label": "{_rgb: _label}", "splits": "[val]"}
    assert list_split(declare(tmp_path, **fields)["mine"], "val").unread == ["b_rgb.PNG"]  # type: ignore[union-attr]
    fields["images"] = "'*_rgb*'"
    listing = list_split(declare(tmp_path, **fields)["mine"], "val")
    assert listing is not None and len(listing.pairs) == 5 and not listing.unread


@pytest.mark.parametrize("name", ["gtav", "synthia", "cityscapes"])
def test_images_below_the_folder_that_is_named_are_pointed_at(tmp_path: Path, name: str) -> None:
    if name == "cityscapes":
        write_domain(tmp_path / "unpacked/here", name)
    else:
        images, labels = ("images", "labels") if name == "gtav" else ("RGB", "GT/LABELS")
        save(tmp_path / f"unpacked/here/{images}/0000000.png", IMAGE)
        save_label(tmp_path / f"unpacked/here/{labels}/0000000.png", name, LABEL)
    with pytest.raises(UserError, match=f"they are in {tmp_path}/unpacked/here: give that folder as DATASET"):
        find_pairs(domain_at(tmp_path, name), "train")
    if name == "gtav":
        (tmp_path / "labels").mkdir()
        (tmp_path / "unpacked/here/labels").rename(tmp_path / "labels/labels")
        words = f"their labels elsewhere: `python -m scripts.prepare_data gtav {tmp_path} "
        with pytest.raises(UserError, match=words):
            find_pairs(domain_at(tmp_path, name), "train")


def test_test_images_without_any_label_are_a_note(tmp_path: Path) -> None:
    write_domain(tmp_path, "bdd100k")
    save(tmp_path / "images/test/a.jpg", IMAGE)
    assert only(examine(domain_at(tmp_path, "bdd100k")), "no-labels", "note").where == "bdd100k/test"


def test_label_without_image(tmp_path: Path) -> None:
    for name in ("bdd100k", "cityscapes"):
        write_domain(tmp_path / name, name)
    (tmp_path / "bdd100k/images/train/00002.jpg").unlink()
    for number in range(4):  # both published names of a label side by side are no fault
        save(tmp_path / f"bdd100k/labels/train/{number:05d}.png", blocks(number, (45, 80)))
    report = examine(domain_at(tmp_path / "bdd100k", "bdd100k"))
    fault = only(report, "label-without-image", "fault")
    assert (report.splits[0].images, report.splits[0].labels) == (3, 5)
    assert (fault.count, fault.examples[0]) == (2, "labels/train/00002.png")
    folder = tmp_path / "cityscapes/gtFine_trainvaltest/gtFine/train/aachen"
    save(folder / "aachen_00000_000019_gtFine_color.png", IMAGE)  # belongs there, is no label id file
    assert not found(examine(domain_at(tmp_path / "cityscapes", "cityscapes")))
    save(folder / "aachen_00009_000019_gtFine_labelIds.png", LABEL)
    assert only(examine(domain_at(tmp_path / "cityscapes", "cityscapes")), "label-without-image", "fault").count == 1


def test_declared_labels_beside_other_files(tmp_path: Path) -> None:
    for name in ("rgb/a_rgb.png", "ids/a_ids.png", "ids/a_depth.png"):
        save(tmp_path / f"facades/{name}", LABEL)
    fields = {"images": "rgb/*.png", "label": "{rgb/: ids/, _rgb.png: _ids.png}", "splits": "[val]"}
    assert not found(examine(declare(tmp_path, **fields)["mine"]))
    save(tmp_path / "facades/ids/b_ids.png", LABEL)
    assert only(examine(declare(tmp_path, **fields)["mine"]), "label-without-image", "fault").count == 1


# ---------------------------------------------------------------------------------- files and sizes


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize(
    ("domain", "pattern", "name"),
    [
        ("bdd100k", "images/train/00001.jpg", "undecodable-image"),
        ("gtav", "images/train/folder/00001.png", "undecodable-image"),
        ("bdd100k", "labels/train/00001_train_id.png", "undecodable-label"),
        ("synthia", "GT/LABELS/train/00001.png", "undecodable-label"),
        ("gtav", "labels/train/folder/00001.png", "undecodable-label"),
    ],
)
def test_damaged_files(tmp_path: Path, domain: str, pattern: str, name: str, quick: bool) -> None:
    write_domain(tmp_path, domain)
    path = tmp_path / pattern
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b""):
        path.write_bytes(content)
        fault = only(examine(domain_at(tmp_path, domain), quick=quick), name, "fatal")
        assert fault.count == 1 and fault.examples[0].startswith(f"{pattern}: this file cannot be decoded")


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("images/train/folder/00001.png", "undecodable-image"), ("labels/train/folder/00001.png", "undecodable-label")],
)
def test_changed_bytes_that_pillow_does_not_notice(tmp_path: Path, pattern: str, name: str) -> None:
    write_domain(tmp_path, "gtav")
    path = tmp_path / pattern
    whole = path.read_bytes()
    path.write_bytes(whole + b"a comment of somebody")
    assert not found(examine(domain_at(tmp_path, "gtav")))
    at = whole.rindex(b"IEND") - 8  # the checksum of the pixels
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    Image.open(path).load()
    fault = only(examine(domain_at(tmp_path, "gtav")), name, "fatal")
    assert fault.count == 1 and fault.examples[0].startswith(f"{pattern}: this file cannot be decoded (broken PNG")


def test_a_decoder_that_raises_anything_does_not_stop_the_checker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_domain(tmp_path, "camvid")

    def broken(path: str) -> None:
        raise RuntimeError("of its own kind")

    monkeypatch.setattr("datasets.scan.read_image", broken)
    first, second = found(examine(domain_at(tmp_path, "camvid")))
    assert (first.name, first.count, second.count) == ("undecodable-image", 4, 2)
    assert first.examples[0] == "train/00000.png: RuntimeError: of its own kind"


@pytest.mark.parametrize("transposed", [False, True])
def test_unequal_size(tmp_path: Path, transposed: bool) -> None:
    write_domain(tmp_path, "bdd100k")
    if transposed:
        path = tmp_path / "labels/train/00001_train_id.png"
        save(path, np.asarray(Image.open(path)).T)
    else:
        save(tmp_path / "images/train/00001.jpg", paint(blocks(1, (20, 30))))
    fault = only(examine(domain_at(tmp_path, "bdd100k")), "unequal-size", "fatal")
    sizes, cause = ("80x45, label 45x80", "transposed") if transposed else ("30x20, label 80x45", "resized")
    assert fault.examples == (f"images/train/00001.jpg: image {sizes}",) and cause in fault.advice


def test_unequal_pairs_of_gtav_are_known_but_not_if_most_are(tmp_path: Path) -> None:
    write_domain(tmp_path, "gtav")
    for number, severity in ((0, "note"), (1, "fatal")):
        save(tmp_path / f"images/train/folder/0000{number}.png", paint(blocks(number, (10, 10))))
        fault = only(examine(domain_at(tmp_path, "gtav")), "unequal-size", severity)
    assert fault.count == 2


# ---------------------------------------------------------------------------------- values


def write_labels(root: Path, domain: str, count: int, *, size: tuple[int, int] = (64, 64)) -> list[np.ndarray]:
    """Write a training split and return its labels, each with many classes."""
    labels = [blocks(number, size, block=4) for number in range(count)]
    for number, label in enumerate(labels):
        write_pair(root, domain, "train", number, label)
    return labels


def test_label_ids_instead_of_train_ids(tmp_path: Path) -> None:
    for number, label in enumerate(write_labels(tmp_path, "bdd100k", 3)):
        save_label(tmp_path / f"labels/train/{number:05d}_train_id.png", "cityscapes", label)
    fault = only(examine_train(tmp_path, "bdd100k"), "unexpected-values", "fatal")
    assert fault.count == 3 and "likely label ids (0..33) instead of train ids" in fault.advice
    assert "has the label ids 19, 20" in fault.examples[0]


@pytest.mark.parametrize(("count", "names"), [(8, ["unexpected-values"]), (7, [])])
def test_label_ids_that_train_ids_could_hold(tmp_path: Path, count: int, names: list[str]) -> None:
    labels = write_labels(tmp_path, "bdd100k", count)
    for number, label in enumerate(labels):
        raw = np.where(label < 6, ENCODINGS["cityscapes_ids"].encode(label), 255)  # 7, 8, 11, 12, 13, 17
        save(tmp_path / f"labels/train/{number:05d}_train_id.png", raw)
    faults = found(examine_train(tmp_path, "bdd100k"))
    assert [fault.name for fault in faults] == names
    assert all("no label holds a train id below 7; likely label ids" in fault.advice for fault in faults)


CITY = "gtFine_trainvaltest/gtFine/train/aachen/aachen_{}_000019_gtFine_labelIds.png"


@pytest.mark.parametrize(
    ("domain", "pattern", "count", "void", "severity"),
    [
        ("cityscapes", CITY, 8, 255, "fatal"),
        ("cityscapes", CITY, 2, 255, "fault"),
        ("cityscapes", CITY, 8, 0, "fault"),
        ("cityscapes", CITY, 7, 0, ""),
        ("mapillary", "training/labels/{}.png", 8, 255, "fatal"),
        ("synthia", "GT/LABELS/train/{}.png", 8, 255, "fatal"),
        ("synthia", "GT/LABELS/train/{}.png", 8, 0, ""),
    ],
)
def test_train_ids_under_the_name_of_label_ids(
    tmp_path: Path, domain: str, pattern: str, count: int, void: int, severity: str
) -> None:
    for number, label in enumerate(write_labels(tmp_path, domain, count)):
        save(tmp_path / pattern.format(f"{number:05d}"), np.where(label == 255, void, label).astype(np.uint8))
    report = examine_train(tmp_path, domain)
    if severity:
        fault = only(report, "unexpected-values", severity)
        assert fault.count == count and "likely train ids under the name of" in fault.advice
    else:
        assert not found(report)


def test_discriminative_classes() -> None:
    assert discriminative_classes(ENCODINGS["cityscapes_ids"]) == set(range(6, 19))
    assert discriminative_classes(ENCODINGS["mapillary_v1.2"]) == set(range(5, 19))
    assert discriminative_classes(ENCODINGS["train_ids"]) == set(range(7))
    assert not discriminative_classes(ENCODINGS["camvid"])
    assert not discriminative_classes(ENCODINGS["cityscapes_colours"])


def test_classes_that_a_domain_does_not_have_tell_nothing(tmp_path: Path) -> None:
    for number in range(8):
        save(tmp_path / f"facades/images/{number}.jpg", IMAGE)
        save(tmp_path / f"facades/labels/{number}.png", np.full(LABEL.shape, 11 + number % 3, np.uint8))
    (fault,) = found(examine(declare(tmp_path, splits="[val]")["mine"]))
    assert fault.name == "unexpected-values"
    assert not found(examine(declare(tmp_path, splits="[val]", classes="[person, rider, car]")["mine"]))


def test_mapillary_version_2(tmp_path: Path) -> None:
    for number, label in enumerate(write_labels(tmp_path, "mapillary", 2)):
        raw = ENCODINGS["mapillary_v1.2"].encode(label)
        save(tmp_path / f"training/labels/{number:05d}.png", raw, palette=mapillary_palette(road=21))
    fault = only(examine_train(tmp_path, "mapillary"), "unexpected-values", "fatal")
    assert fault.count == 2 and "Mapillary Vistas v2.0" in fault.advice


def test_synthia_labels_that_pillow_wrote_as_zeros(tmp_path: Path) -> None:
    write_domain(tmp_path, "synthia", val=0)
    for path in train_labels(tmp_path, "GT/LABELS/train/*.png"):
        red = np.asarray(Image.open(path).convert("RGB"))[..., 0]
        assert not red.any()
        save(path, red)
    fault = only(examine_train(tmp_path, "synthia"), "unexpected-values", "fatal")
    assert fault.count == 4 and "reads SYNTHIA's 16-bit labels as zeros" in fault.advice


@pytest.mark.parametrize(
    ("how", "severity"),
    [
        *(("jpeg", "fatal"), ("nearest", ""), ("resized", "fault")),
        *(("palette", "fault"), ("smooth", "fault"), ("grey", "fatal")),
    ],
)
def test_gtav_colours_in_between(tmp_path: Path, how: str, severity: str) -> None:
    for number in range(4):
        write_pair(tmp_path, "gtav", "train", number, blocks(number, (132, 240), block=48))
    for path in train_labels(tmp_path, "labels/train/*/*.png"):
        image = Image.open(path).convert("RGB")
        if how == "jpeg":
            image.save(path.with_suffix(".jpg"), quality=60)
            path.with_suffix(".jpg").rename(path)
            continue
        if how == "grey":  # the palette of whoever saved the ids
            save(path, np.asarray(Image.open(path)), palette=mapillary_palette(road=7))
            continue
        down, up = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
        small = image.resize((80, 44), up if how == "nearest" else down)
        image = small.resize(image.size, down if how == "smooth" else up)
        colours, index = np.unique(np.asarray(image).reshape(-1, 3), axis=0, return_inverse=True)
        assert (len(colours) > 256) == (how == "smooth")
        array = index.reshape(132, 240).astype(np.uint8) if how == "palette" else np.asarray(image)
        save(path, array, palette=colours if how == "palette" else None)
    if not severity:
        assert not found(examine_train(tmp_path, "gtav"))
        return
    fault = only(examine_train(tmp_path, "gtav"), "unexpected-values", severity)
    assert fault.count == 4 and "resized with interpolation" in fault.advice


def test_a_colour_of_gtav_that_cityscapes_lacks_is_fine(tmp_path: Path) -> None:
    write_domain(tmp_path, "gtav", val=0)
    palette = GTAV_PALETTE.copy()
    palette[4] = (20, 20, 20)
    for path in train_labels(tmp_path, "labels/train/*/*.png"):
        raw = np.asarray(Image.open(path)).copy()
        raw[:30] = 4
        save(path, raw, palette=palette)
    assert not found(examine_train(tmp_path, "gtav"))
    for path in train_labels(tmp_path, "labels/train/*/*.png"):
        save(path, palette[np.asarray(Image.open(path))])
    assert not found(examine_train(tmp_path, "gtav"))


@pytest.mark.parametrize(
    ("domain", "pattern", "values", "advice"),
    [
        ("gtav", "labels/train/*/*.png", LABEL, "ids where colours are expected"),
        ("cityscapes", "*/gtFine/train/*/*.png", IMAGE, "colour pictures where ids are expected"),
        ("camvid", "trainannot/*.png", np.full((9, 9), 30, np.uint8), "not the 11 classes of SegNet's CamVid"),
        ("cityscapes", "*/gtFine/train/*/*.png", np.full((9, 9), 77, np.uint8), "ids such as 77 are none of"),
        ("bdd100k", "labels/train/*.png", np.full((9, 9), 77, np.uint8), "ids such as 77 are none of train_ids"),
        ("synthia", "GT/LABELS/train/*.png", np.full((9, 9), 40, np.uint8), "ids such as 40 are none of synthia"),
        ("synthia", "GT/LABELS/train/*.png", paint(blocks(0, (48, 80))), "GT/LABELS, not of GT/COLOR"),
    ],
)
def test_other_kinds_of_labels(tmp_path: Path, domain: str, pattern: str, values: np.ndarray, advice: str) -> None:
    write_domain(tmp_path, domain, val=0)
    for path in train_labels(tmp_path, pattern):
        save(path, values)
    fault = only(examine_train(tmp_path, domain), "unexpected-values", "fatal")
    assert fault.count == 4 and advice in fault.advice


def test_ids_saved_as_jpeg(tmp_path: Path) -> None:
    write_labels(tmp_path, "bdd100k", 4)
    for path in train_labels(tmp_path, "labels/train/*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=60)
        path.with_suffix(".jpg").rename(path)
    fault = only(examine_train(tmp_path, "bdd100k"), "unexpected-values", "fatal")
    assert fault.advice.startswith("label files in JPEG; saved with loss")


def test_a_declared_table_that_lacks_ids(tmp_path: Path) -> None:
    save(tmp_path / "facades/images/a.jpg", IMAGE)
    save(tmp_path / "facades/labels/a.png", LABEL)
    report = examine(declare(tmp_path, splits="[val]", encoding="{0: 0, 1: 3}")["mine"])
    fault = only(report, "unexpected-values", "fatal")
    assert "lacks raw ids such as 2, 3, 5; add them to it, or `other: 255`" in fault.advice


def test_causes_are_told_apart(tmp_path: Path) -> None:
    write_labels(tmp_path, "bdd100k", 3)
    save(tmp_path / "labels/train/00000_train_id.png", np.full((64, 64), 26, np.uint8))
    save(tmp_path / "labels/train/00002_train_id.png", IMAGE)
    faults = found(examine_train(tmp_path, "bdd100k"))
    assert [(fault.name, fault.count, fault.advice[:12]) for fault in faults] == [
        ("unexpected-values", 1, "likely label"),
        ("unexpected-values", 1, "colour pictu"),
    ]


def test_wholly_ignored_labels(tmp_path: Path) -> None:
    write_labels(tmp_path, "bdd100k", 4)
    domain = domain_at(tmp_path, "bdd100k")
    for number, severity in enumerate(("note", "fault", "fault", "fatal")):
        save(tmp_path / f"labels/train/{number:05d}_train_id.png", np.full((64, 64), 255, np.uint8))
        name = "unexpected-values" if number else "ignored-label"
        assert only(examine(domain, splits=("train",)), name, severity).count == number + 1
    for folder in ("images", "labels"):
        (tmp_path / folder / "train").rename(tmp_path / folder / "test")
    assert only(examine(domain, splits=("test",)), "ignored-label", "note").count == 4


# ---------------------------------------------------------------------------------- images in two splits


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", ["gtav", "synthia", "camvid"])
def test_duplicates_between_splits(tmp_path: Path, name: str, quick: bool) -> None:
    write_domain(tmp_path, name)
    write_pair(tmp_path, name, "val", 1, blocks(100 * (list(BUILTIN)).index(name) + 999))
    for split in ("train", "val"):
        write_pair(tmp_path, name, split, 7, LABEL)
    report = examine(domain_at(tmp_path, name), quick=quick)
    fault = only(report, "duplicate", "fault")
    assert (fault.split, fault.count) == ("train and val", 1)
    assert fault.examples[0].count("00007.png") == 2 and " = " in fault.examples[0]
    assert [fault.count for fault in report.faults if fault.name == "same-name"] == ([] if name == "camvid" else [2])


def test_duplicates_of_another_name_are_found_by_the_full_mode(tmp_path: Path) -> None:
    write_domain(tmp_path, "camvid")
    write_pair(tmp_path, "camvid", "train", 7, LABEL)
    write_pair(tmp_path, "camvid", "val", 8, LABEL)
    assert not found(examine(domain_at(tmp_path, "camvid"), quick=True))
    fault = only(examine(domain_at(tmp_path, "camvid"), quick=False), "duplicate", "fault")
    assert fault.examples == ("train/00007.png = val/00008.png",)


def test_one_name_in_two_splits_is_noted_where_names_are_unique(tmp_path: Path) -> None:
    for name, numbers in (("bdd100k", [2]), ("camvid", [0])):
        write_domain(tmp_path / name, name)
        report = examine(domain_at(tmp_path / name, name))
        assert [fault.count for fault in report.faults if fault.name == "same-name"] == [n for n in numbers if n]
        assert report.healthy


def test_splits_that_are_declared_to_be_the_same_files(tmp_path: Path) -> None:
    save(tmp_path / "facades/images/a.jpg", IMAGE)
    save(tmp_path / "facades/labels/a.png", LABEL)
    assert only(examine(declare(tmp_path)["mine"]), "same-files", "note").where == "mine/val and test"
    report = examine(declare(tmp_path, splits="[train, val]")["mine"], quick=False)
    assert only(report, "same-files", "fault").where == "mine/train and val"


# ---------------------------------------------------------------------------------- modes


def test_the_quick_mode_decodes_an_even_sample(tmp_path: Path) -> None:
    pairs = [Pair(str(number), "", str(number)) for number in range(1000)]
    numbers = [int(pair.name) for pair in checks._sample(pairs)]
    assert (len(numbers), numbers[0], numbers[-1]) == (32, 0, 999)
    assert set(np.diff(numbers)) == {32, 33}
    assert [len(checks._sample(pairs[:count])) for count in (0, 1, 2, 31, 32, 33)] == [0, 1, 2, 31, 32, 32]
    for number in range(40):
        write_pair(tmp_path, "camvid", "train", number, LABEL)
    (tmp_path / "train/00004.png").write_bytes(b"broken")
    quick = examine_train(tmp_path, "camvid")
    assert quick.healthy and quick.splits[0].decoded == 32
    full = examine(domain_at(tmp_path, "camvid"), quick=False, splits=("train",))
    assert not full.healthy and full.splits[0].decoded == 40


def test_processes_and_threads_find_what_one_finds(tmp_path: Path) -> None:
    for number in range(17):
        write_pair(tmp_path, "camvid", "train", number, blocks(number))
    (tmp_path / "train/00002.png").write_bytes(b"broken")
    (tmp_path / "trainannot/00003.png").write_bytes(b"broken")
    domain = domain_at(tmp_path, "camvid")
    pairs = [Pair(f"{tmp_path}/train/{n:05d}.png", f"{tmp_path}/trainannot/{n:05d}.png", str(n)) for n in range(17)]
    expected = [look(pair, encoding=domain.encoding) for pair in pairs]
    for processes in (True, False):
        assert scan(pairs, encoding=domain.encoding, workers=2, processes=processes, title="x") == expected
    one, two = (check_domain(domain, quick=False, workers=workers, splits=("train",)) for workers in (1, 2))
    assert one == two and {fault.name for fault in one.faults} == {"undecodable-image", "undecodable-label"}


def test_the_quick_mode_starts_no_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_domain(tmp_path, "camvid")
    requested: list[bool] = []

    def watched(pairs: Sequence[Pair], **options: Any) -> list[Finding]:
        requested.append(options["processes"])
        return scan(pairs, **options)

    monkeypatch.setattr(checks, "scan", watched)
    for quick in (True, False):
        examine(domain_at(tmp_path, "camvid"), quick=quick)
    assert requested == [False, True]


def test_quick_check_of_a_run(tmp_path: Path) -> None:
    for name in ("gtav", "camvid"):
        write_domain(tmp_path / name, name)
    gtav, camvid = (domain_at(tmp_path / name, name) for name in ("gtav", "camvid"))
    assert not quick_check([(gtav, "train"), (camvid, "val")])
    (tmp_path / "camvid/trainannot/00001.png").unlink()
    assert not quick_check([(gtav, "train"), (camvid, "val")]), "a split that the run does not need"
    (fault,) = quick_check([(gtav, "train"), (camvid, "trainval")])
    assert fault.severity == "fatal" and fault.sentence() == (
        f"camvid/train: missing-label (1, the first: {tmp_path}/camvid/train/00001.png without trainannot/00001.png): "
        "unpack the labels again, or remove the images that have none"
    )
    save(tmp_path / "gtav/labels/train/folder/00009.png", LABEL)
    first, second = quick_check([(gtav, "train"), (gtav, "val"), (camvid, "train")])
    assert (first.name, first.severity, second) == ("label-without-image", "fault", fault)
    (missing,) = quick_check([(domain_at(tmp_path / "none", "gtav"), "train")])
    assert (missing.name, missing.severity) == ("no-folder", "fatal")


# ---------------------------------------------------------------------------------- the program


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Run the program and return exit code, standard output and standard error."""
    code = 0
    try:
        run_entry_point(lambda: check.main(argv))
    except SystemExit as stop:
        code = int(stop.code or 0)
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.fixture
def two_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with a healthy BDD and a CamVid with a fault, where the default roots are looked for."""
    write_domain(tmp_path / "data/bdd-100k", "bdd100k")
    write_domain(tmp_path / "data/camvid", "camvid")
    (tmp_path / "data/camvid/trainannot/00003.png").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def test_the_table_and_the_exit_code(two_sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, error = run(capsys, "--quick")
    lines = [line.split() for line in text.splitlines()]
    assert code == 1 and not error
    assert ["bdd100k", "train", "images/train/*.jpg", "4", "4", "7,000", "4", "(count),", "(same-name)"] in lines
    assert ["camvid", "train", "train/*.png", "4", "3", "-", "4", "missing-label"] in lines
    assert ["camvid", "val", "val/*.png", "2", "2", "-", "2", "none"] in lines
    assert "fault: camvid/train: missing-label, 1\n    train/00003.png without trainannot/00003.png\n  unpack" in text
    assert "note: count: bdd100k/train 4, bdd100k/val 2\n" in text and "faults: 1, notes: 3; up to 32 pairs" in text
    assert "not checked, their folders do not exist: cityscapes (./data/cityscapes), gtav" in text
    code, text, error = run(capsys, "bdd100k")
    assert code == 0 and "camvid" not in text and "not checked" not in text and "--quick" not in text


def test_many_examples_are_cut(two_sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(two_sets / "camvid/trainannot")
    _, text, _ = run(capsys, "camvid", "--quick", "--workers", "1")
    assert "missing-label, 4\n" in text and text.count(" without trainannot/") == 3 and "    ...\n" in text
    _, text, _ = run(capsys, "camvid", "--quick", "--workers", "1", "--verbose")
    assert text.count(" without trainannot/") == 4 and "    ...\n" not in text
    _, text, _ = run(capsys, "camvid", "--quick", "--workers", "1", "--json")
    (fault,) = json.loads(text)["domains"][0]["faults"]
    assert fault["examples"] == [f"train/{n:05d}.png without trainannot/{n:05d}.png" for n in range(4)]


def test_a_named_set_must_be_there(two_sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "gtav", "--quick")
    assert code == 1 and "fault: gtav: no-folder, 1\n    ./data/GTAV\n" in text
    assert text.splitlines()[2].split() == ["gtav", "-", "0", "0", "-", "0", "no-folder"]


def test_json_is_one_object(two_sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, error = run(capsys, "camvid", "bdd100k", "--json")
    content = json.loads(text)
    assert code == 1 and not error and content["healthy"] is False and content["absent"] == []
    camvid, bdd = content["domains"]
    assert (camvid["domain"], camvid["quick"], bdd["domain"]) == ("camvid", False, "bdd100k")
    assert camvid["faults"] == [
        {
            "domain": "camvid",
            "split": "train",
            "name": "missing-label",
            "severity": "fatal",
            "count": 1,
            "examples": ["train/00003.png without trainannot/00003.png"],
            "advice": "unpack the labels again, or remove the images that have none",
            "root": "./data/camvid",
        }
    ]
    assert bdd["splits"][0]["published"] == [7000] and "road" in bdd["splits"][0]["shares"]
    code, text, _ = run(capsys, "bdd100k", "--json", "--quick")
    assert code == 0 and json.loads(text)["healthy"] is True


def test_sets_of_a_domains_file(two_sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(two_sets, splits="[val]")
    save(two_sets / "facades/images/a.jpg", IMAGE)
    save(two_sets / "facades/labels/a.png", LABEL)
    code, text, _ = run(capsys, "--quick", "--domains", str(two_sets / "domains.yaml"))
    lines = map(str.split, text.splitlines())
    assert code == 1 and ["mine", "val", "images/*.jpg", "1", "1", "-", "1", "none"] in lines


def test_mistakes_in_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for argv, message in (
        ([], "error: no data set is there: set its folder in config.py"),
        (["camvit"], "did you mean 'camvid'?"),
        (["camvid", "--workers", "0"], "error: --workers 0: must be a number of processes"),
    ):
        code, text, error = run(capsys, *argv)
        assert code == 2 and not text and message in error and error.count("\n") == 1


# ---------------------------------------------------------------------------------- real frames


def test_real_frames_are_healthy(test_data: Path, tmp_path: Path) -> None:
    samples = test_data / "data/samples"
    city, val = "leftImg8bit_trainvaltest/leftImg8bit/val/aachen", "gtFine_trainvaltest/gtFine/val/aachen"
    mapillary = samples / "mapillary/mmseg_pseudo_mapillary_dataset"
    for source, target in (
        *((path, f"gtav/images/train/01/{path.name}") for path in samples.glob("gtav/images/*.png")),
        *((path, f"gtav/labels/train/01/{path.name}") for path in samples.glob("gtav/labels/*.png")),
        *((path, f"cityscapes/{city}/{path.name}") for path in samples.glob("cityscapes/*_leftImg8bit.png")),
        *((path, f"cityscapes/{val}/{path.name}") for path in samples.glob("cityscapes/*_labelIds.png")),
        *((path, f"bdd100k/images/val/{path.name}") for path in samples.glob("bdd100k/*.jpg")),
        *((path, f"bdd100k/labels/val/{path.name}") for path in samples.glob("bdd100k/*.png")),
        *((path, f"mapillary/training/images/{path.name}") for path in mapillary.glob("images/*.jpg")),
        *((path, f"mapillary/training/labels/{path.name}") for path in mapillary.glob("v1.2/*.png")),
    ):
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / target).symlink_to(source)
    counts = {"gtav": ("train", 3), "cityscapes": ("val", 1), "bdd100k": ("val", 2), "mapillary": ("train", 1)}
    for name, (split, number) in counts.items():
        report = examine(domain_at(tmp_path / name, name), splits=(split,), quick=False)
        assert not found(report) and report.splits[0].decoded == report.splits[0].labels == number, name
    (label,) = (tmp_path / "mapillary/training/labels").iterdir()
    label.unlink()
    label.symlink_to(next(mapillary.glob("v2.0/*.png")))
    report = examine(domain_at(tmp_path / "mapillary", "mapillary"), splits=("train",))
    assert "v2.0" in only(report, "unexpected-values", "fatal").advice


def test_the_documented_synthia_label_is_read_and_its_pillow_copy_is_not(test_data: Path, tmp_path: Path) -> None:
    source = test_data / "data/samples/synthia/FABRICATED_label_16bit_rgb.png"
    save(tmp_path / "RGB/train/a.png", np.zeros((76, 128, 3), np.uint8))
    target = tmp_path / "GT/LABELS/train/a.png"
    target.parent.mkdir(parents=True)
    shutil.copyfile(source, target)
    domain = domain_at(tmp_path, "synthia")
    assert not found(examine(domain, splits=("train",)))
    save(target, np.asarray(Image.open(source).convert("RGB"))[..., 0])
    assert "as zeros" in only(examine(domain, splits=("train",)), "unexpected-values", "fatal").advice


def test_real_camvid_is_healthy(test_data: Path) -> None:
    report = examine(domain_at(test_data / "data/camvid", "camvid"))
    assert [(row.split, row.images, row.labels) for row in report.splits] == [
        *(("train", 406, 406), ("val", 171, 171), ("test", 124, 124))
    ]
    assert not report.faults


def test_a_name_behind_the_settings_is_pointed_out() -> None:
    with pytest.raises(UserError, match=r"not 'camvid'; names of data sets stand before --opts"):
        check.main(["--opts", "DATASET.CAMVID_DIR=/data", "camvid"])


def test_a_sound_sample_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_domain(tmp_path / "camvid", "camvid")
    domain, cache, looked = domain_at(tmp_path / "camvid", "camvid"), str(tmp_path / "cache"), list[str]()

    def counted(pair: Pair, *, encoding: Encoding) -> Finding:
        looked.append(pair.image)
        return look(pair, encoding=encoding)

    monkeypatch.setattr("datasets.scan.look", counted)
    plain = check_domain(domain, quick=True, workers=1, splits=["train"])
    number = len(looked)
    for _ in range(3):
        assert check_domain(domain, quick=True, workers=1, splits=["train"], cache=cache) == plain
    assert number and len(looked) == 2 * number, "decoded twice: without a cache and to fill it"
    (file,) = (tmp_path / "cache").iterdir()
    for text in ("{", "[]", "[[1]]", "3"):
        file.write_text(text)
        assert check_domain(domain, quick=True, workers=1, splits=["train"], cache=cache) == plain
    assert len(looked) == 6 * number
    image = Path(looked[0])
    image.write_bytes(image.read_bytes()[:-20])  # another size
    for _ in range(2):  # what is damaged is not remembered
        report = check_domain(domain, quick=True, workers=1, splits=["train"], cache=cache)
        assert [fault.name for fault in report.faults if fault.severity == "fatal"] == ["undecodable-image"]
    assert len(looked) == 8 * number
