// X_k^(u) = (H_k^(u))^H Y_k.
#include "run_blocks.hpp"

namespace sf {
inline namespace SF_NS {
void blockdiag_adjoint(block_args& a) {
  a.is_double ? run_blocks<mode::adjoint, double>(a) : run_blocks<mode::adjoint, float>(a);
}
}  // namespace SF_NS
}  // namespace sf
