"""Opens the files of a data set and tells what is in them; `datasets.diagnosis` judges."""

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

Size = tuple[int, int]  # width, height
FEW_COLOURS = 8  # unknown colours that a label may have: GTAV's own have (20, 20, 20) for static things
_TRAIN_IDS = range(NUM_CLASSES)


class Stored(NamedTuple):
    """A label file as it is stored: Pillow's names of its format and mode, and the values of a one-channel file."""

    format: str
    mode: str
    values: tuple[int, ...]


class Finding(NamedTuple):
    """What the files of a pair hold; an error is the reason why a file is not decoded, without its path.

    `pixels` counts the label's pixels by train id, those that are ignored last. `stored` is there for a label that
    can be read, but was refused or may hold train ids in place of another encoding's ids. `odd_colours` counts
    colours that the encoding does not have.
    """

    pair: Pair
    image_size: Size | None = None
    image_error: str = ""
    label_size: Size | None = None
    label_error: str = ""
    pixels: tuple[int, ...] = ()
    stored: Stored | None = None
    odd_colours: int = 0


def scan(pairs: Sequence[Pair], *, encoding: Encoding, workers: int, processes: bool, title: str) -> list[Finding]:
    """Decode pairs (an empty label is left out) in worker processes, with a bar, or in threads: what they hold."""
    task = partial(look, encoding=encoding)
    if processes:
        from datasets.workers import parallel_map  # imports torch, which the quick mode need not wait for

        return list(parallel_map(task, pairs, workers=min(workers, len(pairs) // 8), title=title, unit="pair"))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(task, pairs))


def look(pair: Pair, *, encoding: Encoding) -> Finding:
    """Decode the files of a pair and tell what they hold; no file makes it raise."""
    found = Finding(pair)
    try:
        _verify(pair.image)
        height, width = read_image(pair.image).shape[:2]
        found = found._replace(image_size=(width, height))
    except Exception as error:  # a decoder may raise anything on a damaged file, and the doctor goes on
        found = found._replace(image_error=_reason(error, pair.image))
    if not pair.label:
        return found
    try:
        _verify(pair.label)
    except UserError as error:
        return found._replace(label_error=_reason(error, pair.label))
    try:
        label = decode_label(pair.label, encoding=encoding)
    except Exception as error:
        return found._replace(label_error=_reason(error, pair.label), stored=_stored(pair.label))
    counts = Image.fromarray(label).histogram()
    telling = telling_classes(encoding)
    doubtful = any(counts[:NUM_CLASSES]) and telling and not any(counts[index] for index in telling)
    return found._replace(
        label_size=(label.shape[1], label.shape[0]),
        pixels=(*counts[:NUM_CLASSES], counts[IGNORE]),
        stored=_stored(pair.label) if doubtful else None,
        odd_colours=_odd_colours(pair.label, encoding) if encoding.kind == "colours" else 0,
    )


@lru_cache(maxsize=8)
def telling_classes(encoding: Encoding) -> frozenset[int]:
    """Return the train ids by which a built-in encoding is told from its likely mix-up; empty where nothing tells.

    Of train ids, those that disappear where the files hold Cityscapes' label ids 7.. instead; of other ids, those
    that only raw ids above 18 stand for, and which disappear where the files hold train ids instead.
    """
    if ENCODINGS.get(encoding.name) != encoding or encoding.kind == "colours":
        return frozenset()
    if encoding.name == "train_ids":
        return frozenset(range(7))
    low = {train for raw, train in encoding.table if raw in _TRAIN_IDS}
    return frozenset(train for raw, train in encoding.table if raw not in _TRAIN_IDS) - low - {IGNORE}


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
            values = np.unique(np.asarray(image)) if len(image.getbands()) == 1 else ()
            return Stored(image.format or "", image.mode, tuple(int(value) for value in values))
    except Exception:
        return None


def _odd_colours(path: str, encoding: Encoding) -> int:
    """Return how many colours of a label its encoding lacks; more than 256 are not counted further."""
    known = _colours(encoding)
    with open_file(path) as file, Image.open(file) as image:
        palette = image.palette  # from the header: nothing is decoded yet
        if image.mode == "P" and palette is not None and palette.mode == "RGB" and palette.rawmode in (None, "RGB"):
            flat = bytes(palette.palette)
            odd = len(set(zip(flat[::3], flat[1::3], flat[2::3], strict=False)) - known)
            if odd <= FEW_COLOURS:
                return odd
        found = image.convert("RGB").getcolors(256)
    return 257 if found is None else sum(colour not in known for _, colour in found)


@lru_cache(maxsize=2)
def _colours(encoding: Encoding) -> frozenset[tuple[int, int, int]]:
    return frozenset((raw >> 16, raw >> 8 & 0xFF, raw & 0xFF) for raw, _ in encoding.table)
