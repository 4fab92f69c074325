// Loops over torch's own thread pool. The pool is found by dispatch.cpp; these files only call it.
#pragma once
#include <stdint.h>

#include "../common/kernels.hpp"

#if defined(__GNUC__) || defined(__clang__)
#define SF_LAMBDA __attribute__((always_inline))
#else
#define SF_LAMBDA
#endif

namespace sf {
inline namespace SF_NS {

template <class F>
inline void parallel_for(pool_fn pool, int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  if (!pool || n <= grain) return f(int64_t(0), n);
  pool(0, n, grain, [](int64_t i, int64_t j, void* ctx) { (*static_cast<const F*>(ctx))(i, j); }, const_cast<F*>(&f));
}

// Lower `slot` (-1 = none) to `index`; called rarely, from several threads.
inline void note_lowest(int64_t& slot, int64_t index) {
  int64_t seen = __atomic_load_n(&slot, __ATOMIC_RELAXED);
  while ((seen < 0 || index < seen) &&
         !__atomic_compare_exchange_n(&slot, &seen, index, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

}  // namespace SF_NS
}  // namespace sf
