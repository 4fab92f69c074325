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
SF_HD void put(T* p, native<T> v, int m) {
  m == native_width<T> ? v.store(p) : v.store_first(p, m);
}

template <class T>
SF_HD native<T> first_lanes(native<T> v, int m) {
  for (int i = m; i < native_width<T>; ++i) v.v[i] = 0;
  return v;
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
