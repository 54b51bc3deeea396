"""`python -m datasets.check [DOMAIN ...]`: the doctor of data sets, finds what is wrong before a run does."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from datasets.diagnosis import Diagnosis, Fault, label_pattern, stray_labels
from datasets.domains import BUILTIN, Domain, Listing, Pair, find_pairs, list_split, load_domains
from datasets.duplicates import find_duplicates
from datasets.labels import CLASS_NAMES
from datasets.provided import PUBLISHED
from datasets.scan import Finding, scan
from datasets.tools import chosen_domains, data_config, data_parser
from utils.errors import UserError, run_entry_point

SAMPLE = 32  # pairs of a split that the quick mode decodes


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


def check_domain(domain: Domain, *, quick: bool, workers: int, splits: Sequence[str] = ()) -> DomainReport:
    """Look a domain over: list and count everything, decode all of it (quick: a sample), and name what is wrong.

    Args:
        splits: those that must be there; without any, those that are there, and one of them must be.
        workers: processes that decode (quick: threads).
    """
    listings, faults = _list(domain, splits)
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


def quick_check(domains_with_splits: Iterable[tuple[Domain, str]]) -> list[Fault]:
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
        check_domain(domain, quick=True, workers=_cores(), splits=tuple(wanted[name]))
        for name, domain in domains.items()
    ]
    return [fault for report in reports for fault in report.faults if fault.severity != "note"]


def _list(domain: Domain, splits: Sequence[str]) -> tuple[dict[str, Listing], list[Fault]]:
    """List the splits, and say which are not there."""
    listings, diagnosis, missing = {}, Diagnosis(domain, ""), []
    for split in splits or [name for name, _ in domain.splits]:
        try:
            listing = list_split(domain, split)
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
            try:
                find_pairs(domain, split)
            except UserError as error:
                diagnosis.add("no-images", "fatal" if needed else "note", [domain.root], _advice(error, domain))
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -------------------------------------------------------------------------------------------------------- the program


def _table(reports: Sequence[DomainReport]) -> list[list[str]]:
    lines = [["domain", "split", "images found as", "images", "labels", "published", "decoded", "faults"]]
    for report in reports:
        rows = [
            [
                *(row.split, row.image_pattern, f"{row.images:,}", f"{row.labels:,}"),
                *(" or ".join(f"{count:,}" for count in row.published) or "-", f"{row.decoded:,}"),
            ]
            for row in report.splits
        ]
        for fault in report.faults:  # of a split that is not there, or of the whole domain
            if fault.split.split(" and ")[0] not in [row[0] for row in rows]:
                rows.append([fault.split, "-", "0", "0", "-", "0"])
        for row in rows:
            mine = [fault for fault in report.faults if row[0] in fault.split.split(" and ")]
            names = [f"({fault.name})" if fault.severity == "note" else fault.name for fault in mine]
            lines.append([report.domain, *row, ", ".join(dict.fromkeys(names)) or "none"])
    return lines


def _paragraphs(faults: Sequence[Fault]) -> list[str]:
    """Return a paragraph for every fault, and one for all counts, which the table shows already."""
    paragraphs = []
    for fault in faults:
        kind = "note" if fault.severity == "note" else "fault"
        more = ["..."] if len(fault.examples) < fault.count else []
        files = "".join(f"\n    {text}" for text in [*fault.examples, *more])
        if fault.name != "count":
            paragraphs.append(f"{kind}: {fault.where}: {fault.name}, {fault.count:,}{files}\n  {fault.advice}")
    counts = [f"{fault.where} {fault.count:,}" for fault in faults if fault.name == "count"]
    if counts:
        advice = "not the published number of images, which is fine where a part is meant"
        paragraphs.append(f"note: count: {', '.join(counts)}\n  {advice}")
    return paragraphs


def _to_text(reports: Sequence[DomainReport], absent: Sequence[str]) -> str:
    from utils.report import align  # imports torch, which a quick --json need not wait for

    faults = [fault for report in reports for fault in report.faults]
    notes = sum(fault.severity == "note" for fault in faults)
    end = f"faults: {len(faults) - notes}, notes: {notes}"
    if any(report.quick for report in reports):
        end += f"; up to {SAMPLE} pairs of each split were decoded, without --quick all of them are"
    if absent:
        end += f"\nnot looked at, their folders do not exist: {', '.join(absent)}"
    return "\n\n".join([align(_table(reports)), *_paragraphs(faults), end]) + "\n"


def _to_json(reports: Sequence[DomainReport], absent: Sequence[str]) -> str:
    content: dict[str, Any] = {
        "healthy": all(report.healthy for report in reports),
        "domains": [asdict(report) for report in reports],
        "absent": list(absent),
    }
    return json.dumps(content, indent=1) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program; exit code 1 where anything is wrong, 2 for a mistake in the command."""
    parser = data_parser(
        "check",
        "Look data sets over: layout, counts, missing partners, damaged files, sizes, label values, images in two "
        "splits. Exit code 0: fine (notes do not count), 1: something is wrong, 2: a mistake in the command.",
        domains="data sets to look over; without any, all whose folders exist",
    )
    parser.add_argument("--quick", action="store_true", help=f"decode only {SAMPLE} pairs of each split")
    parser.add_argument("--workers", type=int, default=-1, help="processes that decode, -1 for one per core")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object and nothing else")
    given = parser.parse_args(argv)
    if given.workers != -1 and given.workers < 1:
        raise UserError(f"--workers {given.workers}: must be a number of processes from 1, or -1 for one per core")
    cfg, absent = data_config(given), []
    domains = chosen_domains(cfg, given.names) if given.names else list(load_domains(cfg).values())
    if not given.names:
        absent = [f"{domain.name} ({domain.root or domain.root_key})" for domain in domains if not _exists(domain)]
        domains = [domain for domain in domains if _exists(domain)]
        if not domains:
            raise UserError(
                "no data set is there: set its folder in config.py or with --opts DATASET.GTAV_DIR=FOLDER; looked for "
                + ", ".join(absent)
            )
    workers = _cores() if given.workers == -1 else given.workers
    reports = [check_domain(domain, quick=given.quick, workers=workers) for domain in domains]
    sys.stdout.write((_to_json if given.json else _to_text)(reports, absent))
    if not all(report.healthy for report in reports):
        sys.exit(1)


def _exists(domain: Domain) -> bool:
    return bool(domain.root) and os.path.isdir(domain.root)


if __name__ == "__main__":
    run_entry_point(main)
