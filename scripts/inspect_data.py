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

from config import Config
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
    load_or_compute,
    sample_rng,
    source_centroids,
)
from datasets.splits import Pair, find_pairs, list_hash
from scripts.options import chosen_domains, data_config, data_parser
from transforms.build import build_geometry
from transforms.geometry import Geometry
from transforms.view import make_view
from utils.errors import UserError, run_entry_point
from utils.files import make_folder, write_text
from utils.parallel import parallel_map
from utils.pictures import Array, save_png
from utils.tables import format_table

NAMES = (*CLASS_NAMES, "ignored")
SHARE = 0.5  # of class-uniform sampling, where the configuration says 0
COLUMNS = {  # name in classes.csv -> heading and format of the table
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
        """Return heading and one line per class."""
        rows = [["class", *(heading for heading, _ in COLUMNS.values())]]
        for index, name in enumerate(NAMES):
            numbers = [(self.columns[key][index], form) for key, (_, form) in COLUMNS.items()]
            rows.append([name, *(format(value if form == "d" else 100 * value, form) for value, form in numbers)])
        return rows

    def sentences(self) -> str:
        """Return in words, line by line, how the numbers were taken."""
        how, aimed = self.how, self.columns["aimed"]
        total, share = how["num_images"], how["share"]
        effect = f"it changes nothing, because {total} x {share:g} / {NUM_CLASSES} is below one sample per class."
        if aimed.any():
            effect = f"{aimed.sum()} of the {total} samples of an epoch are aimed at a class, {aimed.max()} at each."
        return (
            f"{self.domain}/{how['split']}: {total} images (list {how['list']}).\n"
            f"Class-uniform share {share:g}, tiles of {how['tile']}: {effect}\n"
            "Sampled uniform: expected share of the samples whose image holds the class; in plain sampling it is "
            "images %.\n"
            f"Crops: the first {how['samples']} samples of a training with crop {how['crop']} and seed {how['seed']}; "
            f"the shares are uncertain by up to {98 / how['samples'] ** 0.5:.1f} points. Padding counts as ignored."
        )


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
    cfg: Config, domain: Domain, pairs: Sequence[Pair], *, split: str, share: float, samples: int
) -> Inspection:
    """Count the classes of a domain's pairs, and those of the crops that plain and class-uniform sampling make."""
    workers, seed = choose_workers(cfg.DATASET.NUM_WORKERS), cfg.RUN.SEED
    tile = domain.tile or cfg.DATASET.CLASS_UNIFORM_TILE
    cache: dict[str, Any] = {"cache_dir": cfg.DATASET.CENTROID_CACHE, "workers": workers}
    pixels = pixels_per_label(pairs, domain, **cache)  # (N, 20)
    centroids = source_centroids(pairs, encoding=domain.encoding, tile=tile, name=domain.name, **cache)
    per_class = np.bincount(centroids[:, 1], minlength=NUM_CLASSES + 1)
    aimed = np.where(per_class > 0, int(len(pairs) * share / NUM_CLASSES), 0)
    expected = np.full(len(pairs), 1 - aimed.sum() / len(pairs))  # samples of every image per epoch
    np.add.at(expected, centroids[:, 0], (aimed / np.maximum(per_class, 1))[centroids[:, 1]])
    columns = {
        "pixel_share": pixels.sum(axis=0) / pixels.sum(),
        "images": (pixels > 0).sum(axis=0),
        "image_share": (pixels > 0).mean(axis=0),
        "centroids": per_class,
        "aimed": aimed,
        "sampled_uniform": expected @ (pixels > 0) / len(pairs),
    }
    work = partial(_of_crop, pairs=pairs, encoding=domain.encoding, geometry=build_geometry(cfg), seed=seed)
    for name, fraction in (("plain", 0.0), ("uniform", share)):
        picks = first_picks(EpochPlan((Source(len(pairs), centroids),), seed, fraction=fraction), samples)
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
    for inspection in inspections:
        for index, name in enumerate(NAMES):
            numbers = [inspection.columns[key][index].item() for key in COLUMNS]
            writer.writerow([inspection.domain, name, *numbers, *inspection.how.values()])
    return buffer.getvalue()


def plot_classes(inspections: Sequence[Inspection]) -> Any:
    """Return a matplotlib figure with a row of panels per domain, frequent classes on top: pixels, samples, crops."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 6.4 * len(inspections)), layout="constrained", dpi=90)
    panels = figure.subplots(len(inspections), 3, squeeze=False, sharey="row")
    for (left, *others), inspection in zip(panels, inspections, strict=True):
        columns, how = {name: 100 * values[:NUM_CLASSES] for name, values in inspection.columns.items()}, inspection.how
        order, places = np.argsort(columns["pixel_share"], kind="stable"), np.arange(NUM_CLASSES)
        shares = columns["pixel_share"][order]
        bars = left.barh(places, shares, color=PALETTE[order] / 255)
        left.bar_label(bars, [f" {share:.2g}" if share else "" for share in shares], fontsize=8)
        left.set_yticks(places, [CLASS_NAMES[index] for index in order])
        left.set_title(f"{inspection.domain}/{how['split']}: % of the pixels")
        for place in places[shares == 0]:
            left.text(0.01, place, "does not occur", va="center", color="grey", transform=left.get_yaxis_transform())
        kinds = (
            ("image_share", "sampled_uniform", "% of the samples whose image holds the class (exact)"),
            ("crops_plain", "crops_uniform", f"% of {how['samples']} crops of {how['crop']} that hold the class"),
        )
        for panel, (plain, uniform, title) in zip(others, kinds, strict=True):
            panel.barh(places + 0.2, columns[plain][order], 0.4, color="#8d99a6", label="plain sampling")
            panel.barh(places - 0.2, columns[uniform][order], 0.4, color="#d1495b", label="class-uniform sampling")
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.04), ncol=2, frameon=False)
            panel.set_title(title)
        frequencies = [name for kind in kinds for name in kind[:2]]
        for panel, names in ((left, ["pixel_share"]), *((panel, frequencies) for panel in others)):
            positive = [share for name in names for share in columns[name] if share > 0]
            panel.set(xscale="log", xlim=(10 ** np.floor(np.log10(0.9 * min(positive, default=10))), 100))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.grid(axis="x", alpha=0.4)
            panel.set_axisbelow(True)
            panel.margins(y=0.01)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

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
    args = parser.parse_args(argv)
    cfg = data_config(args, "class_uniform_pct")
    domains, share = chosen_domains(cfg, args.names), cfg.DATASET.CLASS_UNIFORM_PCT or SHARE
    if args.samples < 1:
        raise UserError(f"--samples {args.samples}: at least one crop is needed")
    out = Path(args.out or "_".join(["inspect", *(domain.name for domain in domains)]))
    lists = [find_pairs(domain, args.split) for domain in domains]
    make_folder(out)  # before the long work
    if not cfg.DATASET.CLASS_UNIFORM_PCT:
        sys.stdout.write(f"the configuration samples plainly (DATASET.CLASS_UNIFORM_PCT 0): {SHARE} is taken here\n\n")
    inspections, parts = [], []
    for domain, pairs in zip(domains, lists, strict=True):
        inspection = inspect_domain(cfg, domain, pairs, split=args.split, share=share, samples=args.samples)
        table, sentences = inspection.table(), inspection.sentences()
        sys.stdout.write(f"{format_table(table)}\n\n{sentences}\n\n")
        parts.append(f"## {domain.name}\n\n{format_table(table, 'markdown')}\n\n{sentences}\n")
        inspections.append(inspection)
    write_text(out / "classes.csv", to_csv(inspections))
    write_text(out / "classes.md", "\n".join(parts))
    canvas = FigureCanvasAgg(plot_classes(inspections))
    canvas.draw()
    save_png(np.asarray(canvas.buffer_rgba())[..., :3], out / "classes.png")
    sys.stdout.write(f"table and plot: {out}\n")


if __name__ == "__main__":
    run_entry_point(main)
