// mimo_matmul with lanes along the batch: W products side by side, a pack of matrices transposed into lanes in
// registers, so that one column or a 3 x 3 product fills every lane. A passes in bands of rows.
#pragma once

#include "../common/columns.hpp"
#include "../common/small_matrix.hpp"
#include "matmul_operand.hpp"
#include "parallel.hpp"
#include "scratch.hpp"
#include "transpose.hpp"

namespace sf {
inline namespace SF_NS {

// One complex number per lane as a `Col` of columns.hpp: the scalar is another one per lane.
template <class Q, bool Conj>
struct product<cx<Q>, Conj> {
  cx<Q> c;
  SF_HD static product zero() { return {{Q(0.0f), Q(0.0f)}}; }
  SF_HD void add(cx<Q> a, cx<Q> x) { sf::add<Conj ? times::conj_a : times::plain>(c, a, x); }
  SF_HD cx<Q> value() const { return c; }
};

template <class T, bool Conj>
struct batch_lanes {
  static constexpr int W = native_width<T>;
  static constexpr int RT = packed_tile_rows, CT = 2;
  using P = pack<T, W>;
  using Z = cx<P>;

  struct tile {
    Z* p;
    int row, col;
    SF_HD Z at(int64_t i, int64_t j) const {  // in its parts: GCC copies the whole through the stack
      const Z& z = p[i * row + j * col];
      return {z.re, z.im};
    }
  };

  const matmul_args& g;
  const operand<T> a, b;
  const int m, k, n, band;
  tile at, bt;
  Z* ct;
  P bad;
  scratch<Z> memory;

  // rows of A that pass at a time: the bands of A and C stay in the first-level cache
  static int band_rows(int64_t m, int64_t k, int64_t n) {
    const int64_t most = 192 / (k + n);
    return int(most >= m ? m : most < RT ? RT : most / RT * RT);
  }
  explicit batch_lanes(const matmul_args& args)
      : g(args),
        a(args, args.a, args.a_step, args.a_row, args.a_col),
        b(args, args.b, args.b_step, args.b_row, args.b_col),
        m(int(args.m)),
        k(int(args.k)),
        n(int(args.n)),
        band(band_rows(m, k, n)) {
    const int64_t entries = int64_t(band) * k + int64_t(k) * n + int64_t(band) * n;
    memory.allocate(entries);
    at.p = memory, bt.p = at.p + int64_t(band) * k, ct = bt.p + int64_t(k) * n;
  }

  static transposer<T, W> lanes(const operand<T>& o, int64_t first, int count) {
    transposer<T, W> from(o.at(first), 2 * o.step[0], count);
    if (o.dims > 1)
      for (int i = 1; i < W; ++i) from.from[i] = o.at(first + (i < count ? i : count - 1));
    return from;
  }

  // What a later pack will read, since the hardware's own prefetching stops at every page: small packs a page ahead and
  // at once, others with the loads of the pack before.
  static constexpr int64_t page = 4096 / int64_t(sizeof(T));
  static bool dense(const operand<T>& o, int64_t entries) { return o.dims == 1 && o.step[0] == entries; }
  static SF_HD void fetch_ahead(const operand<T>& o, int64_t item, int64_t entries) {
    const int64_t reals = W * 2 * entries;
    if (dense(o, entries) && reals <= page) fetch(o.at(item) + page, reals);
  }
  static void ask_ahead(const operand<T>& o, transposer<T, W>& from, int64_t entries) {
    const int64_t reals = W * 2 * entries;
    if (dense(o, entries) && reals > page) from.next = from.from[0] + reals;
  }

  // Rows [i0, i0 + rows) of `cols` columns, in the longest runs that memory offers.
  static void load(const operand<T>& o, const transposer<T, W>& from, int i0, int rows, int cols, tile& to) {
    to.row = cols, to.col = 1;
    const int64_t start = 2 * i0 * o.row;
    if (o.col == 1 && (o.row == cols || rows == 1)) return from.load(start, 2 * int64_t(rows) * cols, &to.p->re);
    if (o.row == 1 && (o.col == rows || cols == 1)) {
      to.row = 1, to.col = rows;
      return from.load(start, 2 * int64_t(rows) * cols, &to.p->re);
    }
    if (o.col == 1) {
      for (int i = 0; i < rows; ++i) from.load(start + 2 * i * o.row, 2 * cols, &to.p[i * cols].re);
    } else if (o.row == 1) {
      to.row = 1, to.col = rows;
      for (int j = 0; j < cols; ++j) from.load(start + 2 * j * o.col, 2 * rows, &to.p[j * rows].re);
    } else {
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < cols; ++j) from.load(start + 2 * (i * o.row + j * o.col), 2, &to.p[i * cols + j].re);
    }
  }

  template <int R, int C>
  SF_HD void product_tile(int i0, int j0, P& seen) const {
    product<Z, Conj> p[R][C];
    SF_UNROLL
    for (int i = 0; i < R; ++i) SF_UNROLL
    for (int j = 0; j < C; ++j) p[i][j] = product<Z, Conj>::zero();
    multiply_tile(
        p, k, [&](int i, int64_t q) SF_LAMBDA { return at.at(i0 + i, q); },
        [&](int64_t q, int j) SF_LAMBDA { return bt.at(q, j0 + j); });
    SF_UNROLL
    for (int i = 0; i < R; ++i) SF_UNROLL
    for (int j = 0; j < C; ++j) {
      const Z c = p[i][j].value();
      seen = seen + (c.re - c.re) + (c.im - c.im);
      ct[int64_t(i0 + i) * n + j0 + j] = g.conj_b ? conj(c) : c;
    }
  }
  template <int R>
  SF_HD void product_rows(int i0, P& seen) const {
    int j = 0;
    for (; j + CT <= n; j += CT) product_tile<R, CT>(i0, j, seen);
    if (j < n) product_tile<R, 1>(i0, j, seen);
  }

  void items(int64_t first, int count) {
    transposer<T, W> from = lanes(a, first, count);
    ask_ahead(a, from, int64_t(m) * k);
    P seen(T(0));
    for (int i0 = 0; i0 < m; i0 += band) {
      const int rows = m - i0 < band ? m - i0 : band;
      load(a, from, i0, rows, k, at);
      int i = 0;
      for (; i + RT <= rows; i += RT) product_rows<RT>(i, seen);
      for (; i + 2 <= rows; i += 2) product_rows<2>(i, seen);
      if (i < rows) product_rows<1>(i, seen);
      T* out = static_cast<T*>(g.out) + 2 * (first * m * n + int64_t(i0) * n);
      transposer<T, W>(out, 2 * int64_t(m) * n, count).store(0, 2 * int64_t(rows) * n, &ct->re);
    }
    bad = seen;
  }

  void run(int64_t begin, int64_t end, int64_t& lowest) {
    if (b.shared()) load(b, lanes(b, begin, 1), 0, k, n, bt);
    for (int64_t i = begin; i < end; i += W) {
      const int count = end - i < W ? int(end - i) : W;
      fetch_ahead(a, i, int64_t(m) * k), fetch_ahead(b, i, int64_t(k) * n);
      if (!b.shared()) load(b, lanes(b, i, count), 0, k, n, bt);
      items(i, count);
      const auto fine = bad == P(T(0));
      if (!any_lane(~fine)) continue;
      for (int j = count - 1; j >= 0; --j)
        if (!fine[j]) note_lowest(lowest, i + j);
    }
  }
};

}  // namespace SF_NS
}  // namespace sf
