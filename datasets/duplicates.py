"""Images that are in two splits of a data set."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from datasets.diagnosis import Diagnosis, Fault
from datasets.domains import BUILTIN, Domain
from datasets.files import open_file, stamp
from datasets.splits import Listing
from utils.errors import UserError

UNIQUE_NAMES = ("cityscapes", "bdd100k", "gtav", "synthia", "mapillary")  # one name in two splits is one frame
SAMPLE = 32  # groups of equal name and size that the quick mode compares
_BLOCK = 1 << 20


class _Place(NamedTuple):
    split: str
    path: str


def find_duplicates(domain: Domain, listings: Mapping[str, Listing], *, quick: bool, workers: int) -> list[Fault]:
    """Find images of the same bytes in two splits; only files of equal size are compared.

    The quick mode compares a sample of those that share the name as well. Equal names of other bytes are noted where
    a data set's names are unique.
    """
    places = [_Place(split, pair.image) for split, listing in listings.items() for pair in listing.pairs]
    declared = _across_splits((place.path, place) for place in places)
    in_both = {place for group in declared for place in group}
    places = [place for place in places if place not in in_both]
    by_name = _across_splits((os.path.basename(place.path), place) for place in places)
    candidates = [place for group in by_name for place in group] if quick else places
    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(_size, candidates))
    keyed = [(size, os.path.basename(place.path) * quick) for size, place in zip(sizes, candidates, strict=True)]
    groups = _across_splits(zip(keyed, candidates, strict=True))
    compared = groups[:: max(1, len(groups) // SAMPLE)] if quick else groups
    likely = [place for group in compared for place in group]
    with ThreadPoolExecutor(workers) as pool:
        same = _across_splits(zip(pool.map(_content, likely), likely, strict=True))
    judged = {place for group in same for place in group}
    judged |= {place for group in groups for place in group} - set(likely)  # of equal size, but not in the sample
    named = [group for group in by_name if not judged.intersection(group)] if domain.name in UNIQUE_NAMES else []
    return [
        *_faults(
            domain,
            [] if domain.name in BUILTIN else declared,  # KITTI's, whose scores say it
            "same-files",
            "the domain declares the same files for both splits",
        ),
        *_faults(domain, same, "duplicate", "the same image is in both splits; remove it from one of them"),
        *_faults(
            domain,
            named,
            "same-name",
            "other bytes, but one name is one frame in this data set; see that none is in both",
        ),
    ]


def _across_splits(keyed: Iterable[tuple[Hashable, _Place]]) -> list[list[_Place]]:
    """Return the places of equal key that lie in more than one split; None is no key."""
    groups = defaultdict(list)
    for key, place in keyed:
        if key is not None:
            groups[key].append(place)
    return [group for group in groups.values() if len({place.split for place in group}) > 1]


def _faults(domain: Domain, groups: Sequence[Sequence[_Place]], name: str, advice: str) -> list[Fault]:
    """Return a fault for each combination of splits; scoring on what was not trained on may share files by intent."""
    by_splits = defaultdict(list)
    for group in groups:
        by_splits[" and ".join(dict.fromkeys(place.split for place in group))].append(group)
    faults = []
    for splits, shared in by_splits.items():
        diagnosis = Diagnosis(domain, splits)
        note = name == "same-name" or (name == "same-files" and "train" not in splits)
        paths = [[place.path.removeprefix(f"{domain.root}/") for place in group] for group in shared]
        examples = [" = ".join(dict.fromkeys(names)) for names in paths]
        diagnosis.add(name, "note" if note else "fault", examples, advice)
        faults += diagnosis.faults
    return faults


def _size(place: _Place) -> int | None:
    try:
        return stamp(place.path)[0]
    except UserError:
        return None


def _content(place: _Place) -> str | None:
    digest = hashlib.sha256()
    try:
        with open_file(place.path) as file:
            for block in iter(partial(file.read, _BLOCK), b""):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()
