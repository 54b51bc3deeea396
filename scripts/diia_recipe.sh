#!/usr/bin/env bash
# What DIIA's training scripts share: ResNet-50 at stride 16, 4 GPUs x 8 images; each script says what differs.
# Usage: scripts/diia_recipe.sh [flags of train.py that win over those below]
# They evaluate at most 500 images of each set after every epoch (--val_limit), at the end all of them.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/recipe.sh" \
  --arch network.deepv3.DeepR50V3PlusD --clusters 3 --bs_mult 8 --val_limit 500 "$@"
