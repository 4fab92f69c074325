// Philox4x32-10 and Box-Muller over lanes of counters.
//
// Key = (seed low, seed high); counter = (i/4, step, item, stream); i = row-major real index inside an item. One lane
// is one counter in a 64-bit slot: the 32x32 -> 64 multiply needs no shuffles there. u = ((w>>8) + 0.5) 2^-24 has 25
// bits, so in single precision ln u is log1p(-(1-u)) with the exact 1-u for u >= 1/2, and the angle comes from the
// exact centred integer; normals then agree with float64 to 2e-6 absolute, element by element.
#pragma once
#include "lane.hpp"

namespace sf {
inline namespace SF_NS {

#if !defined(__CUDA_ARCH__)

template <int N>  // N counters
struct counters {
  typedef uint64_t V __attribute__((vector_size(N * 8)));
};

// Product of the low 32 bits of every 64-bit lane.
template <int N>
SF_HD typename counters<N>::V multiply_low32(typename counters<N>::V a, uint32_t b) {
  using V = typename counters<N>::V;
#if defined(__AVX512F__)
  if constexpr (N == 8) return (V)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#endif
#if defined(__AVX2__)
  if constexpr (N == 4) return (V)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#endif
#if defined(__SSE2__)
  if constexpr (N == 2) return (V)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#endif
  return (a & 0xffffffffull) * uint64_t(b);
}

struct philox_counter {
  uint32_t key0, key1, step, item, stream;
};

// N counters from `first` on.
template <int N>
SF_HD typename counters<N>::V consecutive(uint64_t first) {
  typename counters<N>::V c;
  SF_UNROLL
  for (int i = 0; i < N; ++i) c[i] = first + i;
  return c;
}

// Four words per counter c0, each in the low half of its lane; high halves are garbage.
template <int N>
SF_HD void philox_rounds(const philox_counter& at, typename counters<N>::V c0, typename counters<N>::V (&w)[4]) {
  using V = typename counters<N>::V;
  V c1 = V{} + at.step, c2 = V{} + at.item, c3 = V{} + at.stream;
  uint32_t k0 = at.key0, k1 = at.key1;
  SF_UNROLL
  for (int round = 0; round < 10; ++round) {
    const V p0 = multiply_low32<N>(c0, 0xD2511F53u), p1 = multiply_low32<N>(c2, 0xCD9E8D57u);
    c0 = (p1 >> 32) ^ c1 ^ uint64_t(k0);
    c2 = (p0 >> 32) ^ c3 ^ uint64_t(k1);
    c1 = p1, c3 = p0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  w[0] = c0, w[1] = c1, w[2] = c2, w[3] = c3;
}

// Words stored word-major: words[j * N + lane]; used by the scalar double path.
template <int N>
SF_HD void philox_words(const philox_counter& at, typename counters<N>::V c0, uint32_t* words) {
  typename counters<N>::V w[4];
  philox_rounds<N>(at, c0, w);
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < N; ++i) words[j * N + i] = uint32_t(w[j][i]);
}

// ---- single precision, W lanes ------------------------------------------------------------------------------------

template <int W>
struct floats {
  typedef float V __attribute__((vector_size(W * 4)));
  typedef int32_t I __attribute__((vector_size(W * 4)));
};

// ln u for u = (2k+1) 2^-25, k in [0, 2^24): relative accuracy of a few units over the whole range.
template <int W>
SF_HD typename floats<W>::V log_uniform(typename floats<W>::I k) {
  using V = typename floats<W>::V;
  using I = typename floats<W>::I;
  const I upper = k >= (1 << 23);                               // u >= 1/2: work with v = 1-u, exact
  const I odd = upper ? ((1 << 25) - 1 - 2 * k) : (2 * k + 1);  // < 2^24, so exact as a float
  const V x = __builtin_convertvector(odd, V) * 0x1p-25f;
  // lower half: u = 2^e m with m in [sqrt(1/2), sqrt(2)), f = m - 1; upper half: e = 0, f = -v in (-1/2, 0)
  const I bits = (I)x;
  const I shifted = bits - 0x3f3504f3;
  const I exponent = shifted >> 23;
  const V m = (V)(bits - (exponent << 23));
  const V e = upper ? V{} : __builtin_convertvector(exponent, V);
  // ln(1+f) = 2 atanh(s), s = f/(2+f), |s| <= 1/3
  const V f = upper ? -x : m - 1.0f;
  const V s = f / (f + 2.0f), z = s * s;
  V p = z * 0.23239018f + 0.21703323f;  // (2 atanh(s)/s - 2)/s^2, Chebyshev fit: relative error 4e-10 over |s| <= 1/3
  p = p * z + 0.28592583f;
  p = p * z + 0.39999701f;
  p = p * z + 0.66666667f;
  const V log_m = s * 2.0f + s * z * p;
  return e * 0.693147182f + (log_m + e * -1.90465421e-9f);
}

// sin and cos of 2 pi u for u = (2k+1) 2^-25: quadrant from the top bits, remainder exact, |angle| <= pi/4.
template <int W>
SF_HD void sincos_uniform(typename floats<W>::I k, typename floats<W>::V& sine, typename floats<W>::V& cosine) {
  using V = typename floats<W>::V;
  using I = typename floats<W>::I;
  const I a = 2 * k + 1;
  const I quadrant = (a + (1 << 22)) >> 23;
  const I centred = a - (quadrant << 23);                            // in [-2^22, 2^22)
  const V x = __builtin_convertvector(centred, V) * 1.87253514e-7f;  // 2 pi 2^-25
  const V z = x * x;
  const V s = x + x * z * (z * (z * -1.9515295891e-4f + 8.3321608736e-3f) - 1.6666654611e-1f);
  const V c =
      1.0f - 0.5f * z + z * z * (z * (z * 2.443315711809948e-5f - 1.388731625493765e-3f) + 4.166664568298827e-2f);
  const I swap = (quadrant & 1) != 0;
  const V s1 = swap ? c : s, c1 = swap ? s : c;
  sine = (V)((I)s1 ^ ((quadrant & 2) << 30));
  cosine = (V)((I)c1 ^ (((quadrant + 1) & 2) << 30));
}

template <int W>
SF_HD typename floats<W>::V square_root(typename floats<W>::V a) {
  typename floats<W>::V r;
  for (int i = 0; i < W; ++i) r[i] = __builtin_sqrtf(a[i]);
  return r;
}

// Low words of two counter packs as one pack of int32 (each >> 8).
template <int W>
SF_HD typename floats<W>::I uniform_bits(typename counters<W / 2>::V a, typename counters<W / 2>::V b) {
  using I = typename floats<W>::I;
#if defined(__clang__)
  I r;
  for (int i = 0; i < W / 2; ++i) r[i] = int32_t(uint32_t(a[i]) >> 8), r[i + W / 2] = int32_t(uint32_t(b[i]) >> 8);
  return r;
#else
  I even;  // the low words, on a little-endian machine
  for (int i = 0; i < W; ++i) even[i] = 2 * i;
  return (__builtin_shuffle((I)a, (I)b, even) >> 8) & 0xffffff;
#endif
}

// {a0 b0 a1 b1 ...}: the lower and the upper half of two interleaved packs.
template <int W>
SF_HD void interleave(typename floats<W>::V a, typename floats<W>::V b, typename floats<W>::V& lower,
                      typename floats<W>::V& upper) {
#if defined(__clang__)
  for (int i = 0; i < W; ++i) lower[i] = (i % 2 ? b : a)[i / 2], upper[i] = (i % 2 ? b : a)[i / 2 + W / 2];
#else
  typename floats<W>::I low, high;
  for (int i = 0; i < W; ++i) low[i] = (i % 2) * W + i / 2, high[i] = low[i] + W / 2;
  lower = __builtin_shuffle(a, b, low), upper = __builtin_shuffle(a, b, high);
#endif
}

// Counters evaluated together, and their normals: out[4k .. 4k+4) = scale * normals of counter k of the group.
template <class T>
constexpr int counter_group = native_width<T>;

SF_HD void group_normals(const philox_counter& at, typename counters<native_width<float> / 2>::V first,
                         typename counters<native_width<float> / 2>::V second, float scale, float* out) {
  constexpr int W = native_width<float>, N = W / 2;
  using V = typename floats<W>::V;
  typename counters<N>::V a[4], b[4];
  philox_rounds<N>(at, first, a);
  philox_rounds<N>(at, second, b);
  V lanes[4];
  for (int pair = 0; pair < 2; ++pair) {
    const V radius = square_root<W>(log_uniform<W>(uniform_bits<W>(a[2 * pair], b[2 * pair])) * -2.0f) * scale;
    V sine, cosine;
    sincos_uniform<W>(uniform_bits<W>(a[2 * pair + 1], b[2 * pair + 1]), sine, cosine);
    lanes[2 * pair] = radius * cosine, lanes[2 * pair + 1] = radius * sine;
  }
  V even[2], odd[2], quad[2];  // lanes 0 and 2, lanes 1 and 3, then all four: one counter's normals side by side
  interleave<W>(lanes[0], lanes[2], even[0], even[1]);
  interleave<W>(lanes[1], lanes[3], odd[0], odd[1]);
  for (int half = 0; half < 2; ++half) {
    interleave<W>(even[half], odd[half], quad[0], quad[1]);
    pack<float, W>(quad[0]).store(out + 2 * half * W);
    pack<float, W>(quad[1]).store(out + (2 * half + 1) * W);
  }
}

// Double precision keeps the same words; accuracy there is libm's.
inline void group_normals(const philox_counter& at, typename counters<native_width<double>>::V c, double scale,
                          double* out) {
  constexpr int N = native_width<double>;
  uint32_t w[4 * N];
  philox_words<N>(at, c, w);
  for (int i = 0; i < N; ++i)
    for (int pair = 0; pair < 2; ++pair) {
      const double u0 = ((w[2 * pair * N + i] >> 8) + 0.5) * 0x1p-24,
                   u1 = ((w[(2 * pair + 1) * N + i] >> 8) + 0.5) * 0x1p-24;
      const double radius = __builtin_sqrt(-2 * __builtin_log(u0)) * scale, angle = 6.283185307179586477 * u1;
      out[4 * i + 2 * pair] = radius * __builtin_cos(angle);
      out[4 * i + 2 * pair + 1] = radius * __builtin_sin(angle);
    }
}

struct nothing_between {
  SF_HD void operator()(int64_t) const {}
};

// out[0 .. 4*quads) = scale * normals of counters first .. first+quads; room for a whole group past the end is needed.
// between(q) is called after every group, so that a caller can have memory fetched while the arithmetic runs.
template <class Between = nothing_between>
SF_HD void normals(const philox_counter& at, uint64_t first, int64_t quads, float scale, float* out,
                   const Between& between = {}) {
  constexpr int W = counter_group<float>, N = W / 2;
  for (int64_t q = 0; q < quads; q += W) {
    group_normals(at, consecutive<N>(first + q), consecutive<N>(first + q + N), scale, out + 4 * q);
    between(q);
  }
}
template <class Between = nothing_between>
inline void normals(const philox_counter& at, uint64_t first, int64_t quads, double scale, double* out,
                    const Between& between = {}) {
  constexpr int N = counter_group<double>;
  for (int64_t q = 0; q < quads; q += N) {
    group_normals(at, consecutive<N>(first + q), scale, out + 4 * q);
    between(q);
  }
}

// Only the counters first + list[k], k < count, each at its own place out[4*list[k] ..]; the list is readable for a group
// past its end.
template <class T, class Between>
inline void normals_of(const philox_counter& at, uint64_t first, const uint64_t* list, int64_t count, T scale, T* out,
                       const Between& between) {
  constexpr int W = counter_group<T>, N = sizeof(T) == 4 ? W / 2 : W;
  typedef uint64_t U __attribute__((vector_size(N * 8), aligned(8), may_alias));
  T group[4 * W] __attribute__((aligned(64)));
  for (int64_t k = 0; k < count; k += W) {
    const int m = count - k < W ? int(count - k) : W;
    const typename counters<N>::V c = *reinterpret_cast<const U*>(list + k) + first;
    if constexpr (sizeof(T) == 4)
      group_normals(at, c, *reinterpret_cast<const U*>(list + k + N) + first, scale, group);
    else
      group_normals(at, c, scale, group);
    for (int i = 0; i < m; ++i) __builtin_memcpy(out + 4 * list[k + i], group + 4 * i, 4 * sizeof(T));
    between(k);
  }
}

#endif  // !__CUDA_ARCH__

}  // namespace SF_NS
}  // namespace sf
