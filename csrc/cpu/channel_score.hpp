// The channel's score of one block, GH += R X^H, from tiles of the residual in registers: lanes along the streams where
// there are several, else two dot products for a row and a stream.
#pragma once
#include "../common/columns.hpp"
#include "parallel.hpp"
#include "sums.hpp"
#include "transpose.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct channel_score {
  static constexpr int W = native_width<T>, WC = W / 2;
  // Streams from which lanes along them beat dot products.
  static constexpr int outer_from = WC < 4 ? WC : WC < 8 ? 4 : 5;
  using Col = pack_cols<T, W>;
  using Adj = product<Col, true>;

  const int64_t M, MV, row;        // streams, packs that hold them, reals of a row of GH: 2M for few streams, else MV*W
  const T* xs = nullptr;           // packed X [M][CT*W]
  T *xt = nullptr, *gh = nullptr;  // X^T [slots][MV*W], whose lanes past M are zero; GH [Nr][row]

  explicit channel_score(int64_t streams)
      : M(streams), MV((streams + WC - 1) / WC), row(streams < outer_from ? 2 * streams : MV * W) {}
  bool transposed() const { return M >= outer_from; }

  // X^T with the streams along the lanes, a square of WC streams and slots at a time
  template <int CT>
  void transpose() {
    const int64_t streams = M, next = row;  // locals here and below: the stores may alias the members
    for (int64_t m = 0; m < streams; m += WC) {
      const T* src = xs + m * CT * W;
      T* dst = xt + 2 * m;
      const int64_t n = streams - m < WC ? streams - m : WC;
      for (int c = 0; c < CT; ++c, src += W) {
        pack<T, W> z[WC];
    SF_UNROLL
        for (int i = 0; i < WC; ++i) z[i] = i < n ? pack<T, W>::load(src + i * CT * W) : pack<T, W>(T(0));
        transpose_squares<WC, 2>(z);
        SF_UNROLL
        for (int s = 0; s < WC; ++s, dst += next) z[s].store(dst);
      }
    }
  }

  // Rows of one tile: lanes run over streams, the sum over the chunk's slots. R X^H = conj(conj(R) X^T).
  template <int RT, int VT>
  void outer_tile(const T* r, int64_t r0, int64_t v0, int of_r, int n, bool first) {
    Adj q[RT][VT];
    SF_UNROLL
    for (int i = 0; i < RT; ++i) SF_UNROLL
    for (int c = 0; c < VT; ++c) q[i][c] = Adj::zero();
    const T* x = xt + v0 * W;
    const int64_t next = row;
    multiply_tile(
        q, n, [=](int i, int64_t s) SF_LAMBDA { return scalar2<T>{r[i * of_r + 2 * s], r[i * of_r + 2 * s + 1]}; },
        [=](int64_t s, int c) SF_LAMBDA { return Col::load(x + s * next + c * W); });
    T* to = gh + r0 * next + v0 * W;
    SF_UNROLL
    for (int i = 0; i < RT; ++i) SF_UNROLL
    for (int c = 0; c < VT; ++c) {
      T* out = to + i * next + c * W;
      const Col g = conjugate(q[i][c].value());
      (first ? g : Col::load(out) + g).store(out);
    }
  }

  // The same rows for few streams, where lanes along m would stay empty: a row's two dot products with every stream.
  template <int RT, int CT>
  void inner_tile(const Col (&r)[RT][CT], int64_t r0, bool first) {
    const T* x = xs;
    T* to = gh + r0 * row;
    const int64_t streams = M;
    constexpr int sums = RT == 3 ? 4 : RT;  // powers of two
    for (int64_t m = 0; m < streams; ++m, x += CT * W, to += 2) {
      Col z[CT], iz[CT];
      SF_UNROLL
      for (int c = 0; c < CT; ++c) z[c] = Col::load(x + c * W), iz[c] = turned(z[c]);
      pack<T, W> p[2 * sums];
      SF_UNROLL
      for (int i = 2 * RT; i < 2 * sums; ++i) p[i] = pack<T, W>(T(0));
      SF_UNROLL
      for (int i = 0; i < RT; ++i) inner_columns(r[i], z, iz, p[2 * i], p[2 * i + 1]);
      const auto g = sums_of_few(p);
      SF_UNROLL
      for (int i = 0; i < RT; ++i) add_entry(to + 2 * i * streams, g.v[2 * i], g.v[2 * i + 1], first);
    }
  }
  SF_HD static void add_entry(T* to, T re, T im, bool first) {
    to[0] = first ? re : to[0] + re;
    to[1] = first ? im : to[1] + im;
  }

  // Rows [r0, r0 + RT) of R, in registers and in memory; n slots from a chunk of CT packs, the first of which begins the
  // sums.
  template <int RT, int CT>
  SF_HD void add(const Col (&z)[RT][CT], const T* r, int64_t r0, int n, bool first) {
    if (!transposed()) return inner_tile<RT, CT>(z, r0, first);
    int64_t v = 0;
    for (; v + 2 <= MV; v += 2) outer_tile<RT, 2>(r, r0, v, CT * W, n, first);
    if (v < MV) outer_tile<RT, 1>(r, r0, v, CT * W, n, first);
  }
  template <int RT, int CT>
  SF_HD void add_loaded(const T* r, int64_t r0, int n, bool first) {
    Col z[RT][CT];
    SF_UNROLL
    for (int i = 0; i < RT; ++i)
      SF_UNROLL
    for (int c = 0; c < CT; ++c) z[i][c] = Col::load(r + (i * CT + c) * W);
    add<RT, CT>(z, r, r0, n, first);
  }
};

}  // namespace SF_NS
}  // namespace sf
