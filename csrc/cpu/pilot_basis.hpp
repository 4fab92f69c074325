// Products with the pilots' singular vectors U [Nt, r]: X U and W U^H for rows of a channel, r along the lanes of the
// first, Nt along those of the second, so that both are tiles of full packs.
#pragma once
#include "../common/columns.hpp"
#include "../common/kernels.hpp"
#include "packs.hpp"
#include "scratch.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct pilot_basis {
  static constexpr int W = native_width<T>;
  using Col = pack_cols<T, W>;

  int64_t nt, r, rv, nv;  // sizes, and packs that hold 2r and 2 Nt reals
  scratch<T> u, ut;       // U [Nt][rv*W] and its transpose [r][nv*W], zeros past the end

  pilot_basis(int64_t nt, int64_t r) : nt(nt), r(r), rv(packs(r)), nv(packs(nt)) {
    u.allocate_zeros(nt * rv * W), ut.allocate_zeros(r * nv * W);
  }

  static int64_t packs(int64_t n) { return (2 * n + W - 1) / W; }

  void take(const void* from) {
    const T* p = static_cast<const T*>(from);
    for (int64_t n = 0; n < nt; ++n)
      for (int64_t j = 0; j < r; ++j, p += 2) {
        T *a = u + n * rv * W + 2 * j, *b = ut + j * nv * W + 2 * n;
        a[0] = b[0] = p[0], a[1] = b[1] = p[1];
      }
  }

  // done(row, c, pack) for every pack c of every row of X U; x has rows of `stride` reals.
  template <class Done>
  void into(const T* x, int64_t stride, int64_t rows, const Done& done) const {
    product_of<false>(x, stride, rows, nt, u, rv, done);
  }
  // The same for W U^H = conj(conj(W) U^T).
  template <class Done>
  void back(const T* w, int64_t stride, int64_t rows, const Done& done) const {
    product_of<true>(w, stride, rows, r, ut, nv,
                     [&](int64_t row, int64_t c, Col v) SF_LAMBDA { done(row, c, conjugate(v)); });
  }

 private:
  template <bool Conj, int RT, int VT, class Done>
  static void tile(const T* x, int64_t stride, int64_t n, const T* panel, int64_t row, const Done& done) {
    product<Col, Conj> q[RT][VT];
    SF_UNROLL
    for (int i = 0; i < RT; ++i) SF_UNROLL
    for (int c = 0; c < VT; ++c) q[i][c] = product<Col, Conj>::zero();
    multiply_tile(
        q, n,
        [&](int i, int64_t m) SF_LAMBDA { return scalar2<T>{x[i * stride + 2 * m], x[i * stride + 2 * m + 1]}; },
        [&](int64_t m, int c) SF_LAMBDA { return Col::load(panel + m * row + c * W); });
    SF_UNROLL
    for (int i = 0; i < RT; ++i) SF_UNROLL
    for (int c = 0; c < VT; ++c) done(i, c, q[i][c].value());
  }

  template <bool Conj, int RT, class Done>
  static void tiles(const T* x, int64_t stride, int64_t n, const T* panel, int64_t width, const Done& done) {
    for (int64_t c = 0; c < width;) {
      const int64_t left = width - c, row = width * W;
      const auto at = [&](int i, int j, Col v) SF_LAMBDA { done(i, c + j, v); };
      if (left >= 3)
        tile<Conj, RT, 3>(x, stride, n, panel + c * W, row, at), c += 3;
      else if (left == 2)
        tile<Conj, RT, 2>(x, stride, n, panel + c * W, row, at), c += 2;
      else
        tile<Conj, RT, 1>(x, stride, n, panel + c * W, row, at), c += 1;
    }
  }

  template <bool Conj, class Done>
  static void product_of(const T* x, int64_t stride, int64_t rows, int64_t n, const T* panel, int64_t width,
                         const Done& done) {
    int64_t i = 0;
    const auto at = [&](int k, int64_t c, Col v) SF_LAMBDA { done(i + k, c, v); };
    for (; i + packed_tile_rows <= rows; i += packed_tile_rows) tiles<Conj, packed_tile_rows>(x + i * stride, stride, n, panel, width, at);
    for (; i < rows; ++i) tiles<Conj, 1>(x + i * stride, stride, n, panel, width, at);
  }
};

// The decomposition of channel b's pilots: one for all channels, packed beforehand, or every channel's own. `Args` has
// own_basis, u [.., nt, r], s [.., r], yv [b, nr, r].
template <class T, class Args>
struct pilots_of {
  static constexpr int W = native_width<T>;
  const Args& a;
  pilot_basis<T> own;
  const pilot_basis<T>* basis;
  int64_t row;  // reals of a padded row of Yv
  scratch<T> values;  // s, once for the real and once for the imaginary part

  pilots_of(const Args& a, const pilot_basis<T>* shared)
      : a(a), own(a.own_basis ? a.nt : 0, a.own_basis ? a.r : 0), basis(a.own_basis ? &own : shared) {
    row = basis->rv * W;
    values.allocate_zeros(row + 1);
  }

  void take(int64_t b) {
    if (a.own_basis) own.take(static_cast<const T*>(a.u) + 2 * b * a.nt * a.r);
    const T* s = static_cast<const T*>(a.s) + (a.own_basis ? b * a.r : 0);
    for (int64_t j = 0; j < a.r; ++j) values[2 * j] = values[2 * j + 1] = s[j];
  }
  // out [nr][row] = Yv - X U S, times `gain` [row] where given
  void residual(int64_t b, const T* x, const T* gain, T* out) const {
    const T* yv = static_cast<const T*>(a.yv) + b * 2 * a.nr * a.r;
    basis->into(x, 2 * a.nt, a.nr, [&](int64_t i, int64_t c, pack_cols<T, W> z) SF_LAMBDA {
      const int64_t left = 2 * a.r - c * W;
      const native<T> y = get(yv + i * 2 * a.r + c * W, left < W ? int(left) : W);
      const native<T> miss = y - z.v * native<T>::load(values + c * W);
      (gain ? miss * native<T>::load(gain + c * W) : miss).store(out + i * row + c * W);
    });
  }
};

// The basis all channels share, where they do.
template <class T, class Args>
struct shared_basis : pilot_basis<T> {
  explicit shared_basis(const Args& a) : pilot_basis<T>(a.own_basis ? 0 : a.nt, a.own_basis ? 0 : a.r) {
    if (!a.own_basis) this->take(a.u);
  }
};

}  // namespace SF_NS
}  // namespace sf
