// The grid of cir_to_ofdm, like plan.hpp.
#pragma once
#include "path_sum.cuh"
#include "plan.hpp"

namespace sf::cuda {

template <class T, int R, class Run>
void paths_on(const cir_args& a, const Run& run) {
  using entry = wide<T, 1>;
  const int32_t per_block = a.f < 128 ? int32_t(a.f) : 128, group = group_size(per_block, 128);
  const int32_t tiles = int32_t(ceil_div64(a.group, R)), segments = int32_t(ceil_div64(a.f, per_block));
  const path_sum<T, R> body{static_cast<const entry*>(a.gains),
                            static_cast<const T*>(a.delays),
                            a.frequencies,
                            a.gain_at,
                            a.delay_at,
                            a.out_at,
                            static_cast<entry*>(a.out),
                            a.gain_p,
                            a.delay_p,
                            a.out_f,
                            a.rows / a.group,
                            int32_t(a.group),
                            int32_t(a.p),
                            int32_t(a.f),
                            a.p < 32 ? int32_t(a.p) : 32,
                            per_block,
                            group < 8 ? group : 8,
                            tiles,
                            segments,
                            divisor(tiles),
                            divisor(segments)};
  run_body_on(run, body,
              {ceil_div64(body.groups, body.group) * tiles * segments, per_block, body.group, body.shared_bytes()});
}

template <class T, class Run>
void paths_of_rows(const cir_args& a, const Run& run) {
  if (a.group == 1) return paths_on<T, 1>(a, run);
  if (a.group == 2) return paths_on<T, 2>(a, run);
  if (a.group <= 4) return paths_on<T, 4>(a, run);
  paths_on<T, 8>(a, run);
}

template <class Run>
void plan_paths(const cir_args& a, const Run& run) {
  for (int64_t n : {a.group, a.p, a.f})
    if (n <= 0 || n >= 1 << 30)
      throw std::runtime_error("cir_to_ofdm: a response is empty or has more than 2^30 entries");
  for (const void* p : {a.gains, (const void*)a.out})
    if (reinterpret_cast<uintptr_t>(p) % (a.is_double ? 16 : 8))
      throw std::runtime_error("cir_to_ofdm: data is not aligned to its complex entries");
  a.is_double ? paths_of_rows<double>(a, run) : paths_of_rows<float>(a, run);
}

}  // namespace sf::cuda
