"""Score tables: on the screen, and as JSON, CSV and Markdown files; every number carries its protocol."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.domains import Domain, shared_subsets
from datasets.labels import CLASS_NAMES
from datasets.splits import Split
from evaluation.metrics import Scores, merge_classes, nan_mean, score
from evaluation.more_metrics import TITLES, MoreCounts
from utils import format_csv, format_table, percent
from utils.files import write, write_text
from utils.pictures import Array, Picture, save_png

PER_IMAGE_FILE = "per_image.npz"  # beside scores.json: DOMAIN/names and DOMAIN/confusion
PAGE_FILE = "report.html"
Frame = tuple[Array, Array, Array]  # image (h,w,3), truth (h,w), prediction (h,w), uint8


class ImageCounts(NamedTuple):
    """Names of a split's images relative to the domain's root, and their confusion matrices (N, C, C) int64."""

    names: list[str]
    confusion: Array


@dataclass(frozen=True)
class Evaluation:
    """What the evaluation of a split gave.

    confusion: (C, C) int64 over all processes, rows = truth. loss: mean cross entropy per labelled pixel.
    frames: a few images with truth and prediction, on rank 0. more: counts of --more_metrics where it is given.
    images: (N, C, C) int64, of each image of the split in its order, where the evaluator counts them (`per_image`).
    """

    confusion: Array
    loss: float
    frames: list[Frame] = field(default_factory=list)
    more: MoreCounts | None = None
    images: Array | None = None


@dataclass(frozen=True)
class Protocol:
    """How a number was taken."""

    split: str
    list_hash: str
    images: int
    transform: str  # resize, crop, windows, precision
    scales: str  # and flips, and what is averaged over them
    classes: str

    def __str__(self) -> str:
        return (
            f"{self.images} images of {self.split} (list {self.list_hash}), {self.transform}, scales {self.scales}, "
            f"{self.classes} classes"
        )


@dataclass(frozen=True)
class DomainScore:
    """The scores of one domain; `subset` names further scores over other classes (SYNTHIA's 16)."""

    domain: str
    subset: str  # "" for the domain's main score
    is_source: bool  # trained on: no unseen domain
    scores: Scores
    loss: float
    protocol: Protocol
    confusion: list[list[int]]
    corruption: str = ""  # "NAME:SEVERITY" where the images were corrupted
    more: dict[str, float] = field(default_factory=dict)  # of --more_metrics
    findings: list[str] = field(default_factory=list)  # what is wrong with the data, one sentence each

    def scalars(self) -> dict[str, float]:
        """Return the numbers that are followed over a training, by tag."""
        values = {"mean_iu": self.scores.mean_iou, "acc": self.scores.accuracy, "val_loss": self.loss}
        values |= {"acc_cls": self.scores.mean_class_accuracy, **self.more}
        return {f"{self.domain}/{key}": value for key, value in values.items()}

    @property
    def title(self) -> str:
        """Heading: the domain and the corruption, the subset where it is not the main score, and if it is a source."""
        notes = [note for note in (self.subset, "source" if self.is_source else "") if note]
        name = f"{self.domain} {self.corruption}".rstrip()
        return f"{name} ({', '.join(notes)})" if notes else name


@dataclass(frozen=True)
class Report:
    """The scores of one weight file on several domains."""

    weights: dict[str, Any]  # file, which checkpoint, step, epoch, seed, network
    rows: list[DomainScore]
    per_image: dict[str, ImageCounts] = field(default_factory=dict)  # of --per_image, by domain
    page: str = ""  # as HTML (evaluation.page)
    pictures: Sequence[Picture] = ()  # written beside the tables

    @property
    def targets(self) -> list[DomainScore]:
        """The main scores of the domains that were not trained on, of their clean images."""
        return [row for row in self.clean if not row.subset and not row.is_source]

    @property
    def clean(self) -> list[DomainScore]:
        """The scores of images that were not corrupted."""
        return [row for row in self.rows if not row.corruption]

    @property
    def mean_over_targets(self) -> float:
        return nan_mean([row.scores.mean_iou for row in self.targets])

    def summary_table(self) -> list[list[str]]:
        """Return heading and one line per domain, then the mean."""
        table = [["domain", "mean IoU %", "accuracy %", "class accuracy %", "loss", "classes", "images", "list"]]
        for row in self.rows:
            scores, how = row.scores, row.protocol
            values = map(percent, (scores.mean_iou, scores.accuracy, scores.mean_class_accuracy))
            loss = "-" if math.isnan(row.loss) else f"{row.loss:.4f}"
            fewer = f"{scores.classes_in_mean} of " if scores.classes_in_mean < len(scores.iou) else ""
            counts = [loss, f"{fewer}{how.classes}", str(how.images), f"{how.split} {how.list_hash}"]
            table.append([row.title, *values, *counts])
        names = ("mean_iou", "accuracy", "mean_class_accuracy")
        means = [nan_mean([getattr(row.scores, name) for row in self.targets]) for name in names]
        return [*table, ["mean over targets", *map(percent, means), "", "", "", ""]]

    def class_table(self) -> list[list[str]]:
        """Return heading and one line per class with its IoU in percent for every domain; blank = not counted."""
        names = dict.fromkeys(name for row in self.clean for name in row.scores.iou)
        ious = {name: [row.scores.iou.get(name) for row in self.clean] for name in names}
        ious["mean"] = [row.scores.mean_iou for row in self.clean]
        cells = {name: ["" if value is None else percent(value) for value in values] for name, values in ious.items()}
        return [["class", *(row.title for row in self.clean)], *([name, *line] for name, line in cells.items())]

    def more_tables(self) -> list[list[list[str]]]:
        """Return the tables of --corrupt and --more_metrics, of those that were evaluated."""
        tables = [corruption_table(found)] if (found := robustness(self.rows)) else []
        lines = [[row.title, *(percent(row.more[name]) for name in TITLES)] for row in self.rows if row.more]
        return [*tables, [["domain, in %", *TITLES.values()], *lines]] if lines else tables

    def protocol_lines(self) -> list[str]:
        """Return one sentence per domain on how its number was taken, and one on all corrupted images."""
        lines = [f"{row.title}: {row.protocol}" for row in self.clean]
        corrupted = [row.protocol.transform for row in self.rows if row.corruption]
        return [*lines, f"with a corruption: likewise, for instance {corrupted[0]}"] if corrupted else lines

    def findings(self) -> list[str]:
        """Return what is wrong with the data of any domain, one sentence each."""
        return list(dict.fromkeys(sentence for row in self.rows for sentence in row.findings))

    def weights_line(self) -> str:
        items = {key: value for key, value in self.weights.items() if key != "method"}  # the network's text names it
        return ", ".join(f"{key} {value}" for key, value in items.items() if value not in ("", None))

    def to_text(self) -> str:
        lines = [f"weights: {self.weights_line()}", *(f"protocol: {line}" for line in self.protocol_lines())]
        lines += [f"data: {sentence}" for sentence in self.findings()]
        tables = [self.class_table(), self.summary_table(), *self.more_tables()]
        return "\n\n".join([*map(format_table, tables), "\n".join(lines)])

    def to_markdown(self) -> str:
        tables = [self.summary_table(), self.class_table(), *self.more_tables()]
        lines = "".join(f"- {escape(line, quote=False)}\n" for line in [*self.protocol_lines(), *self.findings()])
        texts = [format_table(table, "markdown") for table in tables]
        return "\n\n".join([*texts, f"Weights: {escape(self.weights_line(), quote=False)}.", lines])

    def to_csv(self) -> str:
        """Return one line per domain, class subset and metric; values are fractions."""
        weights = {key: self.weights.get(key, "") for key in ("checkpoint", "step", "seed")}
        protocol = ["split", "list", "images", "transform", "scales", "classes", *weights]
        table: list[list[Any]] = [["domain", "corruption", "subset", "source", "metric", "value", *protocol]]
        for row in self.rows:
            metrics = {**asdict(row.scores), "loss": row.loss, **row.more}
            metrics |= {f"iou/{name}": value for name, value in metrics.pop("iou").items()}
            domain = [row.domain, row.corruption, row.subset, "yes" if row.is_source else "no"]
            table += [[*domain, *metric, *astuple(row.protocol), *weights.values()] for metric in metrics.items()]
        mean = self.mean_over_targets
        table.append(["mean over targets", "", "", "no", "mean_iou", mean, *[""] * 6, *weights.values()])
        return format_csv([None if cell != cell else cell for cell in row] for row in table)  # empty where it is nan

    def to_json(self) -> str:
        """Return everything, confusion matrices included; a score without pixels is null."""
        content = {
            "weights": self.weights,
            "mean_over_targets": self.mean_over_targets,
            "robustness": {title: row._asdict() for title, row in robustness(self.rows).items()},
            "domains": [asdict(row) for row in self.rows],
        }
        finite = json.loads(json.dumps(content), parse_constant=lambda _: None)  # JSON has neither nan nor infinity
        return json.dumps(finite, indent=1) + "\n"

    def write(self, folder: Path) -> None:
        """Write all files of the report; tables, page and counts that it has not are removed, pictures stay."""
        texts = {"scores.json": self.to_json(), "scores.csv": self.to_csv(), "scores.md": self.to_markdown()}
        for name, text in {**texts, PAGE_FILE: self.page}.items():
            if text:
                write_text(folder / name, text)
            else:
                (folder / name).unlink(missing_ok=True)
        if self.per_image:
            write(folder / PER_IMAGE_FILE, self._save_per_image)
        else:
            (folder / PER_IMAGE_FILE).unlink(missing_ok=True)
        for _, file, image in self.pictures:
            save_png(image, folder / file)

    def _save_per_image(self, path: Path) -> None:
        arrays = {
            f"{name}/{key}": value for name, row in self.per_image.items() for key, value in row._asdict().items()
        }
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)


def domain_scores(
    evaluation: Evaluation,
    split: Split,
    *,
    is_source: bool,
    memorised: bool = False,
    transform: str,
    scales: str = "1",
    corruption: str = "",
    findings: Sequence[str] = (),
    sources: Sequence[Domain] = (),
    class_names: Sequence[str] = CLASS_NAMES,
) -> list[DomainScore]:
    """Turn the counts of a domain into its scores: the main score first, then those of further class subsets.

    `transform` and `scales` say in words how images were resized, cropped and windowed, and which views were averaged,
    `findings` what is wrong with the data, `sources` what the network was trained on, if known, `memorised`: val too.
    """
    domain, name, folders = split.domain, split.name, dict(split.domain.splits)
    confusion = merge_classes(evaluation.confusion, domain.merge)
    if (memorised and name == "val") or (name != "train" and folders.get(name) == folders.get("train", ())):
        name += " (the training frames)"
    taken: dict[str, Any] = {"split": name, "list_hash": split.list_hash, "images": len(split.pairs)}
    taken |= {"transform": transform, "scales": scales}
    return [
        DomainScore(
            domain=domain.name,
            subset=subset and f"{subset} classes",
            is_source=is_source,
            scores=score(confusion, class_names, classes=classes),
            loss=evaluation.loss,
            protocol=Protocol(**taken, classes=f"{len(classes)}{' merged' if domain.merge else ''}"),
            confusion=confusion.tolist(),
            corruption=corruption,
            more=evaluation.more.scores(classes) if evaluation.more else {},
            findings=list(findings),
        )
        for subset, classes in [("", domain.classes), *domain.subsets, *shared_subsets(domain, sources)]
    ]


class Robustness(NamedTuple):
    """Mean IoU of one domain on clean and on corrupted images, as fractions.

    Attributes:
        corruptions: by corruption, mean over its severities.
        mean: over the corruptions, each with the same weight.
        degradation: share of the clean score that is lost, 1 - mean / clean. Source: 1 - rPC of Michaelis et al., 2019.
    """

    clean: float
    corruptions: dict[str, float]
    mean: float
    degradation: float


def robustness(rows: Iterable[DomainScore]) -> dict[str, Robustness]:
    """Return the robustness of the domains and subsets with corrupted images, by the title of their clean scores."""
    scores = defaultdict[str, dict[str, list[float]]](lambda: defaultdict(list))  # title -> corruption, "" for none
    for row in rows:
        title, corruption = replace(row, corruption="").title, row.corruption.partition(":")[0]
        scores[title][corruption].append(row.scores.mean_iou)
    found = dict[str, Robustness]()
    for title, by_name in scores.items():
        means = {name: nan_mean(values) for name, values in by_name.items()}
        clean, mean = means.pop(""), nan_mean(list(means.values()))
        if means:
            found[title] = Robustness(clean, means, mean, 1 - mean / clean if clean > 0 else float("nan"))
    return found


def corruption_table(domains: Mapping[str, Robustness]) -> list[list[str]]:
    """Return heading and one line per corruption with its mean IoU in every domain, then means and degradation."""
    names = dict.fromkeys(name for row in domains.values() for name in row.corruptions)
    lines = {name: [row.corruptions.get(name, float("nan")) for row in domains.values()] for name in names}
    lines["mean over corruptions"] = [row.mean for row in domains.values()]
    lines["clean"] = [row.clean for row in domains.values()]
    lines["degradation"] = [row.degradation for row in domains.values()]
    return [["mean IoU, in %", *domains], *([name, *map(percent, values)] for name, values in lines.items())]


def selection_scores(
    rows: Iterable[DomainScore], *, sources: Sequence[str], targets: Sequence[str]
) -> dict[str, float]:
    """Return the mean IoU by which the best checkpoints are chosen: of each target, and the sources' mean."""
    mean_iou = {row.domain: row.scores.mean_iou for row in rows if not row.subset}
    source = nan_mean([mean_iou[name] for name in sources if name in mean_iou])
    return {**{name: mean_iou[name] for name in targets}, "source": source}
