// X_k^(u) = H_k^(u)H Y_k. Up to 16 receive antennas: tiles.cuh; more: staged.cuh.
#include "launch.cuh"

namespace sf::cuda {

void blockdiag_adjoint(const block_args& a, int device, void* stream) {
  const on_device guard(device, "blockdiag_adjoint");
  plan_adjoint(a, launcher{static_cast<cudaStream_t>(stream), "blockdiag_adjoint"});
}

}  // namespace sf::cuda
