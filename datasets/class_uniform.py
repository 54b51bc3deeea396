"""Class centroids per tile for class-uniform sampling, and their cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from datasets.codec import Encoding, decode_label
from datasets.domains import Pair
from datasets.labels import NUM_CLASSES
from utils.distributed import broadcast_object, is_main
from utils.errors import UserError
from utils.files import atomic_path
from utils.parallel import parallel_map

log = logging.getLogger(__name__)

_VERSION = 1  # raise it when the rule below changes


def class_centroids(label: np.ndarray, *, tile: int, on_class: bool = True) -> np.ndarray:
    """Return the centre of mass of every class in every tile.

    Tiles lie edge to edge from the top left; what is left over at the right and bottom is not used. A tile is never
    larger than the image.

    Args:
        label: (H, W) uint8 train ids.
        on_class: move a centre that lies off its class to the nearest pixel of the class in its tile; without it the
            centre is the original's, cut to whole pixels.

    Returns:
        (n, 3) int32 rows (class, x, y), by class, then by tile from left to right and top to bottom.
    """
    tile_h, tile_w = (min(tile, side) for side in label.shape)
    rows, columns = label.shape[0] // tile_h, label.shape[1] // tile_w
    used = np.ascontiguousarray(label[: rows * tile_h, : columns * tile_w])
    # Runs of one class along a line of a tile: labels are smooth, so there are far fewer runs than pixels.
    starts = np.empty(used.shape, dtype=bool)
    np.not_equal(used[:, 1:], used[:, :-1], out=starts[:, 1:])
    starts[:, ::tile_w] = True
    first = np.flatnonzero(starts)
    length = np.diff(first, append=used.size)
    index = used.ravel()[first]
    labelled = index < NUM_CLASSES
    first, length, index = first[labelled], length[labelled], index[labelled].astype(np.int64)
    y, x = np.divmod(first, used.shape[1])
    place = (index * rows + y // tile_h) * columns + x // tile_w  # in the order of the result
    count, sum_y, twice_sum_x = (
        np.bincount(place, weights).astype(np.int64) for weights in (length, length * y, length * (2 * x + length - 1))
    )
    present = np.flatnonzero(count)
    count = np.maximum(count, 1)
    centre_y, centre_x = sum_y // count, twice_sum_x // (2 * count)
    if on_class and len(present):
        nearest_x = np.clip(centre_x[place], x, x + length - 1)  # on each run
        distance = (y - centre_y[place]) ** 2 + (nearest_x - centre_x[place]) ** 2
        best = np.full(len(count), np.iinfo(np.int64).max)  # smallest distance, of equal ones the first run
        np.minimum.at(best, place, distance * len(first) + np.arange(len(first)))
        run = best[present] % len(first)
        centre_y[present], centre_x[present] = y[run], nearest_x[run]
    found = (present // (rows * columns), centre_x[present], centre_y[present])
    return np.stack(found, axis=1).astype(np.int32)


def source_centroids(
    pairs: Sequence[Pair], *, encoding: Encoding, tile: int, name: str, cache_dir: str, workers: int
) -> np.ndarray:
    """Return the centroids of all labels of a domain: (n, 4) int32 rows (image, class, x, y).

    The first process reads the cache or computes and writes it; the others receive the result, or its error. The cache
    file's name holds a key of all that made it: names, sizes and times of the labels, tile, encoding, this rule.
    """
    found: np.ndarray | UserError | None = None
    if is_main():
        try:
            key, title = cache_key(pairs, encoding=encoding, tile=tile), f"class centroids of {name}"
            path = Path(cache_dir).expanduser() / f"centroids_{name}_tile{tile}_{key}.npy"
            scan = partial(_scan, pairs, encoding, tile, title, workers)
            found = load_or_compute(path, columns=4, title=title, make=scan)
        except UserError as error:
            found = error
    found = broadcast_object(found)
    if isinstance(found, UserError):
        raise found
    assert found is not None
    return found


def cache_key(pairs: Sequence[Pair], *, encoding: Encoding, tile: int) -> str:
    """Return 16 hex digits of all that decides the centroids."""
    made_by = hashlib.sha256(json.dumps([_VERSION, tile, repr(encoding), len(pairs)]).encode())
    for pair in pairs:
        try:
            status = os.stat(pair.label)
        except OSError as error:
            raise UserError(f"{pair.label}: cannot be read ({error.strerror})") from error
        made_by.update(f"\n{pair.name}\t{pair.label}\t{status.st_size}\t{status.st_mtime_ns}".encode())
    return made_by.hexdigest()[:16]


def load_or_compute(path: Path, *, columns: int, title: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the table (n, columns) of integers that a file keeps; made, and written, where there is none."""
    try:
        rows = np.load(path, allow_pickle=False)
        if rows.dtype.kind == "i" and rows.ndim == 2 and rows.shape[1] == columns:
            log.info("%s from %s", title, path)
            return rows
        log.warning("%s: not a table of %s; it is made again", path, title)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s: cannot be read (%s); it is made again", path, error)
    rows = make()
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, rows)
    except OSError as error:
        log.warning("%s: cannot be written (%s); it will be made again in the next run", path, error)
    return rows


def _scan(pairs: Sequence[Pair], encoding: Encoding, tile: int, title: str, workers: int) -> np.ndarray:
    work, labels = partial(_of_file, encoding=encoding, tile=tile), [pair.label for pair in pairs]
    found = parallel_map(work, labels, workers=workers, title=title, unit="label")
    rows = [np.insert(part, 0, index, axis=1) for index, part in enumerate(found)]
    return np.concatenate([np.zeros((0, 4), dtype=np.int32), *rows])


def _of_file(label: str, *, encoding: Encoding, tile: int) -> np.ndarray:
    return class_centroids(decode_label(label, encoding=encoding), tile=tile)
