"""Graphs of any program as models: ONNX files, and the torch.export files of scripts.export.

Letters: B images, C classes, H x W their size. A graph takes images (N, 3, H, W) and returns logits (N, 19, H, W), at a
stride too, or labels (N, H, W).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from config import Config
from datasets.labels import NUM_CLASSES
from transforms import build_normalisation
from transforms.appearance import Normalisation
from utils.errors import ImageError, UserError, reason
from utils.files import likely_cause

SUFFIXES = (".onnx", ".pt2")
_TYPES = {  # of ONNX -> of torch
    "tensor(uint8)": torch.uint8,
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
}
_PREFERRED = ("out", "logits", "labels")  # names of outputs: torchvision's, ours


class Port(NamedTuple):
    """An input or an output: name, type, and sides, of which those that are free are 0; () where nothing is known."""

    name: str
    dtype: torch.dtype | None
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, dtype: torch.dtype | None, sides: Iterable[object]) -> Port:
        """Return the port for sides that are whole numbers where they are fixed."""
        return cls(name, dtype, tuple(side if type(side) is int else 0 for side in sides))

    def __str__(self) -> str:
        sides = ", ".join(str(side or "free") for side in self.shape)
        return f"{self.name} ({sides}) {str(self.dtype).removeprefix('torch.')}"


class Opened(NamedTuple):
    """What was read from a file: its ports, its metadata, and what maps the input to all outputs."""

    inputs: list[Port]
    outputs: list[Port]
    metadata: Mapping[str, str]
    run: Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Graph:
    """A file that was opened; subclasses predict logits, or label.

    Attributes:
        index: of the output that is taken.
        normalise: images of 0..255 to what the graph takes, its type aside.
    """

    path: str
    opened: Opened
    index: int
    normalise: Callable[[Tensor], Tensor]

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.opened.metadata

    def describe(self) -> str:
        """Return one line for the log and the report."""
        known = self.metadata.get("network", "")
        graph = f"graph {self.opened.inputs[0]} -> {self.opened.outputs[self.index]}"
        return f"{known}, {graph}" if known else graph

    @property
    def note(self) -> str:
        """What a protocol says of it; its precision changes scores by a little."""
        return ", in float16" if self.metadata.get("weights") == "float16" else ""

    @property
    def normalisation(self) -> str:
        return str(self.normalise) if isinstance(self.normalise, Normalisation) else "in the graph"

    def _run(self, images: Tensor) -> Tensor:
        """Return the output for images (B, 3, H, W), normalised; what the graph cannot take raises `UserError`."""
        (_, dtype, (batch, _, *sides)), (height, width) = self.opened.inputs[0], images.shape[2:]
        if any(fixed not in (0, side) for fixed, side in zip(sides, (height, width), strict=True)):
            fixed = "x".join(str(side or "any") for side in sides[::-1])
            windows = f", or for larger ones take --eval_protocol sliding --window {sides[0] or 'H'} {sides[1] or 'W'}"
            raise ImageError(
                f"{self.path} takes images of {fixed} alone, this one has {width}x{height}: export it with free height "
                f"and width{windows if isinstance(self, LogitsGraph) else ''}"
            )
        assert dtype is not None
        whole = images.round().clamp(0, 255).to(dtype) if dtype == torch.uint8 else images.to(dtype)
        parts = whole.split(1) if batch == 1 else (whole,)
        with _graph_errors(self.path, f"cannot run on images of {width}x{height}", kind=ImageError):
            return torch.cat([self.opened.run(part.contiguous())[self.index].to(images.device) for part in parts])


@dataclass(frozen=True)
class LogitsGraph(Graph):
    """A graph with logits, which is evaluated as a network is."""

    resized: set[bool] = field(default_factory=set, init=False, compare=False)  # empty until logits were

    @property
    def note(self) -> str:
        """What a protocol says of it: known where it has run. Factors vary with the sizes of the images."""
        return super().note + (", logits resized bilinearly" if self.resized else "")

    def predict(self, images: Tensor) -> Tensor:
        """Return logits (B, C, H, W) float32 of normalised images (B, 3, H, W)."""
        logits, size = self._run(images).float(), images.shape[2:]
        if logits.ndim != 4 or logits.shape[1] != NUM_CLASSES:
            raise UserError(_no_output(self.path, f"it returns {tuple(logits.shape)}"))
        if logits.shape[2:] == size:
            return logits
        self.resized.add(True)
        return interpolate(logits, tuple(size), mode="bilinear")


@dataclass(frozen=True)
class LabelsGraph(Graph):
    """A graph that ends with the largest logit's class, which is evaluated as it is."""

    def labels(self, images: Tensor, names: Sequence[str]) -> Tensor:
        """Return the train ids (B, H, W) uint8 of images (B, 3, H, W) uint8."""
        labels = self._run(self.normalise(images))
        labels = labels[:, 0] if labels.ndim == 4 and labels.shape[1] == 1 else labels
        if labels.shape != images[:, 0].shape or labels.is_floating_point():
            raise UserError(
                f"{self.path} returns labels {tuple(labels.shape)} for images {tuple(images.shape)}; labels have the "
                "size of the images: export logits, which are resized"
            )
        if labels.min() < 0 or labels.max() >= NUM_CLASSES:
            raise UserError(
                f"{self.path} returns labels from {int(labels.min())} to {int(labels.max())}; train ids are 0 to "
                f"{NUM_CLASSES - 1}"
            )
        return labels.to(torch.uint8)


def is_graph(path: str | Path) -> bool:
    return Path(path).suffix.lower() in SUFFIXES


def open_graph(cfg: Config, device: torch.device) -> LogitsGraph | LabelsGraph:
    """Open the graph that --model names and choose its output and its normalisation, or raise `UserError`."""
    path = cfg.RUN.SNAPSHOT
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file")
    with _graph_errors(path, "is no model that can be opened"):
        opened = (_open_pt2 if Path(path).suffix.lower() == ".pt2" else _open_onnx)(path, device)
    if len(opened.inputs) != 1 or len(opened.inputs[0].shape) != 4 or opened.inputs[0].shape[1] not in (0, 3):
        told = "; ".join(map(str, opened.inputs)) or "nothing"
        raise UserError(f"{path}: takes {told}, where images (N, 3, H, W) are the only input; export it so")
    (images,) = opened.inputs
    if images.dtype not in (torch.uint8, torch.float32, torch.float16) or images.shape[0] not in (0, 1):
        raise UserError(
            f"{path}: takes {images}, where images are uint8 or float, in a batch of 1 or any; export it so"
        )
    index, has_logits = choose_output(path, opened.outputs)
    graph = (LogitsGraph if has_logits else LabelsGraph)(path, opened, index, choose_normalisation(cfg, opened))
    views = {
        "--eval_protocol": cfg.EVAL.PROTOCOL in ("half", "sliding"),
        "--scales": cfg.EVAL.SCALES,
        "--flip": cfg.EVAL.FLIP,
    }
    if not has_logits and (given := ", ".join(flag for flag, value in views.items() if value)):
        raise UserError(f"{path}: returns labels, and {given} needs logits; export logits, or leave it out")
    if cfg.OPTIM.AMP != "off":
        raise UserError(
            f"--amp {cfg.OPTIM.AMP}: {path} computes in the precision that it was exported in; leave it out"
        )
    return graph


def choose_output(path: str, outputs: Sequence[Port]) -> tuple[int, bool]:
    """Return the number of the output to take, and whether it holds logits, or raise `UserError`.

    Logits come before labels, those whose 19 classes are known before others, a name of `_PREFERRED` before others.
    """
    ranks = []
    for index, (name, dtype, shape) in enumerate(outputs):
        real = dtype is None or dtype.is_floating_point
        logits = real and (not shape or (len(shape) == 4 and shape[1] in (0, NUM_CLASSES)))
        labels = not real and (not shape or len(shape) == 3 or (len(shape) == 4 and shape[1] in (0, 1)))
        if logits or labels:
            ranks.append((not logits, not shape or not shape[1], name not in _PREFERRED, index))
    if not ranks:
        raise UserError(_no_output(path, f"its outputs are {'; '.join(map(str, outputs))}"))
    is_label, _, _, index = min(ranks)
    return index, not is_label


def _no_output(path: str, what: str) -> str:
    wanted = f"logits (N, {NUM_CLASSES}, H, W) or labels (N, H, W)"
    return f"{path}: {what}, where {wanted} are evaluated; it is a model of another task"


def choose_normalisation(cfg: Config, opened: Opened) -> Callable[[Tensor], Tensor]:
    """Return what brings images of 0..255 to a graph's input, from its metadata or --mean and --std."""
    (images,), path, given = opened.inputs, cfg.RUN.SNAPSHOT, cfg.AUGMENT
    raw, ours = images.dtype == torch.uint8, opened.metadata.get("project", "").startswith("DIIA ")
    if (raw or ours) and (given.IMAGE_IN or given.MEAN is not None or given.STD is not None):
        known = "a uint8 input, which it normalises itself" if raw else "metadata that say how to normalise"
        raise UserError(f"{path}: has {known}; leave out --mean, --std and --image_in")
    if raw:
        return Tensor.float
    if ours:
        texts = [opened.metadata[name] for name in ("mean", "std")]
        if texts[0] == "of each image":
            return Normalisation(per_image=True)
        mean, std = (tuple(map(float, json.loads(text))) for text in texts)
        return Normalisation(mean=mean, std=std)
    if not given.IMAGE_IN and (given.MEAN is None or given.STD is None):
        raise UserError(
            f"{path}: takes float images and does not say how they are normalised; give --mean and --std of 0..1 "
            "(ImageNet's are 0.485 0.456 0.406 and 0.229 0.224 0.225), or --image_in"
        )
    return build_normalisation(cfg)


@contextmanager
def _graph_errors(path: str, what: str, *, kind: type[UserError] = UserError) -> Iterator[None]:
    """Turn what onnxruntime and torch raise, which have many errors, into one of a kind."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        raise UserError(f"{path}: {error}; pip install onnxruntime") from error
    except Exception as error:
        cause = likely_cause(path, "it is damaged, or made for other images")
        raise kind(f"{path}: {what} ({reason(error)}); {cause}") from error


def onnx_session(model: str | bytes, device: torch.device) -> Any:
    """Return onnxruntime's session of a file or of its content; on the CPU with as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised anyway
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    return onnxruntime.InferenceSession(model, options, providers=providers)


def _open_onnx(path: str, device: torch.device) -> Opened:
    session = onnx_session(path, device)
    inputs, outputs = (
        [Port.of(port.name, _TYPES.get(port.type), port.shape or ()) for port in ports]
        for ports in (session.get_inputs(), session.get_outputs())
    )

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(array) for array in session.run(None, {inputs[0].name: images.cpu().numpy()})]

    return Opened(inputs, outputs, dict(session.get_modelmeta().custom_metadata_map), run)


def _open_pt2(path: str, device: torch.device) -> Opened:
    texts = {"metadata.json": ""}
    logging.getLogger("torch.export").setLevel(logging.ERROR)  # warns with tracebacks of what it raises anyway
    program = torch.export.load(path, extra_files=texts)
    if not texts["metadata.json"]:
        raise UserError(f"{path}: is none of scripts.export's files; export the model as ONNX")
    if device.type == "cuda":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    signature = program.graph_signature
    inputs, outputs = (
        [Port.of(str(name), values[name].dtype, values[name].shape) for name in names]
        for names in (signature.user_inputs, signature.user_outputs)
    )
    module: Any = program.module()

    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [module(images.to(device))]

    return Opened(inputs, outputs, json.loads(texts["metadata.json"]), run)
