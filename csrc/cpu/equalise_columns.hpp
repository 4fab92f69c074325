// lmmse_equalise one channel at a time, lanes along columns (solve_columns.hpp); a channel that several vectors share
// becomes a filter.
#pragma once
#include "channel_filter.hpp"

namespace sf {
inline namespace SF_NS {

// In double throughout, see equalise_job. With U^H U = A, diag(G H) = v^H A^-1 v = |U^-H v|^2 in the K-form, and in the
// M-form 1 - diag(G H) = reg (A^-1)_mm = reg |U^-H e_m|^2.
template <class T>
struct equalise_columns : channel_filter<T, double> {
  using B = channel_filter<T, double>;
  using X = typename B::X;
  using Col = typename X::Col;
  using D = pack<double, X::W>;
  using B::a, B::k, B::m, B::n, B::len, B::h, B::h_ld, B::p, B::z, B::z_ld, B::s, B::factor, B::filtered;
  static constexpr int W = X::W, WC = X::WC, R = X::R;
  static constexpr double silent = 0x1p-1022;  // of a column with so little gain, nothing is known of its symbol
  rzf_args& notes;
  scratch<double> sums;
  double *gain, *rest;  // diag(G H), 1 - diag(G H) and then what that leaves of noise

  // A filter costs as much as some n / 4 vectors. Sizes alone decide, and where the batch is vectors of one channel not
  // even their number.
  static bool filters(const rzf_args& a) { return a.shared || (a.rows && 4 * a.t >= (a.m_form ? a.m : a.k)); }

  explicit equalise_columns(rzf_args& args) : B(args, filters(args)), notes(args) {
    const int64_t symbols = X::padded(m) + W;
    sums.allocate(2 * symbols);
    gain = sums, rest = gain + symbols;
  }

  // Vectors [begin, end) of channel i; false where the lanes have to look at them.
  bool solve(int64_t i, int64_t begin, int64_t end) {
    const double reg = static_cast<const T*>(a.alpha)[i / a.alpha_run];
    const bool known = B::holds(i, reg);
    if (!(reg > 0) || !B::load(i, reg)) return false;
    if (!known) make_gains(reg);
    if (!known && filtered) B::make_filter([&](int64_t j) { return per_gain(j); });
    const int64_t first = i * a.t + begin, last = i * a.t + end;
    const T* from = static_cast<const T*>(a.s) + 2 * first * k;
    T *x = static_cast<T*>(a.out_x) + 2 * first * m, *noise = static_cast<T*>(a.out_noise) + first * m;
    filtered ? B::apply(from, x, end - begin) : solve_each(from, x, end - begin);
    for (int64_t v = first; v < last; ++v, noise += m)
      for (int64_t j = 0; j < m; ++j) noise[j] = T(rest[j]);
    drop_spoilt<T>(notes, first, last);
    return true;
  }
  double per_gain(int64_t j) const { return gain[j] > silent ? 1 / gain[j] : 0; }
  void make_gains(double reg) {
    for (int64_t j = 0; j < m; j += B::most) {
      const int64_t some = m - j < B::most ? m - j : B::most;
      a.m_form ? inverse_norms(j, some, reg) : column_norms(j, some, reg);
    }
    for (int64_t j = 0; j < m; ++j) rest[j] = gain[j] > silent ? rest[j] / gain[j] : __builtin_inf();
  }
  void solve_each(const T* from, T* x, int64_t vectors) {
    for (int64_t v = 0; v < vectors; ++v, from += 2 * k, x += 2 * m) {
      const double* biased = B::solve_vector(from, 1);
      for (int64_t j = 0; j < m; ++j) {
        const double factor = per_gain(j);
        x[2 * j] = T(biased[2 * j] * factor), x[2 * j + 1] = T(-biased[2 * j + 1] * factor);
      }
    }
  }

  SF_HD static void put_sums(D squares, double* out, int64_t left) {  // re^2 + im^2 of every column
    const D both = squares + swap_pairs(squares);
    for (int i = 0; i < WC && i < left; ++i) out[i] = both.v[2 * i];
  }
  // |u|^2 of the columns u = U^-H z of packs [c, c + CT)
  template <int CT>
  void norms(int c, int from, double* out, int64_t left) {
    D sum[CT];
    for (int q = 0; q < CT; ++q) sum[q] = D(0.0);
    factor.template down<CT>(z, z_ld, c, from, [&](int q, Col v) SF_LAMBDA { sum[q] = sum[q] + v.v * v.v; });
    for (int q = 0; q < CT; ++q) put_sums(sum[q], out + q * WC, left - q * WC);
  }
  void column_norms(int64_t j, int64_t some, double reg) {
    X::place(z, z_ld, factor.rows, h + 2 * j, n, some, h_ld / 2, 1, false);
    X::each_tile(0, X::packs(some),
                 [&](auto ct, int c) SF_LAMBDA { norms<decltype(ct)::value>(c, 0, gain + j + c * WC, some - c * WC); });
    for (int64_t i = j; i < j + some; ++i) {
      double norm = 0;
      for (int64_t r = 0; r < n; ++r) {
        const double* entry = h + r * h_ld + 2 * i;
        norm += entry[0] * entry[0] + entry[1] * entry[1];
      }
      rest[i] = left_by(gain[i], reg, norm);
    }
  }
  void inverse_norms(int64_t j, int64_t some, double reg) {
    X::each_tile(0, X::packs(some), [&](auto ct, int c) SF_LAMBDA {
      constexpr int CT = decltype(ct)::value;
      const int from = int(j + c * WC) / R * R;  // the rows above stay zero
      for (int i = 0; i < factor.rows; ++i)
        for (int q = 0; q < CT * W; ++q) z[i * z_ld + c * W + q] = i == j + c * WC + q / 2 && q % 2 == 0 ? 1.0 : 0.0;
      norms<CT>(c, from, rest + j + c * WC, some - c * WC);
    });
    bool quiet = false;  // 1 - rest would lose digits that the result has
    for (int64_t i = j; i < j + some; ++i) {
      rest[i] *= reg, gain[i] = 1 - rest[i];
      quiet = quiet || !(gain[i] > (sizeof(T) == 4 ? 0x1p-20 : 0.5));
    }
    if (quiet) quiet_gains(j, some);
  }
  // diag(A^-1 V V^H) = (U^-H e_m)^H (U^-H V V^H e_m), whose second factor is as small as the column
  void quiet_gains(int64_t j, int64_t some) {
    const int packs = X::packs(some);
    X::adjoint_product(
        p, h_ld, factor.rows, p + 2 * j, h_ld, packs, len, [](int64_t) SF_LAMBDA { return 0; },
        [&](int64_t i, int c, Col v) SF_LAMBDA { v.store(s + i * z_ld + c * W); });
    X::each_tile(0, packs, [&](auto ct, int c) SF_LAMBDA {
      constexpr int CT = decltype(ct)::value;
      factor.template down<CT>(s, z_ld, c, 0, [](int, Col) SF_LAMBDA {});
      for (int q = 0; q < CT; ++q) {
        D sum(0.0);
        for (int i = 0; i < factor.rows; ++i) {
          const int64_t at = i * z_ld + (c + q) * W;
          sum = sum + D::load(z + at) * D::load(s + at);
        }
        put_sums(sum, gain + j + (c + q) * WC, some - (c + q) * WC);
      }
    });
  }
};

}  // namespace SF_NS
}  // namespace sf
