// R = Y - sum_u H X in one pass over memory: R X^H/noise_var, H^H R/noise_var and block energies. Nr <= 8 with 1, 2, 4
// or 8 streams: score_columns.cuh; other sizes: staged.cuh. A second kernel (energy_sum.cuh) adds the block energies.
#include "launch.cuh"

namespace sf::cuda {

void likelihood_score(const block_args& a, void* energy, void* probe_x, void* probe_y, int device, void* stream) {
  const on_device guard(device, "likelihood_score");
  const launcher run{static_cast<cudaStream_t>(stream), "likelihood_score"};
  plan_score(a, run);
  plan_energy_sum(a, energy, probe_x, probe_y, run);
}

// All kernels are compiled for the same architectures: the smallest one stands for them.
bool runs_on(int device) {
  const on_device guard(device, "runs_on");
  cudaFuncAttributes found;
  const bool ok = cudaFuncGetAttributes(&found, run_body<energy_sum<float>>) == cudaSuccess;
  cudaGetLastError();  // clears it: another architecture is not an error here
  return ok;
}

}  // namespace sf::cuda
