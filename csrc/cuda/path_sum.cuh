// cir_to_ofdm: h(f) = sum_p gains_p exp(-j 2 pi f tau_p). A thread has one frequency and R rows (antennas) that share
// delays, so each phase is formed once for R products. Gains and delays are staged in shared memory, some paths at a
// time.
#pragma once
#include <math.h>

#include "channels.cuh"

namespace sf::cuda {

// f tau - (an integer), in [-1/2, 1/2]. In single precision f = high + low, and the product's rounding error is kept:
// no double arithmetic, and exact to 2^-24 turns for any number of turns below 2^40.
struct frequency_in_float {
  float high, low;
  SF_HD explicit frequency_in_float(double f) : high(float(f)), low(float(f - double(float(f)))) {}
  SF_HD float turns(float tau) const {
    const float t = high * tau, rest = fmaf(low, tau, fmaf(high, tau, -t));
    const float sum = (t - rintf(t)) + (rest - rintf(rest));
    return sum - rintf(sum);
  }
};
struct frequency_in_double {
  double f;
  SF_HD explicit frequency_in_double(double f_) : f(f_) {}
  SF_HD double turns(double tau) const {
    const double t = f * tau;
    return t - rint(t);
  }
};
SF_HD frequency_in_float frequency_for(double f, float) { return frequency_in_float(f); }
SF_HD frequency_in_double frequency_for(double f, double) { return frequency_in_double(f); }

// exp(-j 2 pi turns): the nearest quarter turn, and polynomials on [-pi/4, pi/4] (those of common/philox.hpp).
SF_HD cx<float> unit_phase(float turns) {
  const float quarter = rintf(turns * 4.0f), x = (turns - quarter * 0.25f) * 6.283185307f, z = x * x;
  const float s = x + x * z * (z * (z * -1.9515295891e-4f + 8.3321608736e-3f) - 1.6666654611e-1f);
  const float c =
      1.0f - 0.5f * z + z * z * (z * (z * 2.443315711809948e-5f - 1.388731625493765e-3f) + 4.166664568298827e-2f);
  const int32_t q = int32_t(quarter) & 3;
  const float sine = q & 1 ? c : s, cosine = q & 1 ? s : c;
  return {q == 1 || q == 2 ? -cosine : cosine, q & 2 ? sine : -sine};
}
SF_HD cx<double> unit_phase(double turns) {
  double s, c;
#if defined(__CUDA_ARCH__)
  sincospi(2.0 * turns, &s, &c);
#else
  s = sin(6.283185307179586477 * turns), c = cos(6.283185307179586477 * turns);
#endif
  return {c, -s};
}

template <class T, int R>
struct path_sum {
  static constexpr int max_threads = 128, min_ctas = 0;
  using entry = wide<T, 1>;
  const entry* gains;
  const T* delays;
  const double* frequencies;
  const int64_t *gain_at, *delay_at, *out_at;
  entry* out;
  int64_t gain_p, delay_p, out_f, groups;
  int32_t rows, paths, f, chunk;  // rows of a group; paths staged at a time
  int32_t per_block, group, row_tiles, segments;
  divisor by_tiles, by_segments;

  struct sums {
    cx<T> h[R];
  };
  struct place {
    int64_t group;
    int32_t row, f;  // the tile's first row; the thread's frequency
  };

  int32_t shared_bytes() const { return group * chunk * (R * int32_t(sizeof(entry)) + int32_t(sizeof(T))); }
  SF_HD entry* gains_of(unsigned char* shared, int32_t g) const {
    return reinterpret_cast<entry*>(shared) + g * chunk * R;
  }
  SF_HD T* delays_of(unsigned char* shared, int32_t g) const {
    return reinterpret_cast<T*>(reinterpret_cast<entry*>(shared) + group * chunk * R) + g * chunk;
  }
  SF_HD place at(int64_t cta, thread_place w) const {
    const int32_t tile = by_segments(int32_t(cta)), block = by_tiles(tile);
    return {int64_t(block) * group + w.g, (tile - block * row_tiles) * R,
            (int32_t(cta) - tile * segments) * per_block + w.p};
  }
  SF_HD int64_t row_at(const place& a, int32_t r) const {  // past the last row: that one again, computed and not stored
    return a.group * rows + least(a.row + r, rows - 1);
  }

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    auto regs = cta.template registers<sums>();
    for (int32_t p0 = 0; p0 < paths; p0 += chunk) {
      const int32_t count = least(chunk, paths - p0);
      cta.loads([&](thread_place w) {
        const place a = at(cta.index(), w);
        if (p0 == 0)
    SF_UNROLL
          for (int r = 0; r < R; ++r) regs[w.id].h[r] = {T(0), T(0)};
        if (a.group >= groups) return;
        entry* g = gains_of(cta.shared(), w.g);
        T* tau = delays_of(cta.shared(), w.g);
        const T* from = delays + delay_at[a.group] + p0 * delay_p;
        for (int32_t j = w.p; j < count; j += per_block) tau[j] = from[j * delay_p];
        for (int r = 0; r < R; ++r) {
          const entry* row = gains + gain_at[row_at(a, r)] + p0 * gain_p;
          for (int32_t j = w.p; j < count; j += per_block) copy_async<1>(g + j * R + r, row + j * gain_p);
        }
      });
      cta.phase([&](thread_place w) {
        const place a = at(cta.index(), w);
        if (a.group >= groups || a.f >= f) return;
        const entry* g = gains_of(cta.shared(), w.g);
        const T* tau = delays_of(cta.shared(), w.g);
        const auto frequency = frequency_for(frequencies[a.f], T(0));
        for (int32_t j = 0; j < count; ++j) {
          const cx<T> phase = unit_phase(frequency.turns(tau[j]));
          SF_UNROLL
          for (int r = 0; r < R; ++r) add(regs[w.id].h[r], number<T>(g[j * R + r]), phase);
        }
      });
    }
    cta.last([&](thread_place w) {
      const place a = at(cta.index(), w);
      if (a.group >= groups || a.f >= f) return;
      SF_UNROLL
      for (int r = 0; r < R; ++r)
        if (a.row + r < rows) out[out_at[row_at(a, r)] + a.f * out_f] = entry_of<T>(regs[w.id].h[r]);
    });
  }
};

}  // namespace sf::cuda
