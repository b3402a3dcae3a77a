#!/usr/bin/env bash
# From nothing to a pruned role-playing model, on two CPU cores in some eight minutes:
# sets up .venv, chooses calibration data for a persona that ships with ppjax, prunes
# and refits, exports the model, checks it, and shows the result. The same command goes on
# where it stopped.
#   bash launch/quickstart.sh [RUN_DIRECTORY]
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-runs/quickstart}
bash launch/setup.sh demo
python=${VENV:-.venv}/bin/python
# Activations of one step are hundreds of MB: huge pages save a fifth of its time.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
# Everything needed is on this machine.
export HF_HUB_OFFLINE=1
# transformers would remark that PyTorch is not installed; nothing here needs it.
export TRANSFORMERS_NO_ADVISORY_WARNINGS=1

"$python" -m ppjax.run --flagfile=configs/quickstart.flags --output_dir="$run"
cat <<EOF

Talk to it:
  $python -m ppjax.chat --model=$run/hf
EOF
