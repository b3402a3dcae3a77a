#!/usr/bin/env bash
# A verb on GPU hosts under Slurm, one process for each GPU.
#   NODES=2 GPUS=8 bash launch/slurm.sh [--dry_run] VERB FLAGS...
# This folder must be on a disk that the hosts share, with .venv made by
# `bash launch/setup.sh gpu`; --output_dir too. SBATCH_FLAGS are further options of
# sbatch, TIME the limit (default: 12:00:00). Five minutes before it, and when it
# preempts, Slurm sends SIGTERM: the run saves, and the job goes back into the queue.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=0
if [ "${1:-}" = --dry_run ]; then
  dry_run=1
  shift
fi
if [ $# -lt 1 ]; then
  echo "ERROR: which verb? As in: ppjax.train --flagfile=..." >&2
  exit 2
fi

verb=$(printf '%q ' "${VENV:-.venv}/bin/python" -m "$@" --coordinator=auto)
job=$(
  cat <<EOF
#!/usr/bin/env bash
#SBATCH --job-name=ppjax
#SBATCH --nodes=${NODES:-1}
#SBATCH --ntasks-per-node=${GPUS:-8}
#SBATCH --gpus-per-node=${GPUS:-8}
#SBATCH --time=${TIME:-12:00:00}
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --output=ppjax-%j.log
#SBATCH --open-mode=append
cd $(printf '%q' "$PWD")
told=0
srun --kill-on-bad-exit=1 $verb&
steps=\$!
trap 'told=1; kill -TERM \$steps' TERM
wait \$steps && code=0 || code=\$?
if [ \$told = 1 ]; then
  # The signal ended the first wait; what it started is still saving.
  wait \$steps && code=0 || code=\$?
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit \$code
EOF
)
echo "$job"
if [ "$dry_run" = 0 ]; then
  # shellcheck disable=SC2086
  sbatch ${SBATCH_FLAGS:-} <<<"$job"
fi
