"""Rein: learnable tokens that refine the patch features between the frozen blocks of a vision transformer.

Wei et al., Stronger, Fewer, & Superior: Harnessing Vision Foundation Models for Domain Generalized Semantic
Segmentation, CVPR 2024; from the paper's equations. n patches, c channels, m tokens, r rank of a block's tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


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
