"""What a device computes in, decided here alone, on CPUs by measuring; and the memory of this process."""

from __future__ import annotations

import ctypes
import logging
import sys
import time
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F

from utils import distributed
from utils.errors import UserError

_PROBES = (((256, 1024), 1, 1), ((256, 256), 3, 1), ((256, 512), 3, 12))  # (out, in) channels, kernel, dilation
_HOPELESS = 3  # times as long in one run: without the instructions it is 12 to 16 times
logger = logging.getLogger(__name__)


def autocast_dtype(device: torch.device, *, amp: str) -> torch.dtype | None:
    """Return the type of mixed precision on a device, None for float32; all processes get that of the first one.

    Args:
        amp: off, bf16, fp16 or auto. On a GPU auto is bfloat16 where its cores have it, else float16, whose range
            DIIA's attention can leave; on a CPU it is bfloat16 where that is faster, which takes up to a second to try.

    Raises:
        UserError: the device does not compute in this type.
    """
    return None if amp == "off" else distributed.from_main(partial(_resolve, device.type, amp))


def training_dtype(device: torch.device, *, amp: str) -> torch.dtype | None:
    """Return `autocast_dtype` for a program that trains, in which all matrix products may then be of that precision.

    What stays in float32, as ISW's covariances do, multiplies in TF32 on a GPU, which rounds no more than either type.
    """
    dtype = autocast_dtype(device, amp=amp)
    if device.type == "cuda" and dtype is not None:
        torch.set_float32_matmul_precision("high")
    return dtype


@cache
def _resolve(device: str, amp: str) -> torch.dtype | None:
    if device == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if amp == "bf16" and not has_bfloat16:
            raise UserError("--amp bf16: this GPU has no bfloat16; use --amp fp16 or auto")
        return torch.bfloat16 if amp != "fp16" and has_bfloat16 else torch.float16
    if amp == "fp16":
        raise UserError("--amp fp16: float16 is for GPUs, and this run computes on a CPU; use --amp bf16, auto or off")
    factor = bfloat16_factor()
    told = f"bfloat16 takes {factor:.2g} times as long as float32 on this CPU with torch {torch.__version__}"
    if amp == "bf16":
        if factor > 1:
            logger.warning("--amp bf16: %s; --amp auto stays in float32", told)
        return torch.bfloat16
    logger.info("--amp auto: computes in %s, because %s", "bfloat16" if factor < 1 else "float32", told)
    return torch.bfloat16 if factor < 1 else None


def bfloat16_factor() -> float:
    """Return how many times as long as in float32 convolutions of the networks' kinds take in bfloat16 on this CPU.

    Processors without the instructions emulate them; since torch 2.13 dilated convolutions are slow (pytorch #183815).
    """
    first = _seconds(torch.bfloat16) / _seconds(torch.float32)  # what is set up at the first call is in it
    if first > _HOPELESS:
        return first
    runs = [(_seconds(torch.bfloat16), _seconds(torch.float32)) for _ in range(3)]
    half, whole = map(min, zip(*runs, strict=True))
    return half / whole


@torch.inference_mode()
def _seconds(dtype: torch.dtype) -> float:
    start = time.perf_counter()
    for (out_channels, in_channels), kernel, dilation in _PROBES:
        weights = torch.zeros(out_channels, in_channels, kernel, kernel, dtype=dtype)
        maps = torch.zeros(1, in_channels, 32, 64, dtype=dtype)
        F.conv2d(maps, weights, padding=dilation * (kernel // 2), dilation=dilation)
    return time.perf_counter() - start


def keep_freed_memory(device: torch.device) -> None:
    """Let glibc keep what tensors on the CPU have freed; else every step gets the same pages from the system again.

    Nothing happens on a GPU, whose memory torch keeps itself, or with another C library.
    """
    arenas, mapped, trim = -8, -4, -1  # M_ARENA_MAX, M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    if device.type == "cpu" and sys.platform == "linux":
        with suppress(AttributeError, OSError):
            for option, value in ((arenas, 1), (mapped, 0), (trim, 2**31 - 1)):
                ctypes.CDLL(None).mallopt(option, value)


def peak_memory(device: torch.device) -> float:
    """Return the largest MiB that this process has held so far: of a GPU its tensors, else the resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    path = Path("/proc/self/status")
    if path.exists():  # getrusage tells the parent's peak where that is larger
        return float(next(line.split()[1] for line in path.read_text().splitlines() if line.startswith("VmHWM"))) / 1024
    import resource  # not on Windows

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
