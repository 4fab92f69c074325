// A channel that many vectors share, as the matrix that precodes or equalises them: (H^H A^-1)^T [K][M] once, then a
// product with the vectors, lanes along its columns.
#pragma once
#include "one_channel.hpp"
#include "solve_columns.hpp"

namespace sf {
inline namespace SF_NS {

// Channels of type T in arithmetic Q; with `filtered` false nothing is made.
template <class T, class Q>
struct channel_filter : channel_columns<T, Q> {
  using B = channel_columns<T, Q>;
  using X = typename B::X;
  using Col = typename X::Col;
  using B::a, B::k, B::m, B::n, B::h, B::h_ld, B::z, B::z_ld, B::factor;
  static constexpr int W = X::W, WC = X::WC, R = X::R;
  const bool filtered;
  const int64_t f_ld, band_reals;
  const scratch<Q> own;
  Q *const filter, *const band;  // [K][M], and some vectors

  channel_filter(const rzf_args& args, bool wanted)
      : B(args, wanted ? B::larger(args.k, args.m) : args.m),
        filtered(wanted),
        f_ld(wanted ? X::row_reals(m) : 0),
        band_reals(wanted ? 2 * R * k : 0),
        own(k * f_ld + band_reals),
        filter(own),
        band(filter + k * f_ld) {}

  // From the factor at hand; column j times per(j).
  template <class Per>
  void make_filter(const Per& per) {
    const int64_t columns = a.m_form ? k : m;  // of A^-1 H^H, or of A^-1 H
    for (int64_t j = 0; j < columns; j += B::most) {
      const int64_t some = columns - j < B::most ? columns - j : B::most;
      if (a.m_form)
        X::place(z, z_ld, factor.rows, h + j * h_ld, n, some, 1, h_ld / 2, true);
      else
        X::place(z, z_ld, factor.rows, h + 2 * j, n, some, h_ld / 2, 1, false);
      factor.solve(z, z_ld, X::packs(some));
      if (a.m_form)
        X::turn(filter + j * f_ld, f_ld, z, some, m, 1, z_ld / 2, false);
      else
        X::turn(filter + 2 * j, f_ld, z, k, some, z_ld / 2, 1, true);
    }
    for (int64_t r = 0; r < k; ++r)
      for (int64_t j = 0; j < X::padded(m); ++j) {
        const Q factor = j < m ? per(j) : Q(0);
        Q* f = filter + r * f_ld + 2 * j;
        f[0] = factor == 0 ? Q(0) : f[0] * factor, f[1] = factor == 0 ? Q(0) : f[1] * factor;
      }
  }
  // Vectors [count][K] times the filter: whole rows of it where they fill a register, else packs of its columns.
  void apply(const T* from, T* x, int64_t count) const {
    if constexpr (W >= 8)
      if (2 * m == W / 2) return by_rows<W / 2>(from, x, count);
    if constexpr (W >= 16)
      if (2 * m == W / 4) return by_rows<W / 4>(from, x, count);
    each_band(from, count, [&](const Q* s, int64_t v, int64_t some) { columns(s, x + 2 * v * m, some); });
  }
  template <int Reals>
  void by_rows(const T* from, T* x, int64_t count) const {
    each_band(from, count, [&](const Q* s, int64_t v, int64_t some) { whole_rows<Reals>(s, x + v * Reals, some); });
  }
  template <class Body>
  void each_band(const T* from, int64_t count, const Body& body) const {
    for (int64_t v = 0; v < count; v += R, from += 2 * R * k) {
      const int64_t some = count - v < R ? count - v : R;
      const Q* s = band;
      if (sizeof(T) == sizeof(Q) && some == R)
        s = reinterpret_cast<const Q*>(from);
      else
        for (int64_t j = 0; j < 2 * R * k; ++j) band[j] = j < 2 * some * k ? Q(from[j]) : Q(0);
      body(s, v, some);
    }
  }
  template <class C, int CT>
  SF_HD void multiply(const Q* s, int64_t column, product<C, false> (&p)[R][CT]) const {
    SF_UNROLL
    for (int i = 0; i < R; ++i) SF_UNROLL
    for (int j = 0; j < CT; ++j) p[i][j] = product<C, false>::zero();
    multiply_tile(
        p, k,
        [&](int i, int64_t r) SF_LAMBDA {
          const Q* z = s + 2 * (i * k + r);
          return scalar2<Q>{z[0], z[1]};
        },
        [&](int64_t r, int j) SF_LAMBDA { return C::load(filter + r * f_ld + column + j * C::reals); });
  }
  template <int Reals>
  void whole_rows(const Q* s, T* x, int64_t some) const {
    using C = pack_cols<Q, Reals>;
    product<C, false> p[R][1];
    multiply(s, 0, p);
    SF_UNROLL
    for (int i = 0; i < R; ++i)
      if (i < some)
        pack<T, Reals>(__builtin_convertvector(p[i][0].value().v.v, typename pack<T, Reals>::V)).store(x + i * Reals);
  }
  void columns(const Q* s, T* x, int64_t some) const {
    X::each_tile(0, X::packs(m), [&](auto ct, int c) SF_LAMBDA {
      constexpr int CT = decltype(ct)::value;
      product<Col, false> p[R][CT];
      multiply(s, c * W, p);
      SF_UNROLL
      for (int i = 0; i < R; ++i) SF_UNROLL
      for (int j = 0; j < CT; ++j)
        if (i < some) X::put(p[i][j].value(), x + 2 * (i * m + (c + j) * WC), m - (c + j) * WC);
    });
  }
};

// The arithmetic is chosen as in precode_columns, from the channel's own entries.
template <class T>
struct shared_precoder {
  rzf_args& a;
  channel_filter<T, T> plain;
  channel_filter<T, double> exact;
  explicit shared_precoder(rzf_args& args) : a(args), plain(args, true), exact(args, sizeof(T) == 4) {}

  bool solve(int64_t i, int64_t begin, int64_t end) {
    const T reg = static_cast<const T*>(a.alpha)[i / a.alpha_run];
    return reg > T(0) && (is_plain(a, i, reg) ? with(plain, i, reg, begin, end) : with(exact, i, reg, begin, end));
  }
  template <class Q>
  bool with(channel_filter<T, Q>& f, int64_t i, T reg, int64_t begin, int64_t end) {
    const bool known = f.holds(i, reg);
    if (!f.load(i, reg)) return false;
    if (!known) f.make_filter([](int64_t) { return Q(1); });
    const int64_t first = i * a.t + begin;
    f.apply(static_cast<const T*>(a.s) + 2 * first * a.k, static_cast<T*>(a.out_x) + 2 * first * a.m, end - begin);
    drop_spoilt<T>(a, first, first + end - begin);
    return true;
  }
};

// All vectors of all channels in pieces: solve(i, begin, end) takes those of channel i, or leaves them to lanes(one), a
// batch of their own.
template <class Solver, class Lanes>
void solve_pieces(rzf_args& a, const Lanes& lanes) {
  constexpr int64_t most = 1024;
  const int64_t pieces = (a.t + most - 1) / most;
  parallel_for(a.pool, a.n * pieces, 1, [&](int64_t b, int64_t e) {
    Solver solver(a);
    for (; b < e; ++b) {
      const int64_t i = b / pieces, begin = b % pieces * most, end = begin + most < a.t ? begin + most : a.t;
      if (solver.solve(i, begin, end)) continue;
      rzf_args one = a;
      point_at(one, a, i, begin, end);
      lanes(one);
      take_notes(a, one, i * a.t + begin);
    }
  });
}

}  // namespace SF_NS
}  // namespace sf
