// Complex columns: the algebra of  R = Y - H X,  X-side adjoint  H^H R  and channel-side outer product  R X^H,
// written once. A `Col` holds some columns (time slots) of one matrix row:
//   on the CPU   pack_cols<T, W>: W/2 columns, interleaved re, im as torch stores them, no shuffles on load
//   on CUDA      one_col<T>: one column per thread
// `product<Col, Conj>` accumulates sum_m a_m * col_m with a scalar a_m (conjugated when Conj).
#pragma once
#include "lane.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct one_col {
  using real = T;
  T re, im;
  SF_HD static one_col zero() { return {T(0), T(0)}; }
  friend SF_HD one_col operator+(one_col a, one_col b) { return {a.re + b.re, a.im + b.im}; }
  friend SF_HD one_col operator-(one_col a, one_col b) { return {a.re - b.re, a.im - b.im}; }
};

template <class Col, bool Conj>
struct product;

template <class T, bool Conj>
struct product<one_col<T>, Conj> {
  one_col<T> c;
  SF_HD static product zero() { return {one_col<T>::zero()}; }
  SF_HD void add(scalar2<T> a, one_col<T> x) {
    const T im = Conj ? -a.im : a.im;
    c.re += a.re * x.re;
    c.re -= im * x.im;
    c.im += a.re * x.im;
    c.im += im * x.re;
  }
  SF_HD one_col<T> value() const { return c; }
};

#if !defined(__CUDA_ARCH__)
template <class T, int W>
struct pack_cols {
  using real = T;
  static constexpr int reals = W, columns = W / 2;
  // Of n columns in packs side by side: those of pack c.
  SF_HD static int left(int n, int c) { return n - c * columns < columns ? n - c * columns : columns; }
  pack<T, W> v;
  SF_HD static pack_cols zero() { return {pack<T, W>(T(0))}; }
  SF_HD static pack_cols load(const T* p) { return {pack<T, W>::load(p)}; }
  SF_HD static pack_cols load_first(const T* p, int n) {  // n complex columns
    return {n >= W / 2 ? pack<T, W>::load(p) : pack<T, W>::load_first(p, 2 * n)};
  }
  SF_HD void store(T* p) const { v.store(p); }
  SF_HD void stream(T* p) const { v.stream(p); }
  SF_HD void store_first(T* p, int n) const {
    if (n >= W / 2)
      v.store(p);
    else
      v.store_first(p, 2 * n);
  }
  friend SF_HD pack_cols operator+(pack_cols a, pack_cols b) { return {a.v + b.v}; }
  friend SF_HD pack_cols operator-(pack_cols a, pack_cols b) { return {a.v - b.v}; }
  friend SF_HD pack_cols operator*(pack_cols a, T s) { return {a.v * pack<T, W>(s)}; }
  friend SF_HD pack_cols conjugate(pack_cols a) { return {pack<T, W>(T(0)) - a.v * turn_signs<T, W>()}; }
};

// i z
template <class T, int W>
SF_HD pack_cols<T, W> turned(pack_cols<T, W> z) {
  return {swap_pairs(z.v) * turn_signs<T, W>()};
}

// The complex product costs two FMAs a column pack: real and imaginary parts of the scalar are accumulated apart, and
// the one multiplication by +-i happens once at the end.
template <class T, int W, bool Conj>
struct product<pack_cols<T, W>, Conj> {
  pack<T, W> a, b;
  SF_HD static product zero() { return {pack<T, W>(T(0)), pack<T, W>(T(0))}; }
  SF_HD void add(scalar2<T> s, pack_cols<T, W> x) {
    a = a + x.v * pack<T, W>(s.re);
    b = b + x.v * pack<T, W>(s.im);
  }
  SF_HD pack_cols<T, W> value() const {
    const pack_cols<T, W> ib = turned(pack_cols<T, W>{b});
    return {Conj ? a - ib.v : a + ib.v};
  }
};

// re + i im summed over the lanes: the sum over the columns of r conj(z), as two real dot products, with z and with i
// z.
template <class T, int W, int CT>
SF_HD void inner_columns(const pack_cols<T, W> (&r)[CT], const pack_cols<T, W> (&z)[CT],
                         const pack_cols<T, W> (&iz)[CT], pack<T, W>& re, pack<T, W>& im) {
  re = r[0].v * z[0].v, im = r[0].v * iz[0].v;
  SF_UNROLL
  for (int c = 1; c < CT; ++c) re = re + r[c].v * z[c].v, im = im + r[c].v * iz[c].v;
}
#endif

// Rows of a tile of up to three column packs whose two accumulators each stay in registers: 24 of 32, or 12 of 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int packed_tile_rows = 4;
#else
constexpr int packed_tile_rows = 2;
#endif

// Rows [r, end) in tiles of packed_tile_rows and one of what is left: f(rows_of_tile<N>, first row) for each.
template <int N>
struct rows_of_tile {
  static constexpr int value = N;
};
template <class F>
SF_HD void in_tiles(int64_t r, int64_t end, const F& f) {
  for (; r + packed_tile_rows <= end; r += packed_tile_rows) f(rows_of_tile<packed_tile_rows>{}, r);
  if constexpr (packed_tile_rows == 4) {
    if (r + 3 == end) return f(rows_of_tile<3>{}, r);
    if (r + 2 == end) return f(rows_of_tile<2>{}, r);
  }
  if (r < end) f(rows_of_tile<1>{}, r);
}

// p[i][c] += sum_{m<n} a(i, m) * b(m, c), with conj(a) for a conjugating product: a tile of RT rows and CT column
// packs. `a` yields scalar2, `b` yields Col.
template <class Col, bool Conj, int RT, int CT, class A, class B>
SF_HD void multiply_tile(product<Col, Conj> (&p)[RT][CT], int64_t n, const A& a, const B& b) {
  for (int64_t m = 0; m < n; ++m) {
    Col x[CT];
    SF_UNROLL
    for (int c = 0; c < CT; ++c) x[c] = b(m, c);
    SF_UNROLL
    for (int i = 0; i < RT; ++i) {
      const auto s = a(i, m);
      SF_UNROLL
      for (int c = 0; c < CT; ++c) p[i][c].add(s, x[c]);
    }
  }
}

// g(m, c) += sum_{i<RT} conj(a(i, m)) * r[i][c] for every m < n; `g` reads and writes product<Col, true>.
template <class Col, int RT, int CT, class A, class G>
SF_HD void adjoint_tile(const Col (&r)[RT][CT], int64_t n, const A& a, const G& g) {
  for (int64_t m = 0; m < n; ++m) {
    product<Col, true> q[CT];
    SF_UNROLL
    for (int c = 0; c < CT; ++c) q[c] = g.get(m, c);
    SF_UNROLL
    for (int i = 0; i < RT; ++i) {
      const auto s = a(i, m);
      SF_UNROLL
      for (int c = 0; c < CT; ++c) q[c].add(s, r[i][c]);
    }
    SF_UNROLL
    for (int c = 0; c < CT; ++c) g.set(m, c, q[c]);
  }
}

}  // namespace SF_NS
}  // namespace sf
