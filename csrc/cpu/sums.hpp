// Sums over the lanes of several packs at once, in the order of pack::sum.
#pragma once
#include "../common/lane.hpp"

namespace sf {
inline namespace SF_NS {

template <int D, class T, int W, int... I>
SF_HD pack<T, W> add_halves(pack<T, W> a, pack<T, W> b, int_list<I...>) {
  return pack<T, W>(__builtin_shufflevector(a.v, b.v, ((I & D) == 0 ? I : W + I - D)...)) +
         pack<T, W>(__builtin_shufflevector(a.v, b.v, ((I & D) == 0 ? I + D : W + I)...));
}
// Lane l: the sum over the lanes of p[l], W packs side by side. Halves, quarters, ... are added as in pack::sum.
template <int D = 1, class T, int W>
SF_HD pack<T, W> sums_of(const pack<T, W>* p) {
  if constexpr (D == W)
    return p[0];
  else
    return add_halves<D>(sums_of<2 * D>(p), sums_of<2 * D>(p + D), make_list<W>());
}

template <class T, int W, int... I>
SF_HD pack<T, W / 2> folded(pack<T, W> a, int_list<I...>) {
  return pack<T, W / 2>(__builtin_shufflevector(a.v, a.v, I...)) +
         pack<T, W / 2>(__builtin_shufflevector(a.v, a.v, (I + W / 2)...));
}
// The same of N packs, in a pack of N.
template <int N, class T, int W>
SF_HD pack<T, N> sums_of_few(const pack<T, W> (&p)[N]) {
  if constexpr (N > W) {
    pack<T, N> r;
    for (int i = 0; i < N; ++i) r.v[i] = p[i].sum();
    return r;
  } else if constexpr (N == W) {
    return sums_of(p);
  } else {
    pack<T, W / 2> half[N];
  SF_UNROLL
    for (int i = 0; i < N; ++i) half[i] = folded(p[i], make_list<W / 2>());
    return sums_of_few(half);
  }
}

}  // namespace SF_NS
}  // namespace sf
