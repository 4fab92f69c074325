// Bodies without shared memory: one thread computes one tile of the result straight from global memory. H, read by
// every column's thread, and X or Y, read by every row's, come out of L1; neighbouring threads own neighbouring
// columns, so each access of a warp is contiguous.
#pragma once
#include "cta.cuh"

namespace sf::cuda {

// Y = sum_u H_u X_u. A tile is 4 rows (one every `tiles.rows`, so that a warp writes consecutive rows) by CT columns.
// M > 0: the number of streams, all of X's tile in registers with its loads in flight together. M = 0: any number.
template <class T, int M, int CT>
struct apply_tiles {
  static constexpr int max_threads = 128, min_ctas = 0, RT = 4;
  using Col = one_col<T>;
  blocks<T> v;
  tile_grid tiles;

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    tiles.each(cta, v.n, [&](int64_t i, int32_t row, int32_t col) { compute(v.at(i), row, col); });
  }

  SF_HD void compute(spot at, int32_t row, int32_t col) const {
    const auto* h = v.h_of(at);
    const auto* x = v.x_of(at) + col * CT;
    int64_t h_row[RT];  // past the last row: its own again, computed and not stored
    SF_UNROLL
    for (int i = 0; i < RT; ++i) h_row[i] = int64_t(row + i * tiles.rows < v.nr ? row + i * tiles.rows : v.nr - 1) * v.nt;
    product<Col, false> p[RT][CT];
    SF_UNROLL
    for (int i = 0; i < RT; ++i)
      SF_UNROLL
      for (int c = 0; c < CT; ++c) p[i][c] = product<Col, false>::zero();
    if constexpr (M > 0) {
      wide<T, CT> xs[M];
      int64_t h_col[M];
      stream m = v.first_stream(0);
      SF_UNROLL
      for (int q = 0; q < M; ++q) {
        xs[q] = load<CT>(x + m.x), h_col[q] = m.h;
        v.next(m);
      }
      multiply_tile<Col>(
          p, M, [&](int i, int64_t q) { return scalar(h[h_col[q] + h_row[i]]); },
          [&](int64_t q, int c) { return xs[q].c[c]; });
    } else {
      for (int32_t user = 0; user < v.u; ++user, h += v.h_u, x += v.x_u) {
        wide<T, CT> xs;
        multiply_tile<Col>(
            p, v.nt, [&](int i, int64_t j) { return scalar(h[h_row[i] + j]); },
            [&](int64_t j, int c) {
              if (c == 0) xs = load<CT>(x + j * v.t);
              return xs.c[c];
            });
      }
    }
    auto* out = v.out_y_of(at) + col * CT;
    SF_UNROLL
    for (int i = 0; i < RT; ++i)
      if (row + i * tiles.rows < v.nr) {
        wide<T, CT> w;
        SF_UNROLL
        for (int c = 0; c < CT; ++c) w.c[c] = p[i][c].value();
        store<CT>(out + int64_t(row + i * tiles.rows) * v.t, w);
      }
  }
};

// X_u = H_u^H Y for few receive antennas. A tile is MT streams by CT columns; the thread walks down Y four rows at a
// time.
template <class T, int MT, int CT>
struct adjoint_tiles {
  static constexpr int max_threads = 128, min_ctas = MT == 4 ? 8 : 0, RT = 4;  // at most 64 registers
  using Col = one_col<T>;
  blocks<T> v;
  tile_grid tiles;

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    tiles.each(cta, v.n, [&](int64_t i, int32_t row, int32_t col) { compute(v.at(i), row * MT, col); });
  }

  struct sums {
    product<Col, true> (&q)[MT][CT];
    SF_HD product<Col, true> get(int64_t m, int c) const { return q[m][c]; }
    SF_HD void set(int64_t m, int c, const product<Col, true>& p) const { q[m][c] = p; }
  };

  SF_HD void compute(spot at, int32_t m0, int32_t col) const {
    const auto* h = v.h_of(at);
    const auto* y = v.y_of(at) + col * CT;
    int64_t h_col[MT];
    stream m = v.first_stream(m0);
    product<Col, true> g[MT][CT];
    SF_UNROLL
    for (int q = 0; q < MT; ++q) {
      h_col[q] = m.h;
      if (m0 + q + 1 < v.m) v.next(m);  // past the last stream: that one again, computed and not stored
      SF_UNROLL
      for (int c = 0; c < CT; ++c) g[q][c] = product<Col, true>::zero();
    }
    SF_NO_UNROLL
    for (int32_t r0 = 0; r0 < v.nr; r0 += RT) {
      Col r[RT][CT];
      SF_UNROLL
      for (int i = 0; i < RT; ++i) {
        wide<T, CT> w{};
        if (r0 + i < v.nr) w = load<CT>(y + int64_t(r0 + i) * v.t);
        SF_UNROLL
        for (int c = 0; c < CT; ++c) r[i][c] = w.c[c];
      }
      const auto h_at = [&](int i, int64_t q) {
        wide<T, 1> w{};
        if (r0 + i < v.nr) w = h[h_col[q] + int64_t(r0 + i) * v.nt];
        return scalar(w);
      };
      adjoint_tile<Col>(r, MT, h_at, sums{g});
    }
    auto* out = v.out_x_of(at) + col * CT;
    m = v.first_stream(m0);
    SF_UNROLL
    for (int q = 0; q < MT; ++q)
      if (m0 + q < v.m) {
        wide<T, CT> w;
        SF_UNROLL
        for (int c = 0; c < CT; ++c) w.c[c] = g[q][c].value();
        store<CT>(out + m.x, w);
        v.next(m);
      }
  }
};

}  // namespace sf::cuda
