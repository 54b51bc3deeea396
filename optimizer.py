"""SGD over the trainable parameters and the published learning-rate schedules, stepped per optimiser step."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from utils.errors import UserError


def poly(step: int, *, max_iter: int, exponent: float) -> float:
    """Return (1 - step / max_iter) ** exponent, the factor of the first learning rate; 0 from max_iter on."""
    return max(0.0, 1 - step / max_iter) ** exponent


def build_optimizer(cfg: Any, network: nn.Module) -> Optimizer:
    """Return SGD with momentum and weight decay over the trainable parameters, in one group.

    Raises:
        UserError: nothing is trainable.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError("the network has no trainable parameter; train at least a part of it")
    return SGD(parameters, lr=cfg.OPTIM.LR, momentum=cfg.OPTIM.MOMENTUM, weight_decay=cfg.OPTIM.WEIGHT_DECAY)


def build_scheduler(cfg: Any, optimizer: Optimizer) -> LRScheduler:
    """Return the schedule, to be stepped once per optimiser step.

    poly is `poly`; scl-poly is `poly` until step i0 = rlx_off_iter, then
    rescale * (1 - (i - i0) / (max_iter - i0)) ** repoly.
    """
    optim = cfg.OPTIM

    # Functions, not callable objects: LambdaLR would put those into its state, where a changed option could not win.
    def first(step: int) -> float:
        return poly(step, max_iter=optim.MAX_ITER, exponent=optim.POLY_EXP)

    def scaled(step: int) -> float:
        start = optim.RLX_OFF_ITER
        if step < start:
            return first(step)
        return optim.RESCALE * poly(step - start, max_iter=optim.MAX_ITER - start, exponent=optim.REPOLY)

    return LambdaLR(optimizer, scaled if optim.LR_SCHEDULE == "scl-poly" else first)


def apply_settings(cfg: Any, optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Let the config's rate, momentum and decay win over those that came with a loaded state."""
    assert isinstance(scheduler, LambdaLR)
    scheduler.base_lrs = [cfg.OPTIM.LR] * len(optimizer.param_groups)
    for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        rate = cfg.OPTIM.LR * factor(scheduler.last_epoch)
        group.update(initial_lr=cfg.OPTIM.LR, lr=rate, momentum=cfg.OPTIM.MOMENTUM, weight_decay=cfg.OPTIM.WEIGHT_DECAY)
