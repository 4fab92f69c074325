// h(f) = sum_p gains_p exp(-j 2 pi f tau_p). Rows that share delays share a table of phases, one block of frequencies
// at a time; frequencies are the SIMD direction, so nothing larger than that table exists beside the result.
#include "../common/kernels.hpp"
#include "../common/philox.hpp"
#include "parallel.hpp"
#include "scratch.hpp"
#include "turns.hpp"

namespace sf {
inline namespace SF_NS {

// exp(-j 2 pi tau f) for one pack of frequencies. Single precision takes the angle on a grid of 2^-24 turns, half an
// ulp of 1, and t - t with it: integers have no NaN.
SF_HD cx<pack<float, native_width<float>>> unit_phase(double tau, const double* f, float) {
  constexpr int W = native_width<float>, WD = native_width<double>;
  using half_i = int32_t __attribute__((vector_size(WD * 4), aligned(4), may_alias));
  using half_f = float __attribute__((vector_size(WD * 4), aligned(4), may_alias));
  typename floats<W>::I k;
  typename floats<W>::V spoilt;
  for (int h = 0; h < W / WD; ++h) {
    const wide_pack all = wide_pack(tau) * wide_pack::load(f + h * WD), t = all - nearest(all) + wide_pack(1.0);
    reinterpret_cast<half_i*>(&k)[h] = __builtin_convertvector((t * wide_pack(16777216.0)).v, half_i);
    reinterpret_cast<half_f*>(&spoilt)[h] = __builtin_convertvector((t - t).v, half_f);
  }
  typename floats<W>::V sine, cosine;
  sincos_uniform<W>(k, sine, cosine);
  return {pack<float, W>(typename pack<float, W>::V(cosine + spoilt)),
          pack<float, W>(typename pack<float, W>::V(-sine))};
}
SF_HD cx<wide_pack> unit_phase(double tau, const double* f, double) {
  const cx<wide_pack> w = unit_phase(wide_pack(tau) * wide_pack::load(f));
  return {w.re, wide_pack(0.0) - w.im};
}

template <class T>
struct path_sum {
  static constexpr int W = native_width<T>, B = 4;  // B packs of frequencies share the broadcast of a gain
  using P = pack<T, W>;
  cir_args& a;

  void phases(const T* delays, int64_t f0, cx<P>* table) const {
    alignas(64) double f[B * W];
    for (int i = 0; i < B * W; ++i) f[i] = a.frequencies[f0 + i < a.f ? f0 + i : a.f - 1];
    for (int64_t p = 0; p < a.p; ++p)
      for (int b = 0; b < B; ++b) table[p * B + b] = unit_phase(double(delays[p * a.delay_p]), f + b * W, T(0));
  }

  void row(const cx<P>* table, int64_t r, int64_t f0) const {
    const T* g = static_cast<const T*>(a.gains) + 2 * a.gain_at[r];
    cx<P> h[B];
    for (int b = 0; b < B; ++b) h[b] = {P(T(0)), P(T(0))};
    for (int64_t p = 0; p < a.p; ++p) {
      const cx<P> gain = {P(g[2 * p * a.gain_p]), P(g[2 * p * a.gain_p + 1])};
    SF_UNROLL
      for (int b = 0; b < B; ++b) add(h[b], gain, table[p * B + b]);
    }
    T* out = static_cast<T*>(a.out) + 2 * (a.out_at[r] + f0 * a.out_f);
    P spoilt(T(0));
    const int64_t left = a.f - f0 < B * W ? a.f - f0 : B * W;
    for (int b = 0; b < B; ++b) {
      spoilt = spoilt + (h[b].re - h[b].re) + (h[b].im - h[b].im);
      for (int i = 0; i < W && b * W + i < left; ++i) {
        out[2 * (b * W + i) * a.out_f] = h[b].re.v[i];
        out[2 * (b * W + i) * a.out_f + 1] = h[b].im.v[i];
      }
    }
    if (!(spoilt.sum() == T(0))) note_lowest(a.bad, r);
  }

  void run() const {
    a.bad = -1;
    const int64_t groups = a.rows / a.group;
    parallel_for(a.pool, groups, 1 + 65536 / (a.group * a.f * a.p + 1), [&](int64_t begin, int64_t end) {
      const scratch<cx<P>> table(a.p * B);
      for (int64_t g = begin; g < end; ++g)
        for (int64_t f0 = 0; f0 < a.f; f0 += B * W) {
          phases(static_cast<const T*>(a.delays) + a.delay_at[g], f0, table);
          for (int64_t r = g * a.group; r < (g + 1) * a.group; ++r) row(table, r, f0);
        }
    });
  }
};

void cir_to_ofdm(cir_args& a) { a.is_double ? path_sum<double>{a}.run() : path_sum<float>{a}.run(); }

}  // namespace SF_NS
}  // namespace sf
