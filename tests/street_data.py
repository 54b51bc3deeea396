"""Tiny street scenes in the true layouts and encodings of the domains, and a config that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import config
from config import Config
from datasets.labels import CAMVID_IDS, CITYSCAPES_IDS, CITYSCAPES_LABELS, MAPILLARY_IDS, SYNTHIA_IDS

SIZE = (40, 64)  # height, width
SIZES = {"cityscapes": (64, 128), "bdd100k": (45, 80), "gtav": (66, 120), "synthia": (48, 80), "mapillary": (60, 80)}
ROOTS = {
    "cityscapes": "CITYSCAPES_DIR",
    "bdd100k": "BDD_DIR",
    "gtav": "GTAV_DIR",
    "synthia": "SYNTHIA_DIR",
    "mapillary": "MAPILLARY_DIR",
    "camvid": "CAMVID_DIR",
    "kitti": "KITTI_DIR",
}
GTAV_PALETTE = np.array([colour for colour, _ in CITYSCAPES_LABELS], dtype=np.uint8)
CLASSES = {  # train ids that each domain's encoding can hold
    "camvid": sorted(set(CAMVID_IDS.values()) - {255}),
    "synthia": sorted(set(SYNTHIA_IDS.values()) - {255}),
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


def inverse(table: dict[int, int]) -> np.ndarray:
    """Return (256,) raw ids by train id: the first raw id of each."""
    raw = np.zeros(256, dtype=np.uint16)
    for key, train in sorted(table.items(), reverse=True):
        raw[train] = key
    return raw


def save(path: Path, array: np.ndarray, *, palette: np.ndarray | None = None) -> Path:
    """Write an image file, JPEG by its suffix, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette.astype(np.uint8).tobytes())
    image.save(path, quality=95) if path.suffix == ".jpg" else image.save(path)
    return path


def save_synthia(path: Path, raw: np.ndarray) -> Path:
    """Write a 16-bit RGB label: class in red, instance in green."""
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    channels = np.stack((np.zeros_like(raw), np.full_like(raw, 300), raw), axis=-1)  # blue, green, red
    assert cv2.imwrite(str(path), channels.astype(np.uint16))
    return path


def write_pair(root: Path, domain: str, split: str, number: int, label: np.ndarray) -> None:
    """Write one pair of a built-in domain where and how the published data set has it."""
    image, name = paint(label), f"{number:05d}"
    if domain == "cityscapes":
        stem = f"{split}/aachen/aachen_{name}_000019"
        save(root / f"leftImg8bit_trainvaltest/leftImg8bit/{stem}_leftImg8bit.png", image)
        save(
            root / f"gtFine_trainvaltest/gtFine/{stem}_gtFine_labelIds.png",
            inverse(CITYSCAPES_IDS)[label].astype(np.uint8),
        )
    elif domain == "bdd100k":
        save(root / f"images/{split}/{name}.jpg", image)
        save(root / f"labels/{split}/{name}_train_id.png", label)
    elif domain == "gtav":
        folder = {"val": "valid"}.get(split, split)
        save(root / f"images/{folder}/folder/{name}.png", image)
        raw = inverse(CITYSCAPES_IDS)[label].astype(np.uint8)
        save(root / f"labels/{folder}/folder/{name}.png", raw, palette=GTAV_PALETTE)
    elif domain == "synthia":
        save(root / f"RGB/{split}/{name}.png", image)
        save_synthia(root / f"GT/LABELS/{split}/{name}.png", inverse(SYNTHIA_IDS)[label])
    elif domain == "mapillary":
        folder = {"train": "training", "val": "validation"}[split]
        save(root / f"{folder}/images/{name}.jpg", image)
        raw = inverse(MAPILLARY_IDS)[label].astype(np.uint8)
        save(root / f"{folder}/labels/{name}.png", raw, palette=mapillary_palette(road=13))
    elif domain == "kitti":
        if split == "train":  # val is the same
            save(root / f"training/image_2/{number:06d}_10.png", image)
            save(root / f"training/image_2/{number:06d}_11.png", image)  # the stereo benchmark's second frame
            save(root / f"training/semantic/{number:06d}_10.png", inverse(CITYSCAPES_IDS)[label].astype(np.uint8))
    else:
        save(root / f"{split}/{name}.png", image)
        save(root / f"{split}annot/{name}.png", inverse(CAMVID_IDS)[label].astype(np.uint8))


def mapillary_palette(*, road: int) -> np.ndarray:
    """Return a palette whose road colour is at an index: 13 in v1.2, 21 in v2.0."""
    palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    palette[road] = (128, 64, 128)
    return palette


def write_domain(root: Path, domain: str, *, train: int = 4, val: int = 2) -> list[np.ndarray]:
    """Write a small domain and return its training labels."""
    labels = []
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            seed = 100 * list(ROOTS).index(domain) + 10 * (split == "val") + number
            label = blocks(seed, SIZES.get(domain, SIZE), classes=CLASSES.get(domain))
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
