// How every CUDA kernel here is written, so that the same code also runs on the host.
//
// A kernel is a plain struct ("body") whose operator()(cta) is a list of phases:
//   cta.phase([&](int tid) { ... });   every thread runs it, then a barrier
//   cta.last([&](int tid) { ... });    the same without the barrier
// On a GPU `device_cta` runs a phase for its own thread. csrc/tests/emulate.hpp runs it for all threads in turn, on
// NaN-filled shared memory and in several thread orders, which shows a missing barrier as a changed result.
// Values that live in registers across phases are kept in cta.registers<S>(), one S a thread.
// One __global__ template (launch.cuh) serves all bodies. No body uses atomics, warp shuffles or divergent barriers.
#pragma once
#include "../common/columns.hpp"
#include "../common/kernels.hpp"

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

// block_args with types. Sizes of one block fit 32 bits (launch.cuh checks); offsets are 64-bit.
template <class T>
struct blocks {
  using real = T;
  using entry = wide<T, 1>;
  int64_t n, k;
  int32_t u, nr, nt, t, m;
  const entry *y, *h, *x, *probe;
  int64_t y_b, h_b, x_b, probe_b;
  const T* noise_var;
  int64_t noise_var_b;
  entry *out_y, *out_h, *out_x;
  double* energies;

  explicit blocks(const block_args& a)
      : n(a.b * a.k), k(a.k), u(int32_t(a.u)), nr(int32_t(a.nr)), nt(int32_t(a.nt)), t(int32_t(a.t)),
        m(int32_t(a.u * a.nt)), y(static_cast<const entry*>(a.y)), h(static_cast<const entry*>(a.h)),
        x(static_cast<const entry*>(a.x)), probe(static_cast<const entry*>(a.probe)), y_b(a.y_b), h_b(a.h_b), x_b(a.x_b),
        probe_b(a.probe_b), noise_var(static_cast<const T*>(a.noise_var)), noise_var_b(a.noise_var_b),
        out_y(static_cast<entry*>(a.out_y)), out_h(static_cast<entry*>(a.out_h)), out_x(static_cast<entry*>(a.out_x)),
        energies(a.energies) {}

  SF_HD spot at(int64_t i) const {  // 64-bit division is a subroutine: keep it off the usual path
    const int64_t b = n <= 0xffffffffLL ? int64_t(uint32_t(i) / uint32_t(k)) : i / k;
    return {b, i - b * k};
  }
  SF_HD int64_t h_block() const { return int64_t(nr) * nt; }
  SF_HD int64_t x_block() const { return int64_t(nt) * t; }
  SF_HD int64_t y_block() const { return int64_t(nr) * t; }
  SF_HD const entry* y_of(spot s) const { return y + s.b * y_b + s.k * y_block(); }
  SF_HD const entry* h_of(spot s) const { return h + s.b * h_b + s.k * h_block(); }
  SF_HD const entry* x_of(spot s) const { return x + s.b * x_b + s.k * x_block(); }
  SF_HD const entry* probe_of(spot s) const { return probe + s.b * probe_b + s.k * x_block(); }
  SF_HD entry* out_y_of(spot s) const { return out_y + (s.b * k + s.k) * y_block(); }
  SF_HD entry* out_h_of(spot s) const { return out_h + (s.b * u * k + s.k) * h_block(); }
  SF_HD entry* out_x_of(spot s) const { return out_x + (s.b * u * k + s.k) * x_block(); }

  SF_HD stream first_stream(int32_t m0) const {
    const int32_t user = m0 ? int32_t(uint32_t(m0) / uint32_t(nt)) : 0, j = m0 - user * nt;
    return {j, user * k * h_block() + j, user * k * x_block() + int64_t(j) * t};
  }
  SF_HD void next(stream& s) const {
    const bool wrap = ++s.j == nt;
    s.h += wrap ? k * h_block() - nt + 1 : 1;
    s.x += wrap ? k * x_block() - int64_t(nt - 1) * t : int64_t(t);
    if (wrap) s.j = 0;
  }
  SF_HD T scale(int64_t b) const { return noise_var ? T(1.0 / double(noise_var[b * noise_var_b])) : T(1); }
  SF_HD int32_t energy_count() const { return probe ? 2 + u : 1; }  // columns of `energies` that are written
};

// Who works on what: a CTA holds `group` blocks of `per_block` threads each, or, when a block has more tiles than a CTA
// has threads, one of the block's `segments`. It follows from the sizes of a block alone, never from the batch.
struct split {
  int32_t group, per_block, segments;
  SF_HD int64_t first(int64_t cta) const {
    return int64_t(segments == 1 ? uint32_t(cta) : uint32_t(cta) / uint32_t(segments)) * group;
  }
  SF_HD int32_t segment(int64_t cta) const {
    return segments == 1 ? 0 : int32_t(uint32_t(cta) % uint32_t(segments));
  }
};

struct launch_shape {
  int64_t ctas;
  int32_t threads, shared_bytes;
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
  SF_HD int32_t threads() const { return int32_t(blockDim.x); }
  SF_HD unsigned char* shared() const {
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
  }
  template <class F>
  SF_HD void phase(const F& f) const {
    f(int(threadIdx.x));
    __syncthreads();
  }
  template <class F>
  SF_HD void last(const F& f) const {
    f(int(threadIdx.x));
  }
#else  // the host pass only needs the names
  SF_HD int64_t index() const { return 0; }
  SF_HD int32_t threads() const { return 0; }
  SF_HD unsigned char* shared() const { return nullptr; }
  template <class F>
  SF_HD void phase(const F&) const {}
  template <class F>
  SF_HD void last(const F&) const {}
#endif
};
#endif

}  // namespace sf::cuda
