"""Score tables: on the screen, and as JSON, CSV and Markdown files; every number carries its protocol."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from evaluation.evaluator import Evaluation
from evaluation.metrics import Scores, merge_classes, nan_mean, score
from utils.files import write_text
from utils.tables import format_table


@dataclass(frozen=True)
class Protocol:
    """How a number was taken."""

    split: str
    list_hash: str
    images: int
    transform: str  # resize and crop
    scales: str
    classes: str


@dataclass(frozen=True)
class DomainScore:
    """The scores of one domain; `subset` names further countings of the same pixels (SYNTHIA's 16 classes)."""

    domain: str
    subset: str  # "" for the domain's main counting
    is_source: bool  # trained on: no unseen domain
    scores: Scores
    loss: float
    protocol: Protocol
    confusion: list[list[int]]

    @property
    def title(self) -> str:
        """Column heading: the domain, with the subset where it is not the main counting, and whether it is a source."""
        notes = [note for note in (self.subset, "source" if self.is_source else "") if note]
        return f"{self.domain} ({', '.join(notes)})" if notes else self.domain


@dataclass(frozen=True)
class Report:
    """The scores of one weight file on several domains."""

    weights: dict[str, Any]  # file, which checkpoint, step, epoch, seed, network
    rows: list[DomainScore]

    @property
    def targets(self) -> list[DomainScore]:
        """The main countings of the domains that were not trained on."""
        return [row for row in self.rows if not row.subset and not row.is_source]

    @property
    def mean_over_targets(self) -> float:
        """Mean of the mean IoU over the targets; nan where there is none."""
        return nan_mean([row.scores.mean_iou for row in self.targets])

    def summary_table(self) -> list[list[str]]:
        """Return heading and one line per domain, then the mean."""
        heading = ["domain", "mean IoU %", "accuracy %", "class accuracy %", "loss", "classes", "images", "list"]
        lines = [
            [
                row.title,
                percent(row.scores.mean_iou),
                percent(row.scores.accuracy),
                percent(row.scores.mean_class_accuracy),
                f"{row.loss:.4f}",
                row.protocol.classes,
                str(row.protocol.images),
                f"{row.protocol.split} {row.protocol.list_hash}",
            ]
            for row in self.rows
        ]
        mean = ["mean over targets", percent(self.mean_over_targets)]
        mean += [percent(nan_mean([row.scores.accuracy for row in self.targets]))]
        mean += [percent(nan_mean([row.scores.mean_class_accuracy for row in self.targets])), "", "", "", ""]
        return [heading, *lines, mean]

    def class_table(self) -> list[list[str]]:
        """Return heading and one line per class with its IoU in percent for every domain; blank = not counted."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.scores.iou))
        heading = ["class", *(row.title for row in self.rows)]
        lines = [
            [name, *(percent(row.scores.iou[name]) if name in row.scores.iou else "" for row in self.rows)]
            for name in names
        ]
        return [heading, *lines, ["mean", *(percent(row.scores.mean_iou) for row in self.rows)]]

    def protocol_lines(self) -> list[str]:
        """Return one sentence per domain on how its number was taken."""
        return [
            f"{row.title}: {row.protocol.images} images of {row.protocol.split} (list {row.protocol.list_hash}), "
            f"{row.protocol.transform}, scales {row.protocol.scales}, {row.protocol.classes} classes"
            for row in self.rows
        ]

    def weights_line(self) -> str:
        """Return one sentence on the weights."""
        said = {key: value for key, value in self.weights.items() if key != "method"}  # the network's text names it
        return ", ".join(f"{key} {value}" for key, value in said.items() if value not in ("", None))

    def to_text(self) -> str:
        """Return both tables for a terminal."""
        return "\n".join(
            [
                format_table(self.class_table()),
                "",
                format_table(self.summary_table()),
                "",
                f"weights: {self.weights_line()}",
                *(f"protocol: {line}" for line in self.protocol_lines()),
            ]
        )

    def to_markdown(self) -> str:
        """Return both tables in Markdown."""
        lines = [
            format_table(self.summary_table(), "markdown"),
            "",
            format_table(self.class_table(), "markdown"),
            "",
            f"Weights: {self.weights_line()}.",
            "",
        ]
        return "\n".join([*lines, *(f"- {line}" for line in self.protocol_lines()), ""])

    def to_csv(self) -> str:
        """Return one line per domain, counting and metric; values are fractions."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        made_by = {key: self.weights.get(key, "") for key in ("checkpoint", "step", "seed")}
        protocol = ["split", "list", "images", "transform", "scales", "classes", *made_by]
        writer.writerow(["domain", "subset", "source", "metric", "value", *protocol])
        for row in self.rows:
            metrics = {"mean_iou": row.scores.mean_iou, "accuracy": row.scores.accuracy, "loss": row.loss}
            metrics["mean_class_accuracy"] = row.scores.mean_class_accuracy
            metrics["frequency_weighted_accuracy"] = row.scores.frequency_weighted_accuracy
            metrics.update({f"iou/{name}": value for name, value in row.scores.iou.items()})
            for metric, value in metrics.items():
                text = "" if math.isnan(value) else repr(value)
                row_of = [row.domain, row.subset, "yes" if row.is_source else "no", metric, text]
                writer.writerow([*row_of, *astuple(row.protocol), *made_by.values()])
        mean = "" if math.isnan(self.mean_over_targets) else repr(self.mean_over_targets)
        writer.writerow(["mean over targets", "", "no", "mean_iou", mean, *[""] * 6, *made_by.values()])
        return buffer.getvalue()

    def to_json(self) -> str:
        """Return everything, confusion matrices included; a score without pixels is null."""
        content = {
            "weights": self.weights,
            "mean_over_targets": self.mean_over_targets,
            "domains": [asdict(row) for row in self.rows],
        }
        return json.dumps(_finite(content), indent=1) + "\n"

    def write(self, folder: Path) -> None:
        """Write scores.json, scores.csv and scores.md into a folder."""
        for name, text in (
            ("scores.json", self.to_json()),
            ("scores.csv", self.to_csv()),
            ("scores.md", self.to_markdown()),
        ):
            write_text(folder / name, text)


def domain_scores(
    found: Evaluation,
    *,
    domain: Any,
    is_source: bool,
    split: str,
    list_hash: str,
    transform: str,
    class_names: Sequence[str],
) -> list[DomainScore]:
    """Turn the counts of a domain into its scores: the main counting first, then those of further class subsets.

    Args:
        domain: anything with `name`, `splits`, `merge`, `classes` and `subsets`.
        list_hash: names the list of images.
        transform: words for resize and crop.
    """
    confusion = merge_classes(found.confusion, domain.merge)
    folders = dict(domain.splits)
    if split != "train" and folders.get(split) == folders.get("train", ()):
        split += " (the training frames)"
    return [
        DomainScore(
            domain=domain.name,
            subset=subset and f"{subset} classes",
            is_source=is_source,
            scores=score(confusion, class_names, classes=classes),
            loss=found.loss,
            protocol=Protocol(
                split=split,
                list_hash=list_hash,
                images=found.num_images,
                transform=transform,
                scales="1",
                classes=f"{len(classes)}{' merged' if domain.merge else ''}",
            ),
            confusion=confusion.tolist(),
        )
        for subset, classes in [("", domain.classes), *domain.subsets]
    ]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(value: float) -> str:
    """Format a fraction as a percentage; `-` where there is none."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"
