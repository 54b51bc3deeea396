"""Class centroids per tile for class-uniform sampling, and their cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datasets.codec import Encoding, decode_label
from datasets.domains import Pair
from datasets.labels import NUM_CLASSES
from utils.distributed import broadcast_object, is_main
from utils.errors import UserError, one_line

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
            found = _cached(pairs, encoding, tile, name, Path(cache_dir).expanduser(), workers)
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


def _cached(pairs: Sequence[Pair], encoding: Encoding, tile: int, name: str, folder: Path, workers: int) -> np.ndarray:
    path = folder / f"centroids_{name}_tile{tile}_{cache_key(pairs, encoding=encoding, tile=tile)}.npy"
    try:
        rows = np.load(path, allow_pickle=False)
        if rows.dtype == np.int32 and rows.ndim == 2 and rows.shape[1] == 4:
            log.info("%s: class centroids from %s", name, path)
            return rows
        log.warning("%s: not a table of class centroids; it is made again", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s: cannot be read (%s); it is made again", path, error)
    rows = _scan(pairs, encoding, tile, name, workers)
    _write(path, rows)
    return rows


def _scan(pairs: Sequence[Pair], encoding: Encoding, tile: int, name: str, workers: int) -> np.ndarray:
    from tqdm import tqdm

    size = max(1, min(16, len(pairs) // (4 * max(workers, 1))))  # labels per task: handing one over costs time too
    loader: DataLoader[np.ndarray] = DataLoader(
        _Labels(pairs, encoding=encoding, tile=tile),
        batch_size=size,
        num_workers=workers,
        collate_fn=np.concatenate,
        generator=torch.Generator(),  # keeps the loader from drawing its own seed from the global stream
    )
    found = [np.zeros((0, 4), dtype=np.int32)]
    try:
        with tqdm(total=len(pairs), desc=f"class centroids of {name}", unit="label", disable=None) as bar:
            for rows in loader:
                found.append(rows)
                bar.update(min(size, len(pairs) - bar.n))
    except UserError as error:
        raise UserError(one_line(error)) from error  # a worker wraps it in its own traceback
    return np.concatenate(found)


class _Labels(Dataset[np.ndarray]):
    """The centroids of label files: (n, 4) int32 rows (image, class, x, y) of each."""

    def __init__(self, pairs: Sequence[Pair], *, encoding: Encoding, tile: int) -> None:
        self.paths, self.encoding, self.tile = [pair.label for pair in pairs], encoding, tile

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        rows = class_centroids(decode_label(self.paths[index], encoding=self.encoding), tile=self.tile)
        return np.column_stack((np.full(len(rows), index, dtype=np.int32), rows))


def _write(path: Path, rows: np.ndarray) -> None:
    """Write the table to a temporary file and rename it; where that fails the run goes on without a cache."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, rows)
        temporary.replace(path)
    except OSError as error:
        log.warning("%s: cannot be written (%s); the centroids will be made again in the next run", path, error)
        with suppress(OSError):
            temporary.unlink()
