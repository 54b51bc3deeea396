#!/usr/bin/env bash
# What DIIA's training scripts share: ResNet-50 at stride 16, 4 GPUs x 8 images; each script says what differs.
# Usage: scripts/diia_recipe.sh [flags of train.py that win over those below]
# Learning rate, schedule, optimiser and scales are the defaults of train.py.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/launch.sh" train.py \
  --arch network.deepv3.DeepR50V3PlusD \
  --relax_denom 0.0 \
  --clusters 3 \
  --max_cu_epoch 10000 \
  --class_uniform_pct 0.5 \
  --class_uniform_tile 1024 \
  --crop_size 768 \
  --gblur \
  --color_aug 0.5 \
  --max_iter 40000 \
  --bs_mult 8 \
  --val_limit 500 \
  --date 0101 \
  --ckpt ./logs/ \
  --tb_path ./logs/ \
  "$@"
