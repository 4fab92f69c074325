#!/usr/bin/env bash
# Proves the GPU code on the machine it runs on, all of it or a stage at a time:
#
#   benchmarks/gpu_check.sh [FOLDER [STAGE...]]        stages: build tests triton sanitize bench tune (default: all, in turn)
#
# Every part has its time. Where a command may take ten minutes at most, these three fit, whatever happens in them:
#
#   GPU_CHECK_TOTAL=570 benchmarks/gpu_check.sh FOLDER build tests
#   GPU_CHECK_TOTAL=570 benchmarks/gpu_check.sh FOLDER bench tune
#   GPU_CHECK_TOTAL=570 benchmarks/gpu_check.sh FOLDER triton sanitize
#
# Leaves at most eight files in FOLDER (default benchmarks/results), named by device and date: one log (device, driver,
# versions and commit first, a summary last), all tests as XML, the CSV files of ops, loops, grid and sweep, the roofline as
# PNG, and the table of launch choices with the sweep's winners. Goes on after a failure; a part that runs out of its time is
# interrupted and leaves what it has; exits with 1 if any part did either, 2 without a device. Without `build` among the
# stages the extension is built all the same where there is none.
#
# GPU_CHECK_SCALE=3 gives every part three times its time, GPU_CHECK_LIMIT=60 each the same, GPU_CHECK_TOTAL=570 all
# together no more; GPU_CHECK_FULL=1 measures all sizes instead of the quick ones; SEMCOM_FAST_COMMIT names the commit of a
# copy without its history. Needs nvcc, CMake, a CUDA build of torch, Triton, pytest and pybind11 installed already: nothing
# is downloaded. With pip and scikit-build-core the package is installed; where Python's environment is not to be written to,
# the extension is built and put into the source tree alone.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
known="build tests triton sanitize bench tune"
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
quick=(--quick)
[ -n "${GPU_CHECK_FULL:-}" ] && quick=()
mapfile -t facts < <("$python" -c 'import importlib.util as i, os, re, sys, sysconfig, torch
print(re.sub(r"\W+", "_", torch.cuda.get_device_name()).lower(), "%d%d" % torch.cuda.get_device_capability(), sep="\n")
managed = sys.prefix == sys.base_prefix and os.path.exists(sysconfig.get_path("stdlib") + "/EXTERNALLY-MANAGED")
ours = os.access(sysconfig.get_path("purelib"), os.W_OK) and os.access(sysconfig.get_path("scripts"), os.W_OK)
print("pip" if ours and not managed and i.find_spec("pip") and i.find_spec("scikit_build_core") else "cmake")
print(sys.executable, sysconfig.get_path("scripts"), sep="\n")')
name=${facts[0]:-} arch=${facts[1]:-} installer=${facts[2]:-} executable=${facts[3]:-}
[ -n "$arch" ] || { echo "gpu_check: torch sees no CUDA device" >&2; exit 2; }
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
export PATH=$PATH:${facts[4]:-.}:${CUDA_HOME:-/usr/local/cuda}/bin PYTHONUNBUFFERED=1
export executable
tag=${name}_$(date +%Y%m%d)
log=$out/gpu_check_$tag.log
jobs=$(nproc)
((jobs > 16)) && jobs=16
SEMCOM_FAST_COMMIT=${SEMCOM_FAST_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
export SEMCOM_FAST_COMMIT
summary=
failed=0
tell() {
  summary+=$*$'\n'
  printf '%s\n' "$*" | tee -a "$log"
}

# within SECONDS: what a part of so many may take, by the variables above and what is left of the whole.
within() {
  local limit=${GPU_CHECK_LIMIT:-$(($1 * ${GPU_CHECK_SCALE:-1}))} left=$((${GPU_CHECK_TOTAL:-1000000} - SECONDS))
  echo $((limit < left ? limit : left))
}

# part NAME SECONDS COMMAND...: runs it within its time, its output into the log and the end of it onto the screen. It is
# interrupted as by Ctrl-C, so that it still writes what it has, and killed where that takes too long.
part() {
  local label=$1 limit grace before start rc lines=12
  limit=$(within "$2")
  shift 2
  ((limit > 1)) || { tell "NO TIME FOR $label"; failed=1; return 1; }
  grace=$((limit / 8))
  ((grace > 15)) && grace=15
  ((grace < 1)) && grace=1
  printf '\n== %s, at most %s s: %s\n' "$label" "$limit" "$*" | tee -a "$log"
  before=$(wc -c <"$log")
  start=$SECONDS
  timeout -s INT -k "$grace" $((limit - grace)) "$@" >>"$log" 2>&1 </dev/null
  rc=$?
  ((rc)) && lines=40
  tail -c "+$((before + 1))" "$log" | tail -n "$lines" | cut -c 1-200
  case $rc in
    0) tell "passed      $label ($((SECONDS - start)) s)" ;;
    124 | 137) tell "OUT OF TIME $label ($limit s)" ;;
    *) tell "FAILED      $label (exit $rc, $((SECONDS - start)) s)" ;;
  esac
  ((rc)) && failed=1
  return "$rc"
}

tell "$(date -u +%Y-%m-%dT%H:%MZ) commit $SEMCOM_FAST_COMMIT"
tell "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo 'no nvidia-smi')"
tell "$("$python" -c 'import platform, torch, triton
print("python", platform.python_version(), "torch", torch.__version__, "triton", triton.__version__)')"

by_hand() {
  local generator=()
  command -v ninja >/dev/null && generator=(-G Ninja)
  cmake -S . -B build/gpu_check "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DSKBUILD_PROJECT_NAME=semcom_fast \
    -DSKBUILD_PROJECT_VERSION=0 -DSEMCOM_CUDA=ON -DPython_EXECUTABLE="$executable" \
    -Dpybind11_DIR="$("$executable" -m pybind11 --cmakedir)" &&
    cmake --build build/gpu_check --parallel && cp --remove-destination build/gpu_check/_core*.so semcom_fast/
}
export -f by_hand

build() {
  local begun=$SECONDS installed=1 limit=190
  if [ "$installer" = pip ]; then
    part "build" $limit env SEMCOM_CUDA=ON CUDAARCHS="$arch" "$python" -m pip install --disable-pip-version-check \
      --no-build-isolation --no-deps --no-cache-dir -e .
    installed=$?
    limit=$((limit - (SECONDS - begun) / ${GPU_CHECK_SCALE:-1}))
  fi
  ((installed)) && part "build without pip" $limit env CUDAARCHS="$arch" bash -c by_hand
  part "extension" 20 "$python" -c 'import sys
from semcom_fast import _native
print(*(f"{k}: {v}" for k, v in _native.info().items()), sep="\n")
sys.exit(not _native.cuda_usable())'
}

# tested NAME SECONDS ARGUMENTS...: a part of pytest; the XML of all of them becomes one file.
tested() {
  local label=$1 limit=$2
  shift 2
  part "$label" "$limit" "$python" -m pytest -q --tb=short --durations=10 -p no:cacheprovider \
    --junitxml="$reports/${label// /_}.xml" "$@"
  { echo '<testsuites>'; sed -E 's/<\?xml[^>]*>//; s/<\/?testsuites[^>]*>//g' "$reports"/*.xml; echo '</testsuites>'; } \
    >"$out/gpu_tests_$tag.xml" 2>/dev/null
}

tests() {
  tested "GPU tests" 220 -m "gpu and not slow" python_tests/cuda "${spread[@]}"
  tested "offsets past 32 bits" 110 -m "gpu and slow" python_tests/cuda
}

triton() {
  tested "Triton kernels compile" 170 -m gpu python_tests/triton
  tested "Triton kernels as compiled" 150 -m "not gpu" python_tests/triton "${spread[@]}" -k "not compile_check"
}

# Without torch's caching allocator every tensor is an allocation of its own, so that memcheck sees its ends. Calls of the
# CUDA API that fail are torch's own questions to the driver.
sanitize() {
  local -a subset=("$python" -m pytest -v -m "gpu and not slow" python_tests/cuda/test_every_op.py -p no:cacheprovider)
  local -a tool=(compute-sanitizer --report-api-errors no --error-exitcode 9 --print-limit 20 --tool)
  part "memcheck" 115 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${tool[@]}" memcheck "${subset[@]}" \
    -k "complex64 and (against_float64 or empty_batches)"
  part "racecheck" 105 "${tool[@]}" racecheck "${subset[@]}" -k "complex64 and gradients"
}

bench() {
  part "ops" 160 "$python" -m benchmarks ops --device cuda --graphs "${quick[@]}" --csv "$out/gpu_$tag.csv" \
    --png "$out/gpu_$tag.png"
  part "grid" 110 "$python" -m benchmarks grid --device cuda "${quick[@]}" --no-tables --csv "$out/gpu_grid_$tag.csv" \
    --limit $(($(within 110) * 3 / 4))
  part "loops" 90 "$python" -m benchmarks loops --device cuda "${quick[@]}" --csv "$out/gpu_loops_$tag.csv"
}

tune() {
  cp semcom_fast/triton/tuned.json "$out/tuned_$tag.json"
  part "tune" 160 "$python" -m benchmarks tune --device cuda "${quick[@]}" --jobs "$jobs" \
    --limit $(($(within 160) * 2 / 3)) --csv "$out/tune_$tag.csv" --table "$out/tuned_$tag.json"
}

reports=$(mktemp -d)
trap 'rm -rf "$reports"; rm -f "$out"/*"$tag"*.part' EXIT
spread=()
"$python" -c 'import xdist' 2>/dev/null && spread=(-n "$jobs" --dist worksteal)
case " ${stages[*]} " in
  *" build "*) ;;
  *) "$python" -c 'import sys; from semcom_fast import _native; sys.exit(not _native.cuda_usable())' || build ;;
esac
for stage in "${stages[@]}"; do "$stage"; done
printf '\n== summary\n%s' "$summary" | tee -a "$log"
exit $failed
