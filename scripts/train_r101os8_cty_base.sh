#!/usr/bin/env bash
# Trains the baseline (ResNet-101 at stride 8, plain head) on Cityscapes with RobustNet's settings: 2 GPUs x 4 images.
# Usage: CUDA_VISIBLE_DEVICES=0,1 ./scripts/train_r101os8_cty_base.sh [flags that win over those below]
# Put MIT CSAIL's ImageNet weights for its stem of three convolutions into pretrained/ first (docs/training.md).
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/robustnet_recipe.sh" cityscapes \
  --arch network.deepv3.DeepR101V3PlusD_OS8 --method base --pretrained pretrained/resnet101-imagenet.pth --bs_mult 4 \
  --exp r101os8_city_base "$@"
