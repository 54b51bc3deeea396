"""The same work on many items, in loader workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.errors import UserError, is_killed_worker, one_line

Item = TypeVar("Item")
Result = TypeVar("Result")


def _each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [work(item) for item in items]


def parallel_map(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int, title: str, unit: str
) -> Iterator[Result]:
    """Yield what `work` returns for every item, in order, with a progress bar; both must pickle.

    Raises:
        UserError: as `work` raised it, in a worker too; or a worker was killed.
    """
    size = max(1, min(16, len(items) // (4 * max(workers, 1))))  # items per task: handing one over costs time too
    dataset: Any = items
    loader: DataLoader[list[Result]] = DataLoader(
        dataset,
        batch_size=size,
        num_workers=min(workers, len(items)),
        collate_fn=partial(_each, work),
        generator=torch.Generator(),  # keeps the loader from drawing its own seed from the global stream
    )
    try:
        with tqdm(total=len(items), desc=title, unit=unit, disable=None) as bar:
            for results in loader:
                yield from results
                bar.update(len(results))
    except UserError as error:
        raise UserError(one_line(error)) from error  # a worker wraps it in its own traceback
    except RuntimeError as error:
        if not is_killed_worker(error):
            raise
        raise UserError(
            f"{title}: a worker process was killed, most likely for want of memory; use fewer than {workers}"
        ) from error
