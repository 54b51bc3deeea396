"""Where the values of options come from: a YAML file, the environment, the command line."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from utils.errors import UserError, did_you_mean
from utils.options import Option, flatten

ENV_PREFIX = "DIIA__"


class Setting(NamedTuple):
    """One value that some layer gives to one key; `source` is how a message names the place."""

    key: str
    value: Any
    source: str


def find_option(options: Mapping[str, Option], key: str, source: str) -> Option:
    """Return the row of a key; an unknown one is refused with the closest match."""
    if key in options:
        return options[key]
    name = key.upper().replace("-", "_")
    same_name = [known for known in options if known.partition(".")[2] == name.rpartition(".")[2]]
    hint = f"; did you mean {same_name[0]!r}?" if same_name else did_you_mean(name, options)
    raise UserError(f"{source}: there is no option {key!r}{hint}")


def read_yaml(path: str, options: Mapping[str, Option]) -> list[Setting]:
    """Return the checked settings of a YAML file, nested or with dotted keys, partial or whole."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--config {path}: cannot be read ({getattr(error, 'strerror', None) or 'not text'})"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # the second of 2026-02-30 and the like
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark else ""
        raise UserError(f"--config {path}: not valid YAML{place}") from error
    if not isinstance(tree, dict | None):
        raise UserError(f"--config {path}: must hold SECTION: {{NAME: value}} pairs, not {type(tree).__name__}")
    return check_tree(tree or {}, options, source=path)


def check_tree(tree: Mapping[Any, Any], options: Mapping[str, Option], *, source: str) -> list[Setting]:
    """Return the checked settings of nested mappings with typed values."""
    settings = []
    sections = {option.group for option in options.values()}
    for key, value in flatten(tree):
        if key in sections and not value and not isinstance(value, (bool, int)):
            continue  # a section without a line below it
        option = find_option(options, key, source)
        settings.append(Setting(key, option.check(value, f"{source}: {key}"), source))
    return settings


def read_environment(environ: Mapping[str, str], options: Mapping[str, Option]) -> list[Setting]:
    """Return the checked settings of the variables DIIA__SECTION__NAME."""
    settings = []
    for variable in sorted(name for name in environ if name.startswith(ENV_PREFIX)):
        key = variable.removeprefix(ENV_PREFIX).replace("__", ".")
        source = f"environment variable {variable}"
        settings.append(Setting(key, find_option(options, key, source).read(environ[variable], source), source))
    return settings


class _Parser(argparse.ArgumentParser):
    """Raises `UserError` instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see --help")


class _Help(argparse.HelpFormatter):
    """Breaks lines at spaces alone: names with hyphens stay whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class _Record(argparse.Action):
    """Appends what a flag says to `namespace.settings`, in the order of the command line."""

    def __init__(self, *, option: Option, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.option = option

    def __call__(self, parser: Any, namespace: Any, values: Any, flag: str | None = None) -> None:
        value = self.const if self.nargs == 0 else self.option.read(values, str(flag))
        namespace.settings.append(Setting(self.option.key, value, str(flag)))


class _RecordOpts(argparse.Action):
    """Appends `KEY=VALUE ...` to `namespace.settings`."""

    def __init__(self, *, options: Mapping[str, Option], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.options = options

    def __call__(self, parser: Any, namespace: Any, values: Any, flag: str | None = None) -> None:
        for pair in values:
            key, equals, text = pair.partition("=")
            option = find_option(self.options, key, "--opts")
            if not equals:
                raise UserError(f"--opts {pair}: must be KEY=VALUE, for instance --opts {key}={option.default}")
            namespace.settings.append(Setting(key, option.read(text, f"--opts {key}"), "--opts"))


def build_parser(
    options: Mapping[str, Option],
    *,
    prog: str,
    description: str,
    groups: Mapping[str, str],
    shown: Sequence[str],
    aliases: Mapping[str, str],
    shorthands: Sequence[Option] = (),
) -> argparse.ArgumentParser:
    """Return the parser of all rows with a flag, in groups; only keys that begin like one of `shown` are in --help.

    `shorthands` are further flags for keys that have one.
    """
    parser = _Parser(
        prog=prog, usage="%(prog)s [flags]", description=description, allow_abbrev=False, formatter_class=_Help
    )
    top = parser.add_argument_group(
        "settings", "config.py < --config < environment DIIA__SECTION__NAME < flags, --opts"
    )
    top.add_argument(
        "--config", metavar="FILE.yaml", action="append", help="Read options from a YAML file (repeatable, last wins)."
    )
    top.add_argument(
        "--opts",
        nargs="+",
        metavar="KEY=VALUE",
        action=_RecordOpts,
        options=options,
        dest="settings",
        help="Set any option by its key, for instance DATASET.GTAV_DIR=/data/gtav.",
    )
    titles = {name: parser.add_argument_group(title) for name, title in groups.items()}
    for option in (*options.values(), *shorthands):
        if option.flag:
            _add_flag(titles[option.group], option, hidden=not option.key.startswith(tuple(shown)), aliases=aliases)
    return parser


def _add_flag(group: Any, option: Option, *, hidden: bool, aliases: Mapping[str, str]) -> None:
    names = [option.flag, *(alias for alias, flag in aliases.items() if flag == option.flag)]
    shared: dict[str, Any] = {"action": _Record, "option": option, "dest": "settings"}
    is_switch = option.base is bool or option.const is not None
    default = option.default
    if option.base is bool:
        default = "on" if default else "off"
    elif isinstance(default, list):
        default = " ".join(map(str, default)) or "none"
    elif default in (None, ""):
        default = "none"
    shared["help"] = argparse.SUPPRESS if hidden else f"{option.help} [{default}]".replace("%", "%%")
    if is_switch:
        group.add_argument(*names, nargs=0, const=option.const or True, **shared)
    else:
        kinds = {int: "N", float: "X", str: "NAME" if option.is_list else option.key.rpartition(".")[2]}
        metavar = "{" + ",".join(option.choices) + "}" if option.choices else kinds[option.base]
        nargs = ("+" if option.lengths[0] else "*") if option.is_list else None
        group.add_argument(*names, nargs=nargs, metavar=metavar, **shared)
    if option.base is bool and option.default:
        negative = option.flag.replace("--", "--no_", 1)
        off = argparse.SUPPRESS if hidden else f"Switch {option.flag} off."
        group.add_argument(negative, nargs=0, const=False, **{**shared, "help": off})


def read_command_line(
    parser: argparse.ArgumentParser, argv: Sequence[str], *, refused: Mapping[str, str]
) -> tuple[list[str], list[Setting]]:
    """Return the files of --config and the checked settings of flags and --opts, in their order.

    Raises:
        UserError: an unknown flag (with the closest one), a refused one (with the way out), a bad value.
    """
    for word in argv:
        name = word.partition("=")[0]
        if name in refused:
            raise UserError(f"{name} {refused[name]}")
    namespace, unknown = parser.parse_known_args(argv, argparse.Namespace(config=[], settings=[]))
    if unknown:
        word = unknown[0].partition("=")[0]
        if not word.startswith("-"):
            raise UserError(f"{word!r} belongs to no flag; see --help")
        known = [name for action in parser._actions for name in action.option_strings]
        raise UserError(f"there is no flag {word}{did_you_mean(word, known)}; --help lists all")
    return namespace.config, namespace.settings
