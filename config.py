"""Every option once: the paths to edit, the rows of all flags, and `parse`, which makes a run's frozen configuration.

Later wins: this file < `--config FILE.yaml` < environment `DIIA__SECTION__NAME` < flags and `--opts KEY=VALUE`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from utils.errors import UserError
from utils.option_layers import Setting, build_parser, check_tree, read_command_line, read_environment, read_yaml
from utils.options import Option, Settings, build_tree, flatten, freeze

__C = Settings()
cfg = __C  # the global configuration: defaults until `parse` fills and freezes it

# Where the data sets are: edit these lines (the README shows the folders expected below each).
__C.DATASET = Settings()
__C.DATASET.CITYSCAPES_DIR = "./data/cityscapes"
__C.DATASET.MAPILLARY_DIR = "./data/mapillary"
__C.DATASET.GTAV_DIR = "./data/GTAV"
__C.DATASET.BDD_DIR = "./data/bdd-100k"
__C.DATASET.SYNTHIA_DIR = "./data/synthia"
__C.DATASET.CAMVID_DIR = "./data/camvid"
__C.DATASET.KITTI_DIR = "./data/kitti"

GROUPS = {
    "DATASET": "data",
    "NETWORK": "network",
    "WHITENING": "whitening",
    "LOSS": "loss",
    "AUGMENT": "augmentation",
    "OPTIM": "optimisation",
    "EVAL": "evaluation",
    "RUN": "run",
}
PROGRAMS: dict[
    str, tuple[str, tuple[str, ...], dict[str, Any]]
] = {  # program -> what --help says, the sections or keys it shows, defaults that differ from the rows below
    "train": ("Train a network on source domains and score it on unseen ones.", tuple(GROUPS), {}),
    "valid": (
        "Score a weight file (--snapshot) on target domains; flags of train.py that are not shown are accepted too.",
        (
            *("DATASET.DOMAINS_FILE", "DATASET.VAL", "DATASET.SPLIT", "DATASET.NUM_WORKERS", "NETWORK.ARCH"),
            *("NETWORK.BACKBONE", "NETWORK.OUTPUT_STRIDE"),
            *("NETWORK.METHOD", "NETWORK.WT_LAYER", "OPTIM.FP16", "EVAL.BATCH_SIZE", "EVAL.PROTOCOL", "EVAL.LIMIT"),
            *("EVAL.PICTURES", "EVAL.VISUALIZE", "EVAL.ATTENTION_PIXELS", "EVAL.OUT"),
            *("RUN.SNAPSHOT", "RUN.DEVICE", "RUN.DIST_URL", "RUN.DETERMINISTIC"),
        ),
        {"DATASET.VAL": ["bdd100k"]},
    ),
}
VALID_ONLY = ("DATASET.SPLIT", "EVAL.OUT")
ALIASES = {"--local-rank": "--local_rank", "-wb": "--wt_bound"}

# fmt: off
_ROWS = (
    *(Option(f"DATASET.{name}_DIR", __C.DATASET.get(f"{name}_DIR", ""), "", f"Folder of {name}.", kind=str)
      for name in ("CITYSCAPES", "MAPILLARY", "GTAV", "BDD", "SYNTHIA", "CAMVID", "KITTI")),
    Option("DATASET.DOMAINS_FILE", "", "--domains", "YAML file that declares domains of your own."),
    Option("DATASET.TRAIN", ["cityscapes"], "--dataset", "Source domains to train on.", lengths=(1, 100)),
    Option("DATASET.VAL", ["mapillary"], "--val_dataset", "Target domains to score on.", kind=str),
    Option("DATASET.COVSTAT", [], "--covstat_val_dataset",
           "Domains whose training images give the covariance statistics of ISW; none named: the sources.", kind=str),
    Option("DATASET.SPLIT", "val", "--split", "Split that valid.py scores."),
    Option("DATASET.IMAGE_UNIFORM_SAMPLING", False, "--image_uniform_sampling",
           "Pool several source domains, every image alike, instead of equal shares per domain."),
    Option("DATASET.CITY_MODE", "train", "--city_mode", "Cityscapes split to train on.", choices=("train", "trainval")),
    Option("DATASET.CLASS_UNIFORM_PCT", 0.0, "--class_uniform_pct",
           "Share of an epoch that is drawn around class centroids, the same number for every class.", low=0, high=1),
    Option("DATASET.CLASS_UNIFORM_TILE", 1024, "--class_uniform_tile",
           "Side in pixels of the tiles in which class centroids are searched.", low=1),
    Option("DATASET.MAX_CU_EPOCH", 100000, "--max_cu_epoch",
           "Number of epochs with class-uniform sampling; later ones sample plainly.", low=0),
    Option("DATASET.CACHE_DIR", "./cache", "--cache_dir", "Folder of the class centroid caches."),
    Option("DATASET.FRAMES_DIR", "", "--cache",
           "Folder of decoded training frames, filled by the first epoch or by scripts/build_cache.sh."),
    Option("DATASET.COARSE_BOOST_CLASSES", [], "--coarse_boost_classes",
           "Classes (train ids) for which class-uniform epochs draw from Cityscapes' coarse frames too.",
           kind=int, lengths=(0, 19), low=0, high=18),
    Option("DATASET.QUICK_CHECK", True, "--quick_check",
           "Look at a sample of the data before training, as python -m scripts.check_data --quick does."),
    Option("DATASET.NUM_WORKERS", -1, "--num_workers",
           "Loader processes per training process, -1 for a number that fits the cores.", low=-1),

    Option("NETWORK.ARCH", "network.deepv3.DeepR50V3PlusD", "--arch", "Backbone and output stride, by dotted name."),
    Option("NETWORK.BACKBONE", "", "--backbone",
           "Backbone by plain name instead of --arch: resnet50, mobilenet_v2; scripts.network_summary lists all."),
    Option("NETWORK.OUTPUT_STRIDE", 0, "--output_stride",
           "Stride of the last features, 8, 16 or 32 (ResNets: 4 too); 0 for that of --arch, or 16 with --backbone.",
           low=0),
    Option("NETWORK.METHOD", "diia", "--method",
           "Method to build: base, ibn, is, iw, irw, isw and sw have the plain DeepLabV3+ head, diia its own; "
           "diia-no-edge, diia-no-layout, diia-no-aggregation and diia-no-whitening lack a part, diia-coarse has the "
           "coarse head alone."),
    Option("NETWORK.WT_LAYER", None, "--wt_layer",
           "Seven style codes, stem to last stage: 0 none, 1 whitening (IW, IRW), 2 ISW, 3 IN, 4 affine IN, 5 SW.",
           kind=int, many=True, lengths=(7, 7), low=0, high=5),
    Option("NETWORK.PRETRAINED", "torchvision", "--pretrained",
           "ImageNet weights of the backbone: torchvision, none, or a file."),
    Option("NETWORK.SYNCBN", True, "--syncbn", "Share batch-norm statistics between GPUs."),
    Option("NETWORK.FREEZE_BN", False, "--freeze_bn",
           "Keep the batch-norm statistics as they are; scales and shifts still train."),

    Option("WHITENING.REG_WEIGHT", 0.6, "--wt_reg_weight", "Weight of the whitening loss.", low=0),
    Option("WHITENING.RELAX_DENOM", None, "--relax_denom",
           "Denominator of the relaxed margin of IRW, 0 for no margin.", kind=float, low=0),
    Option("WHITENING.CLUSTERS", 50, "--clusters", "Clusters of the covariance variances in ISW.", low=0),
    Option("WHITENING.TRIALS", 10, "--trials", "Passes over the images whose ISW masks are intersected.", low=0),
    Option("WHITENING.DYNAMIC", False, "--dynamic",
           "Compute the ISW masks anew every cov_stat_epoch + 1 epochs instead of once."),
    Option("WHITENING.COV_STAT_EPOCH", 5, "--cov_stat_epoch",
           "Epoch index (from 0) at whose end the ISW masks are computed.", low=0),
    Option("WHITENING.STAT_IMAGES", 500, "--stat_images", "Images read per pass of the ISW statistics.", low=1),

    Option("LOSS.CLASS_WEIGHTS", False, "--cls_wt_loss", "Weigh the cross entropy by fixed class weights."),
    Option("LOSS.IMAGE_WEIGHTS", False, "--img_wt_loss",
           "Weigh the cross entropy by image: a class weighs 1 + wt_bound * (1 - its share of the image)."),
    Option("LOSS.BATCH_WEIGHTS", False, "--batch_weighting",
           "Take the shares of --img_wt_loss and --jointwtborder over a process's batch instead of each image."),
    Option("LOSS.WEIGHT_BOUND", 1.0, "--wt_bound",
           "Largest extra weight of a rare class in --img_wt_loss and --jointwtborder, 0 for equal weights.", low=0),
    Option("LOSS.RELAX_BORDERS", False, "--jointwtborder",
           "Relax labels at borders: any class of a pixel's 3x3 neighbourhood is right; weighs by image too."),
    Option("LOSS.STRICT_CLASSES", [], "--strict_bdr_cls",
           "Classes (train ids) whose own pixels --jointwtborder does not relax.",
           kind=int, lengths=(0, 19), low=0, high=18),
    Option("LOSS.OHEM_THRESH", 0.0, "--ohem_thresh",
           "Take the cross entropy over hard pixels alone (OHEM): those whose true class has less than this "
           "probability, 0.7 say; 0 for all pixels.", low=0, high=1),
    Option("LOSS.OHEM_MIN_KEPT", 100000, "--ohem_min_kept",
           "Pixels per crop that --ohem_thresh keeps at least, on average over a process's batch, the hardest first.",
           low=0),
    Option("LOSS.LAYOUT_CONFIDENCE", "logits", "--layout_confidence",
           "What the thresholds of DIIA's coarse layout compare.", choices=("logits", "softmax")),

    Option("AUGMENT.CROP_SIZE", 720, "--crop_size", "Side in pixels of the training crop.", low=32),
    Option("AUGMENT.CROP_NOPAD", False, "--crop_nopad", "Do not pad images that are smaller than the crop."),
    Option("AUGMENT.PRE_SIZE", 0, "--pre_size", "Resize the shorter side to this before scaling, 0 for not.", low=0),
    Option("AUGMENT.SCALE_MIN", 0.5, "--scale_min", "Smallest random scale.", above=0),
    Option("AUGMENT.SCALE_MAX", 2.0, "--scale_max", "Largest random scale.", above=0),
    Option("AUGMENT.RROTATE", 0.0, "--rrotate", "Largest random rotation in degrees, either way.", low=0, high=180),
    Option("AUGMENT.COLOR_AUG", 0.0, "--color_aug", "Probability of the colour jitter.", low=0, high=1),
    Option("AUGMENT.JITTER", "method", "--jitter",
           "Strengths of the colour jitter; method takes those of --method.", choices=("method", "diia", "robustnet")),
    Option("AUGMENT.GBLUR", False, "--gblur", "Blur every training crop with a random Gaussian."),
    Option("AUGMENT.BBLUR", False, "--bblur", "Blur every training crop bilaterally; takes the place of --gblur."),
    Option("AUGMENT.IMAGE_IN", False, "--image_in", "Normalise every image by its own mean and deviation."),

    Option("OPTIM.NAME", "sgd", "--optimizer", "Optimiser; AdamW wants a smaller --lr, 0.0001 say.",
           choices=("sgd", "adamw")),
    Option("OPTIM.LR", 0.01, "--lr", "Learning rate of the first step.", above=0),
    Option("OPTIM.LR_SCHEDULE", "poly", "--lr_schedule",
           "Learning-rate schedule; scl-poly starts again at --rlx_off_iter.", choices=("poly", "scl-poly")),
    Option("OPTIM.POLY_EXP", 0.9, "--poly_exp", "Exponent of the poly schedule.", low=0),
    Option("OPTIM.RESCALE", 1.0, "--rescale", "Factor of the second part of scl-poly.", above=0),
    Option("OPTIM.REPOLY", 1.5, "--repoly", "Exponent of the second part of scl-poly.", low=0),
    Option("OPTIM.RLX_OFF_ITER", -1, "--rlx_off_iter",
           "Step at which --jointwtborder stops relaxing (its weights stay) and the second part of scl-poly starts.",
           low=-1),
    Option("OPTIM.MAX_ITER", 30000, "--max_iter", "Optimiser steps of the run.", low=1),
    Option("OPTIM.MAX_EPOCH", 0, "--max_epoch", "Stop after this many epochs, 0 for no limit.", low=0),
    Option("OPTIM.WEIGHT_DECAY", 5e-4, "--weight_decay",
           "Weight decay; decoupled from the gradient in AdamW, where 0.01 is usual.", low=0),
    Option("OPTIM.MOMENTUM", 0.9, "--momentum", "Momentum of SGD.", low=0, high=1),
    Option("OPTIM.BATCH_SIZE", 2, "--bs_mult", "Images per process and forward pass.", low=1),
    Option("OPTIM.ACCUMULATE", 1, "--accumulate", "Forward passes whose gradients make one step.", low=1),
    Option("OPTIM.CLIP_GRAD_NORM", 0.0, "--clip_grad_norm",
           "Largest norm of the gradient of all weights together; a longer one is scaled down. 0 for no limit.", low=0),
    Option("OPTIM.EMA_DECAY", 0.0, "--ema_decay",
           "Score, and keep beside the trained ones, weights averaged over the steps (EMA) with this decay, 0.999 say; "
           "0 for none.", low=0, high=0.999999),
    Option("OPTIM.FP16", False, "--fp16", "Mixed precision: float16 on a GPU, bfloat16 on the CPU."),

    Option("EVAL.BATCH_SIZE", 1, "--bs_mult_val", "Images per process and forward pass while scoring.", low=1),
    Option("EVAL.PROTOCOL", "full", "--eval_protocol",
           "Score every pixel at native size (full), or only Mapillary's 1536 centre square (robustnet).",
           choices=("full", "robustnet")),
    Option("EVAL.INTERVAL", 1, "--val_interval", "Epochs between two validations, 0 for only at the end.", low=0),
    Option("EVAL.SOURCE", True, "--val_source", "Score the source domains while training too."),
    Option("EVAL.LIMIT", 0, "--val_limit",
           "Images scored per domain, evenly spread, 0 for all; a training ends with scores on all.", low=0),
    Option("EVAL.PICTURES", 4, "--pictures", "Images per domain that are drawn as pictures.", low=0),
    Option("EVAL.VISUALIZE", False, "--visualize_feature",
           "Draw covariances, whitening masks, edge maps, coarse layouts and attention of the images of --pictures."),
    Option("EVAL.ATTENTION_PIXELS", [], "--attention_pixels",
           "Pixels (x y x y ...) whose attention is drawn; none: in the middle of the largest classes.",
           kind=int, lengths=(0, 24), low=0),
    Option("EVAL.OUT", "", "--out", "Folder for the tables and pictures of valid.py."),

    Option("RUN.SNAPSHOT", "", "--snapshot", "Weight file to start from, or to score."),
    Option("RUN.RESTORE_OPTIMIZER", False, "--restore_optimizer",
           "Continue the run of --snapshot: optimiser, schedule and progress too."),
    Option("RUN.RESUME", "", "--resume", "Continue from a checkpoint file, or auto: from the last one of this run."),
    Option("RUN.DATE", "default", "--date", "First part of the run's folder name."),
    Option("RUN.EXP", "default", "--exp", "Second part of the run's folder name."),
    Option("RUN.TB_TAG", "", "--tb_tag", "Text added to the TensorBoard folder name."),
    Option("RUN.CKPT", "./logs/ckpt", "--ckpt", "Folder below which runs are kept."),
    Option("RUN.TB_PATH", "./logs/tb", "--tb_path", "Folder below which TensorBoard files are kept."),
    Option("RUN.TEST_MODE", False, "--test_mode", "Do a few steps of everything, to see that it works."),
    Option("RUN.SEED", 304, "--seed", "Seed of weights, order and augmentation.", low=0, high=2**32 - 1),
    Option("RUN.LOG_INTERVAL", 50, "--log_interval", "Steps between two lines of the log.", low=1),
    Option("RUN.SAVE_INTERVAL", 0, "--save_interval", "Steps between two checkpoints, 0 for epoch ends only.", low=0),
    Option("RUN.DEVICE", "auto", "--device", "Device to compute on.", choices=("auto", "cpu", "cuda")),
    Option("RUN.LOCAL_RANK", -1, "--local_rank", "Set by old launchers; torchrun's variables win.", low=-1),
    Option("RUN.DIST_URL", "env://", "--dist_url", "Where the processes meet."),
    Option("RUN.DETERMINISTIC", False, "--deterministic",
           "Use operations that give the same bits every time, where there are any."),
    Option("RUN.DUMP_AUGMENTATION", False, "--dump_augmentation_images", "Draw the first training batch as a picture."),
)
# fmt: on
SHORTHANDS = (Option("OPTIM.NAME", "sgd", "--sgd", "The same as --optimizer sgd.", const="sgd", choices=("sgd",)),)
KEYS: dict[str, Option] = {row.key: row for row in _ROWS}
assert len(KEYS) == len(_ROWS), "a key is declared twice"

_NEVER = "did nothing in the original program and does not exist here: leave it out"
_LATER = "is not available:"
REFUSED = {
    **dict.fromkeys(("--freeze_trunk", "--hardnm", "--scf"), _NEVER),
    **dict.fromkeys(("--adam", "--amsgrad"), f"{_NEVER}, or use --optimizer adamw"),
    "--trunk": "did nothing in the original program and does not exist here: --arch names the backbone",
    "--use_wtloss": "does not exist here: the whitening loss follows from --method or --wt_layer",
    "--use_isw": "does not exist here: ISW follows from --method or --wt_layer",
    "--start_epoch": "does not exist here: --resume and --restore_optimizer take the epoch from the checkpoint",
    "--cv": f"{_LATER} the splits of the folders are used as they are; leave it out for the published split 0",
    "--maxSkip": f"{_LATER} video frames cannot be added; --coarse_boost_classes adds coarsely labelled ones",
}

for _row in _ROWS:  # their defaults join the lines above
    _section, _, _name = _row.key.partition(".")
    __C.setdefault(_section, Settings()).setdefault(_name, _row.default)
_defaults = dict(flatten(__C))  # what the file says, also after `parse` has filled the global configuration


def parse(argv: Sequence[str] | None = None, *, program: str) -> Settings:
    """Return the frozen configuration of a run; the global `cfg` is filled with the same values and frozen too.

    Args:
        argv: command line without the program's name; None takes the process's own.
        program: train or valid.

    Raises:
        UserError: an unknown or refused flag or key, a value of a wrong type or out of range, values that contradict.
    """
    values = _checked_defaults()
    own = {key: value for key, value in PROGRAMS[program][2].items() if values[key] == KEYS[key].default}
    values.update(own)  # unless somebody has edited the row
    values.update({setting.key: setting.value for setting in _layers(argv, program=program)})
    _check_together(values)
    freeze(cfg, frozen=False)
    cfg.update(build_tree(values, frozen=True))
    freeze(cfg)
    return build_tree(values, frozen=True)


def to_dict(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as plain dicts, lists and scalars, fit for a checkpoint or YAML."""
    plain: dict[str, Any] = {}
    for name, value in tree.items():
        plain[name] = (
            to_dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
        )
    return plain


def from_dict(tree: Mapping[str, Any], *, source: str = "configuration") -> Settings:
    """Return the frozen configuration of what `to_dict` gave; keys that it lacks get their defaults.

    Raises:
        UserError: a key that no option has, or a value of a wrong type; the message starts with `source`.
    """
    values = _checked_defaults()
    values.update({setting.key: setting.value for setting in check_tree(tree, KEYS, source=source)})
    _check_together(values)
    return build_tree(values, frozen=True)


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Return a configuration as YAML that `--config` reads."""
    return yaml.safe_dump(to_dict(tree), sort_keys=False, default_flow_style=None, width=120)


def make_parser(*, program: str) -> argparse.ArgumentParser:
    """Return the parser of train's or valid's command line."""
    description, shown, defaults = PROGRAMS[program]
    rows = {key: replace(row, default=defaults.get(key, row.default)) for key, row in KEYS.items()}
    names = {"prog": f"python {program}.py", "description": description}
    return build_parser(rows, **names, groups=GROUPS, shown=shown, aliases=ALIASES, shorthands=SHORTHANDS)


def _layers(argv: Sequence[str] | None, *, program: str) -> list[Setting]:
    """Return all settings above the defaults, weakest first."""
    parser = make_parser(program=program)
    files, command_line = read_command_line(parser, sys.argv[1:] if argv is None else argv, refused=REFUSED)
    for setting in command_line:
        if program == "train" and setting.key in VALID_ONLY:  # files and environment may serve both programs
            raise UserError(f"{setting.source}: {setting.key} belongs to valid.py; leave it out")
    settings = [setting for file in files for setting in read_yaml(file, KEYS)]
    return settings + read_environment(os.environ, KEYS) + command_line


def _checked_defaults() -> dict[str, Any]:
    """Return this file's values by dotted key: somebody may have edited them."""
    global _defaults
    if not cfg.frozen:
        _defaults = dict(flatten(cfg))  # lines edited from outside before the first parse count too
    return {setting.key: setting.value for setting in check_tree(_defaults, KEYS, source="config.py")}


def _check_together(values: Mapping[str, Any]) -> None:
    """Refuse values that contradict each other."""
    low, high = values["AUGMENT.SCALE_MIN"], values["AUGMENT.SCALE_MAX"]
    if low > high:
        raise UserError(f"--scale_min {low:g} is above --scale_max {high:g}; swap or change one")
    start, end = values["OPTIM.RLX_OFF_ITER"], values["OPTIM.MAX_ITER"]
    if values["OPTIM.LR_SCHEDULE"] == "scl-poly" and not 0 <= start < end:
        raise UserError(f"--lr_schedule scl-poly needs --rlx_off_iter from 0 to {end - 1} (--max_iter), got {start}")
    if values["OPTIM.NAME"] != "sgd" and values["OPTIM.MOMENTUM"] != KEYS["OPTIM.MOMENTUM"].default:
        raise UserError("--momentum belongs to --optimizer sgd; leave it out")
    _check_loss(values)
    _check_pictures(values)
    if values["RUN.RESTORE_OPTIMIZER"] and not values["RUN.SNAPSHOT"] and not values["RUN.RESUME"]:
        raise UserError(
            "--restore_optimizer needs the checkpoint to continue from: give --snapshot FILE or --resume auto"
        )


def _check_pictures(values: Mapping[str, Any]) -> None:
    """Refuse pictures of nothing."""
    drawn, pixels = values["EVAL.VISUALIZE"], values["EVAL.ATTENTION_PIXELS"]
    if drawn and not values["EVAL.PICTURES"]:
        raise UserError("--visualize_feature draws the images of --pictures, which is 0; give at least 1")
    if len(pixels) % 2:
        raise UserError(f"--attention_pixels takes x and y of each pixel, got {len(pixels)} numbers; give one more")
    if pixels and not drawn:
        raise UserError("--attention_pixels belongs to --visualize_feature; add it or leave the pixels out")


def _check_loss(values: Mapping[str, Any]) -> None:
    """Refuse weights and targets of the cross entropy that contradict each other."""
    ways = {"CLASS_WEIGHTS": "--cls_wt_loss", "IMAGE_WEIGHTS": "--img_wt_loss", "RELAX_BORDERS": "--jointwtborder"}
    asked = [flag for name, flag in ways.items() if values[f"LOSS.{name}"]]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} each weigh the cross entropy in their own way; give one of them")
    for key in ("LOSS.BATCH_WEIGHTS", "LOSS.WEIGHT_BOUND"):
        if values[key] != KEYS[key].default and asked not in (["--img_wt_loss"], ["--jointwtborder"]):
            raise UserError(f"{KEYS[key].flag} belongs to --img_wt_loss or --jointwtborder; add one of them")
    if values["LOSS.STRICT_CLASSES"] and asked != ["--jointwtborder"]:
        raise UserError("--strict_bdr_cls belongs to --jointwtborder; add it or leave the classes out")
    if values["LOSS.OHEM_THRESH"] and asked not in ([], ["--cls_wt_loss"]):
        raise UserError(f"--ohem_thresh and {asked[0]} each choose which pixels count how much; give one of them")
    if not values["LOSS.OHEM_THRESH"] and values["LOSS.OHEM_MIN_KEPT"] != KEYS["LOSS.OHEM_MIN_KEPT"].default:
        raise UserError("--ohem_min_kept belongs to --ohem_thresh; add it, 0.7 say")
