// mimo_matmul without a sum (K = 1): a number times a row of B for every row of A, entry by entry as memory holds them.
// Where A has one row (M = 1), rows shorter than a pack share one. Whatever the strides, every entry is the same
// product.
#pragma once
#include "../common/columns.hpp"
#include "matmul_operand.hpp"
#include "packs.hpp"
#include "parallel.hpp"

namespace sf {
inline namespace SF_NS {

template <class T, bool Conj>
struct scaled_rows {
  static constexpr int W = native_width<T>, WC = W / 2;
  static constexpr int shortest = WC < 8 ? 8 : WC;     // columns from which a row fills its packs well enough
  static constexpr int ahead = 1024 / int(sizeof(T));  // reals; hardware prefetching stops at every page
  using P = pack<T, W>;
  using Col = pack_cols<T, W>;

  const matmul_args& g;
  const operand<T> a, b;
  const around_caches around;

  static bool takes(const matmul_args& g) {
    return g.k == 1 && (g.m == 1 || (g.n >= WC && g.b_col == 1)) && g.n <= 4096;
  }  // longer: shared by threads
  explicit scaled_rows(const matmul_args& args)
      : g(args),
        a(args, args.a, args.a_step, args.a_row, args.a_col),
        b(args, args.b, args.b_step, args.b_row, args.b_col),
        around(goes_around<T>(args, 2 * args.n)) {}

  // What a run of rows carries along in registers, where no store can alias it: 0 until a result is not finite, then
  // NaN.
  struct finish {
    bool conj;
    Col seen;
    SF_HD Col operator()(const product<Col, Conj>& p) {
      const Col v = p.value();
      seen = seen + (v - v);
      return conj ? conjugate(v) : v;
    }
  };

  // Real (Part = 0) or imaginary parts of the numbers that N columns each share, in pack C of those columns.
  template <int N, int C, int Part, int... I>
  static SF_HD P spread(P s, int_list<I...>) {
    return P(__builtin_shufflevector(s.v, s.v, ((C * WC + I / 2) / N * 2 + Part)...));
  }
  // Packs C, C + 1, ... of WC rows of N columns.
  template <int N, int C = 0>
  static SF_HD void short_rows(P s, const T* x, T* out, int cols, finish& done) {
    if constexpr (C < N) {
      auto p = product<Col, Conj>::zero();  // `add` with another scalar for every N columns
      const P v = P::load(x + C * W);
      p.a = p.a + v * spread<N, C, 0>(s, make_list<W>());
      p.b = p.b + v * spread<N, C, 1>(s, make_list<W>());
      const int left = cols - C * WC;
      done(p).store_first(out + C * W, left > 0 ? left : 0);
      short_rows<N, C + 1>(s, x, out, cols, done);
    }
  }
  static SF_HD void copy(const T* from, T* to) { pack<T, 2>::load(from).store(to); }

  // WC items at a time; `dense`: both operands lie one item behind the other.
  template <int N>
  SF_HD void short_items(int64_t begin, int64_t end, bool dense, T* out, finish& done) {
    int64_t i = begin;
    if (dense)
      for (const T *s = a.at(0), *x = b.at(0); i + WC <= end; i += WC) {
        fetch(x + 2 * i * N + ahead, 2 * WC * N), fetch(s + 2 * i + ahead, W);
        short_rows<N>(P::load(s + 2 * i), x + 2 * i * N, out + 2 * i * N, WC * N, done);
      }
    for (; i < end; i += WC) {
      const int count = end - i < WC ? int(end - i) : WC;
      T s[W] = {}, x[N * W] = {};
      for (int l = 0; l < count; ++l) {
        const T* row = b.at(i + l);
        copy(a.at(i + l), s + 2 * l);
        for (int j = 0; j < N; ++j) copy(row + 2 * j * b.col, x + 2 * (l * N + j));
      }
      short_rows<N>(P::load(s), x, out + 2 * i * N, count * N, done);
    }
  }
  template <int N>
  SF_HD void short_of(int64_t begin, int64_t end, bool dense, T* out, finish& done) {
    if constexpr (N < shortest) {
      if (g.n == N) return short_items<N>(begin, end, dense, out, done);
      short_of<N + 1>(begin, end, dense, out, done);
    }
  }

  // Rows of whole packs, an item each and one behind the other
  SF_HD void pack_rows(int64_t begin, int64_t end, T* to, finish& done) {
    const T *s = a.at(begin), *x = b.at(begin);
    const int64_t n = 2 * g.n;
    for (; begin < end; ++begin, s += 2) {
      const scalar2<T> by{s[0], s[1]};
      for (const T* stop = x + n; x < stop; x += W, to += W) {
        __builtin_prefetch(x + ahead, 0, 2);
        auto p = product<Col, Conj>::zero();
        p.add(by, Col::load(x));
        put_columns(done(p), to, WC, around);
      }
    }
  }

  // A pack or more to a row; the last one overlaps the one before. Rows [begin, end) of all items' rows.
  template <bool Dense>
  SF_HD void long_rows(int64_t begin, int64_t end, T* to, finish& done) {
    const int64_t n = g.n, m = g.m, down = 2 * a.row, apart = 2 * b.col,
                  last = 2 * (n - WC);  // stores may alias members
    int64_t item = begin / m, r = begin - item * m;
    const T *s = a.at(item) + r * down, *row = b.at(item);
    for (; begin < end; ++begin, s += down, ++r, to += 2 * n) {
      if (r == m) r = 0, ++item, s = a.at(item), row = b.at(item);
      if (Dense && r == 0) fetch(row + ahead, 2 * n);
      const scalar2<T> by{s[0], s[1]};
      const auto pack_at = [&](int64_t j) SF_LAMBDA {
        T x[W];
        if constexpr (!Dense)
          for (int l = 0; l < WC; ++l) copy(row + (j / 2 + l) * apart, x + 2 * l);
        auto p = product<Col, Conj>::zero();
        p.add(by, Col::load(Dense ? row + j : x));
        put_columns(done(p), to + j, WC, around);
      };
      int64_t j = 0;
      for (; j <= last; j += W) pack_at(j);
      if (j < last + W) pack_at(last);
    }
  }

  void run(int64_t begin, int64_t end, int64_t& lowest) {
    T *out = static_cast<T*>(g.out), *to = out + 2 * begin * g.n;
    const bool dense = g.dims == 1 && a.step[0] == 1 && b.step[0] == g.n && (g.n == 1 || b.col == 1);
    finish done{g.conj_b != 0, Col::zero()};
    if (g.n < WC || (g.m == 1 && g.n < shortest && g.n % WC))
      short_of<1>(begin, end, dense, out, done);
    else if (dense && g.m == 1 && g.n % WC == 0)
      pack_rows(begin, end, to, done);
    else
      b.col == 1 ? long_rows<true>(begin, end, to, done) : long_rows<false>(begin, end, to, done);
    if (!(done.seen.v.sum() == 0)) note_lowest(lowest, first_spoilt(out, begin, end, 2 * g.n) / g.m);
  }
};

}  // namespace SF_NS
}  // namespace sf
