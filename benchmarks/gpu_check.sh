#!/usr/bin/env bash
# One call that proves the GPU code on the machine it runs on: build, GPU tests, compute-sanitizer, benchmarks.
# Leaves CSV and logs in the folder given (default benchmarks/results), named by device and date. Needs nvcc, a CUDA build
# of torch, Triton, and pybind11 and scikit-build-core installed already: nothing is downloaded.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
mkdir -p "$out"
name=$(python3 -c 'import re, torch; print(re.sub(r"\W+", "_", torch.cuda.get_device_name()).lower())') || exit 1
tag=${name}_$(date +%Y%m%d)
failed=0
run() {
  echo "== $1"
  shift
  "$@" || { echo "FAILED: $*"; failed=1; }
}
run "build" env SEMCOM_CUDA=ON CUDAARCHS=native python3 -m pip install -q --no-build-isolation --no-deps --no-cache-dir .
run "info" semcom-fast info
run "GPU tests" python3 -m pytest -q -m gpu python_tests -p no:cacheprovider --junitxml="$out/tests_$tag.xml"
run "memcheck" compute-sanitizer --tool memcheck --error-exitcode 1 python3 -m pytest -q -m "gpu and not slow" \
  python_tests/cuda -x -p no:cacheprovider
run "racecheck" compute-sanitizer --tool racecheck --error-exitcode 1 python3 -m pytest -q -m "gpu and not slow" \
  python_tests/cuda -x -p no:cacheprovider
run "benchmarks" python3 -m benchmarks --device cuda --csv "$out/gpu_$tag.csv"
run "water-filling loop" python3 -m benchmarks.waterfill_loop --device cuda --csv "$out/gpu_waterfill_loop_$tag.csv"
run "channel estimator" python3 -m benchmarks.vb_loop --device cuda --batch 1 --channels 16 --csv "$out/gpu_vb_loop_$tag.csv"
exit $failed
