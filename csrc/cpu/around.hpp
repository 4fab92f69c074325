// Large results written around the caches. A store that misses first reads the line that it is about to overwrite, and
// the result then pushes operands out; past some size nobody finds it in a cache afterwards anyway. Whole lines of
// 64 bytes only, since parts of one would each go to memory.
//
// Memory that the kernel has yet to hand over is the other case: it comes zeroed, through the caches, and page by page,
// which takes longer than most products. Stores into it stay as they are, and huge pages are asked for.
#pragma once
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "../common/lane.hpp"

namespace sf {
inline namespace SF_NS {

// Measured with operands from memory: level at 8 MiB, 1.1x faster at 24 MiB, 1.8x at 64 MiB.
constexpr int64_t large_result = int64_t(32) << 20;

// Before a result is written: whether it is large and has its memory (its last page). One that has none gets huge
// pages.
inline bool prepare_result(const void* result, int64_t bytes) {
  if (!result || bytes < large_result) return false;
#if defined(__linux__)
  const uintptr_t page = uintptr_t(getpagesize()), begin = (uintptr_t(result) + page - 1) / page * page,
                  end = (uintptr_t(result) + uintptr_t(bytes)) / page * page;
  unsigned char resident = 1;
  if (mincore(reinterpret_cast<void*>(end - page), page, &resident) == 0 && !(resident & 1)) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
    return false;
  }
#endif
  return true;
}

// Whether one worker's results go around the caches. Stores that did are in no order with others, so they are settled
// before the worker's thread reports that it is done.
struct around_caches {
  const bool on;
  explicit around_caches(bool yes) : on(yes) {}
  around_caches(const around_caches&) = delete;
  ~around_caches() {
#if defined(__SSE2__)
    if (on) _mm_sfence();
#endif
  }
  SF_HD operator bool() const { return on; }
};

// A result of `reals`, in rows of `row` reals that are written `piece` at a time.
template <class T>
around_caches goes_around(const void* result, int64_t reals, int64_t row, int64_t piece) {
  constexpr int64_t line = 64 / int64_t(sizeof(T));
  const bool whole = row % line == 0 && (row <= piece || piece % line == 0) && uintptr_t(result) % 64 == 0;
  return around_caches(prepare_result(result, reals * int64_t(sizeof(T))) && whole);
}

// n of the columns of `v`; all of them where the result goes around.
template <class Col, class T>
SF_HD void put_columns(const Col& v, T* p, int n, bool around) {
  if (around && n > 0)  // a tile may be wider than what is left of its rows
    v.stream(p);
  else
    v.store_first(p, n);
}

}  // namespace SF_NS
}  // namespace sf
