"""How much of a pretrained backbone is trained: nothing, LoRA's low-rank updates or Rein's tokens.

Rein, learnable tokens that refine the patch features between the frozen blocks of a vision transformer, is Wei et al.,
Stronger, Fewer, & Superior: Harnessing Vision Foundation Models for Domain Generalized Semantic Segmentation, CVPR
2024, written from the paper's equations. n patches, c channels, m tokens, r rank of a block's tokens.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from network.backbone_base import BackboneBase
from network.timm_backbone import TimmBackbone
from utils.errors import UserError


def restrict_tuning(backbone: BackboneBase, tune: str, *, rank: int, tokens: int) -> None:
    """Freeze what a weight file fills, and add what is trained in its place; the rest of the network is left alone.

    LoRA (Hu et al., ICLR 2022) updates every linear layer, or in a network without any every convolution that is
    neither grouped nor dilated, by `rank` (alpha is the same number). Rein has `tokens` per block.

    Raises:
        UserError: style sites in a frozen backbone, LoRA on standardised weights, Rein without a plain ViT.
    """
    if tune == "frozen" and backbone.kinds:
        raise UserError(
            f"--tune frozen: style sites ({', '.join(backbone.kinds)}) would change features that nothing may adapt; "
            "use a method without any: --method base, linear or diia-no-whitening, or --tune lora"
        )
    backbone.tune = tune
    if tune == "lora":
        backbone.added += ("lora_A", "lora_B")
        insert_lora(backbone.model if isinstance(backbone, TimmBackbone) else backbone, rank=rank)
    if tune == "rein":
        # ConvMixer has blocks, but no tokens
        if not (isinstance(backbone, TimmBackbone) and backbone.pyramid and hasattr(backbone.model.model, "embed_dim")):
            raise UserError(f"--tune rein: its tokens need a plain ViT, {backbone.spec.title} is none; use --tune lora")
        backbone.added += ("rein",)
        insert_rein(backbone.model.model, length=tokens)
    for name, parameter in backbone.named_parameters():  # behind peft, which freezes whatever it did not add
        parameter.requires_grad_(not set(backbone.added).isdisjoint(name.split(".")))


def insert_lora(model: nn.Module, *, rank: int) -> None:
    """Add low-rank updates, which start at zero, to the layers of a network in place."""
    from peft import LoraConfig, inject_adapter_in_model  # slow to import

    layers = dict(model.named_modules())
    targets = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    for name, layer in layers.items() if not targets else ():
        if hasattr(layer, "eps") and isinstance(layer, nn.Conv2d):  # of timm's StdConv2d and its like
            raise UserError(
                "--tune lora: this backbone standardises the weights of its convolutions, into which updates cannot be "
                "merged; use --tune full or frozen"
            )
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.dilation == (1, 1):  # peft's know no dilation
            targets.append(name)
    for layer in layers.values():
        if hasattr(layer, "qkv_bias_separate"):  # else timm multiplies by qkv's own weight, past the update
            layer.qkv_bias_separate = True
    exact = "|".join(map(re.escape, targets))  # in a list, a name would stand for all that end with it
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=exact), model)


def merge_lora(model: nn.Module) -> None:
    """Add the updates to the weights that they belong to; the outputs stay, and nothing is computed twice."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # slow to import

    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()


def unwrap_lora(model: nn.Module) -> None:
    """Put the plain layers in the place of peft's, whose updates are merged: parameters get their own names."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # slow to import

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            model.set_submodule(name, layer.get_base_layer())


class Rein(nn.Module):
    """The tokens of all blocks, T_i = A_i B_i, and the two layers that the blocks share.

    S_i = softmax(f_i T_i^T / sqrt(c)), without its first column, chooses from T_i W_T + b_T what is added to f_i before
    W_f, b_f make the refinement of it. W_f, b_f and b_T start at zero: a new network computes what the frozen one does.
    The paper also links the tokens to the queries of a mask decoder; dense heads have no queries, so there is no link.
    """

    def __init__(self, channels: int, *, num_blocks: int, length: int = 100, rank: int = 16) -> None:
        super().__init__()
        # T_i has the deviation of a transformer's other tokens, 0.02; the paper does not say how they start.
        self.tokens_a = nn.Parameter(torch.randn(num_blocks, length, rank) / math.sqrt(rank))
        self.tokens_b = nn.Parameter(torch.randn(num_blocks, rank, channels) * 0.02)
        self.token_layer = nn.Linear(channels, channels)  # W_T, b_T
        self.feature_layer = nn.Linear(channels, channels)  # W_f, b_f
        for start in (self.token_layer.bias, self.feature_layer.weight, self.feature_layer.bias):
            nn.init.zeros_(start)

    def forward(self, features: Tensor, *, index: int) -> Tensor:
        """Refine what block `index` returned, (..., n, c)."""
        tokens = self.tokens_a[index] @ self.tokens_b[index]  # (m, c)
        similarity = (features @ tokens.T / math.sqrt(features.shape[-1])).softmax(-1)  # (..., n, m)
        chosen = similarity[..., 1:] @ self.token_layer(tokens[1:])  # (..., n, c)
        return features + self.feature_layer(chosen + features)


class ReinBlock(nn.Module):
    """A block of a timm transformer whose patch tokens are refined behind it."""

    def __init__(self, block: nn.Module, rein: Rein, *, index: int, num_prefix_tokens: int) -> None:
        super().__init__()
        self.block, self.index, self.num_prefix_tokens = block, index, num_prefix_tokens
        self.shared = (rein,)  # in a tuple: its parameters belong to the whole model, once

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map (B, prefix + n, c), or SAM's (B, h, w, c), to the same shape; the rest goes to the block."""
        tokens, count = self.block(tokens, *args, **kwargs), self.num_prefix_tokens
        refined = self.shared[0](tokens[:, count:], index=self.index)
        return torch.cat((tokens[:, :count], refined), 1) if count else refined


def insert_rein(model: Any, *, length: int = 100, rank: int = 16) -> Rein:
    """Refine the patch tokens behind every block of a timm transformer with `blocks`, in place; return `model.rein`.

    Pretrained weights are to be loaded first: `blocks.0.` becomes `blocks.0.block.`.
    """
    model.rein = Rein(model.embed_dim, num_blocks=len(model.blocks), length=length, rank=rank)
    prefix = getattr(model, "num_prefix_tokens", 0)  # SAM's has none
    for index, block in enumerate(model.blocks):
        model.blocks[index] = ReinBlock(block, model.rein, index=index, num_prefix_tokens=prefix)
    return model.rein
