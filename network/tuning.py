"""How much of a pretrained backbone is trained: nothing, LoRA's low-rank updates or Rein's tokens."""

from __future__ import annotations

import re

from torch import nn

from network.backbone_base import BackboneBase
from network.rein import insert_rein
from network.timm_backbone import TimmBackbone
from utils.errors import UserError


def restrict_tuning(backbone: BackboneBase, tune: str, *, rank: int, tokens: int) -> None:
    """Freeze what a weight file fills, and add what is trained in its place; the rest of the network is left alone.

    LoRA (Hu et al., ICLR 2022) updates every linear layer, or in a network without any every convolution that is
    neither grouped nor dilated, by `rank` (alpha is the same number). Rein is network.rein with `tokens` per block.

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
