"""One row per domain: where its files are, how its labels are coded, what is scored; and the search for pairs."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from datasets.codec import ENCODINGS, Encoding, decode_errors
from datasets.labels import NUM_CLASSES
from utils.errors import UserError, did_you_mean

log = logging.getLogger(__name__)


class Pair(NamedTuple):
    """An image file, its label file ("" where none is needed) and the image's name relative to the domain's root."""

    image: str
    label: str
    name: str


@dataclass(frozen=True)
class Layout:
    """One way to arrange the files of a domain.

    `images` is a glob relative to the root. `label` turns an image's relative path into its label's: each (old, new)
    is replaced once, a folder from the left, a suffix from the right. Both may hold "{split}".
    """

    images: str
    label: tuple[tuple[str, str], ...]

    def label_path(self, image: str, folder: str) -> str:
        """Return the label's path for an image's, both relative to the root."""
        for old, new in self.label:
            old, new = old.replace("{split}", folder), new.replace("{split}", folder)
            head, found, tail = image.partition(old) if "/" in old else image.rpartition(old)
            image = head + new + tail if found else image
        return image


@dataclass(frozen=True)
class Domain:
    """Plain data about one data set.

    Attributes:
        root: folder of the data set; `root_key` names the setting that holds it, for messages.
        layouts: tried in order.
        splits: train, val, test -> the names that the folder may have.
        tile: tile of class-uniform sampling in pixels; 0 means the run's --class_uniform_tile.
        merge: (from, to) train ids that are added up before scoring.
        classes: train ids that are scored.
        subsets: further (name, classes) that are reported.
        skip_unequal: leave out pairs whose image and label differ in size (known faults of the published files).
    """

    name: str
    root: str
    root_key: str
    layouts: tuple[Layout, ...]
    encoding: Encoding
    splits: tuple[tuple[str, tuple[str, ...]], ...]
    tile: int = 0
    merge: tuple[tuple[int, int], ...] = ()
    classes: tuple[int, ...] = tuple(range(NUM_CLASSES))
    subsets: tuple[tuple[str, tuple[int, ...]], ...] = ()
    skip_unequal: bool = False

    def paths(self, split: str, stem: str) -> tuple[str, str]:
        """Return where an image and its label lie in the first layout, relative to the root.

        The parts of `stem` fill its wildcards: "01/00001" of gtav, "aachen/aachen_000000_000019" of Cityscapes.

        Raises:
            ValueError: the stem has more or fewer parts than the layout has wildcards.
        """
        layout, folder = self.layouts[0], dict(self.splits)[split][0]
        pattern, parts = layout.images.replace("{split}", folder).split("*"), stem.split("/")
        if len(pattern) != len(parts) + 1:
            raise ValueError(f"{self.name}: {stem!r} does not fill {layout.images}")
        image = pattern[0] + "".join(part + text for part, text in zip(parts, pattern[1:], strict=True))
        return image, layout.label_path(image, folder)


def _splits(**folders: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((split, tuple(names.split())) for split, names in folders.items())


def _row(name: str, encoding: str, splits: tuple[tuple[str, tuple[str, ...]], ...], **fields: Any) -> Domain:
    key = {"bdd100k": "BDD"}.get(name, name.upper())
    return Domain(name, "", f"DATASET.{key}_DIR", encoding=ENCODINGS[encoding], splits=splits, **fields)


_CITYSCAPES_LABEL = ("_leftImg8bit.png", "_gtFine_labelIds.png")
_SYNTHIA_19_WITHOUT = (9, 14, 16)  # terrain, truck and train do not occur

BUILTIN: dict[str, Domain] = {
    row.name: row
    for row in (
        _row(
            "cityscapes",
            "cityscapes_ids",
            _splits(train="train", val="val", test="test"),
            layouts=(
                Layout(
                    "leftImg8bit_trainvaltest/leftImg8bit/{split}/*/*_leftImg8bit.png",
                    (("leftImg8bit_trainvaltest/leftImg8bit/", "gtFine_trainvaltest/gtFine/"), _CITYSCAPES_LABEL),
                ),
                Layout("leftImg8bit/{split}/*/*_leftImg8bit.png", (("leftImg8bit/", "gtFine/"), _CITYSCAPES_LABEL)),
            ),
        ),
        _row(
            "bdd100k",
            "train_ids",
            _splits(train="train", val="val", test="test"),
            layouts=tuple(
                Layout(f"{prefix}images/{{split}}/*.jpg", ((f"{prefix}images/", f"{prefix}labels/"), (".jpg", suffix)))
                for prefix in ("", "seg/")
                for suffix in (".png", "_train_id.png")
            )
            + (Layout("images/10k/{split}/*.jpg", (("images/10k/", "labels/sem_seg/masks/"), (".jpg", ".png"))),),
        ),
        _row(
            "gtav",
            "cityscapes_colours",
            _splits(train="train", val="valid val", test="test"),
            layouts=(
                Layout("images/{split}/*/*.png", (("images/", "labels/"),)),
                Layout("images/{split}/*.png", (("images/", "labels/"),)),
            ),
            skip_unequal=True,
        ),
        _row(
            "synthia",
            "synthia",
            _splits(train="train", val="val"),
            layouts=(
                Layout("RGB/{split}/*.png", (("RGB/", "GT/LABELS/"),)),
                Layout("RGB/{split}/*.png", (("RGB/", "LABELS/"),)),
            ),
            subsets=(("16", tuple(index for index in range(NUM_CLASSES) if index not in _SYNTHIA_19_WITHOUT)),),
        ),
        _row(
            "mapillary",
            "mapillary_v1.2",
            _splits(train="training train", val="validation val", test="test testing"),
            layouts=(
                Layout("{split}/images/*.jpg", (("{split}/images/", "{split}/labels/"), (".jpg", ".png"))),
                Layout("{split}/images/*.jpg", (("{split}/images/", "{split}/v1.2/labels/"), (".jpg", ".png"))),
            ),
        ),
        _row(
            "camvid",
            "camvid",
            _splits(train="train", val="val", test="test"),
            layouts=(
                Layout("{split}/*.png", (("{split}/", "{split}annot/"),)),
                Layout("{split}/*.jpg", (("{split}/", "{split}annot/"), (".jpg", ".png"))),
            ),
            merge=((3, 2), (6, 7), (9, 8), (14, 13), (15, 13), (16, 13), (17, 12), (18, 12)),
            classes=(0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 13),
        ),
        _row(
            "kitti",
            "cityscapes_ids",
            _splits(train="training", val="training", test="testing"),  # it has no other labelled frames
            layouts=(Layout("{split}/image_2/*_10.png", (("{split}/image_2/", "{split}/semantic/"),)),),
        ),
    )
}


PUBLISHED: dict[str, dict[str, tuple[int, ...]]] = {  # images of each split; several where published lists differ
    "gtav": {"train": (12_403, 12_388), "val": (6_382,), "test": (6_181,)},
    "synthia": {"train": (6_580,), "val": (2_820,)},
    "cityscapes": {"train": (2_975,), "val": (500,), "test": (1_525,)},
    "bdd100k": {"train": (7_000,), "val": (1_000,), "test": (2_000,)},
    "mapillary": {"train": (18_000,), "val": (2_000,), "test": (5_000,)},
    "kitti": {"train": (200,), "val": (200,), "test": (200,)},  # train and val are the same
}

# Cityscapes' coarsely labelled frames; they only add centroids of rare classes to the fine ones.
CITYSCAPES_COARSE = _row(
    "cityscapes",
    "cityscapes_ids",
    _splits(train="train_extra"),
    layouts=tuple(
        Layout(
            f"{prefix}leftImg8bit/{{split}}/*/*_leftImg8bit.png",
            (
                (f"{prefix}leftImg8bit/", f"{labels}gtCoarse/"),
                ("_leftImg8bit.png", "_gtCoarse_labelIds.png"),
            ),
        )
        for prefix, labels in (("leftImg8bit_trainextra/", "gtCoarse/"), ("", ""))
    ),
)


def load_domains(cfg: Any) -> dict[str, Domain]:
    """Return the domains of a config by name: the built-in rows with their roots, and those of DATASET.DOMAINS_FILE."""
    from datasets.userdomains import read_domains

    domains = {}
    for name, row in BUILTIN.items():
        root = str(getattr(cfg.DATASET, row.root_key.split(".")[1]))
        domains[name] = replace(row, root=os.path.expanduser(os.path.expandvars(root)))
    if cfg.DATASET.DOMAINS_FILE:
        domains.update(read_domains(Path(cfg.DATASET.DOMAINS_FILE).expanduser(), taken=BUILTIN))
    return domains


def get_domain(domains: Mapping[str, Domain], name: str) -> Domain:
    """Return a domain by name, or raise `UserError` with the closest match."""
    if name not in domains:
        known = ", ".join(domains)
        raise UserError(
            f"unknown data set {name!r}; there are {known}; more can be declared in a --domains file"
            + did_you_mean(name, domains)
        )
    return domains[name]


class Listing(NamedTuple):
    """What is there of a split in one layout: its pairs, and those of them whose label file exists."""

    layout: Layout
    folder: str
    pairs: list[Pair]
    labelled: list[Pair]


def list_split(domain: Domain, split: str, *, need_labels: bool = True) -> Listing | None:
    """List a split without judging it, by the first layout that has pairs, else the first that has images, else None.

    Raises:
        UserError: no such split, or no such folder of the domain.
    """
    folders = dict(domain.splits).get(split)
    if folders is None:
        known = ", ".join(name for name, _ in domain.splits)
        raise UserError(f"{domain.name}: has no split {split!r}; it has {known}")
    if not domain.root:
        raise UserError(f"{domain.name}: {domain.root_key} is empty; {_way_out(domain)}")
    if not os.path.isdir(domain.root):
        raise UserError(f"{domain.name}: the folder {domain.root} does not exist; {_way_out(domain)}")
    first = None
    for layout in domain.layouts:
        for folder in folders:
            pairs = _list_images(domain.root, layout, folder)
            found = Listing(layout, folder, pairs, _with_labels(pairs) if need_labels else [])
            if found.labelled or (pairs and not need_labels):
                return found
            first = first or (found if pairs else None)
    return first


def find_pairs(domain: Domain, split: str, *, need_labels: bool = True) -> list[Pair]:
    """Return the pairs of a split (train, val, test, or trainval for both), sorted by name.

    Raises:
        UserError: no such split or folder, no images, or an image without a label.
    """
    if split == "trainval":
        both = [find_pairs(domain, part, need_labels=need_labels) for part in ("train", "val")]
        return both[0] if both[0] == both[1] else both[0] + both[1]
    found = list_split(domain, split, need_labels=need_labels)
    if found is None:
        folders = dict(domain.splits)[split]
        patterns = " or ".join(
            dict.fromkeys(layout.images.replace("{split}", name) for layout in domain.layouts for name in folders)
        )
        raise UserError(f"{domain.name}/{split}: no image matches {patterns} in {domain.root}; {_way_out(domain)}")
    if not need_labels:
        return [pair._replace(label="") for pair in found.pairs]
    if len(found.labelled) < len(found.pairs):
        there = set(found.labelled)
        first = next(pair for pair in found.pairs if pair not in there)
        way_out = "add the label or remove the image" if there else _way_out(domain)
        raise UserError(
            f"{domain.name}/{split}: {len(found.pairs) - len(there)} of {len(found.pairs)} images have no label, "
            f"the first is {first.image} without {first.label}; {way_out}"
        )
    return _without_unequal(found.labelled, domain, split) if domain.skip_unequal else found.labelled


def _way_out(domain: Domain) -> str:
    if domain.root_key.startswith("DATASET."):
        return f"set {domain.root_key} in config.py or with --opts {domain.root_key}=FOLDER"
    return f"mend {domain.root_key}"


def _list_images(root: str, layout: Layout, folder: str) -> list[Pair]:
    found = glob(layout.images.replace("{split}", folder), root_dir=root, recursive=True)
    names = sorted(name.replace(os.sep, "/") for name in found)
    return [Pair(f"{root}/{name}", f"{root}/{layout.label_path(name, folder)}", name) for name in names]


def _with_labels(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs whose label exists and is not the image itself; every folder is listed once."""
    folders = {os.path.dirname(pair.label) for pair in pairs}
    names = {folder: set(os.listdir(folder)) if os.path.isdir(folder) else set() for folder in folders}
    return [
        pair
        for pair in pairs
        if pair.label != pair.image and os.path.basename(pair.label) in names[os.path.dirname(pair.label)]
    ]


def _without_unequal(pairs: list[Pair], domain: Domain, split: str) -> list[Pair]:
    """Leave out, with a warning, the pairs whose image and label differ in size; one at least must be left."""
    with ThreadPool(8) as pool:  # a network drive answers eight at once
        equal = pool.map(_same_size, pairs, chunksize=256)
    if not all(equal):
        unequal = [pair.name for pair, same in zip(pairs, equal, strict=True) if not same]
        log.warning(
            "%s/%s: %d of %d pairs are skipped because image and label differ in size: %s",
            domain.name,
            split,
            len(unequal),
            len(pairs),
            ", ".join(unequal[:5]) + (", ..." if len(unequal) > 5 else ""),
        )
    if not any(equal):
        raise UserError(f"{domain.name}/{split}: no pair is left whose image and label have one size; mend the labels")
    return [pair for pair, same in zip(pairs, equal, strict=True) if same]


def _same_size(pair: Pair) -> bool:
    """Compare the sizes in the headers; a file without one is left to the decoder, which names it."""
    try:
        return image_size(pair.image) == image_size(pair.label)
    except UserError:
        return True


def image_size(path: str) -> tuple[int, int]:
    """Return (width, height) from a file's header; a PNG's is read where it stands, far faster than Pillow does.

    Raises:
        UserError: the file cannot be opened or is no image.
    """
    with decode_errors(path):
        with open(path, "rb") as file:
            head = file.read(24)
        if head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR":
            return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        with Image.open(path) as image:
            return image.size


def list_hash(pairs: Iterable[Pair]) -> str:
    """Return 12 hex digits that name a list of images: sha256 of their relative names, one per line."""
    return hashlib.sha256("\n".join(pair.name for pair in pairs).encode()).hexdigest()[:12]
