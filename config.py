"""The configuration of a run: the paths to edit, and `parse`; every option is a field of config_options.

Later wins: this file < `--config FILE.yaml` < environment `DIIA__SECTION__NAME` < flags and `--opts KEY=VALUE`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any, get_type_hints

import yaml
from easydict import EasyDict

from config_options import Config
from utils import options
from utils.errors import UserError
from utils.options import Setting

__C: Config = EasyDict()
cfg = __C  # defaults, which may be changed until the first `parse`; from then on a copy of what the last one returned

# Where the data sets are: edit these lines (docs/data.md shows the folders expected below each).
__C.DATASET = EasyDict()
__C.DATASET.CITYSCAPES_DIR = "./data/cityscapes"
__C.DATASET.MAPILLARY_DIR = "./data/mapillary"
__C.DATASET.GTAV_DIR = "./data/GTAV"
__C.DATASET.BDD_DIR = "./data/bdd-100k"
__C.DATASET.SYNTHIA_DIR = "./data/synthia"
__C.DATASET.CAMVID_DIR = "./data/camvid"
__C.DATASET.KITTI_DIR = "./data/kitti"
__C.DATASET.ACDC_DIR = "./data/acdc"
__C.DATASET.IDD_DIR = "./data/idd"
__C.DATASET.DARKZURICH_DIR = "./data/dark_zurich"

KEYS = options.declared(Config)
cfg.update(options.build_tree({key: row.default for key, row in KEYS.items()} | dict(options.flatten(cfg))))
GROUPS = {section: fields.__name__.lower() for section, fields in get_type_hints(Config).items()}
PROGRAMS: dict[str, tuple[str, dict[str, Any]]] = {  # program -> what --help says, defaults of its own
    "train": ("Train a network on source domains and evaluate it on unseen ones.", {}),
    "valid": ("Evaluate weights on target domains; flags of train.py are accepted too.", {"DATASET.VAL": ["bdd100k"]}),
}
_NEVER = "did nothing in the original program and does not exist here: leave it out"
REFUSED = {
    **dict.fromkeys(("--freeze_trunk", "--hardnm", "--scf"), _NEVER),
    **dict.fromkeys(("--adam", "--amsgrad"), f"{_NEVER}, or use --optimizer adamw"),
    "--trunk": "did nothing in the original program and does not exist here: --arch names the backbone",
    **dict.fromkeys(("--use_wtloss", "--use_isw"), "does not exist here: --method or --wt_layer choose the whitening"),
    "--start_epoch": "does not exist here: --resume and --restore_optimizer take the epoch from the checkpoint",
    "--cv": "is not available: the splits of the folders are used as they are; leave it out for the published split 0",
    "--maxSkip": "is not available: video frames cannot be added; --coarse_boost_classes adds coarsely labelled ones",
}


def parse(argv: Sequence[str] | None = None, *, program: str) -> Config:
    """Return the configuration of a run of train or valid, an EasyDict; the global `cfg` gets the same values.

    Raises:
        UserError: an unknown or refused flag or key, a value of a wrong type or out of range, values that contradict.
    """
    files, command_line = read_flags(argv, program=program)
    edited = {key for key, value in _file_values().items() if value != KEYS[key].default}
    own = [Setting(key, value, program) for key, value in PROGRAMS[program][1].items() if key not in edited]
    from_files = [setting for file in files for setting in options.read_file(file, KEYS)]
    tree = _resolve([*own, *from_files, *options.read_environment(os.environ, KEYS), *command_line])
    options.check_needs(dict(options.flatten(tree)), KEYS)  # not of checkpoints: those of older versions stay readable
    pixels, kept = tree.AUGMENT.CROP_SIZE**2, tree.LOSS.OHEM_MIN_KEPT
    if program == "train" and tree.LOSS.OHEM_THRESH and kept >= pixels:
        keeps = f"a crop of --crop_size {tree.AUGMENT.CROP_SIZE} has {pixels} pixels, so that every one would be kept"
        raise UserError(f"--ohem_min_kept {kept}: {keeps}; give a smaller number, or leave out --ohem_thresh")
    cfg.update(deepcopy(tree))
    return tree


def read_flags(argv: Sequence[str] | None = None, *, program: str) -> tuple[list[str], list[Setting]]:
    """Return the files of --config, which are not read yet, and the settings of the flags; answers --help.

    It needs no slow import, so that programs call it before theirs. Raises `UserError` as `parse` does.
    """
    words = sys.argv[1:] if argv is None else argv
    operand = "RUN.SNAPSHOT" if program == "valid" else ""
    files, command_line = options.read_command_line(
        make_parser(program=program), words, refused=REFUSED, operand=operand
    )
    named = {setting.source: setting.value for setting in command_line if setting.key == "RUN.SNAPSHOT"}
    if len({*named.values()}) > 1:
        raise UserError(f"{' and '.join(map(' '.join, named.items()))} are two files; give one of them")
    for setting in command_line:
        if program == "train" and "train" not in KEYS[setting.key].programs:  # files and variables may serve both
            raise UserError(f"{setting.source}: {setting.key} belongs to valid.py; leave it out")
    return files, command_line


def to_dict(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as plain dicts, lists and scalars, fit for a checkpoint or YAML."""
    return {name: to_dict(value) if isinstance(value, Mapping) else deepcopy(value) for name, value in tree.items()}


def from_dict(tree: Mapping[str, Any], *, source: str = "configuration") -> Config:
    """Return the configuration of what `to_dict` gave; keys that it lacks get their defaults, former keys count.

    Raises UserError at an unknown key or a value of a wrong type; the message starts with `source`.
    """
    return _resolve(options.check_tree(tree, KEYS, source=source))


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Return a configuration as YAML that `--config` reads; what follows from the backbone's weights is left to it."""
    plain = to_dict(tree)
    plain["AUGMENT"].update({key: None for key, value in _of_weights(tree).items() if plain["AUGMENT"][key] == value})
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=120)


def changed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return by dotted key the values of a configuration that are not those of one to which nothing was given."""
    default = dict(options.flatten(from_dict({})))
    return {key: value for key, value in options.flatten(tree) if value != default[key]}


def make_parser(*, program: str) -> argparse.ArgumentParser:
    description, own = PROGRAMS[program]
    rows = {key: replace(row, default=own.get(key, row.default)) for key, row in KEYS.items()}
    return options.build_parser(rows, program=program, description=description, groups=GROUPS)


@cache
def _file_values() -> dict[str, Any]:
    """Return the defaults by dotted key: this file's, with edited lines and values set from outside."""
    return {setting.key: setting.value for setting in options.check_tree(cfg, KEYS, source="config.py")}


def _resolve(layers: Iterable[Setting]) -> Config:
    """Return the tree of the defaults and all layers, the weakest first; values that contradict are refused."""
    values = _file_values() | {setting.key: setting.value for setting in layers}
    tree: Config = options.build_tree(values)
    _check_together(tree)
    # of the backbone's weights, fixed here so that a checkpoint, its export and its report hold them
    tree.AUGMENT.update({key: tree.AUGMENT[key] or value for key, value in _of_weights(tree).items()})
    return tree


def _check_together(tree: Config) -> None:
    """Raise `UserError` where values contradict."""
    low, high = tree.AUGMENT.SCALE_MIN, tree.AUGMENT.SCALE_MAX
    if low > high:
        raise UserError(f"--scale_min {low:g} is above --scale_max {high:g}; swap or change one")
    start, end = tree.OPTIM.RLX_OFF_ITER, tree.OPTIM.MAX_ITER
    if tree.OPTIM.LR_SCHEDULE == "scl-poly" and not 0 <= start < end:
        raise UserError(f"--lr_schedule scl-poly needs --rlx_off_iter from 0 to {end - 1} (--max_iter), got {start}")
    if tree.RUN.RESTORE_OPTIMIZER and not (tree.RUN.SNAPSHOT or tree.RUN.RESUME):
        raise UserError("--restore_optimizer needs the checkpoint to resume: give --snapshot FILE or --resume auto")
    ways = {"CLASS_WEIGHTS": "--cls_wt_loss", "IMAGE_WEIGHTS": "--img_wt_loss", "RELAX_BORDERS": "--jointwtborder"}
    weights = [flag for name, flag in ways.items() if tree.LOSS[name]]
    if len(weights) > 1:
        raise UserError(f"{' and '.join(weights)} each weigh the cross entropy in their own way; give one of them")
    if tree.LOSS.OHEM_THRESH and weights not in ([], ["--cls_wt_loss"]):
        raise UserError(f"--ohem_thresh and {weights[0]} each choose which pixels count how much; give one of them")
    if tree.LOSS.LABEL_SMOOTHING and weights not in ([], ["--cls_wt_loss"]):
        raise UserError(f"--label_smoothing: targets of {weights[0]} are sets of classes, not labels; give one of them")
    if 0 < (tree.WHITENING.RELAX_DENOM or 0) < 1:
        raise UserError(f"--relax_denom {tree.WHITENING.RELAX_DENOM}: is 0 for no margin, or at least 1")
    mixing = [flag for name, flag in {"FDA": "--fda", "MIXSTYLE": "--mixstyle"}.items() if tree.AUGMENT[name]]
    if mixing and tree.OPTIM.BATCH_SIZE == 1:
        raise UserError(f"{' and '.join(mixing)}: a process's images are mixed; give --bs_mult of at least 2, not 1")
    if tree.EVAL.STRIDE and any(step > side for step, side in zip(tree.EVAL.STRIDE, tree.EVAL.WINDOW, strict=True)):
        raise UserError(
            f"--stride {tree.EVAL.STRIDE}: steps must not exceed the sides of --window {tree.EVAL.WINDOW}, or pixels "
            "are left out; give smaller ones"
        )
    if tree.EVAL.VISUALIZE and not tree.EVAL.PICTURES:
        raise UserError("--visualize_feature plots the images of --pictures, which is 0; give at least 1")
    if (count := len(tree.EVAL.ATTENTION_PIXELS)) % 2:
        raise UserError(f"--attention_pixels takes x and y of each pixel, got {count} numbers; give one more")


def _of_weights(tree: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the MEAN and STD of the weights of a backbone of timm; of others, whose are ImageNet's, nothing."""
    name, weights = tree["NETWORK"]["BACKBONE"], None
    if name.startswith("timm/"):
        from timm import get_pretrained_cfg  # slow to import

        with contextlib.suppress(RuntimeError):  # no such weights: building the network says so
            weights = get_pretrained_cfg(name.removeprefix("timm/"))
    return {"MEAN": list(weights.mean), "STD": list(weights.std)} if weights else {}
