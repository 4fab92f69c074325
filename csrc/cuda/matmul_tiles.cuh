// C = A B with any strides, either operand conjugated, and up to four leading dimensions: what the one-user channels of
// tiles.cuh leave of mimo_matmul (an adjoint B, strided or repeated operands). One thread computes four rows of one
// column straight from global memory; A is read by a row's threads together and B by a column's, out of L1.
// A conj(B) = conj(conj(A) B): the product conjugates A, and the result where B is conjugated.
#pragma once
#include "cta.cuh"

namespace sf::cuda {

template <class T, bool Conj>
struct matmul_tiles {
  static constexpr int max_threads = 128, min_ctas = 0, RT = 4;
  using Col = one_col<T>;
  using entry = wide<T, 1>;

  struct leading {  // dimension d of the batch, outermost first
    int64_t size, a, b;
    divisor by;
  };
  const entry *a, *b;
  entry* out;
  int64_t items, a_row, a_col, b_row, b_col;
  leading dim[4];
  tile_grid tiles;
  int32_t dims, m, k, n, flip;

  matmul_tiles(const matmul_args& g, int64_t count, const tile_grid& on)
      : a(static_cast<const entry*>(g.a)),
        b(static_cast<const entry*>(g.b)),
        out(static_cast<entry*>(g.out)),
        items(count),
        a_row(g.a_row),
        a_col(g.a_col),
        b_row(g.b_row),
        b_col(g.b_col),
        dim{at(g, 0), at(g, 1), at(g, 2), at(g, 3)},
        tiles(on),
        dims(int32_t(g.dims)),
        m(int32_t(g.m)),
        k(int32_t(g.k)),
        n(int32_t(g.n)),
        flip(g.conj_b) {}
  static leading at(const matmul_args& g, int64_t d) {
    if (d >= g.dims) return {1, 0, 0, divisor(1)};
    return {g.size[d], g.a_step[d], g.b_step[d], divisor(g.size[d] < 1 << 30 ? g.size[d] : 1)};
  }

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    tiles.each(cta, items, [&](int64_t i, int32_t row, int32_t col) { compute(i, row, col); });
  }

  SF_HD void compute(int64_t item, int32_t row, int32_t col) const {
    int64_t from_a = 0, from_b = int64_t(col) * b_col, left = item;
    SF_UNROLL
    for (int d = 3; d > 0; --d) {
      if (d >= dims) continue;
      const leading& e = dim[d];
      const int64_t outer = left <= 0x7fffffff && e.size < 1 << 30 ? int64_t(e.by(int32_t(left))) : left / e.size;
      from_a += (left - outer * e.size) * e.a, from_b += (left - outer * e.size) * e.b, left = outer;
    }
    const entry *pa = a + from_a + left * dim[0].a, *pb = b + from_b + left * dim[0].b;
    int64_t a_at[RT];  // past the last row: its own again, computed and not stored
    product<Col, Conj> p[RT][1];
    SF_UNROLL
    for (int i = 0; i < RT; ++i) {
      a_at[i] = int64_t(row + i * tiles.rows < m ? row + i * tiles.rows : m - 1) * a_row;
      p[i][0] = product<Col, Conj>::zero();
    }
    multiply_tile<Col>(
        p, k, [&](int i, int64_t q) { return scalar(pa[a_at[i] + q * a_col]); },
        [&](int64_t q, int) { return pb[q * b_row].c[0]; });
    entry* to = out + (item * m) * n + col;
    SF_UNROLL
    for (int i = 0; i < RT; ++i)
      if (row + i * tiles.rows < m) {
        const Col v = p[i][0].value();
        to[int64_t(row + i * tiles.rows) * n] = entry{{{v.re, flip ? -v.im : v.im}}};
      }
  }
};

}  // namespace sf::cuda
