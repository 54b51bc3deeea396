"""`python -m scripts.inspect_data DOMAIN ...`: how often each class occurs and is sampled."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from config import Config
from scripts import chosen_domains, data_config, data_parser
from utils.errors import UserError, run_entry_point

SHARE = 0.5  # of class-uniform sampling, where the configuration says 0


def make_parser() -> argparse.ArgumentParser:
    parser = data_parser(
        "inspect_data",
        "Count the classes of data sets: pixels, images, centroids, and the share of samples and training crops that "
        "hold each, with plain and with class-uniform sampling.",
        details="Writes classes.csv, classes.md and classes.png.",
    )
    parser.add_argument("--split", default="train", help="split to count")
    parser.add_argument("--samples", type=int, default=500, metavar="N", help="crops that are cut for each sampling")
    text = f"class-uniform share of an epoch, 0 to 1 (default: the configuration's, or {SHARE} where that is 0)"
    parser.add_argument("--class_uniform_pct", default="", metavar="SHARE", help=text)
    parser.add_argument("--out", default="", metavar="DIR", help="folder to write to (default: ./inspect_DOMAIN...)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and wrong flags are answered before the slow imports below

import numpy as np

from datasets.codec import Encoding, decode_label
from datasets.domains import Domain
from datasets.labels import CLASS_NAMES, NUM_CLASSES, PALETTE
from datasets.loaders import choose_workers
from datasets.sampling import (
    EpochPlan,
    GlobalBatches,
    Pick,
    Source,
    cache_key,
    class_shares,
    load_or_compute,
    sample_rng,
    source_centroids,
)
from datasets.splits import Pair, find_pairs, list_hash
from transforms import build_geometry
from transforms.geometry import Geometry, make_view
from utils import format_csv, format_table
from utils.files import new_folder, write_text
from utils.parallel import parallel_map
from utils.pictures import Array, render, save_png

NAMES = (*CLASS_NAMES, "ignored")
COLUMNS = {  # name in classes.csv -> heading and format of the table, where shares of 0..1 are in percent
    "pixel_share": ("pixels %", ".3f"),
    "images": ("images", "d"),
    "image_share": ("images %", ".1f"),
    "centroids": ("centroids", "d"),
    "aimed": ("aimed at", "d"),
    "sampled_uniform": ("sampled uniform %", ".1f"),
    "crops_plain": ("crops plain %", ".1f"),
    "crops_uniform": ("crops uniform %", ".1f"),
    "crop_pixels_plain": ("crop pixels plain %", ".3f"),
    "crop_pixels_uniform": ("crop pixels uniform %", ".3f"),
}


@dataclass(frozen=True)
class Inspection:
    """The class statistics of a domain.

    Attributes:
        columns: (20,) by the names of `COLUMNS`: classes in order, then ignored pixels; shares are 0..1.
        how: what the numbers depend on, by name.
    """

    domain: str
    columns: dict[str, Array]
    how: dict[str, Any]

    def table(self) -> list[list[str]]:
        cells = [
            [heading, *(format(value if form == "d" else 100 * value, form) for value in self.columns[name])]
            for name, (heading, form) in COLUMNS.items()
        ]
        return [list(row) for row in zip(("class", *NAMES), *cells, strict=True)]

    def sentences(self) -> str:
        """Return in words, line by line, how the numbers were taken."""
        how, present = self.how, int((self.columns["centroids"] > 0).sum())
        total, share = how["num_images"], how["share"]
        each, more = class_shares(total, fraction=share, present=present)
        effect = f"it changes nothing, because {total} x {share:g} is too small to aim a sample at a class."
        if aimed := present * each + more:
            turns = f", and one more at {more} of the {present} classes in turn" if more else ""
            effect = f"{aimed} of the {total} samples of an epoch are aimed at a class, {each} at each{turns}."
        return (
            f"{self.domain}/{how['split']}: {total} images (list {how['list']}).\n"
            f"Class-uniform share {share:g}, tiles of {how['tile']}: {effect}\n"
            "Sampled uniform: expected share of the samples whose image holds the class; in plain sampling it is "
            "images %.\n"
            f"Crops: the first {how['samples']} samples of a training with crop {how['crop']} and seed {how['seed']}; "
            f"the shares are uncertain by up to {98 / how['samples'] ** 0.5:.1f} points. Padding counts as ignored."
        )


def _counts(
    pick: Pick, *, pairs: Sequence[Pair], encoding: Encoding, geometry: Geometry | None = None, seed: int = 0
) -> Array:
    """Return the pixels per class of a label, or of a crop of it, ignored ones last, (20,) int64."""
    label = decode_label(pairs[pick.item].label, encoding=encoding)
    if geometry is not None:
        image = np.zeros((*label.shape, 3), np.uint8)  # steps expect one; nobody looks at it
        label = geometry(make_view(image, label, focus=pick.focus), sample_rng(seed, pick.stream)).label
    return np.bincount(np.minimum(label, NUM_CLASSES).ravel(), minlength=NUM_CLASSES + 1)


def inspect_domain(
    cfg: Config, domain: Domain, pairs: Sequence[Pair], *, split: str, share: float, samples: int
) -> Inspection:
    """Count the classes of a domain's pairs, and those of the crops that plain and class-uniform sampling make.

    The pixels of every label are kept beside the centroids.
    """
    number, encoding, name, seed = len(pairs), domain.encoding, domain.name, cfg.RUN.SEED
    workers, folder = choose_workers(cfg.DATASET.NUM_WORKERS), cfg.DATASET.CENTROID_CACHE
    tile, count = domain.tile or cfg.DATASET.CLASS_UNIFORM_TILE, partial(_counts, pairs=pairs, encoding=encoding)

    def counted(work: Callable[[Pick], Array], picks: Sequence[Pick], title: str) -> Array:
        return np.stack(list(parallel_map(work, picks, workers=workers, title=title, unit="label")))

    title, key = f"pixels of {name}", cache_key(pairs, encoding=encoding, tile=0)
    make = partial(counted, count, [Pick(item, item) for item in range(number)], title)
    path = Path(folder) / f"pixels_{name}_{key}.npy"
    pixels = load_or_compute(path, columns=NUM_CLASSES + 1, title=title, make=make)  # (N, 20)
    centroids = source_centroids(pairs, encoding=encoding, tile=tile, name=name, cache_dir=folder, workers=workers)
    per_class = np.bincount(centroids[:, 1], minlength=NUM_CLASSES + 1)
    present = int((per_class > 0).sum())
    each, more = class_shares(number, fraction=share, present=present)
    aimed = np.where(per_class > 0, each, 0)
    mean = np.where(per_class > 0, each + more / max(present, 1), 0)
    expected = np.full(number, 1 - mean.sum() / number)  # samples of every image per epoch
    np.add.at(expected, centroids[:, 0], (mean / np.maximum(per_class, 1))[centroids[:, 1]])
    columns = {
        "pixel_share": pixels.sum(axis=0) / pixels.sum(),
        "images": (pixels > 0).sum(axis=0),
        "image_share": (pixels > 0).mean(axis=0),
        "centroids": per_class,
        "aimed": aimed,
        "sampled_uniform": expected @ (pixels > 0) / number,
    }
    crop = partial(count, geometry=build_geometry(cfg), seed=seed)
    for kind, fraction in (("plain", 0.0), ("uniform", share)):
        plan = EpochPlan((Source(number, centroids),), seed, fraction=fraction)
        epochs = (GlobalBatches(plan, batch_size=1, epoch=epoch) for epoch in itertools.count())
        picks = [pick for (pick,) in itertools.islice(itertools.chain.from_iterable(epochs), samples)]
        crops = counted(crop, picks, f"{kind} crops of {name}")
        columns[f"crops_{kind}"] = (crops > 0).mean(axis=0)
        columns[f"crop_pixels_{kind}"] = crops.sum(axis=0) / crops.sum()
    how = {"split": split, "num_images": number, "list": list_hash(pairs), "share": share, "tile": tile}
    return Inspection(name, columns, {**how, "samples": samples, "crop": cfg.AUGMENT.CROP_SIZE, "seed": seed})


def to_csv(inspections: Sequence[Inspection]) -> str:
    """Return one line per domain and class, with what its numbers depend on; shares are 0..1."""
    table = [["domain", "class", *COLUMNS, *inspections[0].how]]
    for found in inspections:
        rows = zip(NAMES, *(found.columns[key].tolist() for key in COLUMNS), strict=True)
        table += [[found.domain, *row, *found.how.values()] for row in rows]
    return format_csv(table)


def plot_classes(inspections: Sequence[Inspection]) -> Any:
    """Return a matplotlib figure with a row of panels per domain, frequent classes on top: pixels, samples, crops."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 6.4 * len(inspections)), layout="constrained", dpi=90)
    rows, places = figure.subplots(len(inspections), 3, squeeze=False, sharey="row"), np.arange(NUM_CLASSES)
    for panels, inspection in zip(rows, inspections, strict=True):
        order, how = np.argsort(inspection.columns["pixel_share"][:NUM_CLASSES], kind="stable"), inspection.how
        shares = {name: 100 * values[order] for name, values in inspection.columns.items()}
        bars = panels[0].barh(places, shares["pixel_share"], color=PALETTE[order] / 255)
        panels[0].bar_label(bars, [f" {share:.2g}" if share else "" for share in shares["pixel_share"]], fontsize=8)
        panels[0].set_yticks(places, [CLASS_NAMES[index] for index in order])
        for place in places[shares["pixel_share"] == 0]:
            where = panels[0].get_yaxis_transform()
            panels[0].text(0.01, place, "does not occur", va="center", color="grey", transform=where)
        frequencies = ("image_share", "sampled_uniform", "crops_plain", "crops_uniform")
        for panel, plain, uniform in ((panels[1], *frequencies[:2]), (panels[2], *frequencies[2:])):
            panel.barh(places + 0.2, shares[plain], 0.4, color="#8d99a6", label="plain sampling")
            panel.barh(places - 0.2, shares[uniform], 0.4, color="#d1495b", label="class-uniform sampling")
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.04), ncol=2, frameon=False)
        titles = (
            f"{inspection.domain}/{how['split']}: % of the pixels",
            "% of the samples whose image holds the class (exact)",
            f"% of {how['samples']} crops of {how['crop']} that hold the class",
        )
        for panel, title, names in zip(panels, titles, (["pixel_share"], frequencies, frequencies), strict=True):
            positive = [share for name in names for share in shares[name] if share > 0]
            left = 10 ** np.floor(np.log10(0.9 * min(positive, default=10)))
            panel.set(title=title, xscale="log", xlim=(left, 100), axisbelow=True, ymargin=0.01)
            panel.xaxis.set_major_formatter("{x:g}")
            panel.grid(axis="x", alpha=0.4)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    cfg = data_config(args, "class_uniform_pct")
    domains, share = chosen_domains(cfg, args.names), cfg.DATASET.CLASS_UNIFORM_PCT or SHARE
    if not 1 <= args.samples <= 10**6:
        raise UserError(f"--samples {args.samples}: must be a number of crops from 1 to 1,000,000")
    out = Path(args.out or "_".join(["inspect", *(domain.name for domain in domains)]))
    lists = [find_pairs(domain, args.split) for domain in domains]
    if not cfg.DATASET.CLASS_UNIFORM_PCT:
        sys.stdout.write(f"the configuration samples plainly (DATASET.CLASS_UNIFORM_PCT 0): {SHARE} is taken here\n\n")
    inspections, parts = [], []
    with new_folder(out):  # before the long work
        for domain, pairs in zip(domains, lists, strict=True):
            inspection = inspect_domain(cfg, domain, pairs, split=args.split, share=share, samples=args.samples)
            table, sentences = inspection.table(), inspection.sentences()
            sys.stdout.write(f"{format_table(table)}\n\n{sentences}\n\n")
            parts.append(f"## {domain.name}\n\n{format_table(table, 'markdown')}\n\n{sentences}\n")
            inspections.append(inspection)
        write_text(out / "classes.csv", to_csv(inspections))
        write_text(out / "classes.md", "\n".join(parts))
        save_png(render(plot_classes(inspections)), out / "classes.png")
    sys.stdout.write(f"table and plot: {out}\n")


if __name__ == "__main__":
    run_entry_point(main)
