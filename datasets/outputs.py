"""What predict.py writes of an image, and under which names test servers take it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.codec import ENCODINGS
from datasets.labels import PALETTE
from utils.pictures import Array, colorize, overlay, stretched

FRAME_SUFFIXES = "_leftImg8bit|_rgb_anon"  # of an image's name, which test servers' names of predictions leave out


def _by_class(labels: Array) -> Image.Image:
    """Return train ids as an image of palette colours, whose indices they are."""
    image = Image.fromarray(labels)
    image.putpalette(PALETTE.tobytes().ljust(768, b"\0"))
    return image


def _side_by_side(image: Array, labels: Array, _: float) -> Image.Image:
    return Image.fromarray(np.concatenate((image, colorize(labels, palette=PALETTE)), axis=1))


class Kind(NamedTuple):
    """What can be written: the map of the model that it shows, and how."""

    map: str
    draw: Callable[[Array, Array, float], Image.Image]  # of the image, its map, the opacity
    picture: bool = True  # to be looked at: a video's frames become a video


KINDS = {
    "train_ids": Kind("labels", lambda _image, labels, _: Image.fromarray(labels), picture=False),
    "label_ids": Kind(
        "labels", lambda _image, labels, _: Image.fromarray(ENCODINGS["cityscapes_ids"].encode(labels)), picture=False
    ),
    "colour": Kind("labels", lambda _image, labels, _: _by_class(labels)),
    "overlay": Kind(
        "labels", lambda image, labels, alpha: Image.fromarray(overlay(image, labels, palette=PALETTE, alpha=alpha))
    ),
    "side_by_side": Kind("labels", _side_by_side),
    "confidence": Kind("confidence", lambda _image, share, _: Image.fromarray((255 * share).round().astype(np.uint8))),
    "edge": Kind("edge", lambda _image, edge, _: Image.fromarray(stretched(edge))),
    "layout": Kind("layout", lambda _image, layout, _: _by_class(layout)),
}
_CONFIDENCE_16 = Kind("confidence", lambda _image, share, _: Image.fromarray((65535 * share).round().astype(np.uint16)))
ALL_KINDS: Mapping[str, Kind] = KINDS | {"confidence_16": _CONFIDENCE_16}  # the last for a server alone

# Test server -> kind -> its file: `path` is the image's below the inputs, `name` its last part, both without suffix,
# `frame` the name without the camera's _leftImg8bit or _rgb_anon.
SUBMISSIONS: Mapping[str, Mapping[str, str]] = {
    "cityscapes": {"label_ids": "{frame}.png"},  # city_sequence_frame*.png, in one zip
    "acdc": {"train_ids": "labelTrainIds/{name}.png"},
    "bravo": {"train_ids": "{path}_pred.png", "confidence_16": "{path}_conf.png"},
}


def file_name(pattern: str, path: str) -> str:
    """Return the file of an image for a pattern of `SUBMISSIONS`; `path` is the image's without suffix."""
    name = PurePosixPath(path).name
    return pattern.format(path=path, name=name, frame=frame_name(name))


def frame_name(stem: str) -> str:
    """Return the name of a frame for that of its image, which Cityscapes and ACDC end with the camera's."""
    return re.sub(f"({FRAME_SUFFIXES})$", "", stem)
