// The masked update and top-up of the authors' published code: the state f stays un-normalised, g is what the network
// sees. An item is one task: its unit-RMS factor needs all of it.
#include "../common/power_scale.hpp"
#include "square_sums.hpp"
#include "waterfill.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct authors_row {
  const waterfill_args& a;
  int64_t b, g;
  double beta_t, beta_s;
  T common_a, common_b;
  bool valid;

  authors_row(const waterfill_args& args, int64_t item, int64_t group)
      : a(args),
        b(item),
        g(group),
        beta_t(rounded<T>(args.beta_t, item, group)),
        beta_s(rounded<T>(args.beta_s, item, group)) {
    const auto ddim = ddim_weights::from(beta_t, beta_s);
    common_a = T(ddim.a), common_b = T(ddim.b);
    valid = beta_s >= 0 && beta_s <= 1 && beta_t >= 0 && beta_t <= 1;
  }

  // The update's weights for elements of level `own`; 1 and 0 where they wait.
  void update_weights(native<T> own, native<T>& wa, native<T>& wb) const {
    using P = native<T>;
    const P zero(T(0)), one(T(1)), low = T(beta_s);
    wa = common_a, wb = common_b;
    if (!a.common_base) {
      // From a level to itself nothing moves; but the end of a noise-free element is x0, as of nearly noise-free ones.
      const auto still = (own == low) & (own + P(beta_t > 0 ? T(0) : T(1)) > zero);
      wa = select(still, one, square_root(low / select(own > zero, own, one)));
      wb = select(still, zero, fused(zero - wa, square_root(one - own), P(T(__builtin_sqrt(1 - beta_s)))));
    }
    const auto waits = low > own;
    wa = select(waits, one, wa), wb = select(waits, zero, wb);
  }

  // Shrinking and top-up from level `own` to beta_s; 1 and 0 where there is nothing to add.
  void top_up(native<T> own, native<T>& keep, native<T>& add) const {
    using P = native<T>;
    const P zero(T(0)), one(T(1)), low = T(beta_s);
    const auto waits = low > own;
    const auto fill = injection<P>::from(P(T(__builtin_sqrt(1 - beta_s))), low, own);
    P spread = fill.add;
    if (!a.variance_topup) {
      spread = fused(zero - fill.keep, square_root(own), P(T(__builtin_sqrt(beta_s))));
      spread = select(spread > zero, spread, zero);
    }
    keep = select(waits, fill.keep, one), add = select(waits, spread, zero);
  }

  // One run of symbols; adds its |g|^2.
  bool run(run_weights<T>& w, draw_buffer<T>& buffer, int64_t first, int64_t n, double& energy) const {
    using P = native<T>;
    constexpr int W = native_width<T>;
    alignas(64) T wa[symbol_run + 64], wb[symbol_run + 64];
    const T* d = row_levels<T>(a, b, g);
    const P high = T(beta_t), low = T(beta_s);
    P outside = T(0);
    w.waiting.clear();
    each_pack<T>(n, [&](int64_t i, int m) SF_LAMBDA {
      const P level = level_pack(a, d, first + i, m), own = select(level > high, high, level);
      outside = outside + outside_unit<T>(level, m);
      P va, vb, keep, add;
      update_weights(own, va, vb), top_up(own, keep, add);
      va.store(wa + i), vb.store(wb + i), keep.store(w.keep + i), add.store(w.add + i);
      w.waiting.set(i, (low > own).bits() & low_bits(m));
    });
    bool good = valid && outside.sum() == T(0);
    for (int k = 0; k < (a.halves ? 2 : 1); ++k) {
      const half_run place(a, b, g, first, k);
      const T* f = static_cast<const T*>(a.f) + place.at;
      const T* origin = a.common_base ? static_cast<const T*>(a.state) + place.at : f;
      const T* noise = a.draw == 1 ? static_cast<const T*>(a.noise) + place.at : nullptr;
      if (a.draw == 2 && w.waiting.count)
        noise = draw_waiting(buffer, a.key, b, place.in_item, n, w.waiting, [&](int64_t i) SF_LAMBDA {
          fetch_reals(origin + i), fetch_prediction<T>(a, a.x0, place.at + i);
          if (!k && a.d_symbol) fetch_reals(d + first + n + i);  // of the run after this one
        });
      T *state = static_cast<T*>(a.out_f) + place.at, *out = static_cast<T*>(a.out) + place.at;
      P bad = T(0);
      each_pack<T>(n, [&](int64_t i, int m) SF_LAMBDA {
        const auto waits = lane_mask<T, W>::from_bits(w.waiting.from(i, m));
        const P old = get(f + i, m), moved = fused(P::load(wa + i), get(origin + i, m),
                                                   P::load(wb + i) * predicted<T>(a, a.x0, place.at + i, m));
        const P now = select(waits, old, moved);
        P next = P::load(w.keep + i) * now;
        if (noise) next = select(waits, fused(P::load(w.add + i), get(noise + i, m), next), next);
        put(state + i, now, m), put(out + i, next, m);
        bad = bad + first_lanes<T>((now - now) + (next - next), m);
      });
      energy += square_sum(out, n);
      good = bad.sum() == T(0) && good;
    }
    return good;
  }
};

template <class T>
bool authors_item(const waterfill_args& a, int64_t b) {
  run_weights<T> w;
  draw_buffer<T> buffer;
  const int64_t symbols = a.halves ? a.n / 2 : a.n, size = a.g * a.n;
  double energy = 0;
  bool good = true;
  for (int64_t g = 0; g < a.g; ++g) {
    const authors_row<T> row(a, b, g);
    for (int64_t i = 0; i < symbols; i += symbol_run)
      good = row.run(w, buffer, i, symbols - i < symbol_run ? symbols - i : symbol_run, energy) && good;
  }
  if (!a.renorm) return good;
  const auto unit = power_scale<T>::of(__builtin_sqrt(double(size)), __builtin_sqrt(energy));
  T* out = static_cast<T*>(a.out) + b * size;
  each_pack<T>(size, [&](int64_t i, int m) SF_LAMBDA { put(out + i, unit(get(out + i, m)), m); });
  return good && energy > 0 && energy <= largest(0.0);
}

template <class T>
void run_authors(waterfill_args& a) {
  a.bad = a.joined = -1;
  parallel_for(a.pool, a.b, 16 * draw_chunk / (a.g * a.n + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      if (!authors_item<T>(a, b)) note_lowest(a.bad, b);
  });
}

void waterfill_step_authors(waterfill_args& a) { a.is_double ? run_authors<double>(a) : run_authors<float>(a); }

}  // namespace SF_NS
}  // namespace sf
