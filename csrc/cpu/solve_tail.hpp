// What follows a factor when one channel has many right-hand sides: the narrow product of the M-form, both triangular
// solves and the wide product of the K-form, with lanes along the columns of the right-hand sides. Operands are read
// and results written where they lie, so a [64, 24] result never passes through the lane layout of regularised.hpp.
#pragma once

#include "../common/columns.hpp"
#include "../common/kernels.hpp"
#include "../common/small_matrix.hpp"
#include "around.hpp"
#include "packs.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

namespace sf {
inline namespace SF_NS {

// The factor of one channel, as small_matrix.hpp lays it out: strictly lower triangle row by row, reciprocal diagonal
// (0 where a row drops out) and the pivoting, or null.
template <class R>
struct lane_factor {
  const R *l, *inv, *from;
  SF_HD scalar2<R> operator()(int64_t i, int64_t j) const {
    const R* p = l + i * (i - 1) + 2 * j;
    return {p[0], p[1]};
  }
};

// One channel in arithmetic R: x = H^H A^-1 s (K-form) or A^-1 H^H s (M-form), rows of s and x contiguous.
template <class R>
struct solve_tail {
  static constexpr int W = native_width<R>, WC = W / 2, max_ct = 3, RT = packed_tile_rows;
  using Col = pack_cols<R, W>;

  int k, m, t, n;
  bool m_form, around;
  R *z, *q;  // a chunk of columns, [n][max_ct * W] and [K][max_ct * W]

  static int64_t scratch(const rzf_args& a) { return (2 * a.k + a.m) * max_ct * W; }
  solve_tail(const rzf_args& a, R* memory, bool goes_around)
      : k(int(a.k)),
        m(int(a.m)),
        t(int(a.t)),
        n(a.m_form ? m : k),
        m_form(a.m_form),
        around(goes_around),
        z(memory),
        q(memory + n * max_ct * W) {}

  static int left(int cols, int c) {  // columns in pack c
    const int rest = cols - c * WC;
    return rest < 0 ? 0 : rest < WC ? rest : WC;
  }

  // Writes x [M][T]; NaN where a column of any row is not finite.
  void run(const R* h, const R* s, const lane_factor<R>& f, R* x, Col& seen) const {
    for (int c0 = 0; c0 < t; c0 += max_ct * WC) {
      const int cols = t - c0 < max_ct * WC ? t - c0 : max_ct * WC;
      if (cols > 2 * WC)
        chunk<3>(h, s, f, x, c0, cols, seen);
      else if (cols > WC)
        chunk<2>(h, s, f, x, c0, cols, seen);
      else
        chunk<1>(h, s, f, x, c0, cols, seen);
    }
  }

  template <int CT>
  void chunk(const R* h, const R* s, const lane_factor<R>& f, R* x, int c0, int cols, Col& seen) const {
    m_form ? narrow<CT>(h, s, c0, cols) : symbols<CT>(s, c0, cols, z);
    if (f.from) swap_rows<CT>(f.from, false);
    forward<CT>(f);
    backward<CT>(f);
    if (f.from) swap_rows<CT>(f.from, true);
    R* out = x + 2 * c0;
    if (m_form)
      for (int i = 0; i < n; ++i)
        for (int c = 0; c < CT; ++c) put(at<CT>(i, c), out + int64_t(i) * 2 * t, c, cols, seen);
    else
      wide<CT>(h, out, cols, seen);
  }

  SF_HD void put(Col v, R* row, int c, int cols, Col& seen) const {
    seen = seen + (v - v);
    put_columns(v, row + c * W, left(cols, c), around);
  }
  template <int CT>
  SF_HD Col at(int64_t i, int c) const {
    return Col::load(z + i * CT * W + c * W);
  }
  template <int CT>
  SF_HD void set(int64_t i, int c, Col v) const {
    v.store(z + i * CT * W + c * W);
  }

  // Columns [c0, c0 + cols) of the right-hand sides, whole packs with zeros past the last.
  template <int CT>
  void symbols(const R* s, int c0, int cols, R* to) const {
    for (int i = 0; i < k; ++i)
      for (int c = 0; c < CT; ++c) {
        R* row = to + (i * CT + c) * W;
        if (s) {
          Col::load_first(s + 2 * (int64_t(i) * t + c0) + c * W, left(cols, c)).store(row);
          continue;
        }
        Col::zero().store(row);
        const int one = i - c0 - c * WC;
        if (one >= 0 && one < WC) row[2 * one] = R(1);
      }
  }

  // H^H times K rows of columns: in(j, c) yields their packs, out(i, c, value) gets those of the product.
  template <int CT, class In, class Out>
  void adjoint_product(const R* h, const In& in, const Out& out) const {
    int i = 0;
    for (; i + RT <= m; i += RT) adjoint_rows<CT, RT>(h, i, in, out);
    for (; i < m; ++i) adjoint_rows<CT, 1>(h, i, in, out);
  }
  template <int CT, int B, class In, class Out>
  SF_HD void adjoint_rows(const R* h, int i0, const In& in, const Out& out) const {
    product<Col, true> p[B][CT];
    SF_UNROLL
    for (int i = 0; i < B; ++i) SF_UNROLL
    for (int c = 0; c < CT; ++c) p[i][c] = product<Col, true>::zero();
    const R* a = h + 2 * i0;
    multiply_tile(
        p, k, [&](int i, int64_t j) SF_LAMBDA { return scalar2<R>{a[2 * (j * m + i)], a[2 * (j * m + i) + 1]}; },
        in);
    SF_UNROLL
    for (int i = 0; i < B; ++i) SF_UNROLL
    for (int c = 0; c < CT; ++c) out(i0 + i, c, p[i][c].value());
  }

  template <int CT>
  void narrow(const R* h, const R* s, int c0, int cols) const {
    if (!s) return adjoint<CT>(h, c0, cols);
    const R* from = s + 2 * c0;
    int64_t row = 2 * t;
    if (cols < CT * WC) symbols<CT>(s, c0, cols, q), from = q, row = CT * W;
    adjoint_product<CT>(
        h, [&](int64_t j, int c) SF_LAMBDA { return Col::load(from + j * row + c * W); }, [&](int i, int c, Col v) SF_LAMBDA { set<CT>(i, c, v); });
  }
  template <int CT>
  void adjoint(const R* h, int c0, int cols) const {  // unit symbols: columns of H^H
    for (int i = 0; i < n; ++i)
      for (int c = 0; c < CT * WC; ++c) {
        const R* p = h + 2 * (int64_t(c0 + (c < cols ? c : 0)) * m + i);
        z[i * CT * W + 2 * c] = c < cols ? p[0] : R(0), z[i * CT * W + 2 * c + 1] = c < cols ? R(0) - p[1] : R(0);
      }
  }

  template <int CT>
  void swap_rows(const R* from, bool back) const {
    for (int i = 0; i < n; ++i) {
      const int j = back ? n - 1 - i : i, other = int(from[j]);
      if (other == j) continue;
      for (int c = 0; c < CT; ++c) {
        const Col a = at<CT>(j, c), b = at<CT>(other, c);
        set<CT>(j, c, b), set<CT>(other, c, a);
      }
    }
  }

  // Rows of L by blocks: what earlier blocks take away is one product, the triangle of a block stays in registers.
  template <int CT>
  void forward(const lane_factor<R>& f) const {
    int i0 = 0;
    for (; i0 + RT <= n; i0 += RT) forward_rows<CT, RT>(f, i0);
    for (; i0 < n; ++i0) forward_rows<CT, 1>(f, i0);
  }
  template <int CT, int B>
  SF_HD void forward_rows(const lane_factor<R>& f, int i0) const {
    product<Col, false> p[B][CT];
    SF_UNROLL
    for (int i = 0; i < B; ++i) SF_UNROLL
    for (int c = 0; c < CT; ++c) p[i][c] = product<Col, false>::zero();
    multiply_tile(
        p, i0, [&](int i, int64_t j) SF_LAMBDA { return f(i0 + i, j); },
        [&](int64_t j, int c) SF_LAMBDA { return at<CT>(j, c); });
    Col y[B][CT];
    SF_UNROLL
    for (int i = 0; i < B; ++i) {
      SF_UNROLL
      for (int j = 0; j < i; ++j) SF_UNROLL
      for (int c = 0; c < CT; ++c) p[i][c].add(f(i0 + i, i0 + j), y[j][c]);
      SF_UNROLL
      for (int c = 0; c < CT; ++c) {
        y[i][c] = (at<CT>(i0 + i, c) - p[i][c].value()) * f.inv[i0 + i];
        set<CT>(i0 + i, c, y[i][c]);
      }
    }
  }
  template <int CT>
  void backward(const lane_factor<R>& f) const {
    int end = n;
    for (; end % RT; --end) backward_rows<CT, 1>(f, end - 1);
    for (; end; end -= RT) backward_rows<CT, RT>(f, end - RT);
  }
  template <int CT, int B>
  SF_HD void backward_rows(const lane_factor<R>& f, int i0) const {
    product<Col, true> p[B][CT];
    SF_UNROLL
    for (int i = 0; i < B; ++i) SF_UNROLL
    for (int c = 0; c < CT; ++c) p[i][c] = product<Col, true>::zero();
    const int below = i0 + B;
    multiply_tile(
        p, n - below, [&](int i, int64_t j) SF_LAMBDA { return f(below + j, i0 + i); },
        [&](int64_t j, int c) SF_LAMBDA { return at<CT>(below + j, c); });
    Col y[B][CT];
    SF_UNROLL
    for (int i = B - 1; i >= 0; --i) {
      SF_UNROLL
      for (int j = i + 1; j < B; ++j) SF_UNROLL
      for (int c = 0; c < CT; ++c) p[i][c].add(f(i0 + j, i0 + i), y[j][c]);
      SF_UNROLL
      for (int c = 0; c < CT; ++c) {
        y[i][c] = (at<CT>(i0 + i, c) - p[i][c].value()) * f.inv[i0 + i];
        set<CT>(i0 + i, c, y[i][c]);
      }
    }
  }

  template <int CT>
  void wide(const R* h, R* out, int cols, Col& seen) const {
    adjoint_product<CT>(
        h, [&](int64_t j, int c) SF_LAMBDA { return at<CT>(j, c); }, [&](int i, int c, Col v) SF_LAMBDA { put(v, out + int64_t(i) * 2 * t, c, cols, seen); });
  }
};

// The tail over memory of type T: arithmetic of another type passes through scratch.
template <class T>
struct tail_worker {
  const rzf_args& a;
  scratch<char> memory;
  char *factors, *chunks, *staged;
  static constexpr int64_t piece = solve_tail<T>::max_ct * solve_tail<T>::W;
  const around_caches around;  // but for results that are read again, to be scaled

  explicit tail_worker(const rzf_args& args)
      : a(args), around(!(a.scale > 0) && goes_around<T>(a.out_x, 2 * a.n * a.m * a.t, 2 * a.t, piece)) {
    const int64_t n = a.m_form ? a.m : a.k, lanes = native_width<float>;
    const auto bytes = [](int64_t reals) { return (reals * int64_t(sizeof(double)) + 63) / 64 * 64; };
    const int64_t of_factors = bytes(lanes * stride(n)), of_chunks = bytes(solve_tail<float>::scratch(a));
    const int64_t of_staged = bytes(2 * (a.k * a.m + (a.k + a.m) * a.t));
    memory.allocate(of_factors + of_chunks + of_staged);
    factors = memory, chunks = factors + of_factors, staged = chunks + of_chunks;
  }

  static int64_t stride(int64_t n) { return n * (n + 1); }  // of a lane's factor: l, inv and from

  T* out(int64_t channel) const { return static_cast<T*>(a.out_x) + channel * 2 * a.m * a.t; }
  void silence(int64_t channel) const {
    T* x = out(channel);
    for (int64_t i = 0; i < 2 * a.m * a.t; ++i) x[i] = T(0);
  }

  // x of one channel; false where it is not finite, and then it is set to zero.
  template <class R>
  bool run(int64_t channel, const lane_factor<R>& f) const {
    using tail = solve_tail<R>;
    const tail each(a, reinterpret_cast<R*>(chunks), around && sizeof(R) == sizeof(T));
    const T* h = static_cast<const T*>(a.h) + 2 * channel * a.h_b;
    const T* s = a.s ? static_cast<const T*>(a.s) + 2 * channel * a.k * a.t : nullptr;
    T* x = out(channel);
    typename tail::Col seen = tail::Col::zero();
    bool fine;
    if constexpr (sizeof(R) == sizeof(T)) {
      each.run(h, s, f, x, seen);
      fine = seen.v.sum() == 0;
    } else {
      R* wide = reinterpret_cast<R*>(staged);
      R *symbols = wide + 2 * a.k * a.m, *result = symbols + 2 * a.k * a.t;
      convert(h, wide, a.k * a.m);
      if (s) convert(s, symbols, a.k * a.t);
      each.run(wide, s ? symbols : nullptr, f, result, seen);
      convert(result, x, a.m * a.t);
      fine = first_spoilt(x, 0, 1, 2 * a.m * a.t) < 0;  // rounding may overflow
    }
    if (!fine) silence(channel);
    return fine;
  }
  template <class From, class To>
  static void convert(const From* from, To* to, int64_t entries) {
    for (int64_t i = 0; i < 2 * entries; ++i) to[i] = To(from[i]);
  }
};

}  // namespace SF_NS
}  // namespace sf
