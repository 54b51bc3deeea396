"""Opens the files of a data set and says what they hold; `datasets.checks` says what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.codec import ENCODINGS, Encoding, decode_errors, decode_label, read_image
from datasets.files import open_file
from datasets.labels import IGNORE, NUM_CLASSES
from datasets.splits import Pair
from utils.errors import UserError, one_line
from utils.parallel import parallel_map

Size = tuple[int, int]  # width, height
FEW_COLOURS = 8  # unknown colours that a label may have: GTAV's own have (20, 20, 20) for static things
LABEL_IDS = (
    "likely label ids (0..33) instead of train ids; take the train id files, or declare the domain with the encoding "
    "cityscapes_ids"
)
LOSSY = "saved with loss (JPEG) or resized with interpolation; take the original files, or resize to the nearest pixel"
_TRAIN_IDS = range(NUM_CLASSES)


class Stored(NamedTuple):
    """A label file as it is stored: Pillow's names of its format and mode, and the values of a one-channel file."""

    format: str
    mode: str
    values: tuple[int, ...]


class Finding(NamedTuple):
    """What the files of a pair hold; an error is the reason why a file is not decoded, without its path.

    `pixels` counts the label's pixels by train id, those that are ignored last. `stored` is there for a label that
    can be read, but was refused or may hold train ids in place of another encoding's ids. `unknown_colours` counts
    colours that the encoding does not have.
    """

    pair: Pair
    image_size: Size | None = None
    image_error: str = ""
    label_size: Size | None = None
    label_error: str = ""
    pixels: tuple[int, ...] = ()
    stored: Stored | None = None
    unknown_colours: int = 0


def scan(pairs: Sequence[Pair], *, encoding: Encoding, workers: int, processes: bool, title: str) -> list[Finding]:
    """Decode pairs (an empty label is left out) in worker processes, with a bar, or in threads: what they hold."""
    task = partial(look, encoding=encoding)
    if processes:
        return list(parallel_map(task, pairs, workers=min(workers, len(pairs) // 8), title=title, unit="pair"))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(task, pairs))


def look(pair: Pair, *, encoding: Encoding) -> Finding:
    """Decode the files of a pair and say what they hold; no file makes it raise."""
    finding = Finding(pair)
    try:
        _verify(pair.image)
        height, width = read_image(pair.image).shape[:2]
        finding = finding._replace(image_size=(width, height))
    except Exception as error:  # a decoder may raise anything on a damaged file, and the check continues
        finding = finding._replace(image_error=_reason(error, pair.image))
    if not pair.label:
        return finding
    try:
        _verify(pair.label)
    except UserError as error:
        return finding._replace(label_error=_reason(error, pair.label))
    try:
        label = decode_label(pair.label, encoding=encoding)
    except Exception as error:
        return finding._replace(label_error=_reason(error, pair.label), stored=_stored(pair.label))
    counts, discriminative = Image.fromarray(label).histogram(), discriminative_classes(encoding)
    doubtful = any(counts[:NUM_CLASSES]) and discriminative and not any(counts[index] for index in discriminative)
    return finding._replace(
        label_size=(label.shape[1], label.shape[0]),
        pixels=(*counts[:NUM_CLASSES], counts[IGNORE]),
        stored=_stored(pair.label) if doubtful else None,
        unknown_colours=_unknown_colours(pair.label, encoding) if encoding.kind == "colours" else 0,
    )


@lru_cache(maxsize=8)
def discriminative_classes(encoding: Encoding) -> frozenset[int]:
    """Return the train ids that tell a built-in encoding from the one it is likely confused with; maybe none.

    Of train ids, those that disappear where the files hold Cityscapes' label ids 7.. instead; of other ids, those
    that only raw ids above 18 stand for, and which disappear where the files hold train ids instead.
    """
    if ENCODINGS.get(encoding.name) != encoding or encoding.kind == "colours":
        return frozenset()
    if encoding.name == "train_ids":
        return frozenset(range(7))
    low = {train for raw, train in encoding.table if raw in _TRAIN_IDS}
    return frozenset(train for raw, train in encoding.table if raw not in _TRAIN_IDS) - low - {IGNORE}


def likely_cause(encoding: Encoding, stored: Stored) -> str:
    """Return why an encoding likely refuses a label, and how to fix it."""
    values, grey = set(stored.values) - {255}, len(stored.values) > 0
    if stored.format == "JPEG":
        return f"label files in JPEG; {LOSSY}"
    if encoding.kind == "synthia" and not grey:
        return "8-bit colour pictures; take the class files of GT/LABELS, not those of GT/COLOR"
    if encoding.kind == "colours":
        if grey and stored.mode != "P":
            return "ids where colours are expected; take the colour label files"
        return f"not the colours of {encoding.name}; {LOSSY}"
    if not grey:
        return "colour pictures where ids are expected; take the id files, not the colour ones"
    if encoding.foreign is not None:
        return encoding.foreign[2]
    if encoding.name == "train_ids" and max(values) <= 34:
        return LABEL_IDS
    if encoding.name == "camvid":
        return "not the 11 classes of SegNet's CamVid; take its files, not those of the 32-class set"
    names = ", ".join(map(str, sorted(values - {raw for raw, _ in encoding.table})[:3]))
    if encoding.name not in ENCODINGS:
        return f"the table {encoding.name} lacks raw ids such as {names}; add them to it, or `other: 255`"
    return f"ids such as {names} are none of {encoding.name}'s; check where the label files come from"


def _reason(error: Exception, path: str) -> str:
    text = one_line(error).removeprefix(f"{path}: ")
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _verify(path: str) -> None:
    """Refuse a PNG file that is cut off or whose checksums are wrong; decoders read some of them as noise."""
    with decode_errors(path), open_file(path) as file, Image.open(file) as image:
        image.verify()


def _stored(path: str) -> Stored | None:
    """Return a label file as it is stored, or None where Pillow cannot read it."""
    try:
        with open_file(path) as file, Image.open(file) as image:
            image.load()
            values = np.unique(np.asarray(image)).tolist() if len(image.getbands()) == 1 else ()
            return Stored(image.format or "", image.mode, tuple(map(int, values)))
    except Exception:
        return None


def _unknown_colours(path: str, encoding: Encoding) -> int:
    """Return how many colours of a label its encoding lacks; more than 256 are not counted further."""
    known = _colours(encoding)
    with open_file(path) as file, Image.open(file) as image:
        palette = image.palette  # from the header: nothing is decoded yet
        if image.mode == "P" and palette is not None and palette.mode == "RGB" and palette.rawmode in (None, "RGB"):
            flat = bytes(palette.palette)
            unknown = len(set(zip(flat[::3], flat[1::3], flat[2::3], strict=False)) - known)
            if unknown <= FEW_COLOURS:
                return unknown
        colours = image.convert("RGB").getcolors(256)
    return 257 if colours is None else sum(colour not in known for _, colour in colours)


@lru_cache(maxsize=2)
def _colours(encoding: Encoding) -> frozenset[tuple[int, int, int]]:
    return frozenset((raw >> 16, raw >> 8 & 0xFF, raw & 0xFF) for raw, _ in encoding.table)
