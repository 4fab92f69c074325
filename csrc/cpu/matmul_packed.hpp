// mimo_matmul where B is one column of a few entries and the rows of A follow one another: a pack holds several whole
// rows, and adjacent products are added until each row has one. Lanes along the batch would read as many distant
// matrices side by side.
#pragma once
#include "../common/columns.hpp"
#include "matmul_operand.hpp"
#include "matmul_scalar.hpp"
#include "parallel.hpp"
#include "sums.hpp"

namespace sf {
inline namespace SF_NS {

// Sums of adjacent complex entries of a, then of b.
template <class T, int W, int... I>
SF_HD pack<T, W> adjacent_sums(pack<T, W> a, pack<T, W> b, int_list<I...>) {
  return pack<T, W>(__builtin_shufflevector(a.v, b.v, (I / 2 * 4 + I % 2)...)) +
         pack<T, W>(__builtin_shufflevector(a.v, b.v, (I / 2 * 4 + I % 2 + 2)...));
}
template <int N, class T, int W>
SF_HD pack<T, W> adjacent_sums(const pack<T, W>* p) {
  if constexpr (N == 1)
    return p[0];
  else
    return adjacent_sums(adjacent_sums<N / 2>(p), adjacent_sums<N / 2>(p + N / 2), make_list<W>());
}

template <class T, bool Conj>
struct packed_rows {
  static constexpr int W = native_width<T>, WC = W / 2;
  static constexpr int ahead = 2048 / int(sizeof(T));  // reals
  using P = pack<T, W>;
  using Col = pack_cols<T, W>;

  const matmul_args& g;
  const operand<T> a, b;

  static bool takes(const matmul_args& g) {
    constexpr int fewest = WC < 8 ? WC : 2 * WC;  // rows, as measured
    return g.n == 1 && g.k > 1 && WC % g.k == 0 && g.a_col == 1 && g.a_row == g.k && g.m >= fewest;
  }
  explicit packed_rows(const matmul_args& args)
      : g(args),
        a(args, args.a, args.a_step, args.a_row, args.a_col),
        b(args, args.b, args.b_step, args.b_row, args.b_col) {}

  // `rows` rows of K from p on times the column that `re` and `im` repeat: their factors for either part of a product.
  template <int K, bool Whole>
  static SF_HD Col tile(const T* p, P re, P im, int rows) {
    P t[K];
    SF_UNROLL
    for (int i = 0; i < K; ++i) {
      const int left = 2 * K * rows - i * W;
      __builtin_prefetch(p + i * W + ahead, 0, 2);
      const P v = Whole || left >= W ? P::load(p + i * W) : P::load_first(p + i * W, left > 0 ? left : 0);
      t[i] = add_halves<1>(v * re, v * im, make_list<W>());
    }
    return {adjacent_sums<K>(t)};
  }

  template <int K>
  SF_HD void rows_of(int64_t begin, int64_t end, T* out, Col& seen) const {
    const int64_t m = g.m;
    const bool conj = g.conj_b;
    for (int64_t i = begin; i < end;) {
      const int64_t item = i / m, first = i - item * m, last = m - first < end - i ? m : first + end - i;
      const T *x = b.at(item), *p = a.at(item) + 2 * first * K;
      P column;
      SF_UNROLL
      for (int l = 0; l < W; ++l) column.v[l] = x[2 * (l / 2 % K) * b.row + l % 2];
      const P crossed = swap_pairs(column), signs = turn_signs<T, W>();
      const P re = Conj ? column : P(T(0)) - column * signs, im = Conj ? P(T(0)) - crossed * signs : crossed;
      const auto keep = [&](Col v, int n) SF_LAMBDA {
        seen = seen + (v - v);
        (conj ? conjugate(v) : v).store_first(out + 2 * i, n);
      };
      int64_t r = first;
      for (; r + WC <= last; r += WC, i += WC, p += K * W) keep(tile<K, true>(p, re, im, WC), WC);
      if (r < last) keep(tile<K, false>(p, re, im, int(last - r)), int(last - r)), i += last - r;
    }
  }
  template <int K>
  SF_HD void rows_of_any(int64_t begin, int64_t end, T* out, Col& seen) const {
    if constexpr (K <= WC) g.k == K ? rows_of<K>(begin, end, out, seen) : rows_of_any<2 * K>(begin, end, out, seen);
  }

  void run(int64_t begin, int64_t end, int64_t& lowest) const {
    T* out = static_cast<T*>(g.out);
    Col seen = Col::zero();
    rows_of_any<2>(begin, end, out, seen);
    if (!(seen.v.sum() == 0)) note_lowest(lowest, first_spoilt(out, begin, end, 2) / g.m);
  }
};

}  // namespace SF_NS
}  // namespace sf
