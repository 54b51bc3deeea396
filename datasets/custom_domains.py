"""Domains that a user declares in a YAML file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets.codec import ENCODINGS, Encoding
from datasets.domains import BUILTIN, Domain, Layout
from datasets.labels import CLASS_NAMES, IGNORE, NUM_CLASSES
from utils.errors import UserError, did_you_mean
from utils.files import read_yaml

_REQUIRED = {"root": str, "images": str, "label": dict, "splits": object, "encoding": object}
_FIELDS = {**_REQUIRED, "merge": dict, "classes": object, "subsets": dict, "tile": int, "skip_unequal": bool}
_KINDS = {str: "text", dict: "a mapping", int: "a whole number", bool: "true or false"}
_SPLITS = ("train", "val", "test")


def read_domains(path: Path) -> dict[str, Domain]:
    """Return the domains of a YAML file by name, or raise `UserError`; docs/domains.example.yaml shows every field."""
    hint = "; see docs/domains.example.yaml"
    content = read_yaml(path, flag="--domains", hint=hint)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: must map names of domains to their fields{hint}")
    domains = {}
    for name, fields in content.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name == "source":
            rule = "use letters, digits, '-', '_' and '.' (but not 'source')"
            raise UserError(f"{path}: {name!r} cannot name a domain: {rule}")
        if name in BUILTIN:
            raise UserError(f"{path}: {name!r} is the name of a built-in domain; choose another")
        try:
            domains[name] = _domain(name, fields, path)
        except UserError as error:
            raise UserError(f"{path}: {name}: {error}") from None
    return domains


def _domain(name: str, fields: Any, path: Path) -> Domain:
    """Return a domain's row; errors leave out the file and the name."""
    if not isinstance(fields, dict):
        raise UserError(f"must be a mapping with {', '.join(_REQUIRED)}")
    for key, value in fields.items():
        _one_of(_FIELDS, key, "unknown field")
        if _FIELDS[key] not in (object, type(value)):
            raise UserError(f"{key} must be {_KINDS[_FIELDS[key]]}, not {value!r}")
    for key in _REQUIRED:
        if key not in fields:
            raise UserError(f"the field {key!r} is missing")
    label, tile = fields["label"], fields.get("tile", 0)
    if not all(isinstance(text, str) for item in label.items() for text in item) or "" in label:
        raise UserError("label must map parts of an image's path to parts of its label's path")
    if tile < 0:
        raise UserError(f"tile must be a number of pixels, or 0 for the run's; it is {tile}")
    merge = {_class("merge", old): _class("merge", new) for old, new in fields.get("merge", {}).items()}
    if chained := [CLASS_NAMES[new] for new in merge.values() if merge.get(new, new) != new]:
        raise UserError(f"merge adds to {chained[0]}, which it adds to another class itself; name that one for both")
    classes = _classes("classes", fields.get("classes", list(CLASS_NAMES)))
    subsets = {str(key): _classes(f"subsets {key}", ids) for key, ids in fields.get("subsets", {}).items()}
    if "" in subsets:
        raise UserError("subsets: a name must not be empty")
    for subset, ids in subsets.items():
        if beyond := ", ".join(CLASS_NAMES[id_] for id_ in ids if id_ not in classes):
            raise UserError(f"subsets {subset} names {beyond}, which classes does not; add it there or leave it out")
    root = os.path.expanduser(os.path.expandvars(fields["root"]))
    return Domain(
        name=name,
        root=root if os.path.isabs(root) else os.path.join(os.path.dirname(os.path.realpath(path)), root),
        root_key=f"'root', 'images' or 'label' of {path}: {name}",
        layouts=(Layout(fields["images"], tuple(label.items())),),
        encoding=_encoding(name, fields["encoding"]),
        splits=_splits(fields["splits"], in_path="{split}" in fields["images"]),
        tile=tile,
        merge=tuple(merge.items()),
        classes=classes,
        subsets=tuple(subsets.items()),
        skip_unequal=fields.get("skip_unequal", False),
    )


def _one_of(known: Iterable[str], value: Any, what: str) -> None:
    if value not in known:
        raise UserError(f"{what} {value!r}; there are {', '.join(known)}{did_you_mean(str(value), known)}")


def _splits(splits: Any, *, in_path: bool) -> tuple[tuple[str, tuple[str, ...]], ...]:
    folders = {str(split): str(split) for split in splits} if isinstance(splits, list) else splits
    if not isinstance(folders, dict) or not folders:
        raise UserError("splits must be a list of train, val, test or map them to folder names")
    for split, folder in folders.items():
        _one_of(_SPLITS, split, "unknown split")
        if not isinstance(folder, str):
            raise UserError(f"splits {split} must be the name of a folder, not {folder!r}")
        if folder != split and not in_path:
            raise UserError(f"splits names the folder {folder!r}, but images holds no {{split}}")
    return tuple((split, (folder,)) for split, folder in folders.items())


def _class(key: str, value: Any, *, ignore: bool = False) -> int:
    """Return the train id of a number or a class name."""
    if isinstance(value, str):
        if value not in CLASS_NAMES:
            raise UserError(f"{key} names no class {value!r}{did_you_mean(value, CLASS_NAMES)}")
        return CLASS_NAMES.index(value)
    if type(value) is not int:
        raise UserError(f"{key} must hold train ids or class names, not {value!r}")
    if not (0 <= value < NUM_CLASSES or (ignore and value == IGNORE)):
        rule = f"0..{NUM_CLASSES - 1}" + (f" or {IGNORE}" if ignore else "")
        raise UserError(f"{key} holds {value}, which is no train id ({rule})")
    return value


def _classes(key: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{key} must be a list of train ids or class names, not {values!r}")
    classes = tuple(_class(key, value) for value in values)
    if len(set(classes)) < len(classes):
        raise UserError(f"{key} names a class twice")
    return classes


def _encoding(name: str, value: Any) -> Encoding:
    if isinstance(value, str):
        _one_of(ENCODINGS, value, "unknown label encoding")
        return ENCODINGS[value]
    if not isinstance(value, dict):
        raise UserError(f"encoding must be a name or map raw ids to train ids, not {value!r}")
    table: dict[Any, int] = {IGNORE: IGNORE}
    for raw, train in value.items():
        if raw != "other" and (type(raw) is not int or not 0 <= raw < 1 << 16):
            raise UserError(f"encoding maps {raw!r}, which is no raw id (0..65535) and not 'other'")
        table[raw] = _class("encoding", train, ignore=True)
    other = table.pop("other", None)
    return Encoding(f"of {name}", "ids", tuple(sorted(table.items())), other)
