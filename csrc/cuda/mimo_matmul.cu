// C = A B for many small matrices. Contiguous products run as one-user channels (tiles.cuh), the rest in
// matmul_tiles.cuh; large matrices are cuBLAS's (semcom_fast/ops/_matmul_rule.py).
#include "launch.cuh"
#include "plan_matmul.hpp"

namespace sf::cuda {

void mimo_matmul(const matmul_args& g, int device, void* stream) {
  block_args a{};
  switch (as_channels(g, a)) {
    case channel_form::apply:
      return blockdiag_apply(a, device, stream);
    case channel_form::adjoint:
      return blockdiag_adjoint(a, device, stream);
    case channel_form::none:
      break;
  }
  const on_device guard(device, "mimo_matmul");
  plan_matmul(g, launcher{static_cast<cudaStream_t>(stream), "mimo_matmul"});
}

}  // namespace sf::cuda
