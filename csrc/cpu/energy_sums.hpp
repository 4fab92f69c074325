// From the energies of blocks to those of batch items, for likelihood_score and pvd_channel_step.
#pragma once
#include "../common/kernels.hpp"
#include "../common/lane.hpp"

namespace sf {
inline namespace SF_NS {

// Energies of an item's blocks, in their order. One that T cannot hold is the fault of the item's largest block.
template <class T>
void sum_energies(block_args& a) {
  const int64_t width = 2 + a.u;
  for (int64_t b = 0; b < a.b; ++b) {
    const double* e = a.energies + b * a.k * width;
    const auto over_blocks = [&](int64_t j) {
      double total = 0;
      int64_t largest = 0;
      for (int64_t k = 0; k < a.k; ++k) {
        total += e[k * width + j];
        if (e[k * width + j] > e[largest * width + j]) largest = k;
      }
      if (total - total == 0 && T(total) - T(total) != 0) note_lowest(a.bad, b * a.k + largest);
      return T(total);
    };
    static_cast<T*>(a.energy)[b] = over_blocks(0);
    if (!a.probe) continue;
    static_cast<T*>(a.probe_y)[b] = over_blocks(1);
    for (int64_t u = 0; u < a.u; ++u) static_cast<T*>(a.probe_x)[b * a.u + u] = over_blocks(2 + u);
  }
}

}  // namespace SF_NS
}  // namespace sf
