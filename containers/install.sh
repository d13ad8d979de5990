#!/usr/bin/env bash
# Runs inside the image while it is built, as its root:   install.sh VARIANT tools|converter
# A wheelhouse is bound to /mnt, if there is one. What the base already has is not installed again.
set -euo pipefail
umask 022
variant=$1 llama_cpp=$2
build=/opt/build/containers
lock=$build/locks/$variant.txt
environment=/opt/siftune
share=/usr/local/share/siftune
export DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

packages=(ca-certificates git libgomp1 python3-venv)
# On a GPU, Triton compiles a small launcher for each kernel at run time, with gcc and Python's headers.
triton=(gcc libc6-dev libpython3-dev)
temporary=(g++) # for llama.cpp
if [ "$variant" = cpu ]; then temporary+=("${triton[@]}"); else packages+=("${triton[@]}"); fi

debian() {
    local wanted=("${packages[@]}")
    if [ "$llama_cpp" = tools ] || [ "$variant" = base ]; then wanted+=("${temporary[@]}"); fi
    dpkg --status "${wanted[@]}" >/dev/null 2>&1 && return
    apt-get update -qq
    apt-get upgrade -y -qq >/dev/null # the base is as old as its tag
    apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null
}

pip() { "$environment/bin/pip" "$@"; }
locked() { pip install --quiet --no-deps --no-build-isolation --use-pep517 --require-hashes -r "$1"; }

stack() {
    if compgen -G '/mnt/*.whl' >/dev/null; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/mnt; fi
    python3 -m venv "$environment"
    # Some packages are source only, and are built with it.
    awk '/^[a-z]/ { keep = /^setuptools==/ } keep' "$lock" >$build/setuptools.txt
    locked $build/setuptools.txt
    locked "$lock"
}

llama() {
    export LLAMA_PYTHON=$environment/bin/python
    $build/llama.sh converter
    if [ "$llama_cpp" = tools ]; then
        # All of it into the package's own folder. Without CUDA: one build serves every variant, and files are
        # checked on the CPU. Without TLS: the server is for this machine.
        CMAKE_ARGS="-DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON -DLLAMA_TOOLS_INSTALL=ON \
            -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DCMAKE_INSTALL_BINDIR=llama_cpp/bin \
            -DCMAKE_INSTALL_LIBDIR=llama_cpp/lib -DCMAKE_INSTALL_INCLUDEDIR=llama_cpp/include \
            -DCMAKE_INSTALL_RPATH='\$ORIGIN/../lib'" $build/llama.sh build
        ln -s $environment/lib/python3*/site-packages/llama_cpp/bin/llama-* $environment/bin/
    fi
    for tool in cmake ninja scikit-build-core; do
        grep -q "^$tool==" "$lock" || pip uninstall --quiet --yes "$tool"
    done
}

clean() {
    local found
    mapfile -t found < <(dpkg-query --show --showformat='${Package}\n' "${temporary[@]}" 2>/dev/null)
    [ ${#found[@]} = 0 ] || apt-get purge -y -qq --auto-remove "${found[@]}" >/dev/null
    pip uninstall --quiet --yes pip
}

debian
mkdir -p $share
if [ "$variant" != base ] && ! grep -qs "^# llama.cpp: $llama_cpp, $(sha256sum <"$lock")$" $share/installed; then
    stack
    llama
    clean
    echo "# llama.cpp: $llama_cpp, $(sha256sum <"$lock")" >$share/installed
fi
cp $build/image_test.py $share/
python3 $build/sbom.py "$variant" >$share/sbom.json
rm -rf /opt/build /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
