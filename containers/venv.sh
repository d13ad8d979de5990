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

echo "siftune: installing the pinned stack into .venv (2 GB, with CUDA's libraries 6 GB)"
# A build of torch for the CPU, where pip knows one (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL), is 2 GB smaller.
install --require-hashes -r "$locks/torch-cpu.txt" 2>/dev/null ||
    install --require-hashes -r "$locks/torch-cuda.txt"
install --require-hashes -r "$locks/stack.txt"
install --no-build-isolation --editable .
PATH="$PWD/.venv/bin:$PATH" containers/llama.sh converter
