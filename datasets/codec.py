"""Raw image files to arrays: RGB images, and labels to train ids by look-up tables."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets import labels
from datasets.files import open_file, read_bytes
from datasets.labels import IGNORE
from utils.errors import UserError
from utils.parallel import opencv

_TRAIN_OF_ENTRY = np.array([IGNORE, *range(19)] + [IGNORE] * 236, dtype=np.uint8)  # of what `_colour_table` holds
_UNKNOWN = 254  # what a look-up table holds for raw values that the encoding does not name
_INDEX_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class Encoding:
    """How a label file holds its classes.

    `kind` is "ids" (one channel of raw ids; a palette is ignored), "colours" (RGB, or a palette's colours) or
    "synthia" (ids in the red channel of a 16-bit RGB file, or in the only channel of an 8-bit one). `table` maps raw
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
        """Return the raw ids (for "colours": the palette's indices) of train ids, uint8 or uint16 of their shape.

        Raises:
            ValueError: the encoding has nothing for a class.
        """
        raw = _raw_table(self)[train_ids]
        if raw.min(initial=0) < 0:
            lost = np.unique(train_ids[raw < 0]).tolist()
            raise ValueError(f"the encoding {self.name} has no raw id for the train ids {lost}")
        return raw.astype(np.uint8 if raw.max(initial=0) < 256 else np.uint16)


def _ids(name: str, table: dict[int, int], *, kind: str = "ids") -> Encoding:
    return Encoding(name, kind, tuple(sorted({IGNORE: IGNORE, **table}.items())))


def _colours() -> Encoding:
    # Where two labels share a colour the scored one wins: a licence plate is a car, a pole group is a pole.
    rows = sorted(labels.CITYSCAPES_LABELS, key=lambda row: row[1] != IGNORE)
    table = {(red << 16) | (green << 8) | blue: train for (red, green, blue), train in rows}
    return Encoding(
        "cityscapes_colours",
        "colours",
        tuple(sorted(table.items())),
        other=IGNORE,
        palette=labels.CITYSCAPES_PALETTE,
    )


_MAPILLARY_V2 = (
    21,
    (128, 64, 128),
    "it is a Mapillary Vistas v2.0 label, whose ids differ; use the v1.2 labels",
)

ENCODINGS: dict[str, Encoding] = {
    row.name: row
    for row in (
        _ids("train_ids", labels.TRAIN_IDS),
        _ids("cityscapes_ids", labels.CITYSCAPES_IDS),
        _colours(),
        _ids("synthia", labels.SYNTHIA_IDS, kind="synthia"),
        replace(
            _ids("mapillary_v1.2", labels.MAPILLARY_IDS),
            foreign=_MAPILLARY_V2,
            preferred=(15, 65),  # sidewalk rather than curb, unlabelled rather than bird
            palette=labels.MAPILLARY_PALETTE,
        ),
        _ids("camvid", labels.CAMVID_IDS),
    )
}


@lru_cache(maxsize=32)
def _id_table(encoding: Encoding) -> np.ndarray:
    """Return (65536,) uint8: train id by raw id, `_UNKNOWN` where the encoding has no answer."""
    table = np.full(1 << 16, _UNKNOWN if encoding.other is None else encoding.other, dtype=np.uint8)
    for raw, train in encoding.table:
        table[raw] = train
    return table


@lru_cache(maxsize=32)
def _raw_table(encoding: Encoding) -> np.ndarray:
    """Return (256,) int32: raw id by train id, -1 where the encoding has none."""
    train_of = dict(encoding.table)
    if encoding.kind == "colours":
        colours = zip(*[iter(encoding.palette)] * 3, strict=True)
        train_of = {index: train_of[(r << 16) | (g << 8) | b] for index, (r, g, b) in enumerate(colours)}
    table = np.full(256, -1, dtype=np.int32)
    for raw in (*sorted(train_of, reverse=True), *encoding.preferred):
        table[train_of[raw]] = raw
    return table


@lru_cache(maxsize=2)
def _colour_table(encoding: Encoding) -> np.ndarray:
    """Return (2^24,) uint8 by 0xRRGGBB: 0 = colour not in the table, else train id + 1 (0 pages cost no memory)."""
    table = np.zeros(1 << 24, dtype=np.uint8)
    for colour, train in encoding.table:
        table[colour] = 20 if train == IGNORE else train + 1
    return table


@contextmanager
def decode_errors(path: str) -> Iterator[None]:
    """Turn what goes wrong with an image file into a `UserError` with its path."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or (str(error) or "its format is not known").splitlines()[0]
        reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else reason
        raise UserError(f"{path}: this file cannot be decoded ({reason}); it is damaged or not an image") from error


def _open(path: str) -> Image.Image:
    with decode_errors(path):
        image = Image.open(io.BytesIO(read_bytes(path)))
        image.load()
    return image


def image_size(path: str) -> tuple[int, int]:
    """Return (width, height) from a file's header; a PNG's is read where it stands, far faster than Pillow does.

    Raises:
        UserError: the file cannot be opened or is no image.
    """
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


# Decoders of 8-bit RGB files; `python -m benchmarks.data image` compares them. torchvision's, as fast as OpenCV's, ends
# the process on a damaged PNG.
DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {"pillow": _pillow, "opencv": _opencv}


def read_image(path: str, *, decoder: str = "opencv") -> np.ndarray:
    """Return an image file as (H, W, 3) uint8 RGB, as it is stored: an EXIF orientation is not applied.

    Args:
        decoder: a name of `DECODERS`. Pillow reads what is not plain 8-bit RGB, and whatever the decoder gives up on,
            so that all of them accept and refuse the same files.

    Raises:
        UserError: the file is not there, damaged, no image, or one of a single channel beyond 8 bits.
    """
    with decode_errors(path):
        data = read_bytes(path)
        header = Image.open(io.BytesIO(data))
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


def decode_label(path: str, *, encoding: Encoding) -> np.ndarray:
    """Return the train ids of a label file, (H, W) uint8 with 255 = ignored.

    Raises:
        UserError: the file is damaged, has the wrong number of channels, or holds values that the encoding lacks.
    """
    if encoding.kind == "colours":
        return _from_colours(_open(path), path, encoding)
    if encoding.kind == "synthia":
        return _from_ids(_read_synthia(path), path, encoding)
    image = _open(path)
    if image.mode not in _INDEX_MODES:
        raise UserError(
            f"{path}: a {image.mode} image where the encoding {encoding.name} has one channel of ids; "
            "check the label files or the encoding of the domain"
        )
    if encoding.foreign is not None:
        index, colour, sentence = encoding.foreign
        palette = image.getpalette() or []
        if tuple(palette[3 * index : 3 * index + 3]) == colour:
            raise UserError(f"{path}: {sentence}")
    return _from_ids(np.asarray(image), path, encoding)


def write_label(path: str, train_ids: np.ndarray, *, encoding: Encoding) -> None:
    """Write train ids (H, W) as the published files have them: grey, with their palette, or SYNTHIA's 16-bit RGB.

    Raises:
        ValueError: the encoding has nothing for a class.
        OSError: the file cannot be written.
    """
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


def _from_ids(raw: np.ndarray, path: str, encoding: Encoding) -> np.ndarray:
    """Look raw ids (H, W) up and refuse those that the encoding does not know."""
    if raw.dtype == bool:
        raw = raw.astype(np.uint8)
    if raw.dtype not in (np.uint8, np.uint16):
        raw = np.where((raw < 0) | (raw > 0xFFFF), 0xFFFF, raw).astype(np.uint16)
    table = _id_table(encoding)
    train = _look_up(table[:256], raw) if raw.dtype == np.uint8 else np.take(table, raw)  # (H, W)
    if encoding.other is None and (train == _UNKNOWN).any():
        unknown = np.unique(raw[train == _UNKNOWN])
        names = ", ".join(str(value) for value in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        way_out = "check the label files, or the table and encoding of the domain"
        raise UserError(
            f"{path}: has the label ids {names}, which the encoding {encoding.name} does not know; "
            + (way_out if encoding.foreign is None else encoding.foreign[2])
        )
    return train


def _look_up(table: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Return `table[raw]` for a table of 256 and (H, W), both uint8; OpenCV is several times faster than numpy."""
    return opencv().LUT(raw, table)


def _from_colours(image: Image.Image, path: str, encoding: Encoding) -> np.ndarray:
    """Look colours up, through the palette where there is one; colours outside the table are ignored."""
    table = _colour_table(encoding)
    if image.mode == "P":
        palette = np.zeros((256, 3), dtype=np.uint32)
        colours = np.array(image.getpalette() or [], dtype=np.uint32).reshape(-1, 3)
        palette[: len(colours)] = colours
        by_index = np.take(table, (palette[:, 0] << 16) | (palette[:, 1] << 8) | palette[:, 2])  # (256,)
        entries = _look_up(by_index, np.asarray(image))
    elif image.mode in ("RGB", "RGBA"):
        pixels = np.asarray(image.convert("RGBA")).view("<u4")[..., 0]  # (H, W) as 0xAABBGGRR
        entries = np.take(table, ((pixels & 0xFF) << 16) | (pixels & 0xFF00) | ((pixels >> 16) & 0xFF))
    else:
        raise UserError(
            f"{path}: a grey image where the encoding {encoding.name} has colours; "
            "check the label files or the encoding of the domain"
        )
    if 2 * np.count_nonzero(entries) < entries.size:
        raise UserError(
            f"{path}: most of its colours are not those of the encoding {encoding.name}; "
            "check that this is the colour label, saved without loss"
        )
    return _look_up(_TRAIN_OF_ENTRY, entries)


def _read_synthia(path: str) -> np.ndarray:
    """Return the class ids of a SYNTHIA label; Pillow would read its 16-bit RGB files as zeros."""
    cv2 = opencv()
    with decode_errors(path):
        data = np.frombuffer(read_bytes(path), dtype=np.uint8)
        array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
        if array is None:
            raise UnidentifiedImageError
    if array.ndim == 2:
        return array
    if array.dtype != np.uint16:
        raise UserError(
            f"{path}: an 8-bit colour image where SYNTHIA's labels are 16-bit RGB or one 8-bit channel; "
            "use the files of GT/LABELS, not GT/COLOR"
        )
    return np.ascontiguousarray(array[..., 2])  # OpenCV's order is BGR(A): red holds the class, green the instance
