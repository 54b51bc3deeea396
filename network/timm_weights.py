"""Pretrained weights through timm, which downloads, renames and resizes them, with its lenient loading made strict."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from utils import checkpoint
from utils.errors import UserError, first_few
from utils.files import quick_to_give_up

logger = logging.getLogger(__name__)

_HEADS = re.compile(r"(head|fc|classifier)\w*\.")  # of whatever number of classes


def timm_weights(create: Callable[..., nn.Module], *, name: str, origin: str, **overlay: Any) -> dict[str, Tensor]:
    """Return the entries of the network that `create` builds, after timm has filled it.

    Args:
        create: calls `timm.create_model` with the options that it is given.
        name: timm's name of the network.
        origin: the flag and its value, for messages.
        overlay: where the weights come from, if not from timm's own place: `state_dict`.

    Raises:
        UserError: no download, or something that the network keeps is missing, of another shape or unknown to it.
    """
    import timm  # slow to import

    way_out = f"give the weights of {name} by --pretrained FILE, or use --pretrained none"
    try:
        with contextlib.nullcontext() if overlay else quick_to_give_up(), _noted_loads() as loads:
            model = create(pretrained=True, pretrained_cfg_overlay=overlay)
    except UserError:
        raise
    except Exception as error:  # of the hub, of a damaged file, of a renaming that looks for another name
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        if reason.startswith("Error(s) in loading state_dict"):
            reason = checkpoint.misfits(error, path=origin)
        if "deserializing" in reason:  # safetensors' word for a file that is damaged, which it does not name
            cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
            way_out = f"remove the damaged copy of {name} below {cache} and try again, or {way_out}"
        raise UserError(f"{origin}: timm cannot load weights of {name} ({reason}); {way_out}") from error
    kept = {id(value) for value in model.state_dict(keep_vars=True).values()}
    missing, unexpected = list[str](), list[str]()
    for module, keys in loads:
        state = module.state_dict(keep_vars=True)
        missing += [key for key in keys.missing_keys if id(state.get(key)) in kept]
        unexpected += [key for key in keys.unexpected_keys if not _HEADS.match(key)]
    if unexpected:  # a feature extractor has not all layers of the network that the weights were trained in
        with torch.device("meta"):
            whole = timm.create_model(name).state_dict()
        unexpected = [key for key in unexpected if key not in whole]
    if missing or unexpected:
        listed = {"missing": missing, "unexpected": unexpected}
        logger.debug("%s: %s", origin, listed)
        found = "; ".join(f"{kind}: {first_few(keys)}" for kind, keys in listed.items() if keys)
        raise UserError(f"{origin}: does not fit {name} ({found}); {way_out}")
    return model.state_dict()


@contextlib.contextmanager
def _noted_loads() -> Iterator[list[tuple[nn.Module, Any]]]:
    """Collect the modules that load a state, with what was missing and unexpected: timm only logs it."""
    loads: list[tuple[nn.Module, Any]] = []
    load, chatty = nn.Module.load_state_dict, logging.getLogger("timm.models")
    level = chatty.level

    def load_and_note(module: nn.Module, *args: Any, **options: Any) -> Any:
        keys = load(module, *args, **options)
        loads.append((module, keys))
        return keys

    nn.Module.load_state_dict = load_and_note  # type: ignore[assignment, method-assign]
    chatty.setLevel(logging.ERROR)
    try:
        yield loads
    finally:
        nn.Module.load_state_dict = load  # type: ignore[assignment, method-assign]
        chatty.setLevel(level)
