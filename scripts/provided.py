"""What the providers hand out: which of their files are needed, where each goes, and the lists of the splits."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.archives import Member, read_bytes
from utils.errors import UserError

SPLIT_DATA = Path(__file__).resolve().parents[1] / "split_data"
SYNTHIA_IMAGES, SYNTHIA_TRAIN, SYNTHIA_SEED = 9_400, 6_580, 304
UNEQUAL = (
    "the published list for training names 12,388 of the 12,403: it leaves out pairs whose image and label differ in "
    "size, which training here skips with a count"
)
_MAT_KEYS = {"train": "trainIds", "val": "valIds", "test": "testIds"}


@dataclass(frozen=True)
class Rule:
    """Files that are needed: their path in a source ends with `pattern`, and `target` is their place.

    The pattern's groups are `file`, the name that is kept, and `split` where the provider has it in the path.
    """

    kind: str  # image, label or colour
    example: str
    pattern: str
    target: str

    def match(self, path: str) -> re.Match[str] | None:
        """Match a path, relative or whole, with any folders above; hidden files (._NAME of macOS) are left out."""
        found = re.search(rf"(?:^|/){self.pattern}$", path)
        return None if found is None or PurePosixPath(path).name.startswith(".") else found


_NAME = r"(?P<file>[^/]+"
_CITY = r"(?P<split>train|val|test)/(?P<file>[^/]+/[^/]+"
_PART = r"(?:(?!images/|labels/)[^/]+/){0,2}(?P<file>\d{5}\.png)"
_HALF = rf"(?:(?:train|val)/)?{_NAME}\.png)"

RULES: dict[str, tuple[Rule, ...]] = {
    "gtav": (
        Rule("image", "images/00001.png", rf"images/{_PART}", "images/{folder}/{part}/{file}"),
        Rule("label", "labels/00001.png", rf"labels/{_PART}", "labels/{folder}/{part}/{file}"),
    ),
    "synthia": (
        Rule("image", "RGB/0000000.png", rf"RGB/{_HALF}", "RGB/{folder}/{file}"),
        Rule("label", "GT/LABELS/0000000.png", rf"GT/LABELS/{_HALF}", "GT/LABELS/{folder}/{file}"),
        Rule("colour", "GT/COLOR/0000000.png", rf"GT/COLOR/{_HALF}", "GT/COLOR/{folder}/{file}"),
    ),
    "cityscapes": (
        Rule(
            "image",
            "leftImg8bit/train/CITY/NAME_leftImg8bit.png",
            rf"leftImg8bit/{_CITY}_leftImg8bit\.png)",
            "leftImg8bit_trainvaltest/leftImg8bit/{folder}/{file}",
        ),
        Rule(
            "label",
            "gtFine/train/CITY/NAME_gtFine_labelIds.png",
            rf"gtFine/{_CITY}_gtFine_labelIds\.png)",
            "gtFine_trainvaltest/gtFine/{folder}/{file}",
        ),
    ),
    "bdd100k": (
        Rule(
            "image",
            "images/10k/train/NAME.jpg",
            rf"(?:10k|images)/(?P<split>train|val|test)/{_NAME}\.jpg)",
            "images/{folder}/{file}",
        ),
        Rule(
            "label",
            "labels/sem_seg/masks/train/NAME.png",
            rf"(?:sem_seg/masks|labels)/(?P<split>train|val)/{_NAME}\.png)",
            "labels/{folder}/{file}",
        ),
    ),
    "mapillary": (
        Rule(
            "image",
            "training/images/NAME.jpg",
            rf"(?P<split>training|validation|test|testing)/images/{_NAME}\.jpg)",
            "{folder}/images/{file}",
        ),
        Rule(
            "label",
            "training/labels/NAME.png",
            rf"(?P<split>training|validation)/(?:v1\.2/)?labels/{_NAME}\.png)",
            "{folder}/labels/{file}",
        ),
    ),
}
LISTED = ("gtav", "synthia")  # a list says which split a file is in, not the provider's folders
WITHOUT_LABELS = (("cityscapes", "test"), ("bdd100k", "test"), ("mapillary", "test"))  # or with empty ones


def is_needed(name: str, path: str) -> bool:
    """Tell whether a data set needs the file with this path."""
    return any(rule.match(path) for rule in RULES[name]) or (name == "gtav" and is_split_mat(path))


def is_split_mat(path: str) -> bool:
    """Tell whether a path is that of GTAV's split.mat."""
    return PurePosixPath(path).name == "split.mat"


def read_splits(
    name: str, splits: Sequence[str], *, folder: Path, mats: Sequence[Member]
) -> tuple[dict[str, str], dict[Path, str]]:
    """Return the split of every listed file by its name without suffix, and the lists (file -> text) to be written.

    A list in the folder is taken as it is. One that is missing is made: GTAV's from the provider's split.mat (the
    first of `mats`), SYNTHIA's from the recorded seed.

    Raises:
        UserError: there are neither lists nor split.mat, one of them cannot be read, or a name is listed twice.
    """
    files = {split: folder / f"{name}_split_{split}.txt" for split in splits}
    lists = {split: _read(path) for split, path in files.items() if path.exists()}
    written = {}
    if len(lists) < len(files) and (mats or name == "synthia"):
        made = synthia_lists() if name == "synthia" else gtav_lists(mats[0])
        for split in splits:
            if split not in lists:
                lists[split] = made[split]
                written[files[split]] = "".join(f"{line}\n" for line in made[split])
    if not lists:
        raise UserError(
            f"{name}: no source holds split.mat and {folder} has no {files['train'].name}; give the provider's "
            "read_mapping.zip too, or put lists of your own there"
        )
    return _by_stem(lists, files), written


def _by_stem(lists: Mapping[str, Sequence[str]], files: Mapping[str, Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for split, names in lists.items():
        for name in names:
            stem = PurePosixPath(name).stem
            if stem in found:
                raise UserError(
                    f"{files[split]}: {name} is listed twice, for {found[stem]} and for {split}; "
                    "a name belongs into one list, once"
                )
            found[stem] = split
    return found


def _read(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); it should hold one name per line") from error
    return [line.strip() for line in lines if line.strip()]


def gtav_lists(mat: Member) -> dict[str, list[str]]:
    """Return the names of each split from the provider's split.mat, whose ids count from 1."""
    from scipy.io import loadmat

    data = read_bytes(mat)
    try:
        content = loadmat(io.BytesIO(data))
        return {
            split: [f"{int(i):05d}.png" for i in np.sort(content[key], axis=None)] for split, key in _MAT_KEYS.items()
        }
    except Exception as error:  # the reader raises many kinds on a damaged file
        raise UserError(
            f"{mat}: cannot be read as the provider's split.mat ({type(error).__name__}: {error}); download it again"
        ) from error


def synthia_lists() -> dict[str, list[str]]:
    """Return this project's split of SYNTHIA-RAND-CITYSCAPES, drawn from a recorded seed."""
    order = np.random.default_rng(SYNTHIA_SEED).permutation(SYNTHIA_IMAGES)
    halves = {"train": order[:SYNTHIA_TRAIN], "val": order[SYNTHIA_TRAIN:]}
    return {split: [f"{i:07d}.png" for i in sorted(ids)] for split, ids in halves.items()}
