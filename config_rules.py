"""What the options of a run say together: flags and values that are refused, and what follows from the backbone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from utils.errors import UserError

if TYPE_CHECKING:
    from config import Config

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


def check_together(tree: Config) -> None:
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


def fix_normalisation(tree: Config) -> None:
    """Set mean and deviation of the images to those of the weights of a network of timm, where the run has none.

    They are fixed when the options are read, so that a checkpoint, its export and its report hold them.
    """
    if not tree.NETWORK.BACKBONE.startswith("timm/"):
        return
    from timm import get_pretrained_cfg  # slow to import

    with contextlib.suppress(RuntimeError):  # no such weights: building the network says so
        if weights := get_pretrained_cfg(tree.NETWORK.BACKBONE.removeprefix("timm/")):
            tree.AUGMENT.MEAN = tree.AUGMENT.MEAN or list(weights.mean)
            tree.AUGMENT.STD = tree.AUGMENT.STD or list(weights.std)
