#!/usr/bin/env bash
# What RobustNet's training scripts share; train_{r50os16,r101os8,mobile,shuffle}_*.sh say what differs between them.
# Usage: scripts/robustnet_recipe.sh DOMAIN [flags of train.py that win over those below]; DOMAIN: gtav or cityscapes
# As published, the source and the four unseen domains are evaluated after the last step alone;
# --val_interval 1 --val_limit 500 evaluates on some images after every epoch.
set -euo pipefail
domain=${1:-}
case $domain in
  gtav) targets=(bdd100k cityscapes synthia mapillary) ;;
  cityscapes) targets=(bdd100k gtav synthia mapillary) ;;
  *)
    echo "usage: $0 DOMAIN [flags]: the first argument is the source domain, gtav or cityscapes" >&2
    exit 2
    ;;
esac
shift
exec "$(dirname "${BASH_SOURCE[0]}")/recipe.sh" \
  --dataset "$domain" --covstat_val_dataset "$domain" --val_dataset "${targets[@]}" --val_interval 0 "$@"
