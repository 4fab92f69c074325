// h(f) = sum_p gains_p exp(-j 2 pi f tau_p). Any size: path_sum.cuh.
#include "launch.cuh"
#include "plan_paths.hpp"

namespace sf::cuda {

void cir_to_ofdm(const cir_args& a, int device, void* stream) {
  const on_device guard(device, "cir_to_ofdm");
  plan_paths(a, launcher{static_cast<cudaStream_t>(stream), "cir_to_ofdm"});
}

}  // namespace sf::cuda
