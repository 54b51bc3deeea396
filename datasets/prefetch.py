"""From the loader to the device, and how long the device had to wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from datasets.loaders import TrainingBatch


class DeviceBatches:
    """Batches on the device; on a GPU they are copied on a stream of their own while the step before still runs.

    The parameters of the appearance stay on the CPU, where it reads them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.restart()

    def restart(self) -> None:
        """Count time and waiting from now on."""
        self.waits: list[tuple[float, float] | tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.seconds, self.handed_over = 0.0, time.perf_counter()

    def __call__(self, batches: Iterator[TrainingBatch]) -> Iterator[TrainingBatch]:
        """Yield the batches on the device."""
        while True:
            asked, before = time.perf_counter(), self._mark()
            batch = next(batches, None)
            if batch is None:
                return
            self.waits.append((before, self._mark()))  # type: ignore[arg-type]
            self.handed_over = time.perf_counter()
            self.seconds += self.handed_over - asked
            yield self._moved(batch)
            self.seconds += time.perf_counter() - self.handed_over

    def wait_share(self) -> float:
        """Return the share of the steps' time in which the device had nothing to do but wait; call it in a step."""
        waited = 0.0
        for before, after in self.waits:
            if isinstance(before, float):
                waited += after - before  # type: ignore[operator]
            else:
                after.synchronize()  # type: ignore[union-attr]
                waited += before.elapsed_time(after) / 1000  # type: ignore[arg-type]
        seconds = self.seconds + time.perf_counter() - self.handed_over
        return waited / seconds if self.waits else 0.0

    def _mark(self) -> float | torch.cuda.Event:
        """Return now: the clock's on the CPU; on a GPU an event, which comes when all work queued so far is done."""
        if self.stream is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _moved(self, batch: TrainingBatch) -> TrainingBatch:
        if self.stream is None:
            return batch
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            images = batch.images.to(self.device, non_blocking=True)
            labels = batch.labels.to(self.device, non_blocking=True)
        current.wait_stream(self.stream)
        for tensor in (images, labels):
            tensor.record_stream(current)  # its memory may not be given to another copy while the step reads it
        return batch._replace(images=images, labels=labels)
