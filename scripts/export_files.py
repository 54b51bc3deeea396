"""What scripts.export writes: graphs, weights under our names or the originals', and what a file tells of itself."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import warnings
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import config
from config import Config
from datasets.labels import CLASS_NAMES, PALETTE
from evaluation.description import describe_checkpoint
from network import Segmentor
from network.weights import published_arch, published_state
from transforms import build_normalisation
from transforms.appearance import Normalisation
from utils import checkpoint, format_table, version
from utils.errors import UserError, reason
from utils.files import write

logger = logging.getLogger(__name__)

CARD = """---
{head}---

# {title}

Semantic segmentation of street scenes into the 19 classes of Cityscapes.

{facts}

## Scores

{scores}

## Use

With the DIIA project checked out:

```python
from inference import load

model = load("PATH OR hf://OWNER/NAME")  # this folder
labels = model.segment("street.png")  # (H, W) uint8 train ids
```

`valid.py`, `predict.py` and `train.py` take the same as `--snapshot`. `config.json` holds every setting of the
training; `model.safetensors` holds the weights, which any reader of safetensors opens.
"""


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
        if self.normalisation is not None:
            images = self.normalisation.by(self.constants, images)  # whose cache of constants tracing would fill
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


def describe(network: Segmentor, saved: Config, content: dict[str, Any], args: argparse.Namespace) -> dict[str, str]:
    """Return what a file says of itself, texts or JSON."""
    about = {"source": "", **describe_checkpoint(network, saved, content)}
    normalisation = build_normalisation(saved)
    moments = {name: json.dumps(getattr(normalisation, name)) for name in ("mean", "std")}
    if normalisation.per_image:
        moments = dict.fromkeys(moments, "of each image")
    return {
        "classes": json.dumps(CLASS_NAMES),
        "colours": json.dumps(PALETTE.tolist()),
        **{name: str(about[name]) for name in ("method", "source", "network")},
        "protocol": "native size, one scale, no flip, one image per batch",
        "input": f"{'normalised float32' if args.float else 'uint8'} RGB (N, 3, H, W)",
        "output": "logits (N, classes, H, W)" if args.logits else "train ids (N, H, W) uint8",
        "weights": "float16" if args.half else "float32",
        **moments,
        "project": f"DIIA {version()}",
    }


def halved(network: Segmentor) -> Segmentor:
    """Return a copy with weights in float16, or raise `UserError` where one of them is too large for that."""
    copy = deepcopy(network).half()
    for name, value in copy.state_dict().items():
        if not value.isfinite().all():
            raise UserError(f"--half: {name} has values above 65504, the largest of float16; leave it out")
    return copy


def published_flags(network: Segmentor, saved: Config) -> list[str]:
    """Return the flags of valid.py by which published weights are read, or raise `UserError` where nobody has any."""
    words = ["--arch", published_arch(network), "--wt_layer", *map(str, network.method.codes)]
    for key, value in (("MEAN", saved.AUGMENT.MEAN), ("STD", saved.AUGMENT.STD)):
        words += [config.KEYS[f"AUGMENT.{key}"].flag, *map(str, value)] if value else []
    words += ["--image_in"] if saved.AUGMENT.IMAGE_IN else []
    return [*words, "--layout_confidence", saved.LOSS.LAYOUT_CONFIDENCE]


def write_weights(
    path: Path,
    network: Segmentor,
    saved: Config,
    content: dict[str, Any],
    args: argparse.Namespace,
    *,
    metadata: dict[str, str],
) -> None:
    """Write the weights of a network that was read from `content`, and the texts of `describe` where there is room."""
    if args.format == "published":
        published = {f"module.{name}": value for name, value in published_state(network).items()}
        command = shlex.join(["python", "valid.py", *published_flags(network, saved)])
        about = {"epoch": content["progress"]["epoch"], "mean_iu": 0.0, "command": command}
        write(path, partial(torch.save, {"state_dict": published, **about}), what="the weights")
        return
    kind = checkpoint.CONVERTED if content["kind"] == checkpoint.CONVERTED else checkpoint.EXPORTED
    written = {**content, "kind": kind, "config": config.to_dict(saved), "network": network.state_dict()}
    if args.format == "safetensors":
        checkpoint.save_weights(path, written, metadata=metadata)
        return
    about = {"checkpoint": content["kind"], "backbone": network.backbone.spec.title}
    about |= describe_checkpoint(network, saved, content)
    same: dict[str, Any] = {name: about[name] for name in ("checkpoint", "step", "seed", "method") if name in about}
    scores = reports_on(Path(args.weights), weights=same)
    about["weights"] = metadata["weights"]
    card = model_card(about, license_name=args.license or "unknown", scores=scores)
    checkpoint.save_folder(path, written, metadata=metadata, card=card)


def model_card(about: Mapping[str, Any], *, license_name: str, scores: list[str]) -> str:
    """Return the text of a model card.

    Args:
        about: what is told of the weights, by name; `method` and `backbone` are there.
        license_name: as huggingface.co lists them, `mit` or `other`.
        scores: tables on these weights, in Markdown.
    """
    method, backbone = about["method"], about["backbone"]
    head = {
        "license": license_name,
        "library_name": "diia",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "domain-generalization", "street-scenes", "pytorch", method, backbone],
    }
    facts = [["", ""], *([name, str(value)] for name, value in about.items() if value not in ("", None))]
    none = "None were found beside the checkpoint."
    return CARD.format(
        head=yaml.safe_dump(head, sort_keys=False),
        title=f"{method}, {backbone}",
        facts=format_table(facts, "markdown"),
        scores="\n".join(scores).rstrip() or none,
    )


def reports_on(path: Path, *, weights: Mapping[str, Any]) -> list[str]:
    """Return the scores.md in the folder of a checkpoint, or in one named `scores...` inside it, on these very weights.

    Args:
        path: of the checkpoint.
        weights: checkpoint, step, seed and method, which must agree as far as a report has them.
    """
    found = []
    for file in sorted([*path.parent.glob("scores.json"), *path.parent.glob("scores*/scores.json")]):
        try:
            about = json.loads(file.read_bytes())["weights"]
            same = all(about.get(name, value) == value for name, value in weights.items())
            if same and Path(about["file"]).name == path.name:
                text = file.with_suffix(".md").read_text(encoding="utf-8")
                found.append(text.replace(escape(about["file"], quote=False), path.name))  # not where it lies
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s: not a score file of train.py or valid.py (%r); left out", file, error)
    return found
