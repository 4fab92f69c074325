// s_hat = diag(G H)^-1 G y and the noise variance left on each symbol, from the factor of rzf_precode: equalise.cuh.
#include "launch.cuh"
#include "plan_rzf.hpp"

namespace sf::cuda {

void lmmse_equalise(const rzf_args& a, void* scratch, int device, void* stream) {
  const on_device guard(device, "lmmse_equalise");
  plan_equalise(a, scratch, launcher{static_cast<cudaStream_t>(stream), "lmmse_equalise"});
}

}  // namespace sf::cuda
