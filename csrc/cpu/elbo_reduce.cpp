// L[b,e] = -sum_s w_s |eps_s - eps[b,s,e]|^2 and D[b,e] = -|Yv - (h + k (eps_tau - eps[b,tau,e])) U S|^2 / noise_var:
// the noise is drawn again chunk by chunk, sums are formed in double.
#include "draws.hpp"
#include "levels.hpp"
#include "packs.hpp"
#include "pilot_basis.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct elbo_worker {
  using P = native<T>;
  using Basis = pilot_basis<T>;
  using Col = typename Basis::Col;
  static constexpr int W = native_width<T>;

  const elbo_args& a;
  Basis own;
  const Basis* basis;
  int64_t reals;
  T *denoised, *values,
      *miss;     // every expert's channel at tau, s twice per singular value, a chunk or a row's residual
  double* sums;  // L per expert
  draw_buffer<T> buffer;

  elbo_worker(const elbo_args& a, const Basis* shared)
      : a(a), own(a.own_basis ? a.nt : 0, a.own_basis ? a.r : 0), basis(a.own_basis ? &own : shared) {
    const int64_t row = basis->rv * W;
    reals = 2 * a.nr * a.nt;
    denoised = Basis::reals(a.e * reals + W), values = Basis::reals(row + 1);
    miss = Basis::reals(draw_chunk + a.nr * row);
    sums = static_cast<double*>(calloc(size_t(a.e), sizeof(double)));
  }
  elbo_worker(const elbo_worker&) = delete;
  ~elbo_worker() { free(denoised), free(values), free(miss), free(sums); }

  void run(int64_t b, int64_t* bad) {
    for (int64_t e = 0; e < a.e; ++e) sums[e] = 0;
    for (int64_t s = 0; s < a.steps; ++s)
      for (int64_t first = 0; first < reals; first += draw_chunk) misses(b, s, first);
    if (a.own_basis) own.take(static_cast<const T*>(a.u) + 2 * b * a.nt * a.r);
    const T* s = static_cast<const T*>(a.s) + (a.own_basis ? b * a.r : 0);
    for (int64_t j = 0; j < a.r; ++j) values[2 * j] = values[2 * j + 1] = s[j];
    const double var = at(a.noise_var, 0, b, 0);
    for (int64_t e = 0; e < a.e; ++e) {
      const double data = residual_energy(b, denoised + e * reals) / var, both = sums[e] + data;
      static_cast<T*>(a.out_l)[b * a.e + e] = T(-sums[e]);
      static_cast<T*>(a.out_d)[b * a.e + e] = T(-data);
      if (!(both - both == 0)) note_lowest(*bad, b * a.e + e);
    }
  }

 private:
  // Every expert's misses in one chunk of the noise of step s.
  void misses(int64_t b, int64_t s, int64_t first) {
    const int64_t n = reals - first < draw_chunk ? reals - first : draw_chunk, row = b * a.steps + s;
    const T* noise = static_cast<const T*>(a.noise) + row * reals + first;
    if (a.draw == 2) {
      philox_key key = a.key;
      key.step = uint32_t(a.at[s]);
      buffer.fill(key, uint64_t(b), 0, first, n, 0.7071067811865475244);
      noise = buffer.data;
    }
    const T* h = static_cast<const T*>(a.h) + b * reals + first;
    const P reach = T(__builtin_sqrt((1 - a.alpha_bar[s]) / a.alpha_bar[s]));
    for (int64_t e = 0; e < a.e; ++e) {
      const T* eps = static_cast<const T*>(a.eps) + (row * a.e + e) * reals + first;
      each_pack<T>(n, [&](int64_t i, int m) SF_LAMBDA { put(miss + i, get(noise + i, m) - get(eps + i, m), m); });
      sums[e] += a.w[s] * square_sum(miss, n);
      if (s != a.tau) continue;
      T* x = denoised + e * reals + first;
      each_pack<T>(n,
                   [&](int64_t i, int m) SF_LAMBDA { put(x + i, fused(reach, get(miss + i, m), get(h + i, m)), m); });
    }
  }
  // |Yv - X U S|^2
  double residual_energy(int64_t b, const T* x) {
    const int64_t row = basis->rv * W;
    const T* yv = static_cast<const T*>(a.yv) + b * 2 * a.nr * a.r;
    basis->into(x, 2 * a.nt, a.nr, [&](int64_t i, int64_t c, Col z) SF_LAMBDA {
      const int64_t left = 2 * a.r - c * W;
      const P y = get(yv + i * 2 * a.r + c * W, left < W ? int(left) : W);
      (y - z.v * P::load(values + c * W)).store(miss + i * row + c * W);
    });
    return square_sum(miss, a.nr * row);  // lanes past 2 r are zero
  }
};

template <class T>
void run_elbo(elbo_args& a) {
  a.bad = -1;
  pilot_basis<T> shared(a.own_basis ? 0 : a.nt, a.own_basis ? 0 : a.r);
  if (!a.own_basis) shared.take(a.u);
  parallel_for(a.pool, a.b, chunk_grain(2 * a.nr * a.nt * a.steps * (1 + a.e)), [&](int64_t begin, int64_t end) {
    elbo_worker<T> worker(a, &shared);
    for (int64_t b = begin; b < end; ++b) worker.run(b, &a.bad);
  });
}

void elbo_reduce(elbo_args& a) { a.is_double ? run_elbo<double>(a) : run_elbo<float>(a); }

}  // namespace SF_NS
}  // namespace sf
