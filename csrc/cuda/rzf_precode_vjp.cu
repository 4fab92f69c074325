// The vector-Jacobian product of rzf_precode, from the same factor: rzf_lane_ops.cuh, rzf_team_ops.cuh, power.cuh.
#include "launch.cuh"
#include "plan_rzf.hpp"

namespace sf::cuda {

void rzf_precode_vjp(const rzf_args& a, void* scratch, int device, void* stream) {
  const on_device guard(device, "rzf_precode_vjp");
  plan_precode_vjp(a, scratch, launcher{static_cast<cudaStream_t>(stream), "rzf_precode_vjp"});
}

}  // namespace sf::cuda
