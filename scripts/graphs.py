"""The graph of a network with its normalisation, as a program of torch.export or ONNX."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from network import Segmentor
from transforms.appearance import Normalisation
from utils.errors import UserError, reason


class Deployed(nn.Module):
    """What a file holds: images (N, 3, H, W) to labels (N, H, W) uint8 or logits (N, classes, H, W).

    Attributes:
        normalisation: of uint8 images, None where they are normalised already.
        dtype: of the network's weights.
    """

    constants: Tensor  # (2,3,1,1)

    def __init__(
        self,
        network: Segmentor,
        *,
        normalisation: Normalisation | None,
        gives_logits: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.network, self.normalisation, self.gives_logits, self.dtype = network, normalisation, gives_logits, dtype
        if normalisation is not None:
            constants = torch.tensor((normalisation.mean, normalisation.std)).mul(255)[..., None, None]
            self.register_buffer("constants", constants, persistent=False)

    def logits(self, images: Tensor) -> Tensor:
        if self.normalisation is not None:  # its own arithmetic, without its cache, which tracing would fill
            images, (mean, std) = images.float(), self.constants
            if self.normalisation.per_image:
                mean, std = images.mean(dim=(2, 3), keepdim=True), images.std(dim=(2, 3), keepdim=True) + 255e-5
            images = (images - mean) / std
        return self.network.predict(images.to(self.dtype)).float()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.logits(images)
        return logits if self.gives_logits else logits.argmax(1).to(torch.uint8)


def reason_of(error: BaseException, args: argparse.Namespace) -> str:
    while error.__cause__ is not None:  # where ONNX's exporter wraps it
        error = error.__cause__
    return f"({reason(error)}); " + ("leave out --dynamic" if args.dynamic else "use --format safetensors")


def trace(deployed: Deployed, example: Tensor, args: argparse.Namespace) -> Any:
    """Return the exported program of torch or ONNX; sizes that are free are named in the latter."""
    axes = {0: "batch", 2: "height", 3: "width"}
    images = torch.cat([example, example]) if args.dynamic else example  # a batch of one would stay one
    free = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC) if args.dynamic else None,)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's and onnxscript's own code
            program = torch.export.export(deployed, (images,), dynamic_shapes=free, strict=False)  # as from 2.7 on
            if args.format == "pt2":
                return program
            names: Any = {"input_names": ["images"], "output_names": ["logits" if args.logits else "labels"]}
            names |= {"dynamic_shapes": (axes,)} if args.dynamic else {}
            return torch.onnx.export(program, dynamo=True, verbose=False, **names)
    except Exception as error:  # torch has many for what it cannot trace
        raise UserError(f"--format {args.format}: torch cannot trace this network {reason_of(error, args)}") from error


def save(program: Any, path: Path, *, metadata: dict[str, str]) -> None:
    """Write what `trace` gave with the texts of `describe`; in pt2 they are the extra file metadata.json."""
    if isinstance(program, torch.export.ExportedProgram):
        torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata, indent=1)})
    else:
        program.model.metadata_props.update(metadata)
        program.save(path, external_data=False)
