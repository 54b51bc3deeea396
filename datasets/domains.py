"""One row per domain: where its files are, how its labels are coded, what is scored; and the search for pairs."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

from datasets.codec import ENCODINGS, Encoding
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
    )
}


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


def find_pairs(domain: Domain, split: str, *, need_labels: bool = True) -> list[Pair]:
    """Return the pairs of a split (train, val, test, or trainval for both), sorted by name.

    Raises:
        UserError: no such split or folder, no images, or an image without a label.
    """
    if split == "trainval":
        return find_pairs(domain, "train", need_labels=need_labels) + find_pairs(domain, "val", need_labels=need_labels)
    folders = dict(domain.splits).get(split)
    if folders is None:
        known = ", ".join(name for name, _ in domain.splits)
        raise UserError(f"{domain.name}: has no split {split!r}; it has {known}")
    if not domain.root:
        raise UserError(f"{domain.name}: {domain.root_key} is empty; {_way_out(domain)}")
    if not os.path.isdir(domain.root):
        raise UserError(f"{domain.name}: the folder {domain.root} does not exist; {_way_out(domain)}")
    pairs, missing = [], ""
    for layout in domain.layouts:
        for folder in folders:
            found = _list_images(domain.root, layout, folder)
            if not need_labels:
                pairs = [pair._replace(label="") for pair in found]
            else:
                pairs, lacking = _with_labels(found)
                missing = missing or lacking
            if pairs:
                return _checked(pairs, domain, split, missing=lacking if need_labels else "")
    if missing:
        raise UserError(f"{domain.name}/{split}: {missing}; {_way_out(domain)}")
    patterns = " or ".join(
        dict.fromkeys(layout.images.replace("{split}", name) for layout in domain.layouts for name in folders)
    )
    raise UserError(f"{domain.name}/{split}: no image matches {patterns} in {domain.root}; {_way_out(domain)}")


def _way_out(domain: Domain) -> str:
    if domain.root_key.startswith("DATASET."):
        return f"set {domain.root_key} in config.py or with --opts {domain.root_key}=FOLDER"
    return f"mend {domain.root_key}"


def _list_images(root: str, layout: Layout, folder: str) -> list[Pair]:
    names = sorted(name.replace(os.sep, "/") for name in glob(layout.images.replace("{split}", folder), root_dir=root))
    return [Pair(f"{root}/{name}", f"{root}/{layout.label_path(name, folder)}", name) for name in names]


def _with_labels(pairs: Sequence[Pair]) -> tuple[list[Pair], str]:
    """Return the pairs whose label exists, and a clause on the first one that has none."""
    names = {folder: set(os.listdir(folder)) if os.path.isdir(folder) else set() for folder in _folders(pairs)}
    there = [pair for pair in pairs if os.path.basename(pair.label) in names[os.path.dirname(pair.label)]]
    if len(there) == len(pairs):
        return there, ""
    first = next(pair for pair in pairs if os.path.basename(pair.label) not in names[os.path.dirname(pair.label)])
    count = len(pairs) - len(there)
    return there, f"{count} of {len(pairs)} images have no label, the first is {first.image} without {first.label}"


def _folders(pairs: Iterable[Pair]) -> set[str]:
    return {os.path.dirname(pair.label) for pair in pairs}


def _checked(pairs: list[Pair], domain: Domain, split: str, *, missing: str) -> list[Pair]:
    if missing:
        raise UserError(f"{domain.name}/{split}: {missing}; add the label or remove the image")
    if not domain.skip_unequal or not pairs[0].label:
        return pairs
    with ThreadPoolExecutor(8) as pool:
        equal = list(pool.map(_same_size, pairs))
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
    return [pair for pair, same in zip(pairs, equal, strict=True) if same]


def _same_size(pair: Pair) -> bool:
    """Compare the sizes in the headers; a file without one is left to the decoder, which names it."""
    from PIL import Image

    try:
        with Image.open(pair.image) as image, Image.open(pair.label) as label:
            return image.size == label.size
    except OSError:
        return True


def list_hash(pairs: Iterable[Pair]) -> str:
    """Return 12 hex digits that name a list of images: sha256 of their relative names, one per line."""
    return hashlib.sha256("\n".join(pair.name for pair in pairs).encode()).hexdigest()[:12]
