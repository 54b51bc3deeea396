"""How large the networks are: `python -m scripts.network_summary [--arch NAME ...] [--backbone NAME] [--method NAME]`.

Nothing is computed: shapes pass through the network on PyTorch's meta device.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from network import ARCHITECTURES, Architecture, Segmentor, assemble, resolve_architecture, resolve_method
from network.architectures import DEFAULT_ARCH
from network.diia import TripleAggregation
from network.switch_whitening import SyncSwitchWhiten2d
from utils.errors import UserError, run_entry_point
from utils.logs import write_line
from utils.tables import align

BYTES = 4  # of a float32


class Summary(NamedTuple):
    """The sizes of a network that scores one image."""

    parameters: int  # all, those of the heads that only train too
    multiply_adds: int  # of convolutions, matrix products and attention, counted by thop
    torch_multiply_adds: int  # the same by torch's flop counter
    shapes: dict[str, tuple[int, ...]]  # what the stages return, channels x height x width
    activations: int  # values that all convolutions return


class _Scoring(nn.Module):
    """The part of a network that scores."""

    def __init__(self, network: Segmentor) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.predict(images)


def summarise(network: Segmentor, *, size: tuple[int, int]) -> Summary:
    """Measure a network at images of `size` (height, width); the network stays as it is."""
    from torch.utils.flop_counter import FlopCounterMode

    scoring = _Scoring(copy.deepcopy(network).to("meta").eval())
    images = torch.empty(1, 3, *size, device="meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        scoring(images)
    shapes, activations = _activations(scoring, images)
    return Summary(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        multiply_adds=_multiply_adds(scoring, images),
        torch_multiply_adds=counter.get_total_flops() // 2,
        shapes=shapes,
        activations=activations,
    )


def _activations(scoring: _Scoring, images: Tensor) -> tuple[dict[str, tuple[int, ...]], int]:
    sizes: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *call: sizes.append(call[2].numel()))
        for layer in scoring.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.no_grad():
        scoring(images)
        for hook in hooks:
            hook.remove()
        stages, _ = scoring.network.backbone.outputs(images)
    shapes = {f"stage{number}": (*maps.shape[1:],) for number, maps in enumerate(stages, 1)}
    return shapes, sum(sizes)


def _multiply_adds(scoring: _Scoring, images: Tensor) -> int:
    import thop

    rules = {TripleAggregation: _count_aggregation, SyncSwitchWhiten2d: _count_switch}
    rules[nn.BatchNorm2d] = lambda *_: None  # it can be folded into a convolution: left out
    total, _ = thop.profile(scoring, inputs=(images,), custom_ops=rules, verbose=False)
    return int(total)


def _count_aggregation(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Add what thop found for the convolutions inside to queries x keys and weights x values."""
    attention = 2 * (output.shape[2] * output.shape[3]) ** 2 * layer.out_channels * len(output) if layer.attends else 0
    layer.total_ops += attention + sum(part.total_ops for part in layer.children())


def _count_switch(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Count covariances and whitened maps; Newton's steps on small matrices are left out."""
    layer.total_ops += 2 * layer.group * output.numel()


def _row(name: str, architecture: Architecture, network: Segmentor, summary: Summary) -> list[str]:
    difference = summary.multiply_adds / summary.torch_multiply_adds - 1
    if abs(difference) > 0.01:
        raise UserError(f"{name}: thop counts {difference:+.1%} more multiply-adds than torch; a layer has no rule")
    maps = ["x".join(map(str, summary.shapes[stage])) for stage in ("stage1", "stage3", "stage4")]
    return [
        name.removeprefix("network.deepv3."),
        architecture.backbone.name,
        str(architecture.output_stride),
        network.method.head,
        f"{summary.parameters / 1e6:.2f}",
        f"{summary.multiply_adds / 1e9:.1f}",
        f"{summary.torch_multiply_adds / 1e9:.1f}",
        *maps,
        f"{summary.activations * BYTES / 2**20:.0f}",
    ]


TITLES = ["architecture", "backbone", "stride", "head", "parameters M", "multiply-adds G", "by torch"]
TITLES += ["stage1 (skip)", "stage3 (aux)", "stage4", "activations MiB"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.network_summary", description=__doc__, allow_abbrev=False)
    parser.add_argument("--arch", nargs="+", default=[], metavar="NAME", help="published names; none: all of them")
    parser.add_argument("--backbone", default="", metavar="NAME", help="a backbone by plain name")
    parser.add_argument("--output_stride", type=int, default=0, metavar="N", help="4, 8, 16 or 32")
    parser.add_argument("--method", default="base", metavar="NAME", help="as for train.py: decides the head [base]")
    parser.add_argument("--wt_layer", nargs=7, type=int, default=None, metavar="N", help="seven style codes")
    parser.add_argument(
        "--size", nargs=2, type=int, default=[1024, 2048], metavar="N", help="height and width of the image [1024 2048]"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(argv)
    method = resolve_method(given.method, given.wt_layer)
    names = given.arch or ([DEFAULT_ARCH] if given.backbone else list(ARCHITECTURES))
    table = [TITLES]
    for name in names:
        architecture = resolve_architecture(name, backbone=given.backbone, output_stride=given.output_stride)
        with torch.device("meta"):
            network = assemble(architecture, method=method)
        summary = summarise(network, size=tuple(given.size))
        table.append(_row("" if given.backbone else name, architecture, network, summary))
    write_line(align(table))
    write_line(
        f"One image of {given.size[0]}x{given.size[1]}, scored by --method {method}. Activations: float32 outputs of "
        "all convolutions.\nMultiply-adds: convolutions, matrix products and attention, by thop and by torch."
    )


if __name__ == "__main__":
    run_entry_point(main)
