#!/usr/bin/env bash
# llama.cpp, one pinned release, from the source package of llama-cpp-python, which carries all of it.
#   converter  its Python converter into share/llama.cpp of the environment: seconds, nothing is compiled
#   build      its library, for quantised types and to run GGUF files: 12 CPU-minutes, and the wheel is kept
set -euo pipefail
cd "$(dirname "$0")/.."
python=${LLAMA_PYTHON:-.venv/bin/python}
cache=.cache/llama.cpp
lock=containers/locks/llama.txt
sdist=$cache/llama_cpp_python-$(sed -n 's/^llama-cpp-python==\([^ ]*\).*/\1/p' $lock).tar.gz

pip() { "$python" -m pip "$@" --quiet --disable-pip-version-check --no-deps; }

source_package() {
    # pip asks a source package's build tools for its name, so they are there first, from the lock and
    # not, as pip would have it, the newest ones.
    pip install --require-hashes -r containers/locks/llama-tools.txt
    sha256sum --check --status <<<"$(sed -n 's/.*--hash=sha256://p' $lock)  $sdist" 2>/dev/null ||
        pip download --no-build-isolation --no-binary :all: --require-hashes -r $lock -d $cache
}

converter() {
    source_package
    local share members top
    share=$("$python" -c 'import sys; print(sys.prefix)')/share/llama.cpp
    top=$(basename "$sdist" .tar.gz)/vendor/llama.cpp
    members=(LICENSE convert_hf_to_gguf.py conversion gguf-py/gguf)
    rm -rf "$share"
    mkdir -p "$share"
    tar -xzf "$sdist" -C "$share" --strip-components=3 "${members[@]/#/$top/}"
}

build() {
    source_package
    command -v c++ >/dev/null || { echo "llama.sh: a C++ compiler is needed: apt-get install g++" >&2; exit 78; }
    local wheel
    wheel=$(compgen -G "$cache/$(basename "$sdist" .tar.gz)-*.whl" || true)
    if [ -z "$wheel" ]; then
        echo "siftune: building llama.cpp (about 12 CPU-minutes, once)"
        # Not for this very processor: the wheel is kept, and other nodes of a cluster may load it. What is
        # left is AVX2, FMA and F16C on x86-64. LLAVA reads images, which nothing here does.
        PATH="$(dirname "$(realpath -s "$python")"):$PATH" \
        CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF ${CMAKE_ARGS:-}" \
            pip wheel --no-build-isolation --no-index -w $cache "$sdist"
        wheel=$(compgen -G "$cache/$(basename "$sdist" .tar.gz)-*.whl")
    fi
    pip install --no-index --force-reinstall "$wheel"
}

case ${1:-} in
    converter | build) "$1" ;;
    *) echo "usage: containers/llama.sh converter|build" >&2; exit 64 ;;
esac
