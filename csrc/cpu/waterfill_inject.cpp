// waterfill_inject: the step without a prediction.
#include "waterfill_worker.hpp"

namespace sf {
inline namespace SF_NS {
void waterfill_inject(waterfill_args& a) { a.is_double ? run_waterfill<double>(a) : run_waterfill<float>(a); }
}  // namespace SF_NS
}  // namespace sf
