"""The works of `python -m benchmarks` on the data path, on one core: worker, labels, decoders, start.

Plain is a straightforward implementation of the same work (benchmarks.plain). Both take the same random numbers, so the
work differs from run to run and the mean says more than the median (take --runs 60). What a loader's worker does
(decode, resample, crop, flip) and what the device does (colour, blur, normalisation, edges) are rows of their own. The
frames are made here, GTAV-sized PNG pairs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
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
from benchmarks import Build, Row, Work, plain, repeated
from datasets.codec import DECODERS, ENCODINGS, decode_label, read_image
from datasets.domains import BUILTIN
from datasets.labels import CITYSCAPES_LABELS, NUM_CLASSES
from datasets.sampling import Pick, class_centroids, sample_rng
from datasets.segmentation import FrameCache, TrainingSet
from datasets.splits import Pair, Split
from evaluation.metrics import argmax_classes, confusion_matrix
from loss.terms import neighbour_classes
from transforms import build_appearance, build_appearance_sampler, build_geometry
from transforms.appearance import edge_target
from utils import REPOSITORY
from utils.parallel import opencv

CROP = plain.CROP
WIDTH, HEIGHT = 1914, 1052
FRAMES = 6  # pairs that a row goes through in turn
ENCODING = ENCODINGS["cityscapes_colours"]
FLAGS = ("--crop_size", str(CROP), "--gblur", "--color_aug", "0.5")


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


def sample(pairs: list[Pair], *, cache: FrameCache | None = None) -> Work:
    """What a worker does for one image: decode, scale, crop, flip; with a cache from its decoded frames."""
    cfg = config.parse(FLAGS, program="train")
    source = Split(BUILTIN["gtav"], "train", tuple(pairs))
    sampler = build_appearance_sampler(cfg, jitter="diia")
    data = TrainingSet([source], geometry=build_geometry(cfg), sampler=sampler, seed=0, cache=cache)
    for item in range(FRAMES if cache else 0):
        data[Pick(item, item)]  # writes the frame
    for run in count():
        yield data[Pick(run % FRAMES, run)]


def plain_sample(pairs: list[Pair]) -> Work:
    return (plain.crop(pairs[run % FRAMES], sample_rng(0, run)) for run in count())


def zipped(pairs: list[Pair], root: Path) -> list[Pair]:
    """Write the pairs into an archive and return them there."""
    archive = root / "frames.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (path for pair in pairs for path in pair[:2]):
            file.write(path, Path(path).relative_to(root))
    parts = [[path.replace(str(root), str(archive)) for path in pair[:2]] for pair in pairs]
    return [Pair(image, label, Path(image).name) for image, label in parts]


def colour(pair: Pair, *, plainly: bool = False) -> Work:
    """What the device does for one crop: colour, blur, normalisation, edges."""
    cfg = config.parse(FLAGS, program="train")
    sampler, appearance = build_appearance_sampler(cfg, jitter="diia"), build_appearance(cfg)
    frame = read_image(pair.image)[:CROP, :CROP]
    batch, image = torch.from_numpy(frame).permute(2, 0, 1)[None].contiguous(), Image.fromarray(frame)
    for params in (sampler(sample_rng(1, run)) for run in count()):
        if plainly:
            yield plain.appearance(image, params)
        else:
            yield edge_target(batch), appearance(batch, default_collate([params]))


def label_counts(*, plainly: bool = False) -> Work:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, NUM_CLASSES, 1024, 2048, generator=generator)
    truth = torch.randint(0, NUM_CLASSES, (1, 1024, 2048), generator=generator).byte()
    if plainly:
        return (plain.counts(logits[0].numpy().argmax(axis=0), truth[0].numpy()) for _ in count())
    return (confusion_matrix(truth, argmax_classes(logits), num_classes=NUM_CLASSES) for _ in count())


def data_rows(pairs: list[Pair]) -> dict[str, Row]:
    """Return the rows of colour, of what is computed from labels and logits, and of decoders."""
    paths, decode = [pair.label for pair in pairs], partial(decode_label, encoding=ENCODING)
    crop = torch.from_numpy(decode(paths[0])[:CROP, :CROP].copy())[None]

    def centroids() -> Work:
        return (class_centroids(decode(path), tile=1024) for path in cycle(paths))

    def plain_centroids() -> Work:
        return (plain.centroids(plain.train_ids(path)) for path in cycle(paths))

    borders = partial(repeated, neighbour_classes, crop, num_classes=NUM_CLASSES)
    plain_borders = partial(repeated, plain.borders, crop[0].numpy())
    plain_labels = partial(map, plain.train_ids, cycle(paths))
    rows: dict[str, tuple[Build, Build]] = {
        "data: colour, blur, normalisation, edges of one crop": (
            partial(colour, pairs[0]),
            partial(colour, pairs[0], plainly=True),
        ),
        "data: label decoding": (partial(map, decode, cycle(paths)), plain_labels),
        "data: class centroids, decoding included": (centroids, plain_centroids),
        "data: border-relaxed labels, 768 crop": (borders, plain_borders),
        "data: argmax and confusion matrix, 1024x2048": (label_counts, partial(label_counts, plainly=True)),
    }
    path = pairs[0].image
    readers: dict[str, Callable[[], object]] = {kind: partial(read_image, path, decoder=kind) for kind in DECODERS}
    readers["torchvision"] = lambda: decode_image(read_file(path), ImageReadMode.RGB)
    readers["imageio"] = partial(imageio.v3.imread, path)
    decoders = {
        f"data: image decoding, {kind}": Row(partial(repeated, read), threads=1) for kind, read in readers.items()
    }
    return {name: Row(*works, threads=1) for name, works in rows.items()} | decoders


UNTIL_FIRST_BATCH = """
import sys, train

def stop(run, meter, batches):
    assert len(batches[0].names) == 8
    sys.exit(0)

train.train_step = stop
train.main(sys.argv[1:])
"""


def first_batch(root: Path, pair: Pair, *, images: int) -> Work:
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
    return command("-c", UNTIL_FIRST_BATCH, *flags.split())


def command(*args: str) -> Work:
    """Run python in the repository."""
    return repeated(subprocess.run, [sys.executable, *args], cwd=REPOSITORY, check=True, capture_output=True)


def make_rows(root: Path, *, tiny: bool) -> dict[str, Row]:
    """Return the rows of these works, whose frames are written below a folder."""
    opencv()  # one thread
    pairs, images = [make_pair(root, number) for number in range(FRAMES)], 16 if tiny else 12_000
    plainly, cached = partial(plain_sample, pairs), partial(sample, pairs, cache=FrameCache(root / "frames"))
    first = partial(first_batch, root, pairs[0], images=images)
    return {
        "worker: sample from PNG": Row(partial(sample, pairs), plainly, threads=1),
        "worker: sample from PNG in a zip archive": Row(partial(sample, zipped(pairs, root)), plainly, threads=1),
        "worker: sample from the cache": Row(cached, plainly, threads=1),
        **data_rows(pairs),
        "startup: train.py --help, processor time": Row(partial(command, "train.py", "--help"), processor_time=True),
        f"startup: command to first batch of 8, {images} images, caches warm": Row(first),
    }
