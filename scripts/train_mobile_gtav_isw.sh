#!/usr/bin/env bash
# Trains ISW (MobileNetV2 at stride 16, plain head) on GTAV with RobustNet's settings: 4 GPUs x 4 images.
# Usage: CUDA_VISIBLE_DEVICES=0,1,2,3 ./scripts/train_mobile_gtav_isw.sh [flags that win over those below]
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/robustnet_recipe.sh" gtav \
  --arch network.deepv3.DeepMobileNetV3PlusD --method isw --wt_reg_weight 1.0 --clusters 20 --bs_mult 4 \
  --exp mobile_gtav_isw "$@"
