// All blocks of a batch over torch's threads.
#pragma once
#include "block_worker.hpp"

namespace sf {
inline namespace SF_NS {

// Estimated nanoseconds a block; a slice is worth a thread when it takes about 20 us.
template <class T>
inline int64_t block_work(const block_args& a) {
  const int64_t m = a.u * a.nt, packs = a.t / (native_width<T> / 2) + 1;
  return 60 + a.nr * m * packs * 3 / 2 + (a.nr + m) * a.t / 2;
}

// Rows from which on a block is worth panels
template <mode Mode>
constexpr int64_t panels_from = Mode == mode::score ? 32 : 64;

// All blocks, split over torch's threads at block borders, so the thread count cannot change a bit.
template <mode Mode, class T, bool Panels = false>
void run_blocks(block_args& a) {
  if constexpr (!Panels && Mode != mode::apply)
    if (a.nr >= panels_from<Mode>) return run_blocks<Mode, T, true>(a);
  a.bad = -1;
  const int64_t grain = 20000 / block_work<T>(a) + 1;
  parallel_for(a.pool, a.b * a.k, grain, [&](int64_t begin, int64_t end) {
    block_worker<T, Panels> worker(a);
    const scratch<double> own(a.energies ? 0 : 2 + a.u);
    for (int64_t i = begin, next; i < end; i = next) {  // the blocks of one item
      const int64_t b = i / a.k, k = i % a.k, last = k + end - i < a.k ? k + end - i : a.k;
      next = b * a.k + last;
      const int64_t bad = worker.template run<Mode>(b, k, last, a.energies ? a.energies + i * (2 + a.u) : own);
      if (bad >= 0) note_lowest(a.bad, b * a.k + bad);
    }
  });
}

}  // namespace SF_NS
}  // namespace sf
