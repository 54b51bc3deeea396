"""Weights on a hub (huggingface.co, or the one that HF_ENDPOINT names): downloaded once, then read from the cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"  # of a folder of weights
_SCHEME = re.compile(r"hf:/{1,2}")  # a path has one of the two slashes


def local_path(weights: str | Path) -> Path:
    """Return where weights lie on this machine, those of `hf://OWNER/NAME[@REVISION]` after a download.

    Raises:
        UserError: another form of name, or neither the hub nor the cache has them.
    """
    scheme = _SCHEME.match(str(weights))
    if not scheme:
        return Path(weights)
    name, _, revision = str(weights)[scheme.end() :].partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{weights}: weights on the hub are named hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    from huggingface_hub import snapshot_download  # slow to import

    try:
        with quick_to_give_up():
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except Exception as error:  # of the hub, of the connection, of the disk
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"{weights}: cannot be downloaded ({reason}); check its name and the connection, or give a local copy"
        ) from error


def beside(weights: str | Path, name: str) -> Path:
    """Return the path of a file or folder beside weights, for those of a hub in the working folder."""
    return Path(name) if _SCHEME.match(str(weights)) else Path(weights).with_name(name)


@contextmanager
def quick_to_give_up() -> Iterator[None]:
    """Let downloads look into the cache alone where the hub does not answer, which is tried once.

    huggingface_hub would try six times, with 23 s of waits and six timeouts, and has no setting for it. How long one
    try may take is HF_HUB_ETAG_TIMEOUT.
    """
    from huggingface_hub import constants  # slow to import
    from huggingface_hub.utils import get_session

    silence: Exception | None = None
    for chatty in ("httpx", "httpx2"):  # a line per request
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except Exception as error:  # of the HTTP client, which its versions change
            silence = error
    if silence is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        text = f"{constants.ENDPOINT} does not answer: {silence}; {constants.HF_HUB_CACHE} does not hold it"
        raise ConnectionError(text) from error
    finally:
        constants.HF_HUB_OFFLINE = False
