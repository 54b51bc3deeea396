"""The dataset checker: finds what is wrong with a data set before a run does (`python -m scripts.check_data`)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from datasets.diagnosis import Diagnosis, Fault, label_pattern, stray_labels
from datasets.domains import BUILTIN, PUBLISHED, Domain
from datasets.duplicates import find_duplicates
from datasets.labels import CLASS_NAMES
from datasets.scan import Finding, scan
from datasets.splits import Listing, Pair, list_split, no_images
from utils.errors import UserError

SAMPLE = 32  # pairs of a split that the quick mode decodes
ListSplit = Callable[[Domain, str], Listing | None]


@dataclass(frozen=True)
class SplitReport:
    """What was found of a split; patterns are relative to the root, `shares` of all pixels by class and "ignored"."""

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
    """What was found of a domain, and what is wrong with it."""

    domain: str
    root: str
    quick: bool
    splits: tuple[SplitReport, ...]
    faults: tuple[Fault, ...]  # with the notes

    @property
    def healthy(self) -> bool:
        """Whether there are no faults but notes."""
        return all(fault.severity == "note" for fault in self.faults)


def check_domain(
    domain: Domain, *, quick: bool, workers: int, splits: Sequence[str] = (), list_one: ListSplit = list_split
) -> DomainReport:
    """Look a domain over: list and count everything, decode all of it (quick: a sample), and name what is wrong.

    Args:
        splits: those that must be there; without any, those that are there, and one of them must be.
        workers: processes that decode (quick: threads).
        list_one: lists a split.
    """
    listings, faults = _list(domain, splits, list_one)
    chosen = {split: _sample(listing.pairs) if quick else listing.pairs for split, listing in listings.items()}
    there = {pair for listing in listings.values() for pair in listing.labelled}
    pairs = [pair if pair in there else pair._replace(label="") for part in chosen.values() for pair in part]
    found = iter(scan(pairs, encoding=domain.encoding, workers=workers, processes=not quick, title=domain.name))
    reports = []
    for split, listing in listings.items():
        findings = [next(found) for _ in chosen[split]]
        report, of_split = _judge(domain, split, listing, findings)
        reports.append(report)
        faults += of_split
    faults += find_duplicates(domain, listings, quick=quick, workers=workers)
    return DomainReport(domain.name, domain.root, quick, tuple(reports), tuple(faults))


def quick_check(domains_with_splits: Iterable[tuple[Domain, str]], *, list_one: ListSplit = list_split) -> list[Fault]:
    """Return the faults (no notes) that the quick mode finds in splits that a run needs with their labels.

    A fault whose severity is "fatal" would stop or spoil the run: raise `UserError(fault.sentence())` for it, and log
    the others.
    """
    wanted: defaultdict[str, dict[str, None]] = defaultdict(dict)
    domains = {}
    for domain, split in domains_with_splits:
        domains[domain.name] = domain
        wanted[domain.name].update(dict.fromkeys(("train", "val") if split == "trainval" else (split,)))
    reports = [
        check_domain(domain, quick=True, workers=cores(), splits=tuple(wanted[name]), list_one=list_one)
        for name, domain in domains.items()
    ]
    return [fault for report in reports for fault in report.faults if fault.severity != "note"]


def _list(domain: Domain, splits: Sequence[str], list_one: ListSplit) -> tuple[dict[str, Listing], list[Fault]]:
    """List the splits, and say which are not there."""
    listings, diagnosis, missing = {}, Diagnosis(domain, ""), []
    for split in splits or [name for name, _ in domain.splits]:
        try:
            listing = list_one(domain, split)
        except UserError as error:
            if split not in dict(domain.splits):
                raise
            diagnosis.add("no-folder", "fatal", [domain.root or domain.root_key], _advice(error, domain))
            return {}, diagnosis.faults
        if listing is None:
            missing.append(split)
        else:
            listings[split] = listing
    # What was asked for or declared by the user must be there; of a published data set a part is fine.
    needed = bool(splits) or domain.name not in BUILTIN or not listings
    for split in missing:
        if needed or split != "test":
            diagnosis.split = split
            diagnosis.add("no-images", "fatal" if needed else "note", [domain.root], no_images(domain, split))
    return listings, diagnosis.faults


def _advice(error: UserError, domain: Domain) -> str:
    """Return a sentence on a domain or split without its name."""
    return str(error).removeprefix(domain.name).partition(": ")[2]


def _sample(pairs: Sequence[Pair]) -> list[Pair]:
    """Return about `SAMPLE` pairs spread evenly, the first and the last among them."""
    count = min(SAMPLE, len(pairs))
    return [pairs[index * (len(pairs) - 1) // max(1, count - 1)] for index in range(count)]


def _judge(
    domain: Domain, split: str, listing: Listing, findings: Sequence[Finding]
) -> tuple[SplitReport, list[Fault]]:
    diagnosis, strays = Diagnosis(domain, split), stray_labels(domain, listing)
    published = PUBLISHED.get(domain.name, {}).get(split, ())
    diagnosis.count(len(listing.pairs), published)
    diagnosis.partners(listing, strays)
    diagnosis.decoding(findings)
    diagnosis.sizes(findings)
    diagnosis.values(findings)
    pixels = [sum(column) for column in zip(*(found.pixels for found in findings if found.pixels), strict=True)]
    total = sum(pixels)
    names = (*CLASS_NAMES, "ignored")
    report = SplitReport(
        split=split,
        image_pattern=listing.layout.images.replace("{split}", listing.folder),
        label_pattern=label_pattern(listing.layout, listing.folder),
        images=len(listing.pairs),
        labels=len(listing.labelled) + len(strays),
        published=published,
        decoded=len(findings),
        shares={name: count / total for name, count in zip(names, pixels, strict=False)},
    )
    return report, diagnosis.faults


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
