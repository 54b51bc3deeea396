"""Made archives in the providers' structures, to the layouts that the built-in domains read."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from datasets.codec import decode_label, read_image
from datasets.domains import BUILTIN, PUBLISHED
from datasets.splits import SPLIT_DATA, find_pairs
from scripts.prepare_data import NAMES, main, synthia_lists
from scripts.provided import needed
from tests.street_data import CLASSES, blocks, paint, save, save_label
from utils.errors import UserError, run_entry_point

ROOT = Path(__file__).resolve().parents[1]
IDS = {"train": (1, 2501), "val": (2,), "test": (24966,)}  # GTAV's: two of its ten parts, and the last
COUNTS = {  # images of train, val, test that `provide` makes
    "gtav": (2, 1, 1),
    "synthia": (2, 1),
    "cityscapes": (2, 1, 1),
    "bdd100k": (2, 1, 1),
    "mapillary": (2, 1, 1),
}
NEEDED = {"gtav": 8, "synthia": 9, "cityscapes": 8, "bdd100k": 7, "mapillary": 7}  # files


def label_of(name: str, stem: str) -> np.ndarray:
    return blocks(sum(stem.encode()), (16, 24), classes=CLASSES.get(name))


def provide(root: Path, name: str) -> list[Path]:
    """Write what a provider's archives hold, each archive as a folder, with files that are not needed."""
    first, second = root / "first", root / "second"
    lists = synthia_lists()
    for split, stems in {"train": ("ulm_1", "ulm_2"), "val": ("bonn_1",), "test": ("rome_1",)}.items():
        for index, stem in enumerate(stems):
            if name == "gtav":
                stem = f"{IDS[split][index]:05d}"
            elif name == "synthia" and split != "test":
                stem = PurePosixPath(lists[split][index]).stem
            label = label_of(name, stem)
            if name == "gtav":
                save(first / f"images/{stem}.png", paint(label))
                save_label(second / f"labels/{stem}.png", name, label)
            elif name == "synthia" and split != "test":
                save(first / f"RAND_CITYSCAPES/RGB/{stem}.png", paint(label))
                save_label(first / f"RAND_CITYSCAPES/GT/LABELS/{stem}.png", name, label)
                for kind in ("GT/COLOR", "Depth/Depth"):
                    save(first / f"RAND_CITYSCAPES/{kind}/{stem}.png", paint(label))
            elif name == "cityscapes":
                save(first / f"leftImg8bit/{split}/{stem[:4]}/{stem}_leftImg8bit.png", paint(label))
                for kind in ("labelIds", "instanceIds", "color"):
                    save_label(second / f"gtFine/{split}/{stem[:4]}/{stem}_gtFine_{kind}.png", name, label)
            elif name == "bdd100k":
                save(first / f"bdd100k/images/10k/{split}/{stem}.jpg", paint(label))
                for kind in ("masks", "colormaps") if split != "test" else ():
                    save_label(second / f"bdd100k/labels/sem_seg/{kind}/{split}/{stem}.png", name, label)
            elif name == "mapillary":
                folder = {"train": "training", "val": "validation", "test": "testing"}[split]
                save(first / f"{folder}/images/{stem}.jpg", paint(label))
                for kind in ("labels", "instances", "panoptic") if split != "test" else ():
                    save_label(first / f"{folder}/{kind}/{stem}.png", name, label)
    if name == "gtav":
        write_mat(root / "third/read_mapping/split.mat")
    return sorted(root.iterdir())


def write_mat(path: Path, **ids: tuple[int, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = {**IDS, **ids}
    savemat(path, {f"{split}Ids": np.array(ids[split], np.uint16)[:, None] for split in ids})
    return path


def pack(folder: Path, archive: Path, *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(archive, "w", method) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder).as_posix())
    return archive


def prepare(name: str, sources: list[Path], out: Path, *flags: str) -> None:
    """Run the program; the lists are in lists/ beside the target."""
    split_data = ["--split_data", str(out.parent / "lists")]
    main([name, *map(str, sources), "--out", str(out), *split_data, *flags])


def refused(name: str, sources: list[Path], out: Path, *flags: str) -> str:
    """Return the sentence with which a run is refused; nothing has been written."""
    before = tree(out.parent)
    with pytest.raises(UserError) as caught:
        prepare(name, sources, out, *flags)
    assert tree(out.parent) == before and "\n" not in str(caught.value)
    return str(caught.value)


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def counts(output: str) -> dict[str, list[str]]:
    """Return the numbers of a printed table by split."""
    lines = [line.split() for line in output.splitlines()]
    return {line[0]: line[1:] for line in lines if line and line[0] in ("train", "val", "test")}


@pytest.mark.parametrize("name", NAMES)
def test_archives_become_what_the_domain_reads(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folders = provide(tmp_path / "provider", name)
    archives = [pack(folder, tmp_path / f"{index}.zip") for index, folder in enumerate(reversed(folders))]
    out = tmp_path / "my data"
    prepare(name, archives, out)
    domain = replace(BUILTIN[name], root=str(out))
    for split, count in zip(("train", "val", "test"), COUNTS[name], strict=False):
        pairs = find_pairs(domain, split, need_labels=split != "test" or name == "gtav")
        assert len(pairs) == count
        for pair in (pair for pair in pairs if pair.label):
            decoded = decode_label(pair.label, encoding=domain.encoding)
            stem = Path(pair.image).stem.removesuffix("_leftImg8bit")
            np.testing.assert_array_equal(decoded, label_of(name, stem))
            assert np.asarray(read_image(pair.image)).shape[:2] == decoded.shape
    assert len(tree(out)) == NEEDED[name], "only what is needed"
    printed = capsys.readouterr().out
    found = counts(printed)
    assert [int(row[0]) for row in found.values()] == list(COUNTS[name])
    assert [row[1] for row in found.values()] == [f"{count:,}" for count, *_ in PUBLISHED[name].values()]
    assert sum(int(row[3]) for row in found.values()) == NEEDED[name] and {row[4] for row in found.values()} == {"0"}
    assert f"python -m scripts.check_data {name} --opts '{domain.root_key}={out}'" in printed


def test_gtav_parts_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "lists/gtav_split_val.txt"
    own.parent.mkdir()
    own.write_text("valid/00002.png")
    prepare("gtav", provide(tmp_path / "provider", "gtav"), tmp_path / "out")
    images = [path for path in tree(tmp_path / "out") if path.startswith("images/")]
    assert sorted(images) == [
        "images/test/10/24966.png",
        "images/train/01/00001.png",
        "images/train/02/02501.png",
        "images/valid/01/00002.png",
    ]
    assert tree(tmp_path / "lists") == {
        "gtav_split_train.txt": b"00001.png\n02501.png\n",
        "gtav_split_val.txt": b"valid/00002.png",
        "gtav_split_test.txt": b"24966.png\n",
    }
    assert "12,388 of the 12,403" in capsys.readouterr().out


MATCHES = [  # domain, path in a source, kind or "" for a file that is not needed
    ("gtav", "01_images/images/00001.png", "image"),
    ("gtav", "/data/images/gtav/labels/00001.png", "label"),
    ("gtav", "GTAV/images/train/01/00001.png", "image"),
    ("gtav", "/data/images/new/gtav/images/part/01/00001.png", "image"),
    ("gtav", "/data/images/new/gtav/depth/00001.png", ""),
    ("gtav", "mapillary/training/labels/a.png", ""),
    ("synthia", "__MACOSX/RGB/._0000000.png", ""),
    ("synthia", "RGB/0000000.png", "image"),
    ("synthia", "/data/RGB/SYNTHIA/Depth/0000000.png", ""),
    ("synthia", "SYNTHIA/RAND_CITYSCAPES/GT/LABELS/0000000.png", "label"),
    ("cityscapes", "leftImg8bit_trainvaltest/leftImg8bit/train/ulm/ulm_0_leftImg8bit.png", "image"),
    ("cityscapes", "leftImg8bit/train_extra/ulm/ulm_0_leftImg8bit.png", ""),
    ("cityscapes", "gtCoarse/train/ulm/ulm_0_gtCoarse_labelIds.png", ""),
    ("bdd100k", "10k/train/a.jpg", "image"),
    ("bdd100k", "bdd100k/seg/images/train/a.jpg", "image"),
    ("bdd100k", "bdd100k/images/100k/train/a.jpg", ""),
    ("bdd100k", "bdd100k/seg/labels/train/a_train_id.png", "label"),
    ("bdd100k", "bdd100k/labels/drivable/masks/train/a.png", ""),
    ("mapillary", "mapillary/training/v1.2/labels/a.png", "label"),
    ("mapillary", "mapillary/training/v2.0/labels/a.png", ""),
]


@pytest.mark.parametrize(("name", "path", "kind"), MATCHES)
def test_which_files_are_needed(name: str, path: str, kind: str) -> None:
    assert (needed(name, path) or [""])[0] == kind


def test_what_a_path_says() -> None:
    assert needed("bdd100k", "seg/labels/train/a_train_id.png") == ("label", "train", "a")
    assert needed("gtav", "any/02501.png/images/valid/x/02501.png") == ("image", "valid", "02/02501")
    assert needed("cityscapes", "leftImg8bit/val/ulm/ulm_0_leftImg8bit.png") == ("image", "val", "ulm/ulm_0")


def test_where_nothing_needs_to_be_prepared(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"set DATASET.CITYSCAPES_DIR to the folder of the archives, which are read where"
    ):
        main(["cityscapes", str(tmp_path)])
    main(["synthia", str(tmp_path), "--split_data", str(tmp_path / "lists"), "--dry_run"])
    assert tree(tmp_path) == {}
    main(["synthia", str(tmp_path), "--split_data", str(tmp_path / "lists")])
    assert {name: len(text.split()) for name, text in tree(tmp_path / "lists").items()} == {
        "synthia_split_train.txt": 6_580,
        "synthia_split_val.txt": 2_820,
    }


def test_links_need_no_space_and_outlive_the_source(tmp_path: Path) -> None:
    images, labels = provide(tmp_path / "provider", "cityscapes")
    shutil.move(pack(labels, tmp_path / "renamed"), tmp_path / "provider/renamed.zip")
    shutil.rmtree(labels)
    prepare("cityscapes", [tmp_path / "provider"], tmp_path / "out")  # a folder with an archive in it
    source = images / "leftImg8bit/val/bonn/bonn_1_leftImg8bit.png"
    target = tmp_path / "out/leftImg8bit_trainvaltest" / source.relative_to(images)
    assert target.samefile(source) and not target.is_symlink()
    shutil.rmtree(tmp_path / "provider")
    assert len(find_pairs(replace(BUILTIN["cityscapes"], root=str(tmp_path / "out")), "trainval")) == 3


def test_where_hard_links_are_impossible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def link(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    (folder,) = provide(tmp_path / "provider", "mapillary")
    monkeypatch.setattr(os, "link", link)
    prepare("mapillary", [folder], tmp_path / "out")
    assert (tmp_path / "out/training/images/ulm_1.jpg").is_symlink()
    assert "7 files are symbolic links" in capsys.readouterr().out
    content = tree(tmp_path / "out")
    prepare("mapillary", [folder], tmp_path / "moved", "--move")
    assert tree(tmp_path / "moved") == content and not (folder / "training/labels/ulm_1.png").exists()


def test_copy_and_move(tmp_path: Path) -> None:
    images, labels = provide(tmp_path / "provider", "bdd100k")
    archive = pack(labels, tmp_path / "labels.zip")
    before = tree(images)
    prepare("bdd100k", [images, archive], tmp_path / "copied", "--copy")
    assert tree(images) == before and (tmp_path / "copied/images/val/bonn_1.jpg").stat().st_nlink == 1
    prepare("bdd100k", [archive, images], tmp_path / "moved", "--move")
    assert tree(images) == {} and archive.exists()
    assert tree(tmp_path / "moved") == tree(tmp_path / "copied")


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = provide(tmp_path / "provider", "gtav")
    for number in (3, 4):
        save(folders[0] / f"images/0000{number}.png", np.zeros((2, 2), np.uint8))
        save(folders[1] / f"labels/0000{number}.png", np.zeros((2, 2), np.uint8))
    write_mat(folders[2] / "read_mapping/split.mat", train=(1, 3, 4, 2501))
    archive = pack(folders[0], tmp_path / "a.zip")
    before = tree(tmp_path)
    prepare("gtav", [archive, *folders[1:]], tmp_path / "out", "--dry_run")
    printed = capsys.readouterr().out
    assert tree(tmp_path) == before and not (tmp_path / "out").exists()
    assert f"{archive}:images/00001.png -> {tmp_path}/out/images/train/01/00001.png" in printed
    assert printed.count(" -> ") == 3 + 2 + 2 and "and 5 more of train" in printed
    assert counts(printed)["train"] == ["4", "12,403", "4", "8", "0"]
    prepare("gtav", [archive, *folders[1:]], tmp_path / "out", "--dry_run", "--verbose")
    assert capsys.readouterr().out.count(" -> ") == 12


KILLED = """
import os, shutil, signal, sys
from scripts.prepare_data import main

copy, calls = shutil.copyfileobj, []

def half(reader, writer, length):
    calls.append(reader)
    if len(calls) == 3:
        writer.write(reader.read(20))
        writer.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    copy(reader, writer, length)

shutil.copyfileobj = half
main(sys.argv[1:])
"""


def test_a_killed_run_leaves_whole_files_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = provide(tmp_path / "provider", "mapillary")
    archive, out = pack(folder, tmp_path / "a.zip"), tmp_path / "out"
    run = subprocess.run(
        [sys.executable, "-c", KILLED, "mapillary", str(archive), "--out", str(out)], cwd=ROOT, check=False, timeout=120
    )
    assert run.returncode == -signal.SIGKILL
    partial = [path for path in out.rglob("*") if path.is_file() and path.name.startswith(".")]
    whole = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path not in partial}
    assert len(whole) == 2 and [path.stat().st_size for path in partial] == [20]
    prepare("mapillary", [archive], out)
    found = counts(capsys.readouterr().out)
    assert sum(int(row[3]) for row in found.values()) == 5 and sum(int(row[4]) for row in found.values()) == 2
    assert {path: path.stat().st_mtime_ns for path in whole} == whole, "finished files are not made again"
    prepare("mapillary", [folder], tmp_path / "straight", "--copy")
    assert tree(out) == tree(tmp_path / "straight"), "and nothing is left of the partial file"


def test_a_failed_write_leaves_nothing_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any, writer: Any, __: int) -> None:
        writer.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (folder,) = provide(tmp_path / "provider", "mapillary")
    monkeypatch.setattr(shutil, "copyfileobj", full)
    assert "No space left on device" in refused("mapillary", [folder], tmp_path / "out", "--copy")


@pytest.mark.parametrize("occupied", [b"mine", None])
def test_nothing_is_overwritten(tmp_path: Path, occupied: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    provide(tmp_path / "provider", "cityscapes")
    sources = [tmp_path]  # the target folder is in it, and is no source
    target = tmp_path / "out/gtFine_trainvaltest/gtFine/val/bonn/bonn_1_gtFine_labelIds.png"
    target.parent.mkdir(parents=True)
    target.write_bytes(occupied) if occupied else target.symlink_to("nowhere")
    said = "has 4 bytes" if occupied else "is no file or a broken link"
    assert f"{target}: {said}" in refused("cityscapes", sources, tmp_path / "out")
    with pytest.raises(SystemExit) as left:
        run_entry_point(lambda: prepare("cityscapes", sources, tmp_path / "out"))
    assert left.value.code == 2 and capsys.readouterr().err.startswith("error: ")


def test_a_target_that_appears_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = provide(tmp_path / "provider", "mapillary")
    monkeypatch.setattr("scripts.prepare_data._is_done", lambda *_: False)
    for mode in ("--link", "--copy"):
        target = tmp_path / mode / "training/images/ulm_1.jpg"
        target.parent.mkdir(parents=True)
        target.write_bytes(b"mine")
        with pytest.raises(UserError, match=r"ulm_1\.jpg: has appeared meanwhile and is not overwritten"):
            prepare("mapillary", [folder], tmp_path / mode, mode)
        assert target.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("/training/images/a.jpg", "is an absolute path"),
        ("C:/training/images/a.jpg", "is an absolute path"),
        ("training\\images\\a.jpg", "has a backslash"),
        ("leftImg8bit/train/../x_leftImg8bit.png", "leads out of the target folder"),
        ("training/images/link.jpg", "is a symbolic link"),
        ("training/images/device.jpg", "is no regular file"),
    ],
)
def test_members_that_leave_the_target_are_refused_by_name(tmp_path: Path, member: str, reason: str) -> None:
    (folder,) = provide(tmp_path / "provider", "mapillary")
    archive, info = pack(folder, tmp_path / "a.zip"), zipfile.ZipInfo(member)
    if "link" in reason:
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
    elif "regular" in reason:
        info.external_attr = (stat.S_IFCHR | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(info, "/etc/passwd")
    assert f"{archive}: refused, its member {member!r} {reason}" in refused("mapillary", [archive], tmp_path / "out")


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = provide(tmp_path / "provider", "bdd100k")
    archive, out = pack(labels, tmp_path / "a.zip"), tmp_path / "out"
    packed = sum(path.stat().st_size for path in labels.glob("bdd100k/labels/sem_seg/masks/*/*"))
    files = sum(path.stat().st_size for path in images.rglob("*.jpg"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=packed))
    sentence = refused("bdd100k", [images, archive], out, "--copy")
    assert f"{packed + files:,} bytes are needed and {packed:,} are free" in sentence
    prepare("bdd100k", [images, archive], out)  # links need nothing
    assert len(tree(out)) == NEEDED["bdd100k"]


def test_archives_that_cannot_be_read(tmp_path: Path) -> None:
    (folder,) = provide(tmp_path / "provider", "mapillary")
    archive, out = pack(folder, tmp_path / "a.zip"), tmp_path / "out"
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2])
    assert f"{archive}: is not a zip archive that can be read" in refused("mapillary", [archive], out)
    at = data.index(b"testing/images/rome_1.jpg") + 60
    archive.write_bytes(data[:at] + bytes(20) + data[at + 20 :])
    assert f"{archive}:testing/images/rome_1.jpg: cannot be unpacked" in refused("mapillary", [archive], out)
    assert f"{tmp_path}/none: no such file" in refused("mapillary", [tmp_path / "none"], out)


def test_sources_that_hold_the_wrong_things(tmp_path: Path) -> None:
    images, labels = provide(tmp_path / "cityscapes", "cityscapes")
    (other,) = provide(tmp_path / "mapillary", "mapillary")
    out = tmp_path / "out"
    assert f"{other}: holds nothing of cityscapes, no file such as leftImg8bit/train/" in refused(
        "cityscapes", [images, labels, other], out
    )
    assert "cityscapes: 3 of 3 images have no label in the sources" in refused("cityscapes", [images], out)
    with pytest.raises(UserError, match="unknown data set 'cityscape'.*did you mean 'cityscapes'"):
        prepare("cityscape", [images], out)


def test_labels_may_lie_in_the_folder_under_another_layouts_name(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    label = blocks(1)
    save(source / "images" / "10k" / "train" / "a-b.jpg", paint(label))
    assert "bdd100k: 1 of 1 images have no label" in refused("bdd100k", [source], out)
    save_label(out / "labels" / "train" / "a-b_train_id.png", "bdd100k", label)
    prepare("bdd100k", [source], out)
    assert [pair.name for pair in find_pairs(replace(BUILTIN["bdd100k"], root=str(out)), "train")] == [
        "images/train/a-b.jpg"
    ]


def test_the_same_file_in_two_sources(tmp_path: Path) -> None:
    (folder,) = provide(tmp_path / "provider", "mapillary")
    archive = pack(folder, tmp_path / "a.zip")
    prepare("mapillary", [archive, folder], tmp_path / "out")
    assert len(tree(tmp_path / "out")) == NEEDED["mapillary"]
    (folder / "training/images/ulm_1.jpg").write_bytes(b"another")
    sentence = refused("mapillary", [archive, folder], tmp_path / "new")
    assert "are different files for training/images/ulm_1.jpg" in sentence


def test_lists_of_ones_own_replace_the_made_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = provide(tmp_path / "provider", "gtav")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "gtav_split_train.txt").write_text("train/01/00002.png\n\n77777.png\n")
    (lists / "gtav_split_val.txt").write_text("00001.png\n")
    prepare("gtav", folders[:2], tmp_path / "out")  # without read_mapping
    printed = capsys.readouterr().out
    assert {path for path in tree(tmp_path / "out") if path.startswith("images/")} == {
        "images/train/01/00002.png",
        "images/valid/01/00001.png",
    }
    assert "2 images are left out, no list names them; the first is" in printed
    assert "1 names of the lists are in no source; the first is 77777" in printed
    (tmp_path / "out/images/train/01").rename(tmp_path / "out/images/train/named otherwise")
    assert "images/train/named otherwise/00002.png: " in refused("gtav", folders[:2], tmp_path / "out")
    (lists / "gtav_split_train.txt").write_text("00001.png\n")
    (lists / "gtav_split_val.txt").write_text("00002.png\n")
    sentence = refused("gtav", folders[:2], tmp_path / "out")
    assert "put it into val, to be images/valid/01/00002.png; the folder was filled in another way" in sentence
    (lists / "gtav_split_val.txt").write_text("valid/00001.png\n")
    assert "valid/00001.png is listed twice, for train and for val" in refused("gtav", folders[:2], tmp_path / "new")


def test_gtav_without_its_split(tmp_path: Path) -> None:
    *folders, mapping = provide(tmp_path / "provider", "gtav")
    sentence = refused("gtav", folders, tmp_path / "out")
    assert "gtav: no source holds split.mat and" in sentence and "give the provider's read_mapping.zip" in sentence
    broken = mapping / "read_mapping/split.mat"
    savemat(broken, {"trainIds": np.ones((1, 1))})
    assert f"{broken}: cannot be read as the provider's split.mat (KeyError" in refused(
        "gtav", [*folders, broken], tmp_path / "out"
    )


def test_the_tracked_lists_of_synthia_are_those_of_the_recorded_seed() -> None:
    made = synthia_lists()
    for split, count in (("train", 6_580), ("val", 2_820)):
        assert (SPLIT_DATA / f"synthia_split_{split}.txt").read_text() == "".join(f"{name}\n" for name in made[split])
        assert len(made[split]) == count
    assert sorted(made["train"] + made["val"]) == [f"{number:07d}.png" for number in range(9_400)]
