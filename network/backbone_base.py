"""What every backbone does, torchvision's (network.backbones) and timm's (network.timm_backbone)."""

from __future__ import annotations

import abc
import contextlib
import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from network.outputs import Features

PARTS = ("stem", "stage1", "stage2", "stage3", "stage4")
STAGES = (1, 2, 3, 4)


class BackboneBase(nn.Module, abc.ABC):
    """What maps images to the outputs of four stages and to the maps captured at the style sites."""

    spec: Any  # the row that it is built from, with `name` and `title`
    channels: tuple[int, ...]  # of stem and stages
    low_stride: int  # of the first stage, where the skip starts
    output_stride: int
    kinds: dict[str, str]  # style site -> kind (network.style)
    style_names: tuple[str, ...]  # of the captured maps
    style_channels: tuple[int, ...]
    added: tuple[str, ...] = ("sites", "mix_style")  # children, or modules inside them, that no pretrained file has
    tune = "full"  # how the pretrained part is fine-tuned (network.tuning)
    grad_checkpoint = False
    attends = False  # whether it has `attention_of`
    partly_unused = False  # whether some of its parameters lead to no map that a head reads

    @abc.abstractmethod
    def depth(self, name: str) -> int:
        """Return the position of a pretrained parameter, by its name in the backbone; 0 is the stem's."""

    @abc.abstractmethod
    def outputs(self, images: Tensor, *, stages: Sequence[int] = STAGES) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Map images (B, 3, H, W) to the outputs of stages (0: the stem) and the maps captured up to the last one."""

    def forward(self, images: Tensor) -> Features:
        """Map images (B, 3, H, W) to the outputs of stages 1, 3 and 4 and the captured maps."""
        (low_level, aux, top), style = self.outputs(images, stages=(1, 3, 4))
        return Features(low_level=low_level, aux=aux, top=top, style=style)

    def style_features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the captured maps alone, running no stage behind the last of them."""
        last = max((PARTS.index(site) for site in self.style_names if site in PARTS), default=0)
        return self.outputs(images, stages=(last,))[1]

    def train(self, mode: bool = True) -> Any:
        """Switch the mode; what is not fine-tuned as a whole stays as in evaluation."""
        super().train(mode)
        for name, child in self.named_children():
            if self.tune != "full" and name not in self.added:
                child.eval()
        return self

    def checkpoint_blocks(self, *, wanted: bool) -> None:
        """Set whether the backward pass computes blocks again, so that nothing inside them is kept for it."""
        self.grad_checkpoint = wanted

    def run_layer(self, layer: nn.Module, maps: Tensor) -> Tensor:
        """Run a layer of the network."""
        if self.grad_checkpoint and torch.is_grad_enabled() and list(layer.children()):
            if torch.compiler.is_compiling():  # only what changes no buffer runs again
                return cast(Tensor, checkpoint(layer, maps, use_reentrant=False))
            contexts = partial(_two_contexts, layer)
            return cast(Tensor, checkpoint(layer, maps, use_reentrant=False, context_fn=contexts))
        return cast(Tensor, layer(maps))


def _two_contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return what surrounds the first pass of a block and the one that computes it again."""
    return contextlib.nullcontext(), _running_statistics_kept(block)


@contextlib.contextmanager
def _running_statistics_kept(block: nn.Module) -> Iterator[None]:
    """Leave the running statistics alone, which the first pass has updated already."""
    norms = [layer for layer in block.modules() if isinstance(layer, _BatchNorm)]
    kept = [(norm.momentum, copy.deepcopy(norm.num_batches_tracked)) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:  # what is enough for the gradients ends the second pass with an exception
        for norm, (momentum, counter) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            if counter is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(counter)
