"""`python -m scripts.check_data [DOMAIN ...]`: the dataset checker, finds what is wrong before a run does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from datasets.checks import SAMPLE, DomainReport, check_domain, cores
from datasets.diagnosis import Fault
from datasets.domains import Domain, load_domains
from scripts.data_options import chosen_domains, data_config, data_parser
from utils.errors import UserError, run_entry_point


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
    from evaluation.report import align  # imports torch, which a quick --json need not wait for

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
        "check_data",
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
    workers = cores() if given.workers == -1 else given.workers
    reports = [check_domain(domain, quick=given.quick, workers=workers) for domain in domains]
    sys.stdout.write((_to_json if given.json else _to_text)(reports, absent))
    if not all(report.healthy for report in reports):
        sys.exit(1)


def _exists(domain: Domain) -> bool:
    return bool(domain.root) and os.path.isdir(domain.root)


if __name__ == "__main__":
    run_entry_point(main)
