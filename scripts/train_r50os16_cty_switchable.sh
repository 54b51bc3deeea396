#!/usr/bin/env bash
# Trains SW (ResNet-50 at stride 16, plain head) on Cityscapes with RobustNet's settings: 2 GPUs x 4 images.
# Usage: CUDA_VISIBLE_DEVICES=0,1 ./scripts/train_r50os16_cty_switchable.sh [flags that win over those below]
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/robustnet_recipe.sh" cityscapes \
  --arch network.deepv3.DeepR50V3PlusD --method sw --bs_mult 4 --exp r50os16_city_switchable "$@"
