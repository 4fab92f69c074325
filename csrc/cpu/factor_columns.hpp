// One Hermitian matrix at a time, lanes along its columns: A = P^H P + reg I with P = V^H [len x n], A = U^H U with the
// rows of U contiguous, and the solves with that factor. Rows are taken in bands of R, as many as a register tile
// holds; padding up to whole bands and packs is zero with a unit diagonal, so that no loop has a tail.
#pragma once
#include "../common/columns.hpp"
#include "parallel.hpp"
#include "scratch.hpp"

namespace sf {
inline namespace SF_NS {

template <class Q>
struct column_tiles {
  static constexpr int W = native_width<Q>, WC = W / 2, R = packed_tile_rows < 2 * WC ? packed_tile_rows : 2 * WC,
                       step = WC > R ? WC : R;  // R: the first tile of a band holds its corner
  using Col = pack_cols<Q, W>;
  template <int N>
  struct count {
    static constexpr int value = N;
  };

  static int64_t padded(int64_t entries) { return (entries + step - 1) / step * step; }
  static int packs(int64_t entries) { return int(padded(entries) / WC); }
  // Reals from row to row: an odd number of steps, so that rows do not all fall into the same sets of a cache.
  static int64_t row_reals(int64_t entries) { return 2 * step * (padded(entries) / step | 1); }

  // f(count<CT>, c): packs [c, c + CT) of [first, last), up to three at a time
  template <class F>
  SF_HD static void each_tile(int c, int last, const F& f) {
    for (; last - c > 4 || last - c == 3; c += 3) f(count<3>(), c);
    for (; last - c >= 2; c += 2) f(count<2>(), c);
    if (c < last) f(count<1>(), c);
  }

  // out(i, c, sum_{k<depth} conj(a[k][i]) b[k][c]) for whole bands of rows i; packs from first(band) on
  template <class First, class Out>
  SF_HD static void adjoint_product(const Q* a, int64_t a_ld, int64_t rows, const Q* b, int64_t b_ld, int last,
                                    int64_t depth, const First& first, const Out& out) {
    for (int64_t i0 = 0; i0 < rows; i0 += R)
      each_tile(first(i0), last, [&](auto ct, int c) SF_LAMBDA {
        constexpr int CT = decltype(ct)::value;
        product<Col, true> p[R][CT];
      SF_UNROLL
        for (int i = 0; i < R; ++i) SF_UNROLL
        for (int j = 0; j < CT; ++j) p[i][j] = product<Col, true>::zero();
        multiply_tile(
            p, depth,
            [&](int i, int64_t k) SF_LAMBDA {
              const Q* s = a + k * a_ld + 2 * (i0 + i);
              return scalar2<Q>{s[0], s[1]};
            },
            [&](int64_t k, int j) SF_LAMBDA { return Col::load(b + k * b_ld + (c + j) * W); });
        SF_UNROLL
        for (int i = 0; i < R; ++i) SF_UNROLL
        for (int j = 0; j < CT; ++j) out(i0 + i, c + j, p[i][j].value());
      });
  }

  // out = sum_{r<rows} h[r] c_r, one row
  SF_HD static void combine_rows(const Q* h, int64_t ld, int64_t rows, int last, const Q* c_r, Q* out) {
    each_tile(0, last, [&](auto ct, int c) SF_LAMBDA {
      constexpr int CT = decltype(ct)::value;
      product<Col, false> p[1][CT];
      SF_UNROLL
      for (int j = 0; j < CT; ++j) p[0][j] = product<Col, false>::zero();
      multiply_tile(
          p, rows, [&](int, int64_t k) SF_LAMBDA { return scalar2<Q>{c_r[2 * k], c_r[2 * k + 1]}; },
          [&](int64_t k, int j) SF_LAMBDA { return Col::load(h + k * ld + (c + j) * W); });
      SF_UNROLL
      for (int j = 0; j < CT; ++j) p[0][j].value().store(out + (c + j) * W);
    });
  }

  // dst[r][c] = src[r row + c col], conjugated on demand; 16 columns at a time stay in cache
  template <class S>
  static void turn(Q* dst, int64_t ld, const S* src, int64_t rows, int64_t cols, int64_t row, int64_t col, bool conj) {
    using pair = pack<Q, 2>;
    const Q sign = conj ? Q(-1) : Q(1);
    const pair signs(typename pair::V{Q(1), sign});
    for (int64_t c0 = 0; c0 < cols; c0 += 16)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = c0; c < cols && c < c0 + 16; ++c) {
          const S* from = src + 2 * (r * row + c * col);
          if constexpr (sizeof(S) == sizeof(Q))
            (pair::load(from) * signs).store(dst + r * ld + 2 * c);
          else
            dst[r * ld + 2 * c] = Q(from[0]), dst[r * ld + 2 * c + 1] = sign * Q(from[1]);
        }
  }
  // The same with zeros behind it, up to `all_rows` rows of whole steps
  template <class S>
  static void place(Q* dst, int64_t ld, int64_t all_rows, const S* src, int64_t rows, int64_t cols, int64_t row,
                    int64_t col, bool conj) {
    for (int64_t r = 0; r < all_rows; ++r)
      for (int64_t j = r < rows ? 2 * cols : 0; j < 2 * padded(cols); ++j) dst[r * ld + j] = Q(0);
    if (col != 1 || conj) return turn(dst, ld, src, rows, cols, row, col, conj);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < 2 * cols; ++j) dst[r * ld + j] = Q(src[2 * r * row + j]);
  }

  // The first `left` columns of a pack, rounded to the type of the result.
  template <class T>
  SF_HD static void put(Col v, T* p, int64_t left) {
    const int some = left < WC ? int(left) : WC;
    if (some <= 0) return;
    if constexpr (sizeof(T) == sizeof(Q)) {
      v.store_first(p, some);
    } else {
      const auto half = rounded_half(v.v);
      if (some == WC)
        pack<T, W>(half).store(p);
      else
        pack<T, W>(half).store_first(p, 2 * some);
    }
  }
};

// The factor of one matrix at a time, in memory made once.
template <class Q>
struct column_factor : column_tiles<Q> {
  using X = column_tiles<Q>;
  using typename X::Col;
  using X::W, X::WC, X::R, X::each_tile;
  const int n, rows, last;  // rows of whole bands, packs of a row
  const int64_t ld;
  Q *u, *inv;

  explicit column_factor(int64_t size)
      : n(int(size)), rows((n + R - 1) / R * R), last(X::packs(n)), ld(X::row_reals(n)), u(nullptr), inv(nullptr) {}
  void use(Q* memory) { u = memory, inv = memory + rows * ld; }
  static int64_t reals(int64_t size) {
    const int64_t rows = (size + R - 1) / R * R;
    return rows * X::row_reals(size) + X::padded(rows);
  }

  // u = P^H P, its upper triangle; meanwhile `bytes` from `next` on are asked for, a share with every band
  void gram(const Q* p, int64_t p_ld, int64_t len, const char* next, int64_t bytes) {
    const int64_t share = (bytes * R / rows + 63) / 64 * 64;
    X::adjoint_product(
        p, p_ld, rows, p, p_ld, last, len,
        [&](int64_t i0) SF_LAMBDA {
          const int64_t from = i0 / R * share;
          for (int64_t j = from; j < from + share && j < bytes; j += 64) __builtin_prefetch(next + j, 0, 2);
          return int(i0 / WC);
        },
        [&](int64_t i, int c, Col v) SF_LAMBDA { v.store(u + i * ld + c * W); });
  }
  // The largest diagonal entry of u + reg I; NaN or Inf anywhere on it spoils it.
  Q top(Q reg) const {
    Q most = Q(0), sum = Q(0);
    for (int i = 0; i < n; ++i) {
      const Q d = u[i * ld + 2 * i] + reg;
      sum += d - d;
      if (d > most) most = d;
    }
    return most + sum;
  }

  // The small triangle of a band on the diagonal of U: t[i][j] for i < j, reciprocal pivots.
  struct corner {
    scalar2<Q> t[R][R];
    Q inv[R];
  };
  SF_HD corner corner_of(int i0) const {
    corner b;
    SF_UNROLL
    for (int i = 0; i < R; ++i) {
      b.inv[i] = inv[i0 + i];
      SF_UNROLL
      for (int j = 0; j < R; ++j) b.t[i][j] = {u[(i0 + i) * ld + 2 * (i0 + j)], u[(i0 + i) * ld + 2 * (i0 + j) + 1]};
    }
    return b;
  }
  // Cholesky of that corner; false where a pivot is not positive and finite
  SF_HD bool factor_corner(corner& b, int i0, Q reg) const {
    bool good = true;
    SF_UNROLL
    for (int i = 0; i < R; ++i) {
      Q d = i0 + i < n ? b.t[i][i].re + reg : Q(1);
      SF_UNROLL
      for (int k = 0; k < i; ++k) d -= b.t[k][i].re * b.t[k][i].re + b.t[k][i].im * b.t[k][i].im;
      good = good && d > Q(0) && largest(d) > d;
      b.inv[i] = Q(1) / square_root(d);
      SF_UNROLL
      for (int j = i + 1; j < R; ++j) {
        scalar2<Q> s = b.t[i][j];
        SF_UNROLL
        for (int k = 0; k < i; ++k) {
          const scalar2<Q> x = b.t[k][i], y = b.t[k][j];
          s.re -= x.re * y.re + x.im * y.im, s.im -= x.re * y.im - x.im * y.re;
        }
        b.t[i][j] = {s.re * b.inv[i], s.im * b.inv[i]};
      }
    }
    return good;
  }
  void keep_corner(const corner& b, int i0) {
    for (int i = 0; i < R; ++i) {
      inv[i0 + i] = b.inv[i];
      for (int j = 0; j < R; ++j) {
        Q* at = u + (i0 + i) * ld + 2 * (i0 + j);
        at[0] = j > i ? b.t[i][j].re : Q(0), at[1] = j > i ? b.t[i][j].im : Q(0);
      }
      for (int j = i0 / WC * WC; j < i0; ++j) u[(i0 + i) * ld + 2 * j] = u[(i0 + i) * ld + 2 * j + 1] = Q(0);
    }
  }

  // v = z[i0..] - sum_k a(i, k) z[k..]: a = conj(u[k][i0 + i]) going down (k from `begin`), u[i0 + i][k] going up
  template <bool Down, int CT>
  SF_HD void eliminate(Col (&v)[R][CT], int i0, const Q* z, int64_t z_ld, int begin, int end) const {
    product<Col, Down> p[R][CT];
    SF_UNROLL
    for (int i = 0; i < R; ++i) SF_UNROLL
    for (int j = 0; j < CT; ++j)
      p[i][j] = {pack<Q, W>(Q(0)) - Col::load(z + (i0 + i) * z_ld + j * W).v, pack<Q, W>(Q(0))};
    multiply_tile(
        p, end - begin,
        [&](int i, int64_t k) SF_LAMBDA {
          const Q* s = Down ? u + (begin + k) * ld + 2 * (i0 + i) : u + (i0 + i) * ld + 2 * (begin + k);
          return scalar2<Q>{s[0], s[1]};
        },
        [&](int64_t k, int j) SF_LAMBDA { return Col::load(z + (begin + k) * z_ld + j * W); });
    SF_UNROLL
    for (int i = 0; i < R; ++i) SF_UNROLL
    for (int j = 0; j < CT; ++j) v[i][j] = Col::zero() - p[i][j].value();
  }
  // v = corner^-H v going down, corner^-1 v going up
  template <bool Down, int CT>
  SF_HD static void substitute(Col (&v)[R][CT], const corner& b) {
    SF_UNROLL
    for (int q = 0; q < R; ++q) {
      const int i = Down ? q : R - 1 - q;
      SF_UNROLL
      for (int c = 0; c < CT; ++c) {
        v[i][c] = v[i][c] * b.inv[i];
        const pack<Q, W> turned = swap_pairs(v[i][c].v) * turn_signs<Q, W>();
        SF_UNROLL
        for (int j = 0; j < R; ++j) {
          if (Down ? j <= i : j >= i) continue;
          const scalar2<Q> s = Down ? b.t[i][j] : b.t[j][i];
          v[j][c].v = v[j][c].v - v[i][c].v * pack<Q, W>(s.re) + turned * pack<Q, W>(Down ? s.im : -s.im);
        }
      }
    }
  }
  template <int CT>
  SF_HD static void store(const Col (&v)[R][CT], Q* z, int64_t z_ld) {
    SF_UNROLL
    for (int i = 0; i < R; ++i) SF_UNROLL
    for (int j = 0; j < CT; ++j) v[i][j].store(z + i * z_ld + j * W);
  }

  // U of u + reg I in place of u; false at a failing pivot
  bool factor(Q reg) {
    bool good = true;
    for (int i0 = 0; i0 < rows && good; i0 += R) {
      corner b = corner_of(i0);
      const int first = i0 / WC;
      each_tile(first, last, [&](auto ct, int c) SF_LAMBDA {
        constexpr int CT = decltype(ct)::value;
        Col v[R][CT];
        eliminate<true>(v, i0, u + c * W, ld, 0, i0);
        if (c == first) {
          store(v, u + i0 * ld + c * W, ld);
          b = corner_of(i0);
          good = factor_corner(b, i0, reg);
        }
        substitute<true>(v, b);
        store(v, u + i0 * ld + c * W, ld);
      });
      keep_corner(b, i0);
    }
    return good;
  }

  // z = U^-H z in packs [c, c + CT), whose rows above `from` are zero; seen(j, v) gets every pack of the result.
  template <int CT, class Seen>
  SF_HD void down(Q* z, int64_t z_ld, int c, int from, const Seen& seen) const {
    for (int i0 = from; i0 < rows; i0 += R) {
      Col v[R][CT];
      eliminate<true>(v, i0, z + c * W, z_ld, from, i0);
      substitute<true>(v, corner_of(i0));
      store(v, z + i0 * z_ld + c * W, z_ld);
      SF_UNROLL
      for (int i = 0; i < R; ++i) SF_UNROLL
      for (int j = 0; j < CT; ++j) seen(j, v[i][j]);
    }
  }
  // z = U^-1 z
  template <int CT>
  SF_HD void up(Q* z, int64_t z_ld, int c) const {
    for (int i0 = rows - R; i0 >= 0; i0 -= R) {
      Col v[R][CT];
      eliminate<false>(v, i0, z + c * W, z_ld, i0 + R, rows);
      substitute<false>(v, corner_of(i0));
      store(v, z + i0 * z_ld + c * W, z_ld);
    }
  }
  void solve(Q* z, int64_t z_ld, int packs) const {
    each_tile(0, packs, [&](auto ct, int c) SF_LAMBDA {
      constexpr int CT = decltype(ct)::value;
      down<CT>(z, z_ld, c, 0, [](int, Col) SF_LAMBDA {});
      up<CT>(z, z_ld, c);
    });
  }

  // conj(z) = conj(A^-1 b) from w = conj(b), one vector: rows of U are added going down, multiplied going up.
  void solve_vector(Q* w, Q* z) const {
    for (int64_t j = 0; j < last * W; ++j) z[j] = Q(0);
    for (int i0 = 0; i0 < rows; i0 += R) vector_down(w, i0);
    for (int i0 = rows - R; i0 >= 0; i0 -= R) vector_up(w, z, i0);
  }
  SF_HD void vector_down(Q* w, int i0) const {
    const corner b = corner_of(i0);
    scalar2<Q> y[R];
    SF_UNROLL
    for (int i = 0; i < R; ++i) {
      y[i] = {w[2 * (i0 + i)], w[2 * (i0 + i) + 1]};
      SF_UNROLL
      for (int k = 0; k < i; ++k) {
        const scalar2<Q> t = b.t[k][i];
        y[i].re -= t.re * y[k].re - t.im * y[k].im, y[i].im -= t.re * y[k].im + t.im * y[k].re;
      }
      y[i].re *= b.inv[i], y[i].im *= b.inv[i];
    }
    each_tile((i0 + R) / WC, last, [&](auto ct, int c) SF_LAMBDA {
      constexpr int CT = decltype(ct)::value;
      product<Col, false> p[1][CT];
      SF_UNROLL
      for (int j = 0; j < CT; ++j)
        p[0][j] = {pack<Q, W>(Q(0)) - pack<Q, W>::load(w + (c + j) * W), pack<Q, W>(Q(0))};
      SF_UNROLL
      for (int k = 0; k < R; ++k) SF_UNROLL
      for (int j = 0; j < CT; ++j) p[0][j].add(y[k], Col::load(u + (i0 + k) * ld + (c + j) * W));
      SF_UNROLL
      for (int j = 0; j < CT; ++j) (Col::zero() - p[0][j].value()).store(w + (c + j) * W);
    });
    SF_UNROLL
    for (int i = 0; i < R; ++i) w[2 * (i0 + i)] = y[i].re, w[2 * (i0 + i) + 1] = y[i].im;
  }
  SF_HD void vector_up(const Q* w, Q* z, int i0) const {
    using P = pack<Q, W>;
    const corner b = corner_of(i0);
    P re[R], im[R];
    SF_UNROLL
    for (int i = 0; i < R; ++i) re[i] = im[i] = P(Q(0));
    for (int c = (i0 + R) / WC; c < last; ++c) {
      const P x = P::load(z + c * W), y = swap_pairs(x);
      SF_UNROLL
      for (int i = 0; i < R; ++i) {
        const P row = P::load(u + (i0 + i) * ld + c * W);
        re[i] = re[i] + x * row, im[i] = im[i] + y * row;
      }
    }
    scalar2<Q> s[R];
    SF_UNROLL
    for (int i = R - 1; i >= 0; --i) {
      s[i] = {w[2 * (i0 + i)] - re[i].sum(), w[2 * (i0 + i) + 1] + (im[i] * turn_signs<Q, W>()).sum()};
      SF_UNROLL
      for (int j = i + 1; j < R; ++j) {
        const scalar2<Q> t = b.t[i][j];
        s[i].re -= t.re * s[j].re + t.im * s[j].im, s[i].im -= t.re * s[j].im - t.im * s[j].re;
      }
      s[i].re *= b.inv[i], s[i].im *= b.inv[i];
    }
    SF_UNROLL
    for (int i = 0; i < R; ++i) z[2 * (i0 + i)] = s[i].re, z[2 * (i0 + i) + 1] = s[i].im;
  }
};

}  // namespace SF_NS
}  // namespace sf
