"""The cache of decoded frames: whole files, right keys, several processes, full disks, broken files."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets import segmentation
from datasets.codec import Encoding, image_size
from datasets.domains import load_domains
from datasets.segmentation import FrameCache, decode, read_pair
from datasets.splits import Pair, find_pairs
from scripts import cache_frames as build_cache
from tests.street_data import make_cfg, write_domain
from utils.errors import UserError


@pytest.fixture
def gtav(tmp_path: Path) -> tuple[list[Pair], Encoding]:
    write_domain(tmp_path / "gtav", "gtav", train=5)
    domain = load_domains(make_cfg(tmp_path, GTAV_DIR=str(tmp_path / "gtav")))["gtav"]
    return find_pairs(domain, "train"), domain.encoding


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_comes_out_is_what_was_decoded(gtav: tuple[list[Pair], Encoding], tmp_path: Path) -> None:
    pairs, encoding = gtav
    cache = FrameCache(tmp_path / "frames")
    for _ in range(2):  # made, then found
        for pair in pairs:
            image, label = read_pair(pair, encoding=encoding)
            kept_image, kept_label = read_pair(pair, encoding=encoding, cache=cache)
            np.testing.assert_array_equal(kept_image, np.asarray(image))
            np.testing.assert_array_equal(kept_label, label)
    assert isinstance(kept_image, np.memmap) and isinstance(kept_label, np.memmap)
    assert len(files(cache.folder)) == 10 and not cache.missing(pairs, encoding=encoding)
    assert cache.size(pairs, encoding=encoding) == sum(path.stat().st_size for path in files(cache.folder))


def test_a_source_that_changes_is_decoded_again(gtav: tuple[list[Pair], Encoding], tmp_path: Path) -> None:
    (pair, other, *_), encoding = gtav
    cache = FrameCache(tmp_path / "frames")
    cache.read(pair.image)
    shutil.copyfile(other.image, pair.image)
    os.utime(pair.image, ns=(1, 1))
    np.testing.assert_array_equal(cache.read(pair.image), np.asarray(read_pair(other, encoding=encoding)[0]))


def test_an_encoding_that_changes_is_another_label(gtav: tuple[list[Pair], Encoding], tmp_path: Path) -> None:
    (pair, *_), encoding = gtav
    cache = FrameCache(tmp_path / "frames")
    from dataclasses import replace

    road = next(raw for raw, train in encoding.table if train == 0)
    changed = replace(encoding, table=tuple((raw, 5 if raw == road else train) for raw, train in encoding.table))
    assert not np.array_equal(cache.read(pair.label, encoding), cache.read(pair.label, changed))


@pytest.mark.parametrize("damage", ["cut", "foreign", "header", "zip", "kind"])
def test_a_broken_file_is_made_again(
    gtav: tuple[list[Pair], Encoding], tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    (pair, *_), _ = gtav
    cache = FrameCache(tmp_path / "frames")
    expected = np.array(cache.read(pair.image))
    place = cache.place(pair.image)
    if damage == "cut":
        place.write_bytes(place.read_bytes()[:-7])
    elif damage == "foreign":
        place.write_text("no array at all")
    elif damage == "header":
        place.write_bytes(place.read_bytes().replace(b"}", b" ", 1))
    elif damage == "zip":
        place.write_bytes(b"PK\3\4" + place.read_bytes()[4:])
    else:
        with place.open("wb") as file:
            np.save(file, expected.astype(np.float32))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(cache.read(pair.image), expected)
    assert str(place) in caplog.text and "made again" in caplog.text
    np.testing.assert_array_equal(np.load(place), expected)


def fill(folder: str, pairs: list[Pair], encoding: Encoding) -> None:
    for pair in pairs:
        read_pair(pair, encoding=encoding, cache=FrameCache(Path(folder)))


def test_several_processes_fill_it_at_once(gtav: tuple[list[Pair], Encoding], tmp_path: Path) -> None:
    pairs, encoding = gtav
    folder = tmp_path / "frames"
    processes = [
        multiprocessing.get_context("fork").Process(target=fill, args=(str(folder), pairs, encoding)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(files(folder)) == 10, "no temporary file stays, none is there twice"
    cache = FrameCache(folder)
    assert [cache.verify(pair, encoding=encoding) for pair in pairs] == [[]] * 5


def test_a_disk_without_room_is_refused_with_the_size(
    gtav: tuple[list[Pair], Encoding], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, encoding = gtav
    cache = FrameCache(tmp_path / "frames")
    cache.read(pairs[0].image), cache.read(pairs[0].label, encoding)
    width, height = image_size(pairs[0].image)
    needed = 4 * (4 * width * height + 256)
    monkeypatch.setattr(segmentation.shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    cache.reserve([(pairs, encoding)])
    monkeypatch.setattr(segmentation.shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(UserError, match=r"4 decoded frames need 0\.1 MB, and its disk has 0\.1 MB free"):
        cache.reserve([(pairs, encoding)])


def test_a_disk_that_fills_up_leaves_nothing_behind(
    gtav: tuple[list[Pair], Encoding], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (pair, *_), _ = gtav
    cache = FrameCache(tmp_path / "frames")

    def full(file: object, array: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segmentation.np, "save", full)
    np.testing.assert_array_equal(cache.read(pair.image), decode(pair.image))
    assert "cannot be written (No space left on device); make room" in caplog.text
    assert not files(cache.folder)


def test_what_a_killed_process_left_is_removed_but_not_what_is_being_written(tmp_path: Path) -> None:
    old, new = (tmp_path / "ab" / f".{name}.npy.1.ff.tmp" for name in ("old", "new"))
    old.parent.mkdir()
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    FrameCache(tmp_path).reserve([])
    assert files(tmp_path) == [new]


def test_the_program_builds_goes_on_and_verifies(
    gtav: tuple[list[Pair], Encoding],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs, encoding = gtav
    where = [
        "--frame_cache",
        str(tmp_path / "frames"),
        "--num_workers",
        "0",
        "--opts",
        f"DATASET.GTAV_DIR={tmp_path}/gtav",
    ]
    cache = FrameCache(tmp_path / "frames")
    cache.read(pairs[2].image)
    build_cache.main(["gtav", *where])
    assert "5 frames, 5 made now" in capsys.readouterr().out
    build_cache.main(["gtav", *where])
    assert "5 frames, 0 made now" in capsys.readouterr().out
    build_cache.main(["gtav", "--verify", *where])
    assert "5 frames compared, 0 files differed" in capsys.readouterr().out
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        cache.place(pairs[0].label, encoding).unlink()
        build_cache.main(["gtav", "--verify", *where])
        assert "4 frames compared, 0 files differed and were removed, 1 missing" in capsys.readouterr().out
        with pytest.raises(UserError, match="make room"):
            build_cache.main(["gtav", *where])
    build_cache.main(["gtav", *where])
    assert "5 frames, 1 made now" in capsys.readouterr().out
    place = cache.place(pairs[1].label, encoding)
    with place.open("wb") as file:
        np.save(file, np.zeros((66, 120), np.uint8))
    with pytest.raises(SystemExit, match="1"):
        build_cache.main(["gtav", "--verify", *where])
    out = capsys.readouterr().out
    assert "1 files differed and were removed" in out and pairs[1].label in out and not place.exists()
    build_cache.main(["gtav", *where])
    assert "5 frames, 1 made now" in capsys.readouterr().out
    with pytest.raises(UserError, match="give --frame_cache DIR"):
        build_cache.main(["gtav", *where[2:]])
    with pytest.raises(UserError, match="--num_workers must be a whole number of at least -1, got -3"):
        build_cache.main(["gtav", "--num_workers", "-3", *where[-2:]])


def test_the_program_names_a_broken_source(gtav: tuple[list[Pair], Encoding], tmp_path: Path) -> None:
    pairs, _ = gtav
    Path(pairs[3].image).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    where = ["--frame_cache", str(tmp_path / "frames"), "--opts", f"DATASET.GTAV_DIR={tmp_path}/gtav"]
    for workers in ("0", "2"):
        with pytest.raises(UserError, match=r"00003\.png"):
            build_cache.main(["gtav", "--num_workers", workers, *where])


def test_sizes_come_from_headers(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (31, 17)).save(tmp_path / name)
        assert image_size(str(tmp_path / name)) == (31, 17)
    (tmp_path / "c.png").write_text("no image")
    for name in ("c.png", "missing.png"):
        with pytest.raises(UserError, match=name):
            image_size(str(tmp_path / name))


def test_a_memory_mapped_frame_is_not_written_to(gtav: tuple[list[Pair], Encoding], tmp_path: Path) -> None:
    from datasets.segmentation import to_tensor

    (pair, *_), encoding = gtav
    cache = FrameCache(tmp_path / "frames")
    read_pair(pair, encoding=encoding, cache=cache)
    tensor = to_tensor(cache.read(pair.image))
    tensor.zero_()
    assert torch.equal(to_tensor(cache.read(pair.image)), to_tensor(np.array(read_pair(pair, encoding=encoding)[0])))
