// The power normalisation around rzf_precode: the second pass of the forward call (energies of the units of an item ->
// one scale), and the first of the backward call (Re<x, g> of an item, in parts).
#pragma once
#include "channels.cuh"

namespace sf::cuda {

// Items of `entries` complex numbers in `segments` of `segment` each, one a CTA.
struct item_segments {
  int64_t entries, segment;
  int32_t segments;
  bool pairs;  // two complex64 entries in one access
  divisor by_segments;

  item_segments(int64_t entries_, int64_t segment_, bool pairs_)
      : entries(entries_),
        segment(segment_),
        segments(int32_t((entries_ + segment_ - 1) / segment_)),
        pairs(pairs_),
        by_segments(segments) {}
  struct part {
    int64_t item, segment, from, count;
  };
  SF_HD part at(int64_t cta) const {
    const int64_t item = by_segments(int32_t(cta)), s = cta - item * segments, left = entries - s * segment;
    return {item, s, item * entries + s * segment, left < segment ? left : segment};
  }
};

// x *= scale/|x|, from the units' energies; norm = |x|
template <class T>
struct scale_power {
  static constexpr int max_threads = 256, min_ctas = 0;
  using entry = wide<T, 1>;
  item_segments by;
  entry* x;
  const double* partial;
  double* norm;
  int32_t units;  // of an item
  double scale;

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    const item_segments::part at = by.at(cta.index());
    double* part = reinterpret_cast<double*>(cta.shared());
    sum_partials(cta, part, partial + at.item * units, units);
    cta.last([&](thread_place w) {
      const double root = __builtin_sqrt(summed(part, cta.threads()));
      const auto scaled = power_scale<T>::of(scale, root);
      if (at.segment == 0 && w.id == 0) norm[at.item] = root;
      by.pairs ? multiply<2>(cta.threads(), w, at, scaled) : multiply<1>(cta.threads(), w, at, scaled);
    });
  }
  template <int N>
  SF_HD void multiply(int32_t threads, thread_place w, const item_segments::part& at, power_scale<T> scaled) const {
    for (int64_t e = int64_t(w.id) * N; e < at.count; e += int64_t(threads) * N) {
      wide<T, N> v = load<N>(x + at.from + e);
    SF_UNROLL
      for (int j = 0; j < N; ++j) v.c[j] = {scaled(v.c[j].re), scaled(v.c[j].im)};
      store<N>(x + at.from + e, v);
    }
  }
};

// partial[item][segment] = Re<x, g>. Threads take two entries at a time however they are loaded, so that alignment does
// not change the sum.
template <class T>
struct power_dots {
  static constexpr int max_threads = 256, min_ctas = 0;
  using entry = wide<T, 1>;
  item_segments by;
  const entry *x, *g;
  double* partial;

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    const item_segments::part at = by.at(cta.index());
    double* part = reinterpret_cast<double*>(cta.shared());
    cta.phase([&](thread_place w) {
      double sum = 0;
      for (int64_t e = int64_t(w.id) * 2; e < at.count; e += int64_t(cta.threads()) * 2) {
        if (by.pairs) {
          const wide<T, 2> a = load<2>(x + at.from + e), b = load<2>(g + at.from + e);
          add(sum, a.c[0], b.c[0]), add(sum, a.c[1], b.c[1]);
        } else {
          add(sum, x[at.from + e].c[0], g[at.from + e].c[0]);
          if (e + 1 < at.count) add(sum, x[at.from + e + 1].c[0], g[at.from + e + 1].c[0]);
        }
      }
      part[w.id] = sum;
    });
    sum_threads(cta, part);
    cta.last([&](thread_place w) {
      if (w.id == 0) partial[at.item * by.segments + at.segment] = summed(part, cta.threads());
    });
  }
  SF_HD static void add(double& sum, one_col<T> a, one_col<T> b) {
    sum += double(a.re) * double(b.re);
    sum += double(a.im) * double(b.im);
  }
};

}  // namespace sf::cuda
