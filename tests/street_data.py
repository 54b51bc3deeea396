"""Tiny street scenes in the true layouts and encodings of the domains, and a config that reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import config
from config import Config
from datasets.codec import write_label
from datasets.domains import BUILTIN
from datasets.labels import CITYSCAPES_PALETTE

SIZE = (40, 64)  # height, width
SIZES = {"cityscapes": (64, 128), "bdd100k": (45, 80), "gtav": (66, 120), "synthia": (48, 80), "mapillary": (60, 80)}
# Of parts of a data set, which have no folder of their own, tests/test_domains.py writes one with all of them.
ROOTS = {name: row.root_key.partition(".")[2] for name, row in BUILTIN.items() if not name.startswith("acdc_")}
TRAINABLE = [name for name in ROOTS if name != "darkzurich"]  # which has no labels for training
GTAV_PALETTE = np.frombuffer(CITYSCAPES_PALETTE, np.uint8).reshape(-1, 3)
CLASSES = {  # train ids that each domain's encoding can hold
    name: sorted({train for _, train in row.encoding.table} - {255}) for name, row in BUILTIN.items()
}
ROWS = {**BUILTIN, "bdd100k": replace(BUILTIN["bdd100k"], layouts=BUILTIN["bdd100k"].layouts[1:])}  # _train_id.png
STEMS = {
    "cityscapes": "aachen/aachen_{:05d}_000019",
    "gtav": "folder/{:05d}",
    "kitti": "{:06d}",
    "acdc": "fog/GOPR0475/GOPR0475_frame_{:06d}",
    "idd": "119/frame{:04d}",
    "darkzurich": "GOPR0356/GOPR0356_frame_{:06d}",
}


def blocks(seed: int, size: tuple[int, int] = SIZE, *, classes: list[int] | None = None, block: int = 8) -> np.ndarray:
    """Return train ids (H, W) uint8 in random blocks, some of them ignored."""
    rng = np.random.default_rng(seed)
    choices = np.array([*(classes or range(19)), 255])
    rows, columns = -(-size[0] // block), -(-size[1] // block)
    small = rng.choice(choices, size=(rows, columns))
    return np.kron(small, np.ones((block, block)))[: size[0], : size[1]].astype(np.uint8)


def paint(label: np.ndarray) -> np.ndarray:
    """Return an RGB image (H, W, 3) whose colours tell the train ids."""
    grey = np.where(label == 255, 0, 20 + 12 * label.astype(int))
    return np.stack((grey, 255 - grey, grey // 2), axis=-1).astype(np.uint8)


def save(path: Path, array: np.ndarray, *, palette: np.ndarray | None = None) -> Path:
    """Write an image file, JPEG by its suffix, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette.astype(np.uint8).tobytes())
    image.save(path, quality=95) if path.suffix == ".jpg" else image.save(path)
    return path


def save_label(path: Path, domain: str, label: np.ndarray) -> Path:
    """Write train ids as a built-in domain encodes them, with the folders of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label(str(path), label, encoding=BUILTIN[domain].encoding)
    return path


def write_pair(
    root: Path, domain: str, split: str, number: int, label: np.ndarray, *, image: np.ndarray | None = None
) -> None:
    """Write one pair of a built-in domain as the published data set has it; classes that it lacks are ignored."""
    if domain == "kitti" and split == "val":  # it is the same as train
        return
    image = paint(label) if image is None else image
    image_path, label_path = ROWS[domain].paths(split, STEMS.get(domain, "{:05d}").format(number))
    save(root / image_path, image)
    save_label(root / label_path, domain, np.where(np.isin(label, CLASSES[domain]), label, 255))
    if domain == "kitti":  # the stereo benchmark's second frame
        save(root / image_path.replace("_10.png", "_11.png"), image)


def mapillary_palette(*, road: int) -> np.ndarray:
    """Return a palette whose road colour is at an index: 13 in v1.2, 21 in v2.0."""
    palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    palette[road] = (128, 64, 128)
    return palette


def write_domain(root: Path, domain: str, *, train: int = 4, val: int = 2) -> list[np.ndarray]:
    """Write a small domain and return its training labels."""
    labels = []
    for split, count in (("train", train), ("val", val)):
        for number in range(count if split in dict(BUILTIN[domain].splits) else 0):
            seed = 100 * list(ROOTS).index(domain) + 10 * (split == "val") + number
            label = blocks(seed, SIZES.get(domain, SIZE), classes=CLASSES[domain])
            write_pair(root, domain, split, number, label)
            labels += [label] if split == "train" else []
    return labels


def make_cfg(folder: Path | None = None, **values: Any) -> Config:
    """Return the defaults of config.py, small and without data sets; `values` are leaves by name, roots as <NAME>_DIR.

    The leaves are set as they are: a builder also meets values that the command line refuses.
    """
    small = {"TRAIN": ["camvid"], "CLASS_UNIFORM_TILE": 32, "CENTROID_CACHE": f"{folder}/cache", "NUM_WORKERS": 0}
    small |= {"CROP_SIZE": 32, "COLOR_AUG": 0.5, "GBLUR": True, "DEVICE": "cpu", **dict.fromkeys(ROOTS.values(), "")}
    cfg = config.from_dict({})
    for name, value in {**small, **values}.items():
        section = next(section for section in cfg.values() if name in section)  # BATCH_SIZE: the one of OPTIM
        section[name] = value
    return cfg
