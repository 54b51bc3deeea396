"""What the programs about data (check_data and its neighbours) share: flags, configuration, domains."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from datasets.domains import Domain, get_domain, load_domains
from utils.errors import UserError


def data_parser(name: str, description: str, *, domains: str) -> argparse.ArgumentParser:
    """Return the parser of `python -m scripts.NAME [DOMAIN ...]` with the flags that say where the data is.

    `domains` is the help of the positional names: "*" domains in any number.
    """
    parser = argparse.ArgumentParser(prog=f"python -m scripts.{name}", description=description, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="DOMAIN", help=domains)
    parser.add_argument("--domains", default="", metavar="FILE.yaml", help="file that declares domains of your own")
    parser.add_argument("--config", default="", metavar="FILE.yaml", help="settings, as for train.py")
    parser.add_argument(
        "--opts",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings by key, as for train.py: DATASET.GTAV_DIR=/data/GTAV, AUGMENT.CROP_SIZE=512",
    )
    return parser


def data_config(given: argparse.Namespace, *flags: str) -> Any:
    """Return the run configuration that config.py, the environment and the flags of `data_parser` give.

    `flags` names those of the program's own flags that train.py has too; an empty text leaves the setting as it is.
    """
    import config

    for part in given.opts:
        if "=" not in part:
            raise UserError(f"--opts takes KEY=VALUE, not {part!r}; names of data sets stand before --opts")
    argv = ["--opts", *given.opts] if given.opts else []
    for flag in ("domains", "config", *flags):
        argv += [f"--{flag}", value] if (value := getattr(given, flag)) else []
    return config.parse(argv, program="train")


def chosen_domains(cfg: Any, names: Sequence[str]) -> list[Domain]:
    """Return the named domains in order, or raise `UserError` for an unknown or missing name."""
    domains = load_domains(cfg)
    if not names:
        raise UserError(f"name one or several data sets: {', '.join(domains)}, or one of a --domains file")
    return [get_domain(domains, name) for name in dict.fromkeys(names)]
