#!/usr/bin/env bash
# Trains the baseline (MobileNetV2 at stride 16, plain head) on GTAV with RobustNet's settings: 2 GPUs x 8 images.
# Usage: CUDA_VISIBLE_DEVICES=0,1 ./scripts/train_mobile_gtav_base.sh [flags that win over those below]
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/robustnet_recipe.sh" gtav \
  --arch network.deepv3.DeepMobileNetV3PlusD --method base --bs_mult 8 --date 0201 --exp mobile_gtav_base "$@"
