"""Evaluation: every pixel of every image of a split, into one int64 confusion matrix that all processes share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from datasets.domains import Domain, share_images
from datasets.labels import CLASS_NAMES, IGNORE, NUM_CLASSES, PALETTE
from datasets.loaders import EvaluationLoader
from datasets.segmentation import EvaluationSample
from evaluation.features import FeaturePlotter
from evaluation.graphs import LogitsGraph
from evaluation.metrics import argmax_classes, confusion_matrix, merge_classes, merge_table
from evaluation.more_metrics import MoreCounts, plot_reliability
from evaluation.protocols import Inference
from evaluation.report import DomainScore, Evaluation, Frame, ImageCounts, domain_scores
from network import Segmentor
from network.outputs import logit_parts
from network.scoring import scoring_copy
from utils import distributed, signals
from utils.errors import UserError
from utils.pictures import Picture, comparison

T = TypeVar("T")
NOTHING_LABELLED = (
    "{split}: no pixel of its labels has a class, so there are no scores (test labels are often withheld); evaluate "
    "another split with --split, or write predictions for the data set's test server with predict.py --submit"
)
logger = logging.getLogger(__name__)


class Predictor(Protocol):
    """Computes logits: a network, or a graph of any other program."""

    def predict(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, h, w) to logits (B, C, h, w)."""


@runtime_checkable
class Labeller(Protocol):
    """Has labels and no logits: predictions in files, or a graph that ends with the largest logit's class."""

    def labels(self, images: Tensor, names: Sequence[str]) -> Tensor:
        """Return the train ids (B, h, w) uint8 of images (B, 3, h, w) uint8 of these names, 255 for no class."""


@dataclass(frozen=True)
class Evaluator:
    """Evaluates networks, and what predicts or labels like one, on domains, always in the same way.

    Attributes:
        batch_size: neighbours of equal size that go through the network together. DIIA's layout thresholds are taken
            over the batch, so scores are independent of it only at 1.
        inference: how the network is run on the images: whole or in windows, at which scales, flipped.
        num_pictures: images of rank 0's share that become pictures, evenly spaced.
        more_metrics: whether boundaries and calibration are evaluated too (evaluation.more_metrics).
        per_image: whether the counts of each image are kept.
        plotter: plots what the network computes inside for these images, None for not.
    """

    normalise: Callable[[Tensor], Tensor]
    device: torch.device
    batch_size: int = 1
    autocast_dtype: torch.dtype | None = None
    inference: Inference = field(default_factory=Inference)
    num_pictures: int = 0
    more_metrics: bool = False
    per_image: bool = False
    plotter: FeaturePlotter | None = None

    def __call__(
        self,
        model: Predictor | Labeller,
        loaders: Iterable[EvaluationLoader],
        *,
        sources: Sequence[str],
        domains: Mapping[str, Domain],
        findings: Mapping[str, Sequence[str]],
    ) -> tuple[list[DomainScore], list[Picture], dict[str, ImageCounts]]:
        """Return the scores of all domains, of each its main score first, rank 0's pictures, and counts by domain.

        `sources` are the domains that the model was trained on, NAME or NAME/trainval, `domains` those that are known
        by name, `findings` what is wrong with a domain's data.
        """
        model = for_scoring(model)
        rows, plots, per_image, loaders = list[DomainScore](), list[Picture](), dict[str, ImageCounts](), [*loaders]
        homes = [source.partition("/")[0] for source in sources]
        trained = [domains[home] for home in homes] if domains.keys() >= {*homes} else []
        for loader in loaders:
            if isinstance(model, LogitsGraph):
                model = replace(model)  # one that has resized no logits yet
            domain, result = loader.split.domain, self.evaluate(model, loader)
            how = {"scales": self.inference.views, "corruption": loader.corruption}
            how["transform"] = loader.protocol + self.inference.resizing + getattr(model, "note", "") + self.precision
            known = list(findings.get(domain.name, ()))
            if not result.confusion.any():
                known.append(NOTHING_LABELLED.format(split=f"{domain.name}/{loader.split.name}"))
                logger.warning(known[-1])
            scores = domain_scores(
                result,
                loader.split,
                is_source=any(share_images(domain.name, home) for home in homes),
                memorised=f"{domain.name}/trainval" in sources,
                findings=known,
                sources=trained,
                **how,
            )
            rows += scores
            plots += self._plot(loader, result.frames)
            if result.images is not None:
                names = [pair.name for pair in loader.split.pairs]
                per_image[loader.name] = ImageCounts(names, merge_classes(result.images, domain.merge))
            if result.more is not None and not isinstance(model, Labeller) and distributed.is_main():
                title = f"{loader.name}: {scores[0].protocol}"
                sheet = plot_reliability(result.more.confidences, classes=domain.classes, title=title)
                plots.append(Picture(f"{loader.name}/reliability", f"{_file_name(loader)}_reliability.png", sheet))
        return rows, plots, per_image

    @property
    def precision(self) -> str:
        """What a protocol says of mixed precision, which changes scores by tenths of a point; nothing of float32."""
        return "" if self.autocast_dtype is None else f", in {str(self.autocast_dtype).removeprefix('torch.')}"

    @torch.inference_mode()
    def evaluate(
        self, model: Predictor | Labeller, loader: EvaluationLoader, *, num_classes: int = NUM_CLASSES
    ) -> Evaluation:
        """Evaluate a model on a split; the processes share the images and all of them return the same counts.

        A network is put in evaluation mode and back. Without logits there is no loss and no calibration.
        """
        num_images, name, rank = len(loader.split.pairs), loader.name, distributed.rank()
        size = num_images if self.per_image else 1, num_classes, num_classes
        counts = torch.zeros(size, dtype=torch.int64, device=self.device)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss over pixels, labelled pixels, images
        more = MoreCounts.of_domain(loader.split.domain, device=self.device) if self.more_metrics else None
        share = -(-num_images // distributed.world_size())  # images of rank 0
        spacing = max(share // self.num_pictures, 1) if self.num_pictures and distributed.is_main() else 0
        frames, position = list[Frame](), 0
        bar = tqdm(total=share, desc=f"evaluate {name}", unit="image", disable=not distributed.is_main(), leave=False)
        samples = signals.stoppable(_same_size(loader, self.batch_size))
        model = for_scoring(model)
        with bar:  # an error is told on a line of its own
            for group in evaluation_mode(model, cudnn_benchmark_off(samples)):
                images = torch.stack([sample.image for sample in group]).to(self.device)  # (B,3,h,w)
                labels = torch.stack([sample.label for sample in group]).to(self.device)  # (B,h,w) uint8
                names = [sample.name for sample in group]
                try:
                    predictions, loss = self._predict(model, images, labels, names, more=more)
                except UserError as error:
                    raise UserError(f"{name}: {names[0]}: {error}") from error
                if not self.per_image:
                    counts[0] += confusion_matrix(labels, predictions, num_classes=num_classes)
                sums[0] += loss
                sums[1] += (labels != IGNORE).sum()
                sums[2] += len(group)
                for sample, label, prediction in zip(group, labels, predictions, strict=True):
                    if self.per_image:  # as the loaders share the images
                        index = rank + position * distributed.world_size()
                        counts[index] = confusion_matrix(label, prediction, num_classes=num_classes)
                    if spacing and len(frames) < self.num_pictures and position % spacing == 0:
                        image = sample.image.permute(1, 2, 0).numpy()
                        frames.append((image, sample.label.numpy(), prediction.cpu().numpy()))
                    position += 1
                bar.update(len(group))
        distributed.all_reduce_sum(counts)
        if more is not None:
            more.share()
        total, pixels, evaluated = distributed.all_reduce_sum(sums).tolist()
        assert evaluated == num_images, (evaluated, num_images)
        loss, confusions = total / pixels if pixels else float("nan"), counts.cpu().numpy()
        return Evaluation(confusions.sum(0), loss, frames, more, confusions if self.per_image else None)

    def _predict(
        self,
        model: Predictor | Labeller,
        images: Tensor,
        labels: Tensor,
        names: Sequence[str],
        *,
        more: MoreCounts | None,
    ) -> tuple[Tensor, Tensor | float]:
        """Return train ids (B, h, w) uint8 of images (B, 3, h, w) uint8, and their loss, summed over pixels.

        Logits are made and used some rows at a time; where there are none, the loss is nan.
        """
        if isinstance(model, Labeller):
            predictions = model.labels(images, names).to(images.device)
            if unknown := int(((predictions == IGNORE) & (labels != IGNORE)).sum()):
                raise UserError(
                    f"{unknown} pixels that are labelled have no class in the prediction (255, or an id that is not "
                    "evaluated); a prediction names one of the classes everywhere"
                )
            if more is not None:
                more.add_boundaries(labels, predictions)
            return predictions, float("nan")
        dtype = self.autocast_dtype
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            logits = self.inference.logits(model, self.normalise(images))
        predictions, loss = torch.empty_like(labels), torch.zeros((), dtype=torch.float64, device=self.device)
        for rows, part in logit_parts(logits):
            truth, found = labels[:, rows], argmax_classes(part)
            predictions[:, rows] = found
            loss += F.cross_entropy(part, truth.long(), ignore_index=IGNORE, reduction="sum")
            if more is not None:
                more.add_confidences(part, truth, found)
        if more is not None:
            more.add_boundaries(labels, predictions)
        return predictions, loss

    def _plot(self, loader: EvaluationLoader, frames: Sequence[Frame]) -> Iterator[Picture]:
        if not frames:
            return
        merged = merge_table(loader.split.domain.merge)  # what counts as one class is shown as one
        frames = [(image, merged[truth], merged[prediction]) for image, truth, prediction in frames]
        sheet = comparison(frames, palette=PALETTE, class_names=CLASS_NAMES)
        yield Picture(f"{loader.name}/predictions", f"{_file_name(loader)}.png", sheet)
        if self.plotter is not None:
            for number, frame in enumerate(cudnn_benchmark_off(frames), 1):
                name = f"{_file_name(loader)}_{number}"
                for kind, picture in self.plotter(*frame, merged=merged).items():
                    yield Picture(f"{name}/{kind}", f"features/{name}_{kind}.png", picture)


def for_scoring(model: Predictor | Labeller) -> Predictor | Labeller:
    """Return the scoring copy of a network of ours, and any other model as it is."""
    return scoring_copy(model) if isinstance(model, Segmentor) else model


def evaluation_mode(model: object, items: Iterable[T]) -> Iterator[T]:
    """Yield the items while a network is in evaluation mode; what is no network of torch has none."""
    modules = {model: model.training} if isinstance(model, nn.Module) else {}
    for module in modules:
        module.eval()
    yield from items
    for module, training in modules.items():
        module.train(training)


def _file_name(loader: EvaluationLoader) -> str:
    return loader.name.replace(" ", "_").replace(":", "_")


def cudnn_benchmark_off(items: Iterable[T]) -> Iterator[T]:
    """Yield the items while cuDNN does not search for the fastest kernels: with sizes that vary it cannot pay off."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield from items
    finally:
        torch.backends.cudnn.benchmark = before


def _same_size(samples: Iterable[EvaluationSample], batch_size: int) -> Iterator[list[EvaluationSample]]:
    for _, neighbours in groupby(samples, key=lambda sample: sample.image.shape):
        while group := list(islice(neighbours, batch_size)):
            yield group
