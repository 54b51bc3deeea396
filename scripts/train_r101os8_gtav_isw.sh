#!/usr/bin/env bash
# Trains ISW (ResNet-101 at stride 8, plain head) on GTAV with RobustNet's settings: 4 GPUs x 4 images.
# Usage: CUDA_VISIBLE_DEVICES=0,1,2,3 ./scripts/train_r101os8_gtav_isw.sh [flags that win over those below]
# Put MIT CSAIL's ImageNet weights for its stem of three convolutions into pretrained/ first (docs/training.md).
# Its codes leave out the third convolution of the stem, as published.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/robustnet_recipe.sh" gtav \
  --arch network.deepv3.DeepR101V3PlusD_OS8 --method isw --wt_layer 2 2 0 2 2 0 0 --wt_reg_weight 0.6 --clusters 3 \
  --pretrained pretrained/resnet101-imagenet.pth --bs_mult 4 --exp r101os8_gtav_isw "$@"
