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
    tiles = label[: rows * tile_h, : columns * tile_w].reshape(rows, tile_h, columns, tile_w)
    by_row = _histogram(tiles)  # (rows, tile_h, columns, 20) pixels per line of a tile and class
    by_column = _histogram(tiles.transpose(0, 3, 2, 1))  # (rows, tile_w, columns, 20)
    count = by_row.sum(axis=1)  # (rows, columns, 20)
    sum_y = np.einsum("rhcb,h->rcb", by_row, np.arange(tile_h))
    sum_x = np.einsum("rwcb,w->rcb", by_column, np.arange(tile_w))
    found = []
    for index, row, column in np.argwhere(count.transpose(2, 0, 1)):
        if index == NUM_CLASSES:
            break
        n = count[row, column, index]
        y, x = int(sum_y[row, column, index] // n), int(sum_x[row, column, index] // n)
        if on_class and tiles[row, y, column, x] != index:
            y, x = _nearest(tiles[row, :, column] == index, y, x)
        found.append((index, x + column * tile_w, y + row * tile_h))
    return np.array(found, dtype=np.int32).reshape(-1, 3)


def _histogram(tiles: np.ndarray) -> np.ndarray:
    """Count classes along the last axis: (a, b, c, n) uint8 -> (a, b, c, 20); ignored pixels are in the last bin."""
    bins = NUM_CLASSES + 1
    lines = np.arange(0, bins * int(np.prod(tiles.shape[:3])), bins, dtype=np.int32).reshape(*tiles.shape[:3], 1)
    cells = np.minimum(tiles, NUM_CLASSES) + lines  # (a, b, c, n)
    return np.bincount(cells.ravel(), minlength=lines.size * bins).reshape(*tiles.shape[:3], bins)


def _nearest(mask: np.ndarray, y: int, x: int) -> tuple[int, int]:
    """Return the (y, x) of the true pixel of a mask that is nearest to a point."""
    ys, xs = np.nonzero(mask)
    best = int(np.argmin((ys - y) ** 2 + (xs - x) ** 2))
    return int(ys[best]), int(xs[best])


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

    loader: DataLoader[np.ndarray] = DataLoader(
        _Labels(pairs, encoding=encoding, tile=tile),
        num_workers=workers,
        collate_fn=_single,
        generator=torch.Generator(),  # keeps the loader from drawing its own seed from the global stream
    )
    try:
        found = list(tqdm(loader, desc=f"class centroids of {name}", unit="label", disable=None))
    except UserError as error:
        raise UserError(one_line(error)) from error  # a worker wraps it in its own traceback
    numbered = [np.insert(rows, 0, index, axis=1) for index, rows in enumerate(found)]
    return np.concatenate(numbered).astype(np.int32)


class _Labels(Dataset[np.ndarray]):
    """The centroids of label files."""

    def __init__(self, pairs: Sequence[Pair], *, encoding: Encoding, tile: int) -> None:
        self.paths, self.encoding, self.tile = [pair.label for pair in pairs], encoding, tile

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return class_centroids(decode_label(self.paths[index], encoding=self.encoding), tile=self.tile)


def _single(samples: Sequence[np.ndarray]) -> np.ndarray:
    return samples[0]


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
