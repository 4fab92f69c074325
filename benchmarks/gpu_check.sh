#!/usr/bin/env bash
# Proves the GPU code on the machine it runs on, in one call of about ten minutes at most, or a stage at a time:
#
#   benchmarks/gpu_check.sh [FOLDER [STAGE...]]        stages: build tests sanitize bench tune (default: all, in turn)
#
# Leaves at most eight files in FOLDER (default benchmarks/results), named by device and date: one log (device, driver,
# versions and commit first, a summary last), the tests as XML, the CSV files of ops, loops, grid and sweep, the roofline as
# PNG, and the table of launch choices with the sweep's winners. Goes on after a failure; exits with 1 if any part failed or
# ran out of its time, 2 without a device.
#
# GPU_CHECK_SCALE=3 gives every part three times its time, GPU_CHECK_LIMIT=60 each the same; GPU_CHECK_FULL=1 measures all
# sizes instead of the quick ones; SEMCOM_FAST_COMMIT names the commit where git cannot. Needs nvcc, CMake, ninja, a CUDA
# build of torch, Triton, pytest, pybind11 and scikit-build-core installed already: nothing is downloaded.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
known="build tests sanitize bench tune"
out=${1:-benchmarks/results}
[ $# -gt 0 ] && shift
read -ra stages <<<"${*:-$known}"
for stage in "${stages[@]}"; do
  case " $known " in
    *" $stage "*) ;;
    *) echo "gpu_check: unknown stage '$stage'; one of: $known" >&2; exit 2 ;;
  esac
done
python=${PYTHON:-python3}
scale=${GPU_CHECK_SCALE:-1}
quick=(--quick)
[ -n "${GPU_CHECK_FULL:-}" ] && quick=()
read -r name arch < <("$python" -c 'import re, torch
print(re.sub(r"\W+", "_", torch.cuda.get_device_name()).lower(), "%d%d" % torch.cuda.get_device_capability())')
[ -n "${arch:-}" ] || { echo "gpu_check: torch sees no CUDA device" >&2; exit 2; }
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
tag=${name}_$(date +%Y%m%d)
log=$out/gpu_check_$tag.log
summary=
export PYTHONUNBUFFERED=1
SEMCOM_FAST_COMMIT=${SEMCOM_FAST_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
export SEMCOM_FAST_COMMIT
failed=0
tell() {
  summary+=$*$'\n'
  printf '%s\n' "$*" | tee -a "$log"
}

# part NAME SECONDS COMMAND...: runs it within its time, its output into the log and the end of it onto the screen.
part() {
  local label=$1 limit=${GPU_CHECK_LIMIT:-$(($2 * scale))} before start rc
  shift 2
  printf '\n== %s, at most %s s: %s\n' "$label" "$limit" "$*" | tee -a "$log"
  before=$(wc -c <"$log")
  start=$SECONDS
  timeout -k 10 "$limit" "$@" >>"$log" 2>&1 </dev/null
  rc=$?
  tail -c "+$((before + 1))" "$log" | tail -n 12 | cut -c 1-200
  case $rc in
    0) tell "passed      $label ($((SECONDS - start)) s)" ;;
    124 | 137) tell "OUT OF TIME $label ($limit s)"; failed=1 ;;
    *) tell "FAILED      $label (exit $rc, $((SECONDS - start)) s)"; failed=1 ;;
  esac
}

tell "$(date -u +%Y-%m-%dT%H:%MZ) commit $SEMCOM_FAST_COMMIT"
tell "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo 'no nvidia-smi')"
tell "$("$python" -c 'import platform, torch, triton
print("python", platform.python_version(), "torch", torch.__version__, "triton", triton.__version__)')"

build() {
  part "build" 160 env SEMCOM_CUDA=ON CUDAARCHS="$arch" "$python" -m pip install --no-build-isolation --no-deps \
    --no-cache-dir -e .
  part "extension" 20 "$python" -c 'import sys
from semcom_fast import _native
print(*(f"{k}: {v}" for k, v in _native.info().items()), sep="\n")
sys.exit(not _native.cuda_usable())'
}

tests() {
  local -a spread=()
  "$python" -c 'import xdist' 2>/dev/null && spread=(-n 8)
  part "GPU tests" 75 "$python" -m pytest -q -m "gpu and not slow" python_tests/cuda python_tests/triton \
    -p no:cacheprovider "${spread[@]}" --junitxml="$out/gpu_tests_$tag.xml"
  part "Triton kernels as compiled" 50 "$python" -m pytest -q python_tests/triton -p no:cacheprovider "${spread[@]}" \
    -k "not compile_check"
  part "offsets past 32 bits" 45 "$python" -m pytest -q -m "gpu and slow" python_tests/cuda -p no:cacheprovider
}

# Without torch's caching allocator every tensor is an allocation of its own, so that memcheck sees its ends.
sanitize() {
  local -a subset=("$python" -m pytest -v -m "gpu and not slow" python_tests/cuda/test_every_op.py -p no:cacheprovider)
  part "memcheck" 40 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \
    --print-limit 20 "${subset[@]}" -k "complex64 and (against_float64 or empty_batches)"
  part "racecheck" 40 compute-sanitizer --tool racecheck --error-exitcode 9 --print-limit 20 "${subset[@]}" \
    -k "complex64 and gradients"
}

bench() {
  part "ops" 60 "$python" -m benchmarks ops --device cuda --graphs "${quick[@]}" --csv "$out/gpu_$tag.csv" \
    --png "$out/gpu_$tag.png"
  part "grid" 45 "$python" -m benchmarks grid --device cuda "${quick[@]}" --no-tables --csv "$out/gpu_grid_$tag.csv"
  part "loops" 30 "$python" -m benchmarks loops --device cuda "${quick[@]}" --csv "$out/gpu_loops_$tag.csv"
}

tune() {
  cp semcom_fast/triton/tuned.json "$out/tuned_$tag.json"
  part "tune" 45 "$python" -m benchmarks tune --device cuda "${quick[@]}" --jobs 8 --limit $((30 * scale)) \
    --csv "$out/tune_$tag.csv" --table "$out/tuned_$tag.json"
}

for stage in "${stages[@]}"; do "$stage"; done
printf '\n== summary\n%s' "$summary" | tee -a "$log"
exit $failed
