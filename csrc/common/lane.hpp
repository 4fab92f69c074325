// The lane abstraction that lets one body serve a SIMD pack on the CPU and a thread on a GPU.
//
// `pack<T, W>` is W reals side by side. GCC, clang and nvcc's host pass all accept the vector extension. Nothing here
// includes a standard C++ header: an inline std:: function compiled for AVX-512 could be merged into baseline code.
#pragma once
#include <stdint.h>
#if defined(__AVX__) || defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__CUDACC__)
#define SF_HD __host__ __device__ __forceinline__
#define SF_UNROLL _Pragma("unroll")
#elif defined(__clang__)
#define SF_HD __attribute__((always_inline)) inline
#define SF_UNROLL _Pragma("unroll")
#else
#define SF_HD __attribute__((always_inline)) inline
#define SF_UNROLL _Pragma("GCC unroll 16")
#endif

#ifndef SF_NS
#define SF_NS portable
#endif

namespace sf {
inline namespace SF_NS {

// One lane: what a CUDA thread computes with. The pack versions below share these names.
SF_HD float square_root(float a) { return __builtin_sqrtf(a); }
SF_HD double square_root(double a) { return __builtin_sqrt(a); }
SF_HD float select(bool mask, float a, float b) { return mask ? a : b; }
SF_HD double select(bool mask, double a, double b) { return mask ? a : b; }
SF_HD bool any_lane(bool mask) { return mask; }
SF_HD constexpr float largest(float) { return 3.4028234e38f; }
SF_HD constexpr double largest(double) { return 1.7976931348623157e308; }
#if defined(__CUDA_ARCH__)  // 2 ulp and 1 ulp; the IEEE root and division would take a third of a 4 x 4 factorisation
SF_HD float inverse_root(float a) { return rsqrtf(a); }
SF_HD double inverse_root(double a) { return rsqrt(a); }
#endif

// A scalar complex number: an operand that is broadcast across lanes.
template <class T>
struct scalar2 {
  T re, im;
};

#if !defined(__CUDA_ARCH__)

// The first n lanes, n <= 16, as bits.
SF_HD uint32_t low_bits(int n) { return (1u << n) - 1; }

// {0, 1, ..., N-1} as template arguments, for shuffles.
template <int... I>
struct int_list {};
template <int N, int... I>
constexpr auto make_list() {
  if constexpr (N == 0)
    return int_list<I...>();
  else
    return make_list<N - 1, N - 1, I...>();
}

template <class T, int W>
struct vec_of {  // apart from pack: GCC would read the typedef as T inside the class template
  typedef T V __attribute__((vector_size(W * sizeof(T))));
  typedef T VU __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias));
};

// One truth value per lane.
template <class T, int W>
struct lane_mask {
  using V = typename vec_of<T, W>::V;
  using I = decltype(V{} > V{});
  I m;
  SF_HD static lane_mask greater(V a, V b) { return {a > b}; }
  SF_HD static lane_mask equal(V a, V b) { return {a == b}; }
  friend SF_HD lane_mask operator&(lane_mask a, lane_mask b) { return {a.m & b.m}; }
  friend SF_HD lane_mask operator|(lane_mask a, lane_mask b) { return {a.m | b.m}; }
  friend SF_HD lane_mask operator~(lane_mask a) { return {~a.m}; }
  SF_HD bool operator[](int i) const { return m[i] != 0; }
  SF_HD V blend(V yes, V no) const { return m ? yes : no; }
  SF_HD uint32_t bits() const {
    uint32_t b = 0;
    for (int i = 0; i < W; ++i) b |= uint32_t(m[i] & 1) << i;
    return b;
  }
  SF_HD static lane_mask from_bits(uint32_t b) {
    I r;
    for (int i = 0; i < W; ++i) r[i] = -((b >> i) & 1);
    return {r};
  }
  SF_HD bool any() const {
#if defined(__AVX2__)
    if constexpr (sizeof(I) == 32) return !_mm256_testz_si256((__m256i)m, (__m256i)m);
#endif
    bool found = false;
    for (int i = 0; i < W; ++i) found |= m[i] != 0;
    return found;
  }
};
#if defined(__AVX512F__)  // mask registers; GCC would take vector masks apart lane by lane
#define SF_MASK(T, W, word, p, cast)                                                                           \
  template <>                                                                                                  \
  struct lane_mask<T, W> {                                                                                     \
    using V = vec_of<T, W>::V;                                                                                 \
    word m;                                                                                                    \
    SF_HD static lane_mask greater(V a, V b) { return {_mm512_cmp_##p##_mask((cast)a, (cast)b, _CMP_GT_OQ)}; } \
    SF_HD static lane_mask equal(V a, V b) { return {_mm512_cmp_##p##_mask((cast)a, (cast)b, _CMP_EQ_OQ)}; }   \
    friend SF_HD lane_mask operator&(lane_mask a, lane_mask b) { return {word(a.m & b.m)}; }                   \
    friend SF_HD lane_mask operator|(lane_mask a, lane_mask b) { return {word(a.m | b.m)}; }                   \
    friend SF_HD lane_mask operator~(lane_mask a) { return {word(~a.m)}; }                                     \
    SF_HD bool operator[](int i) const { return (m >> i) & 1; }                                                \
    SF_HD V blend(V yes, V no) const { return (V)_mm512_mask_blend_##p(m, (cast)no, (cast)yes); }              \
    SF_HD uint32_t bits() const { return m; }                                                                  \
    SF_HD static lane_mask from_bits(uint32_t b) { return {word(b)}; }                                         \
    SF_HD bool any() const { return m != 0; }                                                                  \
  };
SF_MASK(float, 16, __mmask16, ps, __m512)
SF_MASK(double, 8, __mmask8, pd, __m512d)
#undef SF_MASK
#endif

template <class T, int W>
struct pack {
  using V = typename vec_of<T, W>::V;
  using VU = typename vec_of<T, W>::VU;
  V v;
  pack() = default;
  SF_HD pack(V x) : v(x) {}
  SF_HD pack(T x) : v(x - V{}) {}  // splat
  SF_HD static pack load(const T* p) { return pack(V(*reinterpret_cast<const VU*>(p))); }
  SF_HD void store(T* p) const { *reinterpret_cast<VU*>(p) = v; }
  // Around the caches; p is aligned to a whole pack.
  SF_HD void stream(T* p) const {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) return _mm512_stream_si512((__m512i*)p, (__m512i)v);
#endif
#if defined(__AVX__)
    if constexpr (sizeof(V) == 32) return _mm256_stream_si256((__m256i*)p, (__m256i)v);
#endif
#if defined(__SSE2__)
    if constexpr (sizeof(V) == 16) return _mm_stream_si128((__m128i*)p, (__m128i)v);
#endif
    store(p);
  }
  friend SF_HD pack operator+(pack a, pack b) { return pack(V(a.v + b.v)); }
  friend SF_HD pack operator-(pack a, pack b) { return pack(V(a.v - b.v)); }
  friend SF_HD pack operator*(pack a, pack b) { return pack(V(a.v * b.v)); }
  friend SF_HD pack operator/(pack a, pack b) { return pack(V(a.v / b.v)); }
  friend SF_HD lane_mask<T, W> operator>(pack a, pack b) { return lane_mask<T, W>::greater(a.v, b.v); }
  friend SF_HD lane_mask<T, W> operator==(pack a, pack b) { return lane_mask<T, W>::equal(a.v, b.v); }
  // The first n lanes; the others read as zero and are not written. Memory past them is never touched.
  SF_HD static pack load_first(const T* p, int n) {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64 && sizeof(T) == 4) return pack((V)_mm512_maskz_loadu_ps(__mmask16(low_bits(n)), p));
    if constexpr (sizeof(V) == 64 && sizeof(T) == 8) return pack((V)_mm512_maskz_loadu_pd(__mmask8(low_bits(n)), p));
#endif
    V r = V{};
    for (int i = 0; i < n; ++i) r[i] = p[i];
    return pack(r);
  }
  SF_HD void store_first(T* p, int n) const {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64 && sizeof(T) == 4) return _mm512_mask_storeu_ps(p, __mmask16(low_bits(n)), (__m512)v);
    if constexpr (sizeof(V) == 64 && sizeof(T) == 8) return _mm512_mask_storeu_pd(p, __mmask8(low_bits(n)), (__m512d)v);
#endif
    for (int i = 0; i < n; ++i) p[i] = v[i];
  }
  SF_HD T sum() const;  // fixed tree order: halves are added until one lane is left
};

template <class T>
SF_HD T sum_lanes(pack<T, 2> a) {
  return a.v[0] + a.v[1];
}
template <class T>
SF_HD T sum_lanes(pack<T, 4> a) {
  using H = pack<T, 2>;
  return sum_lanes(H(__builtin_shufflevector(a.v, a.v, 0, 1)) + H(__builtin_shufflevector(a.v, a.v, 2, 3)));
}
template <class T>
SF_HD T sum_lanes(pack<T, 8> a) {
  using H = pack<T, 4>;
  return sum_lanes(H(__builtin_shufflevector(a.v, a.v, 0, 1, 2, 3)) + H(__builtin_shufflevector(a.v, a.v, 4, 5, 6, 7)));
}
template <class T>
SF_HD T sum_lanes(pack<T, 16> a) {
  using H = pack<T, 8>;
  return sum_lanes(H(__builtin_shufflevector(a.v, a.v, 0, 1, 2, 3, 4, 5, 6, 7)) +
                   H(__builtin_shufflevector(a.v, a.v, 8, 9, 10, 11, 12, 13, 14, 15)));
}
template <class T, int W>
SF_HD T pack<T, W>::sum() const {
  return sum_lanes(*this);
}

// Swap the two reals of every complex pair.
template <class T>
SF_HD pack<T, 2> swap_pairs(pack<T, 2> a) {
  return __builtin_shufflevector(a.v, a.v, 1, 0);
}
template <class T>
SF_HD pack<T, 4> swap_pairs(pack<T, 4> a) {
  return __builtin_shufflevector(a.v, a.v, 1, 0, 3, 2);
}
template <class T>
SF_HD pack<T, 8> swap_pairs(pack<T, 8> a) {
  return __builtin_shufflevector(a.v, a.v, 1, 0, 3, 2, 5, 4, 7, 6);
}
template <class T>
SF_HD pack<T, 16> swap_pairs(pack<T, 16> a) {
  return __builtin_shufflevector(a.v, a.v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}

// {-1, +1, -1, +1, ...}: with swap_pairs, multiplication by i.
template <class T, int W>
SF_HD pack<T, W> turn_signs() {
  typename vec_of<T, W>::V r;
  for (int i = 0; i < W; ++i) r[i] = i % 2 ? T(1) : T(-1);
  return pack<T, W>(r);
}

template <class T, int W>
SF_HD pack<T, W> select(lane_mask<T, W> mask, pack<T, W> a, pack<T, W> b) {
  return pack<T, W>(mask.blend(a.v, b.v));
}
template <class T, int W>
SF_HD constexpr T largest(pack<T, W>) {
  return largest(T(0));
}
template <class T, int W>
SF_HD bool any_lane(lane_mask<T, W> mask) {
  return mask.any();
}
template <class T, int W>
SF_HD pack<T, W> square_root(pack<T, W> a) {
  typename vec_of<T, W>::V r;
  for (int i = 0; i < W; ++i) r[i] = sizeof(T) == 4 ? T(__builtin_sqrtf(float(a.v[i]))) : T(__builtin_sqrt(a.v[i]));
  return pack<T, W>(r);
}
#if defined(__AVX512F__)
SF_HD pack<float, 16> square_root(pack<float, 16> a) {
  return {(pack<float, 16>::V)_mm512_maskz_sqrt_ps(0xffff, (__m512)a.v)};
}
SF_HD pack<double, 8> square_root(pack<double, 8> a) {
  return {(pack<double, 8>::V)_mm512_maskz_sqrt_pd(0xff, (__m512d)a.v)};
}
#elif defined(__AVX2__)
SF_HD pack<float, 8> square_root(pack<float, 8> a) { return {(pack<float, 8>::V)_mm256_sqrt_ps((__m256)a.v)}; }
SF_HD pack<double, 4> square_root(pack<double, 4> a) { return {(pack<double, 4>::V)_mm256_sqrt_pd((__m256d)a.v)}; }
#endif
template <class Q>
SF_HD Q inverse_root(Q a) {
  return Q(1) / square_root(a);
}
#if defined(__AVX512F__)
// A 14-bit estimate and one Newton step, to about an ulp: the divider would take a fifth of a 4 x 4 factorisation.
SF_HD pack<float, 16> inverse_root(pack<float, 16> a) {
  using P = pack<float, 16>;
  const P r((P::V)_mm512_maskz_rsqrt14_ps(0xffff, (__m512)a.v));
  return r + r * P(0.5f) * (P(1.0f) - a * r * r);
}
#endif
// a b + c with one rounding where the instruction set has it. In a b + c d the compiler picks the product to fuse, and
// need not pick the same one in the body and in the tail of a loop: spelled out, an entry's bits depend on its values.
template <class T, int W>
SF_HD pack<T, W> fused(pack<T, W> a, pack<T, W> b, pack<T, W> c) {
  return a * b + c;
}
#if defined(__AVX512F__)
SF_HD pack<float, 16> fused(pack<float, 16> a, pack<float, 16> b, pack<float, 16> c) {
  return {(pack<float, 16>::V)_mm512_fmadd_ps((__m512)a.v, (__m512)b.v, (__m512)c.v)};
}
SF_HD pack<double, 8> fused(pack<double, 8> a, pack<double, 8> b, pack<double, 8> c) {
  return {(pack<double, 8>::V)_mm512_fmadd_pd((__m512d)a.v, (__m512d)b.v, (__m512d)c.v)};
}
#elif defined(__FMA__)
SF_HD pack<float, 8> fused(pack<float, 8> a, pack<float, 8> b, pack<float, 8> c) {
  return {(pack<float, 8>::V)_mm256_fmadd_ps((__m256)a.v, (__m256)b.v, (__m256)c.v)};
}
SF_HD pack<double, 4> fused(pack<double, 4> a, pack<double, 4> b, pack<double, 4> c) {
  return {(pack<double, 4>::V)_mm256_fmadd_pd((__m256d)a.v, (__m256d)b.v, (__m256d)c.v)};
}
#endif
// Native width in reals of this translation unit's instruction set.
#if defined(__AVX512F__)
template <class T>
constexpr int native_width = 64 / sizeof(T);
#elif defined(__AVX2__)
template <class T>
constexpr int native_width = 32 / sizeof(T);
#else
template <class T>
constexpr int native_width = 16 / sizeof(T);
#endif

// Half a native pack of floats as doubles. GCC takes the vector conversion apart into quarters.
SF_HD pack<double, native_width<double>> widen(typename vec_of<float, native_width<double>>::V h) {
#if defined(__AVX512F__)
  return {(pack<double, 8>::V)_mm512_maskz_cvtps_pd(0xff, (__m256)h)};
#else
  return {__builtin_convertvector(h, typename pack<double, native_width<double>>::V)};
#endif
}

SF_HD typename vec_of<float, native_width<double>>::V rounded_half(pack<double, native_width<double>> a) {
#if defined(__AVX512F__)
  return (typename vec_of<float, 8>::V)_mm512_maskz_cvtpd_ps(0xff, (__m512d)a.v);
#else
  return __builtin_convertvector(a.v, typename vec_of<float, native_width<double>>::V);
#endif
}

#endif  // !__CUDA_ARCH__

}  // namespace SF_NS
}  // namespace sf
