#!/usr/bin/env bash
# A verb on a TPU slice of a GKE cluster, by Google's xpk.
#   CLUSTER=mine ZONE=us-west4-a TPU_TYPE=v5litepod-64 WORKLOAD=prune-32b \
#     bash launch/xpk.sh [--dry_run] VERB FLAGS...
# The image is BASE_IMAGE (default: python:3.11) with this folder in it, which is
# installed when the workload starts. SLICES is the number of slices (default: 1),
# RESTARTS how often a preempted workload is started again (default: 10); each goes on
# from the last checkpoint. --output_dir must be on a volume that all hosts share.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=0
if [ "${1:-}" = --dry_run ]; then
  dry_run=1
  shift
fi
for name in CLUSTER ZONE TPU_TYPE WORKLOAD; do
  if [ -z "${!name:-}" ]; then
    echo "ERROR: $name must be in the environment; see the head of $0." >&2
    exit 2
  fi
done
if [ $# -lt 1 ]; then
  echo "ERROR: which verb? As in: ppjax.train --flagfile=..." >&2
  exit 2
fi

verb=$(printf '%q ' .venv/bin/python -m "$@" --coordinator=auto)
command=(xpk workload create
  --cluster="$CLUSTER" --zone="$ZONE" --workload="$WORKLOAD"
  --tpu-type="$TPU_TYPE" --num-slices="${SLICES:-1}"
  --max-restarts="${RESTARTS:-10}"
  --base-docker-image="${BASE_IMAGE:-python:3.11}" --script-dir="$PWD"
  --command="bash launch/setup.sh tpu && exec $verb")
printf '%q ' "${command[@]}"
echo
[ "$dry_run" = 1 ] || "${command[@]}"
