// How every CUDA kernel here is written, so that the same code also runs on the host.
//
// A kernel is a plain struct ("body") whose operator()(cta) is a list of phases:
//   cta.phase([&](thread_place w) { ... });   every thread runs it, then a barrier
//   cta.last([&](thread_place w) { ... });    the same without the barrier
//   cta.loads([&](thread_place w) { ... });   a phase whose copy_async() calls have arrived after the barrier
//   cta.any([&](thread_place w) { ... })      a phase that returns, to all alike, whether any thread said true
// On a GPU `device_cta` runs a phase for its own thread. csrc/tests/emulate.hpp runs it for all threads in turn, on
// NaN-filled shared memory and in several thread orders, which shows a missing barrier as a changed result.
// Values that live in registers across phases are kept in cta.registers<S>(), one S a thread.
// One __global__ template (launch.cuh) serves all bodies. No body uses atomics, warp shuffles or divergent barriers.
#pragma once
#include "../common/columns.hpp"
#include "../common/kernels.hpp"
#if defined(__CUDACC__)
#include <cuda_pipeline_primitives.h>
#endif

// For loops that run once or twice, or whose body is large: copies of it only cost registers and instruction cache.
#if defined(__CUDACC__)
#define SF_NO_UNROLL _Pragma("unroll 1")
#else
#define SF_NO_UNROLL
#endif

namespace sf::cuda {

// N neighbouring complex entries moved by one instruction of 8 or 16 bytes.
template <class T, int N>
struct alignas(2 * N * sizeof(T)) wide {
  one_col<T> c[N];
};

template <int N, class T>
SF_HD wide<T, N> load(const wide<T, 1>* p) {
  return *reinterpret_cast<const wide<T, N>*>(p);
}
template <int N, class T>
SF_HD void store(wide<T, 1>* p, wide<T, N> v) {
  *reinterpret_cast<wide<T, N>*>(p) = v;
}
// Global to shared memory without a register in between; to be called in cta.loads().
template <int N, class T>
SF_HD void copy_async(wide<T, 1>* to, const wide<T, 1>* from) {
#if defined(__CUDA_ARCH__)
  __pipeline_memcpy_async(to, from, sizeof(wide<T, N>));
#else
  store<N>(to, load<N>(from));
#endif
}
template <class T>
SF_HD scalar2<T> scalar(wide<T, 1> v) {
  return {v.c[0].re, v.c[0].im};
}
template <class T>
SF_HD void add_square(double& sum, one_col<T> z) {
  sum += double(z.re) * double(z.re);
  sum += double(z.im) * double(z.im);
}

SF_HD int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Division by a number known at launch: a multiplication and a shift. Right for every n < 2^31 (Granlund, Montgomery).
struct divisor {
  uint32_t d, multiplier, shift;
  explicit divisor(int64_t by) : d(uint32_t(by)), multiplier(0), shift(31) {
    while ((uint64_t(1) << (shift - 31)) < d) ++shift;
    multiplier = uint32_t(((uint64_t(1) << shift) + d - 1) / d);
  }
  SF_HD int32_t operator()(int32_t n) const { return int32_t(uint64_t(uint32_t(n)) * multiplier >> shift); }
};

// Row length in shared memory, in entries, for rows read in pieces of `piece` entries by neighbouring threads: an odd
// number of pieces, so that the same column of successive rows falls into different banks.
SF_HD int32_t odd_row(int32_t entries, int32_t piece) { return (ceil_div(entries, piece) | 1) * piece; }

// Where one block of one batch item starts.
struct spot {
  int64_t b, k;
};

// Stream m = u*Nt + j: offsets of its column of H (row 0) and of its row of X from the block of user 0.
struct stream {
  int32_t j;
  int64_t h, x;
};

// block_args with types, and the products of sizes that addresses need. Sizes of one block fit 31 bits (plan.hpp
// checks); offsets are 64-bit.
template <class T>
struct blocks {
  using real = T;
  using entry = wide<T, 1>;
  const entry *y, *h, *x, *probe;
  entry *out_y, *out_h, *out_x;
  double* energies;
  const T* noise_var;
  int64_t y_b, h_b, x_b, probe_b, noise_var_b, out_y_b, out_h_b, out_x_b;  // batch strides
  int64_t y_k, h_k, x_k, h_u, x_u;                                         // entries of a block; strides between users
  int64_t n, k;                                                            // blocks in all, and per item
  int32_t u, nr, nt, t, m;
  divisor by_k, by_nt;

  explicit blocks(const block_args& a)
      : y(static_cast<const entry*>(a.y)),
        h(static_cast<const entry*>(a.h)),
        x(static_cast<const entry*>(a.x)),
        probe(static_cast<const entry*>(a.probe)),
        out_y(static_cast<entry*>(a.out_y)),
        out_h(static_cast<entry*>(a.out_h)),
        out_x(static_cast<entry*>(a.out_x)),
        energies(a.energies),
        noise_var(static_cast<const T*>(a.noise_var)),
        y_b(a.y_b),
        h_b(a.h_b),
        x_b(a.x_b),
        probe_b(a.probe_b),
        noise_var_b(a.noise_var_b),
        out_y_b(a.k * a.nr * a.t),
        out_h_b(a.u * a.k * a.nr * a.nt),
        out_x_b(a.u * a.k * a.nt * a.t),
        y_k(a.nr * a.t),
        h_k(a.nr * a.nt),
        x_k(a.nt * a.t),
        h_u(a.k * h_k),
        x_u(a.k * x_k),
        n(a.b * a.k),
        k(a.k),
        u(int32_t(a.u)),
        nr(int32_t(a.nr)),
        nt(int32_t(a.nt)),
        t(int32_t(a.t)),
        m(int32_t(a.u * a.nt)),
        by_k(a.k),
        by_nt(a.nt) {}

  SF_HD spot at(int64_t i) const {
    const int64_t b = n <= 0x7fffffff ? int64_t(by_k(int32_t(i))) : i / k;
    return {b, i - b * k};
  }
  SF_HD const entry* y_of(spot s) const { return y + s.b * y_b + s.k * y_k; }
  SF_HD const entry* h_of(spot s) const { return h + s.b * h_b + s.k * h_k; }
  SF_HD const entry* x_of(spot s) const { return x + s.b * x_b + s.k * x_k; }
  SF_HD const entry* probe_of(spot s) const { return probe + s.b * probe_b + s.k * x_k; }
  SF_HD entry* out_y_of(spot s) const { return out_y + s.b * out_y_b + s.k * y_k; }
  SF_HD entry* out_h_of(spot s) const { return out_h + s.b * out_h_b + s.k * h_k; }
  SF_HD entry* out_x_of(spot s) const { return out_x + s.b * out_x_b + s.k * x_k; }

  SF_HD stream first_stream(int32_t m0) const {
    const int32_t user = by_nt(m0), j = m0 - user * nt;
    return {j, user * h_u + j, user * x_u + int64_t(j) * t};
  }
  SF_HD void next(stream& s) const {
    const bool wrap = ++s.j == nt;
    s.h += wrap ? h_u - nt + 1 : 1;
    s.x += wrap ? x_u - int64_t(nt - 1) * t : int64_t(t);
    if (wrap) s.j = 0;
  }
  // 1/noise_var formed in double and rounded once. For float that is the rounded float quotient: a 53-bit quotient of
  // 24-bit numbers rounds to 24 bits without a double-rounding error.
  SF_HD T scale(int64_t b) const { return noise_var ? T(1) / noise_var[b * noise_var_b] : T(1); }
  SF_HD int32_t energy_count() const { return probe ? 2 + u : 1; }  // columns of `energies` that are written
};

// Who works on what: a CTA is `group` blocks of `per_block` threads each, or, when a block has more tiles than a CTA
// has threads, one of the block's `segments`. It follows from the sizes of a block alone, never from the batch.
struct split {
  int32_t group, per_block, segments;
};

struct launch_shape {
  int64_t ctas;
  int32_t per_block, group, shared_bytes;
};

// Thread number `id` of the CTA: thread p of the CTA's block g.
struct thread_place {
  int32_t id, p, g;
};

// The launch frame of bodies whose threads compute one tile each: `rows` x `cols` tiles a block.
struct tile_grid {
  split s;
  int32_t rows, cols;
  divisor by_cols, by_segments;

  tile_grid(const split& on, int32_t row_tiles, int32_t col_tiles)
      : s(on), rows(row_tiles), cols(col_tiles), by_cols(col_tiles), by_segments(on.segments) {}

  // f(block, row, column) of every thread's tile; past the last one nothing.
  template <class Cta, class F>
  SF_HD void each(const Cta& cta, int64_t blocks, const F& f) const {
    cta.last([&](thread_place w) {
      const int32_t group = s.segments == 1 ? int32_t(cta.index()) : by_segments(int32_t(cta.index()));
      const int32_t tile = (int32_t(cta.index()) - group * s.segments) * s.per_block + w.p;
      const int64_t i = int64_t(group) * s.group + w.g;
      if (i >= blocks || tile >= rows * cols) return;
      const int32_t row = by_cols(tile);
      f(i, row, tile - row * cols);
    });
  }
};

// sum += R X^H over `pieces` pieces of N time slots: rows of R at r[i], rows of X at x[c], both in shared memory.
template <int N, int RT, int CT, class T>
SF_HD void outer_tile(product<one_col<T>, true> (&p)[RT][CT], int32_t pieces, const wide<T, 1>* const (&r)[RT],
                      const wide<T, 1>* const (&x)[CT]) {
  for (int32_t s = 0; s < pieces; ++s) {
    wide<T, N> rv[RT], xv[CT];
  SF_UNROLL
    for (int i = 0; i < RT; ++i) rv[i] = load<N>(r[i] + s * N);
    SF_UNROLL
    for (int c = 0; c < CT; ++c) xv[c] = load<N>(x[c] + s * N);
    SF_UNROLL
    for (int j = 0; j < N; ++j)
      SF_UNROLL
      for (int i = 0; i < RT; ++i)
        SF_UNROLL
        for (int c = 0; c < CT; ++c) p[i][c].add({xv[c].c[j].re, xv[c].c[j].im}, rv[i].c[j]);
  }
}

#if defined(__CUDACC__)
struct device_cta {
  template <class S>
  struct per_thread {
    S s;
    SF_HD S& operator[](int) { return s; }
  };
  template <class S>
  SF_HD per_thread<S> registers() const {
    return {};
  }
#if defined(__CUDA_ARCH__)
  SF_HD int64_t index() const { return blockIdx.x; }
  SF_HD int32_t threads() const { return int32_t(blockDim.x * blockDim.y); }
  SF_HD unsigned char* shared() const {
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
  }
  SF_HD thread_place place() const {
    return {int32_t(threadIdx.y * blockDim.x + threadIdx.x), int32_t(threadIdx.x), int32_t(threadIdx.y)};
  }
  template <class F>
  SF_HD void last(const F& f) const {
    f(place());
  }
  template <class F>
  SF_HD void phase(const F& f) const {
    last(f);
    __syncthreads();
  }
  template <class F>
  SF_HD void loads(const F& f) const {
    last(f);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
  }
  template <class F>
  SF_HD bool any(const F& f) const {
    return __syncthreads_or(f(place()));
  }
#else  // the host pass only needs the names
  SF_HD int64_t index() const { return 0; }
  SF_HD int32_t threads() const { return 0; }
  SF_HD unsigned char* shared() const { return nullptr; }
  template <class F>
  SF_HD void phase(const F&) const {}
  template <class F>
  SF_HD void last(const F&) const {}
  template <class F>
  SF_HD void loads(const F&) const {}
  template <class F>
  SF_HD bool any(const F&) const {
    return false;
  }
#endif
};
#endif

}  // namespace sf::cuda
