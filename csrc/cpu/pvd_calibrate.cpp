// s = noise_var + (sum_u nr*var_h*(x_energy + probe_x) + probe_y)/count, summed in double.
#include "../common/kernels.hpp"
#include "levels.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
void run_calibrate(calibrate_args& a) {
  a.bad = -1;
  for (int64_t b = 0; b < a.b; ++b) {
    double spread = double(static_cast<const T*>(a.probe_y)[b * a.probe_y_b]);
    for (int64_t u = 0; u < a.u; ++u) {
      const double v = double(static_cast<const T*>(a.var_h)[b * a.var_h_b + u * a.var_h_u]);
      const double p = double(static_cast<const T*>(a.probe_x)[b * a.probe_x_b + u * a.probe_x_u]);
      spread += double(a.nr) * v * (a.x_energy + p);
    }
    const double noise_var = at(a.noise_var, 0, b, 0);
    const T s = T(noise_var + spread / double(a.count));
    static_cast<T*>(a.out)[b] = s;
    if (!(noise_var > 0 && s > 0 && s - s == 0) && a.bad < 0) a.bad = b;
  }
}

void pvd_calibrate(calibrate_args& a) { a.is_double ? run_calibrate<double>(a) : run_calibrate<float>(a); }

}  // namespace SF_NS
}  // namespace sf
