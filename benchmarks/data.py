"""Time the data path on one core: `python benchmarks/data.py [--runs 15] [ROW ...]`; prints Markdown tables.

Every row times our code and a straightforward implementation of the same work in turn, run by run, and gives medians;
both samples make the same random draws, of which the mean says more (take --runs 60).
The straightforward one (`straightforward.py`) resizes whole frames, compares colour by colour and loops over classes.
The frames are drawn here, GTAV-sized PNG pairs. The last columns are the original's figure (another machine) and the
goal.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch start their threads
import cv2
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from straightforward import CROP, plain_borders, plain_centroids, plain_counts, plain_label, plain_sample

import config
from datasets.codec import DECODERS, ENCODINGS, decode_label, read_image
from datasets.domains import BUILTIN
from datasets.frames import FrameCache
from datasets.labels import CITYSCAPES_LABELS, NUM_CLASSES
from datasets.loaders import choose_workers
from datasets.sampling import (
    EpochPlan,
    GlobalBatches,
    Pick,
    Source,
    class_centroids,
    sample_rng,
    source_centroids,
)
from datasets.segmentation import TrainingSet, read_pair
from datasets.splits import Pair, Split, find_pairs
from evaluation.metrics import argmax_classes, confusion_matrix
from loss.borders import neighbour_classes
from transforms.appearance import AppearanceDraws
from transforms.build import JITTER_STRENGTHS, build_appearance, build_draws, build_geometry
from transforms.edges import edge_target
from utils.logs import write_line
from utils.tables import format_table

REPOSITORY = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 1914, 1052
FRAMES = 6  # pairs that a row goes through in turn
Work = Callable[[], object]


class Row(NamedTuple):
    """What is timed: set-ups of the straightforward work (None: there is none) and of ours, the original, the goal."""

    plain: Callable[[], Work] | None
    ours: Callable[[], Work]
    original: str
    goal: str


def draw_pair(folder: Path, number: int) -> Pair:
    """Write a GTAV-sized pair: smooth fields, two fifths grainy (2.1 MB, as a frame of the game), a palette label."""
    rng = np.random.default_rng(number)
    fields = [cv2.resize(rng.normal(0, 40, (HEIGHT // side, WIDTH // side)), (WIDTH, HEIGHT)) for side in (120, 30, 8)]
    rough = cv2.resize(rng.random((HEIGHT // 40, WIDTH // 40)), (WIDTH, HEIGHT)) < 0.4
    grain = rng.normal(0, 6, (HEIGHT, WIDTH, 1)) + rng.normal(0, 2, (HEIGHT, WIDTH, 3))
    image = np.round(110 + sum(fields) / 2)[..., None] + np.array([4, 0, -6]) + rough[..., None] * grain
    blobs = cv2.resize(rng.normal(0, 1, (HEIGHT // 40, WIDTH // 40, 34)), (WIDTH, HEIGHT)).argmax(axis=2)
    label = Image.fromarray((blobs + 1).astype(np.uint8))
    label.putpalette(np.array([colour for colour, _ in CITYSCAPES_LABELS[:35]], dtype=np.uint8).tobytes())
    paths = [folder / kind / "train" / "01" / f"{number:05d}.png" for kind in ("images", "labels")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(paths[0])
    label.save(paths[1])
    return Pair(str(paths[0]), str(paths[1]), paths[0].name)


def plain_samples(pairs: list[Pair]) -> Callable[[], Work]:
    """Return the set-up of the straightforward training sample."""

    def setup() -> Work:
        draws, numbers = AppearanceDraws(0.5, JITTER_STRENGTHS["diia"], blur=True), count()

        def work() -> object:
            number = next(numbers)
            return plain_sample(pairs[number % FRAMES], draws, sample_rng(0, number))

        return work

    return setup


def samples(pairs: list[Pair], cache: FrameCache | None) -> Callable[[], Work]:
    """Return the set-up of our training sample, from PNG or from decoded frames."""

    def setup() -> Work:
        cfg = config.parse(["--crop_size", str(CROP), "--gblur", "--color_aug", "0.5"], program="train")
        source = Split(BUILTIN["gtav"], "train", tuple(pairs))
        draws, appearance, numbers = build_draws(cfg, jitter="diia"), build_appearance(cfg), count()
        data = TrainingSet([source], geometry=build_geometry(cfg), draws=draws, seed=0, cache=cache)
        for pair in pairs if cache is not None else ():
            read_pair(pair, encoding=source.encoding, cache=cache)

        def work() -> None:
            number = next(numbers)
            found = data[Pick(number % len(pairs), number)]
            images = found.image[None]
            edge_target(images), appearance(images, found.draws[None])

        return work

    return setup


def linked_frames(root: Path, pair: Pair, *, images: int = 12_000) -> Path:
    """Return a folder of GTAV with that many training pairs and one for validation, all links to one pair."""
    folder = root / "gtav"
    for kind, source in (("images", pair.image), ("labels", pair.label)):
        for split, number in (("train", images), ("valid", 1)):
            (folder / kind / split / "01").mkdir(parents=True, exist_ok=True)
            for index in range(number if not (folder / kind / split / "01" / "00000.png").exists() else 0):
                os.link(source, folder / kind / split / "01" / f"{index:05d}.png")
    return folder


def start(root: Path, pair: Pair) -> Callable[[], Work]:
    """Return the set-up of a run's start: list the files, read the warm centroid cache, plan an epoch."""

    def setup() -> Work:
        domain = replace(BUILTIN["gtav"], root=str(linked_frames(root, pair)))
        folder, workers = str(root / "cache"), choose_workers(-1)

        def work() -> None:
            found = find_pairs(domain, "train")
            rows = source_centroids(
                found, encoding=domain.encoding, tile=1024, name="gtav", cache_dir=folder, workers=workers
            )
            batches = GlobalBatches(EpochPlan((Source(len(found), rows),), 304, fraction=0.5), batch_size=8)
            next(iter(batches))

        return work

    return setup


UNTIL_FIRST_BATCH = """
import sys, train

def stop(run, meter, batches):
    assert len(batches[0].names) == 8
    sys.exit(0)

train.train_step = stop
train.main(sys.argv[1:])
"""


def first_batch(root: Path, pair: Pair) -> Callable[[], Work]:
    """Return the set-up of train.py itself, from the command to the first batch, and its exit."""

    def setup() -> Work:
        flags = f"--dataset gtav --val_dataset gtav --pretrained none --bs_mult 8 --crop_size {CROP} --gblur"
        flags += f" --color_aug 0.5 --class_uniform_pct 0.5 --centroid_cache {root / 'cache'}"
        flags += f" --ckpt {root} --tb_path {root}"
        opts = ["--opts", f"DATASET.GTAV_DIR={linked_frames(root, pair)}"]
        command = [sys.executable, "-c", UNTIL_FIRST_BATCH, *flags.split(), *opts]
        return partial(subprocess.run, command, cwd=REPOSITORY, check=True, capture_output=True)

    return setup


def make_rows(root: Path) -> dict[str, Row]:
    """Return the rows by name."""
    pairs = [draw_pair(root, number) for number in range(FRAMES)]
    encoding, cache = ENCODINGS["cityscapes_colours"], FrameCache(root / "frames")
    generator = torch.Generator().manual_seed(0)
    label = decode_label(pairs[0].label, encoding=encoding)
    crop = torch.from_numpy(label[:CROP, :CROP].copy())[None]
    logits = torch.randn(1, NUM_CLASSES, 1024, 2048, generator=generator)
    truth = torch.randint(0, NUM_CLASSES, (1, 1024, 2048), generator=generator).byte()
    turns = [count(), count()]

    def pair_of(turn: int) -> Pair:
        return pairs[next(turns[turn]) % FRAMES]

    rows = {
        "sample from PNG": Row(plain_samples(pairs), samples(pairs, None), "694 ms", "60 ms"),
        "sample from the cache": Row(plain_samples(pairs), samples(pairs, cache), "694 ms", "15 ms"),
        "class centroids, decoding included": Row(
            lambda: lambda: plain_centroids(plain_label(pair_of(0).label)),
            lambda: lambda: class_centroids(decode_label(pair_of(1).label, encoding=encoding), tile=1024),
            "632 ms",
            "12 ms",
        ),
        "border-relaxed labels, 768 crop": Row(
            lambda: lambda: plain_borders(crop[0].numpy()),
            lambda: lambda: neighbour_classes(crop, num_classes=NUM_CLASSES),
            "335 ms",
            "5 ms",
        ),
        "argmax and confusion matrix, 1024x2048": Row(
            lambda: lambda: plain_counts(logits[0].numpy(), truth[0].numpy()),
            lambda: lambda: confusion_matrix(truth, argmax_classes(logits), num_classes=NUM_CLASSES),
            "79 ms",
            "25 ms",
        ),
        "start on 12,000 images, caches warm": Row(None, start(root, pairs[0]), "-", "1000 ms"),
        "first batch on 12,000 images, from the command": Row(None, first_batch(root, pairs[0]), "-", "10000 ms"),
    }
    return rows | decoding_rows(pairs[0])


def decoding_rows(pair: Pair) -> dict[str, Row]:
    """Return the rows of decoding a label and, by each decoder, an image."""
    rows = {
        "label decoding": Row(
            lambda: lambda: plain_label(pair.label),
            lambda: lambda: decode_label(pair.label, encoding=ENCODINGS["cityscapes_colours"]),
            "564 ms",
            "-",
        )
    }
    for name, decode in decoders().items():
        rows[f"image decoding, {name}"] = Row(
            lambda: lambda: np.asarray(Image.open(pair.image).convert("RGB")),
            partial(partial, partial(decode, pair.image)),
            "60 ms",
            "-",
        )
    return rows


def decoders() -> dict[str, Callable[[str], object]]:
    """Return the decoders that `read_image` knows, and two that it does not."""
    import imageio.v3
    from torchvision.io import ImageReadMode, decode_image, read_file

    found: dict[str, Callable[[str], object]] = {name: partial(read_image, decoder=name) for name in DECODERS}
    found["torchvision"] = lambda path: decode_image(read_file(path), ImageReadMode.RGB)
    found["imageio"] = imageio.v3.imread
    return found


def processor_time() -> float:
    """Return the seconds that cores have spent on this process and on its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def measure(row: Row, *, runs: int, clock: Callable[[], float]) -> list[list[float]]:
    """Return the milliseconds of each variant, sorted; they take turns, and the first two runs are not counted."""
    works = [setup() for setup in (row.plain, row.ours) if setup is not None]
    taken: list[list[float]] = [[] for _ in works]
    for run in range(runs + 2):
        for work, list_ in zip(works, taken, strict=True):
            before = clock()
            work()
            if run >= 2:
                list_.append(1000 * (clock() - before))
    return [sorted(values) for values in taken]


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description="Time the data path on one core.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="beginnings of names; all by default")
    parser.add_argument("--runs", type=int, default=15, help="counted runs of each variant (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (%(default)s)")
    parser.add_argument("--cpu", action="store_true", help="count processor time: for a machine that others use too")
    given = parser.parse_args()
    clock = processor_time if given.cpu else time.perf_counter
    torch.set_num_threads(given.threads)
    cv2.setNumThreads(1)
    table = [["work", "straightforward", "ours", "mean of ours", "slowest", "ratio", "original", "goal"]]
    with tempfile.TemporaryDirectory() as folder:
        for name, row in make_rows(Path(folder)).items():
            if given.rows and not name.startswith(tuple(given.rows)):
                continue
            *plain, ours = measure(row, runs=given.runs, clock=clock)
            middle = ours[len(ours) // 2]
            reference = plain[0][len(plain[0]) // 2] if plain else None
            compared = [f"{reference:.1f} ms", f"{reference / middle:.1f}"] if reference else ["-", "-"]
            spread = [f"{value:.1f} ms" for value in (middle, sum(ours) / len(ours), ours[-1])]
            table.append([name, compared[0], *spread, compared[1], *row[2:]])
    write_line(format_table(table, "markdown"))


if __name__ == "__main__":
    main()
