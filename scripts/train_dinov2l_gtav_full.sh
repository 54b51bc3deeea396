#!/usr/bin/env bash
# Trains a dense head on DINOv2-L and GTAV, and the backbone at the paper's 1e-5 (0.1 x --lr): 1 GPU x 4 images.
# Usage: CUDA_VISIBLE_DEVICES=0 ./scripts/train_dinov2l_gtav_full.sh [flags that win over those below]
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/foundation_recipe.sh" --tune full --backbone_lr 0.1 --exp dinov2l_gtav_full "$@"
