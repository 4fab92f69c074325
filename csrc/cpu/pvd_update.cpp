// new_mean = mean + zeta*[...] averaged over L samples, new_sample = new_mean + sqrt(next_var) * noise, in one pass.
// Work is cut into chunks of one item's reals; a chunk draws its normals into L1 first, so the arithmetic loop streams.
#include "around.hpp"
#include "draws.hpp"
#include "update_run.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct row {  // a run of reals with one set of levels
  const pvd_args& a;
  int64_t b, g, at0, n;  // at0: offset of the run in [B,G,E]

  const T* in(const void* p, int64_t l) const { return static_cast<const T*>(p) + l * a.b * a.g * a.e + at0; }
  T* out(void* p, int64_t l) const { return static_cast<T*>(p) + l * a.b * a.g * a.e + at0; }

  bool run(draw_buffer<T>& buffer, int64_t first, int64_t skip) {
    using P = native<T>;
    const double sigma = at(a.sigma, 0, b, g), above = at(a.sigma_above, 0, b, g), zeta = at(a.zeta, 0, b, g);
    const double var = a.default_next_var ? pvd_default_next_var(sigma, above) : at(a.next_var, 0, b, g);
    const P amp = T(__builtin_sqrt(var));
    const T *mean = in(a.mean, 0), *anchor = in(a.anchor, 0);
    T* new_mean = out(a.new_mean, 0);
    P bad = T(0);
    bool valid = true;
    for (int64_t l = 0; l < a.l; ++l) {
      const double score_var = at(a.score_var, l, b, g);
      valid = valid && score_var > 0 && score_var - score_var == 0;
      const auto c = pvd_coefficients<T>::from(sigma, above, zeta, score_var, 1.0 / double(a.l));
      const T *sample = in(a.sample, l), *denoised = in(a.denoised, l), *score = in(a.score, l);
      const T* from = l ? new_mean : mean;
      T* fused = a.l == 1 ? out(a.new_sample, 0) : nullptr;
      const T* noise = a.draw == 1 ? in(a.noise, 0) : buffer.data + skip;
      if (fused && a.draw == 2)
        buffer.fill(a.key, uint64_t(b), 0, first, skip + n, a.scale, [&](int64_t q) SF_LAMBDA {
          const int64_t i = 4 * q;
          fetch_reals(mean + i), fetch_reals(anchor + i), fetch_reals(sample + i);
          fetch_reals(denoised + i), fetch_reals(score + i);
        });
      bad = bad + update_run<T>{from, anchor, sample, denoised, score, a.draw ? noise : nullptr, new_mean, fused}.move(
                      c, amp, n);
    }
    for (int64_t l = 0; a.l > 1 && l < a.l; ++l) {
      if (a.draw == 2) buffer.fill(a.key, uint64_t(b), l, first, skip + n, a.scale);
      const T* noise = a.draw == 1 ? in(a.noise, l) : buffer.data + skip;
      T* sampled = out(a.new_sample, l);
      each_pack<T>(n, [&](int64_t i, int m) SF_LAMBDA {
        const P v = get(new_mean + i, m), drawn = a.draw ? v + amp * get(noise + i, m) : v;
        bad = bad + (drawn - drawn);
        put(sampled + i, drawn, m);
      });
    }
    return bad.sum() == T(0) && valid && sigma > 0 && above > 0 && var >= 0 && var - var == 0;
  }
};

template <class T>
void run_update(pvd_args& a) {
  const int64_t item = a.g * a.e, chunks = (item + draw_chunk - 1) / draw_chunk;
  a.bad = -1;
  const int64_t bytes = a.b * item * int64_t(sizeof(T));
  prepare_result(a.new_mean, bytes), prepare_result(a.new_sample, a.l * bytes);
  parallel_for(a.pool, a.b * chunks, chunk_grain(item), [&](int64_t begin, int64_t end) {
    draw_buffer<T> buffer;
    for (int64_t j = begin; j < end; ++j) {
      const int64_t b = j / chunks, last = j % chunks * draw_chunk + draw_chunk;
      const int64_t stop = last < item ? last : item;
      for (int64_t i = j % chunks * draw_chunk; i < stop;) {
        const int64_t g = i / a.e, n = (g + 1) * a.e < stop ? (g + 1) * a.e - i : stop - i;
        row<T> r{a, b, g, b * item + i, n};
        if (!r.run(buffer, i / 4 * 4, i % 4)) note_lowest(a.bad, b);
        i += n;
      }
    }
  });
}

void pvd_update(pvd_args& a) { a.is_double ? run_update<double>(a) : run_update<float>(a); }

}  // namespace SF_NS
}  // namespace sf
