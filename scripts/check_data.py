"""`python -m scripts.check_data [DOMAIN ...]`: the dataset checker, says what is wrong before a run meets it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from datasets.checks import check_domain
from datasets.domains import load_domains
from datasets.scan import SAMPLE, DomainReport
from scripts import chosen_domains, data_config, data_parser
from utils import format_table
from utils.errors import UserError, run_entry_point
from utils.parallel import cores

EXAMPLES = 3  # files that a fault names without --verbose
HEADING = ["domain", "split", "images found as", "images", "labels", "published", "decoded", "faults"]


def _rows(report: DomainReport) -> list[list[str]]:
    """Return a line of the table for each split, those that do not exist and the whole domain where it has faults."""
    names: dict[str, dict[str, None]] = {row.split: {} for row in report.splits}
    for fault in report.faults:
        for split in fault.split.split(" and "):
            names.setdefault(split, {})[f"({fault.name})" if fault.severity == "note" else fault.name] = None
    cells = {split: ["-", "0", "0", "-", "0"] for split in names}
    for row in report.splits:
        published = " or ".join(f"{count:,}" for count in row.published) or "-"
        cells[row.split] = [row.image_pattern, f"{row.images:,}", f"{row.labels:,}", published, f"{row.decoded:,}"]
    return [[report.domain, split, *cells[split], ", ".join(names[split]) or "none"] for split in names]


def _to_text(reports: Sequence[DomainReport], absent: Sequence[str], *, examples: int | None) -> str:
    """Return the table, a paragraph for every fault, one for all counts, which the table shows already, and a sum."""
    faults = [fault for report in reports for fault in report.faults]
    paragraphs = [format_table([HEADING, *(row for report in reports for row in _rows(report))])]
    for fault in (fault for fault in faults if fault.name != "count"):
        kind = "note" if fault.severity == "note" else "fault"
        files = [*fault.examples[:examples], *(["..."] if len(fault.examples[:examples]) < fault.count else [])]
        lines = [f"{kind}: {fault.where}: {fault.name}, {fault.count:,}", *(f"    {text}" for text in files)]
        paragraphs.append("\n".join([*lines, f"  {fault.advice}"]))
    if counts := [f"{fault.where} {fault.count:,}" for fault in faults if fault.name == "count"]:
        advice = "not the published number of images, which is fine where a part is meant"
        paragraphs.append(f"note: count: {', '.join(counts)}\n  {advice}")
    notes = sum(fault.severity == "note" for fault in faults)
    end = f"faults: {len(faults) - notes}, notes: {notes}"
    if any(report.quick for report in reports):
        end += f"; up to {SAMPLE} pairs of each split were decoded, without --quick all of them are"
    if absent:
        end += f"\nnot checked, their folders do not exist: {', '.join(absent)}"
    return "\n\n".join([*paragraphs, end])


def main(argv: Sequence[str] | None = None) -> None:
    """Exit code 1 where anything is wrong, 2 for an invalid command line."""
    parser = data_parser(
        "check_data",
        "Check data sets, by default all whose folders exist: layout, counts, missing partners, damaged files, sizes, "
        "label values, images in two splits.",
        details="Exit code 0: fine (notes do not count), 1: something is wrong, 2: an invalid command line.",
    )
    parser.add_argument("--quick", action="store_true", help=f"decode only {SAMPLE} pairs of each split")
    parser.add_argument("--workers", type=int, default=-1, help="processes that decode, -1 for one per core")
    parser.add_argument("--json", action="store_true", help="print the result, all files by name, as one JSON object")
    parser.add_argument("--verbose", action="store_true", help=f"name all files of a fault, not the first {EXAMPLES}")
    args = parser.parse_args(argv)
    if args.workers != -1 and args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be a number of processes from 1, or -1 for one per core")
    cfg, absent = data_config(args), []
    domains = list({row.root_key: row for row in reversed(load_domains(cfg).values())}.values())[::-1]  # no parts
    domains = chosen_domains(cfg, args.names) if args.names else domains
    if not args.names:
        absent = [f"{row.name} ({row.root or row.root_key})" for row in domains if not os.path.isdir(row.root)]
        domains = [domain for domain in domains if os.path.isdir(domain.root)]
    if not domains:
        raise UserError(
            "no data set is there: set its folder in config.py or with --opts DATASET.GTAV_DIR=FOLDER; looked for "
            + ", ".join(absent)
        )
    workers = cores() if args.workers == -1 else args.workers
    reports = [check_domain(domain, quick=args.quick, workers=workers) for domain in domains]
    healthy = all(report.healthy for report in reports)
    content = {"healthy": healthy, "domains": [asdict(report) for report in reports], "absent": absent}
    text = json.dumps(content, indent=1) if args.json else ""
    text = text or _to_text(reports, absent, examples=None if args.verbose else EXAMPLES)
    sys.stdout.write(f"{text}\n")
    if not healthy:
        sys.exit(1)


if __name__ == "__main__":
    run_entry_point(main)
