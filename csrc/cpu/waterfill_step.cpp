// waterfill_step: guidance, DDIM, masked update and the next injection in one pass.
#include "waterfill_worker.hpp"

namespace sf {
inline namespace SF_NS {
void waterfill_step(waterfill_args& a) { a.is_double ? run_waterfill<double>(a) : run_waterfill<float>(a); }
}  // namespace SF_NS
}  // namespace sf
