// Y_k = sum_u H_k X_k.
#include "run_blocks.hpp"

namespace sf {
inline namespace SF_NS {
void blockdiag_apply(block_args& a) {
  a.is_double ? run_blocks<mode::apply, double>(a) : run_blocks<mode::apply, float>(a);
}
}  // namespace SF_NS
}  // namespace sf
