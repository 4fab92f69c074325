// x = z sqrt(power*count)/|z| per item, and its vector-Jacobian product (scale/|z|) (g - z Re<z,g>/|z|^2).
#include "../common/lane.hpp"
#include "../common/kernels.hpp"
#include "parallel.hpp"
#include "square_sums.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
void run_normalise(normalise_args& a) {
  a.bad = -1;
  parallel_for(a.pool, a.b, 16384 / (a.n + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const T* z = static_cast<const T*>(a.z) + b * a.n;
      T* x = static_cast<T*>(a.out) + b * a.n;
      const double norm = __builtin_sqrt(square_sum(z, a.n));
      const T f = T(a.scale / norm), rounded = T(norm);
      static_cast<T*>(a.norm)[b] = rounded;
      for (int64_t i = 0; i < a.n; ++i) x[i] = z[i] * f;
      if (!(norm > 0 && (rounded - rounded) + (f - f) == 0)) note_lowest(a.bad, b);
    }
  });
}

template <class T>
void run_normalise_vjp(normalise_args& a) {
  a.bad = -1;
  parallel_for(a.pool, a.b, 16384 / (a.n + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const T *z = static_cast<const T*>(a.z) + b * a.n, *g = static_cast<const T*>(a.g) + b * a.n;
      T* out = static_cast<T*>(a.out) + b * a.n;
      double inner[8] = {0};
      for (int64_t i = 0; i < a.n; ++i) inner[i & 7] += double(z[i]) * double(g[i]);
      const double norm = double(static_cast<const T*>(a.norm)[b]);
      const double dot = (inner[0] + inner[1]) + (inner[2] + inner[3]) + (inner[4] + inner[5]) + (inner[6] + inner[7]);
      const T f = T(a.scale / norm), along = T(dot / (norm * norm));
      for (int64_t i = 0; i < a.n; ++i) out[i] = f * (g[i] - z[i] * along);
    }
  });
}

void power_normalise(normalise_args& a) { a.is_double ? run_normalise<double>(a) : run_normalise<float>(a); }
void power_normalise_vjp(normalise_args& a) {
  a.is_double ? run_normalise_vjp<double>(a) : run_normalise_vjp<float>(a);
}

}  // namespace SF_NS
}  // namespace sf
