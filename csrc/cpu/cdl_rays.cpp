// Rays of the 38.901 clustered delay line: Philox words to phases and couplings, and from the tables of a profile to
// the gains and the phase progressions that cdl_channels sums.
#include "draws.hpp"
#include "parallel.hpp"
#include "scratch.hpp"
#include "turns.hpp"

namespace sf {
inline namespace SF_NS {

constexpr int cluster_rays = 20, cluster_words = 4 * cluster_rays, key_row = 32;

// order[k] = which of 20 keys is the k-th smallest; equal keys keep their order.
inline void order_of(const uint32_t* keys, uint8_t* order) {
  alignas(64) uint32_t k[key_row], rank[key_row] = {};
  for (int j = 0; j < key_row; ++j) k[j] = j < cluster_rays ? keys[j] : 0xffffffffu;
  for (int i = 0; i < cluster_rays; ++i) {
    const uint32_t own = k[i];
    for (int j = 0; j < key_row; ++j) rank[j] += uint32_t(own < k[j]) + (uint32_t(own == k[j]) & uint32_t(i < j));
  }
  for (int j = 0; j < cluster_rays; ++j) order[rank[j]] = uint8_t(j);
}

template <class T>
struct ray_draw {
  static constexpr int N = native_width<double>;
  cdl_ray_args& a;
  int64_t rays;

  // Words 4 c .. 4 c + 3 of counter c, from the first on.
  void words(uint64_t item, int64_t counters_needed, uint32_t* out) const {
    const philox_counter at = counter_of(a.key, item);
    for (int64_t c = 0; c < counters_needed; c += N) {
      uint32_t w[4 * N];
      philox_words<N>(at, consecutive<N>(uint64_t(c)), w);
      for (int j = 0; j < 4; ++j)
        for (int i = 0; i < N; ++i) out[4 * (c + i) + j] = w[j * N + i];
    }
  }

  // exp(j 2 pi u) of 20 words (read as 24), u = ((w >> 8) + 1/2) 2^-24
  static void phases(const uint32_t* w, cx<double>* out) {
    for (int i = 0; i < cluster_rays; i += N) {
      wide_pack u;
      for (int q = 0; q < N; ++q) u.v[q] = (double(w[i + q] >> 8) + 0.5) * 0x1p-24;
      const cx<wide_pack> z = unit_phase(u);
      for (int q = 0; q < N; ++q) out[i + q] = {z.re.v[q], z.im.v[q]};
    }
  }

  void gain(T* out, const double* factor, cx<double> z) const {  // the factor of a path, re and im
    out[0] = T(factor[0] * z.re - factor[1] * z.im), out[1] = T(factor[0] * z.im + factor[1] * z.re);
  }

  // 20 azimuth terms of one end of a cluster under a yaw.
  static void turned(const cdl_end& end, int64_t c, const double (&yaw)[2], double* out) {
    const double *sine = end.sine + c * cluster_rays, *cosine = end.cosine + c * cluster_rays;
    for (int i = 0; i < cluster_rays; ++i) out[i] = sine[i] * yaw[0] - cosine[i] * yaw[1];
  }
  static void yaw_of(const cdl_end& end, int64_t b, double (&yaw)[2]) {
    yaw[0] = end.yaw[2 * b * end.yaw_b], yaw[1] = end.yaw[2 * b * end.yaw_b + 1];
  }

  void item(int64_t b, uint32_t* w) const {
    const int64_t c_end = a.clusters;
    words(uint64_t(b), c_end * cluster_words / 4 + 1, w);
    T *gains = static_cast<T*>(a.gains) + 2 * b * a.f * rays, *rx = static_cast<T*>(a.rx) + b * rays;
    T* tx = static_cast<T*>(a.tx) + b * rays;
    double rx_yaw[2], tx_yaw[2], rx_terms[cluster_rays], tx_terms[cluster_rays];
    yaw_of(a.rx_end, b, rx_yaw), yaw_of(a.tx_end, b, tx_yaw);
    for (int64_t c = 0; c < c_end; ++c) {
      const uint32_t* own = w + c * cluster_words;
      cx<double> z[cluster_rays + N];
      phases(own, z);
      uint8_t zod[cluster_rays], aoa[cluster_rays], zoa[cluster_rays];
      order_of(own + cluster_rays, zod), order_of(own + 2 * cluster_rays, aoa), order_of(own + 3 * cluster_rays, zoa);
      turned(a.rx_end, c, rx_yaw, rx_terms), turned(a.tx_end, c, tx_yaw, tx_terms);
      const double *rx_zenith = a.rx_end.zenith + c * cluster_rays, *tx_zenith = a.tx_end.zenith + c * cluster_rays;
      for (int m = 0; m < cluster_rays; ++m) {
        rx[c * cluster_rays + m] = T(rx_zenith[zoa[m]] * rx_terms[aoa[m]]);
        tx[c * cluster_rays + m] = T(tx_zenith[zod[m]] * tx_terms[m]);
      }
      for (int64_t f = 0; f < a.f; ++f)
        for (int m = 0; m < cluster_rays; ++m)
          gain(gains + 2 * (f * rays + c * cluster_rays + m), a.factors + 2 * (f * (c_end + a.los) + c), z[m]);
    }
    if (!a.los) return;
    const int64_t last = c_end * cluster_rays;
    cx<double> z[cluster_rays + N] = {{1.0, 0.0}};
    if (a.los_random) phases(w + last * 4, z);
    rx[last] = T(a.rx_end.zenith[last] * (a.rx_end.sine[last] * rx_yaw[0] - a.rx_end.cosine[last] * rx_yaw[1]));
    tx[last] = T(a.tx_end.zenith[last] * (a.tx_end.sine[last] * tx_yaw[0] - a.tx_end.cosine[last] * tx_yaw[1]));
    for (int64_t f = 0; f < a.f; ++f)
      gain(gains + 2 * (f * rays + last), a.factors + 2 * (f * (c_end + 1) + c_end), z[0]);
  }

  void run() const {
    const int64_t count = a.clusters * cluster_words + 8 * cluster_rays;  // what packs read past the last word
    parallel_for(a.pool, a.b, 8, [&](int64_t begin, int64_t end) {
      scratch<uint32_t> w;
      w.allocate_zeros(count);
      for (int64_t b = begin; b < end; ++b) item(b, w);
    });
  }
};

void cdl_rays(cdl_ray_args& a) {
  a.bad = -1;
  const int64_t rays = a.clusters * cluster_rays + a.los;
  a.is_double ? ray_draw<double>{a, rays}.run() : ray_draw<float>{a, rays}.run();
}

}  // namespace SF_NS
}  // namespace sf
