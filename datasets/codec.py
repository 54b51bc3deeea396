"""Raw image files to arrays: RGB images, and labels to train ids by look-up tables."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from datasets import labels
from datasets.files import decode_errors, open_file, read_bytes
from datasets.labels import IGNORE, NUM_CLASSES
from utils.errors import UserError
from utils.parallel import opencv

_ONE_CHANNEL = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "F")  # of Pillow's modes
_LOSSLESS = ("PNG", "TIFF", "BMP")  # in which equal channels stay equal
_BRIGHTENED = {"L;2": 85, "L;4": 17}  # grey of 2 and 4 bits, which Pillow stretches to 0..255
_IGNORED = NUM_CLASSES + 1  # the entry of 255 in `_entry_table`


@dataclass(frozen=True)
class Encoding:
    """How a label file holds its classes.

    `kind` is "ids" (one channel of raw ids; a palette is ignored), "colours" (RGB, or a palette's colours) or
    "synthia" (ids in the red channel of a 16-bit RGB file, or in one channel as for "ids"). `table` maps raw
    ids (for "colours": 0xRRGGBB) to train ids; raw values outside it become `other`, or are refused where that is
    None. `foreign` = (palette index, RGB, sentence) tells a file of another release from its palette.

    Writing takes the first raw id of a class unless another one is `preferred`; `palette` is the published files'.
    """

    name: str
    kind: str
    table: tuple[tuple[int, int], ...]
    other: int | None = None
    foreign: tuple[int, tuple[int, int, int], str] | None = None
    preferred: tuple[int, ...] = field(default=(), repr=False)  # what is written is no part of a cache's key
    palette: bytes = field(default=b"", repr=False)

    def encode(self, train_ids: np.ndarray) -> np.ndarray:
        """Return raw ids (for "colours": palette indices), uint8 or uint16, or raise `ValueError` where one lacks."""
        raw = _raw_table(self)[train_ids]
        if raw.min(initial=0) < 0:
            lost = np.unique(train_ids[raw < 0]).tolist()
            raise ValueError(f"the encoding {self.name} has no raw id for the train ids {lost}")
        return raw.astype(np.uint8 if raw.max(initial=0) < 256 else np.uint16)


def _row(name: str, table: dict[int, int], kind: str = "ids", **fields: Any) -> Encoding:
    return Encoding(name, kind, tuple(sorted(table.items())), **fields)


_VOID = {IGNORE: IGNORE}
# Where two labels share a colour the scored one, put in last, wins: a licence plate is a car, a pole group is a pole.
_BY_COLOUR = sorted(labels.CITYSCAPES_LABELS, key=lambda row: row[1] != IGNORE)

ENCODINGS: dict[str, Encoding] = {
    row.name: row
    for row in (
        _row("train_ids", _VOID | labels.TRAIN_IDS),
        _row("cityscapes_ids", _VOID | labels.CITYSCAPES_IDS),
        _row(
            "cityscapes_colours",
            {(red << 16) | (green << 8) | blue: train for (red, green, blue), train in _BY_COLOUR},
            "colours",
            other=IGNORE,
            palette=labels.CITYSCAPES_PALETTE,
        ),
        _row("synthia", _VOID | labels.SYNTHIA_IDS, "synthia"),
        _row(
            "mapillary_v1.2",
            _VOID | labels.MAPILLARY_IDS,
            foreign=(21, (128, 64, 128), "it is a Mapillary Vistas v2.0 label, whose ids differ; use the v1.2 labels"),
            preferred=(15, 65),  # sidewalk rather than curb, unlabelled rather than bird
            palette=labels.MAPILLARY_PALETTE,
        ),
        _row("camvid", _VOID | labels.CAMVID_IDS),
    )
}


def _packed(colours: bytes) -> np.ndarray:
    """Return (n,) int of 0xRRGGBB for bytes of n colours."""
    return np.frombuffer(colours, dtype=np.uint8).reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1])


@lru_cache(maxsize=32)
def _raw_table(encoding: Encoding) -> np.ndarray:
    """Return (256,) int32: raw id by train id, -1 where the encoding has none."""
    train_of = dict(encoding.table)
    if encoding.kind == "colours":
        train_of = {index: train_of[colour] for index, colour in enumerate(_packed(encoding.palette).tolist())}
    table = np.full(256, -1, dtype=np.int32)
    for raw in (*sorted(train_of, reverse=True), *encoding.preferred):
        table[train_of[raw]] = raw
    return table


@lru_cache(maxsize=32)
def _entry_table(encoding: Encoding) -> np.ndarray:
    """Return uint8 by raw id (65536,) or 0xRRGGBB (2^24,): 0 = unknown, takes no memory; else train id + 1."""
    table = np.zeros(1 << (24 if encoding.kind == "colours" else 16), dtype=np.uint8)
    for raw, train in encoding.table:
        table[raw] = min(train + 1, _IGNORED)
    return table


def image_size(path: str) -> tuple[int, int]:
    """Return (width, height) from a file's header, or raise `UserError`; a PNG's is read faster than Pillow does."""
    with decode_errors(path):
        head = read_bytes(path, 24)
        if head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR":
            return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        with open_file(path) as file, Image.open(file) as image:
            return image.size


def _pillow(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _opencv(data: bytes) -> np.ndarray:
    cv2 = opencv()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


# Decoders of 8-bit RGB files; `python -m benchmarks 'data: image'` compares them. torchvision's, as fast as OpenCV's,
# ends the process on a damaged PNG.
DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {"pillow": _pillow, "opencv": _opencv}


def read_image(path: str, *, decoder: str = "opencv") -> np.ndarray:
    """Return an image file as (H, W, 3) uint8 RGB, as it is stored: an EXIF orientation is not applied.

    Nor is a colour profile; transparency is dropped, and of 16-bit colour the upper 8 bits are kept.

    Pillow reads what is not plain 8-bit RGB, and whatever the decoder gives up on, so that all decoders accept and
    refuse the same files. What is no image, is damaged or is grey beyond 8 bits raises `UserError`.
    """
    with decode_errors(path):
        header, data = _open_as_stored(path)
        if header.mode[0] in "IF":
            raise UserError(f"{path}: a {header.mode} image, whose values do not fit into 8 bits; convert it to 8 bits")
        jpeg = header.format in ("JPEG", "MPO") and data.endswith(b"\xff\xd9")  # decoders differ on cut-off files
        png = header.format == "PNG" and data[24:26] == b"\x08\x02"  # 8 bits, RGB
        if header.mode == "RGB" and (jpeg or png):
            with suppress(Exception):  # each package has errors of its own; Pillow then says what is wrong
                array = DECODERS[decoder](data)
                if array.dtype == np.uint8 and array.shape == (header.height, header.width, 3):
                    return array
        return _pillow(data)


def read_photo(path: str) -> np.ndarray:
    """Return an image file of any kind as (H, W, 3) uint8 RGB, upright as its EXIF orientation says.

    The 16 bits of a grey image become 8 by scale (65535 is 255), transparency is dropped, CMYK and palettes become RGB.
    What is no image, is damaged or holds fractions raises `UserError`.
    """
    with decode_errors(path):
        data = read_bytes(path)
        image: Image.Image = Image.open(io.BytesIO(data))
        if not is_turned(image, data) and image.mode[0] != "I":
            return read_image(path)
        image = ImageOps.exif_transpose(image)
        if image.mode[0] == "I":  # 16 bits in Pillow's versions: I;16, I;16B or I
            grey = np.asarray(image).astype(np.int64)
            if grey.min() < 0 or grey.max() > 65535:
                raise UserError(f"{path}: its grey values do not fit into 16 bits; convert it to 8 bits")
            return np.repeat((grey / 257).round().astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def _open_as_stored(path: str) -> tuple[ImageFile.ImageFile, bytes]:
    """Return an image, its pixels where they are stored, and its file; Pillow turns those of TIFF files alone."""
    data = read_bytes(path)
    image = Image.open(io.BytesIO(data))
    if image.format == "TIFF" and is_turned(image, data):
        raise UserError(f"{path}: a TIFF with an EXIF orientation; save it upright, without one")
    return image, data


def is_turned(image: Image.Image, data: bytes) -> bool:
    """Tell whether the EXIF orientation of an image, with its file's content, says that it is not stored upright."""
    if image.format != "PNG" or b"eXIf" in data:  # looking for it, Pillow decodes a whole PNG
        with suppress(Exception):  # of damaged EXIF data: the image itself may be sound
            return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    return False


def decode_label(path: str, *, encoding: Encoding) -> np.ndarray:
    """Return the train ids of a label file, (H, W) uint8 with 255 = ignored; a wrong file raises `UserError`."""
    table = _entry_table(encoding)
    if encoding.kind == "colours":
        raw, table = _read_colours(path, encoding, table)
    else:
        raw = read_ids(path, encoding=encoding)
    if raw.dtype == np.uint8:
        entries = opencv().LUT(raw, table[:256])  # several times faster than numpy
    elif raw.dtype.kind == "i":
        if dict(encoding.table).get(255) == IGNORE:
            raw = np.where(raw == -1, 255, raw)  # "no class" in files with a sign: 255 without one
        entries = np.where((raw >= 0) & (raw < len(table)), np.take(table, raw, mode="clip"), 0)
    else:
        entries = np.take(table, raw.astype(np.uint32), mode="clip")
    known = np.count_nonzero(entries)
    if encoding.kind == "colours" and 2 * known < entries.size:
        what = f"most of its colours are not those of the encoding {encoding.name}"
        raise UserError(f"{path}: {what}; check that this is the colour label, saved without loss")
    if encoding.other is None and known < entries.size:
        unknown = np.unique(raw[entries == 0].astype(np.int64))
        names = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        hint = encoding.foreign[2] if encoding.foreign else "check the label files, or the domain's encoding and table"
        raise UserError(f"{path}: has the label ids {names}, which the encoding {encoding.name} does not know; {hint}")
    other = IGNORE if encoding.other is None else encoding.other
    train_of = np.array([other, *range(NUM_CLASSES)] + [IGNORE] * (255 - NUM_CLASSES), dtype=np.uint8)
    return opencv().LUT(entries, train_of)


def _read_colours(path: str, encoding: Encoding, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a label's palette indices or 0xRRGGBB, (H, W), and the table of their entries."""
    with decode_errors(path):
        image, _ = _open_as_stored(path)
        image.load()
    if image.mode == "P":
        return np.asarray(image), table[_packed(bytes(image.getpalette() or []).ljust(768, b"\0"))]
    if image.mode not in ("RGB", "RGBA"):
        what = f"a grey image where the encoding {encoding.name} has colours"
        raise UserError(f"{path}: {what}; check the label files or the encoding of the domain")
    return np.asarray(image.convert("RGBA")).view(">u4")[..., 0] >> 8, table


def read_ids(path: str, *, encoding: Encoding) -> np.ndarray:
    """Return the raw ids (H, W) of a label file, of integers of any kind; what is no such file raises `UserError`.

    They are its only channel, indices of a palette too, at the file's own depth; 1 bit where an encoding has no more
    than two ids. Three equal channels of a file without loss count as one, an alpha channel that is opaque everywhere
    as none.
    """
    with decode_errors(path):
        image, data = _open_as_stored(path)
        if image.format == "JPEG":  # its ids may all be ids of the encoding, and other ones than were saved
            raise UserError(f"{path}: a JPEG, whose loss changes ids; take the label files as they were published")
        if image.mode in _ONE_CHANNEL:
            packing: Any = image.tile[0][3] if image.tile else ""
            packing = packing[0] if isinstance(packing, tuple) and packing else packing
            array = np.asarray(image)
            if image.mode == "1":
                return array * _white(path, encoding)
            if encoding.foreign is not None:
                index, colour, sentence = encoding.foreign
                if tuple((image.getpalette() or [])[3 * index : 3 * index + 3]) == colour:
                    raise UserError(f"{path}: {sentence}")
            if image.mode == "F":
                with np.errstate(invalid="ignore"):  # of what is not finite
                    whole = array.astype(np.int32)
                if not np.array_equal(whole, array):
                    raise UserError(f"{path}: has numbers that are not whole, which are no ids; check the label files")
                return whole
            return array // _BRIGHTENED[packing] if packing in _BRIGHTENED else array
        if encoding.kind != "synthia":  # whose files are many and large
            image.load()  # refuses a file that is cut off, of which OpenCV reads what there is
        known = image.format in _LOSSLESS and image.mode in ("RGB", "RGBA", "LA")
        # OpenCV, because Pillow would read channels of 16 bits as zeros
        channels = opencv().imdecode(np.frombuffer(data, np.uint8), opencv().IMREAD_UNCHANGED) if known else None
        if known and channels is None:
            raise UnidentifiedImageError
    if channels is None or channels.ndim != 3 or channels.dtype.kind != "u":
        raise UserError(_not_ids(path, encoding, f"a {image.mode} image"))
    if encoding.kind == "synthia" and channels.dtype == np.uint16:
        return channels[..., 2]  # OpenCV's order is BGR(A): red holds the class, green the instance
    if channels.shape[2] == 4 and channels[..., 3].min() < np.iinfo(channels.dtype).max:
        raise UserError(_not_ids(path, encoding, "an image with transparent pixels"))
    if (channels[..., :1] != channels[..., 1:3]).any():
        raise UserError(_not_ids(path, encoding, "a colour image"))
    return channels[..., 0]


def _white(path: str, encoding: Encoding) -> np.uint8:
    """Return the id of white in a file of 1 bit, or raise `UserError` where an encoding has more than two ids.

    A file that had more ids would be read as classes 0 and 1.
    """
    ids = {raw for raw, train in encoding.table if (raw, train) != (255, IGNORE)}
    for white in (1, 255):  # as some programs pack masks of 0 and 255
        if ids <= {0, white}:
            return np.uint8(white)
    holds = f"a 1-bit image, which tells two ids apart, where the encoding {encoding.name} has {len(ids)}"
    raise UserError(f"{path}: {holds}; take the label files as they were published")


def _not_ids(path: str, encoding: Encoding, what: str) -> str:
    holds, hint = "one channel of ids", "check the label files or the encoding of the domain"
    if encoding.kind == "synthia":
        holds, hint = f"16-bit RGB or {holds}", "use the files of GT/LABELS, not GT/COLOR"
    return f"{path}: {what} where the encoding {encoding.name} has {holds}; {hint}"


def write_label(path: str, train_ids: np.ndarray, *, encoding: Encoding) -> None:
    """Write train ids (H, W) as the published files have them: grey, with their palette, or SYNTHIA's 16-bit RGB."""
    raw = encoding.encode(train_ids)
    if encoding.kind == "synthia":
        channels = np.zeros((*raw.shape, 3), np.uint16)
        channels[..., 2] = raw  # OpenCV's order is BGR: red holds the class, green would hold the instance
        if not opencv().imwrite(path, channels):
            raise OSError(f"{path}: could not be written")
        return
    image = Image.fromarray(raw)
    if encoding.palette:
        image.putpalette(encoding.palette)  # turns L into P without touching the indices
    image.save(path)
