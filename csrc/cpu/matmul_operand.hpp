// How an operand of mimo_matmul lies in memory.
#pragma once
#include "../common/kernels.hpp"
#include "../common/lane.hpp"
#include "around.hpp"

namespace sf {
inline namespace SF_NS {

// A run of reals, asked for ahead of its use.
template <class T>
SF_HD void fetch(const T* p, int64_t reals) {
  for (int64_t j = 0; j < reals; j += 64 / int64_t(sizeof(T))) __builtin_prefetch(p + j, 0, 2);
}

inline int64_t items_of(const matmul_args& g) {
  int64_t items = 1;
  for (int64_t d = 0; d < g.dims; ++d) items *= g.size[d];
  return items;
}

// Of a whole product
template <class T>
around_caches goes_around(const matmul_args& g, int64_t piece) {
  return goes_around<T>(g.out, 2 * items_of(g) * g.m * g.n, 2 * g.n, piece);
}

// Entry (i, j) of an item is at(item)[2 * (i * row + j * col)].
template <class T>
struct operand {
  const T* p;
  int64_t row, col;
  const int64_t *size, *step;
  int dims;
  operand(const matmul_args& a, const void* data, const int64_t* steps, int64_t r, int64_t c)
      : p(static_cast<const T*>(data)), row(r), col(c), size(a.size), step(steps), dims(int(a.dims)) {}
  SF_HD const T* at(int64_t item) const {
    int64_t offset = 0;
    for (int d = dims - 1; d > 0; --d) {
      const int64_t outer = item / size[d];
      offset += (item - outer * size[d]) * step[d], item = outer;
    }
    return p + 2 * (offset + item * step[0]);
  }
  bool shared() const { return dims == 1 && step[0] == 0; }
};

}  // namespace SF_NS
}  // namespace sf
