"""The report of an evaluation as one HTML page that needs no other file and no network.

The template is report.html.j2 beside this file; what it shares with other pages is in page.html.j2.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from datasets.labels import CLASS_NAMES, IGNORE, PALETTE
from evaluation.examples import MAX_DOMAINS, Example
from evaluation.report import DomainScore, Report, percent
from loss.whitening import Whitening
from utils import distributed
from utils.logs import read_history
from utils.pictures import Array, Picture, error_map, new_figure, stretched

WIDTH, QUALITY = 512, 80  # of pictures, in pixels; of JPEG
BLUE = (60, 120, 216, 255)  # to be seen on white and on black
LARGEST_MASK = 192  # cells a side
MASK_NOTE = "pairs of channels whose covariance the whitening loss pushes towards 0"


class About(NamedTuple):
    """What was run: the folder of the run that the weights lie in, and the settings of it that are no defaults.

    command, versions: of the evaluation, where it is not the training's own.
    """

    folder: Path
    settings: Mapping[str, Any]
    command: str = ""
    versions: Mapping[str, str] = MappingProxyType({})

    def commands(self) -> dict[str, str]:
        """Return the commands of the training, of each part of a resumed one, and of the evaluation."""
        files = sorted(self.folder.glob("command*.txt"), key=lambda file: (len(file.name), file.name))  # by step
        lines = [file.read_text(encoding="utf-8", errors="replace").strip() for file in files]
        found = {"training": "\n".join(lines), "evaluation": self.command}
        return {name: command for name, command in found.items() if command}

    def packages(self) -> dict[str, Mapping[str, str]]:
        """Return the versions with which the training started, and those of the evaluation."""
        found, file = {"training": {}, "evaluation": self.versions}, self.folder / "versions.json"
        with suppress(OSError, ValueError):  # a folder may hold one of another program
            content = json.loads(file.read_text(encoding="utf-8"))
            found["training"] = content if isinstance(content, dict) else {}
        return {name: versions for name, versions in found.items() if versions}


class Mask(NamedTuple):
    """The whitening mask (C,C) bool of a style site."""

    site: str
    mask: Array

    @property
    def text(self) -> str:
        pairs = len(self.mask) * (len(self.mask) - 1) // 2
        return f"{int(self.mask.sum()):,} of {pairs:,}, {100 * self.mask.sum() / max(pairs, 1):.1f} %"

    @property
    def picture(self) -> str:
        side = min(len(self.mask), LARGEST_MASK)
        cells = torch.from_numpy(self.mask)[None].float()
        shown = torch.nn.functional.adaptive_max_pool2d(cells, side)[0] > 0  # single entries stay visible
        picture = np.zeros((side, side, 4), np.uint8)  # transparent
        picture[shown.numpy()] = BLUE
        return data_uri(Image.fromarray(picture))


def make_page(
    report: Report,
    about: About,
    *,
    examples: Sequence[Sequence[Example]],
    masks: Sequence[Mask] = (),
    plots: Sequence[Picture] = (),
) -> str:
    """Return the page of a report on the first process, "" on the others.

    Args:
        examples: frames of the domains in the order of the report's main scores, of MAX_DOMAINS at most.
        plots: of the evaluation; the reliability diagrams among them are shown.
    """
    if not distributed.is_main():
        return ""
    main = [row for row in report.clean if not row.subset]
    shown = main[:MAX_DOMAINS]
    diagrams = [plot.image for plot in plots if plot.tag.endswith("/reliability")]
    frequencies = frequency_table(main)
    return template("report.html.j2").render(
        report=report,
        about=about,
        mean=percent(report.mean_over_targets),
        numbers=[(row.title, percent(row.scores.mean_iou)) for row in shown],
        frequencies=frequencies,
        largest=max((share for line in frequencies[1:] for cell in line[1:] if (share := _share(cell))), default=100),
        matrices=[(row.title, confusion_cells(row)) for row in shown],
        frames=[
            (row.title, [example_cells(item) for item in found]) for row, found in zip(shown, examples, strict=False)
        ],
        left_out=len(main) - len(shown),
        legend=[line[0] for line in frequencies[1:]],
        curves=history_curves(read_history(about.folder / "history.jsonl")),
        masks=masks,
        mask_note=MASK_NOTE,
        reliability=[data_uri(Image.fromarray(diagram).quantize(64)) for diagram in diagrams],
    )


def whitening_masks(whitening: Whitening | None, sites: Sequence[str]) -> list[Mask]:
    """Return what a method whitens at its style sites; nothing where it has no masks, or none yet."""
    if whitening is None or not whitening.has_masks:
        return []
    return [Mask(site, mask.cpu().numpy()) for site, mask in zip(sites, whitening.masks, strict=True)]


@cache
def template(name: str) -> Any:
    """Return a template of this folder; every value that it is given is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = _share
    environment.globals["colours"] = {
        name: f"#{bytes(colour).hex()}" for name, colour in zip(CLASS_NAMES, PALETTE, strict=True)
    }
    return environment.get_template(name)


def _share(cell: str) -> float | None:
    """Return the number of a cell in percent, None where it holds something else."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if 0 <= value <= 100 else None


def frequency_table(rows: Sequence[DomainScore]) -> list[list[str]]:
    """Return heading and one line per scored class: its share of each domain's labelled pixels in percent."""
    shares = []
    for row in rows:
        counts = dict(zip(CLASS_NAMES, np.array(row.confusion).sum(axis=1), strict=True))
        total = max(sum(counts[name] for name in row.scores.iou), 1)
        shares.append({name: f"{100 * counts[name] / total:.2f}" for name in row.scores.iou})
    names = [name for name in CLASS_NAMES if any(name in share for share in shares)]
    heading = ["class", *(row.title for row in rows)]
    return [heading, *([name, *(share.get(name, "") for share in shares)] for name in names)]


class ConfusionCells(NamedTuple):
    """A confusion matrix to show: predicted classes, and per true class its name and the shares of its pixels."""

    predicted: list[str]
    lines: list[tuple[str, list[float]]]


def confusion_cells(row: DomainScore) -> ConfusionCells:
    """Return the scored classes against those that were predicted or scored; a class without a pixel has zeros."""
    counts = np.array(row.confusion, dtype=np.float64)
    scored = [CLASS_NAMES.index(name) for name in row.scores.iou]
    predicted = [c for c in range(len(counts)) if c in scored or counts[scored, c].any()]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    lines = [(CLASS_NAMES[c], shares[c, predicted].tolist()) for c in scored]
    return ConfusionCells([CLASS_NAMES[c] for c in predicted], lines)


def example_cells(example: Example) -> dict[str, Any]:
    """Return the caption of a frame and its panels, each with title and data URI."""
    image, truth, prediction = example.frame
    labels = {"truth": truth, "prediction": np.where(truth == IGNORE, IGNORE, prediction)}
    panels = [("image", photo_uri(image)), *((title, label_uri(label)) for title, label in labels.items())]
    panels.append(("errors", photo_uri(error_map(image, truth, prediction))))
    if example.layout is not None:
        panels.append(("coarse layout", label_uri(example.layout)))
    if example.edge is not None:
        panels.append(("edge map", photo_uri(stretched(example.edge))))
    scores = f"mean IoU {percent(example.scores.mean_iou)} %, accuracy {percent(example.scores.accuracy)} %"
    return {"rank": example.rank, "name": example.name, "scores": scores, "panels": panels}


def label_uri(label: Array) -> str:
    """Return a label (H,W) in the classes' colours, black where it has none, as the URI of a small PNG."""
    image = Image.fromarray(np.minimum(label, len(PALETTE)).astype(np.uint8))
    image.putpalette(PALETTE.astype(np.uint8).tobytes() + bytes(3))
    return data_uri(_narrow(image, Image.Resampling.NEAREST))


def photo_uri(array: Array) -> str:
    """Return an image (H,W,3) or (H,W) uint8 as the URI of a JPEG."""
    return data_uri(_narrow(Image.fromarray(array), Image.Resampling.LANCZOS), kind="jpeg", quality=QUALITY)


def data_uri(image: Image.Image, *, kind: str = "png", **settings: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **{"optimize": kind == "png", **settings})
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _narrow(image: Image.Image, resampling: Image.Resampling) -> Image.Image:
    """Return an image of at most WIDTH."""
    height = max(1, round(image.height * WIDTH / image.width))
    return image if image.width <= WIDTH else image.resize((WIDTH, height), resampling)


def history_curves(lines: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the loss terms and the domains' mean IoU over the steps as SVG, each where the history has them."""
    losses = {tag: tag.removeprefix("loss/") for line in lines for tag in line if tag.startswith("loss/")}
    scores = {tag: tag.removesuffix("/mean_iu") for line in lines for tag in line if tag.endswith("/mean_iu")}
    panels = [("loss", losses, 1), ("mean IoU %", scores, 100)]
    return [_plot_svg(lines, tags, title=title, factor=factor) for title, tags, factor in panels if tags]


def _plot_svg(lines: Sequence[Mapping[str, float]], tags: Mapping[str, str], *, title: str, factor: float) -> str:
    """Plot some tags, with their names, in the colours of the text that surrounds the picture."""
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "text.parse_math": False}):
        figure, buffer = new_figure(6, 3), io.StringIO()
        panel = figure.subplots()
        for tag, name in tags.items():
            points = [(line["step"], factor * line[tag]) for line in lines if tag in line]
            marker = "o" if len(points) < 20 else ""
            panel.plot(*zip(*points, strict=True), label=name, linewidth=1.3, marker=marker, markersize=3)
        panel.set(xlim=(0, 1.02 * max(line["step"] for line in lines)), ylim=(0, None))
        panel.set_xlabel("step", fontsize=9)
        panel.set_ylabel(title, fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("#000000", "currentColor")
