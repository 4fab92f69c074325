// A run of reals that one set of coefficients moves: the arithmetic of pvd_update and of pvd_channel_step.
#pragma once
#include "../common/pvd_step.hpp"
#include "levels.hpp"
#include "packs.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct update_run {
  const T *mean, *anchor, *sample, *denoised, *score;
  const T* noise;            // unit normals, or null for no draw
  T *new_mean, *new_sample;  // new_sample null: it is drawn later

  // 0, or NaN where a result is not finite.
  native<T> move(const pvd_coefficients<T>& c, native<T> amp, int64_t n) const {
    using P = native<T>;
    P bad = T(0);
    each_pack<T>(n, [&](int64_t i, int m) SF_LAMBDA {
      const P v = get(mean + i, m) +
                  pvd_increment(c, get(anchor + i, m), get(sample + i, m), get(denoised + i, m), get(score + i, m));
      put(new_mean + i, v, m);
      const P drawn = new_sample && noise ? v + amp * get(noise + i, m) : v;
      bad = bad + (drawn - drawn);
      if (new_sample) put(new_sample + i, drawn, m);
    });
    return bad;
  }
};

}  // namespace SF_NS
}  // namespace sf
