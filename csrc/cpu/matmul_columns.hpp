// mimo_matmul with lanes along N: rows of B in packs of columns, tiles of C in registers, as in block_worker.hpp. B is
// packed first where its rows are not contiguous or end in half a pack.
#pragma once

#include "../common/columns.hpp"
#include "matmul_operand.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

namespace sf {
inline namespace SF_NS {

// Runs [from, from + count) of `runs` runs of reals.
template <class T>
SF_HD void fetch(const T* p, int64_t stride, int64_t reals, int64_t runs, int64_t from, int64_t count) {
  for (int64_t i = from; i < from + count && i < runs; ++i) fetch(p + i * stride, reals);
}

template <class T, bool Conj>
struct column_lanes {
  static constexpr int W = native_width<T>, WC = W / 2;
  // packs of a tile; fewer rows of A have registers for more
  static constexpr int max_ct = 3, wide_ct = 2 * max_ct, max_ct_of_row = 2 * packed_tile_rows;
  static constexpr int tile_rows(int ct) {
    return ct <= max_ct ? packed_tile_rows : ct <= wide_ct ? packed_tile_rows / 2 : 1;
  }
  using Col = pack_cols<T, W>;

  const matmul_args& g;
  const operand<T> a, b;
  const int64_t max_rows;
  const around_caches around;
  const scratch<T> xs;       // a chunk of B, [K][CT*W]
  int64_t share_a, share_b;  // runs of A and B fetched with each tile of rows

  explicit column_lanes(const matmul_args& args)
      : g(args),
        a(args, args.a, args.a_step, args.a_row, args.a_col),
        b(args, args.b, args.b_step, args.b_row, args.b_col),
        max_rows(unit_rows(args)),
        around(goes_around<T>(args, chunk_packs(args) * W)),
        xs(args.k * chunk_packs(args) * W) {
    const int64_t rows = g.m < max_rows ? g.m : max_rows, rt = tile_rows(chunk_packs(g)), tiles = (rows + rt - 1) / rt;
    const int64_t cols = g.n < chunk_packs(g) * WC ? g.n : chunk_packs(g) * WC;
    share_a = ((a.col == 1 ? rows : g.k) + tiles - 1) / tiles;
    share_b = ((b.col == 1 ? g.k : cols) + tiles - 1) / tiles;
  }

  static int left(int n, int c) {  // columns in pack c
    const int rest = n - c * WC;
    return rest < 0 ? 0 : rest < WC ? rest : WC;
  }

  // Asks: every pack of B asks for its like in the unit after, `ahead` reals from here.
  template <int RT, int CT, bool Partial, bool Asks>
  SF_HD void rows(const T* ap, const T* x, int64_t x_row, int64_t ahead, T* out, int cols, Col& seen) const {
    product<Col, Conj> p[RT][CT];
    SF_UNROLL
    for (int i = 0; i < RT; ++i) SF_UNROLL
    for (int c = 0; c < CT; ++c) p[i][c] = product<Col, Conj>::zero();
    const int64_t row = 2 * a.row, col = 2 * a.col;
    multiply_tile(
        p, g.k, [&](int i, int64_t q) SF_LAMBDA { return scalar2<T>{ap[i * row + q * col], ap[i * row + q * col + 1]}; },
        [&](int64_t q, int c) SF_LAMBDA { 
          const T* at = x + q * x_row + c * W;
          if (Asks) __builtin_prefetch(at + ahead, 0, 2);
          return Partial ? Col::load_first(at, left(cols, c)) : Col::load(at);
        });
    SF_UNROLL
    for (int i = 0; i < RT; ++i) SF_UNROLL
    for (int c = 0; c < CT; ++c) {
      const Col v = p[i][c].value();
      seen = seen + (v - v);
      put_columns(g.conj_b ? conjugate(v) : v, out + 2 * i * g.n + c * W, left(cols, c), around);
    }
  }

  template <int CT>
  void pack_b(const T* src, int cols) {
    using pair = pack<T, 2>;
    for (int64_t q = 0; q < g.k; ++q) {
      T* dst = xs + q * CT * W;
      const T* from = src + 2 * q * b.row;
      if (b.col == 1)
        for (int c = 0; c < CT; ++c) Col::load_first(from + c * W, left(cols, c)).store(dst + c * W);
      else
        for (int j = 0; j < CT * WC; ++j)
          (j < cols ? pair::load(from + 2 * j * b.col) : pair(T(0))).store(dst + 2 * j);
    }
  }

  // A unit is a chunk of columns of at most max_rows rows of one item.
  struct unit {
    int64_t item, r0, rows, c0;
    int cols;
  };
  // Share `part` of what a later unit reads; A is fetched with its first chunk of columns.
  template <bool Asks>
  SF_HD void fetch_part(const unit& u, int64_t part) const {
    const T *ap = a.at(u.item) + 2 * u.r0 * a.row, *bp = b.at(u.item) + 2 * u.c0 * b.col;
    if (u.c0 == 0 && !a.shared()) {
      if (a.col == 1)
        fetch(ap, 2 * a.row, 2 * g.k, u.rows, part * share_a, share_a);
      else
        fetch(ap, 2 * a.col, 2 * u.rows, g.k, part * share_a, share_a);
    }
    if (Asks || b.shared()) return;
    if (b.col == 1)
      fetch(bp, 2 * b.row, 2 * int64_t(u.cols), g.k, part * share_b, share_b);
    else
      fetch(bp, 2 * b.col, 2 * g.k, u.cols, part * share_b, share_b);
  }

  // All rows of a unit, tile by tile. Asks: the first one asks for B, where bursts ahead of few tiles would hold them up.
  template <int CT, bool Partial, bool Asks>
  SF_HD void sweep(const unit& u, const T* ap, const T* x, int64_t x_row, T* out, const unit* next, Col& seen) const {
    constexpr int RT = tile_rows(CT);
    const int64_t down = 2 * a.row, ahead = Asks && next ? b.at(next->item) + 2 * next->c0 * b.col - x : 0;
    int64_t r = 0;
    for (; r + RT <= u.rows; r += RT, ap += RT * down, out += 2 * RT * g.n) {
      if (next) fetch_part<Asks>(*next, r / RT);
      if (Asks && r == 0)
        rows<RT, CT, Partial, true>(ap, x, x_row, ahead, out, u.cols, seen);
      else
        rows<RT, CT, Partial, false>(ap, x, x_row, 0, out, u.cols, seen);
    }
    if (next && r < u.rows) fetch_part<Asks>(*next, r / RT);
    if constexpr (RT > 2)
      for (; r + 2 <= u.rows; r += 2, ap += 2 * down, out += 4 * g.n)
        rows<2, CT, Partial, Asks>(ap, x, x_row, ahead, out, u.cols, seen);
    for (; r < u.rows; ++r, ap += down, out += 2 * g.n) rows<1, CT, Partial, Asks>(ap, x, x_row, ahead, out, u.cols, seen);
  }

  template <int CT>
  bool chunk(const unit& u, const unit* next) {
    const int64_t item = u.item, r0 = u.r0, c0 = u.c0;
    const int cols = u.cols;
    const T *x = b.at(item) + 2 * c0 * b.col, *ap = a.at(item) + 2 * r0 * a.row;
    int64_t x_row = 2 * b.row;
    const bool partial = cols < CT * WC, once = u.rows <= tile_rows(CT);  // read once: not worth packing
    const bool asks = b.col == 1 && (once || (!partial && u.rows <= 2 * tile_rows(CT)));
    if (b.col != 1 || (partial && !once)) pack_b<CT>(x, cols), x = xs, x_row = CT * W;
    T* out = static_cast<T*>(g.out) + 2 * (item * g.m * g.n + r0 * g.n + c0);
    Col seen = Col::zero();
    if (partial && asks)
      sweep<CT, true, true>(u, ap, x, x_row, out, next, seen);
    else if (asks)
      sweep<CT, false, true>(u, ap, x, x_row, out, next, seen);
    else
      sweep<CT, false, false>(u, ap, x, x_row, out, next, seen);
    return seen.v.sum() == 0;
  }

  // Rows of up to `wide_ct` packs stay whole, as memory has them, while their chunk of B fits the first-level cache.
  static int chunk_packs(const matmul_args& g) {
    if (g.m == 1) return max_ct_of_row;
    return g.n > max_ct * WC && g.n <= wide_ct * WC && g.k <= 64 ? wide_ct : max_ct;
  }
  // Threads share one product by its rows, where none of them would have to pack B for itself.
  static int64_t unit_rows(const matmul_args& g) {
    const bool alone = g.dims == 1 && g.size[0] == 1;
    return alone && g.b_col == 1 && g.n % WC == 0 ? 4 * packed_tile_rows : 64;
  }
  static int64_t row_parts(const matmul_args& g) { return (g.m + unit_rows(g) - 1) / unit_rows(g); }
  static int64_t col_parts(const matmul_args& g) { return (g.n + chunk_packs(g) * WC - 1) / (chunk_packs(g) * WC); }

  void run(int64_t begin, int64_t end, int64_t& lowest) {
    const int64_t per_row = col_parts(g), per_item = row_parts(g) * per_row;
    const int width = chunk_packs(g) * WC;
    const auto unit_at = [&](int64_t i) {
      const int64_t item = per_item == 1 ? i : i / per_item, part = i - item * per_item;
      const int64_t r0 = per_item == 1 ? 0 : part / per_row * max_rows;
      const int64_t c0 = per_row == 1 ? 0 : part % per_row * width;
      const int64_t rows = g.m - r0 < max_rows ? g.m - r0 : max_rows;
      return unit{item, r0, rows, c0, g.n - c0 < width ? int(g.n - c0) : width};
    };
    // The hardware fetches smaller ones, and one long run of B by itself.
    const bool large = (g.m > 1 || g.k <= 8) && (g.m + g.n) * g.k * 2 * int64_t(sizeof(T)) >= 4096;
    for (int64_t i = begin; i < end; ++i) {
      const unit u = unit_at(i), after = unit_at(i + 1);
      const unit* next = large && i + 1 < end ? &after : nullptr;
      const bool fine = u.cols > wide_ct * WC ? chunk<max_ct_of_row>(u, next)
                        : u.cols > 4 * WC   ? chunk<wide_ct>(u, next)
                        : u.cols > 3 * WC ? chunk<4>(u, next)
                        : u.cols > 2 * WC ? chunk<3>(u, next)
                        : u.cols > WC     ? chunk<2>(u, next)
                                          : chunk<1>(u, next);
      if (!fine) note_lowest(lowest, u.item);
    }
  }
};

}  // namespace SF_NS
}  // namespace sf
