// rzf_precode and lmmse_equalise one channel at a time, lanes along columns (factor_columns.hpp): for narrow sides that
// fill the lanes by themselves, where a pack of channels side by side would not stay in cache. The arithmetic is chosen
// as in regularised.hpp, from the channel's own entries. solve() returns false for a channel whose regulariser is
// within rounding of zero, whose factor has a failing pivot or whose result is not finite: the lanes of regularised.hpp
// serve those, and say what was wrong with them.
#pragma once
#include "factor_columns.hpp"
#include "packs.hpp"
#include "regularised.hpp"
#include "square_sums.hpp"

namespace sf {
inline namespace SF_NS {

// A narrow side of 8 to 24 does not fill the lanes as well: precoding takes them with enough right-hand sides, where a
// pack of channels and its results would not fit in the first-level cache. Sizes alone decide.
inline bool solve_columns_serves(const rzf_args& a) {
  const int64_t n = a.m_form ? a.m : a.k;
  return n > 24 || (n >= 8 && a.t >= 8 && a.k * a.m * a.t >= (n > 16 ? 4096 : 8192));
}
inline bool equalise_columns_serves(const rzf_args& a) { return a.m_form ? a.m >= 8 : a.k > 8; }

// Channels [begin, end): solve(i) takes one or leaves it, lanes(first, last) gets every run of those left.
template <class Solve, class Lanes>
void solve_or_leave(int64_t begin, int64_t end, const Solve& solve, const Lanes& lanes) {
  const auto leave_until = [&](int64_t i) {
    if (begin < i) lanes(begin, i);
  };
  for (int64_t i = begin; i < end; ++i)
    if (solve(i)) leave_until(i), begin = i + 1;
  leave_until(end);
}

// Channels of type T in arithmetic Q, for `sides` right-hand sides.
template <class T, class Q>
struct channel_columns {
  using X = column_tiles<Q>;
  using Col = typename X::Col;
  static constexpr int W = X::W, WC = X::WC;
  static constexpr int64_t most = 128;  // right-hand sides at a time

  const rzf_args& a;
  const int64_t k, m, t, n, len, sides, h_own, p_ld, z_ld;
  scratch<Q> memory;
  Q *h_copy, *p_copy, *s, *z, *w, *y, *spare;  // w, y, spare: vectors
  const Q *h, *p;                              // rows of the channel, and of V^H
  int64_t h_ld;
  const T* kept = nullptr;  // the channel whose factor is at hand, and its regulariser
  Q kept_reg = 0;
  column_factor<Q> factor;

  static int64_t larger(int64_t i, int64_t j) { return i > j ? i : j; }

  channel_columns(const rzf_args& args, int64_t right_sides)
      : a(args),
        k(a.k),
        m(a.m),
        t(a.t),
        n(a.m_form ? m : k),
        len(a.m_form ? k : m),
        sides(right_sides),
        h_own(sizeof(T) == sizeof(Q) && m == X::padded(m) ? 0 : X::row_reals(m)),
        p_ld(a.m_form ? 0 : X::row_reals(n)),
        z_ld(X::row_reals(sides < most ? sides : most)),
        h_ld(h_own ? h_own : 2 * m),
        factor(n) {}

  void allocate() {
    const int64_t vector = 2 * X::padded(larger(k, m)) + W, s_rows = a.s && a.m_form ? larger(k, X::padded(n)) : 0;
    const int64_t counts[] = {k * h_own, m * p_ld, s_rows * z_ld, X::padded(n) * z_ld, vector, vector, vector};
    int64_t all = column_factor<Q>::reals(n);
    for (int64_t c : counts) all += c + W;
    memory.allocate(all);
    Q *at = memory, **parts[] = {&h_copy, &p_copy, &s, &z, &w, &y, &spare};
    for (int i = 0; i < 7; ++i) *parts[i] = at, at += (counts[i] + W - 1) / W * W;
    factor.use(at);
  }

  const T* channel(int64_t i) const { return static_cast<const T*>(a.h) + 2 * i * a.h_b; }
  bool holds(int64_t i, Q reg) const { return kept == channel(i) && kept_reg == reg; }

  // H and V^H of channel i, and the factor of its Gram matrix; false where the lanes have to look at it
  bool load(int64_t i, Q reg) {
    const T* from = channel(i);
    if (holds(i, reg)) return true;
    kept = nullptr;
    if (!memory) allocate();
    h = reinterpret_cast<const Q*>(from);
    if (h_own) X::place(h_copy, h_own, k, from, k, m, m, 1, false), h = h_copy;
    p = h;
    if (!a.m_form) X::place(p_copy, p_ld, m, h, m, k, 1, h_ld / 2, true), p = p_copy;
    const bool more = a.h_b != 0 && i + 1 < a.n;
    factor.gram(p, a.m_form ? h_ld : p_ld, len, reinterpret_cast<const char*>(from + 2 * a.h_b),
                more ? 2 * k * m * int64_t(sizeof(T)) : 0);
    const Q top = factor.top(reg),
            bound = sizeof(Q) == 8 ? top * Q(singular_tolerance(int(n), sizeof(T) == 4)) : top - top;
    if (!(reg > bound && factor.factor(reg))) return false;
    kept = from, kept_reg = reg;
    return true;
  }

  // conj(x) for the right-hand side c[0], c[stride], ...: A^-1 H^H c in the M-form, H^H A^-1 c in the K-form
  const Q* solve_vector(const T* c, int64_t stride) {
    X::place(w, 0, 1, c, 1, k, 0, stride, true);
    if (a.m_form) X::combine_rows(h, h_ld, k, factor.last, w, spare);
    factor.solve_vector(a.m_form ? spare : w, y);
    if (!a.m_form) X::combine_rows(h, h_ld, k, X::packs(m), y, spare);
    return a.m_form ? y : spare;
  }
};

// Is the regulariser of channel i large enough for the type of the data?
template <class T>
bool is_plain(const rzf_args& a, int64_t i, T reg) {
  const T* h = static_cast<const T*>(a.h) + 2 * i * a.h_b;
  const int64_t n = a.m_form ? a.m : a.k;
  return sizeof(T) == 8 || reg > 1e-3 * (reg + square_sum(h, 2 * a.k * a.m) / double(n));
}

template <class T, class Q>
struct precode_solver : channel_columns<T, Q> {
  using B = channel_columns<T, Q>;
  using X = typename B::X;
  using Col = typename X::Col;
  using B::a, B::k, B::m, B::t, B::n, B::h, B::h_ld, B::z, B::z_ld, B::sides, B::factor;
  static constexpr int W = X::W, WC = X::WC;
  const bool apart;  // one vector after another where together they would leave most of a pack empty
  explicit precode_solver(const rzf_args& args)
      : B(args, args.s || args.m_form ? args.t : args.m), apart(args.s && (args.t == 1 || 2 * args.t < WC)) {}

  bool solve(int64_t i, Q reg) {
    if (!B::load(i, reg)) return false;
    const T* from = a.s ? static_cast<const T*>(a.s) + 2 * i * k * t : nullptr;
    T* out = static_cast<T*>(a.out_x) + 2 * i * m * t;
    if (apart)
      for (int64_t j = 0; j < t; ++j) vector(from, out, j);
    else
      for (int64_t j = 0; j < sides; j += B::most) chunk(from, out, j, sides - j < B::most ? sides - j : B::most);
    return first_spoilt(out, 0, 1, 2 * m * t) < 0;
  }

  void vector(const T* from, T* out, int64_t j) {
    const Q* x = B::solve_vector(from + 2 * (a.rows ? j * k : j), a.rows ? 1 : t);
    T* to = out + 2 * (a.rows ? j * m : j);
    if (a.rows || t == 1)
      for (int64_t c = 0; c < m; c += WC) X::put(conjugate(Col::load(x + 2 * c)), to + 2 * c, m - c);
    else
      for (int64_t c = 0; c < m; ++c) to[2 * c * t] = T(x[2 * c]), to[2 * c * t + 1] = T(-x[2 * c + 1]);
  }

  // Right-hand sides [j, j + some), lanes along them.
  void chunk(const T* from, T* out, int64_t j, int64_t some) {
    const int packs = X::packs(some);
    if (!from)
      unit_symbols(j, some);
    else
      symbols(from + 2 * (a.rows ? j * k : j), some, packs);
    factor.solve(z, z_ld, packs);
    if (!from && !a.m_form)
      column_tiles<T>::turn(out + 2 * j * k, 2 * k, z, some, k, 1, z_ld / 2, true);
    else if (a.m_form && a.rows)
      column_tiles<T>::turn(out + 2 * j * m, 2 * m, z, some, m, 1, z_ld / 2, false);
    else if (a.m_form)
      for (int64_t i = 0; i < m; ++i)
        for (int64_t c = 0; c < some; c += WC)
          X::put(Col::load(z + i * z_ld + 2 * c), out + 2 * (i * t + j + c), some - c);
    else if (a.rows)
      X::adjoint_product(
          z, z_ld, X::padded(some), h, h_ld, X::packs(m), k, [](int64_t) SF_LAMBDA { return 0; },
          [&](int64_t i, int c, Col v) SF_LAMBDA {
            if (i < some) X::put(conjugate(v), out + 2 * ((j + i) * m + c * WC), m - c * WC);
          });
    else
      X::adjoint_product(
          h, h_ld, X::padded(m), z, z_ld, packs, k, [](int64_t) SF_LAMBDA { return 0; },
          [&](int64_t i, int c, Col v) SF_LAMBDA {
            if (i < m) X::put(v, out + 2 * (i * t + j + c * WC), some - c * WC);
          });
  }
  void unit_symbols(int64_t j, int64_t some) {  // H in the K-form, whose solution is then x^H, and H^H in the M-form
    if (a.m_form)
      X::place(z, z_ld, factor.rows, h + j * h_ld, n, some, 1, h_ld / 2, true);
    else
      X::place(z, z_ld, factor.rows, h + 2 * j, n, some, h_ld / 2, 1, false);
  }
  void symbols(const T* from, int64_t some, int packs) {  // s in the K-form, H^H s in the M-form
    X::place(a.m_form ? B::s : z, z_ld, a.m_form ? k : factor.rows, from, k, some, a.rows ? 1 : t, a.rows ? k : 1,
             false);
    if (!a.m_form) return;
    X::adjoint_product(
        h, h_ld, factor.rows, B::s, z_ld, packs, k, [](int64_t) SF_LAMBDA { return 0; },
        [&](int64_t i, int c, Col v) SF_LAMBDA { v.store(z + i * z_ld + c * W); });
  }
};

template <class T>
struct precode_columns {
  rzf_args& a;
  precode_solver<T, T> plain;
  precode_solver<T, double> exact;
  explicit precode_columns(rzf_args& args) : a(args), plain(args), exact(args) {}

  bool solve(int64_t i) {
    const T reg = static_cast<const T*>(a.alpha)[i / a.alpha_run];
    if (!(reg > T(0)) || !(is_plain(a, i, reg) ? plain.solve(i, reg) : exact.solve(i, double(reg)))) return false;
    const int64_t samples = a.info ? a.rows ? a.t : 1 : 0;
    for (int64_t j = 0; j < samples; ++j) a.info[i * samples + j] = 0;
    return true;
  }
};

}  // namespace SF_NS
}  // namespace sf
