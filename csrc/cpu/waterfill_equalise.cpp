// f = w y with w = h*/(|h| sqrt(|h|^2 + sigma^2)) and d = sigma^2/(|h|^2 + sigma^2), sigma^2 = noise_var/2. Channel and
// noise are scaled by the larger of the two, so that no square overflows or vanishes.
#include "waterfill.hpp"

namespace sf {
inline namespace SF_NS {

template <class Q>
struct equaliser {
  Q re, im, d;  // of w, and the noise level
  // sigma >= 0; |h| = 0 takes phase 1; both zero (nothing sent, nothing added): w = 0, d = 1
  SF_HD static equaliser from(Q hr, Q hi, Q sigma) {
    const Q zero(0), one(1);
    const Q ar = select(zero > hr, zero - hr, hr), ai = select(zero > hi, zero - hi, hi);
    const Q peak = select(ar > ai, ar, ai), silent = select(peak > zero, zero, one);
    const Q ur = hr / (peak + silent) + silent, ui = hi / (peak + silent);  // the larger part is 1
    const Q square = fused(ur, ur, ui * ui), over = inverse_root(square), gain = peak * (square * over);
    const Q top = select(gain > sigma, gain, sigma), nothing = select(top > zero, zero, one);
    const Q scale = one / (top + nothing), a = gain * scale, s = sigma * scale;
    const Q root = inverse_root(fused(a, a, fused(s, s, nothing))), w = over * root * scale, share = s * root;
    const Q level = share * share;
    return {select(nothing > zero, zero, w * ur), select(nothing > zero, zero, zero - w * ui),
            select(silent > zero, one, select(level > one, one, level))};
  }
};

// Real and imaginary parts of n complex entries, in scratch.
template <class T>
SF_HD void split(const T* p, int64_t n, T* re, T* im) {
  for (int64_t i = 0; i < n; ++i) re[i] = p[2 * i], im[i] = p[2 * i + 1];
}

template <class T>
bool equalise_run(const equalise_args& a, int64_t row, int64_t first, int64_t n) {
  using P = native<T>;
  alignas(64) T yr[symbol_run], yi[symbol_run], hr[symbol_run], hi[symbol_run];
  const T* y = static_cast<const T*>(a.y) + 2 * (row * a.m + first);
  const T* h = static_cast<const T*>(a.h) + 2 * (row * a.h_row + first * a.h_symbol);
  const double noise_var = at(a.noise_var, 0, row, 0);
  const P sigma = T(__builtin_sqrt(noise_var / 2));
  T *f = static_cast<T*>(a.f) + row * 2 * a.m + first, *d = static_cast<T*>(a.d) + row * a.m + first;
  split(y, n, yr, yi);
  if (a.h_symbol) split(h, n, hr, hi);
  const auto shared = equaliser<P>::from(P(h[0]), P(h[1]), sigma);
  P bad = T(0);
  each_pack<T>(n, [&](int64_t i, int m) SF_LAMBDA {
    const P u = get(yr + i, m), v = get(yi + i, m);
    const auto w = a.h_symbol ? equaliser<P>::from(get(hr + i, m), get(hi + i, m), sigma) : shared;
    const P re = fused(w.re, u, P(T(0)) - w.im * v), im = fused(w.re, v, w.im * u);
    bad = bad + first_lanes<T>((re - re) + (im - im) + (w.d - w.d), m);
    put(f + i, re, m), put(f + a.m + i, im, m), put(d + i, w.d, m);
  });
  return bad.sum() == T(0) && noise_var >= 0 && noise_var - noise_var == 0;
}

template <class T>
void run_equalise(equalise_args& a) {
  a.bad = -1;
  const int64_t runs = (a.m + symbol_run - 1) / symbol_run;
  parallel_for(a.pool, a.rows * runs, 8192 / (a.m < symbol_run ? a.m + 1 : symbol_run) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t j = begin; j < end; ++j) {
                   const int64_t row = j / runs, first = j % runs * symbol_run;
                   const int64_t n = a.m - first < symbol_run ? a.m - first : symbol_run;
                   if (!equalise_run<T>(a, row, first, n)) note_lowest(a.bad, row);
                 }
               });
}

void waterfill_equalise(equalise_args& a) { a.is_double ? run_equalise<double>(a) : run_equalise<float>(a); }

}  // namespace SF_NS
}  // namespace sf
