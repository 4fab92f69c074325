// Normals of one item, by real index, through a small L1 buffer: what the fused kernels read their noise from.
#pragma once
#include "../common/philox.hpp"
#include "../common/kernels.hpp"

namespace sf {
inline namespace SF_NS {

constexpr int64_t draw_chunk = 1024;  // reals; a multiple of 4 * pack so that chunks start on a counter

// Chunks per slice of work: about 16k reals, some 20 us, make a thread worth waking.
inline int64_t chunk_grain(int64_t reals_per_item) {
  return 16 * draw_chunk / (reals_per_item < draw_chunk ? reals_per_item + 1 : draw_chunk) + 1;
}

// The counter of an item's draw, but for its word 0.
SF_HD philox_counter counter_of(const philox_key& key, uint64_t item, int64_t sample = 0) {
  return {uint32_t(key.seed), uint32_t(key.seed >> 32), key.step, uint32_t(key.first_item + item),
          uint32_t(key.stream + 16 * sample)};
}

template <class T>
struct draw_buffer {
  T data[draw_chunk + 64] __attribute__((aligned(64)));

  // data[0 .. n) = scale * normals of reals first .. first+n of `item`; first must be a multiple of 4.
  template <class Between = nothing_between>
  void fill(const philox_key& key, uint64_t item, int64_t sample, int64_t first, int64_t n, double scale,
            const Between& between = {}) {
    normals(counter_of(key, item, sample), uint64_t(first) / 4, (n + 3) / 4, T(scale), data, between);
  }
};

// Reals first .. first+n of the CN(0, 1) that diffusion step s adds to channel b: given, or drawn into the buffer.
// `Args` has draw, noise [b, steps, reals], steps, at [steps] and key.
template <class T, class Args>
SF_HD const T* diffusion_noise(const Args& a, int64_t b, int64_t s, int64_t reals, int64_t first, int64_t n,
                               draw_buffer<T>& buffer) {
  if (a.draw != 2) return static_cast<const T*>(a.noise) + (b * a.steps + s) * reals + first;
  philox_key key = a.key;
  key.step = uint32_t(a.at[s]);
  buffer.fill(key, uint64_t(b), 0, first, n, 0.7071067811865475244);
  return buffer.data;
}

// Brings 64 reals nearer, as many as one group of float32 normals: into the second cache, whose queue is the longer
// one.
template <class T>
SF_HD void fetch_reals(const T* p) {
  for (int i = 0; i < int(64 * sizeof(T)); i += 64) __builtin_prefetch(reinterpret_cast<const char*>(p) + i, 0, 2);
}

}  // namespace SF_NS
}  // namespace sf
