// R = Y - sum_u H X -> R X^H/noise_var, H^H R/noise_var, |R|^2 and the probe energies, in one pass over memory.
#include "block_worker.hpp"

namespace sf {
inline namespace SF_NS {
void likelihood_score(block_args& a) {
  a.is_double ? run_blocks<mode::score, double>(a) : run_blocks<mode::score, float>(a);
}
}  // namespace SF_NS
}  // namespace sf
