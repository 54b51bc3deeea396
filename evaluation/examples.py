"""The best, median and worst frame of each domain, by the mean IoU of the single frame.

Letters: H, W pixels; C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from datasets.labels import CLASS_NAMES
from datasets.loaders import EvaluationLoader
from evaluation.evaluator import Evaluator, Labeller, Predictor
from evaluation.metrics import Scores, merge_table, score
from evaluation.report import Frame, ImageCounts
from network import Segmentor
from utils.errors import lacks_memory
from utils.pictures import Array

logger = logging.getLogger(__name__)
MAX_DOMAINS = 12  # of which frames are kept: a page of them stays below 5 MB
RANKS = ("best", "median", "worst")


@dataclass(frozen=True)
class Example:
    """A frame of a split with its own scores.

    frame: image (H,W,3), truth (H,W) and prediction (H,W), uint8; what the domain counts as one class is one.
    edge, layout: DIIA's edge map (H,W) and coarse layout (H,W), 255 where not confident; None for other methods.
    """

    rank: str
    name: str
    scores: Scores
    frame: Frame
    edge: Array | None = None
    layout: Array | None = None


def rank_frames(confusions: Array, *, classes: Iterable[int]) -> dict[str, int]:
    """Return which of the frames with counts (N,C,C) are best, median and worst, each frame once.

    Frames are ranked by their mean IoU over the classes that their truth or prediction has; those without a labelled
    pixel are left out.
    """
    chosen = sorted(classes)
    values = np.array([score(counts, CLASS_NAMES, classes=chosen).mean_iou for counts in confusions])
    labelled = confusions[:, chosen].sum(axis=(1, 2)) > 0
    order = [int(index) for index in np.argsort(-values, kind="stable") if labelled[index]]
    places = {"best": 0, "worst": len(order) - 1, "median": (len(order) - 1) // 2}
    once = {order[place]: rank for rank, place in reversed(places.items()) if order}
    return {rank: index for index, rank in sorted(once.items(), key=lambda item: RANKS.index(item[1]))}


def examples_of(
    evaluator: Evaluator,
    model: Predictor | Labeller,
    loaders: Sequence[EvaluationLoader],
    per_image: Mapping[str, ImageCounts],
) -> list[list[Example]]:
    """Return the examples of the first MAX_DOMAINS loaders of images that are not corrupted, whose counts are given."""
    clean = [loader for loader in loaders if not loader.corruption][:MAX_DOMAINS]
    return [find_examples(evaluator, model, loader, per_image[loader.name]) for loader in clean]


def find_examples(
    evaluator: Evaluator, model: Predictor | Labeller, loader: EvaluationLoader, counts: ImageCounts
) -> list[Example]:
    """Evaluate the ranked frames of a split again, by themselves, and return them.

    Every process takes part; the first one reads the frames and has the result, the others get none.

    Args:
        counts: of every image of the split, classes merged as the domain does.
    """
    domain = loader.split.domain
    ranked = rank_frames(counts.confusion, classes=domain.classes)
    alone = replace(evaluator, batch_size=1, num_pictures=len(RANKS), more_metrics=False, per_image=False)
    frames = alone.evaluate(model, loader.only(list(ranked.values()))).frames
    examples, merged = [], merge_table(domain.merge)
    for (rank, index), (image, truth, prediction) in zip(ranked.items(), frames, strict=False):
        scores = score(counts.confusion[index], CLASS_NAMES, classes=domain.classes)
        edge, layout = _branches(evaluator, model, image)
        layout = None if layout is None else merged[layout]
        frame = image, merged[truth], merged[prediction]
        examples.append(Example(rank, counts.names[index], scores, frame, edge, layout))
    return examples


@torch.inference_mode()
def _branches(evaluator: Evaluator, network: object, image: Array) -> tuple[Array | None, Array | None]:
    """Return DIIA's edge map and layout of an image; none of another method, or where images are not taken as they are.

    Where they need more memory than the scores did, which a GPU may lack, there are none either.
    """
    how = evaluator.inference
    if not isinstance(network, Segmentor) or how.window or how.halved or how.scales != (1.0,):
        return None, None
    if not {"edge", "layout"} & set(network.method.parts):
        return None, None
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(evaluator.device)
    dtype, training = evaluator.autocast_dtype, network.training
    network.eval()
    try:
        with torch.autocast(evaluator.device.type, dtype=dtype, enabled=dtype is not None):
            output = network(evaluator.normalise(tensor))
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        logger.warning("no edge maps and layouts in the report: the memory of the GPU does not suffice for them")
        return None, None
    finally:
        network.train(training)
    found = {name: maps[0].cpu().numpy() for name, maps in output.branches().items()}
    return found.get("edge"), found.get("layout")
