// GX += H^H R over a panel of rows whose R is in cache: the sums of a few streams stay in registers over all its rows,
// where adjoint_tile, which has a few rows in registers, takes them to memory and back for every tile.
#pragma once
#include "../common/columns.hpp"

namespace sf {
inline namespace SF_NS {

// H [rows][h_row reals] from the user's first stream on, R [rows][r_row reals]. Whole: all packs of R are whole.
// Ahead: R comes from far, and the rows `ahead` reals on are asked for meanwhile.
template <class Col, int CT, bool Whole, bool Ahead>
struct codeword_panel {
  using T = typename Col::real;
  const T *h, *r;
  int64_t rows, h_row, r_row, ahead;
  int n;

  // Streams [m, m + MT); `g` reads and writes product<Col, true>
  template <int MT, class G>
  SF_HD void add_tile(int64_t m, const G& g) const {
    const T *entries = h + 2 * m, *from = r;
    const int64_t h_next = h_row, next = r_row, further = m == 0 ? ahead : 0;
    const int slots = n;
    product<Col, true> q[MT][CT];
    SF_UNROLL
    for (int i = 0; i < MT; ++i)
      SF_UNROLL
    for (int c = 0; c < CT; ++c) q[i][c] = g.get(m + i, c);
    multiply_tile(
        q, rows,
        [=](int i, int64_t s)
            SF_LAMBDA { return scalar2<T>{entries[s * h_next + 2 * i], entries[s * h_next + 2 * i + 1]}; },
        [=](int64_t s, int c) SF_LAMBDA {
          const T* p = from + s * next + c * Col::reals;
          if constexpr (Ahead) __builtin_prefetch(p + further);
          return Whole ? Col::load(p) : Col::load_first(p, Col::left(slots, c));
        });
    SF_UNROLL
    for (int i = 0; i < MT; ++i)
      SF_UNROLL
    for (int c = 0; c < CT; ++c) g.set(m + i, c, q[i][c]);
  }
  template <class G>
  void add(int64_t streams, const G& g) const {
    in_tiles(0, streams, [&](auto tile, int64_t m) SF_LAMBDA { add_tile<decltype(tile)::value>(m, g); });
  }
};

}  // namespace SF_NS
}  // namespace sf
