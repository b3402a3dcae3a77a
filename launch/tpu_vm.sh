#!/usr/bin/env bash
# A TPU slice of Google Cloud: ask for it, set it up, run a verb on all its hosts.
#   NAME=prune ZONE=us-west4-a ACCELERATOR=v5litepod-64 RUNTIME=v2-alpha-tpuv5-lite \
#     bash launch/tpu_vm.sh [--dry_run] create | setup | run VERB FLAGS... | log | delete
# create   asks for a queued resource (SPOT=1: one that may be preempted)
# setup    copies this folder to every host and installs it there (extra: tpu)
# run      starts the verb on every host, as processes that find each other; MOUNT, a
#          shell command such as a gcsfuse mount, is run on each host before it
# log      follows the first host's output
# delete   gives the slice back
# --output_dir must be on a disk that all hosts share. After a preemption: create, setup
# and the same run again.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=0
if [ "${1:-}" = --dry_run ]; then
  dry_run=1
  shift
fi
action=${1:-}
[ $# -gt 0 ] && shift

need() {
  for name in "$@"; do
    if [ -z "${!name:-}" ]; then
      echo "ERROR: $action wants $name in the environment; see the head of $0." >&2
      exit 2
    fi
  done
}

# Prints a command, and runs it unless this is a trial.
run() {
  printf '%q ' "$@"
  echo
  [ "$dry_run" = 1 ] || "$@"
}

on_all_hosts() {
  run gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

case $action in
  create)
    need NAME ZONE ACCELERATOR RUNTIME
    run gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" \
      --zone="$ZONE" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
      ${SPOT:+--spot}
    ;;
  setup)
    need NAME ZONE
    archive=${TMPDIR:-/tmp}/ppjax.tar.gz
    run git archive --format=tar.gz --prefix=ppjax/ --output="$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$NAME:ppjax.tar.gz" --zone="$ZONE" \
      --worker=all
    on_all_hosts "tar xzf ppjax.tar.gz && bash ppjax/launch/setup.sh tpu"
    ;;
  run)
    need NAME ZONE
    if [ $# -lt 1 ]; then
      echo "ERROR: run which verb? As in: run ppjax.train --flagfile=..." >&2
      exit 2
    fi
    verb=$(printf '%q ' .venv/bin/python -m "$@" --coordinator=auto)
    # Goes on when this terminal does not.
    on_all_hosts "${MOUNT:+$MOUNT && }cd ppjax && nohup $verb> ~/ppjax.log 2>&1 &"
    ;;
  log)
    need NAME ZONE
    run gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=0 \
      --command='tail -n 50 -F ppjax.log'
    ;;
  delete)
    need NAME ZONE
    run gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force
    ;;
  *)
    echo "ERROR: which of create, setup, run, log and delete? Got '$action'." >&2
    exit 2
    ;;
esac
