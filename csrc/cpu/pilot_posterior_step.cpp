// h' = a h - b m + [(Yv - (p h - q m) U S) G] U^H with m = sum_e w_e eps_e; coefficients in double, one channel at a
// time.
#include "levels.hpp"
#include "packs.hpp"
#include "pilot_basis.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct posterior_worker {
  using P = native<T>;
  static constexpr int W = native_width<T>;

  const posterior_args& a;
  pilots_of<T, posterior_args> pilots;
  int64_t reals;          // of a channel
  scratch<T> x, w, gain;  // p h - q m, (Yv - X U S) G, and G once for either part

  posterior_worker(const posterior_args& a, const pilot_basis<T>* shared) : a(a), pilots(a, shared) {
    reals = 2 * a.nr * a.nt;
    x.allocate_zeros(reals + W), w.allocate_zeros(a.nr * pilots.row + 1), gain.allocate_zeros(pilots.row + 1);
  }

  bool run(int64_t b) {
    const double var = at(a.noise_var, 0, b, 0), bar = at(a.alpha_bar, 0, b, 0), beta = at(a.beta, 0, b, 0);
    const double scale = 1 / __builtin_sqrt(1 - beta), up = 1 / __builtin_sqrt(bar);
    const double strength = scale * at(a.lam, 0, b, 0) * beta * up, spread = (1 - bar) / bar;
    pilots.take(b);
    for (int64_t j = 0; j < 2 * a.r; ++j) {
      const double v = double(pilots.values[j]);
      gain[j] = T(strength * v / (var + spread * v * v));
    }
    T* out = static_cast<T*>(a.out) + b * reals;
    mix(b, T(scale), T(scale * beta / __builtin_sqrt(1 - bar)), T(up), T(a.x0 ? up * __builtin_sqrt(1 - bar) : 0), out);
    pilots.residual(b, x, gain, w);
    return correct(out);
  }

 private:
  // out = a h - b m, x = p h - q m
  void mix(int64_t b, T fa, T fb, T fp, T fq, T* out) {
    const T *h = static_cast<const T*>(a.h) + b * reals, *eps = static_cast<const T*>(a.eps) + b * a.e * reals;
    const T* weights = static_cast<const T*>(a.weights) + b * a.e;
    each_pack<T>(reals, [&](int64_t i, int m) SF_LAMBDA {
      const P state = get(h + i, m);
      P mixed = P(weights[0]) * get(eps + i, m);
      for (int64_t e = 1; e < a.e; ++e) mixed = fused(P(weights[e]), get(eps + e * reals + i, m), mixed);
      put(out + i, fused(P(fa), state, P(-fb) * mixed), m);
      put(x + i, fused(P(fp), state, P(-fq) * mixed), m);
    });
  }
  // out += W U^H; true where all of it is finite
  bool correct(T* out) {
    P bad = T(0);
    pilots.basis->back(w, pilots.row, a.nr, [&](int64_t i, int64_t c, pack_cols<T, W> z) SF_LAMBDA {
      T* p = out + i * 2 * a.nt + c * W;
      const int m = 2 * a.nt - c * W < W ? int(2 * a.nt - c * W) : W;
      const P v = get(p, m) + z.v;
      bad = bad + (v - v);
      put(p, v, m);
    });
    return bad.sum() == T(0);
  }
};

template <class T>
void run_posterior(posterior_args& a) {
  a.bad = -1;
  const shared_basis<T, posterior_args> shared(a);
  // A slice of 64k complex multiplications, some 15 us, makes a thread worth waking.
  const int64_t grain = 65536 / (2 * a.nr * a.nt * a.r + 1) + 1;
  parallel_for(a.pool, a.b, grain, [&](int64_t begin, int64_t end) {
    posterior_worker<T> worker(a, &shared);
    for (int64_t b = begin; b < end; ++b)
      if (!worker.run(b)) note_lowest(a.bad, b);
  });
}

void pilot_posterior_step(posterior_args& a) { a.is_double ? run_posterior<double>(a) : run_posterior<float>(a); }

}  // namespace SF_NS
}  // namespace sf
