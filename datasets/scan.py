"""Opens the files of a data set and says what they hold; `datasets.checks` says what is wrong, in the forms below."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from datasets.codec import ENCODINGS, Encoding, decode_label, is_turned, read_ids, read_image
from datasets.files import decode_errors, open_file, read_bytes, stamp
from datasets.labels import IGNORE, NUM_CLASSES
from datasets.splits import Pair
from utils.errors import UserError, one_line
from utils.files import tolerated, write_text
from utils.parallel import parallel_map, thread_pool

Size = tuple[int, int]  # width, height
Place = tuple[str, str]  # a split and an image's path
SAMPLE = 32  # pairs of a split that the quick mode decodes, and groups of like images that it compares
FEW_COLOURS = 8  # unknown colours that a label may have: GTAV's own have (20, 20, 20) for static things
LABEL_IDS = (
    "likely label ids (0..33) instead of train ids; take the train id files, or declare the domain with the encoding "
    "cityscapes_ids"
)
LOSSY = "saved with loss (JPEG) or resized with interpolation; take the original files, or resize to the nearest pixel"
_TRAIN_IDS = range(NUM_CLASSES)
_VERSION = 1  # of `Finding`: raise it when it, or what is found, changes


class Finding(NamedTuple):
    """What the files of a pair hold; an error is the reason why a file is not decoded, without its path.

    `label_cause` is the likely cause of a label error, "" for a damaged file. `pixels` counts the label's pixels by
    train id, those that are ignored last. `raw_ids` are there for a label that may hold train ids in place of another
    encoding's ids. `unknown_colours` counts colours that the encoding does not have. `turned`: the image has an EXIF
    orientation, which reading leaves out.
    """

    pair: Pair
    image_size: Size | None = None
    image_error: str = ""
    label_size: Size | None = None
    label_error: str = ""
    label_cause: str = ""
    pixels: tuple[int, ...] = ()
    raw_ids: tuple[int, ...] = ()
    unknown_colours: int = 0
    turned: bool = False


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong or worth knowing.

    Attributes:
        split: train, val or test, several joined by " and ", or "" for the whole domain.
        name: stable, for programs.
        severity: "fatal" stops or spoils a training, "fault" is wrong, "note" is only worth knowing.
        count: files or pairs that show it.
        examples: all of them, relative to the domain's root.
        advice: one sentence on the likely cause and how to fix it.
        root: the domain's folder.
    """

    domain: str
    split: str
    name: str
    severity: str
    count: int
    examples: tuple[str, ...]
    advice: str
    root: str

    @property
    def where(self) -> str:
        return f"{self.domain}/{self.split}" if self.split else self.domain

    def sentence(self) -> str:
        if not self.examples:
            return f"{self.where}: {self.name}: {self.advice}"
        first = self.examples[0] if self.examples[0] == self.root else os.path.join(self.root, self.examples[0])
        if self.count == 1 and first in self.advice:
            return f"{self.where}: {self.advice}"
        return f"{self.where}: {self.name} ({self.count}, the first: {first}): {self.advice}"


@dataclass(frozen=True)
class SplitReport:
    """What a split holds; patterns are relative to the root, `shares` of all pixels by class and "ignored"."""

    split: str
    image_pattern: str
    label_pattern: str
    images: int
    labels: int
    published: tuple[int, ...]  # the known totals, any of which is right
    decoded: int
    shares: dict[str, float]


@dataclass(frozen=True)
class DomainReport:
    """What a domain holds, and what is wrong with it."""

    domain: str
    root: str
    quick: bool
    splits: tuple[SplitReport, ...]
    faults: tuple[Fault, ...]  # with the notes

    @property
    def healthy(self) -> bool:
        return all(fault.severity == "note" for fault in self.faults)


def scan(
    pairs: Sequence[Pair], *, encoding: Encoding, workers: int, processes: bool, title: str, cache: str = ""
) -> list[Finding]:
    """Decode pairs (an empty label is left out) in worker processes, with a bar, or in threads: what they hold.

    With a folder `cache`, pairs that were sound are not decoded again as long as their files keep size and time.
    """
    if cache:
        return _scan_once(pairs, encoding=encoding, workers=workers, title=title, cache=Path(cache))
    task = partial(look, encoding=encoding)
    if processes:
        return list(parallel_map(task, pairs, workers=min(workers, len(pairs) // 8), title=title, unit="pair"))
    with thread_pool(workers) as pool:
        return list(pool.map(task, pairs))


def _scan_once(pairs: Sequence[Pair], *, encoding: Encoding, workers: int, title: str, cache: Path) -> list[Finding]:
    stamps = [_key(stamp, ("", path)) for pair in pairs for path in (pair.image, pair.label) if path]
    made_by = repr((_VERSION, encoding, [tuple(pair) for pair in pairs], stamps))
    path = cache / f"checked_{title}_{hashlib.sha256(os.fsencode(made_by)).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, TypeError):  # not there, or not what is written below
        rows = json.loads(path.read_bytes())
        values: Any = [[tuple(value) if isinstance(value, list) else value for value in row] for row in rows]
        return [Finding(pair, *row) for pair, row in zip(pairs, values, strict=True)]
    findings = scan(pairs, encoding=encoding, workers=workers, processes=False, title=title)
    if not any(finding.image_error or finding.label_error for finding in findings):  # the others may be fixed
        with tolerated("what the quick check found"):
            write_text(path, json.dumps([finding[1:] for finding in findings]))
    return findings


def look(pair: Pair, *, encoding: Encoding) -> Finding:
    """Decode the files of a pair and say what they hold; no file makes it raise."""
    finding = Finding(pair)
    try:
        _verify(pair.image)
        height, width = read_image(pair.image).shape[:2]
        data = read_bytes(pair.image)
        finding = finding._replace(image_size=(width, height), turned=is_turned(Image.open(BytesIO(data)), data))
    except Exception as error:  # a decoder may raise anything on a damaged file, and the check continues
        finding = finding._replace(image_error=_reason(error, pair.image))
    if not pair.label:
        return finding
    verified = False
    try:
        _verify(pair.label)
        verified = True
        label = decode_label(pair.label, encoding=encoding)
    except Exception as error:
        cause = _likely_cause(pair.label, encoding) if verified else ""
        return finding._replace(label_error=_reason(error, pair.label), label_cause=cause)
    counts, discriminative = Image.fromarray(label).histogram(), discriminative_classes(encoding)
    doubtful = any(counts[:NUM_CLASSES]) and discriminative and not any(counts[index] for index in discriminative)
    return finding._replace(
        label_size=(label.shape[1], label.shape[0]),
        pixels=(*counts[:NUM_CLASSES], counts[IGNORE]),
        raw_ids=_stored(pair.label, encoding)[2] if doubtful else (),
        unknown_colours=_unknown_colours(pair.label, encoding) if encoding.kind == "colours" else 0,
    )


@lru_cache(maxsize=8)
def discriminative_classes(encoding: Encoding) -> frozenset[int]:
    """Return the train ids that tell a built-in encoding from the one it is likely confused with; maybe none.

    Those that disappear where files of train ids hold Cityscapes' label ids 7.. instead, or the other way round.
    """
    if ENCODINGS.get(encoding.name) != encoding or encoding.kind == "colours":
        return frozenset()
    if encoding.name == "train_ids":
        return frozenset(range(7))
    low = {train for raw, train in encoding.table if raw in _TRAIN_IDS}
    return frozenset(train for raw, train in encoding.table if raw not in _TRAIN_IDS) - low - {IGNORE}


def _likely_cause(path: str, encoding: Encoding) -> str:
    """Return why an encoding likely refuses a label, and how to fix it; "" where Pillow cannot read it."""
    form, mode, values, opaque = _stored(path, encoding)
    ids, grey, name, kind = set(values) - {255}, len(values) > 0, encoding.name, encoding.kind
    unknown = ", ".join(map(str, sorted(set(values) - {raw for raw, _ in encoding.table})[:3]))
    causes = (  # in the order in which they are looked for
        (not form, ""),
        (form == "JPEG", f"label files in JPEG; {LOSSY}"),
        (mode == "1" and not grey, "1-bit pictures, which tell two ids apart; take the label files as published"),
        (kind != "colours" and not opaque, "ids behind transparent pixels; save the label files without transparency"),
        (mode == "F" and not grey, "numbers that are not whole; save the ids as integers, without interpolation"),
        (kind == "synthia" and not grey, "8-bit colour pictures; take the class files of GT/LABELS, not of GT/COLOR"),
        (kind == "colours" and grey and mode != "P", "ids where colours are expected; take the colour label files"),
        (kind == "colours", f"not the colours of {name}; {LOSSY}"),
        (not grey, "colour pictures where ids are expected; take the id files, not the colour ones"),
        (encoding.foreign is not None, encoding.foreign[2] if encoding.foreign else ""),
        (not unknown, f"a kind of file that the encoding {name} does not have; save the ids as 8-bit grey PNG files"),
        (name == "train_ids" and 0 <= min(ids, default=0) and max(ids, default=0) <= 34, LABEL_IDS),
        (name == "camvid", "not the 11 classes of SegNet's CamVid; take its files, not those of the 32-class set"),
        (name not in ENCODINGS, f"the table {name} lacks raw ids such as {unknown}; add them to it, or `other: 255`"),
        (True, f"ids such as {unknown} are none of {name}'s; check where the label files come from"),
    )
    return next(cause for applies, cause in causes if applies)


def _reason(error: Exception, path: str) -> str:
    text = one_line(error).removeprefix(f"{path}: ")
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _verify(path: str) -> None:
    """Refuse a PNG file that is cut off or whose checksums are wrong; decoders read some of them as noise."""
    with decode_errors(path), open_file(path) as file, Image.open(file) as image:
        image.verify()


def _stored(path: str, encoding: Encoding) -> tuple[str, str, tuple[int, ...], bool]:
    """Return Pillow's names of a file's format ("": cannot be read) and mode, its ids, and whether it is opaque.

    The ids are what `read_ids` reads; of a file that has colours there are none.
    """
    try:
        with open_file(path) as file, Image.open(file) as image:
            image.load()
            opaque = "A" not in image.getbands() or image.getchannel("A").getextrema()[0] == 255
            values = tuple[int, ...]()
            with suppress(UserError):
                values = tuple(map(int, np.unique(read_ids(path, encoding=replace(encoding, foreign=None)))))
            return image.format or "unknown", image.mode, values, opaque
    except Exception:
        return "", "", (), True


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


def find_shared(places: Sequence[Place], *, quick: bool) -> tuple[list[list[Place]], ...]:
    """Return groups of images that lie in more than one split: of one path, of the same bytes, of one name alone.

    Only files of equal size are compared. The quick mode compares a sample of those that share the name as well.
    """
    same_path = _across_splits(places, [path for _, path in places])
    declared = {*chain(*same_path)}
    places = [place for place in places if place not in declared]
    by_name = _across_splits(places, [os.path.basename(path) for _, path in places])
    candidates = [*chain(*by_name)] if quick else places
    with ThreadPoolExecutor(16) as pool:  # a network drive answers many at once
        sizes = pool.map(partial(_key, lambda path: stamp(path)[0]), candidates)
        names = [os.path.basename(path) if quick else "" for _, path in candidates]
        by_size = _across_splits(candidates, zip(sizes, names, strict=True))
        compared = [*chain(*by_size[:: max(1, len(by_size) // SAMPLE if quick else 1)])]
        digests = pool.map(partial(_key, lambda path: hashlib.sha256(read_bytes(path)).digest()), compared)
        same_bytes = _across_splits(compared, digests)
    known = {*chain(*same_bytes)} | ({*chain(*by_size)} - {*compared})  # of equal size, but not in the sample
    return same_path, same_bytes, [group for group in by_name if not known.intersection(group)]


def _across_splits(places: Sequence[Place], keys: Iterable[Hashable]) -> list[list[Place]]:
    """Return the places of equal key that lie in more than one split; None is no key."""
    groups = defaultdict(list)
    for place, key in zip(places, keys, strict=True):
        if key is not None:
            groups[key].append(place)
    return [group for group in groups.values() if len({split for split, _ in group}) > 1]


def _key(read: Callable[[str], Hashable], place: Place) -> Hashable:
    with suppress(OSError, UserError):
        return read(place[1])
    return None
