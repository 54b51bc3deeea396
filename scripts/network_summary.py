"""`python -m scripts.network_summary [--arch NAME ...] [--backbone NAME] [--method NAME]`: how large networks are."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

from scripts import check_size
from utils import program_parser
from utils.errors import UserError, run_entry_point


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        "scripts.network_summary",
        "Show how large networks are: parameters, multiply-adds, shapes and memory of one prediction.",
        details="Nothing is computed: shapes pass through the network on PyTorch's meta device.",
    )
    parser.add_argument("--arch", nargs="+", default=[], metavar="NAME", help="published names; none: all of them")
    parser.add_argument("--backbone", default="", metavar="NAME", help="a backbone by plain name")
    parser.add_argument("--output_stride", type=int, default=0, metavar="N", help="4, 8, 16 or 32; 0: its own")
    parser.add_argument("--method", default="base", metavar="NAME", help="as for train.py: decides the head")
    parser.add_argument("--wt_layer", nargs=7, type=int, default=None, metavar="N", help="seven style codes")
    parser.add_argument(
        "--size", nargs=2, type=int, default=[1024, 2048], metavar="N", help="height, width of the image"
    )
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and wrong flags are answered before the slow imports below

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from network import ARCHITECTURES, DEFAULT_ARCH, Segmentor, assemble, resolve_architecture, resolve_method
from network.backbones import Backbone
from network.convolutions import DilatedConv2d, JoinedConv2d
from network.diia import TripleAggregation
from network.style import SyncSwitchWhiten2d
from utils import format_table
from utils.logs import write_line

BYTES = 4  # of a float32
HEADING = ["architecture", "backbone", "stride", "head", "parameters M", "multiply-adds G", "by torch"]
HEADING += ["stage1 (skip)", "stage3 (aux)", "stage4", "activations MiB"]


class Summary(NamedTuple):
    """The sizes of a network that predicts one image."""

    parameters: int  # all, those of the heads that only train too
    multiply_adds: int | None  # of convolutions, matrix products and attention, counted by thop; None for timm's
    torch_multiply_adds: int  # the same by torch's flop counter
    shapes: dict[str, tuple[int, ...]]  # what stem and stages return, channels x height x width
    activations: int  # values that all convolutions return


def summarise(network: Segmentor, *, size: tuple[int, int]) -> Summary:
    """Measure a network at images of `size` (height, width), by shapes alone on PyTorch's meta device.

    Raises:
        UserError: thop and torch count more than 1 % apart.
    """
    import thop
    from torch.utils.flop_counter import FlopCounterMode

    copied: Any = copy.deepcopy(network).to("meta").eval()  # the network stays as it is
    copied.forward = copied.predict  # the part of it that predicts
    images, sizes = torch.empty(1, 3, *size, device="meta"), list[int]()

    def record(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(layer, nn.Conv2d):
            sizes.append(output.numel())

    with register_module_forward_hook(record), FlopCounterMode(display=False) as counter, torch.no_grad():
        copied(images)
    stages, _ = copied.backbone.outputs(images)
    shapes = {f"stage{number}": tuple(maps.shape[1:]) for number, maps in enumerate(stages, 1)}
    by_torch, by_thop = counter.get_total_flops() // 2, None
    if isinstance(network.backbone, Backbone):  # of timm's attentions thop knows nothing
        rules = {TripleAggregation: _count_aggregation, SyncSwitchWhiten2d: _count_switch}
        rules |= dict.fromkeys((DilatedConv2d, JoinedConv2d), _count_convolution)  # thop goes by the exact class
        rules[nn.BatchNorm2d] = lambda *_: None  # it can be folded into a convolution: left out
        by_thop = int(thop.profile(copied, inputs=(images,), custom_ops=rules, verbose=False)[0])
        if abs(by_thop / by_torch - 1) > 0.01:
            difference = f"{by_thop / by_torch - 1:+.1%}"
            raise UserError(f"{network.describe()}: thop counts {difference} more than torch; add a rule for its layer")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Summary(parameters, by_thop, by_torch, shapes, sum(sizes))


def _count_aggregation(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Add what thop found for the convolutions inside to queries x keys and weights x values."""
    attention = 2 * (output.shape[2] * output.shape[3]) ** 2 * layer.out_channels * len(output) if layer.attends else 0
    layer.total_ops += attention + sum(part.total_ops for part in layer.children())


def _count_convolution(layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    layer.total_ops += layer.weight[0].numel() * output.numel()


def _count_switch(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Count covariances and whitened maps; Newton's steps on small matrices are left out."""
    layer.total_ops += 2 * layer.group * output.numel()


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    check_size(args.size)
    import torchvision.models  # noqa: F401  of torch 2.6 it cannot be imported where the meta device is the default

    method, table = resolve_method(args.method, args.wt_layer), [HEADING]
    for name in args.arch or ([DEFAULT_ARCH] if args.backbone else list(ARCHITECTURES)):
        architecture = resolve_architecture(name, backbone=args.backbone, output_stride=args.output_stride)
        with torch.device("meta"):
            network = assemble(architecture, method=method)
        summary = summarise(network, size=tuple(args.size))
        table.append(
            [
                *("" if args.backbone else name.removeprefix("network.deepv3."), architecture.backbone.name),
                *(str(architecture.output_stride), method.head, f"{summary.parameters / 1e6:.2f}"),
                *(
                    f"{count / 1e9:.1f}" if count else "-"
                    for count in (summary.multiply_adds, summary.torch_multiply_adds)
                ),
                *("x".join(map(str, summary.shapes[stage])) for stage in ("stage1", "stage3", "stage4")),
                f"{summary.activations * BYTES / 2**20:.0f}",
            ]
        )
    write_line(format_table(table))
    write_line(
        f"One image of {args.size[0]}x{args.size[1]}, predicted by --method {method}. Activations: float32 outputs of "
        "all convolutions.\nMultiply-adds: convolutions, matrix products and attention, by thop and by torch."
    )


if __name__ == "__main__":
    run_entry_point(main)
