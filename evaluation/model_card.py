"""The model card of published weights: a README.md as a hub of weights reads it, with the scores that there are."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evaluation.metrics import Scores
from evaluation.report import DomainScore, Protocol, Report
from utils.tables import format_table

logger = logging.getLogger(__name__)

_TEXT = """---
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


def model_card(about: Mapping[str, Any], *, license_name: str, scores: list[Report]) -> str:
    """Return the text of a model card.

    Args:
        about: what is told of the weights, by name; `method` and `backbone` are there.
        license_name: as huggingface.co lists them, `mit` or `other`.
        scores: reports on these weights.
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
    return _TEXT.format(
        head=yaml.safe_dump(head, sort_keys=False),
        title=f"{method}, {backbone}",
        facts=format_table(facts, "markdown"),
        scores="\n".join(report.to_markdown() for report in scores).rstrip() or none,
    )


def reports_on(path: Path, *, weights: Mapping[str, Any]) -> list[Report]:
    """Return the reports in the folder of a checkpoint, or in one named `scores...` inside it, on these very weights.

    Args:
        path: of the checkpoint.
        weights: checkpoint, step, epoch, seed and method, which must agree as far as a report has them.
    """
    found = []
    for file in sorted([*path.parent.glob("scores.json"), *path.parent.glob("scores*/scores.json")]):
        try:
            content = json.loads(file.read_bytes())
            about = {**content["weights"], "file": Path(content["weights"]["file"]).name}  # not where it lies
            report, same = Report(about, [_row(row) for row in content["domains"]]), about["file"] == path.name
            if same and all(report.weights.get(name, value) == value for name, value in weights.items()):
                found.append(report)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s: not a score file of train.py or valid.py (%r); left out", file, error)
    return found


def _row(content: dict[str, Any]) -> DomainScore:
    """Return a row of a report from its JSON, in which a number that does not exist is null."""
    iou = {name: _number(value) for name, value in content["scores"]["iou"].items()}
    numbers: dict[str, Any] = {name: _number(value) for name, value in content["scores"].items() if name != "iou"}
    numbers.setdefault("classes_in_mean", sum(map(math.isfinite, iou.values())))  # older files do not say
    more = {name: _number(value) for name, value in content.get("more", {}).items()}
    scores, protocol = Scores(iou=iou, **numbers), Protocol(**content["protocol"])
    return DomainScore(**content | {"scores": scores, "protocol": protocol, "more": more})


def _number(value: float | None) -> float:
    return math.nan if value is None else value
