// exp(j 2 pi t) of packs of angles given in turns, in double precision whatever the caller's.
#pragma once
#include "../common/small_matrix.hpp"

namespace sf {
inline namespace SF_NS {

using wide_pack = pack<double, native_width<double>>;

// The nearest integer, for |t| < 2^50.
SF_HD wide_pack nearest(wide_pack t) {
  const wide_pack big(6755399441055744.0);  // 1.5 * 2^52: adding and taking it away rounds
  return (t + big) - big;
}

// To about an ulp for |t| < 2^50: the nearest quarter turn is taken off exactly, and what is left, an eighth of a turn
// at most, goes through the minimax polynomials of fdlibm.
SF_HD cx<wide_pack> unit_phase(wide_pack t) {
  using D = wide_pack;
  t = t - nearest(t);
  const D q = nearest(t * D(4.0));  // -2 .. 2
  const D x = (t - q * D(0.25)) * D(6.283185307179586477), z = x * x;
  D p = z * D(1.58969099521155010221e-10) + D(-2.50507602534068634195e-08);
  p = p * z + D(2.75573137070700676789e-06), p = p * z + D(-1.98412698298579493134e-04);
  p = p * z + D(8.33333333332248946124e-03), p = p * z + D(-1.66666666666666324348e-01);
  const D sine = x + x * z * p;
  p = z * D(-1.13596475577881948265e-11) + D(2.08757232129817482790e-09);
  p = p * z + D(-2.75573143513906633035e-07), p = p * z + D(2.48015872894767294178e-05);
  p = p * z + D(-1.38888888888741095749e-03), p = p * z + D(4.16666666666666019037e-02);
  const D cosine = D(1.0) - (z * D(0.5) - z * z * p);
  const D square = q * q, sign = D(1.0) - square * D(0.5);  // 1 for q = 0, -1 for q = +-2
  const auto odd = square == D(1.0);
  return {select(odd, D(0.0) - q * sine, sign * cosine), select(odd, q * cosine, sign * sine)};
}

// Packs of double that cover one native pack of T.
template <class T>
struct double_packs {
  static constexpr int N = native_width<T> / native_width<double>;
  cx<wide_pack> at[N];
};

template <class T>
SF_HD void unit_phases(const T* turns, double factor, double_packs<T>& out) {
  using H = typename vec_of<T, native_width<double>>::VU;
  for (int i = 0; i < double_packs<T>::N; ++i) {
    const H t = *reinterpret_cast<const H*>(turns + i * native_width<double>);
    out.at[i] = unit_phase(wide_pack(__builtin_convertvector(t, wide_pack::V)) * wide_pack(factor));
  }
}

template <class T>
SF_HD void square(double_packs<T>& w) {
  for (int i = 0; i < double_packs<T>::N; ++i) {
    const cx<wide_pack> v = w.at[i];
    w.at[i] = {v.re * v.re - v.im * v.im, (v.re + v.re) * v.im};
  }
}

// Rounded to T.
template <class T>
SF_HD cx<pack<T, native_width<T>>> narrow(const double_packs<T>& w) {
  using H = typename vec_of<T, native_width<double>>::VU;
  alignas(64) T re[native_width<T>], im[native_width<T>];
  for (int i = 0; i < double_packs<T>::N; ++i) {
    *reinterpret_cast<H*>(re + i * native_width<double>) = __builtin_convertvector(w.at[i].re.v, H);
    *reinterpret_cast<H*>(im + i * native_width<double>) = __builtin_convertvector(w.at[i].im.v, H);
  }
  return {pack<T, native_width<T>>::load(re), pack<T, native_width<T>>::load(im)};
}

}  // namespace SF_NS
}  // namespace sf
