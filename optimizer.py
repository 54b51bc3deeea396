"""The optimiser over the trainable parameters, the published learning-rate schedules, and averaged weights."""

from __future__ import annotations

import copy
import warnings
from typing import TypeVar

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from config import Config
from utils.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


def poly(step: int, *, max_iter: int, exponent: float) -> float:
    """Return (1 - step / max_iter) ** exponent, the factor of the first learning rate; 0 from max_iter on."""
    return max(0.0, 1 - step / max_iter) ** exponent


def build_optimizer(cfg: Config, network: nn.Module) -> Optimizer:
    """Return SGD with momentum or AdamW over the trainable parameters; raises `UserError` where there are none."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError("the network has no trainable parameter; train at least a part of it")
    optim = cfg.OPTIM
    if optim.NAME == "adamw":
        return AdamW(parameters, lr=optim.LR, weight_decay=optim.WEIGHT_DECAY)
    return SGD(parameters, lr=optim.LR, momentum=optim.MOMENTUM, weight_decay=optim.WEIGHT_DECAY)


def build_scheduler(cfg: Config, optimizer: Optimizer) -> LRScheduler:
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

    # In float16 the scaler may leave out first steps while it looks for its scale; the schedule counts them.
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before", category=UserWarning)
    return LambdaLR(optimizer, scaled if optim.LR_SCHEDULE == "scl-poly" else first)


def apply_settings(cfg: Config, optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Let the config's rate, decay and (of SGD) momentum win over those that came with a loaded state."""
    assert isinstance(scheduler, LambdaLR)
    scheduler.base_lrs = [cfg.OPTIM.LR] * len(optimizer.param_groups)
    for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        rate = cfg.OPTIM.LR * factor(scheduler.last_epoch)
        group.update(initial_lr=cfg.OPTIM.LR, lr=rate, weight_decay=cfg.OPTIM.WEIGHT_DECAY)
        if "momentum" in group:
            group["momentum"] = cfg.OPTIM.MOMENTUM


def build_average(cfg: Config, network: Network) -> Network | None:
    """Return the copy of a network that will hold its averaged weights (EMA), None for --ema_decay 0."""
    return copy.deepcopy(network).requires_grad_(False).eval() if cfg.OPTIM.EMA_DECAY else None


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, *, decay: float) -> None:
    """Move the exponential moving average of weights and floating-point buffers towards the network; copy its counters.

    torch's AveragedModel would ask for a counter in every update and so wait for the GPU.
    """
    state, new = average.state_dict(), network.state_dict()
    averaged = [name for name, value in state.items() if value.is_floating_point()]
    get_ema_multi_avg_fn(decay)([state[name] for name in averaged], [new[name] for name in averaged], None)
    for name in state.keys() - set(averaged):
        state[name].copy_(new[name])
