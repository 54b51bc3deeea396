"""A split is opened once per run, by the first process; archives are read where they lie, as if unpacked."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections import Counter
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import files, splits
from datasets.checks import check_domain
from datasets.codec import decode_label, image_size, read_image
from datasets.domains import BUILTIN, Domain, load_domains
from datasets.loaders import build_training_loader
from datasets.sampling import cache_key
from datasets.segmentation import FrameCache, read_pair
from datasets.splits import Split, Splits
from scripts import prepare_data
from tests.runs import REPOSITORY, launch, train_arguments
from tests.street_data import blocks, make_cfg, paint, save, write_domain
from tests.test_prepare import COUNTS, IDS, pack, provide
from utils.errors import UserError

# train.py, with a record of every folder of the data that is listed, every archive and header that is read.
RECORDER = """
import json, os, sys
from pathlib import Path

repository, data, record = sys.argv[1:4]
sys.path.insert(0, repository)
seen = {"listed": [], "headers": []}

def look(event, arguments):
    if event in ("os.listdir", "os.scandir") and str(arguments[0]).startswith(data):
        seen["listed"].append(str(arguments[0]))

sys.addaudithook(look)
import train
from datasets import splits

def image_size(path, original=splits.image_size):
    seen["headers"].append(path)
    return original(path)

splits.image_size = image_size
train.main(sys.argv[4:])
Path(f"{record}.{os.environ['RANK']}").write_text(json.dumps(seen))
"""


def test_every_split_is_listed_once_by_the_first_process(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("gtav", "camvid"):
        write_domain(data / name, name, train=4, val=2)
    program = tmp_path / "recorder.py"
    program.write_text(RECORDER)
    flags = train_arguments(data / "camvid", tmp_path / "out")
    flags += ["--dataset", "gtav", "camvid", "--val_dataset", "camvid", "gtav"]
    flags += ["--covstat_val_dataset", "camvid", "gtav"]
    flags += ["--method", "isw", "--trials", "2", "--cov_stat_epoch", "0", "--val_interval", "1", "--val_limit", "1"]
    flags += ["--class_uniform_pct", "0.5", "--bs_mult", "1", "--max_iter", "8", "--quick_check"]
    flags += ["--opts", f"DATASET.CAMVID_DIR={data}/camvid", f"DATASET.GTAV_DIR={data}/gtav"]
    launch(str(program), [str(REPOSITORY), str(data), str(tmp_path / "seen"), *flags], processes=2)
    first, second = (json.loads((tmp_path / f"seen.{rank}").read_text()) for rank in range(2))
    assert second == {"listed": [], "headers": []}
    listed = Counter(str(Path(folder).relative_to(data)) for folder in first["listed"])
    assert set(listed.values()) == {1}, listed
    leaves = {f"gtav/{kind}/{split}/folder" for kind in ("images", "labels") for split in ("train", "valid")}
    assert leaves | {"camvid/train", "camvid/trainannot", "camvid/val", "camvid/valannot"} <= set(listed)
    assert len(first["headers"]) == len(set(first["headers"])) == 2 * (4 + 2)


SHARED = """
import json, os, sys
from pathlib import Path

repository, data, record = sys.argv[1:4]
sys.path.insert(0, repository)
import torch
from dataclasses import replace
from datasets.domains import BUILTIN
from datasets.splits import Splits
from utils.distributed import process_group
from utils.errors import UserError

rank, seen = int(os.environ["RANK"]), []
with process_group(torch.device("cpu"), save_memory=""):
    splits = Splits({"gtav": replace(BUILTIN["gtav"], root=data if rank == 0 else "/nowhere")})
    for split in ("train", "test", "val"):
        try:
            opened = splits.open("gtav", split)
            seen.append([opened.list_hash, opened.pairs[0].image])
        except UserError as error:
            seen.append(str(error))
Path(f"{record}.{rank}").write_text(json.dumps(seen))
"""


def test_the_other_processes_receive_what_the_first_found_or_its_error(tmp_path: Path) -> None:
    write_domain(tmp_path / "gtav", "gtav")
    program = tmp_path / "shared.py"
    program.write_text(SHARED)
    launch(str(program), [str(REPOSITORY), str(tmp_path / "gtav"), str(tmp_path / "seen")], processes=2)
    first, second = (json.loads((tmp_path / f"seen.{rank}").read_text()) for rank in range(2))
    assert first == second and first[1].startswith("gtav/test: no image matches")
    assert first[2] == [
        opened(tmp_path / "gtav", "gtav", "val").list_hash,
        f"{tmp_path}/gtav/images/valid/folder/00000.png",
    ]


def test_a_split_with_and_without_labels_is_one_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_domain(tmp_path, "gtav")
    save(tmp_path / "images/train/folder/00001.png", paint(blocks(0, (10, 10))))
    listed, list_split = [], splits.list_split

    def count(domain: Domain, split: str) -> splits.Listing | None:
        listed.append(split)
        return list_split(domain, split)

    monkeypatch.setattr(splits, "list_split", count)
    run = Splits({"gtav": replace(BUILTIN["gtav"], root=str(tmp_path))})
    bare, labelled = run.open("gtav", "train", need_labels=False), run.open("gtav", "train")
    assert (len(bare.pairs), len(labelled.pairs)) == (4, 3) and {pair.label for pair in bare.pairs} == {""}
    assert len(run.open("gtav", "trainval").pairs) == 5 and run.open("gtav", "val").pairs[0].label
    assert run.open("gtav", "train") is labelled and listed == ["train", "val"]
    for _ in range(2):
        with pytest.raises(UserError, match="gtav/test: no image matches"):
            run.open("gtav", "test")
    assert listed == ["train", "val", "test"]


@pytest.mark.parametrize(("limit", "expected"), [(0, "0123456"), (7, "0123456"), (9, "0123456"), (3, "024"), (1, "0")])
def test_a_subset_is_spread_evenly(limit: int, expected: str) -> None:
    split = Split(BUILTIN["gtav"], "val", tuple(splits.Pair("", "", name) for name in "0123456"))
    assert "".join(pair.name for pair in split.subset(limit).pairs) == expected


# ---------------------------------------------------------------------------------- archives where they lie


def write_lists(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the lists that a domain's files are sorted by."""
    folder.mkdir(exist_ok=True)
    gtav = {split: [f"{number:05d}.png" for number in numbers] for split, numbers in IDS.items()}
    lists: dict[str, dict[str, list[str]]] = {"gtav": gtav, "synthia": prepare_data.synthia_lists()}
    for split, names in lists.get(name, {}).items():
        (folder / f"{name}_split_{split}.txt").write_text("\n".join(names))
    monkeypatch.setattr(splits, "SPLIT_DATA", folder)


def roots_of(tmp_path: Path, name: str, *, method: int = zipfile.ZIP_DEFLATED) -> tuple[Path, Path]:
    """Return a folder with the provider's archives, and one with the files in them."""
    packed, unpacked = tmp_path / "packed", tmp_path / "unpacked"
    packed.mkdir()
    for index, folder in enumerate(provide(tmp_path / "provider", name)):
        pack(folder, packed / f"{index:02d}_part.zip", method=method)
        shutil.copytree(folder, unpacked, dirs_exist_ok=True)
    return packed, unpacked


def opened(root: Path, name: str, split: str = "train") -> Split:
    return Splits({name: replace(BUILTIN[name], root=str(root))}).open(name, split)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", list(COUNTS))
def test_archives_are_read_as_if_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: int
) -> None:
    packed, unpacked = roots_of(tmp_path, name, method=method)
    write_lists(tmp_path / "lists", name, monkeypatch)
    for split, count in zip(("train", "val"), COUNTS[name], strict=False):
        inside, outside = opened(packed, name, split), opened(unpacked, name, split)
        assert len(inside.pairs) == count and inside.list_hash == outside.list_hash
        assert all(".zip/" in path for pair in inside.pairs for path in pair[:2])
        for first, second in zip(inside.pairs, outside.pairs, strict=True):
            parts = zip(*(read_pair(pair, encoding=inside.encoding) for pair in (first, second)), strict=True)
            assert all(np.array_equal(a, b) for a, b in parts)
            assert image_size(first.image) == image_size(second.image)
    for quick in (True, False):
        report = check_domain(inside.domain, quick=quick, workers=1)
        assert report.healthy and [part.labels for part in report.splits][:2] == list(COUNTS[name])[:2]


def test_archives_in_workers_and_threads(tmp_path: Path) -> None:
    write_domain(tmp_path / "unpacked", "camvid", train=12)
    (tmp_path / "packed").mkdir()
    pack(tmp_path / "unpacked", tmp_path / "packed/camvid.zip")
    batches = []
    for folder in ("packed", "unpacked"):
        values = {"CAMVID_DIR": str(tmp_path / folder), "NUM_WORKERS": 2, "CLASS_UNIFORM_PCT": 0.5}
        cfg = make_cfg(tmp_path / folder, **values)
        loader = build_training_loader(cfg, Splits(load_domains(cfg)), jitter="diia", rank=0, world_size=1)
        batches.append([batch for epoch in range(2) for batch in loader.epoch(epoch)])
    for first, second in zip(*batches, strict=True):
        assert first.names == second.names and torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels)
    inside, outside = (opened(tmp_path / folder, "camvid").pairs for folder in ("packed", "unpacked"))
    expected = [files.read_bytes(pair.image) for pair in outside] * 20
    files._directory.cache_clear()
    with ThreadPool(8) as pool:
        assert pool.map(files.read_bytes, [pair.image for pair in inside] * 20) == expected


def test_what_is_unpacked_comes_first_and_halves_complete_each_other(tmp_path: Path) -> None:
    packed, unpacked = roots_of(tmp_path, "cityscapes")
    expected = opened(unpacked, "cityscapes").list_hash
    shutil.copytree(unpacked / "leftImg8bit", packed / "leftImg8bit")
    half = opened(packed, "cityscapes")
    assert half.list_hash == expected
    assert all(".zip/" not in pair.image and ".zip/" in pair.label for pair in half.pairs)
    shutil.copytree(unpacked / "gtFine", packed / "gtFine")
    (packed / "00_part.zip").write_bytes(b"cut off")  # nobody opens it
    assert opened(packed, "cityscapes").list_hash == expected
    shutil.rmtree(packed / "gtFine")
    with pytest.raises(
        UserError, match=r"00_part\.zip: is not a zip archive that can be read \(.*\); download it again"
    ):
        opened(packed, "cityscapes")


def test_a_folder_may_be_named_like_an_archive(tmp_path: Path) -> None:
    root = tmp_path / "a.zip" / "b.zip"
    write_domain(root, "camvid")
    split = opened(root, "camvid")
    assert len(split.pairs) == 4 and read_pair(split.pairs[0], encoding=split.encoding)[0].shape == (40, 64, 3)
    (root / "test.zip").mkdir()
    with pytest.raises(UserError, match="camvid/test: no image matches"):
        opened(root, "camvid", "test")


def test_without_lists_the_way_to_them_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, unpacked = roots_of(tmp_path, "gtav")
    monkeypatch.setattr(splits, "SPLIT_DATA", tmp_path / "lists")
    for root in (packed, unpacked):
        with pytest.raises(UserError) as caught:
            opened(root, "gtav")
        assert f"`python -m scripts.prepare_data gtav {root}` makes the lists" in str(caught.value)
        assert f"there is no {tmp_path}/lists/gtav_split_train.txt" in str(caught.value)
        report = check_domain(replace(BUILTIN["gtav"], root=str(root)), quick=True, workers=1)
        assert all("makes the lists" in fault.advice for fault in report.faults) and not report.healthy
        prepare_data.main(["gtav", str(root), "--split_data", str(tmp_path / "lists")])
        assert [len(opened(root, "gtav", split).pairs) for split in IDS] == [2, 1, 1]
        shutil.rmtree(tmp_path / "lists")


def test_a_name_in_two_lists_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, _ = roots_of(tmp_path, "gtav")
    write_lists(tmp_path / "lists", "gtav", monkeypatch)
    (tmp_path / "lists/gtav_split_val.txt").write_text("00002.png\ntrain/00001.png\n")
    with pytest.raises(
        UserError, match=r"gtav_split_val\.txt: train/00001\.png is listed twice, for train and for val"
    ):
        opened(packed, "gtav")


def test_damaged_members_are_named(tmp_path: Path) -> None:
    packed, _ = roots_of(tmp_path, "mapillary")
    archive = packed / "00_part.zip"
    image, label, _ = opened(packed, "mapillary").pairs[0]
    whole = archive.read_bytes()
    for member in (image, label):
        at = whole.index(member.removeprefix(f"{archive}/").encode())
        for start, damage in ((at - 30, bytes(4)), (at + 60, bytes(20))):
            archive.write_bytes(whole[:start] + damage + whole[start + len(damage) :])
            with pytest.raises(UserError) as caught:
                read_image(image) if member == image else decode_label(label, encoding=BUILTIN["mapillary"].encoding)
            assert str(caught.value).startswith(f"{member}: this file cannot be decoded (")
    archive.write_bytes(whole)
    with pytest.raises(UserError, match=r"00_part\.zip/nothing\.png: no such file"):
        read_image(f"{archive}/nothing.png")
    for read in (files.stamp, FrameCache(tmp_path / "frames").place):
        with pytest.raises(UserError, match=r"00_part\.zip/nothing\.png: cannot be read"):
            read(f"{archive}/nothing.png")
    flags = whole.rindex(image.removeprefix(f"{archive}/").encode()) - 46 + 8  # of the directory's entry
    archive.write_bytes(whole[:flags] + b"\1" + whole[flags + 1 :])
    with pytest.raises(UserError, match=f"{image}: this file cannot be decoded .it is encrypted"):
        read_image(image)
    archive.unlink()
    with pytest.raises(UserError, match=f"{image}: no such file"):
        read_image(image)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_is_named_whatever_the_compression(tmp_path: Path, method: int) -> None:
    save(tmp_path / "in/a.png", paint(blocks(0, (40, 64))))
    archive = pack(tmp_path / "in", tmp_path / "in.zip", method=method)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:60] + bytes(20) + whole[80:])
    with pytest.raises(UserError, match=r"in\.zip/a\.png: this file cannot be decoded \("):
        read_image(f"{archive}/a.png")


def test_caches_follow_an_archive(tmp_path: Path) -> None:
    packed, _ = roots_of(tmp_path, "mapillary")
    split, cache = opened(packed, "mapillary"), FrameCache(tmp_path / "frames")
    key, (pair, *_) = cache_key(split.pairs, encoding=split.encoding, tile=9), split.pairs
    place = cache.place(pair.image)
    for _ in range(2):
        np.testing.assert_array_equal(cache.read(pair.image), read_image(pair.image))
    assert cache.place(pair.image) == place != cache.place(pair.label)
    os.utime(packed / "00_part.zip", (1, 1))
    assert cache.place(pair.image) != place and cache_key(split.pairs, encoding=split.encoding, tile=9) != key


@pytest.mark.parametrize(
    "pattern", ["*.png", "a/*/*_x.png", "**/*.png", "a/**/b/*", "[ab]?/*[!x].png", ".h/*", "a/[^[b]/*"]
)
def test_globs_mean_the_same_in_archives(tmp_path: Path, pattern: str) -> None:
    names = (
        "1.png",
        ".2.png",
        "a/b/3_x.png",
        "a/c/d/b/4",
        "a/.b/5_x.png",
        "b7/6x.png",
        "b7/6y.png",
        ".h/8.png",
        "a/b/9",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    on_disk = files.find(str(tmp_path), pattern, {})
    assert on_disk and files.find(str(tmp_path / "none"), pattern, {name: f"{tmp_path}/{name}" for name in names}) == {
        name: path for name, path in on_disk.items() if Path(path).is_file()
    }


def test_links_to_folders_are_followed_once_and_have_an_end(tmp_path: Path) -> None:
    """Links to the own parent, to each other, to itself and to nothing add no frame; one to elsewhere does."""
    root, outside = tmp_path / "data", tmp_path / "outside"
    for folder in (root / "images/a/deep", root / "images/b", root / "images/.hidden", outside):
        folder.mkdir(parents=True)
        (folder / "frame.png").touch()
    for link, target in {
        "a/up": root / "images",
        "a/again": root / "images",
        "a/deep/up": root / "images/a",
        "b/a": root / "images/a",
        "b/itself": root / "images/b/itself",
        "b/nothing": root / "images/none",
        "x": outside,
        "y": outside,
    }.items():
        (root / "images" / link).symlink_to(target)
    (root / "images/b/linked.png").symlink_to(outside / "frame.png")  # a file of its own name
    names = ["a/deep/frame.png", "b/frame.png", "b/linked.png", "x/frame.png"]
    for pattern, start in (("images/**/*.png", ""), ("*/**/*.png", ""), ("**/*.png", ""), ("**/*.png", "images")):
        prefix = "" if start else "images/"
        found = files.find(str(root / start), pattern, {})
        assert sorted(found) == [prefix + name for name in names], pattern
        assert all(Path(path).is_file() for path in found.values())
    (root / "early").symlink_to(root / "images")
    assert sorted(files.find(str(root), "*/**/*.png", {})) == [f"images/{name}" for name in names]
    assert sorted(files.find(str(root), "early/**/*.png", {})) == [f"early/{name}" for name in names]
    assert sorted(files.find(str(root), "images/*/*.png", {})) == [
        *("images/b/frame.png", "images/b/linked.png", "images/x/frame.png", "images/y/frame.png"),
    ], "without ** as before"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", ["bdd100k/bdd100k/{}", "DOS\\\\", "./{}", "{0} {0}", "{0} bdd100k/bdd100k/{0}"])
def test_archives_packed_otherwise(tmp_path: Path, names: str) -> None:
    """Folders twice, DOS names and the like are a sentence with the cause; members that are there twice count once."""
    write_domain(tmp_path / "files", "bdd100k")
    (tmp_path / "root").mkdir()
    with zipfile.ZipFile(tmp_path / "root/a.zip", "w") as archive:
        for path in sorted((tmp_path / "files").rglob("*.*")):
            name = path.relative_to(tmp_path / "files").as_posix()
            for member in [name.replace("/", "\\")] if "\\" in names else names.format(name).split():
                info = zipfile.ZipInfo("x")
                info.filename = member  # as it is
                archive.writestr(info, path.read_bytes())
    if "{0}" in names:
        assert len(opened(tmp_path / "root", "bdd100k").pairs) == 4
    else:
        with pytest.raises(UserError, match=r"no image matches .*a\.zip/.* is in other folders of its archive: unpack"):
            opened(tmp_path / "root", "bdd100k")
