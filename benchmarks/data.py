"""Time the data path on one core: `python -m benchmarks.data [--runs 15] [ROW ...]`.

Every row times our code and a straightforward implementation of the same work in turn; both take the same random
numbers, so the work differs from run to run and the mean says more than the median (take --runs 60). What a loader's
worker does (decode, resample, crop, flip) and what the device does (colour, blur, normalisation, edges) are rows of
their own. The frames are made here, GTAV-sized PNG pairs. The original's figures come from another machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from functools import partial
from itertools import count, cycle
from pathlib import Path

import cv2
import imageio.v3
import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.io import ImageReadMode, decode_image, read_file

import config
from benchmarks import Row, Work, make_parser, repeated, report, straightforward
from datasets.codec import DECODERS, ENCODINGS, decode_label, read_image
from datasets.domains import BUILTIN
from datasets.frames import FrameCache
from datasets.labels import CITYSCAPES_LABELS, NUM_CLASSES
from datasets.sampling import Pick, class_centroids, sample_rng
from datasets.segmentation import TrainingSet
from datasets.splits import Pair, Split
from evaluation.metrics import argmax_classes, confusion_matrix
from loss.terms import neighbour_classes
from transforms.appearance import AppearanceParams, edge_target
from transforms.build import build_appearance, build_appearance_sampler, build_geometry
from utils.parallel import opencv

CROP = straightforward.CROP
WIDTH, HEIGHT = 1914, 1052
FRAMES = 6  # pairs that a row goes through in turn
ENCODING = ENCODINGS["cityscapes_colours"]


def make_pair(folder: Path, number: int) -> Pair:
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


def sample_rows(pairs: list[Pair], root: Path) -> dict[str, Row]:
    """Return the rows of the worker's part, from PNG, a zip and decoded frames, and of the device's part."""
    cfg = config.parse(["--crop_size", str(CROP), "--gblur", "--color_aug", "0.5"], program="train")
    sampler, appearance = build_appearance_sampler(cfg, jitter="diia"), build_appearance(cfg)
    frame, archive = read_image(pairs[0].image)[:CROP, :CROP], root / "frames.zip"
    batch, image = torch.from_numpy(frame).permute(2, 0, 1)[None].contiguous(), Image.fromarray(frame)
    with zipfile.ZipFile(archive, "w") as file:
        for path in (path for pair in pairs for path in pair[:2]):
            file.write(path, Path(path).relative_to(root))
    parts = [[path.replace(str(root), str(archive)) for path in pair[:2]] for pair in pairs]
    zipped = [Pair(image_path, label_path, Path(image_path).name) for image_path, label_path in parts]

    def ours(read: list[Pair], cache: FrameCache | None = None) -> Work:
        source = Split(BUILTIN["gtav"], "train", tuple(read))
        data = TrainingSet([source], geometry=build_geometry(cfg), sampler=sampler, seed=0, cache=cache)
        for item in range(FRAMES if cache else 0):
            data[Pick(item, item)]  # writes the frame
        for run in count():
            yield data[Pick(run % FRAMES, run)]

    def plain() -> Work:
        return (straightforward.crop(pairs[run % FRAMES], sample_rng(0, run)) for run in count())

    def params() -> Iterator[AppearanceParams]:
        return (sampler(sample_rng(1, run)) for run in count())

    on_device = ((edge_target(batch), appearance(batch, default_collate([sampled]))) for sampled in params())
    plainly = (straightforward.appearance(image, sampled) for sampled in params())
    return {
        "worker: sample from PNG": Row(ours(pairs), plain()),
        "worker: sample from PNG in a zip archive": Row(ours(zipped), plain()),
        "worker: sample from the cache": Row(ours(pairs, FrameCache(root / "frames")), plain()),
        "device: appearance and edges of one crop": Row(on_device, plainly),
    }


def label_rows(pairs: list[Pair]) -> dict[str, Row]:
    """Return the rows of what is computed from labels and logits."""
    generator = torch.Generator().manual_seed(0)
    crop = torch.from_numpy(decode_label(pairs[0].label, encoding=ENCODING)[:CROP, :CROP].copy())[None]
    logits = torch.randn(1, NUM_CLASSES, 1024, 2048, generator=generator)
    truth = torch.randint(0, NUM_CLASSES, (1, 1024, 2048), generator=generator).byte()

    paths, decode = [pair.label for pair in pairs], partial(decode_label, encoding=ENCODING)
    centroids = (class_centroids(decode(path), tile=1024) for path in cycle(paths))
    plain_centroids = (straightforward.centroids(straightforward.train_ids(path)) for path in cycle(paths))
    counts = (confusion_matrix(truth, argmax_classes(logits), num_classes=NUM_CLASSES) for _ in count())
    borders = repeated(neighbour_classes, crop, num_classes=NUM_CLASSES)
    plain_borders = repeated(straightforward.borders, crop[0].numpy())
    plain_counts = repeated(straightforward.counts, logits[0].numpy(), truth[0].numpy())
    return {
        "label decoding": Row(map(decode, cycle(paths)), map(straightforward.train_ids, cycle(paths)), "564 ms"),
        "class centroids, decoding included": Row(centroids, plain_centroids, "632 ms", "12 ms"),
        "border-relaxed labels, 768 crop": Row(borders, plain_borders, "335 ms", "5 ms"),
        "argmax and confusion matrix, 1024x2048": Row(counts, plain_counts, "79 ms", "25 ms"),
    }


UNTIL_FIRST_BATCH = """
import sys, train

def stop(run, meter, batches):
    assert len(batches[0].names) == 8
    sys.exit(0)

train.train_step = stop
train.main(sys.argv[1:])
"""


def first_batch(root: Path, pair: Pair, *, images: int = 12_000) -> Work:
    """Run train.py itself on a folder of links to one pair, from the command to the first batch."""
    for kind, source in (("images", pair.image), ("labels", pair.label)):
        for split, number in (("train", images), ("valid", 1)):
            folder = root / "gtav" / kind / split / "01"
            folder.mkdir(parents=True)
            for index in range(number):
                os.link(source, folder / f"{index:05d}.png")
    flags = f"--dataset gtav --val_dataset gtav --pretrained none --bs_mult 8 --crop_size {CROP} --gblur "
    flags += f"--color_aug 0.5 --class_uniform_pct 0.5 --centroid_cache {root}/cache --ckpt {root} --tb_path {root} "
    flags += f"--opts DATASET.GTAV_DIR={root}/gtav"
    command, folder = [sys.executable, "-c", UNTIL_FIRST_BATCH, *flags.split()], Path(__file__).resolve().parents[1]
    yield from repeated(subprocess.run, command, cwd=folder, check=True, capture_output=True)


if __name__ == "__main__":
    args = make_parser("data", "Time the data path on one core.", runs=15, threads=1).parse_args()
    opencv()  # one thread
    with tempfile.TemporaryDirectory() as name:
        pairs = [make_pair(Path(name), number) for number in range(FRAMES)]
        rows = sample_rows(pairs, Path(name)) | label_rows(pairs)
        path, start = pairs[0].image, "first batch on 12,000 images, from the command, caches warm"
        decoders = {kind: repeated(read_image, path, decoder=kind) for kind in DECODERS}  # ours, and two others
        decoders["torchvision"] = (decode_image(read_file(path), ImageReadMode.RGB) for _ in count())
        decoders["imageio"] = repeated(imageio.v3.imread, path)
        rows |= {f"image decoding, {kind}": Row(work, None, "60 ms") for kind, work in decoders.items()}
        report({**rows, start: Row(first_batch(Path(name), pairs[0]), goal="10000 ms")}, args)
