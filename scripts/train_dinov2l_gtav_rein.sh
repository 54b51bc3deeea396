#!/usr/bin/env bash
# Trains a dense head on DINOv2-L and GTAV, with Rein's tokens in a frozen backbone: 1 GPU x 4 images.
# Usage: CUDA_VISIBLE_DEVICES=0 ./scripts/train_dinov2l_gtav_rein.sh [flags that win over those below]
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/foundation_recipe.sh" --tune rein --exp dinov2l_gtav_rein "$@"
