#!/usr/bin/env bash
# What all published training scripts of DIIA and RobustNet share; diia_recipe.sh and robustnet_recipe.sh add their own.
# Usage: scripts/recipe.sh [flags of train.py that win over those below]
# Learning rate, schedule, optimiser and scales are the defaults of train.py.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/launch.sh" train.py \
  --class_uniform_pct 0.5 --class_uniform_tile 1024 --max_cu_epoch 10000 --crop_size 768 --gblur --color_aug 0.5 \
  --max_iter 40000 --date 0101 --ckpt ./logs/ --tb_path ./logs/ "$@"
