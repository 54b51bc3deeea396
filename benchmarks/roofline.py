"""The floor of every part of a training step and of an evaluation, beside what the part takes.

A part's floor is the larger of its counted operations over the measured rate of matrix products, and of the bytes that
it must move over the measured rate of memory. Every part runs alone, on the inputs that it gets in the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import Here, Settings, repeated, take_turns
from benchmarks.works import make_batch, make_criterion, make_network
from network.layout import coarse_layout
from network.outputs import upsample_logits
from optimizer import build_optimizer

PARTS = {
    "backbone": ("backbone",),
    "ASPP": ("coarse.aspp", "fused.aspp"),
    "decoders": (
        *(f"{head}.{layer}" for head in ("coarse", "fused", "layout", "edge") for layer in ("refine", "classify")),
        *("coarse.reduce", "fused.reduce", "fused.skip", "layout.encoder", "edge.encoder", "edge.decoder"),
    ),
    "auxiliary head": ("aux",),
    "attention": ("aggregate",),
}
LEFT_OUT = ("aux", "layout.refine", "layout.classify", "edge.refine", "edge.classify")  # what an evaluation leaves out
GIGA = 1e9


class Part(NamedTuple):
    runs: list[Callable[[], object]]
    bytes: float = 0.0  # that must be moved, where they bound the part and not its operations


def seconds(run: Callable[[], object], settings: Settings, *, runs: int, choose: Any = median) -> float:
    """Return the median time of a function, or another choice of its times."""
    (taken,) = take_turns([Here(partial(repeated, run), settings.clock)], runs=runs)
    return float(choose(taken))


def rates(settings: Settings, *, runs: int, tiny: bool) -> dict[str, float]:
    """Return the machine's operations of matrix products and 3x3 convolutions, and bytes of memory, per second."""
    found, side = {}, 256 if tiny else 4096 if settings.device.type == "cuda" else 2048

    def best(function: Callable[..., object], *args: Any, **options: Any) -> float:
        return seconds(partial(function, *args, **options), settings, runs=max(runs, 5), choose=min)

    for dtype in (torch.float32, torch.bfloat16):
        name, device = str(dtype).removeprefix("torch."), settings.device
        matrix = torch.randn(side, side, device=device, dtype=dtype)
        found[f"matrix product, {name}"] = 2 * side**3 / best(torch.mm, matrix, matrix)
        maps = torch.randn(2, 256, side // 32, side // 32, device=device, dtype=dtype)
        weight = torch.randn(256, 256, 3, 3, device=device, dtype=dtype)
        found[f"convolution, {name}"] = 2 * maps.numel() * 256 * 9 / best(F.conv2d, maps, weight, padding=1)
    source = torch.zeros((1 if tiny else 256) * 2**18, device=settings.device)
    found["memory"] = 8 * source.numel() / best(torch.empty_like(source).copy_, source)  # read and written
    return found


def floats(values: Any) -> list[Tensor]:
    """Return the floating-point tensors of nested tuples."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor) and value.is_floating_point()]


def leaves(values: Any, *, wanted: bool) -> Any:
    """Return nested tuples of tensors as leaves of a graph of their own; `wanted`: with gradients."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_(wanted and tensor.is_floating_point())

    return tree_map_only(Tensor, leaf, values)


def forget(tensors: Iterable[Tensor]) -> None:
    """Drop gradients, so that the next ones are not added to them: a step starts without any."""
    for tensor in tensors:
        tensor.grad = None


def run_part(function: Callable[..., Any], inputs: tuple[Any, ...], *, backward: bool) -> None:
    """Run a part forward, and backward with a gradient of ones."""
    with torch.set_grad_enabled(backward):
        outputs = [value for value in floats(function(*inputs)) if not backward or value.requires_grad]
    if backward:
        torch.autograd.backward(outputs, [torch.ones_like(value) for value in outputs])
        forget([*floats(inputs), *(function.parameters() if isinstance(function, nn.Module) else ())])


def make_parts(
    network: Any, batch: tuple[Tensor, Tensor, Tensor], *, cfg: Any, training: bool
) -> tuple[dict[str, Part], Callable[[], object]]:
    """Return the parts of a training step, or of an evaluation's logits, on a batch, and the whole of it."""
    images, labels, edges = batch
    inputs: dict[str, tuple[Any, ...]] = {}  # module -> what it is called with
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args}))
        for name in (name for part in PARTS.values() for name in part if training or name not in LEFT_OUT)
    ]
    with torch.no_grad():
        output = network.train(training)(images)
    for hook in hooks:
        hook.remove()
    parts: dict[str, Part] = {}
    for part, modules in PARTS.items():
        runs: list[Callable[[], object]] = []
        for name in (name for name in modules if name in inputs):
            given = leaves(inputs[name], wanted=training and name != "backbone")
            runs.append(partial(run_part, network.get_submodule(name), given, backward=training))
        if runs:
            parts[part] = Part(runs)
    size, four = images.shape[2:], images[:, :1].numel() * 4  # bytes of one full-size plane
    planes, small = output.fused.shape[1], [side // 16 for side in size]
    widths = (*(planes,) * 4, 1) if training else (planes, planes)
    maps = [leaves(torch.randn(len(images), width, *small, device=images.device), wanted=training) for width in widths]
    enlarged = [partial(run_part, upsample_logits, (value, size), backward=training) for value in maps]
    moved = four * sum(value.shape[1] for value in maps) * (2 if training else 1)  # written, its gradient read
    parts["upsampling"] = Part(list(enlarged), moved)
    parts["coarse layout"] = Part([partial(coarse_layout, output.coarse)], four * (planes + 1))
    if not training:
        return parts, partial(run_part, network.predict, (images,), backward=False)
    criterion, optimizer = make_criterion(network, cfg, images.device), build_optimizer(cfg, network)
    given = leaves(output, wanted=True)

    def losses() -> None:
        criterion.total(criterion(given, labels, edges, whiten=True)).backward()
        forget(floats(given))

    logits = sum(value.numel() for value in floats(output)) * 4
    parts["losses"] = Part([losses], 2 * logits)  # read, their gradient written
    gradients = [(parameter, torch.zeros_like(parameter)) for parameter in network.parameters()]

    def update() -> None:
        for parameter, gradient in gradients:  # the other parts drop them
            parameter.grad = gradient
        optimizer.step()

    parameters = sum(gradient.numel() for _, gradient in gradients)
    parts["optimizer"] = Part([update], 20 * parameters)  # weight, momentum, gradient read, the first two written

    def step() -> None:
        optimizer.zero_grad()
        criterion.total(criterion(network(images), labels, edges, whiten=True)).backward()
        optimizer.step()

    return parts, step


def table(
    parts: Mapping[str, Part], whole: Callable[[], object], settings: Settings, *, rate: Mapping[str, float], runs: int
) -> list[list[str]]:
    """Return the rows of part, operations, floor, measured time, the floor's share of it, its share of the whole."""
    total = seconds(whole, settings, runs=runs)
    rows = [["part", "GFLOP", "floor", "measured", "floor / measured", "share of the whole"]]
    sums = [0.0, 0.0, 0.0]
    for name, part in parts.items():
        with FlopCounterMode(display=False) as counter:
            for run in part.runs:
                run()
        operations = counter.get_total_flops()
        floor = max(operations / rate["matrix product, float32"], part.bytes / rate["memory"])
        taken = sum(seconds(run, settings, runs=runs) for run in part.runs)
        sums = [sums[0] + operations, sums[1] + floor, sums[2] + taken]
        rows.append(_cells(name, operations, floor, taken, total))
    rows.append(_cells("sum of the parts", sums[0], sums[1], sums[2], total))
    return [*rows, _cells("the whole", sums[0], sums[1], total, total)]


def _cells(name: str, operations: float, floor: float, taken: float, total: float) -> list[str]:
    times = [f"{1000 * value:.1f} ms" for value in (floor, taken)]
    return [name, f"{operations / GIGA:.1f}", *times, f"{100 * floor / taken:.0f} %", f"{100 * taken / total:.0f} %"]


def measure_parts(device: torch.device, *, runs: int, threads: int, tiny: bool) -> dict[str, Any]:
    """Return the machine's rates per second and the tables of a step and an evaluation in float32."""
    settings = Settings(device, threads or torch.get_num_threads(), processor_time=False)
    torch.set_num_threads(settings.threads)
    rate = rates(settings, runs=runs, tiny=tiny)
    units = {name: f"{value / GIGA:.0f} {'GB/s' if name == 'memory' else 'GFLOP/s'}" for name, value in rate.items()}
    tables = {"Measured rates": [["rate", "measured"], *([name, value] for name, value in units.items())]}
    network, cfg = make_network(device, ())
    side, height = (64, 64) if tiny else (256, 512)
    for title, batch, training in (
        (f"Training step, 2 x {side}x{side}", make_batch(2, (side, side), device), True),
        (f"Evaluation, {height}x{2 * height}", make_batch(1, (height, 2 * height), device), False),
    ):
        parts, whole = make_parts(network, batch, cfg=cfg, training=training)
        tables[title] = table(parts, whole, settings, rate=rate, runs=runs)
    return {"rates": rate, "tables": tables}
