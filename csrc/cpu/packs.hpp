// Streaming over an array one native pack at a time, the last one partial.
#pragma once
#include "../common/lane.hpp"
#include "parallel.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
using native = pack<T, native_width<T>>;

// A full pack, or its first m lanes with zeros after them.
template <class T>
SF_HD native<T> get(const T* p, int m) {
  return m == native_width<T> ? native<T>::load(p) : native<T>::load_first(p, m);
}
template <class T>
SF_HD void put(T* p, native<T> v, int m, bool around = false) {  // `around`: see around.hpp
  if (around) return v.stream(p);
  m == native_width<T> ? v.store(p) : v.store_first(p, m);
}

template <class T>
SF_HD native<T> first_lanes(native<T> v, int m) {
  for (int i = m; i < native_width<T>; ++i) v.v[i] = 0;
  return v;
}

// The lowest of the items [begin, end) of `reals` reals each with an entry that is not finite, -1 if there is none.
template <class T>
int64_t first_spoilt(const T* p, int64_t begin, int64_t end, int64_t reals) {
  constexpr int W = native_width<T>;
  using P = pack<T, W>;
  for (int64_t i = begin; i < end; ++i) {
    const T* q = p + i * reals;
    P seen(T(0));
    int64_t j = 0;
    for (; j + W <= reals; j += W) seen = seen + (P::load(q + j) - P::load(q + j));
    if (j < reals) seen = seen + (P::load_first(q + j, int(reals - j)) - P::load_first(q + j, int(reals - j)));
    if (!(seen.sum() == 0)) return i;
  }
  return -1;
}

// body(i, lanes) over n entries
template <class T, class Body>
SF_HD void each_pack(int64_t n, const Body& body) {
  constexpr int W = native_width<T>;
  int64_t i = 0;
  for (; i + W <= n; i += W) body(i, W);
  if (i < n) body(i, int(n - i));
}

}  // namespace SF_NS
}  // namespace sf
