// R = Y - sum_u H X -> R X^H/noise_var, H^H R/noise_var, |R|^2 and the probe energies, in one pass over memory.
#include "run_blocks.hpp"
#include "energy_sums.hpp"
#include "score_lanes.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
void score(block_args& a) {
  if (single_entries(a)) return score_single_entries<T>(a);
  few_slots<T>(a) ? score_in_lanes<T>(a) : run_blocks<mode::score, T>(a);
  sum_energies<T>(a);
}

void likelihood_score(block_args& a) { a.is_double ? score<double>(a) : score<float>(a); }

}  // namespace SF_NS
}  // namespace sf
