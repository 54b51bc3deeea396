#!/usr/bin/env bash
# Trains ISW (ResNet-101 at stride 8, plain head) on Cityscapes with RobustNet's settings: 2 GPUs x 4 images.
# Usage: CUDA_VISIBLE_DEVICES=0,1 ./scripts/train_r101os8_cty_isw.sh [flags that win over those below]
# Put MIT CSAIL's ImageNet weights for its stem of three convolutions into pretrained/ first (docs/training.md).
# Codes of ResNet-50, as published: the first 2 is the stem's third convolution here, unlike 2 2 0 2 2 0 0 on GTAV.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/robustnet_recipe.sh" cityscapes \
  --arch network.deepv3.DeepR101V3PlusD_OS8 --method isw --wt_layer 0 0 2 2 2 0 0 --wt_reg_weight 0.6 --clusters 2 \
  --pretrained pretrained/resnet101-imagenet.pth --bs_mult 4 --exp r101os8_city_isw "$@"
