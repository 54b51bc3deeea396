#!/usr/bin/env bash
# Evaluates weights of ISW (MobileNetV2 at stride 16, plain head), trained on GTAV, on the four unseen domains.
# Usage: CUDA_VISIBLE_DEVICES=0,1 ./scripts/valid_mobile_gtav_isw.sh WEIGHTS [flags that win over those below]
set -euo pipefail
flags=(--arch network.deepv3.DeepMobileNetV3PlusD --wt_layer 0 0 2 2 2 0 0)
source "$(dirname "${BASH_SOURCE[0]}")/score_weights.sh"
