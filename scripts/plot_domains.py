"""`python -m scripts.plot_domains DOMAIN ... --weights WEIGHTS ...`: how far apart networks see domains."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.codec import read_photo
from datasets.splits import Splits
from scripts import chosen_domains, data_config, data_parser
from utils import format_table
from utils.errors import UserError, run_entry_point
from utils.pictures import Array, new_figure, render, save_png

if TYPE_CHECKING:
    from inference import Model
    from network import Segmentor

VIEWS = ("style: mean and deviation of each channel of stage 1", "content: mean of each channel of the last stage")
STILL = 0.01  # what moves less from image to image, in deviations within an image, does not move


def image_statistics(model: Model, network: Segmentor, image: Array) -> list[tuple[Array, Array]]:
    """Return the channels' means and deviations, (C,) each, of the first and the last stage for (H, W, 3) uint8."""
    import torch

    with torch.inference_mode():
        batch = torch.from_numpy(image).permute(2, 0, 1)[None].to(model.device)
        features = network.backbone(model.normalise(batch))
        both = [torch.std_mean(maps.float(), dim=(0, 2, 3)) for maps in (features.low_level, features.top)]
    return [(mean.cpu().numpy(), deviation.cpu().numpy() + 1e-12) for deviation, mean in both]


def views(domains: Sequence[Sequence[list[tuple[Array, Array]]]]) -> list[list[Array]]:
    """Return the vectors (N, D) of each domain per view; their unit is the first domain's mean and deviation.

    `domains` holds the statistics of each domain's images.
    """
    first, last = (  # per domain (2, N, C)
        [np.stack([stages[index] for stages in images], axis=1) for images in domains] for index in (0, 1)
    )
    unit = first[0][1].mean(0)
    style = [np.concatenate((mean / unit, np.log(deviation)), axis=1) for mean, deviation in first]
    content = [mean / last[0][1].mean(0) for mean, _ in last]
    return [_standardised(style), _standardised(content)]


def _standardised(vectors: Sequence[Array]) -> list[Array]:
    mean, deviation = vectors[0].mean(0), vectors[0].std(0)
    return [np.where(deviation > STILL, (values - mean) / deviation.clip(min=STILL), 0) for values in vectors]


def distance(first: Array, other: Array) -> float:
    """Return how far the mean of `other` (N, D) is from that of `first`, as root mean square over the channels."""
    return float(np.sqrt(np.mean((other.mean(0) - first.mean(0)) ** 2)))


def plot_vectors(found: dict[str, list[list[Array]]], domains: Sequence[str]) -> tuple[Array, list[list[str]]]:
    """Plot the first two principal components per network and view, and tabulate the distances from the first domain.

    Args:
        found: by network and view, the standardised vectors (N, D) of each domain.
    """
    figure = new_figure(max(3.6 * len(found), 6), 7.6)
    columns, table = figure.subplots(2, len(found), squeeze=False).T, [["network", "view", *domains[1:]]]
    for panels, (network, vectors_of_views) in zip(columns, found.items(), strict=True):
        for panel, view, vectors in zip(panels, VIEWS, vectors_of_views, strict=True):
            pooled = np.concatenate(vectors)
            _, _, axes = np.linalg.svd(pooled - pooled.mean(0), full_matrices=False)
            for name, values in zip(domains, vectors, strict=True):
                panel.scatter(*((values - pooled.mean(0)) @ axes[:2].T).T, s=14, alpha=0.7, label=name)
            distances = [f"{distance(vectors[0], values):.2f}" for values in vectors[1:]]
            table.append([network, view.partition(":")[0], *distances])
            panel.set_title(f"{network}\nfrom {domains[0]}: {', '.join(distances)}", fontsize=9)
            panel.set(xticks=[], yticks=[])
    for panel, view in zip(columns[0], VIEWS, strict=True):
        panel.set_ylabel(view.replace(": ", "\n"), fontsize=9)
    handles, labels = columns[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(domains), fontsize=9, frameon=False)
    return render(figure), table


def main(argv: Sequence[str] | None = None) -> None:
    parser = data_parser(
        "plot_domains",
        "Plot how far apart networks see the images of domains, and tabulate the distances from the first domain.",
        details="A distance of 1: the mean of a channel differs as much as the images of the first domain do.",
    )
    parser.add_argument("--weights", nargs="+", default=[], metavar="WEIGHTS", help="checkpoints, as for valid.py")
    parser.add_argument("--split", default="val", help="split that the images are from")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="images per domain, 0 for all")
    parser.add_argument("--out", default="domains.png", metavar="FILE.png", help="picture to write")
    args = parser.parse_args(argv)
    domains = chosen_domains(data_config(args), args.names)
    if len(domains) < 2:
        raise UserError("name at least two domains: the source first, then those to compare with it")
    if not args.weights:
        raise UserError("--weights: give one or several weight files")
    if not args.out.lower().endswith(".png"):
        raise UserError(f"--out {args.out}: the picture is a PNG file; end its name in .png")
    if args.limit < 0:
        raise UserError(f"--limit {args.limit}: give a number of images per domain, 0 for all")
    splits = Splits({domain.name: domain for domain in domains})
    chosen = [splits.open(domain, args.split, need_labels=False).subset(args.limit) for domain in domains]
    for split in chosen:
        if len(split.pairs) < 3:
            few = f"{len(split.pairs)} images of {split.domain.name}"
            raise UserError(f"{few}: at least 3 per domain are needed; take another --split, or a larger --limit")
    images = [[read_photo(pair.image) for pair in split.pairs] for split in chosen]
    found = {}
    for weights in args.weights:
        from inference import load  # slow to import
        from network import Segmentor

        model = load(weights)
        if not isinstance(model.network, Segmentor):
            raise UserError(f"--weights {weights}: a graph does not show its features; give the checkpoint")
        network = model.network
        run = f"{network.method.label} ({Path(weights).parent.parent.name or Path(weights).stem})"
        name = f"{network.method.label} ({weights})" if run in found else run
        found[name] = views([[image_statistics(model, network, image) for image in group] for group in images])
    picture, table = plot_vectors(found, [domain.name for domain in domains])
    sys.stdout.write(f"{format_table(table)}\n\n")  # first: what cannot be written is on the screen
    save_png(picture, Path(args.out))
    sys.stdout.write(f"picture: {args.out}\n")


if __name__ == "__main__":
    run_entry_point(main)
