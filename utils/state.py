"""What the next step of a run depends on besides its configuration, saved and restored as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils import checkpoint
from utils.errors import UserError


@dataclass
class Progress:
    """Where a run is: `step` optimizer steps in all, `step_in_epoch` of them in epoch `epoch`."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0


@dataclass
class RunState:
    """The parts of a run that change from step to step, and its best scores by name of their checkpoint."""

    network: nn.Module
    criterion: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    average: nn.Module | None = None  # the network with averaged weights
    progress: Progress = field(default_factory=Progress)
    best: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path, *, config: dict[str, Any], versions: dict[str, str], world_size: int) -> None:
        """Write a checkpoint, named after its file.

        Raises:
            UserError: a weight is not finite, or the file cannot be written; what was there stays.
        """
        if not torch.stack([parameter.isfinite().all() for parameter in self.network.parameters()]).all():
            raise UserError(
                f"step {self.progress.step}: the weights are not finite; {path.name} stays as it was: lower --lr and "
                "continue with --resume auto"
            )
        parts = ("network", "criterion", "optimizer", "scheduler", "scaler")
        checkpoint.save(
            path,
            {
                "kind": path.stem,
                **{name: getattr(self, name).state_dict() for name in parts},
                "average": self.average.state_dict() if self.average is not None else {},
                "progress": asdict(self.progress),
                "best": dict(self.best),
                "config": config,
                "versions": versions,
                "world_size": world_size,
            },
        )

    def load(self, content: Mapping[str, Any], *, path: Path) -> None:
        """Take over what `checkpoint.read_checkpoint` gave; the average, where it holds none, starts from the network.

        Raises:
            UserError: the network or the criterion does not fit.
        """
        checkpoint.load_strictly(self.network, content["network"], path=path)
        if self.average is not None:
            checkpoint.load_strictly(self.average, content["average"] or content["network"], path=path)
        checkpoint.load_strictly(self.criterion, content["criterion"], path=path)
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        if content["scaler"] and self.scaler.is_enabled():  # both runs in mixed precision on a GPU
            self.scaler.load_state_dict(content["scaler"])
        self.progress = Progress(**content["progress"])
        self.best = dict(content["best"])
