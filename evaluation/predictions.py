"""Folders of predictions in PNG files: which file belongs to which image, and how the files hold their classes."""

from __future__ import annotations

import io
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from config import Config
from datasets.codec import ENCODINGS, decode_errors, decode_label, read_ids
from datasets.files import read_bytes
from datasets.labels import CITYSCAPES_IDS, IGNORE, NUM_CLASSES, PALETTE
from datasets.predict_files import frame_name
from datasets.splits import Split
from utils import distributed
from utils.errors import UserError, first_few

logger = logging.getLogger(__name__)
ENCODING_NAMES = {  # value of --prediction_encoding, and name of its folder in what predict.py writes -> the encoding
    "train_ids": "train_ids",
    "label_ids": "cityscapes_ids",
    "colour": "cityscapes_colours",
}
_SAMPLE = 16  # files that are looked at before train ids are believed
_CLASS_COLOURS = {int.from_bytes(bytes(colour.tolist()), "big") for colour in PALETTE}
_LABEL_IDS = {raw for raw, train in CITYSCAPES_IDS.items() if train != IGNORE}


@dataclass(frozen=True)
class Predictions:
    """The predictions of one split: labels of images by name.

    Attributes:
        files: PNG file by the image's name.
        encoding: key of `ENCODING_NAMES`.
        resize: whether maps of another size than the image's are resized, by the nearest pixel.
    """

    files: Mapping[str, str]
    encoding: str
    resize: bool = False

    @property
    def note(self) -> str:
        """What a protocol says of them."""
        return f", predictions read as {self.encoding}{', resized by the nearest pixel' if self.resize else ''}"

    def labels(self, images: Tensor, names: Sequence[str]) -> Tensor:
        """Return the train ids (B, h, w) uint8 of images (B, 3, h, w), or raise `UserError` with the file."""
        height, width = images.shape[2:]
        return torch.from_numpy(np.stack([self._read(self.files[name], (width, height)) for name in names]))

    def _read(self, path: str, size: tuple[int, int]) -> np.ndarray:
        labels = decode_label(path, encoding=ENCODINGS[ENCODING_NAMES[self.encoding]])
        if labels.shape[::-1] == size:
            return labels
        if not self.resize:
            told, wanted = ("{}x{}".format(*sides) for sides in (labels.shape[::-1], size))
            raise UserError(
                f"{path}: is {told}, its image {wanted}; write it in that size or --resize_predictions nearest"
            )
        return np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


def open_predictions(cfg: Config, split: Split) -> Predictions:
    """Find the predictions of a split in --predictions and tell how they hold their classes; the same on all processes.

    Raises:
        UserError: an image has no file or several, or the files do not tell their encoding.
    """
    folder, wanted = Path(cfg.EVAL.PREDICTIONS), cfg.EVAL.PREDICTION_ENCODING

    def find() -> Predictions:
        if not folder.is_dir():
            raise UserError(f"--predictions {folder}: there is no such folder")
        domain = folder / split.domain.name
        base = domain if domain.is_dir() else folder
        kinds = [wanted] if wanted != "auto" else list(ENCODING_NAMES)
        places = [*kinds, *(["labelTrainIds"] if "train_ids" in kinds else ())]  # as predict.py writes, for ACDC too
        base = next((base / place for place in places if (base / place).is_dir()), base)
        base = base / split.domain.name if (base / split.domain.name).is_dir() else base  # of inputs of several domains
        names = [pair.name for pair in split.pairs]
        files = match_files(base, names, where=f"{split.domain.name}/{split.name}")
        encoding = tell_encoding(list(files.values()), folder=base) if wanted == "auto" else wanted
        return Predictions(files, encoding, cfg.EVAL.RESIZE_PREDICTIONS == "nearest")

    found = distributed.from_main(find)
    logger.info("%s: %d files of %s%s", split.domain.name, len(found.files), folder, found.note)
    return found


def match_files(folder: Path, names: Sequence[str], *, where: str) -> dict[str, str]:
    """Return the PNG file below a folder that belongs to each image; none or several raise `UserError`.

    A file has the image's path or the last parts of it, with .png for the suffix or behind it, or a name that begins
    with the image's: NAME*.png, without _leftImg8bit too, as the servers take them, in folders that the image is in
    too, so that no file of another domain or split is taken.

    Args:
        names: paths of the images relative to their domain's root.
        where: domain and split, for messages.
    """
    paths, starts = dict[str, str](), defaultdict[str, list[str]](list)
    for file in sorted(file for file in folder.rglob("*") if file.suffix.lower() == ".png"):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name.endswith("_conf"):  # the confidence that BRAVO's server takes beside the labels
            continue
        paths[name] = str(file)
        stem = PurePosixPath(name).name
        for end in (*(match.start() for match in re.finditer(r"[^0-9A-Za-z]", stem)), len(stem)):
            starts[stem[:end]].append(name)
    by_path = {name: _file_of(PurePosixPath(name), paths) for name in names}
    taken = {*by_path.values()}
    found = dict[str, list[str]]()
    for name, path in by_path.items():
        stem, folders = PurePosixPath(name).stem, {*PurePosixPath(name).parts}
        others = (
            [paths[other] for other in starts.get(start, ()) if folders.issuperset(PurePosixPath(other).parts[:-1])]
            for start in (stem, frame_name(stem))
        )
        found[name] = [path] if path else [other for other in next(filter(None, others), []) if other not in taken]
    if missing := [name for name, files in found.items() if not files]:
        raise UserError(
            f"{folder}: {len(missing)} of the {len(names)} images of {where} have no prediction: {first_few(missing)}; "
            "files are named by the image's path, or NAME*.png, in folders that it is in too"
        )
    if several := [name for name, files in found.items() if len(files) > 1]:
        raise UserError(
            f"{folder}: {len(several)} images of {where} have several predictions, {several[0]} has "
            f"{first_few(found[several[0]])}; keep one of them, or name a folder that holds one"
        )
    owners = defaultdict[str, list[str]](list)
    for name, files in found.items():
        owners[files[0]].append(name)
    if shared := [file for file, images in owners.items() if len(images) > 1]:
        raise UserError(
            f"{shared[0]}: belongs to {len(owners[shared[0]])} images of {where} by its name "
            f"({first_few(owners[shared[0]])}); keep the images' folders"
        )
    return {name: files[0] for name, files in found.items()}


def _file_of(name: PurePosixPath, paths: Mapping[str, str]) -> str:
    """Return the file with as much of an image's path as any has, "" where there is none."""
    for first in range(len(name.parts)):
        rest = PurePosixPath(*name.parts[first:])
        for path in (str(rest), str(rest.with_suffix(""))):
            if path in paths:
                return paths[path]
    return ""


def tell_encoding(files: Sequence[str], *, folder: Path) -> str:
    """Return the key of `ENCODING_NAMES` of the files, all alike, or raise `UserError` where they do not tell it.

    Colours are those of the classes, or differ between channels. Of ids, 19 to 33 are label ids alone; those of
    Cityscapes' labels that are not evaluated (0 to 6, 9 ...), which no prediction holds, are train ids where no larger
    one occurs in a sample. Only 7, 8, 11, 12, 13 and 17 are both: further files decide, then a name as predict.py's.
    """
    least, seen = min(_SAMPLE, len(files)), set[int]()
    sample = [files[index * len(files) // least] for index in range(least)]  # evenly spread
    order = list(dict.fromkeys([*sample, *files]))
    for count, path in enumerate(order, 1):
        ids = _ids_of(path)
        if ids is None:
            return "colour"
        if wrong := sorted(id_ for id_ in ids if id_ not in CITYSCAPES_IDS and id_ != IGNORE):
            raise UserError(
                f"{path}: has {first_few([*map(str, wrong)])}, which are neither train ids (0 to {NUM_CLASSES - 1}) "
                f"nor label ids of Cityscapes (7 to {max(_LABEL_IDS)}); save the classes, not a picture of them"
            )
        seen |= ids - {IGNORE}
        if seen & set(range(NUM_CLASSES, 256)):
            return "label_ids"
        if count >= least and seen - _LABEL_IDS:
            return "train_ids"
    if folder.name in ENCODING_NAMES:
        return folder.name
    raise UserError(
        f"{folder}: its files hold no other ids than {' '.join(map(str, sorted(seen)))}, which may be train ids or "
        "label ids of Cityscapes; say which with --prediction_encoding train_ids or label_ids"
    )


def _ids_of(path: str) -> set[int] | None:
    """Return the ids that a file holds, None where it holds colours."""
    with decode_errors(path):
        image = Image.open(io.BytesIO(read_bytes(path)))
        counts = image.convert("RGB").getcolors(256) if image.mode in ("P", "RGB", "RGBA") else None
        if image.mode in ("RGB", "RGBA") and counts is None:
            return None  # far more colours than classes: reading it says so
    colours: Collection[int] = {int.from_bytes(bytes(colour), "big") for _, colour in counts or ()}  # type: ignore[arg-type]
    grey: Iterable[int] = (colour for colour in colours if colour % 0x10101 == 0)
    if colours and (set(colours) <= _CLASS_COLOURS or (image.mode != "P" and len(list(grey)) < len(colours))):
        return None
    return {*map(int, np.unique(read_ids(path, encoding=ENCODINGS["train_ids"])))}
