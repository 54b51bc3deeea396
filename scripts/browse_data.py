"""`python -m scripts.browse_data DOMAIN ...`: a contact sheet of frames, as they are and as training sees them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from config import Config
from scripts import chosen_domains, data_config, data_parser
from utils.errors import UserError, run_entry_point

RECIPE = ("AUGMENT.COLOR_AUG=0.5", "AUGMENT.GBLUR=true", "DATASET.CLASS_UNIFORM_PCT=0.5")  # of the published scripts


def make_parser() -> argparse.ArgumentParser:
    parser = data_parser(
        "browse_data",
        "Show frames with their labels, and what a training makes of them: crop, jitter, blur, label and edge target.",
        details="Without --config the sheet follows the published scripts where --opts says nothing else: "
        f"{' '.join(RECIPE)}. With --config it is what train.py does with that file. The jitter is that of the method: "
        "NETWORK.METHOD=isw shows RobustNet's.",
    )
    parser.add_argument("--split", default="train", help="split to take frames from")
    parser.add_argument("--count", type=int, default=6, metavar="N", help="frames per data set")
    text = "FILE.png, or a folder for DOMAIN.png (default: ./browse_DOMAIN.png)"
    parser.add_argument("--out", default="", metavar="PATH", help=text)
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and wrong flags are answered before the slow imports below

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.utils.data import default_collate

from datasets.domains import Domain
from datasets.labels import CLASS_NAMES, NUM_CLASSES, PALETTE
from datasets.sampling import class_centroids, sample_rng
from datasets.segmentation import read_pair, to_tensor
from datasets.splits import find_pairs
from network import resolve_jitter, resolve_method
from transforms import build_appearance, build_appearance_sampler, build_geometry
from transforms.appearance import Appearance, AppearanceParams, AppearanceSampler, edge_target
from transforms.geometry import Geometry, RandomFlip, RandomScale, View, make_view
from utils.pictures import INK, MARGIN, PAPER, Array, colorize, legend, overlay, save_png, stacked

FRAME, CROP = (368, 300), (300, 300)  # what a picture fits into: width and height in pixels of the sheet
COLUMNS = {
    **dict.fromkeys(("frame", "labels"), FRAME),
    **dict.fromkeys(("crop with labels and focus", "as the network sees it", "label target", "edge target"), CROP),
}
WIDTH = sum(width + MARGIN for width, _ in COLUMNS.values()) + MARGIN
SIZE, LINE = 14, 19  # letters and lines


class Delivered(NamedTuple):
    """What the training makes of a frame: the crop, its parameters, the frame's size before the crop, and mirroring."""

    view: View
    params: AppearanceParams
    shown: tuple[int, int]
    mirrored: bool


class Cell(NamedTuple):
    """A picture (H, W, 3) uint8 and the lines below it."""

    picture: Array
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Pipeline:
    """The transforms of a run; `tile` is that of its class centroids, 0 where sampling is plain."""

    geometry: Geometry
    sampler: AppearanceSampler
    appearance: Appearance
    seed: int
    tile: int
    edge_magnitude: bool = False

    def focus(self, label: Array, *, item: int) -> tuple[int, tuple[int, int]] | None:
        """Sample a class of a label, each alike, and one of its centroids (x, y); None where there is none."""
        rows = class_centroids(label, tile=self.tile) if self.tile else np.zeros((0, 3), int)
        if not len(rows):
            return None
        rng = np.random.default_rng((self.seed, 3, item))
        index, x, y = rng.choice(rows[rows[:, 0] == rng.choice(np.unique(rows[:, 0]))])
        return int(index), (int(x), int(y))

    def deliver(self, view: View, *, item: int) -> Delivered:
        """Do what the training does with a frame at position `item` of its first epoch, and keep what was sampled."""
        rng, shown, mirrored = sample_rng(self.seed, item), view.size, False
        for step in self.geometry.steps:
            before, view = view, step(view, rng)
            shown = view.size if isinstance(step, RandomScale) else shown
            mirrored |= isinstance(step, RandomFlip) and view is not before
        return Delivered(view.pixels(), self.sampler(rng), shown, mirrored)

    def seen(self, image: Array, params: AppearanceParams) -> Array:
        """Return the (h, w, 3) uint8 colours that the network receives, with the normalisation undone."""
        colours = self.appearance.colours(to_tensor(image)[None], default_collate([params]))[0]  # (3, h, w)
        return colours.permute(1, 2, 0).numpy()


def build_pipeline(cfg: Config, *, tile: int) -> Pipeline:
    """Return the transforms of a run of this configuration, with the jitter of its method."""
    sampler = build_appearance_sampler(cfg, jitter=resolve_jitter(cfg))
    magnitude = resolve_method(cfg.NETWORK.METHOD, cfg.NETWORK.WT_LAYER).edge_magnitude
    return Pipeline(build_geometry(cfg), sampler, build_appearance(cfg), cfg.RUN.SEED, tile, magnitude)


def frame_cells(name: str, image: Array, label: Array, *, item: int, pipeline: Pipeline) -> list[Cell]:
    """Return the row of a frame, image (H, W, 3) and label (H, W), in the order of `COLUMNS`."""
    focus = pipeline.focus(label, item=item)
    start = make_view(image, label, focus=focus[1] if focus else None)
    view, params, shown, mirrored = pipeline.deliver(start, item=item)
    crop, target = view.image, view.label  # (h, w, 3), (h, w)
    edges = edge_target(to_tensor(crop)[None], magnitude=pipeline.edge_magnitude)[0].byte().numpy()  # (h, w)
    edges_are = "gradient magnitude" if pipeline.edge_magnitude else "|Sobel x|"
    ignored, present = float(np.mean(target >= NUM_CLASSES)), len(_classes(target))
    sigmas = {"Gaussian": params.sigma, "bilateral": params.bilateral}
    blur = next((f"{kind} blur, sigma {sigma:.2f}" for kind, sigma in sigmas.items() if sigma), "no blur")
    resized = f"scale {shown[0] / label.shape[1]:.2f}: {shown[0]}x{shown[1]}"
    cut = f"crop {crop.shape[1]}x{crop.shape[0]}{', mirrored' if mirrored else ''}"
    classes = f"{present} class{'' if present == 1 else 'es'}"
    return [
        Cell(_fit(image, FRAME), (name, f"{label.shape[1]}x{label.shape[0]}")),
        Cell(_overlaid(image, label, start, FRAME), (f"focus: {CLASS_NAMES[focus[0]] if focus else 'none'}",)),
        Cell(_overlaid(crop, target, view, CROP), (resized, cut)),
        Cell(_fit(pipeline.seen(crop, params), CROP), (f"jitter {'on' if params.jitter else 'off'}", blur)),
        Cell(colorize(_fit(target, CROP), palette=PALETTE), (classes, f"{ignored:.1%} ignored")),
        Cell(_fit(np.repeat(edges[..., None], 3, axis=2), CROP), (f"{edges_are}, 0 to 255",)),
    ]


def _classes(label: Array) -> set[int]:
    return {int(index) for index in np.unique(label) if index < NUM_CLASSES}


def _fit(array: Array, box: tuple[int, int]) -> Array:
    """Resize an image (H, W, 3) or a label (H, W) to fit into a box."""
    how = Image.Resampling.BICUBIC if array.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(ImageOps.contain(Image.fromarray(array), box, how))


def _overlaid(image: Array, label: Array, view: View, box: tuple[int, int]) -> Array:
    """Return image and label in one picture, with a cross at the focus of the view."""
    picture = Image.fromarray(overlay(_fit(image, box), _fit(label, box), palette=PALETTE))
    draw, factor = ImageDraw.Draw(picture), picture.width / image.shape[1]
    x, y = (round((value + 0.5) * factor) for value in view.focus or (0, 0))
    for colour, width in ((INK, 5), (PAPER, 2)) if view.focus is not None else ():
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            draw.line((x + 4 * dx, y + 4 * dy, x + 13 * dx, y + 13 * dy), fill=colour, width=width)
    return np.asarray(picture)


def render_sheet(title: str, rows: Sequence[Sequence[Cell]], *, classes: set[int]) -> Array:
    """Render title, column heads, rows and the legend of the classes that occur: (H', WIDTH, 3) uint8."""
    top_line = Image.new("RGB", (WIDTH, LINE + 2 * MARGIN), PAPER)
    ImageDraw.Draw(top_line).text((MARGIN, MARGIN), title, fill=INK, font=ImageFont.load_default(SIZE + 2))
    heads = [Cell(np.full((1, 1, 3), 255, np.uint8), (name,)) for name in COLUMNS]
    entries = [(CLASS_NAMES[index], PALETTE[index]) for index in sorted(classes)]
    below = legend([*entries, ("ignored", (0, 0, 0))], width=WIDTH, size=SIZE)
    return stacked([top_line, *map(_render_row, (heads, *rows)), below])


def _render_row(cells: Sequence[Cell]) -> Image.Image:
    font, left = ImageFont.load_default(SIZE), MARGIN
    height = max(cell.picture.shape[0] + len(cell.lines) * LINE for cell in cells) + 2 * MARGIN
    row = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(row)
    for cell, (width, _) in zip(cells, COLUMNS.values(), strict=True):
        row.paste(Image.fromarray(cell.picture), (left, 0))
        for number, text in enumerate(cell.lines):
            while font.getlength(text) > width:  # the end of a long file name tells more than its start
                text = f"...{text.removeprefix('...')[1:]}"
            draw.text((left, cell.picture.shape[0] + 2 + number * LINE), text, fill=INK, font=font)
        left += width + MARGIN
    return row


def browse(cfg: Config, domain: Domain, *, split: str, count: int) -> Array:
    """Return the contact sheet of `count` frames, evenly spread over a split of a domain."""
    pairs, augment = find_pairs(domain, split), cfg.AUGMENT
    count, rows, classes = min(count, len(pairs)), [], set[int]()
    pipeline = build_pipeline(cfg, tile=domain.tile if cfg.DATASET.CLASS_UNIFORM_PCT else 0)
    for item in (index * len(pairs) // count for index in range(count)):
        image, label = read_pair(pairs[item], encoding=domain.encoding)
        rows.append(frame_cells(Path(pairs[item].name).name, image, label, item=item, pipeline=pipeline))
        classes |= _classes(label)
    blur = "bilateral" if augment.BBLUR else "Gaussian" if augment.GBLUR else "no"
    title = (
        f"{domain.name}/{split}: {count} of {len(pairs)} frames. Crop {augment.CROP_SIZE}, scale {augment.SCALE_MIN:g} "
        f"to {augment.SCALE_MAX:g}, {resolve_jitter(cfg)} jitter with probability {augment.COLOR_AUG:g}, "
        f"{blur} blur, seed {cfg.RUN.SEED}"
    )
    return render_sheet(title, rows, classes=classes)


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    args.opts = [*(() if args.config else RECIPE), *args.opts]
    cfg = data_config(args)
    domains, is_file = chosen_domains(cfg, args.names), args.out.lower().endswith(".png")
    if args.count < 1:
        raise UserError(f"--count {args.count}: a sheet needs at least one frame")
    if is_file and len(domains) > 1:
        raise UserError(f"--out {args.out}: one file cannot hold {len(domains)} sheets; name a folder")
    for domain in domains:
        name = f"{domain.name}.png" if args.out else f"browse_{domain.name}.png"
        path = Path(args.out) if is_file else Path(args.out, name)
        save_png(browse(cfg, domain, split=args.split, count=args.count), path)
        sys.stdout.write(f"{domain.name}: {path}\n")


if __name__ == "__main__":
    run_entry_point(main)
