"""The floor of every part of a training step and of an evaluation, beside what the part takes.

A part's floor is the larger of its counted operations over the measured rate of matrix products, and of the bytes that
it must move over the measured rate of memory. Every part runs alone, on the inputs that it gets in the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import Settings
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
    """Return the median time of a function, or another choice of its times; two runs do not count."""
    taken = []
    for _ in range(runs + 2):
        start = settings.clock()
        run()
        taken.append(settings.clock() - start)
    return float(choose(taken[2:]))


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


def floats(values: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of nested tuples."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from floats(value)


def leaves(values: Any, *, wanted: bool) -> Any:
    """Return nested tuples of tensors as leaves of a graph of their own; `wanted`: with gradients."""
    if isinstance(values, Tensor):
        return values.detach().clone().requires_grad_(wanted and values.is_floating_point())
    if isinstance(values, tuple):
        parts = [leaves(value, wanted=wanted) for value in values]
        return type(values)(*parts) if hasattr(values, "_fields") else tuple(parts)
    return values


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


@contextmanager
def captured(network: nn.Module, names: Iterable[str]) -> Iterator[dict[str, tuple[Any, ...]]]:
    """Collect what the named modules are called with."""
    inputs: dict[str, tuple[Any, ...]] = {}
    hooks = []
    for name in names:

        def keep(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            inputs[name] = tuple(value.detach() if isinstance(value, Tensor) else value for value in args)

        hooks.append(network.get_submodule(name).register_forward_pre_hook(keep))
    yield inputs
    for hook in hooks:
        hook.remove()


def make_parts(network: Any, batch: tuple[Tensor, Tensor, Tensor], *, cfg: Any, training: bool) -> dict[str, Part]:
    """Return the parts of a step, or of an evaluation, on a batch."""
    images, labels, edges = batch
    names = [name for part in PARTS.values() for name in part if training or name not in LEFT_OUT]
    network.train(training)
    with captured(network, names) as inputs, torch.no_grad():
        output = network(images)
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
        return parts
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
    moved = 20 * parameters  # weight, momentum and gradient read, the first two written
    parts["optimizer"] = Part([update], moved)
    return parts


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
    return [*rows, ["the whole", f"{sums[0] / GIGA:.1f}", *_cells("", sums[0], sums[1], total, total)[2:]]]


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
        parts = make_parts(network, batch, cfg=cfg, training=training)
        whole = make_whole(network, batch, cfg=cfg, training=training)
        tables[title] = table(parts, whole, settings, rate=rate, runs=runs)
    return {"rates": rate, "tables": tables}


def make_whole(network: Any, batch: tuple[Tensor, Tensor, Tensor], *, cfg: Any, training: bool) -> Callable[[], object]:
    """Return a whole training step, or the logits of an evaluation."""
    images, labels, edges = batch
    criterion, optimizer = make_criterion(network, cfg, images.device), build_optimizer(cfg, network)

    def step() -> None:
        network.train()
        optimizer.zero_grad()
        criterion.total(criterion(network(images), labels, edges, whiten=True)).backward()
        optimizer.step()

    @torch.inference_mode()
    def logits() -> None:
        network.eval()
        network.predict(images)

    return step if training else logits
