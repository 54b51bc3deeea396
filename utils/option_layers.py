"""Where the values of options come from: a YAML file, the environment, the command line."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from utils.errors import UserError, did_you_mean
from utils.options import Option, flatten


class Setting(NamedTuple):
    """One value that some layer gives to one key; `source` is how a message names the place."""

    key: str
    value: Any
    source: str


def find_option(options: Mapping[str, Option], key: str, source: str) -> Option:
    """Return the row of a key or of a former key; an unknown one is refused with the closest match."""
    if key in options:
        return options[key]
    for row in options.values():
        if key in row.aliases:
            return row
    name = key.upper().replace("-", "_")
    same_name = [known for known in options if known.partition(".")[2] == name.rpartition(".")[2]]
    hint = f"; did you mean {same_name[0]!r}?" if same_name else did_you_mean(name, options)
    raise UserError(f"{source}: there is no option {key!r}{hint}")


def read_yaml(path: str, options: Mapping[str, Option]) -> list[Setting]:
    """Return the checked settings of a YAML file, nested or with dotted keys, partial or whole."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise UserError(f"--config {path}: cannot be read ({reason})") from error
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
        row = find_option(options, key, source)
        settings.append(Setting(row.key, row.check(value, f"{source}: {key}"), source))
    return settings


def read_environment(environ: Mapping[str, str], options: Mapping[str, Option]) -> list[Setting]:
    """Return the checked settings of the variables DIIA__SECTION__NAME."""
    settings = []
    for variable in sorted(name for name in environ if name.startswith("DIIA__")):
        source = f"environment variable {variable}"
        row = find_option(options, variable.removeprefix("DIIA__").replace("__", "."), source)
        settings.append(Setting(row.key, row.read(environ[variable], source), source))
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
    """Appends what `read` makes of a flag's words to `namespace.settings`, in the order of the command line."""

    def __init__(self, *, read: Callable[[Any, str], list[Setting]], **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dest": "settings"})
        self.read = read

    def __call__(self, parser: Any, namespace: Any, values: Any, flag: str | None = None) -> None:
        namespace.settings += self.read(values, str(flag))


def _read_opts(pairs: Sequence[str], _: str, *, options: Mapping[str, Option]) -> list[Setting]:
    settings = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        row = find_option(options, key, "--opts")
        if not equals:
            raise UserError(f"--opts {pair}: must be KEY=VALUE, for instance --opts {key}={row.default}")
        settings.append(Setting(row.key, row.read(text, f"--opts {key}"), "--opts"))
    return settings


def build_parser(
    options: Mapping[str, Option], *, program: str, groups: Mapping[str, str], version: str, **about: str
) -> argparse.ArgumentParser:
    """Return the parser of all rows with a flag, in groups; --help shows those of the program."""
    parser = _Parser(usage="%(prog)s [flags]", allow_abbrev=False, formatter_class=_Help, **about)  # type: ignore[arg-type]
    parser.add_argument("--version", action="version", version=version)
    layers = parser.add_argument_group(
        "settings", "config.py < --config < environment DIIA__SECTION__NAME < flags, --opts"
    )
    text = "Read options from a YAML file (repeatable, last wins)."
    layers.add_argument("--config", metavar="FILE.yaml", action="append", help=text)
    text, read = (
        "Set any option by its key, for instance DATASET.GTAV_DIR=/data/gtav.",
        partial(_read_opts, options=options),
    )
    layers.add_argument("--opts", nargs="+", metavar="KEY=VALUE", action=_Record, read=read, help=text)
    titles = {name: parser.add_argument_group(title) for name, title in groups.items()}
    for row in options.values():
        if row.flag:
            _add_flags(titles[row.group], row, hidden=program not in row.programs)
    return parser


def _add_flags(group: Any, row: Option, *, hidden: bool) -> None:
    def add(names: Sequence[str], sentence: str, read: Callable[[Any, str], Any], **rest: Any) -> None:
        def record(words: Any, flag: str) -> list[Setting]:
            return [Setting(row.key, read(words, flag), flag)]

        text = argparse.SUPPRESS if hidden else sentence.replace("%", "%%")
        group.add_argument(*names, action=_Record, read=record, help=text, **rest)

    names = [row.flag, *(alias for alias in row.aliases if alias.startswith("-"))]
    if row.base is bool:
        add(names, f"{row.help} [{'on' if row.default else 'off'}]", lambda *_: True, nargs=0)
        if row.default:
            add([row.flag.replace("--", "--no_", 1)], f"Switch {row.flag} off.", lambda *_: False, nargs=0)
        return
    kinds = {int: "N", float: "X", str: "NAME" if row.is_list else row.key.partition(".")[2]}
    metavar = "{" + ",".join(row.choices) + "}" if row.choices else kinds[row.base]
    nargs = ("+" if row.lengths[0] else "*") if row.is_list else None
    default = " ".join(map(str, row.default)) if row.is_list and row.default else row.default
    default = "none" if default in (None, "", []) else default
    add(names, f"{row.help} [{default}]", row.read, nargs=nargs, metavar=metavar)
    for value in row.shorthands:
        add([f"--{value}"], f"The same as {row.flag} {value}.", lambda *_, value=value: value, nargs=0)


def read_command_line(
    parser: argparse.ArgumentParser, argv: Sequence[str], *, refused: Mapping[str, str]
) -> tuple[list[str], list[Setting]]:
    """Return the files of --config and the checked settings of flags and --opts, in their order.

    Raises:
        UserError: an unknown flag (with the closest one), a refused one (with its replacement), a bad value.
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
