// Between W small matrices stored one after the other and W lanes side by side: runs of reals, one per lane, become
// packs (real r of every lane in pack r) and back. Squares of R x R reals are transposed in registers. R stops at 8:
// the joins of shorter runs are loads with an insert, which do not compete for the one shuffle port.
#pragma once
#include "../common/lane.hpp"

namespace sf {
inline namespace SF_NS {

// Exchange blocks of D reals between two rows.
template <int D, class V, int... I>
SF_HD void exchange(V& a, V& b, int_list<I...>) {
  constexpr int W = sizeof...(I);
  const V x = __builtin_shufflevector(a, b, ((I & D) == 0 ? I : W + I - D)...);
  b = __builtin_shufflevector(a, b, ((I & D) == 0 ? I + D : W + I)...);
  a = x;
}
// Every R x R square of entries of `Reals` reals: log2(R) exchanges between rows i and i + D.
template <int R, int Reals = 1, int D = R / 2, class T, int W>
SF_HD void transpose_squares(pack<T, W>* v) {
  if constexpr (D > 0) {
  SF_UNROLL
    for (int i = 0; i < R; ++i)
      if (!(i & D)) exchange<D * Reals>(v[i].v, v[i + D].v, make_list<W>());
    transpose_squares<R, Reals, D / 2>(v);
  }
}

// Gap > 0: W matrices exactly, that many reals apart, so that no table of addresses is needed.
template <class T, int W, int Gap = 0>
struct transposer {
  using P = pack<T, W>;
  template <int R>
  using run = typename vec_of<T, R>::V;
  template <int R>
  using run_at = typename vec_of<T, R>::VU;

  const T* from[Gap ? 1 : W];  // lane i's matrix; lanes past the last matrix repeat it
  int lanes = W;
  const T* next = nullptr;  // what a later pack will load, where all of it lies in one run

  SF_HD explicit transposer(const T* base) : from{base} {}
  SF_HD transposer(const T* base, int64_t stride, int count) : lanes(count) {
    for (int i = 0; i < W; ++i, base += i < count ? stride : 0) from[i] = base;
  }
  SF_HD const T* at(int i) const { return Gap ? from[0] + i * Gap : from[i]; }

  // S reals made of runs of R, from lanes i, i + R, ...
  template <int R, int S>
  SF_HD run<S> join(int i, int64_t first) const {
    if constexpr (S == R)
      return *reinterpret_cast<const run_at<R>*>(at(i) + first);
    else
      return joined<S>(join<R, S / 2>(i, first), join<R, S / 2>(i + S / 2, first), make_list<S>());
  }
  template <int S, int... I>
  static SF_HD run<S> joined(run<S / 2> a, run<S / 2> b, int_list<I...>) {
#if defined(__AVX512F__)  // else GCC takes a shuffle of two registers, on the one port that the squares need
    if constexpr (sizeof(run<S>) == 64)
      return (run<S>)_mm512_insertf64x4(_mm512_castpd256_pd512((__m256d)a), (__m256d)b, 1);
#endif
    return __builtin_shufflevector(a, b, I...);
  }

  // As many lines of a later pack as a square has: in one burst they would hold up the loads of this one.
  template <int R>
  SF_HD void ask(int64_t first) const {
    if (Gap || !next) return;
    SF_UNROLL
    for (int i = 0; i < R; ++i) __builtin_prefetch(next + (first + i) * W, 0, 2);
  }
  // Reals [first, first + R) of every lane into out[0..R).
  template <int R>
  SF_HD void load_square(int64_t first, P* out) const {
    ask<R>(first);
    P v[R];
    SF_UNROLL
    for (int i = 0; i < R; ++i) v[i] = P(join<R, W>(i, first));
    transpose_squares<R>(v);
    SF_UNROLL
    for (int i = 0; i < R; ++i) out[i] = v[i];
  }
  SF_HD void load(int64_t first, int64_t n, P* out) const {
    int64_t j = 0;
    if constexpr (W >= 8)
      for (; j + 8 <= n; j += 8) load_square<8>(first + j, out + j);
    if constexpr (W >= 4)
      for (; j + 4 <= n; j += 4) load_square<4>(first + j, out + j);
    for (; j + 2 <= n; j += 2) load_square<2>(first + j, out + j);
    if (j < n)
      for (int i = 0; i < W; ++i) out[j].v[i] = at(i)[first + j];
  }

  template <int R, int S>
  SF_HD void part(run<S> v, int i, int64_t first) const {
    if constexpr (S == R) {
      if (Gap || i < lanes) *reinterpret_cast<run_at<R>*>(const_cast<T*>(at(i)) + first) = v;
    } else {
      halve<R, S>(v, i, first, make_list<S / 2>());
    }
  }
  template <int R, int S, int... I>
  SF_HD void halve(run<S> v, int i, int64_t first, int_list<I...>) const {
    part<R, S / 2>(__builtin_shufflevector(v, v, I...), i, first);
    part<R, S / 2>(__builtin_shufflevector(v, v, (I + S / 2)...), i + S / 2, first);
  }
  template <int R>
  SF_HD void store_square(int64_t first, const P* in) const {
    P v[R];
    SF_UNROLL
    for (int i = 0; i < R; ++i) v[i] = in[i];
    transpose_squares<R>(v);
    SF_UNROLL
    for (int i = 0; i < R; ++i) part<R, W>(v[i].v, i, first);
  }
  SF_HD void store(int64_t first, int64_t n, const P* in) const {
    int64_t j = 0;
    if constexpr (W >= 8)
      for (; j + 8 <= n; j += 8) store_square<8>(first + j, in + j);
    if constexpr (W >= 4)
      for (; j + 4 <= n; j += 4) store_square<4>(first + j, in + j);
    for (; j + 2 <= n; j += 2) store_square<2>(first + j, in + j);
    if (j < n)
      for (int i = 0; i < lanes; ++i) const_cast<T*>(at(i))[first + j] = in[j].v[i];
  }
};

// `count` matrices of n reals, `gap` reals apart: Gap is their number and distance where both are known.
template <int Gap, class T, int W>
SF_HD void load_lanes(const T* base, int64_t gap, int64_t n, int count, pack<T, W>* out) {
  if constexpr (Gap > 0)
    if (count == W && gap == Gap) return transposer<T, W, Gap>(base).load(0, Gap, out);
  transposer<T, W>(base, gap, count).load(0, n, out);
}
template <int Gap, class T, int W>
SF_HD void store_lanes(T* base, int64_t gap, int64_t n, int count, const pack<T, W>* in) {
  if constexpr (Gap > 0)
    if (count == W && gap == Gap) return transposer<T, W, Gap>(base).store(0, Gap, in);
  transposer<T, W>(base, gap, count).store(0, n, in);
}

}  // namespace SF_NS
}  // namespace sf
