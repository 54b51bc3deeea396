"""What programs share: a check of sizes; those about data also flags, configuration and domains."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from config import Config
from datasets.domains import Domain, get_domain, load_domains
from utils import program_parser
from utils.errors import UserError


def check_size(size: Sequence[int]) -> None:
    if not all(32 <= side < 2**16 for side in size):
        raise UserError(f"--size {' '.join(map(str, size))}: height and width are from 32 to 65535 pixels")


def data_parser(name: str, description: str, *, details: str = "") -> argparse.ArgumentParser:
    """Return the parser of a program about data: names of domains, and the flags that say where they are."""
    parser = program_parser(f"scripts.{name}", description, details=details)
    parser.add_argument("names", nargs="*", metavar="DOMAIN", help="names of data sets")
    parser.add_argument("--domains", default="", metavar="FILE.yaml", help="file that declares domains of your own")
    parser.add_argument("--config", default="", metavar="FILE.yaml", help="settings, as for train.py")
    text = "settings by key, as for train.py: DATASET.GTAV_DIR=/data/GTAV, AUGMENT.CROP_SIZE=512"
    parser.add_argument("--opts", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=text)
    return parser


def data_config(args: argparse.Namespace, *flags: str) -> Config:
    """Return the run configuration that config.py, the environment and the flags of `data_parser` give.

    `flags` names those of the program's own flags that train.py has too; an empty text leaves the setting as it is.
    """
    import config

    for part in args.opts:
        if "=" not in part:
            raise UserError(f"--opts takes KEY=VALUE, not {part!r}; names of data sets stand before --opts")
    argv = ["--opts", *args.opts] if args.opts else []
    for flag in ("domains", "config", *flags):
        argv += [f"--{flag}", value] if (value := getattr(args, flag)) else []
    return config.parse(argv, program="train")


def chosen_domains(cfg: Config, names: Sequence[str]) -> list[Domain]:
    """Return the named domains in order, or raise `UserError` for an unknown or missing name."""
    domains = load_domains(cfg)
    if not names:
        raise UserError(f"name one or several data sets: {', '.join(domains)}, or one of a --domains file")
    return [get_domain(domains, name) for name in dict.fromkeys(names)]
