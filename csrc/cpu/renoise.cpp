// out[b, s] = sqrt(ab_s) h[b] + sqrt(1 - ab_s) eps, eps given or Philox normals of diffusion step s and item b.
#include "around.hpp"
#include "draws.hpp"
#include "packs.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
bool renoise_chunk(const renoise_args& a, int64_t b, int64_t s, int64_t first, draw_buffer<T>& buffer) {
  using P = native<T>;
  const int64_t reals = 2 * a.n, n = reals - first < draw_chunk ? reals - first : draw_chunk;
  const int64_t row = (b * a.steps + s) * reals + first;
  const P keep = T(__builtin_sqrt(a.alpha_bar[s])), add = T(__builtin_sqrt(1 - a.alpha_bar[s]));
  const T* noise = diffusion_noise(a, b, s, reals, first, n, buffer);
  const T* h = static_cast<const T*>(a.h) + b * reals + first;
  T* out = static_cast<T*>(a.out) + row;
  P bad = T(0);
  each_pack<T>(n, [&](int64_t i, int m) SF_LAMBDA {
    const P v = fused(keep, get(h + i, m), add * get(noise + i, m));
    bad = bad + first_lanes<T>(v - v, m);
    put(out + i, v, m);
  });
  return bad.sum() == T(0);
}

template <class T>
void run_renoise(renoise_args& a) {
  a.bad = -1;
  prepare_result(a.out, 2 * a.b * a.steps * a.n * int64_t(sizeof(T)));
  const int64_t chunks = (2 * a.n + draw_chunk - 1) / draw_chunk;
  parallel_for(a.pool, a.b * a.steps * chunks, chunk_grain(2 * a.n), [&](int64_t begin, int64_t end) {
    draw_buffer<T> buffer;
    for (int64_t j = begin; j < end; ++j) {
      const int64_t row = j / chunks, b = row / a.steps;
      if (!renoise_chunk(a, b, row % a.steps, j % chunks * draw_chunk, buffer)) note_lowest(a.bad, b);
    }
  });
}

void renoise(renoise_args& a) { a.is_double ? run_renoise<double>(a) : run_renoise<float>(a); }

}  // namespace SF_NS
}  // namespace sf
