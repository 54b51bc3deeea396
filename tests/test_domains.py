from __future__ import annotations

import logging
import pickle
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from datasets.codec import decode_label
from datasets.custom_domains import read_domains
from datasets.domains import BUILTIN, Domain, get_domain, load_domains, share_images
from datasets.labels import CLASS_NAMES
from datasets.splits import find_pairs, list_hash
from tests.street_data import TRAINABLE, blocks, make_cfg, paint, save, save_label, write_domain
from utils.errors import UserError

EXAMPLE = Path(__file__).resolve().parents[1] / "docs" / "domains.example.yaml"


def domain_at(root: Path, name: str) -> Domain:
    cfg = make_cfg(root, **{BUILTIN[name].root_key.partition(".")[2]: str(root)})
    return get_domain(load_domains(cfg), name)


@pytest.mark.parametrize("name", TRAINABLE)
def test_published_layout_and_encoding(tmp_path: Path, name: str) -> None:
    labels = write_domain(tmp_path, name)
    domain = domain_at(tmp_path, name)
    pairs = find_pairs(domain, "train")
    assert [pair.name for pair in pairs] == sorted(pair.name for pair in pairs) and len(pairs) == 4
    for pair, label in zip(pairs, labels, strict=True):
        np.testing.assert_array_equal(decode_label(pair.label, encoding=domain.encoding), label)
    assert len(find_pairs(domain, "val")) == (4 if name == "kitti" else 2)
    assert len(find_pairs(domain, "trainval")) == (4 if name == "kitti" else 6)
    assert pickle.loads(pickle.dumps(domain)) == domain


@pytest.mark.parametrize("name", list(BUILTIN))
def test_written_paths_are_those_that_are_found(tmp_path: Path, name: str) -> None:
    domain = replace(BUILTIN[name], root=str(tmp_path))
    pattern = domain.layouts[0].images.split("/")
    stem = "/".join(f"a{number}" for number in range(sum("*" in part for part in pattern)))
    for split, folders in domain.splits:
        image, label = domain.paths(split, stem)
        for path in (image, label):
            save(tmp_path / path, blocks(0))
        assert fnmatch(image, domain.layouts[0].images.replace("{split}", folders[0]))
        (pair,) = find_pairs(domain, split)
        assert pair == (f"{tmp_path}/{image}", f"{tmp_path}/{label}", image)
        with pytest.raises(ValueError, match=f"{name}: 'a/b/c/d' does not fill"):
            domain.paths(split, "a/b/c/d")


def test_paths_of_published_names() -> None:
    assert BUILTIN["gtav"].paths("val", "01/00001") == ("images/valid/01/00001.png", "labels/valid/01/00001.png")
    image, label = BUILTIN["cityscapes"].paths("train", "aachen/aachen_000000_000019")
    assert image.endswith("leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png")
    assert label == "gtFine_trainvaltest/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    assert BUILTIN["bdd100k"].paths("test", "abc-def") == ("images/test/abc-def.jpg", "labels/test/abc-def.png")
    assert BUILTIN["synthia"].paths("val", "0000007") == ("RGB/val/0000007.png", "GT/LABELS/val/0000007.png")
    assert BUILTIN["mapillary"].paths("val", "x") == ("validation/images/x.jpg", "validation/labels/x.png")
    assert BUILTIN["acdc"].paths("val", "night/GOPR0376/GOPR0376_frame_000149") == (
        "rgb_anon/night/val/GOPR0376/GOPR0376_frame_000149_rgb_anon.png",
        "gt/night/val/GOPR0376/GOPR0376_frame_000149_gt_labelTrainIds.png",
    )
    assert BUILTIN["darkzurich"].paths("val", "GOPR0356/GOPR0356_frame_000321") == (
        "rgb_anon/val/night/GOPR0356/GOPR0356_frame_000321_rgb_anon.png",
        "gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_labelTrainIds.png",
    )
    assert BUILTIN["idd"].paths("train", "119/frame0029") == (
        "leftImg8bit/train/119/frame0029_leftImg8bit.png",
        "gtFine/train/119/frame0029_gtFine_labelcsTrainIds.png",
    )
    assert BUILTIN["kitti"].paths("val", "000000") == (
        "training/image_2/000000_10.png",
        "training/semantic/000000_10.png",
    )


def test_a_condition_of_acdc_is_a_part_of_it(tmp_path: Path) -> None:
    written = dict[str, list[str]]()
    for number, condition in enumerate(("fog", "night", "rain", "snow")):
        for frame in range(number + 1):
            name = f"{condition}/val/GOPR000{number}/GOPR000{number}_frame_{frame:06d}"
            save(tmp_path / f"rgb_anon/{name}_rgb_anon.png", paint(blocks(frame)))
            save_label(tmp_path / f"gt/{name}_gt_labelTrainIds.png", "acdc", blocks(frame))
            save(tmp_path / f"gt/{name}_gt_labelIds.png", blocks(frame))
            written.setdefault(condition, []).append(f"rgb_anon/{name}_rgb_anon.png")
        ref = f"rgb_anon/{condition}/val_ref/GOPR000{number}/GOPR000{number}_frame_000000_rgb_ref_anon.png"
        save(tmp_path / ref, paint(blocks(9)))
    for condition, names in written.items():
        assert [pair.name for pair in find_pairs(domain_at(tmp_path, f"acdc_{condition}"), "val")] == names
    whole = find_pairs(domain_at(tmp_path, "acdc"), "val")
    assert [pair.name for pair in whole] == [name for names in written.values() for name in names]


def test_both_parts_of_idd_are_read_from_one_folder(tmp_path: Path) -> None:
    label = blocks(0, classes=[0, 9, 18])
    for name in ("119/frame0001_leftImg8bit.png", "520/0000_leftImg8bit.jpg"):
        save(tmp_path / "leftImg8bit/val" / name, paint(label))
        path = tmp_path / "gtFine/val" / f"{name.partition('_')[0]}_gtFine_labelcsTrainIds.png"
        save_label(path, "idd", label)
        save(path.with_name(path.name.replace("csTrainIds", "level3Ids")), label)
    domain = domain_at(tmp_path, "idd")
    pairs = find_pairs(domain, "val")
    assert [Path(pair.image).suffix for pair in pairs] == [".png", ".jpg"]
    for pair in pairs:
        np.testing.assert_array_equal(decode_label(pair.label, encoding=domain.encoding), label)
    ((subset, classes),) = domain.subsets
    assert subset == "18" and set(range(19)) - set(classes) == {CLASS_NAMES.index("train")}


OTHER_LAYOUTS = {
    "cityscapes": [("leftImg8bit/train/ulm/ulm_0_leftImg8bit.png", "gtFine/train/ulm/ulm_0_gtFine_labelIds.png")],
    "bdd100k": [
        ("images/train/a.jpg", "labels/train/a.png"),
        ("images/train/a.jpg", "labels/train/a_train_id.png"),
        ("seg/images/train/a.jpg", "seg/labels/train/a_train_id.png"),
        ("images/10k/train/a.jpg", "labels/sem_seg/masks/train/a.png"),
        ("bdd100k/images/10k/train/a.jpg", "bdd100k/labels/sem_seg/masks/train/a.png"),
        ("10k/train/a.jpg", "bdd100k/labels/sem_seg/masks/train/a.png"),
        ("10k/train/a.jpg", "sem_seg/masks/train/a.png"),
    ],
    "gtav": [
        ("images/train/1.png", "labels/train/1.png"),
        ("images/train/images/1.png", "labels/train/images/1.png"),
    ],
    "synthia": [
        ("RGB/train/1.png", "LABELS/train/1.png"),
        ("RGB/train/1.png", "GT/LABELS/train/1.png"),
    ],
    "mapillary": [("training/images/x.jpg", "training/v1.2/labels/x.png")],
    "acdc": [
        (
            "rgb_anon_trainvaltest/rgb_anon/snow/train/GOPR0122/GOPR0122_frame_000161_rgb_anon.png",
            "gt_trainval/gt/snow/train/GOPR0122/GOPR0122_frame_000161_gt_labelTrainIds.png",
        )
    ],
    "camvid": [("train/1.jpg", "trainannot/1.png"), ("train/train_1.png", "trainannot/train_1.png")],
}


@pytest.mark.parametrize(("name", "layout"), [(name, row) for name, rows in OTHER_LAYOUTS.items() for row in rows])
def test_other_layouts(tmp_path: Path, name: str, layout: tuple[str, str]) -> None:
    for path in layout:
        save(tmp_path / path, blocks(0))
    (pair,) = find_pairs(domain_at(tmp_path, name), "train")
    assert (pair.image, pair.label) == (f"{tmp_path}/{layout[0]}", f"{tmp_path}/{layout[1]}")


def test_dark_zurich_in_the_folder_of_its_archive(tmp_path: Path) -> None:
    name = "Dark_Zurich_val_anon/{}/val/night/GOPR0356/GOPR0356_frame_000321_{}.png"
    for path in (name.format("rgb_anon", "rgb_anon"), name.format("gt", "gt_labelTrainIds")):
        save(tmp_path / path, blocks(0))
    (pair,) = find_pairs(domain_at(tmp_path, "darkzurich"), "val")
    assert pair.label == f"{tmp_path}/{name.format('gt', 'gt_labelTrainIds')}"
    with pytest.raises(UserError, match="darkzurich: has no split 'train'; it has val, test"):
        find_pairs(domain_at(tmp_path, "darkzurich"), "train")


@pytest.mark.parametrize(("name", "split", "folder"), [("gtav", "val", "valid"), ("gtav", "val", "val")])
def test_folder_names_of_a_split(tmp_path: Path, name: str, split: str, folder: str) -> None:
    save(tmp_path / f"images/{folder}/x/1.png", blocks(0))
    save(tmp_path / f"labels/{folder}/x/1.png", blocks(0))
    assert len(find_pairs(domain_at(tmp_path, name), split)) == 1


def test_root_expands_the_home_folder_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STREETS", "camvid")
    assert load_domains(make_cfg(tmp_path, CAMVID_DIR="~/$STREETS"))["camvid"].root == f"{tmp_path}/camvid"


def test_root_with_special_characters(tmp_path: Path) -> None:
    root = tmp_path / "data [1] *"
    write_domain(root, "camvid")
    assert len(find_pairs(domain_at(root, "camvid"), "train")) == 4


def test_merges_and_subsets() -> None:
    camvid = BUILTIN["camvid"]
    assert dict(camvid.merge) == {3: 2, 6: 7, 9: 8, 14: 13, 15: 13, 16: 13, 17: 12, 18: 12}
    assert len(camvid.classes) == 11 and not set(camvid.classes) & set(dict(camvid.merge))
    assert len(BUILTIN["synthia"].classes) == 19
    subsets = dict(BUILTIN["synthia"].subsets)
    assert {name: set(range(19)) - {*classes} for name, classes in subsets.items()} == {
        "16": {9, 14, 16},
        "13": {9, 14, 16, 3, 4, 5},
    }
    assert all(int(name) == len(classes) for name, classes in subsets.items())


def test_misspelt_domain() -> None:
    with pytest.raises(UserError, match="unknown data set 'cityscape'.*did you mean 'cityscapes'"):
        get_domain(BUILTIN, "cityscape")


@pytest.mark.parametrize("name", list(BUILTIN))
def test_missing_folders_name_the_setting(tmp_path: Path, name: str) -> None:
    key = BUILTIN[name].root_key
    with pytest.raises(UserError, match=f"{name}: {key} is empty; set {key} in config.py or with --opts {key}=FOLDER"):
        find_pairs(BUILTIN[name], "val")
    with pytest.raises(UserError, match=f"the folder {tmp_path}/nothing does not exist; set {key}"):
        find_pairs(domain_at(tmp_path / "nothing", name), "val")
    with pytest.raises(UserError, match=f"{name}/val: no image matches .* in {tmp_path}; set {key}") as caught:
        find_pairs(domain_at(tmp_path, name), "val")
    assert "\n" not in str(caught.value)


def test_a_split_that_the_domain_does_not_have() -> None:
    with pytest.raises(UserError, match="synthia: has no split 'test'; it has train, val"):
        find_pairs(BUILTIN["synthia"], "test")


def test_an_image_without_a_label_is_named(tmp_path: Path) -> None:
    write_domain(tmp_path, "bdd100k")
    (tmp_path / "labels/train/00002_train_id.png").unlink()
    with pytest.raises(UserError, match=r"1 of 4 images have no label, .*/images/train/00002\.jpg without"):
        find_pairs(domain_at(tmp_path, "bdd100k"), "train")
    shutil.rmtree(tmp_path / "labels")
    with pytest.raises(UserError, match=r"bdd100k/train: 4 of 4 images have no label"):
        find_pairs(domain_at(tmp_path, "bdd100k"), "train")
    assert [pair.label for pair in find_pairs(domain_at(tmp_path, "bdd100k"), "train", need_labels=False)] == [""] * 4


def test_gtav_leaves_out_pairs_of_unequal_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_domain(tmp_path, "gtav")
    save(tmp_path / "images/train/folder/00001.png", paint(blocks(0, (10, 10))))
    with caplog.at_level(logging.WARNING):
        pairs = find_pairs(domain_at(tmp_path, "gtav"), "train")
    assert len(pairs) == 3 and "1 of 4 pairs are skipped" in caplog.text and "folder/00001.png" in caplog.text
    for number in range(4):
        save(tmp_path / f"images/train/folder/{number:05d}.png", paint(blocks(0, (10, 10))))
    with pytest.raises(UserError, match="gtav/train: no pair is left whose image and label have one size"):
        find_pairs(domain_at(tmp_path, "gtav"), "train")


def test_list_hash_depends_on_the_names_only(tmp_path: Path) -> None:
    for root in ("a", "b"):
        write_domain(tmp_path / root, "camvid")
    first, second = (find_pairs(domain_at(tmp_path / root, "camvid"), "train") for root in ("a", "b"))
    assert list_hash(first) == list_hash(second) != list_hash(first[1:])
    assert len(list_hash(first)) == 12


# ---------------------------------------------------------------------------------- declared by the user

DECLARED = {
    "root": "facades",
    "images": "images/*.jpg",
    "label": "{images/: labels/, .jpg: .png}",
    "splits": "[val, test]",
    "encoding": "train_ids",
}


def declare(folder: Path, **fields: str | None) -> dict[str, Domain]:
    """Read a file with one domain `mine`; a field of None is left out."""
    rows = {key: value for key, value in {**DECLARED, **fields}.items() if value is not None}
    path = folder / "domains.yaml"
    path.write_text("mine:\n" + "".join(f"  {key}: {value}\n" for key, value in rows.items()))
    return read_domains(path)


def test_declared_domain_is_found_beside_its_file(tmp_path: Path) -> None:
    save(tmp_path / "facades/images/a.jpg", paint(blocks(0)))
    save(tmp_path / "facades/labels/a.png", blocks(0))
    domain = declare(tmp_path)["mine"]
    assert len(find_pairs(domain, "val")) == len(find_pairs(domain, "test")) == 1
    with pytest.raises(UserError, match="mine: has no split 'train'; it has val, test"):
        find_pairs(domain, "train")
    cfg = make_cfg(tmp_path, DOMAINS_FILE=str(tmp_path / "domains.yaml"))
    assert load_domains(cfg)["mine"] == replace(domain, tile=32) and set(load_domains(cfg)) > set(BUILTIN)


def test_declared_folders_of_any_depth(tmp_path: Path) -> None:
    for name in ("a", "day/b", "night/rain/c"):
        save(tmp_path / f"facades/images/{name}.jpg", paint(blocks(0)))
        save(tmp_path / f"facades/labels/{name}.png", blocks(0))
    domain = declare(tmp_path, images='"images/**/*.jpg"')["mine"]
    assert [pair.name for pair in find_pairs(domain, "val")] == [
        f"images/{name}.jpg" for name in ("a", "day/b", "night/rain/c")
    ]


def test_an_image_is_not_its_own_label(tmp_path: Path) -> None:
    save(tmp_path / "facades/images/a.png", blocks(0))
    domain = declare(tmp_path, images="images/*.png", label="{image/: labels/}")["mine"]
    with pytest.raises(UserError, match=r"1 of 1 images have no label, .*fix 'root', 'images' or 'label' of .*: mine"):
        find_pairs(domain, "val")


def test_declared_splits_ids_and_classes(tmp_path: Path) -> None:
    for path in ("rgb/training/a/1_rgb.png", "ids/training/a/1_ids.png"):
        save(tmp_path / "facades" / path, np.array([[0, 1], [2, 9]], np.uint8))
    domain = declare(
        tmp_path,
        images="rgb/{split}/*/*_rgb.png",
        label="{rgb/: ids/, _rgb.png: _ids.png}",
        splits="{train: training}",
        encoding="{0: 255, 1: road, 2: 13, other: 255}",
        merge="{truck: car, 3: 2}",
        classes="[road, 13]",
        subsets="{only: [car]}",
        tile="256",
        skip_unequal="true",
    )["mine"]
    (pair,) = find_pairs(domain, "train")
    assert decode_label(pair.label, encoding=domain.encoding).tolist() == [[255, 0], [13, 255]]
    assert (domain.merge, domain.classes, domain.subsets) == (((14, 13), (3, 2)), (0, 13), (("only", (13,)),))
    assert domain.tile == 256 and domain.skip_unequal


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encodng": "train_ids"}, "unknown field 'encodng'.*did you mean 'encoding'"),
        ({"encoding": "cityscape_ids"}, "unknown label encoding 'cityscape_ids'.*did you mean 'cityscapes_ids'"),
        ({"encoding": "[1, 2]"}, "encoding must be a name or map"),
        ({"encoding": "{0: 19}"}, "encoding holds 19, which is no train id"),
        ({"encoding": "{zero: 1}"}, "'zero', which is no raw id"),
        ({"splits": "[validation]"}, "unknown split 'validation'"),
        ({"splits": "{val: validation}"}, "images holds no {split}"),
        ({"splits": "3"}, "splits must be a list"),
        ({"splits": "[[train]]"}, "unknown split"),
        ({"root": None}, "the field 'root' is missing"),
        ({"root": "7"}, "root must be text, not 7"),
        ({"label": "labels"}, "label must be a mapping, not 'labels'"),
        ({"label": "{images/: 3}"}, "label must map parts"),
        ({"label": "{'': labels/}"}, "label must map parts"),
        ({"classes": "[raod]"}, "classes names no class 'raod'; did you mean 'road'"),
        ({"classes": "[0, road]"}, "classes names a class twice"),
        ({"classes": "[]"}, "classes must be a list"),
        ({"merge": "{0: 99}"}, "merge holds 99"),
        ({"merge": "{truck: bus, bus: car}"}, "merge adds to bus, which it adds to another class itself; name that"),
        ({"classes": "[road]", "subsets": "{x: [road, car]}"}, "subsets x names car, which classes does not; add it"),
        ({"merge": "{0: 255}"}, "merge holds 255"),
        ({"tile": "big"}, "tile must be a whole number, not 'big'"),
        ({"tile": "true"}, "tile must be a whole number, not True"),
        ({"tile": "-4"}, "tile must be a number of pixels"),
        ({"subsets": "{'': [road]}"}, "subsets: a name must not be empty"),
        ({"skip_unequal": "maybe"}, "skip_unequal must be true or false, not 'maybe'"),
    ],
)
def test_declared_mistakes_are_one_sentence(tmp_path: Path, fields: dict[str, str | None], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        declare(tmp_path, **fields)
    assert str(caught.value).startswith(f"{tmp_path}/domains.yaml: mine: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML at line"),
        ("a: {root: x, merge: {}, root: y}", r"not valid YAML at line 1 \(root is there twice\)"),
        ("a: 1\nb: 2\na: 3", r"at line 3 \(a is there twice\)"),
        ("# caf\u00e9", "not valid YAML; see"),
        ("", "must map names of domains"),
        ("- a", "must map names of domains"),
        ("mine: 3", "mine: must be a mapping"),
        ("gtav: {root: x}", "'gtav' is the name of a built-in domain"),
        ("../mine: {root: x}", "'../mine' cannot name a domain"),
        ("source: {root: x}", "'source' cannot name a domain"),
        ("5: {root: x}", "5 cannot name a domain"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "domains.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        read_domains(path)


def test_missing_file_of_domains(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--domains .*none\.yaml: cannot be read"):
        load_domains(make_cfg(tmp_path, DOMAINS_FILE=str(tmp_path / "none.yaml")))


def test_example_file_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    domain = read_domains(EXAMPLE)["labelmefacade"]
    assert domain.root == f"{tmp_path}/data/labelmefacade"
    assert (domain.merge, domain.classes) == (((3, 2), (9, 8)), (0, 1, 2, 8, 10, 13))
    assert [split for split, _ in domain.splits] == ["val", "test"]


def test_commented_part_of_the_example_loads(tmp_path: Path) -> None:
    text = EXAMPLE.read_text().partition("# mycity:")
    path = tmp_path / "domains.yaml"
    path.write_text("\n".join(line[2:] for line in "".join(text[1:]).splitlines()))
    domain = read_domains(path)["mycity"]
    assert dict(domain.encoding.table)[3] == 13 and domain.encoding.other == 255


# ---------------------------------------------------------------------------------- real files


def test_real_camvid(test_data: Path) -> None:
    domain = domain_at(test_data / "data/camvid", "camvid")
    assert [len(find_pairs(domain, split)) for split in ("train", "val", "test")] == [406, 171, 124]


def test_real_labelmefacade_as_declared(test_data: Path, tmp_path: Path) -> None:
    text = EXAMPLE.read_text().replace("~/data/labelmefacade", str(test_data / "data/labelmefacade"))
    (tmp_path / "domains.yaml").write_text(text)
    domain = read_domains(tmp_path / "domains.yaml")["labelmefacade"]
    pairs = find_pairs(domain, "val")
    assert len(pairs) == 243
    for pair in pairs[::60]:
        assert set(np.unique(decode_label(pair.label, encoding=domain.encoding))) <= {*domain.classes, 255}


def test_real_gtav_frames_in_the_documented_layout(golden: Path) -> None:
    domain = domain_at(golden / "gtav", "gtav")
    assert len(find_pairs(domain, "train")) == 4 and len(find_pairs(domain, "val")) == 1


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("acdc", "acdc", True),
        ("acdc", "acdc_fog", True),
        ("acdc_fog", "acdc", True),
        ("acdc_fog", "acdc_night", False),
        ("camvid", "camvid_dusk", False),  # a declared domain names itself as it likes
        ("gtav", "cityscapes", False),
    ],
)
def test_parts_of_a_data_set_share_its_images(first: str, second: str, shared: bool) -> None:
    assert share_images(first, second) == shared
