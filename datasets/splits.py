"""The images and labels of a split: listed, checked and opened once per run."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from glob import iglob
from itertools import product
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datasets import files
from datasets.codec import Encoding, image_size
from datasets.domains import Domain, Layout, get_domain
from utils import REPOSITORY
from utils.errors import UserError, first_few, reason
from utils.files import read_whole

log = logging.getLogger(__name__)

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
RENAME = "rename or convert them (upper and lower case differ)"
SPLIT_DATA = REPOSITORY / "split_data"


class Pair(NamedTuple):
    """An image file, its label file ("" where none is needed) and the image's name relative to the domain's root."""

    image: str
    label: str
    name: str


class Listing(NamedTuple):
    """What is there of a split in one layout: its pairs, those of them whose label exists, and names of all labels.

    `unread` names images that are like those of the pairs but for their suffix.
    """

    layout: Layout
    folder: str
    pairs: list[Pair]
    labelled: list[Pair]
    labels: list[str]
    unread: list[str]


@dataclass(frozen=True)
class Split:
    """The pairs of a split (train, val, test or trainval), sorted by name; labels are "" where none are needed."""

    domain: Domain
    name: str
    pairs: tuple[Pair, ...]

    @property
    def encoding(self) -> Encoding:
        return self.domain.encoding

    @property
    def title(self) -> str:
        """The domain and the split, by the name of its folder: Cityscapes' coarse frames are a "train" too."""
        return f"{self.domain.name}/{dict(self.domain.splits).get(self.name, (self.name,))[0]}"

    @cached_property
    def list_hash(self) -> str:
        return list_hash(self.pairs)

    def subset(self, limit: int) -> Split:
        """Return `limit` pairs, evenly spread over the list; 0 stands for all of them."""
        count = len(self.pairs)
        if not 0 < limit < count:
            return self
        return replace(self, pairs=tuple(self.pairs[index * count // limit] for index in range(limit)))


class Splits:
    """The splits of a run, each listed once, by the first process; the others receive what it found, or its error."""

    def __init__(self, domains: Mapping[str, Domain]) -> None:
        self.domains = domains
        self.listing = cache(_list_and_tell)  # for the first process alone
        self._open: dict[tuple[Domain, str, bool], Split] = {}

    def open(self, domain: str | Domain, split: str, *, need_labels: bool = True) -> Split:
        """Return what `find_pairs` does; every process has to ask for the same splits in the same order."""
        from utils.distributed import from_main  # imports torch, which listing alone need not wait for

        domain = get_domain(self.domains, domain) if isinstance(domain, str) else domain
        key = domain, split, need_labels
        if key not in self._open:
            pairs = from_main(lambda: find_pairs(*key[:2], need_labels=need_labels, listing=self.listing))
            self._open[key] = Split(domain, split, tuple(pairs))
        return self._open[key]


def _list_and_tell(domain: Domain, split: str) -> Listing | None:
    listing = list_split(domain, split)
    if listing is not None and listing.unread:
        counts = f"{len(listing.unread)} images are not read because of their suffix, {len(listing.pairs)} are"
        log.warning("%s/%s: %s: %s; %s", domain.name, split, counts, first_few(listing.unread), RENAME)
    return listing


def list_split(domain: Domain, split: str) -> Listing | None:
    """List a split without judging it, by the first layout that has labels, else the first that has images, else None.

    Archives are looked into where unpacked files do not suffice. A missing folder or split raises `UserError`.
    """
    folders = dict(domain.splits).get(split)
    if folders is None:
        known = ", ".join(name for name, _ in domain.splits)
        raise UserError(f"{domain.name}: has no split {split!r}; it has {known}")
    if not domain.root:
        raise UserError(f"{domain.name}: {domain.root_key} is empty; {_hint(domain)}")
    if not os.path.isdir(domain.root):
        raise UserError(f"{domain.name}: the folder {domain.root} does not exist; {_hint(domain)}")
    first = None
    for archived in (False, True):
        members = files.archived(domain.root) if archived else {}
        if archived and not members:
            break
        for layout in domain.layouts:
            stems = None
            if layout.listed:
                split_of = split_of_stems(domain, read_lists(domain, SPLIT_DATA), SPLIT_DATA)
                stems = {stem for stem, listed_for in split_of.items() if listed_for == split}
            for folder in folders if stems is None else folders[: len(stems) > 0]:
                listing = _list_layout(domain.root, layout, folder, stems, members)
                if listing.labelled:
                    return listing
                first = first or (listing if listing.pairs else None)
    return first


def _list_layout(root: str, layout: Layout, folder: str, stems: set[str] | None, members: Mapping[str, str]) -> Listing:
    def find(pattern: str) -> dict[str, str]:
        paths = files.find(root, pattern, members)
        return {name: paths[name] for name in sorted(paths) if stems is None or PurePosixPath(name).stem in stems}

    image_pattern, label_pattern = layout.patterns(folder)
    is_image = re.compile(files.glob_regex(image_pattern)).fullmatch
    there = find(_of_any_suffix(image_pattern))
    images = {name: path for name, path in there.items() if is_image(name)}
    labels = find(label_pattern) if images else {}
    names = {image: layout.label_path(image, folder) for image in images}
    folders = {os.path.dirname(f"{root}/{name}") for name in names.values() if name not in labels}
    others = {f"{path}/{name}" for path in folders if os.path.isdir(path) for name in os.listdir(path)}
    pairs = [Pair(path, labels.get(names[name], f"{root}/{names[name]}"), name) for name, path in images.items()]
    existing = others.union(labels.values())
    labelled = [pair for pair in pairs if pair.label != pair.image and pair.label in existing]
    unread = [name for name in there if name not in images and name not in labels and _is_image(name)]
    return Listing(layout, folder, pairs, labelled, list(labels), unread if images else [])


def _of_any_suffix(pattern: str) -> str:
    """Return a glob with any suffix in place of its own."""
    stem, suffix = os.path.splitext(pattern)
    return f"{stem}.*" if suffix and stem.count("[") == stem.count("]") else pattern


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGES


def find_pairs(
    domain: Domain,
    split: str,
    *,
    need_labels: bool = True,
    listing: Callable[[Domain, str], Listing | None] = list_split,
) -> list[Pair]:
    """Return the pairs of a split (train, val, test, or trainval for both), sorted by name, or raise `UserError`."""
    if split == "trainval":
        both = [find_pairs(domain, part, need_labels=need_labels, listing=listing) for part in ("train", "val")]
        return both[0] if both[0] == both[1] else both[0] + both[1]
    listed = listing(domain, split)
    if listed is None:
        raise UserError(f"{domain.name}/{split}: {no_images(domain, split)}")
    pairs, labelled = listed.pairs, listed.labelled
    if not need_labels:
        return [pair._replace(label="") for pair in pairs]
    if len(labelled) < len(pairs):
        existing = set(labelled)
        bare = [pair for pair in pairs if pair not in existing]
        count = f"{len(bare)} of {len(pairs)}"
        if not is_known_gap(domain, len(bare), of=len(pairs)):
            hint = "add the label or remove the image" if existing else _hint(domain)
            hint = _other_case(domain, bare[0].label) or hint
            raise UserError(
                f"{domain.name}/{split}: {count} images have no label, "
                f"the first is {bare[0].image} without {bare[0].label}; {hint}"
            )
        names = ", ".join(pair.name for pair in bare)
        log.warning("%s/%s: %s images are skipped because they have no label: %s", domain.name, split, count, names)
    return _without_unequal(labelled, domain, split) if domain.skip_unequal else labelled


def _other_case(domain: Domain, label: str) -> str:
    """Return what to do where a label's name differs from one that is there in upper and lower case alone, else ""."""
    folder, name = os.path.split(label)
    whole = label.removeprefix(f"{domain.root}/")
    there = {*files.archived(domain.root), *(os.listdir(folder) if os.path.isdir(folder) else ())} - {whole, name}
    near = next((other for other in there if other.lower() in (whole.lower(), name.lower())), "")
    return near and f"{near} is there, but case counts: rename the labels"


def is_known_gap(domain: Domain, count: int, *, of: int) -> bool:
    """Tell whether so many files without a partner are what the published files lack, and no more."""
    return count <= domain.gaps and 100 * count <= of


def no_images(domain: Domain, split: str) -> str:
    """Return why a split has no images, and what to do, in a clause."""
    folders, members = dict(domain.splits)[split], files.archived(domain.root)
    patterns = dict.fromkeys(layout.patterns(folder)[0] for layout in domain.layouts for folder in folders)
    list_path = SPLIT_DATA / f"{domain.name}_split_{split}.txt"
    listed = (layout.images for layout in domain.layouts if layout.listed and not list_path.exists())
    if any(files.find(domain.root, pattern, members) for pattern in listed):
        return (
            f"the files in {domain.root} are not sorted by split, and there is no {list_path}; "
            f"`python -m scripts.prepare_data {domain.name} {domain.root}` makes the lists"
            + (", with the provider's read_mapping.zip in that folder" if domain.name == "gtav" else "")
        )
    of_any = {name for pattern in patterns for name in files.find(domain.root, _of_any_suffix(pattern), members)}
    others = sorted(filter(_is_image, of_any))
    hint = f"{len(others)} have another suffix: {first_few(others)}; {RENAME}" if others else ""
    inside = re.compile("(?:.*/)?(?:" + "|".join(map(files.glob_regex, patterns)) + ")", re.DOTALL).fullmatch
    deeper = [path for name, path in members.items() if inside(name.replace("\\", "/").replace("//", "/"))]
    hint = hint or (f"{deeper[0]} is in other folders of its archive: unpack it by hand" if deeper else "")
    hint = hint or _further_down(domain, folders) or _hint(domain)
    return f"no image matches {' or '.join(patterns)} in {domain.root}; {hint}"


def _further_down(domain: Domain, folders: Sequence[str]) -> str:
    """Return what to do where the images lie one or two folders below those where they are expected, else ""."""
    for above, layout, folder in product(("*/", "*/*/"), domain.layouts, folders):
        pattern = layout.patterns(folder)[0]
        image = next(iglob(above + pattern, root_dir=domain.root), None)
        if image is None or "**" in pattern:
            continue
        parts = PurePosixPath(image).parts
        below, image = "/".join(parts[: above.count("/")]), "/".join(parts[above.count("/") :])
        if os.path.isfile(f"{domain.root}/{below}/{layout.label_path(image, folder)}"):
            return f"they are in {domain.root}/{below}: give that folder as {domain.root_key}"
        if layout.listed:
            command = f"python -m scripts.prepare_data {domain.name} {domain.root} --out FOLDER"
            return f"images are in {domain.root}/{below}, their labels elsewhere: `{command}` puts them in place"
    return ""


def _hint(domain: Domain) -> str:
    if domain.root_key.startswith("DATASET."):
        return f"set {domain.root_key} in config.py or with --opts {domain.root_key}=FOLDER"
    return f"fix {domain.root_key}"


def read_lists(domain: Domain, folder: Path) -> dict[str, list[str]]:
    """Return the lists that a folder has for a domain, by split: names of files, or paths that end with them."""
    lists = {}
    for split, _ in domain.splits:
        path = folder / f"{domain.name}_split_{split}.txt"
        try:
            lines = read_whole(path).decode().splitlines()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({reason(error)}); it should hold one name per line") from error
        lists[split] = [line.strip() for line in lines if line.strip()]
    return lists


def split_of_stems(domain: Domain, lists: Mapping[str, Sequence[str]], folder: Path) -> dict[str, str]:
    """Return the split of every listed file by its name without suffix, or raise `UserError` for one listed twice."""
    split_of: dict[str, str] = {}
    for split, names in lists.items():
        for name in names:
            stem = PurePosixPath(name).stem
            if stem in split_of:
                twice = f"{name} is listed twice, for {split_of[stem]} and for {split}"
                path = f"{folder}/{domain.name}_split_{split}.txt"
                raise UserError(f"{path}: {twice}; a name belongs into one list, once")
            split_of[stem] = split
    return split_of


def _without_unequal(pairs: list[Pair], domain: Domain, split: str) -> list[Pair]:
    """Leave out, with a warning, the pairs whose image and label differ in size; one at least must be left."""
    with ThreadPool(8) as pool:  # a network drive answers eight at once
        equal = pool.map(_same_size, pairs, chunksize=256)
    unequal = [pair.name for pair, same in zip(pairs, equal, strict=True) if not same]
    where = f"{domain.name}/{split}"
    if unequal:
        count, names = f"{len(unequal)} of {len(pairs)}", ", ".join(unequal[:5]) + (", ..." if len(unequal) > 5 else "")
        log.warning("%s: %s pairs are skipped because image and label differ in size: %s", where, count, names)
    if not any(equal):
        raise UserError(f"{where}: no pair is left whose image and label have one size; fix the labels")
    return [pair for pair, same in zip(pairs, equal, strict=True) if same]


def _same_size(pair: Pair) -> bool:
    """Compare the sizes in the headers; a file without one is left to the decoder, which names it."""
    with suppress(UserError):
        return image_size(pair.image) == image_size(pair.label)
    return True


def list_hash(pairs: Iterable[Pair]) -> str:
    """Return 12 hex digits that name a list of images: sha256 of their relative names' bytes, one per line."""
    return hashlib.sha256(os.fsencode("\n".join(pair.name for pair in pairs))).hexdigest()[:12]
