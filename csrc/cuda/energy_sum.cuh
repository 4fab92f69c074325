// The second kernel of likelihood_score: sums the block energies [B,K,2+U] over the K blocks in float64 and rounds
// once. The order follows from K alone: lane j of an item's `lanes` threads adds blocks j, j + lanes, ..., then a tree.
#pragma once
#include "cta.cuh"

namespace sf::cuda {

template <class T>
struct energy_sum {
  static constexpr int max_threads = 256, min_ctas = 0;
  const double* energies;
  int64_t b, k;
  int32_t u, columns, lanes;  // columns: 1 without a probe, else 2 + U; lanes: threads an item, a power of two
  T *energy, *probe_x, *probe_y;

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    double* part = reinterpret_cast<double*>(cta.shared());
    const int32_t column = int32_t(uint32_t(cta.index()) % uint32_t(columns)), items = cta.threads() / lanes;
    const int64_t first = int64_t(uint32_t(cta.index()) / uint32_t(columns)) * items;
    cta.phase([&](thread_place w) {
      const int64_t item = first + w.g;
      double sum = 0;
      if (item < b)
        for (int64_t j = w.p; j < k; j += lanes) sum += energies[(item * k + j) * (2 + u) + column];
      part[w.id] = sum;
    });
    for (int32_t half = lanes / 2; half > 0; half /= 2)
      cta.phase([&](thread_place w) {
        if (w.p < half) part[w.id] += part[w.id + half];
      });
    cta.last([&](thread_place w) {
      const int64_t item = first + w.g;
      if (w.p || item >= b) return;
      T* out = column == 0 ? energy + item : column == 1 ? probe_y + item : probe_x + item * u + column - 2;
      *out = T(part[w.id]);
    });
  }
};

}  // namespace sf::cuda
