#!/usr/bin/env bash
# Evaluates weights of IBN-Net (MobileNetV2 at stride 16, plain head), trained on GTAV, on the four unseen domains.
# Usage: CUDA_VISIBLE_DEVICES=0,1 ./scripts/valid_mobile_gtav_ibn.sh WEIGHTS [flags that win over those below]
set -euo pipefail
flags=(--arch network.deepv3.DeepMobileNetV3PlusD --wt_layer 0 0 4 4 4 0 0)
source "$(dirname "${BASH_SOURCE[0]}")/score_weights.sh"
