// The injection (23), and the fused step: guidance, DDIM or its second-order correction, masked update, next injection.
#pragma once
#include "waterfill.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct waterfill_row {
  const waterfill_args& a;
  int64_t b, g;
  double beta_t, beta_s;
  ddim_weights ddim;
  prediction_weights<T> weights;
  bool valid;

  waterfill_row(const waterfill_args& args, int64_t item, int64_t group) : a(args), b(item), g(group) {
    beta_s = rounded<T>(a.beta_s, b, g);
    beta_t = a.x0 ? rounded<T>(a.beta_t, b, g) : 1;
    ddim = ddim_weights::from(beta_t, beta_s);
    const double guidance = a.uncond ? at(a.guidance, 0, b, g) : 1, ratio = a.prev ? at(a.ratio, 0, b, g) : 1;
    weights = prediction_weights<T>::from(guidance, ratio);
    valid = beta_s >= 0 && beta_s <= 1 && beta_t >= 0 && beta_t <= 1 && guidance - guidance == 0 && ratio == ratio &&
            ratio != 0;
  }

  // Weights and waiting symbols of a run; false if a level of d is not one.
  bool prepare(run_weights<T>& w, int64_t first, int64_t n, bool& joins) const {
    using P = native<T>;
    const T* d = row_levels<T>(a, b, g);
    const P level = T(beta_s), above = T(beta_t), left = T(__builtin_sqrt(1 - beta_s));
    P outside = T(0);
    w.waiting.clear();
    if (!a.d_symbol && *d >= T(beta_s) && *d <= T(1) && !a.prev) return true;  // one level, and nobody waits
    each_pack<T>(n, [&](int64_t i, int m) SF_LAMBDA {
      const P own = level_pack(a, d, first + i, m);
      outside = outside + outside_unit<T>(own, m);
      const auto fill = injection<P>::from(left, level, own);
      fill.keep.store(w.keep + i), fill.add.store(w.add + i);
      const uint32_t lanes = low_bits(m);
      w.waiting.set(i, (level > own).bits() & lanes);
      if (a.prev) joins |= ((above > own).bits() & lanes) != 0;
    });
    return outside.sum() == T(0);
  }

  // The moved element: a g + b x0, or the received one where there is no step (injection alone).
  SF_HD native<T> moved(int64_t i, int m) const {
    using P = native<T>;
    if (!a.x0) return get(static_cast<const T*>(a.f) + i, m);
    P x = predicted<T>(a, a.x0, i, m);
    if (a.uncond) x = fused(P(weights.cond), x, P(weights.uncond) * predicted<T>(a, a.uncond, i, m));
    if (a.prev && weights.before != T(0))
      x = fused(P(weights.now), x, P(-weights.before) * predicted<T>(a, a.prev, i, m));
    return fused(P(T(ddim.a)), get(static_cast<const T*>(a.state) + i, m), P(T(ddim.b)) * x);
  }

  // One half of a run; false if something is not finite.
  bool half(const run_weights<T>& w, draw_buffer<T>& buffer, int64_t first, int64_t n, int which) const {
    using P = native<T>;
    constexpr int W = native_width<T>;
    const half_run place(a, b, g, first, which);
    const T* f = static_cast<const T*>(a.f) + place.at;
    T* out = static_cast<T*>(a.out) + place.at;
    const T* noise = a.draw == 1 ? static_cast<const T*>(a.noise) + place.at : nullptr;
    const T* next_levels = row_levels<T>(a, b, g) + first + n;  // of the run after this one
    if (a.draw == 2 && w.waiting.count)
      noise = draw_waiting(buffer, a.key, b, place.in_item, n, w.waiting, [&](int64_t i) SF_LAMBDA {
        fetch_reals(f + i);
        for (int j = 0; j < 64; j += int(64 / sizeof(T))) __builtin_prefetch(out + i + j, 1, 2);  // to be written
        if (!which && a.d_symbol) fetch_reals(next_levels + i);
        if (!a.x0) return;
        fetch_reals(static_cast<const T*>(a.state) + place.at + i);
        const void* predictions[] = {a.x0, a.uncond, a.prev};
        for (const void* p : predictions)
          if (p) fetch_prediction<T>(a, p, place.at + i);
      });
    P bad = T(0);
    each_pack<T>(n, [&](int64_t i, int m) SF_LAMBDA {
      const uint32_t lanes = low_bits(m), bits = w.waiting.count ? w.waiting.from(i, m) : 0;
      P v;
      if (!bits) {
        v = moved(place.at + i, m);
      } else {
        v = P::load(w.keep + i) * get(f + i, m);
        if (a.draw) v = fused(P::load(w.add + i), get(noise + i, m), v);
        if (bits != lanes) v = select(lane_mask<T, W>::from_bits(bits), v, moved(place.at + i, m));
      }
      bad = bad + first_lanes<T>(v - v, m);
      put(out + i, v, m);
    });
    return bad.sum() == T(0);
  }

  bool run(run_weights<T>& w, draw_buffer<T>& buffer, int64_t first, int64_t n, bool& joins) const {
    const int halves = a.halves ? 2 : 1;
    bool good = valid;
    if (a.x0 && beta_t == 0) {  // nothing is left to remove
      for (int k = 0; k < halves; ++k) {
        const half_run place(a, b, g, first, k);
        const T* from = static_cast<const T*>(a.state) + place.at;
        T* to = static_cast<T*>(a.out) + place.at;
        native<T> bad = T(0);
        each_pack<T>(n, [&](int64_t i, int m) SF_LAMBDA {
          const native<T> v = get(from + i, m);
          bad = bad + (v - v);
          put(to + i, v, m);
        });
        good = good && bad.sum() == T(0);
      }
      return good;
    }
    good = prepare(w, first, n, joins) && good;
    for (int k = 0; k < halves; ++k) good = half(w, buffer, first, n, k) && good;
    return good;
  }
};

template <class T>
void run_waterfill(waterfill_args& a) {
  a.bad = a.joined = -1;
  for_each_run(a, [&](int64_t b, int64_t g, int64_t first, int64_t n) {
    draw_buffer<T> buffer;
    run_weights<T> w;
    bool joins = false;
    if (!waterfill_row<T>(a, b, g).run(w, buffer, first, n, joins)) note_lowest(a.bad, b);
    if (joins) note_lowest(a.joined, b);
  });
}

}  // namespace SF_NS
}  // namespace sf
