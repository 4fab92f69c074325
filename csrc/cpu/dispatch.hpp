// Picks the kernel table of the best instruction-set level this processor has, and finds torch's thread pool.
#pragma once
#include <string>
#include <vector>

#include "../common/kernels.hpp"

namespace sf {
const kernel_table& kernels();
std::string isa();                     // the level that runs; SEMCOM_FAST_ISA overrides
std::vector<std::string> isa_built();  // best first
pool_fn torch_pool();                  // null when torch >= 2.10 is not loaded
}  // namespace sf
