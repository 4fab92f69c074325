// L[b,e] = -sum_s w_s |eps_s - eps[b,s,e]|^2 and D[b,e] = -|Yv - (h + k (eps_tau - eps[b,tau,e])) U S|^2 / noise_var:
// the noise is drawn again chunk by chunk, sums are formed in double.
#include "draws.hpp"
#include "levels.hpp"
#include "packs.hpp"
#include "pilot_basis.hpp"
#include "square_sums.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct elbo_worker {
  using P = native<T>;
  static constexpr int W = native_width<T>;

  const elbo_args& a;
  pilots_of<T, elbo_args> pilots;
  int64_t reals;
  scratch<T> denoised, miss;  // every expert's channel at tau; a chunk's misses, then the residual of Yv
  scratch<double> sums;       // L per expert
  draw_buffer<T> buffer;

  elbo_worker(const elbo_args& a, const pilot_basis<T>* shared) : a(a), pilots(a, shared) {
    reals = 2 * a.nr * a.nt;
    denoised.allocate_zeros(a.e * reals + W), miss.allocate_zeros(draw_chunk + a.nr * pilots.row);
    sums.allocate_zeros(a.e);
  }

  void run(int64_t b, int64_t* bad) {
    for (int64_t e = 0; e < a.e; ++e) sums[e] = 0;
    for (int64_t s = 0; s < a.steps; ++s)
      for (int64_t first = 0; first < reals; first += draw_chunk) misses(b, s, first);
    pilots.take(b);
    const double var = at(a.noise_var, 0, b, 0);
    for (int64_t e = 0; e < a.e; ++e) {
      pilots.residual(b, denoised + e * reals, nullptr, miss);
      const double data = square_sum<T>(miss, a.nr * pilots.row) / var;  // lanes past 2 r are zero
      const T l = T(-sums[e]), d = T(-data);
      static_cast<T*>(a.out_l)[b * a.e + e] = l, static_cast<T*>(a.out_d)[b * a.e + e] = d;
      if (!((l - l) + (d - d) == 0)) note_lowest(*bad, b * a.e + e);
    }
  }

 private:
  // Every expert's misses in one chunk of the noise of step s.
  void misses(int64_t b, int64_t s, int64_t first) {
    const int64_t n = reals - first < draw_chunk ? reals - first : draw_chunk, row = b * a.steps + s;
    const T* noise = diffusion_noise(a, b, s, reals, first, n, buffer);
    const T* h = static_cast<const T*>(a.h) + b * reals + first;
    const P reach = T(__builtin_sqrt((1 - a.alpha_bar[s]) / a.alpha_bar[s]));
    for (int64_t e = 0; e < a.e; ++e) {
      const T* eps = static_cast<const T*>(a.eps) + (row * a.e + e) * reals + first;
      each_pack<T>(n, [&](int64_t i, int m) SF_LAMBDA { put(miss + i, get(noise + i, m) - get(eps + i, m), m); });
      sums[e] += a.w[s] * square_sum<T>(miss, n);
      if (s != a.tau) continue;
      T* x = denoised + e * reals + first;
      each_pack<T>(n,
                   [&](int64_t i, int m) SF_LAMBDA { put(x + i, fused(reach, get(miss + i, m), get(h + i, m)), m); });
    }
  }
};

template <class T>
void run_elbo(elbo_args& a) {
  a.bad = -1;
  const shared_basis<T, elbo_args> shared(a);
  parallel_for(a.pool, a.b, chunk_grain(2 * a.nr * a.nt * a.steps * (1 + a.e)), [&](int64_t begin, int64_t end) {
    elbo_worker<T> worker(a, &shared);
    for (int64_t b = begin; b < end; ++b) worker.run(b, &a.bad);
  });
}

void elbo_reduce(elbo_args& a) { a.is_double ? run_elbo<double>(a) : run_elbo<float>(a); }

}  // namespace SF_NS
}  // namespace sf
