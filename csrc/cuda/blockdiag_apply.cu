// Y_k = sum_u H_k^(u) X_k^(u). Any size: tiles.cuh.
#include "launch.cuh"

namespace sf::cuda {

void blockdiag_apply(const block_args& a, int device, void* stream) {
  const on_device guard(device, "blockdiag_apply");
  plan_apply(a, launcher{static_cast<cudaStream_t>(stream), "blockdiag_apply"});
}

}  // namespace sf::cuda
