"""One row per domain: where its files are, how its labels are coded, what is scored."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from config import Config
from datasets.codec import ENCODINGS, Encoding
from datasets.labels import NUM_CLASSES
from utils.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Layout:
    """One way to arrange the files of a domain, in folders or in zip archives at the top of its root.

    `images` is a glob relative to the root or to an archive. `label` turns an image's relative path into its label's:
    each (old, new) is replaced once, a folder from the left, a suffix from the right. Both may hold "{split}". Where a
    layout is `listed`, its folders tell no splits: split_data/DOMAIN_split_SPLIT.txt names the files of each.
    """

    images: str
    label: tuple[tuple[str, str], ...]
    listed: bool = False

    def patterns(self, folder: str) -> tuple[str, str]:
        """Return the globs of the images and of the labels in a split's folder."""
        images = self.images.replace("{split}", folder)
        return images, self.label_path(images, folder)

    def label_path(self, image: str, folder: str) -> str:
        """Return the label's path for an image's, both relative to the root."""
        for old, new in self.label:
            old, new = old.replace("{split}", folder), new.replace("{split}", folder)
            head, match, tail = image.partition(old) if "/" in old else image.rpartition(old)
            image = head + new + tail if match else image
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
        gaps: leave out so many images of a split without a label, and let so many labels have no image (likewise).
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
    gaps: int = 0

    def paths(self, split: str, stem: str) -> tuple[str, str]:
        """Return where an image and its label lie in the first layout, relative to the root.

        The parts of `stem` fill its wildcards: "01/00001" of gtav, "aachen/aachen_000000_000019" of Cityscapes; of a
        set of letters the first is taken. More or fewer parts raise `ValueError`.
        """
        layout, folder = self.layouts[0], dict(self.splits)[split][0]
        pattern, parts = layout.images.replace("{split}", folder), stem.split("/")
        pattern = re.sub(r"\[(.)[^]]*]", r"\1", pattern)
        if pattern.count("*") != len(parts):
            raise ValueError(f"{self.name}: {stem!r} does not fill {layout.images}")
        image = pattern.replace("*", "{}").format(*parts)
        return image, layout.label_path(image, folder)


def _row(name: str, encoding: str, *layouts: Layout, splits: str = "train val test", **fields: Any) -> Domain:
    """Return the row of a built-in domain; a split is followed by "=" and its folders' names where they are others.

    What follows "_" in the name is a part of the data set, which has no folder of its own.
    """
    parts = (part.partition("=") for part in splits.split())
    folders = tuple((split, tuple((names or split).split(","))) for split, _, names in parts)
    key = f"DATASET.{'BDD' if name == 'bdd100k' else name.partition('_')[0].upper()}_DIR"
    return Domain(name, "", key, layouts, ENCODINGS[encoding], folders, **fields)


def _city(images: str, labels: str, kind: str = "gtFine") -> Layout:
    folders, suffixes = (f"{images}leftImg8bit/", f"{labels}{kind}/"), ("_leftImg8bit.png", f"_{kind}_labelIds.png")
    return Layout(f"{images}leftImg8bit/{{split}}/*/*_leftImg8bit.png", (folders, suffixes))


def _bdd(images: str, labels: str, suffix: str = ".png") -> Layout:
    return Layout(f"{images}{{split}}/*.jpg", ((images, labels), (".jpg", suffix)))


def _acdc(name: str, condition: str) -> Domain:
    ends = ("_rgb_anon.png", "_gt_labelTrainIds.png")
    archives = (("", ""), ("rgb_anon_trainvaltest/", "gt_trainval/"))  # side by side, or each in a folder of its own
    layouts = [
        Layout(f"{images}rgb_anon/{condition}/{{split}}/*/*{ends[0]}", ((f"{images}rgb_anon/", f"{labels}gt/"), ends))
        for images, labels in archives
    ]
    return _row(name, "train_ids", *layouts)


# IDD's part I is PNG, part II JPEG; both may lie in one folder.
_IDD_IMAGES, _IDD_LABELS = "_leftImg8bit.[pj][np]g", "_gtFine_labelcsTrainIds.png"
_DARK_ZURICH = (("rgb_anon/", "gt/"), ("_rgb_anon.png", "_gt_labelTrainIds.png"))

BUILTIN: dict[str, Domain] = {
    row.name: row
    for row in (
        _row("cityscapes", "cityscapes_ids", _city("leftImg8bit_trainvaltest/", "gtFine_trainvaltest/"), _city("", "")),
        _row(
            "bdd100k",
            "train_ids",
            _bdd("images/", "labels/"),
            _bdd("images/", "labels/", "_train_id.png"),
            _bdd("seg/images/", "seg/labels/"),
            _bdd("seg/images/", "seg/labels/", "_train_id.png"),
            _bdd("images/10k/", "labels/sem_seg/masks/"),
            _bdd("bdd100k/images/10k/", "bdd100k/labels/sem_seg/masks/"),  # as the provider's archives have it
            _bdd("10k/", "bdd100k/labels/sem_seg/masks/"),
            _bdd("10k/", "sem_seg/masks/"),
            gaps=6,
        ),
        _row(
            "gtav",
            "cityscapes_colours",
            Layout("images/{split}/*/*.png", (("images/", "labels/"),)),
            Layout("images/{split}/*.png", (("images/", "labels/"),)),
            Layout("images/*.png", (("images/", "labels/"),), listed=True),  # the provider's ten parts
            splits="train val=valid,val test",
            skip_unequal=True,
        ),
        _row(
            "synthia",
            "synthia",
            Layout("RGB/{split}/*.png", (("RGB/", "GT/LABELS/"),)),
            Layout("RGB/{split}/*.png", (("RGB/", "LABELS/"),)),
            Layout("RGB/*.png", (("RGB/", "GT/LABELS/"),), listed=True),
            Layout("RAND_CITYSCAPES/RGB/*.png", (("RGB/", "GT/LABELS/"),), listed=True),  # the provider's archive
            splits="train val",
            subsets=(  # terrain, truck and train do not occur; 13: nor wall, fence and pole, as many papers have it
                ("16", (*range(9), *range(10, 14), 15, 17, 18)),
                ("13", (*range(3), *range(6, 9), *range(10, 14), 15, 17, 18)),
            ),
        ),
        _row(
            "mapillary",
            "mapillary_v1.2",
            Layout("{split}/images/*.jpg", (("{split}/images/", "{split}/labels/"), (".jpg", ".png"))),
            Layout("{split}/images/*.jpg", (("{split}/images/", "{split}/v1.2/labels/"), (".jpg", ".png"))),
            splits="train=training,train val=validation,val test=test,testing",
        ),
        _row(
            "camvid",
            "camvid",
            Layout("{split}/*.png", (("{split}/", "{split}annot/"),)),
            Layout("{split}/*.jpg", (("{split}/", "{split}annot/"), (".jpg", ".png"))),
            merge=((3, 2), (6, 7), (9, 8), (14, 13), (15, 13), (16, 13), (17, 12), (18, 12)),
            classes=(0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 13),
        ),
        _row(
            "kitti",
            "cityscapes_ids",
            Layout("{split}/image_2/*_10.png", (("{split}/image_2/", "{split}/semantic/"),)),
            splits="train=training val=training test=testing",  # it has no other labelled frames
        ),
        _acdc("acdc", "*"),
        *(_acdc(f"acdc_{condition}", condition) for condition in ("fog", "night", "rain", "snow")),
        _row(
            "idd",
            "train_ids",  # as AutoNUE's createLabels.py writes them with --id-type csTrainId
            Layout(
                f"leftImg8bit/{{split}}/*/*{_IDD_IMAGES}",
                (
                    ("leftImg8bit/", "gtFine/"),
                    *((f"_leftImg8bit.{end}", _IDD_LABELS) for end in ("png", "jpg")),
                    (_IDD_IMAGES, _IDD_LABELS),  # of the glob itself
                ),
            ),
            subsets=(("18", (*range(16), 17, 18)),),  # hardly any train occurs
        ),
        _row(
            "darkzurich",
            "train_ids",
            Layout("rgb_anon/{split}/night/*/*_rgb_anon.png", _DARK_ZURICH),
            Layout("Dark_Zurich_{split}_anon/rgb_anon/{split}/night/*/*_rgb_anon.png", _DARK_ZURICH),
            splits="val test",  # its training frames have no labels
        ),
    )
}
# Cityscapes' coarsely labelled frames; they only add centroids of rare classes to the fine ones.
CITYSCAPES_COARSE = _row(
    "cityscapes",
    "cityscapes_ids",
    _city("leftImg8bit_trainextra/", "gtCoarse/", "gtCoarse"),
    _city("", "", "gtCoarse"),
    splits="train=train_extra",
)

PUBLISHED: dict[str, dict[str, tuple[int, ...]]] = {  # images of each split; several where published lists differ
    "gtav": {"train": (12_403, 12_388), "val": (6_382,), "test": (6_181,)},
    "synthia": {"train": (6_580,), "val": (2_820,)},
    "cityscapes": {"train": (2_975,), "val": (500,), "test": (1_525,)},
    "bdd100k": {"train": (7_000,), "val": (1_000,), "test": (2_000,)},
    "mapillary": {"train": (18_000,), "val": (2_000,), "test": (5_000,)},
    "kitti": {"train": (200,), "val": (200,), "test": (200,)},  # train and val are the same
    "acdc": {"train": (1_600,), "val": (406,), "test": (2_000,)},
    **{
        f"acdc_{condition}": {"train": (400,), "val": (106 if condition == "night" else 100,), "test": (500,)}
        for condition in ("fog", "night", "rain", "snow")
    },
    "idd": {"train": (14_027, 6_993), "val": (2_036, 981), "test": (4_038, 2_029)},  # both parts, or part I alone
    "darkzurich": {"val": (50,), "test": (151,)},
}


def share_images(first: str, second: str) -> bool:
    """Return whether two domains are one, or one is a built-in part of the other, as acdc_fog is of acdc."""
    parts = BUILTIN.keys() >= {first, second} and (first.startswith(f"{second}_") or second.startswith(f"{first}_"))
    return first == second or parts


def load_domains(cfg: Config) -> dict[str, Domain]:
    """Return the domains of a config by name, each with its root and tile: built-in and declared ones."""
    from datasets.custom_domains import read_domains

    domains = {}
    for name, row in BUILTIN.items():
        root = str(getattr(cfg.DATASET, row.root_key.split(".")[1]))
        domains[name] = replace(row, root=os.path.expanduser(os.path.expandvars(root)))
    if cfg.DATASET.DOMAINS_FILE:
        domains.update(read_domains(Path(cfg.DATASET.DOMAINS_FILE)))
    tile = cfg.DATASET.CLASS_UNIFORM_TILE
    return {name: replace(row, tile=row.tile or tile) for name, row in domains.items()}


def get_domain(domains: Mapping[str, Domain], name: str) -> Domain:
    """Return a domain by name, or raise `UserError` with the closest match."""
    if name not in domains:
        known = ", ".join(domains)
        hint = f"more can be declared in a --domains file{did_you_mean(name, domains)}"
        raise UserError(f"unknown data set {name!r}; there are {known}; {hint}")
    return domains[name]


def shared_subsets(domain: Domain, sources: Sequence[Domain]) -> list[tuple[str, tuple[int, ...]]]:
    """Return (name, classes) of the classes that a domain shares with a source that has fewer than it scores.

    That is a source's `classes` and its numbered subsets, as SYNTHIA's 16 and 13. Several sources complete each other,
    so that none is named.
    """
    if len(sources) != 1:
        return []
    (source,) = sources
    numbered = [classes for name, classes in source.subsets if name.isdecimal()]
    known = {frozenset(domain.classes), *(frozenset(classes) for _, classes in domain.subsets)}
    shared = dict[tuple[int, ...], int]()  # with the number of the source's classes that they are part of
    for classes in (source.classes, *numbered):
        shared.setdefault(tuple(c for c in domain.classes if c in classes), len(classes))
    found = [(str(len(classes)), classes) for classes in shared if classes and frozenset(classes) not in known]
    taken = [name for name, _ in (*domain.subsets, *found)]  # as SYNTHIA's own 13 by a source with 13 others
    return [
        (name if taken.count(name) == 1 else f"{name} of {source.name}'s {shared[classes]}", classes)
        for name, classes in found
    ]
