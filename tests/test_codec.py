from __future__ import annotations

import os
import struct
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from datasets import codec
from datasets.codec import DECODERS, ENCODINGS, Encoding, decode_label, image_size, read_image, read_photo, write_label
from datasets.labels import CITYSCAPES_IDS, CITYSCAPES_LABELS, CITYSCAPES_PALETTE
from datasets.scan import look
from datasets.splits import Pair
from tests.street_data import GTAV_PALETTE, blocks, mapillary_palette, save
from utils.errors import UserError

LABEL = blocks(0)
COLOURS = GTAV_PALETTE[ENCODINGS["cityscapes_ids"].encode(LABEL)]  # (H, W, 3)


def decode(path: Path, encoding: str) -> np.ndarray:
    return decode_label(str(path), encoding=ENCODINGS[encoding])


def test_palette_is_read_by_colour_or_by_index(tmp_path: Path) -> None:
    raw = np.arange(35, dtype=np.uint8).reshape(5, 7)
    path = save(tmp_path / "label.png", raw, palette=GTAV_PALETTE)
    by_index = np.array([train for _, train in CITYSCAPES_LABELS]).reshape(5, 7)
    by_colour = np.where(raw == 34, 13, np.where(raw == 18, 5, by_index))  # licence plate, pole group
    np.testing.assert_array_equal(decode(path, "cityscapes_ids"), by_index)
    np.testing.assert_array_equal(decode(path, "cityscapes_colours"), by_colour)


@pytest.mark.parametrize("alpha", [False, True])
def test_rgb_colours(tmp_path: Path, alpha: bool) -> None:
    image = np.dstack((COLOURS, np.full(LABEL.shape, 7, np.uint8))) if alpha else COLOURS
    decoded = decode(save(tmp_path / "label.png", image), "cityscapes_colours")
    np.testing.assert_array_equal(decoded, LABEL)


def test_every_palette_is_looked_up_for_itself(tmp_path: Path) -> None:
    raw = np.arange(256, dtype=np.uint8).reshape(16, 16)
    turned = np.zeros((256, 3), np.uint8)
    turned[100:135] = GTAV_PALETTE
    standard = decode(save(tmp_path / "1.png", raw[:2], palette=GTAV_PALETTE), "cityscapes_colours").ravel()
    label = decode(
        save(tmp_path / "2.png", np.full((2, 35), 100, np.uint8) + raw.ravel()[:35], palette=turned),
        "cityscapes_colours",
    )
    np.testing.assert_array_equal(label[0][:32], standard)
    assert set(label[0].tolist()) == {*range(19), 255}


def test_a_few_unknown_colours_are_ignored_and_many_are_refused(tmp_path: Path) -> None:
    image = COLOURS.copy()
    image[0, :5] = (1, 2, 3)
    decoded = decode(save(tmp_path / "few.png", image), "cityscapes_colours")
    assert (decoded[0, :5] == 255).all()
    np.testing.assert_array_equal(decoded[1:], LABEL[1:])
    with pytest.raises(UserError, match=r"lossy\.png: most of its colours"):
        decode(save(tmp_path / "lossy.png", np.clip(COLOURS, 5, 240) + 1), "cityscapes_colours")
    with pytest.raises(UserError, match="a grey image where"):
        decode(save(tmp_path / "grey.png", LABEL), "cityscapes_colours")


def test_synthia_16_bit_and_8_bit(tmp_path: Path) -> None:
    raw = ENCODINGS["synthia"].encode(LABEL)
    channels = np.stack((np.zeros_like(raw), np.full(raw.shape, 300, np.uint16), raw), axis=-1)  # blue, instance, class
    assert cv2.imwrite(str(tmp_path / "16.png"), channels)
    np.testing.assert_array_equal(decode(tmp_path / "16.png", "synthia"), LABEL)
    np.testing.assert_array_equal(decode(save(tmp_path / "8.png", raw), "synthia"), LABEL)
    with pytest.raises(UserError, match=r"colour\.png: a colour image .* not GT/COLOR"):
        decode(save(tmp_path / "colour.png", COLOURS), "synthia")


def test_mapillary_versions(tmp_path: Path) -> None:
    raw = ENCODINGS["mapillary_v1.2"].encode(LABEL)
    first = save(tmp_path / "v1.png", raw, palette=mapillary_palette(road=13))
    np.testing.assert_array_equal(decode(first, "mapillary_v1.2"), LABEL)
    with pytest.raises(UserError, match=r"v2\.png: it is a Mapillary Vistas v2\.0 label"):
        decode(save(tmp_path / "v2.png", raw, palette=mapillary_palette(road=21)), "mapillary_v1.2")
    with pytest.raises(UserError, match=r"label ids 100, .* v2\.0"):
        decode(save(tmp_path / "grey.png", np.full((4, 4), 100, np.uint8)), "mapillary_v1.2")


@pytest.mark.parametrize("name", ENCODINGS)
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    encoding, path = ENCODINGS[name], tmp_path / "label.png"
    classes = sorted({train for _, train in encoding.table})
    for number, size in enumerate([(len(classes), 1), (7, 5), (40, 64)]):
        every = np.array(classes, np.uint8)[:, None]
        label = every if number == 0 else np.random.default_rng(number).choice(every[:, 0], size)
        write_label(str(path), label, encoding=encoding)
        np.testing.assert_array_equal(decode(path, name), label)
        raw = encoding.encode(label)
        assert raw.shape == label.shape and raw.dtype == np.uint8
        by_id = dict(encoding.table) if encoding.kind != "colours" else CITYSCAPES_IDS
        assert all(by_id[value] == train for value, train in zip(raw.flat, label.flat, strict=True))


def test_labels_are_written_as_they_are_published(tmp_path: Path) -> None:
    modes = {"cityscapes_ids": "L", "train_ids": "L", "camvid": "L", "cityscapes_colours": "P", "mapillary_v1.2": "P"}
    label = np.array([[0, 1, 13, 255]], np.uint8)
    raws = {"cityscapes_ids": [7, 8, 26, 0], "train_ids": [0, 1, 13, 255], "camvid": [3, 4, 8, 11]}
    raws |= {"cityscapes_colours": raws["cityscapes_ids"], "mapillary_v1.2": [13, 15, 55, 65]}
    for name, mode in modes.items():
        write_label(str(tmp_path / f"{name}.png"), label, encoding=ENCODINGS[name])
        image = Image.open(tmp_path / f"{name}.png")
        assert image.mode == mode and np.asarray(image).tolist() == [raws[name]]
        if mode == "P":
            assert np.asarray(image.convert("RGB"))[0, 0].tolist() == [128, 64, 128]
    write_label(str(tmp_path / "synthia.png"), label, encoding=ENCODINGS["synthia"])
    channels = cv2.imread(str(tmp_path / "synthia.png"), cv2.IMREAD_UNCHANGED)
    assert channels is not None and channels.dtype == np.uint16 and channels[0, :, 2].tolist() == [3, 4, 8, 0]


def test_classes_that_an_encoding_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"camvid has no raw id for the train ids \[3, 18\]"):
        write_label(str(tmp_path / "label.png"), np.array([[0, 18, 3]], np.uint8), encoding=ENCODINGS["camvid"])
    assert not list(tmp_path.iterdir())
    large = Encoding("of mine", "ids", ((255, 255), (300, 1)))
    write_label(str(tmp_path / "label.png"), np.array([[1, 255]], np.uint8), encoding=large)
    assert decode_label(str(tmp_path / "label.png"), encoding=large).tolist() == [[1, 255]]


@pytest.mark.parametrize(
    ("encoding", "bad"), [("train_ids", 19), ("cityscapes_ids", 40), ("camvid", 12), ("synthia", 23)]
)
def test_unknown_ids_are_refused(tmp_path: Path, encoding: str, bad: int) -> None:
    path = save(tmp_path / "label.png", np.array([[0, 1], [bad, 255]], np.uint8))
    with pytest.raises(UserError, match=rf"label\.png: has the label ids {bad}, which the encoding"):
        decode(path, encoding)
    lenient = replace(ENCODINGS[encoding], other=255)
    assert decode_label(str(path), encoding=lenient)[1].tolist() == [255, 255]


def test_sixteen_bit_ids(tmp_path: Path) -> None:
    Image.fromarray(LABEL.astype(np.uint16)).save(tmp_path / "16.png")
    np.testing.assert_array_equal(decode(tmp_path / "16.png", "train_ids"), LABEL)
    with pytest.raises(UserError, match="a colour image where the encoding train_ids"):
        decode(save(tmp_path / "rgb.png", COLOURS), "train_ids")


def png_of_4_bits(path: Path, raw: np.ndarray) -> None:
    """Write grey of 4 bits, which Pillow does not: two pixels per byte, an even number per line."""
    packed = raw[:, ::2] << 4 | raw[:, 1::2]
    lines = b"".join(b"\0" + line.tobytes() for line in packed)
    header = struct.pack(">IIBBBBB", raw.shape[1], raw.shape[0], 4, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)


@pytest.mark.parametrize("encoding", ["camvid", "synthia", "train_ids"])
@pytest.mark.parametrize(
    "kind", ["RGB", "LA", "RGBA", "P", "4 bits", "16 bits RGB", "32 bits", "float", "RGB.tif", "RGB.bmp"]
)
def test_ids_in_files_of_other_kinds(tmp_path: Path, kind: str, encoding: str) -> None:
    raw = np.random.default_rng(0).integers(1, 12, (6, 8)).astype(np.uint8)
    wanted, image = np.vectorize(dict(ENCODINGS[encoding].table).get)(raw), Image.fromarray(raw)
    path = tmp_path / f"label{Path(kind).suffix or '.png'}"
    if kind == "4 bits":
        png_of_4_bits(path, raw)
    elif kind == "16 bits RGB":
        cv2.imwrite(str(path), np.repeat(raw[..., None], 3, axis=2).astype(np.uint16))
    elif kind == "P":
        save(path, raw, palette=GTAV_PALETTE)
    elif kind in ("32 bits", "float"):
        path = save(path.with_suffix(".tif"), raw.astype(np.int32 if kind == "32 bits" else np.float32))
    else:
        image.convert(kind.partition(".")[0]).save(path)
    np.testing.assert_array_equal(decode(path, encoding), wanted)
    np.testing.assert_array_equal(decode_label(str(path), encoding=replace(ENCODINGS[encoding], other=255)), wanted)
    finding = look(Pair(str(save(tmp_path / "image.png", raw)), str(path), ""), encoding=ENCODINGS[encoding])
    assert not finding.label_error and sum(finding.pixels) == raw.size


TWO = np.array([[0, 1, 0], [1, 1, 0]])


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize(
    ("table", "white"),
    [
        ({0: 0, 1: 13, 255: 255}, 13), ({1: 0, 255: 255}, 0), ({0: 255, 1: 7}, 7), ({0: 4, 255: 9}, 9),
        ({0: 0, 1: 1, 255: 2}, None), ({0: 0, 1: 1, 2: 2, 255: 255}, None), ({0: 0, 7: 1, 255: 255}, None),
    ],
)  # fmt: skip
def test_one_bit_is_read_where_two_ids_are_meant(
    tmp_path: Path, table: dict[int, int], white: int | None, suffix: str
) -> None:
    Image.fromarray(TWO.astype(bool)).save(path := tmp_path / f"label.{suffix}")
    assert Image.open(path).mode == "1"
    encoding = Encoding("mine", "ids", tuple(sorted(table.items())), other=255)
    if white is None:
        with pytest.raises(UserError, match=rf"label\.{suffix}: a 1-bit image, which tells two ids apart, "):
            decode_label(str(path), encoding=encoding)
    else:
        black = table.get(0, 255)
        np.testing.assert_array_equal(decode_label(str(path), encoding=encoding), np.where(TWO, white, black))


@pytest.mark.parametrize("encoding", ["train_ids", "camvid", "synthia", "cityscapes_ids", "cityscapes_colours"])
def test_one_bit_is_no_label_of_many_classes(tmp_path: Path, encoding: str) -> None:
    Image.fromarray(TWO.astype(bool)).save(path := tmp_path / "label.png")
    with pytest.raises(UserError, match=r"label\.png: a (1-bit image|grey image where)"):
        decode(path, encoding)
    finding = look(Pair("", str(path), ""), encoding=ENCODINGS[encoding])
    assert finding.label_cause.startswith("1-bit pictures, which tell two ids apart")


def test_minus_one_is_no_class_where_255_is_none(tmp_path: Path) -> None:
    path = save(tmp_path / "label.tif", np.array([[0, -1], [255, 3]], np.int32))
    assert decode(path, "train_ids").tolist() == [[0, 255], [255, 3]]
    with pytest.raises(UserError, match="has the label ids -1, 255, which"):
        decode_label(str(path), encoding=Encoding("mine", "ids", ((0, 0), (3, 3))))
    path = save(tmp_path / "others.tif", np.array([[0, -2], [70000, 3]], np.int32))
    with pytest.raises(UserError, match="has the label ids -2, 70000, which"):
        decode_label(str(path), encoding=Encoding("mine", "ids", ((0, 0), (3, 3), (65535, 1))))


TRANSPARENT = np.full((*LABEL.shape, 4), 3, np.uint8)


@pytest.mark.parametrize(
    ("encoding", "image", "reason", "cause"),
    [
        ("camvid", TRANSPARENT, "an image with transparent pixels", "ids behind transparent pixels"),
        ("synthia", TRANSPARENT, "an image with transparent pixels", "ids behind transparent pixels"),
        ("camvid", COLOURS, "a colour image", "colour pictures where ids"),
        ("synthia", COLOURS, "a colour image", "8-bit colour pictures; take the class files of GT/LABELS"),
        ("train_ids", np.full((4, 4), 0.5, np.float32), "numbers that are not whole", "numbers that are not whole"),
        ("train_ids", np.full((4, 4), np.nan, np.float32), "numbers that are not whole", "numbers that are not whole"),
    ],
)  # fmt: skip
def test_files_without_ids_say_why(tmp_path: Path, encoding: str, image: np.ndarray, reason: str, cause: str) -> None:
    path = save(tmp_path / ("label.png" if image.dtype == np.uint8 else "label.tif"), image)
    with pytest.raises(UserError, match=reason):
        decode(path, encoding)
    finding = look(Pair("", str(path), ""), encoding=ENCODINGS[encoding])
    assert reason in finding.label_error and finding.label_cause.startswith(cause)


def test_no_cause_has_a_hole(tmp_path: Path) -> None:
    path = save(tmp_path / "label.png", np.array([[0, 255]], np.uint8))
    finding = look(Pair("", str(path), ""), encoding=Encoding("mine", "ids", ((0, 0),)))
    assert "lacks raw ids such as 255; add them" in finding.label_cause
    gif = tmp_path / "label.gif"
    Image.fromarray(COLOURS).save(gif)
    Image.fromarray(LABEL).convert("CMYK").save(tmp_path / "label.tif")
    for file in (tmp_path / "label.tif", gif):
        assert "such as  " not in look(Pair("", str(file), ""), encoding=ENCODINGS["synthia"]).label_cause


def test_a_colour_file_of_ids_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "label.png", np.random.default_rng(0).integers(0, 2, (200, 200, 1), np.uint8).repeat(3, 2))
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match="cannot be decoded"):
        decode(path, "train_ids")


@pytest.mark.parametrize("encoding", ["train_ids", "synthia", "cityscapes_colours"])
def test_damaged_files_are_named(tmp_path: Path, encoding: str) -> None:
    path = save(tmp_path / "label.png", COLOURS)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"label\.png: this file cannot be decoded") as caught:
        decode(path, encoding)
    assert "\n" not in str(caught.value)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"empty\.png: this file cannot be decoded"):
        decode(tmp_path / "empty.png", encoding)
    with pytest.raises(UserError, match=r"none\.png: no such file"):
        decode(tmp_path / "none.png", encoding)


def test_truncated_photograph_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"photo\.jpg: this file cannot be decoded"):
        read_image(str(path))
    with pytest.raises(UserError, match=r"none\.jpg: no such file"):
        read_image(str(tmp_path / "none.jpg"))


def test_images_become_rgb(tmp_path: Path) -> None:
    path = save(tmp_path / "grey.png", LABEL)
    assert np.asarray(read_image(str(path))).shape == (*LABEL.shape, 3)


@pytest.mark.parametrize(("dtype", "mode"), [(np.uint16, "I;16"), (np.int32, "I"), (np.float32, "F")])
def test_images_that_pillow_would_cut_off_at_255_are_refused(tmp_path: Path, dtype: type, mode: str) -> None:
    path = save(tmp_path / "deep.tif", LABEL.astype(dtype))
    with pytest.raises(UserError, match=rf"deep\.tif: a {mode} image, whose values do not fit into 8 bits"):
        read_image(str(path))


PHOTO = np.asarray(Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)).resize((120, 90)))


@pytest.fixture
def no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Pillow's help after a decoder's failure a failure."""

    def fail(data: bytes) -> np.ndarray:
        raise AssertionError("the decoder gave up")

    monkeypatch.setattr(codec, "_pillow", fail)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.usefixtures("no_help")
def test_decoders_read_the_same(tmp_path: Path, decoder: str) -> None:
    png, jpg = save(tmp_path / "photo.png", PHOTO), save(tmp_path / "photo.jpg", PHOTO)
    np.testing.assert_array_equal(read_image(str(png), decoder=decoder), PHOTO)
    difference = np.abs(read_image(str(jpg), decoder=decoder).astype(int) - np.asarray(Image.open(jpg)))
    assert difference.max() <= 1  # the inverse cosine transforms of two libraries


@pytest.mark.usefixtures("no_help")
def test_the_default_is_not_pillow(tmp_path: Path) -> None:
    for name in ("photo.png", "photo.jpg"):
        assert read_image(str(save(tmp_path / name, PHOTO))).shape == PHOTO.shape


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["16-bit", "palette", "grey", "alpha", "transparent", "cmyk.jpg", "grey.jpg", "tif"])
def test_decoders_leave_the_unusual_to_pillow(tmp_path: Path, decoder: str, kind: str) -> None:
    image = Image.fromarray(PHOTO)
    path = tmp_path / (kind if "." in kind else f"{kind}.tif" if kind == "tif" else f"{kind}.png")
    options: dict[str, Any] = {"transparency": (1, 2, 3)} if kind == "transparent" else {}
    modes = {"palette": "P", "grey": "L", "alpha": "RGBA", "cmyk.jpg": "CMYK", "grey.jpg": "L"}
    if kind == "16-bit":
        assert cv2.imwrite(str(path), PHOTO.astype(np.uint16) * 257)
    else:
        (image.convert(modes[kind]) if kind in modes else image).save(path, **options)
    np.testing.assert_array_equal(read_image(str(path), decoder=decoder), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_colour_profile_is_not_applied(tmp_path: Path, decoder: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for suffix in ("png", "jpg"):
        Image.fromarray(PHOTO).save(tmp_path / f"plain.{suffix}")
        Image.fromarray(PHOTO).save(tmp_path / f"tagged.{suffix}", icc_profile=profile)
        assert Image.open(tmp_path / f"tagged.{suffix}").info["icc_profile"] == profile
        plain, tagged = (
            read_image(str(tmp_path / f"{name}.{suffix}"), decoder=decoder) for name in ("plain", "tagged")
        )
        np.testing.assert_array_equal(plain, tagged)
        np.testing.assert_array_equal(
            codec.read_photo(str(tmp_path / f"tagged.{suffix}")), read_image(str(tmp_path / f"plain.{suffix}"))
        )


def test_of_16_bit_colour_the_upper_bits_are_kept(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 1 << 16, (8, 12, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    for read in (read_image, codec.read_photo):
        np.testing.assert_array_equal(read(str(tmp_path / "deep.png")), deep >> 8)


@pytest.mark.parametrize("decoder", DECODERS)
def test_orientation_is_not_applied(tmp_path: Path, decoder: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    for name in ("turned.jpg", "turned.png"):
        Image.fromarray(PHOTO).save(tmp_path / name, exif=exif)
        assert read_image(str(tmp_path / name), decoder=decoder).shape == PHOTO.shape
    Image.fromarray(PHOTO).save(tmp_path / "turned.tif", exif=exif)
    with pytest.raises(UserError, match=r"turned\.tif: a TIFF with an EXIF orientation"):
        read_image(str(tmp_path / "turned.tif"), decoder=decoder)


@pytest.mark.parametrize("encoding", ["train_ids", "cityscapes_colours"])
def test_labels_that_pillow_would_turn_are_refused(tmp_path: Path, encoding: str) -> None:
    exif, label = Image.Exif(), Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8))
    label.putpalette(CITYSCAPES_PALETTE)
    for orientation in (1, 3):  # upright, upside down
        exif[0x0112] = orientation
        label.save(tmp_path / f"label_{orientation}.tif", exif=exif)
    codec.decode_label(str(tmp_path / "label_1.tif"), encoding=ENCODINGS[encoding])
    with pytest.raises(UserError, match=r"label_3\.tif: a TIFF with an EXIF orientation"):
        codec.decode_label(str(tmp_path / "label_3.tif"), encoding=ENCODINGS[encoding])


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["photo.png", "photo.jpg"])
def test_every_decoder_refuses_what_pillow_refuses(tmp_path: Path, decoder: str, name: str) -> None:
    path = save(tmp_path / name, PHOTO)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:-200], b"", b"no image"):
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}: this file cannot be decoded"):
            read_image(str(path), decoder=decoder)
    if path.suffix == ".png":
        path.write_bytes(
            whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 0x55]) + whole[len(whole) // 2 + 1 :]
        )
        with pytest.raises(UserError, match="cannot be decoded"):
            read_image(str(path), decoder=decoder)


# ---------------------------------------------------------------------------------- real files


def test_real_gtav(test_data: Path) -> None:
    path = test_data / "data/samples/gtav/labels/00002.png"
    by_colour, by_index = decode(path, "cityscapes_colours"), decode(path, "cityscapes_ids")
    raw = np.asarray(Image.open(path))
    differ = by_colour != by_index
    assert differ.sum() == 3 and (raw[differ] == 34).all() and (by_colour[differ] == 13).all()


def test_real_cityscapes_and_bdd(test_data: Path) -> None:
    samples = test_data / "data/samples"
    label = decode(next(samples.glob("cityscapes/*_labelIds.png")), "cityscapes_ids")
    assert set(np.unique(label)) <= {*range(19), 255} and (label == 0).mean() > 0.2
    for path in samples.glob("bdd100k/*.png"):
        np.testing.assert_array_equal(decode(path, "train_ids"), np.asarray(Image.open(path)))


def test_real_mapillary(test_data: Path) -> None:
    folder = test_data / "data/samples/mapillary/mmseg_pseudo_mapillary_dataset"
    (first,), (second,) = (list((folder / version).glob("*.png")) for version in ("v1.2", "v2.0"))
    raw = np.asarray(Image.open(first))
    expected = np.select([raw == 17, raw == 45], [2, 5], 255)
    np.testing.assert_array_equal(decode(first, "mapillary_v1.2"), expected)
    with pytest.raises(UserError, match=r"v2\.0"):
        decode(second, "mapillary_v1.2")


def test_documented_synthia(test_data: Path) -> None:
    label = decode(test_data / "data/samples/synthia/FABRICATED_label_16bit_rgb.png", "synthia")
    assert set(np.unique(label)) == {*range(19), 255}


def test_photos_of_every_kind_are_read_upright_and_in_colour(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:32, :48]
    image = np.stack((rows * 8, columns * 5, rows + columns), axis=2).astype(np.uint8)  # (32, 48, 3), smooth
    grey = image[..., 1]

    def read(name: str, picture: Image.Image, **how: Any) -> np.ndarray:
        picture.save(tmp_path / name, **how)
        return codec.read_photo(str(tmp_path / name))

    colour = Image.fromarray(image)
    np.testing.assert_array_equal(read("rgb.png", colour), image)
    np.testing.assert_array_equal(read("rgba.png", colour.convert("RGBA")), image)
    np.testing.assert_array_equal(read("rgb.tif", colour), image)
    np.testing.assert_array_equal(read("grey.png", Image.fromarray(grey)), np.dstack([grey] * 3))
    np.testing.assert_array_equal(read("grey_alpha.png", Image.fromarray(grey).convert("LA")), np.dstack([grey] * 3))
    palette = colour.quantize(64)
    np.testing.assert_array_equal(read("palette.png", palette), np.asarray(palette.convert("RGB")))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for suffix in ("png", "tif"):
        np.testing.assert_array_equal(read(f"deep.{suffix}", deep), np.dstack([grey] * 3))
    cv2.imwrite(str(tmp_path / "deep_colour.png"), image[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(codec.read_photo(str(tmp_path / "deep_colour.png")), image)
    cmyk = read("cmyk.jpg", colour.convert("CMYK"), quality=100).astype(int)
    assert np.abs(cmyk - image).mean() < 4
    for suffix in ("jpg", "png", "webp", "tif"):
        for orientation, turn in ((3, 2), (6, 3), (8, 1)):  # EXIF's number -> quarter turns to the left that undo it
            exif = Image.Exif()
            exif[0x0112] = orientation
            how: Any = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {"lossless": True}
            stored = np.ascontiguousarray(np.rot90(image, -turn))
            upright = read(f"turned_{orientation}.{suffix}", Image.fromarray(stored), exif=exif, **how)
            assert upright.shape == image.shape and np.abs(upright.astype(int) - image).max() < 5, (suffix, orientation)


def test_photos_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    fractions = Image.fromarray(np.zeros((4, 4), np.float32))
    fractions.save(tmp_path / "fractions.tif")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "large.tif")
    (tmp_path / "text.jpg").write_text("no image")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-40])
    for name in ("fractions.tif", "large.tif", "text.jpg", "cut.png", "none.png"):
        with pytest.raises(UserError, match=name):
            codec.read_photo(str(tmp_path / name))


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
@pytest.mark.parametrize(
    "read", [image_size, read_image, read_photo, partial(decode_label, encoding=ENCODINGS["camvid"])]
)
def test_what_has_no_end_or_waits_is_no_image(read: Any, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(kind)
    with pytest.raises(UserError, match=f"^{path}: .*neither a file nor a folder"):
        read(str(path))


def test_ids_saved_with_loss_are_refused_though_all_of_them_are_known(tmp_path: Path) -> None:
    label = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((20, 20), np.uint8))
    Image.fromarray(label).save(tmp_path / "label.png", "JPEG")
    stored = np.asarray(Image.open(tmp_path / "label.png"))
    assert stored.max() < 12 and not np.array_equal(stored, label)
    with pytest.raises(UserError, match="a JPEG, whose loss changes ids"):
        decode_label(str(tmp_path / "label.png"), encoding=ENCODINGS["camvid"])


def test_what_opencv_refuses_is_a_sentence(tmp_path: Path) -> None:
    high = tmp_path / "high.tif"
    Image.new("RGB", (1, 2**20 + 1)).save(high)  # a row more than OpenCV takes; Pillow counts pixels
    with pytest.raises(UserError, match=r"high\.tif: this file cannot be decoded \("):
        decode(high, "camvid")
    assert read_photo(str(high)).shape == (2**20 + 1, 1, 3)
