"""The dataset checker: says what is wrong with a data set before a run meets it (`python -m scripts.check_data`)."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice

from datasets.domains import BUILTIN, PUBLISHED, Domain, get_domain
from datasets.labels import CLASS_NAMES, NUM_CLASSES
from datasets.scan import (
    FEW_COLOURS,
    LABEL_IDS,
    LOSSY,
    SAMPLE,
    DomainReport,
    Fault,
    Finding,
    SplitReport,
    discriminative_classes,
    find_shared,
    scan,
)
from datasets.splits import Listing, Pair, Splits, is_known_gap, list_split, no_images
from utils.errors import UserError
from utils.parallel import cores

log = logging.getLogger(__name__)

MANY = 8  # labels that must all lack the discriminative classes before their absence says anything
MOST = 0.5  # share of the labels that are ignored altogether, or of pairs of unequal size, which is a fault
UNIQUE_NAMES = ("cityscapes", "bdd100k", "gtav", "synthia", "mapillary")  # one name in two splits is one frame
UNREAD = (
    "images of another suffix (upper and lower case differ) beside those that are read; they are neither trained on "
    "nor evaluated: rename or convert them"
)
TURNED = (
    "an EXIF orientation, which is not applied: labels must be of the pixels as they are stored; turn the images, or "
    "remove the tag where they fit"
)
DAMAGED = "damaged, cut off or not an image; unpack or download them again"

ListSplit = Callable[[Domain, str], Listing | None]
MakeFault = Callable[[str, str, Sequence[str], str], Fault]  # of a split: name, severity, files, advice


def check_domain(
    domain: Domain,
    *,
    quick: bool,
    workers: int,
    splits: Sequence[str] = (),
    list_one: ListSplit = list_split,
    cache: str = "",
) -> DomainReport:
    """Check a domain: list and count everything, decode all of it (quick: a sample), and name what is wrong.

    Args:
        splits: those that must exist; without any, those that exist, and one of them must.
        workers: processes that decode (quick: threads).
        cache: folder that remembers sound samples of the quick mode, "" for none.
    """
    listings, faults = _list(domain, splits, list_one)
    samples = {split: _sample(listing.pairs) if quick else listing.pairs for split, listing in listings.items()}
    labelled = {pair for listing in listings.values() for pair in listing.labelled}
    pairs = [pair if pair in labelled else pair._replace(label="") for pair in chain(*samples.values())]
    decode = partial(scan, encoding=domain.encoding, workers=workers, title=domain.name)
    findings = iter(decode(pairs, processes=not quick, cache=cache))
    reports = []
    for split, listing in listings.items():
        of_split, fault = list(islice(findings, len(samples[split]))), partial(_fault, domain, split)
        orphans = orphan_labels(domain, listing)
        reports.append(_report(domain, split, listing, orphans, of_split))
        faults += _check_partners(domain, reports[-1], listing, orphans, fault)
        faults += _check_pairs(domain, of_split, fault)
        faults += _check_values(domain, split, of_split, fault)
        faults.append(fault("not-read", "fault", listing.unread, UNREAD))
    faults += _check_duplicates(domain, listings, quick=quick)
    return DomainReport(domain.name, domain.root, quick, tuple(reports), tuple(row for row in faults if row.count))


def quick_check(
    domains_with_splits: Iterable[tuple[Domain, str]], *, list_one: ListSplit = list_split, cache: str = ""
) -> list[Fault]:
    """Return the faults (no notes) that the quick mode finds in splits that a run needs with their labels.

    A fault whose severity is "fatal" would stop or spoil the run; `refuse_or_warn` acts on them.
    """
    splits = defaultdict[Domain, dict[str, None]](dict)
    for domain, split in domains_with_splits:
        splits[domain].update(dict.fromkeys(("train", "val") if split == "trainval" else (split,)))
    reports = (
        check_domain(domain, quick=True, workers=cores(), splits=list(names), list_one=list_one, cache=cache)
        for domain, names in splits.items()
    )
    return [fault for report in reports for fault in report.faults if fault.severity != "note"]


def refuse_or_warn(
    splits: Splits, needed: Iterable[tuple[str, str]], *, evaluated: str, cache: str = ""
) -> dict[str, list[str]]:
    """Look at a sample of splits, each (domain, split) by name; raise `UserError` at a fatal fault, log the others.

    Returns by domain the sentences on the split `evaluated`, which belong beside its scores.
    """
    pairs = [(get_domain(splits.domains, name), split) for name, split in needed]
    findings = defaultdict[str, list[str]](list)
    for fault in quick_check(pairs, list_one=splits.listing, cache=cache):
        if fault.severity == "fatal":
            raise UserError(fault.sentence())
        if fault.name != "not-read":  # which listing a split has told
            log.warning(fault.sentence())
        if evaluated in fault.split:  # also in "train and val"
            findings[fault.domain].append(fault.sentence())
    return findings


def _fault(domain: Domain, split: str, name: str, severity: str, files: Sequence[str], advice: str) -> Fault:
    """Return what files show, which are named relative to the domain's root; without files it is none."""
    examples = tuple(text.removeprefix(f"{domain.root}/") for text in files)
    return Fault(domain.name, split, name, severity, len(files), examples, advice, domain.root)


def _list(domain: Domain, splits: Sequence[str], list_one: ListSplit) -> tuple[dict[str, Listing], list[Fault]]:
    """List the splits, and say which do not exist."""
    listings, unreadable = dict[str, Listing | None](), dict[str, str]()
    for split in splits or [name for name, _ in domain.splits]:
        try:
            listings[split] = list_one(domain, split)
        except UserError as error:
            if split not in dict(domain.splits):
                raise
            if not os.path.isdir(domain.root):
                advice = str(error).partition(": ")[2]  # without the domain's name
                return {}, [_fault(domain, "", "no-folder", "fatal", [domain.root or domain.root_key], advice)]
            unreadable[split] = str(error)  # an archive or a list; other splits may not need it
    # What was asked for or declared by the user must exist; of a published data set a part is fine.
    existing = {split: listing for split, listing in listings.items() if listing is not None}
    needed = bool(splits) or domain.name not in BUILTIN or not existing
    faults = [
        _fault(domain, split, "no-images", "fatal" if needed else "note", [domain.root], no_images(domain, split))
        for split in listings
        if split not in existing and (needed or split != "test")
    ]
    severity = "fatal" if needed else "fault"
    faults += [_fault(domain, split, "unreadable", severity, [domain.root], why) for split, why in unreadable.items()]
    return existing, faults


def _sample(pairs: Sequence[Pair]) -> list[Pair]:
    """Return about `SAMPLE` pairs spread evenly, the first and the last among them."""
    count = min(SAMPLE, len(pairs))
    return [pairs[index * (len(pairs) - 1) // max(1, count - 1)] for index in range(count)]


def _report(
    domain: Domain, split: str, listing: Listing, orphans: Sequence[str], findings: Sequence[Finding]
) -> SplitReport:
    pixels = [sum(column) for column in zip(*(finding.pixels for finding in findings if finding.pixels), strict=True)]
    return SplitReport(
        *(split, *listing.layout.patterns(listing.folder)),
        images=len(listing.pairs),
        labels=len(listing.labelled) + len(orphans),
        published=PUBLISHED.get(domain.name, {}).get(split, ()),
        decoded=len(findings),
        shares={name: count / sum(pixels) for name, count in zip((*CLASS_NAMES, "ignored"), pixels, strict=False)},
    )


def orphan_labels(domain: Domain, listing: Listing) -> list[str]:
    """Return the label files of a split that belong to no image in any layout."""
    layouts = [layout for layout in domain.layouts if layout.images == listing.layout.images]
    known = {layout.label_path(pair.name, listing.folder) for layout in layouts for pair in listing.pairs}
    parts = [new.replace("{split}", listing.folder) for _, new in listing.layout.label]
    return [name for name in listing.labels if name not in known and all(part in name for part in parts)]


def _check_partners(
    domain: Domain, report: SplitReport, listing: Listing, orphans: Sequence[str], fault: MakeFault
) -> Iterator[Fault]:
    """Check that there are as many images as published, that every image has a label and every label an image."""
    if report.published and report.images not in report.published:
        numbers = " or ".join(f"{number:,}" for number in report.published)
        advice = f"the published split has {numbers} images; a part of it is fine where it is meant"
        yield replace(fault("count", "note", [], advice), count=report.images)
    labelled = set(listing.labelled)
    missing = [pair for pair in listing.pairs if pair not in labelled]
    name, severity, advice = "missing-label", "fatal", "unpack the labels again, or remove the images that have none"
    if not labelled:
        advice = "no label of this split is where it is expected; unpack the labels there"
        if report.split == "test":
            name, severity = "no-labels", "note"
            advice = "test images often come without labels; they cannot be evaluated"
    known = "the published files lack as many; they are left out"
    if is_known_gap(domain, len(missing), of=len(listing.pairs)):
        severity, advice = "note", known
    files = [f"{pair.name} without {pair.label.removeprefix(f'{domain.root}/')}" for pair in missing]
    yield fault(name, severity, files, advice)
    advice = "their images are missing or named otherwise; unpack the images again, or remove the labels"
    if is_known_gap(domain, len(orphans), of=len(listing.pairs)):
        advice = known
    yield fault("label-without-image", "note" if advice == known else "fault", orphans, advice)


def _check_pairs(domain: Domain, findings: Sequence[Finding], fault: MakeFault) -> Iterator[Fault]:
    """Check each pair by itself: both files decode, have one size, and the label's values are of its encoding."""
    files = defaultdict[tuple[str, str, str], list[str]](list)  # name, severity and advice -> files
    for pair, image_size, image_error, label_size, label_error, cause, _, _, unknown, turned in findings:
        if turned:
            files["exif-orientation", "fault", TURNED].append(pair.name)
        if image_error:
            files["undecodable-image", "fatal", DAMAGED].append(f"{pair.name}: {image_error}")
        if label_error:
            name, advice = ("unexpected-values", cause) if cause else ("undecodable-label", DAMAGED)
            files[name, "fatal", advice].append(f"{pair.label}: {label_error}")
        elif image_size and label_size and image_size != label_size:
            advice = "image and label are not of one frame, or only one of them was resized"
            if image_size == label_size[::-1]:
                advice = "height and width of the label are swapped (a transposed mask); transpose it"
            sizes = "image {}x{}, label {}x{}".format(*image_size, *label_size)
            files["unequal-size", "fatal", advice].append(f"{pair.name}: {sizes}")
        if unknown > FEW_COLOURS:
            advice = f"colours between those of {domain.encoding.name}; {LOSSY}"
            told = f"{pair.label}: {'over 256' if unknown > 256 else unknown} unknown colours"
            files["unexpected-values", "fault", advice].append(told)
    unequal = sum(len(paths) for (name, *_), paths in files.items() if name == "unequal-size")
    skipped = domain.skip_unequal and unequal < MOST * sum(bool(f.image_size and f.label_size) for f in findings)
    for (name, severity, advice), paths in files.items():
        if name == "unequal-size":
            fix = "the loaders leave these pairs out" if skipped else "unpack both again, or remove them"
            severity, advice = "note" if skipped else severity, f"{advice}; {fix}"
        yield fault(name, severity, paths, advice)


def _check_values(domain: Domain, split: str, findings: Sequence[Finding], fault: MakeFault) -> Iterator[Fault]:
    """Check all labels together: those that are read but hold nothing, or cannot be meant so."""
    encoding, read = domain.encoding, [finding for finding in findings if finding.pixels]
    labelled = [finding for finding in read if any(finding.pixels[:NUM_CLASSES])]
    empty = [finding.pair.label for finding in read if not any(finding.pixels[:NUM_CLASSES])]
    name, severity = "unexpected-values", "fatal" if not labelled else "fault"
    advice = f"every pixel is ignored; check that these are labels in the encoding {encoding.name}"
    if len(empty) < MOST * len(read) or split == "test":
        name, severity, advice = "ignored-label", "note", "every pixel is ignored; they teach and score nothing"
    elif encoding.kind == "synthia":
        advice = (
            "every pixel is ignored: likely written by a program that reads SYNTHIA's 16-bit labels as zeros, as "
            "Pillow does; take the published GT/LABELS"
        )
    yield fault(name, severity, empty, advice)

    # Does some label hold a class that tells its encoding from the one it is likely confused with?
    discriminative, many = discriminative_classes(encoding) & set(domain.classes), len(labelled) >= MANY
    if not discriminative or any(finding.pixels[index] for finding in labelled for index in discriminative):
        return
    files = [finding.pair.label for finding in labelled]
    if encoding.name == "train_ids":
        yield fault("unexpected-values", "fault", files * many, f"no label holds a train id below 7; {LABEL_IDS}")
        return
    low = all(max({*finding.raw_ids} - {255}, default=99) < 19 for finding in labelled)
    void = any(255 in finding.raw_ids for finding in labelled)
    if low and (void or (many and len(discriminative) > 9)):
        advice = (
            f"no label holds an id above 18{' but 255' if void else ''}: likely train ids under the name of "
            f"{encoding.name}; take the original label files, or declare the domain with the encoding train_ids"
        )
        yield fault("unexpected-values", "fatal" if void and many else "fault", files, advice)


def _check_duplicates(domain: Domain, listings: Mapping[str, Listing], *, quick: bool) -> Iterator[Fault]:
    """Check that no image is in two splits; equal names of other bytes are noted where a data set's are unique."""
    places = [(split, pair.image) for split, listing in listings.items() for pair in listing.pairs]
    same_path, same_bytes, same_name = find_shared(places, quick=quick)
    same_path = [] if domain.name in BUILTIN else same_path  # KITTI's splits are the same files, which its scores say
    same_name = same_name if domain.name in UNIQUE_NAMES else []
    for name, groups, advice in (
        ("same-files", same_path, "the domain declares the same files for both splits"),
        ("duplicate", same_bytes, "the same image is in both splits; remove it from one of them"),
        ("same-name", same_name, "other bytes, but one name is one frame in this data set; see that none is in both"),
    ):
        by_splits = defaultdict(list)
        for group in groups:
            paths = dict.fromkeys(path.removeprefix(f"{domain.root}/") for _, path in group)
            by_splits[" and ".join(dict.fromkeys(split for split, _ in group))].append(" = ".join(paths))
        for splits, files in by_splits.items():  # evaluating on what was not trained on may share files by intent
            note = name == "same-name" or (name == "same-files" and "train" not in splits)
            yield _fault(domain, splits, name, "note" if note else "fault", files, advice)
