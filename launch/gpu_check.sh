#!/usr/bin/env bash
# What a GPU makes of ppjax, in one JSON file, in under 8 minutes:
#   bash launch/gpu_check.sh OUT.json [--tiny] [--seconds=450]
# Needs no network and no set-up but a Python with JAX; nothing is installed. Pure-Python
# packages that are missing are taken from the wheels in launch/wheels (or WHEELS), if
# there are such. PYTHON names the interpreter (default: .venv's, else python3). On a
# machine without an accelerator tiny models run, and the file says so.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python3
  [ -x "$here/../.venv/bin/python" ] && python=$here/../.venv/bin/python
fi
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
exec "$python" "$here/gpu_check.py" "$@"
