"""`python -m scripts.inspect_data DOMAIN ...`: how often each class occurs and is sampled."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np

from datasets.class_uniform import cache_key, load_or_compute, source_centroids
from datasets.codec import Encoding, decode_label
from datasets.domains import Domain, Pair, find_pairs, list_hash
from datasets.labels import CLASS_NAMES, NUM_CLASSES, PALETTE
from datasets.loaders import choose_workers
from datasets.plan import EpochPlan, GlobalBatches, Pick, Source, sample_rng
from datasets.workers import parallel_map
from scripts.data_options import chosen_domains, data_config, data_parser
from transforms.build import build_geometry
from transforms.geometry import Geometry
from transforms.view import make_view
from utils.errors import UserError, run_entry_point
from utils.files import make_folder, write_text
from utils.pictures import Array, save_png
from utils.tables import align, markdown

NAMES = (*CLASS_NAMES, "ignored")
SHARE = 0.5  # of class-uniform sampling, where the configuration says 0
COLUMNS = {  # name in classes.csv -> heading and format of the table
    "pixel_share": ("pixels %", ".3f"),
    "images": ("images", "d"),
    "image_share": ("images %", ".1f"),
    "centroids": ("centroids", "d"),
    "aimed": ("aimed at", "d"),
    "drawn_uniform": ("drawn uniform %", ".1f"),
    "crops_plain": ("crops plain %", ".1f"),
    "crops_uniform": ("crops uniform %", ".1f"),
    "crop_pixels_plain": ("crop pixels plain %", ".3f"),
    "crop_pixels_uniform": ("crop pixels uniform %", ".3f"),
}
FREQUENCIES = ("image_share", "drawn_uniform", "crops_plain", "crops_uniform")


@dataclass(frozen=True)
class Inspection:
    """What was found about a domain.

    Attributes:
        columns: (20,) by the names of `COLUMNS`: classes in order, then ignored pixels; shares are 0..1.
        how: what the numbers depend on, by name.
    """

    domain: str
    columns: dict[str, Array]
    how: dict[str, Any]

    def table(self) -> list[list[str]]:
        """Return heading and one line per class."""
        lines = [["class", *(heading for heading, _ in COLUMNS.values())]]
        for index, name in enumerate(NAMES):
            numbers = [(self.columns[key][index], form) for key, (_, form) in COLUMNS.items()]
            lines.append([name, *(format(value if form == "d" else 100 * value, form) for value, form in numbers)])
        return lines

    def sentences(self) -> str:
        """Return in words, line by line, how the numbers were taken."""
        how, aimed = self.how, self.columns["aimed"]
        total, share = how["num_images"], how["share"]
        effect = f"it changes nothing, because {total} x {share:g} / {NUM_CLASSES} is below one sample per class."
        if aimed.any():
            effect = f"{aimed.sum()} of the {total} samples of an epoch are aimed at a class, {aimed.max()} at each."
        lines = [
            f"{self.domain}/{how['split']}: {total} images (list {how['list']}).",
            f"Class-uniform share {share:g}, tiles of {how['tile']}: {effect}",
            "Drawn uniform: expected share of the samples whose image holds the class; drawn plainly it is images %.",
            f"Crops: the first {how['samples']} samples of a training with crop {how['crop']} and seed {how['seed']}; "
            f"the shares are uncertain by up to {98 / how['samples'] ** 0.5:.1f} points. Padding counts as ignored.",
        ]
        return "\n".join(lines)


def _counts(label: Array) -> Array:
    """Return the pixels per class, ignored ones last, (20,) int64."""
    return np.bincount(np.minimum(label, NUM_CLASSES).ravel(), minlength=NUM_CLASSES + 1)


def _of_file(label: str, *, encoding: Encoding) -> Array:
    return _counts(decode_label(label, encoding=encoding))


def _of_crop(pick: Pick, *, pairs: Sequence[Pair], encoding: Encoding, geometry: Geometry, seed: int) -> Array:
    label = decode_label(pairs[pick.item].label, encoding=encoding)
    image = np.zeros((*label.shape, 3), np.uint8)  # steps expect one; nobody looks at it
    view = make_view(image, label, focus=pick.focus)
    return _counts(geometry(view, sample_rng(seed, pick.stream)).label)


def pixels_per_label(pairs: Sequence[Pair], domain: Domain, *, cache_dir: str, workers: int) -> Array:
    """Return the pixels of every class in every label, (N, 20) int64, ignored ones last; kept beside the centroids."""
    key = cache_key(pairs, encoding=domain.encoding, tile=0)
    path, title = Path(cache_dir).expanduser() / f"pixels_{domain.name}_{key}.npy", f"pixels of {domain.name}"
    work, labels = partial(_of_file, encoding=domain.encoding), [pair.label for pair in pairs]

    def make() -> Array:
        return np.stack(list(parallel_map(work, labels, workers=workers, title=title, unit="label")))

    return load_or_compute(path, columns=NUM_CLASSES + 1, title=title, make=make)


def first_picks(plan: EpochPlan, number: int) -> list[Pick]:
    """Return the first work orders of a training: those of epoch 0, then of epoch 1 and so on."""
    epochs = (GlobalBatches(plan, batch_size=1, epoch=epoch) for epoch in count())
    return [pick for (pick,) in islice(chain.from_iterable(epochs), number)]


def inspect_domain(
    cfg: Any, domain: Domain, pairs: Sequence[Pair], *, split: str, share: float, samples: int
) -> Inspection:
    """Count the classes of a domain's pairs, and those of the crops that plain and class-uniform sampling make."""
    workers = choose_workers(cfg.DATASET.NUM_WORKERS)
    data = {"cache_dir": cfg.DATASET.CENTROID_CACHE, "workers": workers}
    tile, seed = domain.tile or cfg.DATASET.CLASS_UNIFORM_TILE, cfg.RUN.SEED
    pixels = pixels_per_label(pairs, domain, **data)  # (N, 20)
    centroids = source_centroids(pairs, encoding=domain.encoding, tile=tile, name=domain.name, **data)
    found = np.bincount(centroids[:, 1], minlength=NUM_CLASSES + 1)
    aimed = np.where(found > 0, int(len(pairs) * share / NUM_CLASSES), 0)
    chance = np.full(len(pairs), 1 - aimed.sum() / len(pairs))  # expected draws of every image per epoch
    np.add.at(chance, centroids[:, 0], (aimed / np.maximum(found, 1))[centroids[:, 1]])
    columns = {
        "pixel_share": pixels.sum(axis=0) / pixels.sum(),
        "images": (pixels > 0).sum(axis=0),
        "image_share": (pixels > 0).mean(axis=0),
        "centroids": found,
        "aimed": aimed,
        "drawn_uniform": chance @ (pixels > 0) / len(pairs),
    }
    source, geometry = Source(len(pairs), centroids), build_geometry(cfg)
    for name, fraction in (("plain", 0.0), ("uniform", share)):
        picks = first_picks(EpochPlan((source,), seed, fraction=fraction), samples)
        work = partial(_of_crop, pairs=pairs, encoding=domain.encoding, geometry=geometry, seed=seed)
        title = f"{name} crops of {domain.name}"
        crops = np.stack(list(parallel_map(work, picks, workers=workers, title=title, unit="crop")))
        columns[f"crops_{name}"] = (crops > 0).mean(axis=0)
        columns[f"crop_pixels_{name}"] = crops.sum(axis=0) / crops.sum()
    how = {"split": split, "num_images": len(pairs), "list": list_hash(pairs), "share": share, "tile": tile}
    return Inspection(domain.name, columns, {**how, "samples": samples, "crop": cfg.AUGMENT.CROP_SIZE, "seed": seed})


def to_csv(inspections: Sequence[Inspection]) -> str:
    """Return one line per domain and class, with what its numbers depend on; shares are 0..1."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["domain", "class", *COLUMNS, *inspections[0].how])
    for found in inspections:
        for index, name in enumerate(NAMES):
            numbers = [found.columns[key][index].item() for key in COLUMNS]
            writer.writerow([found.domain, name, *numbers, *found.how.values()])
    return buffer.getvalue()


def draw_classes(inspections: Sequence[Inspection]) -> Any:
    """Return a matplotlib figure with a row of panels per domain, frequent classes on top: pixels, samples, crops."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 6.4 * len(inspections)), layout="constrained", dpi=90)
    panels = figure.subplots(len(inspections), 3, squeeze=False, sharey="row")
    for (left, middle, right), found in zip(panels, inspections, strict=True):
        columns = {name: 100 * values[:NUM_CLASSES] for name, values in found.columns.items()}
        order, places = np.argsort(columns["pixel_share"], kind="stable"), np.arange(NUM_CLASSES)
        shares = columns["pixel_share"][order]
        bars = left.barh(places, shares, color=PALETTE[order] / 255)
        left.bar_label(bars, [f" {share:.2g}" if share else "" for share in shares], fontsize=8)
        left.set_yticks(places, [CLASS_NAMES[index] for index in order])
        for place in places[shares == 0]:
            left.text(0.01, place, "does not occur", va="center", color="grey", transform=left.get_yaxis_transform())
        for panel, plain, uniform in (
            (middle, "image_share", "drawn_uniform"),
            (right, "crops_plain", "crops_uniform"),
        ):
            panel.barh(places + 0.2, columns[plain][order], 0.4, color="#8d99a6", label="plain sampling")
            panel.barh(places - 0.2, columns[uniform][order], 0.4, color="#d1495b", label="class-uniform sampling")
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.04), ncol=2, frameon=False)
        left.set_title(f"{found.domain}/{found.how['split']}: % of the pixels")
        middle.set_title("% of the samples whose image holds the class (exact)")
        right.set_title(f"% of {found.how['samples']} crops of {found.how['crop']} that hold the class")
        for panel, names in ((left, ["pixel_share"]), (middle, FREQUENCIES), (right, FREQUENCIES)):
            positive = [share for name in names for share in columns[name] if share > 0]
            panel.set(xscale="log", xlim=(10 ** np.floor(np.log10(0.9 * min(positive, default=10))), 100))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.grid(axis="x", alpha=0.4)
            panel.set_axisbelow(True)
            panel.margins(y=0.01)
    return figure


def _rendered(figure: Any) -> Array:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table per domain and write the tables and a plot."""
    parser = data_parser(
        "inspect_data",
        "Count classes: pixels, images and centroids, how many samples of an epoch are aimed at each, and the share of "
        "training crops that hold it, with plain and with class-uniform sampling. Writes classes.csv, classes.md and "
        "classes.png.",
        domains="data sets to count",
    )
    parser.add_argument("--split", default="train", help="split to count (%(default)s)")
    parser.add_argument("--samples", type=int, default=500, help="crops that are cut for each sampling (%(default)s)")
    text = f"class-uniform share of an epoch, 0 to 1 (default: the configuration's, or {SHARE} where that is 0)"
    parser.add_argument("--class_uniform_pct", default="", metavar="SHARE", help=text)
    parser.add_argument("--out", default="", metavar="DIR", help="folder to write to (default: ./inspect_DOMAIN...)")
    given = parser.parse_args(argv)
    cfg = data_config(given, "class_uniform_pct")
    domains, share = chosen_domains(cfg, given.names), cfg.DATASET.CLASS_UNIFORM_PCT or SHARE
    if given.samples < 1:
        raise UserError(f"--samples {given.samples}: at least one crop is needed")
    out = Path(given.out or "_".join(["inspect", *(domain.name for domain in domains)]))
    lists = [find_pairs(domain, given.split) for domain in domains]
    make_folder(out)  # before the long work
    if not cfg.DATASET.CLASS_UNIFORM_PCT:
        sys.stdout.write(f"the configuration samples plainly (DATASET.CLASS_UNIFORM_PCT 0): {SHARE} is taken here\n\n")
    inspections = []
    for domain, pairs in zip(domains, lists, strict=True):
        found = inspect_domain(cfg, domain, pairs, split=given.split, share=share, samples=given.samples)
        sys.stdout.write(f"{align(found.table())}\n\n{found.sentences()}\n\n")
        inspections.append(found)
    write_text(out / "classes.csv", to_csv(inspections))
    parts = [f"## {found.domain}\n\n{markdown(found.table())}\n\n{found.sentences()}\n" for found in inspections]
    write_text(out / "classes.md", "\n".join(parts))
    save_png(_rendered(draw_classes(inspections)), out / "classes.png")
    sys.stdout.write(f"table and plot: {out}\n")


if __name__ == "__main__":
    run_entry_point(main)
