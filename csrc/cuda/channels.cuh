// What the kernels of rzf_precode, its vector-Jacobian product and lmmse_equalise share, for threads (rzf_lanes.cuh)
// and for teams (rzf_teams.cuh): typed arguments, units of work, and the rule for channels without inverse.
#pragma once
#include "../common/power_scale.hpp"
#include "../common/small_matrix.hpp"
#include "cta.cuh"

namespace sf::cuda {

SF_HD int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }

template <class Q, class T>
SF_HD cx<Q> number(wide<T, 1> e) {
  return {Q(e.c[0].re), Q(e.c[0].im)};
}
template <class T, class Q>
SF_HD wide<T, 1> entry_of(cx<Q> z) {
  return {{{T(z.re), T(z.im)}}};
}
template <class T>
SF_HD bool finite(wide<T, 1> e) {
  return (e.c[0].re - e.c[0].re) + (e.c[0].im - e.c[0].im) == T(0);
}

// Pivots below this part of the largest diagonal count as zero: the rounding of double, or of rows known in float only.
SF_HD constexpr double singular_part(int n, bool single) {
  const double own = 4.0 * n * 2.220446049250313e-16, root32 = 4.0 * n * 1.1920928955078125e-7;
  return single && root32 * root32 > own ? root32 * root32 : own;
}

// Consecutive channels of one item: what a CTA works on. Units count from the start of an item, so that sums are the
// same whatever the batch.
struct slice {
  int64_t item, first;
  int32_t count;
};

// V [n x len] is the channel (K-form) or its adjoint (M-form). Right-hand sides and results are "narrow" (n entries) or
// "wide" (len entries); entry i of right-hand side t is at i*rhs_stride(..).i + t*rhs_stride(..).t of its channel.
template <class T>
struct channels {
  using real = T;
  using entry = wide<T, 1>;
  const entry *h, *s, *x, *g;
  const T* alpha;
  entry *out_x, *dh, *ds;
  T* out_noise;
  double *norm, *da, *partial;  // partial: one sum a unit (energies), or `dots` sums an item (Re<x, g>)
  int32_t* info;
  int64_t total, h_b, per_item, run, units;
  int32_t k, m, t, n, len, group, chunks, dots;
  double scale;  // 0: no power normalisation
  bool rows, m_form, pinv, refuse_zero;
  divisor by_chunks, by_run;

  channels(const rzf_args& a, int32_t group_, double* partial_, int32_t dots_)
      : h(static_cast<const entry*>(a.h)),
        s(static_cast<const entry*>(a.s)),
        x(static_cast<const entry*>(a.x)),
        g(static_cast<const entry*>(a.g)),
        alpha(static_cast<const T*>(a.alpha)),
        out_x(static_cast<entry*>(a.out_x)),
        dh(static_cast<entry*>(a.dh)),
        ds(static_cast<entry*>(a.ds)),
        out_noise(static_cast<T*>(a.out_noise)),
        norm(a.norm),
        da(a.da),
        partial(partial_),
        info(a.info),
        total(a.n),
        h_b(a.h_b),
        per_item(a.n / a.items),
        run(a.alpha_run),
        units(0),
        k(int32_t(a.k)),
        m(int32_t(a.m)),
        t(int32_t(a.t)),
        n(a.m_form ? m : k),
        len(a.m_form ? k : m),
        group(group_),
        chunks(int32_t((per_item + group_ - 1) / group_)),
        dots(dots_),
        scale(a.scale),
        rows(a.rows),
        m_form(a.m_form),
        pinv(a.pinv),
        refuse_zero(a.refuse_zero),
        by_chunks(chunks),
        by_run(a.n <= 0x7fffffff ? a.alpha_run : 1) {  // else `reg` divides in 64 bits
    units = a.items * chunks;
  }

  SF_HD slice at(int64_t unit) const {
    const int64_t item = by_chunks(int32_t(unit)), from = (unit - item * chunks) * group;
    return {item, item * per_item + from, int32_t(per_item - from < group ? per_item - from : group)};
  }
  SF_HD T reg(int64_t channel) const {
    return alpha[total <= 0x7fffffff ? int64_t(by_run(int32_t(channel))) : channel / run];
  }
  // Entry (i, t) of a right-hand side or result with `size` entries, in an array that holds `slots` of them.
  SF_HD int32_t at_i(int32_t slots) const { return rows ? 1 : slots; }
  SF_HD int32_t at_t(int32_t size) const { return rows ? size : 1; }

  // A channel without inverse, or a result that is not finite, gives zeros; info says which. With `rows` each
  // right-hand side is a sample with a fate of its own, else they are streams that share one. `found` is the failing
  // pivot, -1 for a channel that is not finite itself (which no pseudo-inverse saves).
  struct verdict {
    int32_t info;
    bool keep;
  };
  SF_HD verdict settle(int32_t found, bool good, T regulariser) const {
    if (refuse_zero && found == 0 && regulariser == T(0)) found = m + 1;
    return {found < 0 ? 1 : found > 0 ? found : good ? 0 : -1, good && (found == 0 || (pinv && found > 0))};
  }
};

// Sums over the threads of a CTA, always in the same order. `part` holds one number a thread and `sum_lanes_` more.
constexpr int32_t sum_lanes = 16;

template <class Cta>
SF_HD void sum_threads(const Cta& cta, double* part) {
  cta.phase([&](thread_place w) {
    const int32_t n = cta.threads();
    for (int32_t lane = w.id; lane < sum_lanes; lane += n) {
      double sum = 0;
      for (int32_t j = lane; j < n; j += sum_lanes) sum += part[j];
      part[n + lane] = sum;
    }
  });
}
SF_HD double summed(const double* part, int32_t threads) {
  double sum = 0;
  for (int32_t j = 0; j < sum_lanes; ++j) sum += part[threads + j];
  return sum;
}

// The same sum over `count` numbers in global memory, for every thread: a phase, then summed(part, threads).
template <class Cta>
SF_HD void sum_partials(const Cta& cta, double* part, const double* from, int32_t count) {
  cta.phase([&](thread_place w) {
    double sum = 0;
    for (int32_t j = w.id; j < count; j += cta.threads()) sum += from[j];
    part[w.id] = sum;
  });
  sum_threads(cta, part);
}

template <class T>
SF_HD wide<T, 1> sloped(const power_slope<T>& power, wide<T, 1> g, wide<T, 1> x) {
  return {{{power(g.c[0].re, x.c[0].re), power(g.c[0].im, x.c[0].im)}}};
}

}  // namespace sf::cuda
