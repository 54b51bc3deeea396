"""`python -m scripts.export WEIGHTS --format onnx|pt2|safetensors|published|hub`: a network for other programs."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import config
from config import Config
from scripts import check_size
from utils import program_parser
from utils.errors import UserError, reason, run_entry_point

FORMATS = {  # -> end of the file's name, packages besides torch
    "onnx": (".onnx", ("onnx", "onnxscript", "onnxruntime")),
    "pt2": (".pt2", ()),
    "published": ("_published.pth", ()),
    "safetensors": (".safetensors", ("safetensors",)),
    "hub": ("_hub", ("safetensors",)),
}


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        "scripts.export",
        "Write a network with its normalisation to one file or folder for other programs, and compare the two.",
        details="Below 99.99 % equal labels, with --half 99 %, the exit code is 1. FILE.json says how they compare.",
    )
    text = "checkpoint of train.py or of scripts.convert_weights, folder of --format hub, hf://OWNER/NAME[@REVISION]"
    parser.add_argument("weights", metavar="WEIGHTS", help=text)
    parser.add_argument("--format", required=True, choices=list(FORMATS), help="what to write")
    size = {"nargs": 2, "type": int, "default": [1024, 2048], "metavar": ("HEIGHT", "WIDTH")}
    parser.add_argument("--size", **size, help="size of the images")  # type: ignore[arg-type]
    parser.add_argument("--dynamic", action="store_true", help="leave batch, height and width free")
    parser.add_argument("--half", action="store_true", help="float16 weights, which a graph also computes in")
    parser.add_argument("--float", action="store_true", help="take normalised float32 images instead of uint8")
    parser.add_argument("--logits", action="store_true", help="return logits instead of labels")
    parser.add_argument(
        "--license", default="", metavar="NAME", help="of the weights, for the card of --format hub: mit ..."
    )
    parser.add_argument("--out", metavar="FILE", help="file or folder to write; default: beside the weights")
    parser.add_argument("--overwrite", action="store_true", help="replace --out where it exists")
    parser.add_argument("--frames", nargs="+", default=[], metavar="FILE", help="images to compare on; default: noise")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and wrong flags are answered before the slow imports below

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.codec import read_image
from evaluation.graphs import onnx_session
from evaluation.metrics import argmax_classes
from inference import load_network
from network import Segmentor
from network.tuning import unwrap_lora
from network.weights import published_arch
from scripts.export_files import Deployed, describe, halved, reason_of, save, trace, write_weights
from transforms import build_normalisation
from utils import checkpoint, logs
from utils.files import beside, make_folder, write_text

LEAST_EQUAL = 0.9999  # share of labels; sums in another order move single pixels at borders
LEAST_EQUAL_HALF = 0.99  # rounding to 11 bits moves more of them
ONNX_TORCH = (2, 9)  # older exporters fail on these networks
LARGEST_ONNX = 2**31 - 2**20  # bytes of weights: protobuf holds less than 2 GiB
RunFile = Callable[[Tensor], tuple[Tensor, Tensor]]  # images -> labels (N,H,W) uint8, logits (N,C,H,W)


def load(path: str, *words: str) -> tuple[Segmentor, Config, dict[str, Any]]:
    """Return the network of a checkpoint, ready to predict, LoRA merged; its config and its content.

    `words` are the flags of valid.py that name the network of published weights.
    """
    content = checkpoint.read(path)
    if not (checkpoint.is_ours(content) or words):
        raise UserError(f"{path}: holds no config; turn it into a checkpoint first: python -m scripts.convert_weights")
    network, saved = load_network(config.parse(["--snapshot", path, *words], program="valid"), content)
    network.backbone.checkpoint_blocks(wanted=False)
    if saved.NETWORK.TUNE == "lora":
        unwrap_lora(network)
        saved.NETWORK.TUNE = network.backbone.tune = "full"
        saved.NETWORK.LORA_RANK = config.KEYS["NETWORK.LORA_RANK"].default  # another one needs --tune lora
    return network.eval().requires_grad_(False), saved, content


def read_frames(files: Sequence[str], *, size: tuple[int, int], dynamic: bool) -> list[Tensor]:
    """Return batches (N, 3, H, W) uint8: images in `size`, then with `dynamic` two of them at three quarters of it.

    Without files they are two of smooth noise, the same in every run.
    """
    images = [torch.from_numpy(read_image(file)).permute(2, 0, 1)[None].float() for file in files]
    if not files:
        generator, cells = torch.Generator().manual_seed(0), [side // 32 + 2 for side in size]
        images = [255 * torch.rand(1, 3, *cells, generator=generator) for _ in range(2)]

    def scale(image: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(image, size=tuple(size), mode="bilinear", antialias=True).round().clamp(0, 255).byte()

    batches = [scale(image, size) for image in images]
    if dynamic:
        batches.append(torch.cat([scale(image, [side * 3 // 4 for side in size]) for image in (images * 2)[:2]]))
    return batches


def open_onnx(path: Path, *, gives_logits: bool) -> RunFile:
    """Return a function that runs an ONNX file on the CPU."""
    import onnx

    model = onnx.load(path)
    if not gives_logits:  # what the labels are the argmax of becomes an output too; the file stays
        last = [node for node in model.graph.node if node.op_type == "ArgMax"][-1]
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(last.input[0]))
    session = onnx_session(model.SerializeToString(), torch.device("cpu"))

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        *labels, logits = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        return (labels[0] if labels else argmax_classes(logits)), logits

    return run


def open_pt2(path: Path, *, gives_logits: bool) -> RunFile:
    """Return a function that runs a file of `torch.export.save`."""
    module: Any = torch.export.load(path).module()
    seen: list[Tensor] = []

    class Watching(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target is torch.ops.aten.argmax.default:
                seen[:] = args[:1]
            return super().call_function(target, args, kwargs)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        output = Watching(module).run(images)
        return (argmax_classes(output), output) if gives_logits else (output, seen[-1])

    return run


def open_weights(path: Path, *, gives_logits: bool) -> RunFile:
    """Return a function that runs the network of a file or folder of weights; published ones say their flags."""
    words = shlex.split(checkpoint.read(path)["command"])[2:] if path.is_file() and path.suffix == ".pth" else []
    network, saved, _ = load(str(path), *words)
    deployed = Deployed(network, normalisation=build_normalisation(saved), gives_logits=gives_logits)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = deployed.logits(images)
        return argmax_classes(logits), logits

    return run


GRAPHS: dict[str, Callable[..., RunFile]] = {"onnx": open_onnx, "pt2": open_pt2}  # formats that hold more than weights


@torch.no_grad()
def compare(deployed: Deployed, run_file: RunFile, batches: Sequence[Tensor]) -> dict[str, Any]:
    """Run network and file on the same batches: share of equal labels, largest difference of logits, seconds."""
    equal = pixels = 0
    largest, seconds = 0.0, {"torch": 0.0, "file": 0.0}
    for images in batches:
        start = time.perf_counter()
        expected = deployed.logits(images)
        labels = argmax_classes(expected)
        middle = time.perf_counter()
        found_labels, found = run_file(images)
        seconds["torch"] += middle - start
        seconds["file"] += time.perf_counter() - middle
        equal += int((found_labels == labels).sum())
        pixels += labels.numel()
        largest = max(largest, float((found - expected).abs().nan_to_num(torch.inf, posinf=torch.inf).max()))
    sizes = [list(images.shape) for images in batches]
    return {"equal_labels": equal / pixels, "largest_logit_difference": largest, "seconds": seconds, "batches": sizes}


def export(args: argparse.Namespace) -> dict[str, Any]:
    """Write the file and what comparing it gave, or raise `UserError` and leave nothing; return the latter."""
    ending, packages = FORMATS[args.format]
    weights = Path(os.path.abspath(args.weights))
    out = Path(args.out or beside(args.weights, (weights.name if weights.is_dir() else weights.stem) + ending))
    out = out if out.name else Path.cwd()
    if out.suffix != (suffix := Path(f"x{ending}").suffix) and suffix:
        raise UserError(f"--out {out}: a file of --format {args.format} ends in {suffix}")
    if out.exists() and not args.overwrite:
        raise UserError(f"{out}: exists already; name another one by --out or add --overwrite")
    network, saved, content = load(args.weights)
    size = sum(value.nbytes for value in network.state_dict().values()) // (1 + args.half)
    if args.format == "onnx" and size > LARGEST_ONNX:
        raise UserError(
            f"--format onnx: one file holds 2 GiB, the weights are {size / 2**30:.1f} GiB; use --format pt2"
        )
    if args.format == "published":
        published_arch(network)
    metadata, normalise = describe(network, saved, content, args), build_normalisation(saved)
    view = {"normalisation": None if args.float else normalise, "gives_logits": args.logits}
    batches = read_frames(args.frames, size=args.size, dynamic=args.dynamic)
    batches = [normalise(images) for images in batches] if args.float else batches
    source, dtype = (halved(network), torch.float16) if args.half else (network, torch.float32)
    program = trace(Deployed(source, **view, dtype=dtype), batches[0], args) if args.format in GRAPHS else None
    make_folder(out.parent)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            path, facts = Path(folder, out.name), Path(folder, f"{out.name}.json")
            if program is not None:
                save(program, path, metadata=metadata)
            else:
                write_weights(path, source, saved, content, args, metadata=metadata)
            try:
                run_file = GRAPHS.get(args.format, open_weights)(path, gives_logits=args.logits)
                compared = compare(Deployed(network, **view), run_file, batches)
            except Exception as error:  # onnxruntime and torch have many
                raise UserError(f"--format {args.format}: the file does not run {reason_of(error, args)}") from error
            report = {"file": out.name, "weights": args.weights, **compared}
            report |= {"frames": args.frames or "smooth noise", "metadata": metadata}
            report["versions"] = {name: importlib.metadata.version(name) for name in ("torch", *packages)}
            write_text(facts, json.dumps(report, indent=1) + "\n")
            if path.is_dir() and out.is_dir():  # what else is in it stays
                for written in path.iterdir():
                    written.replace(out / written.name)
                path = facts
            for written in {path, facts}:
                written.replace(out.with_name(written.name))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{out}: cannot be written ({reason(error)}); free space or choose another folder") from error
    return report


def check(args: argparse.Namespace) -> None:
    """Raise `UserError` at flags that do not go together and at packages that are missing."""
    check_size(args.size)
    unused = [f"--{name}" for name in ("dynamic", "float", "logits") if getattr(args, name)]
    if args.format not in GRAPHS and unused:
        raise UserError(f"{', '.join(unused)}: --format {args.format} holds weights and no graph; leave it out")
    if args.format != "hub" and args.license:
        raise UserError(f"--license: --format {args.format} has no model card; leave it out, or use --format hub")
    if args.format == "onnx":
        if tuple(map(int, torch.__version__.split(".")[:2])) < ONNX_TORCH:
            needed = ".".join(map(str, ONNX_TORCH))
            raise UserError(
                f"--format onnx: needs PyTorch {needed} or newer, this is {torch.__version__}; update it or use pt2"
            )
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise UserError(f"--format onnx: {error}; pip install onnx onnxscript onnxruntime") from error


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    logs.setup_logging()
    for name in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    check(args)
    report = export(args)
    seconds, share = report["seconds"], report["equal_labels"]
    logs.write_line(
        f"{report['file']}: {100 * share:.4f} % of labels equal, logits differ by up to "
        f"{report['largest_logit_difference']:.2g}, {seconds['file']:.1f} s, torch {seconds['torch']:.1f} s"
    )
    if share < (least := LEAST_EQUAL_HALF if args.half else LEAST_EQUAL):
        logs.write_line(f"below {100 * least:g} % equal labels: do not use {report['file']}")
        sys.exit(1)


if __name__ == "__main__":
    run_entry_point(main)
