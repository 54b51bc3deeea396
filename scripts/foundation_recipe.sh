#!/usr/bin/env bash
# What the scripts of foundation models share; train_dinov2l_gtav_*.sh say how much of the backbone is trained.
# Usage: scripts/foundation_recipe.sh [flags of train.py that win over those below]
# Values without a comment are those of Rein (Wei et al., CVPR 2024). Its head is Mask2Former, which is not here:
# `base` is the nearest, a dense decoder that reads several of the backbone's blocks. Expect other scores than its.
set -euo pipefail
flags=(
  --dataset gtav --val_dataset cityscapes bdd100k mapillary
  --backbone timm/vit_large_patch14_dinov2.lvd142m
  --output_stride 16 --method base            # not in the paper
  --crop_size 512 --bs_mult 4 --max_iter 40000
  --optimizer adamw --lr 0.0001               # of heads and of Rein
  --lr_schedule poly --poly_exp 0.9           # not in the paper
  --weight_decay 0.05 --no_norm_decay         # not in the paper: Mask2Former's (Cheng et al., CVPR 2022)
  --scale_min 0.5 --scale_max 2 --color_aug 0.5 # the paper: basic augmentation as Mask2Former's, no values
  --val_interval 0                            # not in the paper: evaluates after the last step alone
)
exec "$(dirname "${BASH_SOURCE[0]}")/launch.sh" train.py "${flags[@]}" "$@"
