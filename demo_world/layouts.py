"""Where each of the five data sets keeps its files, how it names them, and how it encodes its labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from datasets import labels
from demo_world.painter import Array

# Colours of the 66 classes of Mapillary Vistas v1.2, by id.
_MAPILLARY_COLOURS = bytes.fromhex(
    "a52a2a00c000c4c4c4be9999b4a5b45a789666669c8040ff8c8cc8aaaaaafaaaa0606060e6968c8040806e6e6ef423e8966464464646"
    "96785adc143cff0000ff0064ff00c8c88080ffffff40aa40e6a0324682b4beffff98fb986b8e2300aa1effff80fa001e648cb4dcdcdc"
    "dc8080de282864aa1e2828282121216480a08e0000466496d2aa6499999980808000 0050faaa1ec0c0c0dcdc008c8c14770b209600ff"
    "003c6400008e00005a0000e60050648040 4000006e0000460000c0202020780a0a000000".replace(" ", "")
)


@dataclass(frozen=True)
class Target:
    """How one domain lies on disk; `shapes` are its frames' sizes as shares of height and width, in turn."""

    folder: str
    paths: Callable[[str, int], tuple[str, str]]  # split, index -> image and label relative to the folder
    ids: Mapping[int, int]  # raw id -> train id, from the decoding tables
    void: int
    write_label: Callable[[str, Array], None]  # path, raw ids (H, W) uint8
    shapes: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    preferred: tuple[int, ...] = ()  # raw ids to take where several mean the same class

    def encode(self, label: Array) -> Array:
        """Map train ids (H, W) to raw ids, uint8."""
        table = np.full(256, self.void, np.uint8)
        for raw in (*sorted(self.ids, reverse=True), *self.preferred):
            if self.ids[raw] != labels.IGNORE:
                table[self.ids[raw]] = raw
        return np.asarray(table[label])


def _hashed(index: int, split: str, length: int) -> str:
    return hashlib.sha256(f"{split} {index}".encode()).hexdigest()[:length]


def _gtav_paths(split: str, index: int) -> tuple[str, str]:
    folder, number = {"train": ("train", index + 1), "val": ("valid", index + 20001)}[split]  # one name, one frame
    name = f"{folder}/{index // 16 + 1:02d}/{number:05d}.png"
    return f"images/{name}", f"labels/{name}"


def _cityscapes_paths(split: str, index: int) -> tuple[str, str]:
    cities = {"train": ("aachen", "bremen", "cologne"), "val": ("frankfurt", "munster")}[split]
    city = cities[index % len(cities)]
    stem = f"{split}/{city}/{city}_{index:06d}_000019"
    return (
        f"leftImg8bit_trainvaltest/leftImg8bit/{stem}_leftImg8bit.png",
        f"gtFine_trainvaltest/gtFine/{stem}_gtFine_labelIds.png",
    )


def _bdd_paths(split: str, index: int) -> tuple[str, str]:
    name = f"{split}/{_hashed(index, split, 8)}-{_hashed(index, split + ' clip', 8)}"
    return f"images/{name}.jpg", f"labels/{name}.png"


def _synthia_paths(split: str, index: int) -> tuple[str, str]:
    number = index + {"train": 0, "val": 6580}[split]
    return f"RGB/{split}/{number:07d}.png", f"GT/LABELS/{split}/{number:07d}.png"


def _mapillary_paths(split: str, index: int) -> tuple[str, str]:
    folder, name = {"train": "training", "val": "validation"}[split], _hashed(index, split, 22)
    return f"{folder}/images/{name}.jpg", f"{folder}/labels/{name}.png"


def _write_grey(path: str, raw: Array) -> None:
    from PIL import Image

    Image.fromarray(raw).save(path)


def _write_palette(path: str, raw: Array, colours: bytes) -> None:
    from PIL import Image

    image = Image.fromarray(raw).convert("L")
    image.putpalette(colours)  # turns L into P without touching the indices
    image.save(path)


def _write_gtav(path: str, raw: Array) -> None:
    _write_palette(path, raw, bytes(channel for colour, _ in labels.CITYSCAPES_LABELS for channel in colour))


def _write_mapillary(path: str, raw: Array) -> None:
    _write_palette(path, raw, _MAPILLARY_COLOURS.ljust(768, b"\0"))


def _write_synthia(path: str, raw: Array) -> None:
    """Write 16-bit RGB: red holds the class, green would hold the instance."""
    import cv2

    pixels = np.zeros((*raw.shape, 3), np.uint16)
    pixels[..., 2] = raw  # OpenCV's order is BGR
    if not cv2.imwrite(path, pixels):
        raise OSError(f"{path}: could not be written")


TARGETS: dict[str, Target] = {
    "gtav": Target("GTAV", _gtav_paths, labels.CITYSCAPES_IDS, 0, _write_gtav, ((1.1, 1.0),)),
    "cityscapes": Target("cityscapes", _cityscapes_paths, labels.CITYSCAPES_IDS, 0, _write_grey),
    "bdd100k": Target("bdd-100k", _bdd_paths, labels.TRAIN_IDS, labels.IGNORE, _write_grey, ((1.125, 1.0),)),
    "synthia": Target("synthia", _synthia_paths, labels.SYNTHIA_IDS, 0, _write_synthia, ((1.1875, 1.0),)),
    "mapillary": Target(
        "mapillary",
        _mapillary_paths,
        labels.MAPILLARY_IDS,
        65,
        _write_mapillary,
        ((1.125, 0.75), (1.0, 0.875), (1.25, 0.9375), (1.5, 0.5625)),
        preferred=(15,),
    ),
}
