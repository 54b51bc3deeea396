#!/usr/bin/env bash
# Trains IBN-Net (ResNet-50 at stride 16, plain head) on GTAV with RobustNet's settings: 4 GPUs x 4 images.
# Usage: CUDA_VISIBLE_DEVICES=0,1,2,3 ./scripts/train_r50os16_gtav_ibn.sh [flags that win over those below]
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/robustnet_recipe.sh" gtav \
  --arch network.deepv3.DeepR50V3PlusD --method ibn --bs_mult 4 --exp r50os16_gtav_ibn "$@"
