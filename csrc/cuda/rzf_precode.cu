// x = H^H (H H^H + a I)^-1 s with its total-power scale. At most 4 narrow rows: a thread per channel, rzf_lane_ops.cuh;
// more, or long rows: a team of threads, rzf_team_ops.cuh. Power scale: power.cuh.
#include "launch.cuh"
#include "plan_rzf.hpp"

namespace sf::cuda {

void rzf_precode(const rzf_args& a, void* scratch, int device, void* stream) {
  const on_device guard(device, "rzf_precode");
  plan_precode(a, scratch, launcher{static_cast<cudaStream_t>(stream), "rzf_precode"});
}

int64_t rzf_scratch_bytes(const rzf_args& a, const std::string& op) {
  if (op == "rzf_precode") return rzf_scratch(a, rzf_op::precode);
  if (op == "rzf_precode_vjp") return rzf_scratch(a, rzf_op::vjp);
  if (op == "lmmse_equalise") return rzf_scratch(a, rzf_op::equalise);
  throw std::runtime_error("no scratch rule for " + op);
}

}  // namespace sf::cuda
