"""The optimiser over the trainable parameters, the published learning-rate schedules, and averaged weights."""

from __future__ import annotations

import copy
import re
import warnings
from collections import defaultdict
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from config import Config
from utils.errors import UserError

Network = TypeVar("Network", bound=nn.Module)
# Last part of the names of embeddings and tokens: without decay, like norms and biases, for --no_norm_decay.
UNDECAYED = re.compile("pos_embed|rel_pos|relative_position|token")


def poly(step: int, *, max_iter: int, exponent: float) -> float:
    """Return (1 - step / max_iter) ** exponent, the factor of the first learning rate; 0 from max_iter on."""
    return max(0.0, 1 - step / max_iter) ** exponent


def parameter_groups(cfg: Config, network: Any) -> list[dict[str, Any]]:
    """Split the trainable parameters by learning rate and decay: the new ones first, then from last stage to stem.

    New are the heads and the modules of `network.backbone.added`: no pretrained file holds them. A pretrained parameter
    at depth d of n has the rate lr * backbone_lr * layer_decay ** (n - d), as in BEiT (Bao et al., ICLR 2022); the
    heads are at depth n. The state of an optimizer goes by number: which groups there are depends on which options are
    on, not on their values, and with all of them off there is one, in the network's order.
    """
    optim = cfg.OPTIM
    layered, split = optim.LAYER_DECAY != 1, optim.BACKBONE_LR != 1 or optim.LAYER_DECAY != 1
    depths: dict[str, int] = {}  # of the pretrained parameters
    for name, _ in network.backbone.named_parameters() if split else ():
        if set(network.backbone.added).isdisjoint(name.split(".")):
            depths[f"backbone.{name}"] = network.backbone.depth(name) if layered else 0
    top = 1 + max(depths.values(), default=0)
    members: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        decays = parameter.ndim > 1 and not UNDECAYED.search(name.rpartition(".")[2])
        if parameter.requires_grad:
            members[depths.get(name, top), decays or not optim.NO_NORM_DECAY].append(parameter)
    groups = []
    for depth, decays in sorted(members, reverse=True):
        rate = optim.LR * (optim.BACKBONE_LR if depth < top else 1) * optim.LAYER_DECAY ** (top - depth)
        decay = optim.WEIGHT_DECAY if decays else 0.0
        groups.append({"params": members[depth, decays], "lr": rate, "weight_decay": decay})
    return groups


def build_optimizer(cfg: Config, network: nn.Module) -> Optimizer:
    """Return SGD with momentum or AdamW over `parameter_groups`; raises `UserError` where nothing is trainable."""
    groups = parameter_groups(cfg, network)
    if not groups:
        raise UserError("the network has no trainable parameter; train at least a part of it")
    # Fused: one pass over the memory of a parameter, and no copy of all gradients for the decay.
    if cfg.OPTIM.NAME == "adamw":
        return AdamW(groups, fused=True)
    sgd = SGD(groups, momentum=cfg.OPTIM.MOMENTUM, fused=True)
    for group in groups if cfg.OPTIM.MOMENTUM else ():
        for parameter in group["params"]:  # a first step that the scaler leaves out would keep uninitialised memory
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def describe_groups(optimizer: Optimizer) -> list[str]:
    """Return a line for the log for every parameter group: first rate, weight decay, number of parameters."""
    return [
        f"learning rate {group['initial_lr']:.3g}, weight decay {group['weight_decay']:g}: "
        f"{sum(parameter.numel() for parameter in group['params']) / 1e6:.3f} M parameters"
        for group in optimizer.param_groups
    ]


def build_scheduler(cfg: Config, optimizer: Optimizer) -> LRScheduler:
    """Return the schedule of all groups, to be stepped once per optimiser step.

    poly is `poly`; scl-poly is `poly` until step i0 = rlx_off_iter, then
    rescale * (1 - (i - i0) / (max_iter - i0)) ** repoly. Before step w = warmup_iters both are multiplied by
    1 - (1 - warmup_ratio) * (1 - i / w).
    """
    optim = cfg.OPTIM

    # A function, not a callable object: LambdaLR would put that into its state, where a changed option could not win.
    def factor(step: int) -> float:
        missing = max(0.0, 1 - step / optim.WARMUP_ITERS) if optim.WARMUP_ITERS else 0.0
        start = optim.RLX_OFF_ITER
        if optim.LR_SCHEDULE == "scl-poly" and step >= start:
            after = optim.RESCALE * poly(step - start, max_iter=optim.MAX_ITER - start, exponent=optim.REPOLY)
        else:
            after = poly(step, max_iter=optim.MAX_ITER, exponent=optim.POLY_EXP)
        return (1 - (1 - optim.WARMUP_RATIO) * missing) * after

    # In float16 the scaler may leave out first steps while it looks for its scale; the schedule counts them.
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before", category=UserWarning)
    return LambdaLR(optimizer, factor)


def apply_settings(cfg: Config, network: nn.Module, optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Let the config's rates, decay and (of SGD) momentum win over those that came with a loaded state."""
    assert isinstance(scheduler, LambdaLR)
    own = parameter_groups(cfg, network)
    scheduler.base_lrs = [group["lr"] for group in own]
    for parameter, state in optimizer.state.items():
        for name, value in state.items():  # laid out as the parameter, which the fused optimizers need
            if value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    for group, wanted, factor in zip(optimizer.param_groups, own, scheduler.lr_lambdas, strict=True):
        rate = wanted["lr"] * factor(scheduler.last_epoch)
        group.update(initial_lr=wanted["lr"], lr=rate, weight_decay=wanted["weight_decay"], fused=True)
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
