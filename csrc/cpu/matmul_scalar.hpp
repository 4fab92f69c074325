// mimo_matmul where A is one number an item (M = K = 1): it times a row of B, entry by entry as memory holds them. Rows
// shorter than a pack share one. Whatever the strides, every entry is the same product.
#pragma once
#include "../common/columns.hpp"
#include "matmul_operand.hpp"
#include "parallel.hpp"

namespace sf {
inline namespace SF_NS {

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

template <class T, bool Conj>
struct scaled_rows {
  static constexpr int W = native_width<T>, WC = W / 2;
  static constexpr int ahead = 1024 / int(sizeof(T));  // reals; hardware prefetching stops at every page
  using P = pack<T, W>;
  using Col = pack_cols<T, W>;

  const matmul_args& g;
  const operand<T> a, b;
  Col seen = Col::zero();

  static bool takes(int64_t m, int64_t k, int64_t n) {
    return m == 1 && k == 1 && n <= 4096;
  }  // longer: shared by threads
  explicit scaled_rows(const matmul_args& args)
      : g(args),
        a(args, args.a, args.a_step, args.a_row, args.a_col),
        b(args, args.b, args.b_step, args.b_row, args.b_col) {}

  SF_HD Col finished(const product<Col, Conj>& p) {
    const Col v = p.value();
    seen = seen + (v - v);
    return g.conj_b ? conjugate(v) : v;
  }

  // Real (Part = 0) or imaginary parts of the numbers that N columns each share, in pack C of those columns.
  template <int N, int C, int Part, int... I>
  static SF_HD P spread(P s, int_list<I...>) {
    return P(__builtin_shufflevector(s.v, s.v, ((C * WC + I / 2) / N * 2 + Part)...));
  }
  // Packs C, C + 1, ... of WC rows of N columns.
  template <int N, int C = 0>
  SF_HD void short_rows(P s, const T* x, T* out, int cols) {
    if constexpr (C < N) {
      auto p = product<Col, Conj>::zero();  // `add` with another scalar for every N columns
      const P v = P::load(x + C * W);
      p.a = p.a + v * spread<N, C, 0>(s, make_list<W>());
      p.b = p.b + v * spread<N, C, 1>(s, make_list<W>());
      const int left = cols - C * WC;
      finished(p).store_first(out + C * W, left > 0 ? left : 0);
      short_rows<N, C + 1>(s, x, out, cols);
    }
  }
  SF_HD Col scaled(const T* s, Col x) {
    auto p = product<Col, Conj>::zero();
    p.add(scalar2<T>{s[0], s[1]}, x);
    return finished(p);
  }

  static SF_HD void fetch_ahead(const T* p, int reals) {
    for (int j = 0; j < reals; j += 64 / int(sizeof(T))) __builtin_prefetch(p + ahead + j, 0, 2);
  }
  static SF_HD void copy(const T* from, T* to) { pack<T, 2>::load(from).store(to); }

  // WC items at a time; `dense`: both operands lie one item behind the other.
  template <int N>
  SF_HD void short_items(int64_t begin, int64_t end, bool dense, T* out) {
    int64_t i = begin;
    if (dense)
      for (const T *s = a.at(0), *x = b.at(0); i + WC <= end; i += WC) {
        fetch_ahead(x + 2 * i * N, 2 * WC * N), fetch_ahead(s + 2 * i, W);
        short_rows<N>(P::load(s + 2 * i), x + 2 * i * N, out + 2 * i * N, WC * N);
      }
    for (; i < end; i += WC) {
      const int count = end - i < WC ? int(end - i) : WC;
      T s[W] = {}, x[N * W] = {};
      for (int l = 0; l < count; ++l) {
        const T* row = b.at(i + l);
        copy(a.at(i + l), s + 2 * l);
        for (int j = 0; j < N; ++j) copy(row + 2 * j * b.col, x + 2 * (l * N + j));
      }
      short_rows<N>(P::load(s), x, out + 2 * i * N, count * N);
    }
  }
  template <int N>
  SF_HD void short_of(int64_t begin, int64_t end, bool dense, T* out) {
    if constexpr (N < WC) {
      if (g.n == N) return short_items<N>(begin, end, dense, out);
      short_of<N + 1>(begin, end, dense, out);
    }
  }

  // A pack or more to a row; the last one overlaps the one before.
  SF_HD void long_rows(int64_t begin, int64_t end, T* out) {
    const int64_t n = g.n;
    for (int64_t i = begin; i < end; ++i) {
      const T *s = a.at(i), *row = b.at(i);
      T* to = out + 2 * i * n;
      for (int64_t c = 0; c < n; c += WC) {
        const int64_t j = c + WC <= n ? c : n - WC;
        T x[W];
        if (b.col == 1)
          fetch_ahead(row + 2 * j, W);
        else
          for (int l = 0; l < WC; ++l) copy(row + 2 * (j + l) * b.col, x + 2 * l);
        scaled(s, Col::load(b.col == 1 ? row + 2 * j : x)).store(to + 2 * j);
      }
    }
  }

  void run(int64_t begin, int64_t end, int64_t& lowest) {
    T* out = static_cast<T*>(g.out);
    const int64_t n = g.n;
    const bool dense = g.dims == 1 && a.step[0] == 1 && b.step[0] == n && (n == 1 || b.col == 1);
    n < WC ? short_of<1>(begin, end, dense, out) : long_rows(begin, end, out);
    if (!(seen.v.sum() == 0)) note_lowest(lowest, first_spoilt(out, begin, end, 2 * n));
  }
};

}  // namespace SF_NS
}  // namespace sf
