#!/usr/bin/env bash
# Trains DIIA (ResNet-50, output stride 16) on GTAV and SYNTHIA together, half of every batch from each: 4 GPUs x 8 images.
# Usage: CUDA_VISIBLE_DEVICES=0,1,2,3 ./scripts/train_r50os16_gtav_synthia_isw.sh [flags that win over those below]
# While training it scores at most 500 images of each set after every epoch (--val_limit), at the end all of them.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/launch.sh" train.py \
  --dataset gtav synthia \
  --covstat_val_dataset gtav synthia \
  --val_dataset cityscapes \
  --arch network.deepv3.DeepR50V3PlusD \
  --wt_layer 0 0 2 2 2 0 0 \
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
  --exp r50os16_gtav_synthia_isw \
  --ckpt ./logs/ \
  --tb_path ./logs/ \
  "$@"
