#!/usr/bin/env bash
# Make .venv from the hashed locks (`make .venv/ready`).
set -euo pipefail
cd "$(dirname "$0")/.."
locks=containers/locks

"$PYTHON" - <<'PY' || { echo "siftune needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 …" >&2; exit 78; }
import sys
sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PY
"$PYTHON" -m venv .venv
install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$@"; }

echo "siftune: installing the pinned stack into .venv (about 2 GB, some minutes)"
install --require-hashes -r "$locks/cpu.txt"
# torch from the Python index is built for CUDA and wants its libraries; a CPU build wants none of them.
if .venv/bin/python -c 'import importlib.metadata as m, sys; sys.exit(not any(r.startswith("nvidia") for r in m.requires("torch")))'; then
    install --require-hashes -r "$locks/cuda-libraries.txt"
fi
install --no-build-isolation --editable .
PATH="$PWD/.venv/bin:$PATH" containers/llama.sh converter
