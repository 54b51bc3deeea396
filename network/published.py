"""Weight files that RobustNet and DIIA published: names and tensors without a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from network import METHODS, Segmentor, build_network, legacy, method_for, resolve_method
from network.methods import DEFAULT_METHOD, Method
from utils.errors import UserError


def build_published(cfg: Any, content: dict[str, Any], *, path: str) -> Segmentor:
    """Build the network that `cfg.NETWORK` and the names in a published file say together, and load the file.

    Args:
        cfg: the default of --method gives way to the method that the file's head and --wt_layer stand for.
        content: what `checkpoint.read` gave.
        path: the file to name in errors.

    Raises:
        UserError: the file's head contradicts --method, nothing says the style codes, or entries do not fit.
    """
    network = build_network(cfg, method=_method(cfg.NETWORK, legacy.unwrap_state(content), path))
    legacy.load_weights(network, content, path=path)
    return network


def _method(asked: Any, state: Mapping[str, Any], path: str) -> Method:
    head: Any = legacy.detect_head(state)
    row = METHODS.get(asked.METHOD)
    if row is None or row.head == head:
        return resolve_method(asked.METHOD, asked.WT_LAYER)
    if asked.METHOD != DEFAULT_METHOD:
        raise UserError(f"{path}: has the {head} head, which --method {asked.METHOD} does not")
    if asked.WT_LAYER is None:
        raise UserError(
            f"{path}: has the {head} head and no config; give --method or --wt_layer as it was trained with"
        )
    return method_for(head=head, codes=asked.WT_LAYER)
