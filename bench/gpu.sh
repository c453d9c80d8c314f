#!/usr/bin/env bash
# Everything about the CUDA backend that needs a GPU, in one command: builds llama_ext with CUDA in a virtual environment of
# its own, runs the tests of tests/cuda on the machine's driver, a part of them under compute-sanitizer if there is one, and
# measures kernels and decoding. The result is bench/results/gpu-NAME.md, NAME being the card's.
#
# THIS HAS NEVER BEEN RUN ON HARDWARE. It was written where no GPU was, and has run through on the virtual GPU alone
# (--virtual: tiny shapes, and times of an interpreter that mean nothing).
#
#   bench/gpu.sh [--virtual] [--python PATH] [--quick]
#
#   --python PATH   take this Python, in which llama_ext is built already, and build nothing
#   --quick         the 1b shape in bf16 and q4_0 alone
#   --virtual       on the virtual GPU, to see that the steps run through; with a few of the tests
set -euo pipefail
cd "$(dirname "$0")/.."

virtual= quick= python=
while (($#)); do
    case $1 in
        --virtual) virtual=1 ;;
        --quick) quick=1 ;;
        --python) python=${2:?--python takes a path}; shift ;;
        *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
    esac
    shift
done

work=build/gpu
mkdir -p "$work"
if [[ -z $python ]]; then
    python3 -m venv "$work/venv"
    python=$work/venv/bin/python
    pip=("$python" -m pip install -q)
    "${pip[@]}" --upgrade pip
    "${pip[@]}" torch "scikit-build-core>=0.11" "pybind11>=3.0" "cmake>=3.24" "ninja>=1.11" gguf
    if ! { [[ -n ${CUDACXX:-} ]] || { nvcc --version || /usr/local/cuda/bin/nvcc --version; } 2>/dev/null | grep -q "release 1[3-9]"; }; then
        "${pip[@]}" nvidia-cuda-nvcc==13.0.* nvidia-cuda-crt==13.0.* nvidia-nvvm==13.0.* nvidia-cuda-runtime==13.0.* nvidia-cuda-cccl==13.0.*
    fi
    PATH=$PWD/$work/venv/bin:$PATH "${pip[@]}" --no-build-isolation -C cmake.define.LLAMA_EXT_CUDA=ON -C cmake.define.LLAMA_EXT_OPS=ON ".[test]"
fi

if [[ -n $virtual ]]; then
    export LLAMA_EXT_LIBCUDA=${LLAMA_EXT_LIBCUDA:-$PWD/build/virtual_gpu/libcuda.so.1}
    # A few of the tests: an interpreter takes its time.
    tests=(tests/cuda/test_cuda_host.py tests/cuda/test_cuda_rms_norm.py tests/cuda/test_cuda_figures.py)
    flags=(--virtual)
else
    tests=(tests/cuda)
    flags=()
fi
export LLAMA_EXT_TEST_CUDA=real

# -P: what is installed, not the folder here, which has no built extension. A build in place (--python) goes by PYTHONPATH.
device=$("$python" -P -c 'from llama_ext import _core; print(_core.cuda.Device().name)')
name=$(tr -cs 'A-Za-z0-9\n' '-' <<<"${device,,}" | sed 's/-*$//')
folder=bench/results
[[ -z $virtual ]] || folder=$work  # nothing to keep
mkdir -p "$folder"
result=$folder/gpu-$name.md
log=$work/log
: >"$log"
failed=0

say() { printf '%s\n' "$@" | tee -a "$result"; }

# A step's last lines go into the result, all of it into the log; a failure does not end the run.
step() {
    local lines=$1 title=$2
    shift 2
    local shown=${*//"$python"/python}
    say "" "## $title" "" '```' "\$ ${shown//$PWD\//}"
    local status=0
    "$@" >"$work/step" 2>&1 || status=$?
    cat "$work/step" >>"$log"
    tail -n "$lines" "$work/step" | tee -a "$result"
    ((status == 0)) || { say "FAILED with status $status"; failed=1; }
    say '```'
}

: >"$result"
say "# $device" ""
if [[ -n $virtual ]]; then
    say "**A run of the virtual GPU, to see that every step runs through. Its times are an interpreter's and say nothing about a GPU.**" ""
fi
say "$(date -u +%Y-%m-%d), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
say "$("$python" -P -c 'import llama_ext; print(llama_ext.build_info())')"
if [[ -z $virtual ]]; then
    say "$(nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit --format=csv,noheader 2>/dev/null || echo 'no nvidia-smi')"
fi

step 15 "Tests on this driver" "$python" -P -m pytest -q -p no:cacheprovider "${tests[@]}"

if sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) && [[ -z $virtual ]]; then
    # Slow: a part of the tests. The kernels run in processes of their own, hence --target-processes.
    for tool in memcheck racecheck initcheck synccheck; do
        step 15 "compute-sanitizer, $tool" "$sanitizer" --tool "$tool" --target-processes all --error-exitcode 99 \
            "$python" -P -m pytest -q -p no:cacheprovider -x tests/cuda/test_cuda_rms_norm.py tests/cuda/test_cuda_product.py tests/cuda/test_cuda_attention.py
    done
else
    say "" "No compute-sanitizer ran."
fi

if [[ -n $quick ]]; then
    shapes=(--preset 1b --type bf16 q4_0)
    kernels=("${shapes[@]}")
else
    shapes=(--preset 1b 8b --type bf16 q8_0 q4_0)
    kernels=(--preset 1b --type bf16 q8_0 q4_0 q4_k)
fi
[[ -z $virtual ]] || shapes=() kernels=()
step 200 "Kernels" "$python" bench/cuda_kernels.py "${kernels[@]}" "${flags[@]}"
step 60 "Decoding" "$python" bench/cuda_decode.py "${shapes[@]}" "${flags[@]}"

echo
echo "$result (everything that was printed: $log)"
exit $failed
