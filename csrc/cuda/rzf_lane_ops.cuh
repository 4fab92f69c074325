// rzf_precode and its vector-Jacobian product for channels of at most 4 narrow rows: rzf_lanes.cuh.
#pragma once
#include "rzf_lanes.cuh"

namespace sf::cuda {

// x = V^H A^-1 s (K-form) or A^-1 V s (M-form)
template <class T, int N, int LEN>
struct precode_lanes {
  static constexpr int max_threads = 128, min_ctas = lane_ctas<T, N>;
  using entry = wide<T, 1>;
  using memory = typename lane_work<T>::memory;
  channels<T> v;
  lane_work<T> work;

  struct state {
    double energy;
    int32_t info;
    bool good;
  };

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    const slice at = v.at(cta.index());
    const memory m = work.in(cta.shared());
    auto regs = cta.template registers<state>();
    for (int32_t t0 = 0; t0 < v.t; t0 += work.chunk) {
      const int32_t tc = least(work.chunk, v.t - t0);
      cta.loads([&](thread_place w) {
        if (t0 == 0) {
          work.load(work.of_h, w.id, at.count, 1, v.h + at.first * v.h_b, m.slots, work.at.h);
          regs[w.id] = {0.0, 0, true};
        }
        if (v.s)
          work.load(work.of_k, w.id, at.count, tc, v.s + at.first * work.of_k.channel + t0 * work.of_k.step, m.slots,
                    work.at.s);
      });
      if (LEN == 0 && v.m_form && t0 == 0)
        cta.phase([&](thread_place w) {
          if (w.g < at.count) work.conjugate(w, m.slots, v.k * v.m);
        });
      cta.phase([&](thread_place w) {
        if (w.g >= at.count) return;
        solve(w, at, t0, tc, m, regs[w.id]);
        m.flag[w.id] = !regs[w.id].good;
        if (!v.rows && work.lanes == 1) conclude(w, at, m, regs[w.id]);
      });
      if (!v.rows && work.lanes > 1)
        cta.phase([&](thread_place w) {
          if (w.p == 0 && w.g < at.count) conclude(w, at, m, regs[w.id]);
        });
      cta.phase([&](thread_place w) {
        work.save(work.of_m, w.id, at.count, tc, v.out_x + at.first * work.of_m.channel + t0 * work.of_m.step, m,
                  work.at.x);
      });
    }
    if (!v.rows && v.t > work.chunk)
      cta.phase([&](thread_place w) {  // streams that were written before another one spoilt the channel
        if (w.g >= at.count || !m.flag[w.g * work.lanes]) return;
        for (int32_t e = w.p; e < v.m * v.t; e += work.lanes) v.out_x[(at.first + w.g) * v.m * v.t + e] = entry{};
      });
    if (v.scale == 0) return;
    cta.phase(
        [&](thread_place w) { m.part[w.id] = w.g < at.count && !m.flag[w.g * work.lanes] ? regs[w.id].energy : 0.0; });
    sum_threads(cta, m.part);
    cta.last([&](thread_place w) {
      if (w.id == 0) v.partial[cta.index()] = summed(m.part, work.threads);
    });
  }

  SF_HD void solve(thread_place w, slice at, int32_t t0, int32_t tc, const memory& m, state& z) const {
    entry* slot = m.slots + w.g * work.at.pitch;
    const lane_rows<T, N, LEN> rows(slot + work.at.h, v);
    const T reg = v.reg(at.first + w.g);
    with_factor<false>(rows, LEN > 0 ? LEN : v.len, reg,
                       [&](const auto& V, const auto* l, const auto* inv, const auto* from, int32_t bad) {
                         z.info = bad;
                         for (int32_t t = w.p; t < tc; t += work.lanes) {
                           entry* x = slot + work.at.x + t * v.at_t(v.m);
                           double energy = 0;
                           const bool good =
                               right_hand_side(V, l, inv, from, slot + work.at.s + t * v.at_t(v.k), x, t0 + t, energy);
                           z.good = z.good && (good || v.rows);
                           const auto verdict = v.settle(bad, good, reg);
                           if (!v.rows || verdict.keep) z.energy += energy;
                           if (!v.rows) continue;
                           for (int32_t i = 0; !verdict.keep && i < v.m; ++i) x[i] = entry{};
                           if (v.info) v.info[(at.first + w.g) * v.t + t0 + t] = verdict.info;
                         }
                       });
  }

  template <class V, class Q>
  SF_HD bool right_hand_side(const V& V_, const cx<Q>* l, const Q* inv, const Q* from, const entry* s, entry* x,
                             int32_t t, double& energy) const {
    const int32_t len = LEN > 0 ? LEN : v.len, step = v.at_i(work.chunk);
    bool good = true;
    const auto symbol = [&](int i) { return v.s ? number<Q>(s[i * step]) : cx<Q>{Q(i == t ? 1 : 0), Q(0)}; };
    const auto put = [&](int i, cx<Q> value) {
      const entry e = entry_of<T>(value);
      x[i * step] = e;
      good = good && finite(e);
      if (v.scale > 0) add_square(energy, e.c[0]);
    };
    cx<Q> u[N];
    if (LEN == 0 && v.m_form) {
      narrow_product<N>(V_, N, len, symbol, u);
      sf::solve<N>(l, inv, from, N, u);
      loop<N>(0, N, [&](int i) { put(i, u[i]); });
    } else {
      loop<N>(0, N, [&](int i) { u[i] = symbol(i); });
      sf::solve<N>(l, inv, from, N, u);
      loop<LEN>(0, len, [&](int i) {
        cx<Q> y[1];
        wide_product<1, N>(V_, N, i, u, y);
        put(i, y[0]);
      });
    }
    return good;
  }

  SF_HD void conclude(thread_place w, slice at, const memory& m, state& z) const {  // the fate of streams
    for (int32_t j = 1; j < work.lanes; ++j) z.good = z.good && !m.flag[w.id + j];
    const auto verdict = v.settle(z.info, z.good, v.reg(at.first + w.g));
    m.flag[w.id] = !verdict.keep;
    if (v.info) v.info[at.first + w.g] = verdict.info;
  }
};

// With p narrow and q wide (K-form: s and g; M-form: g and s):
//   u = A^-1 p,  w = A^-1 V q,  x = V^H u,  r = q - V^H w,  dV = sum_t u r^H - w x^H,  d reg = -Re sum_t w^H u
// and the gradient of s is w in the K-form, x in the M-form. A thread with the channel's only right-hand side puts dV
// into V's slot, column by column; otherwise u, w, x and r go through shared memory and dV is formed entry by entry.
// Symbols that are not finite took no part in x: zeros stand for them and for their gradient.
template <class T, int N, int LEN>
struct vjp_lanes {
  static constexpr int max_threads = 128, min_ctas = lane_ctas<T, 4>;  // also for small N: it keeps more
  using entry = wide<T, 1>;
  using memory = typename lane_work<T>::memory;
  channels<T> v;
  lane_work<T> work;
  divisor by_m;

  struct state {
    double slope;
    int32_t info;
    bool silent;
  };
  struct arrays {  // of one channel in shared memory
    entry *h, *p, *q, *w, *x;
    int32_t step;  // between entries of a right-hand side; p and w have n, q (then r) and x have len
  };
  SF_HD arrays arrays_of(const memory& m, int32_t g) const {
    entry* e = m.slots + g * work.at.pitch;
    entry *s = e + work.at.s, *ds = e + work.at.ds, *x = e + work.at.x, *grad = e + work.at.g;
    return LEN == 0 && v.m_form ? arrays{e + work.at.h, grad, s, x, ds, v.at_i(work.chunk)}
                                : arrays{e + work.at.h, s, grad, ds, x, v.at_i(work.chunk)};
  }
  SF_HD bool single() const { return v.t == 1; }
  SF_HD int32_t len() const { return LEN > 0 ? LEN : v.len; }

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    const slice at = v.at(cta.index());
    const memory m = work.in(cta.shared());
    auto regs = cta.template registers<state>();
    auto power = power_slope<T>::none();
    if (v.scale > 0) {
      sum_partials(cta, m.part, v.partial + at.item * v.dots, v.dots);
      power = power_slope<T>::of(v.scale, v.norm[at.item], summed(m.part, work.threads));
    }
    for (int32_t t0 = 0; t0 < v.t; t0 += work.chunk) {
      const int32_t tc = least(work.chunk, v.t - t0);
      cta.loads([&](thread_place w) {
        if (t0 == 0) {
          work.load(work.of_h, w.id, at.count, 1, v.h + at.first * v.h_b, m.slots, work.at.h);
          regs[w.id] = {0.0, 0, false};
          if (!v.rows && v.s && w.g < at.count) m.flag[w.id] = !finite_streams(w, at);
        }
        const int64_t k0 = at.first * work.of_k.channel + t0 * work.of_k.step,
                      m0 = at.first * work.of_m.channel + t0 * work.of_m.step;
        if (v.s) work.load(work.of_k, w.id, at.count, tc, v.s + k0, m.slots, work.at.s);
        work.load(work.of_m, w.id, at.count, tc, v.g + m0, m.slots, work.at.g);
        if (v.scale > 0) work.load(work.of_m, w.id, at.count, tc, v.x + m0, m.slots, work.at.x);
      });
      if (t0 == 0 && ((LEN == 0 && v.m_form) || (!v.rows && v.s)))
        cta.phase([&](thread_place w) {
          if (w.g >= at.count) return;
          if (LEN == 0 && v.m_form) work.conjugate(w, m.slots, v.k * v.m);
          for (int32_t j = 0; !v.rows && v.s && j < work.lanes; ++j)
            regs[w.id].silent = regs[w.id].silent || m.flag[w.g * work.lanes + j];
        });
      cta.phase([&](thread_place w) {
        if (w.g >= at.count) return;
        solve(w, at, t0, tc, m, power, regs[w.id]);
        m.flag[w.id] = !v.settle(regs[w.id].info, true, v.reg(at.first + w.g)).keep;
      });
      cta.phase([&](thread_place w) {
        if (v.ds)
          work.save(work.of_k, w.id, at.count, tc, v.ds + at.first * work.of_k.channel + t0 * work.of_k.step, m,
                    work.at.ds);
        if (v.dh && single()) {
          block_copy own = work.of_h;  // channels that share one h have a gradient each
          own.channel = v.k * v.m;
          work.save(own, w.id, at.count, 1, v.dh + at.first * v.k * v.m, m, work.at.h);
        }
        if (v.dh && !single() && w.g < at.count) channel_slope(w, at, t0, tc, m);
      });
    }
    cta.phase([&](thread_place w) { m.part[w.id] = regs[w.id].slope; });
    cta.last([&](thread_place w) {
      if (w.p || w.g >= at.count) return;
      double sum = 0;
      for (int32_t j = 0; j < work.lanes; ++j) sum += m.part[w.id + j];
      v.da[at.first + w.g] = m.flag[w.id] ? 0.0 : sum;
    });
  }

  SF_HD void solve(thread_place w, slice at, int32_t t0, int32_t tc, const memory& m, power_slope<T> power,
                   state& z) const {
    const arrays a = arrays_of(m, w.g);
    const lane_rows<T, N, LEN> rows(a.h, v);
    for (int32_t t = w.p; t < tc; t += work.lanes) prepare(m.slots + w.g * work.at.pitch, t, t0, power, z);
    with_factor<false>(rows, len(), v.reg(at.first + w.g),
                       [&](const auto& V, const auto* l, const auto* inv, const auto* from, int32_t bad) {
                         z.info = bad;
                         for (int32_t t = w.p; t < tc; t += work.lanes) right_hand_side(V, l, inv, from, rows, a, t, z);
                       });
  }

  SF_HD bool finite_streams(thread_place w, slice at) const {
    bool good = true;
    const entry* s = v.s + (at.first + w.g) * v.k * v.t;
    for (int32_t e = w.p; e < v.k * v.t; e += work.lanes) good = good && finite(s[e]);
    return good;
  }

  // A staged right-hand side: unit symbols, the adjoint of the power normalisation, silence.
  SF_HD void prepare(entry* slot, int32_t t, int32_t t0, power_slope<T> power, const state& z) const {
    const int32_t step = v.at_i(work.chunk);
    entry *s = slot + work.at.s + t * v.at_t(v.k), *g = slot + work.at.g + t * v.at_t(v.m),
          *x = slot + work.at.x + t * v.at_t(v.m);
    bool silent = z.silent;
    for (int i = 0; v.scale > 0 && i < v.m; ++i) g[i * step] = sloped(power, g[i * step], x[i * step]);
    if (!v.s)
      for (int i = 0; i < v.k; ++i) s[i * step] = {{{T(i == t0 + t), T(0)}}};
    else if (v.rows)
      for (int i = 0; i < v.k; ++i) silent = silent || !finite(s[i * step]);
    for (int i = 0; silent && i < v.k; ++i) s[i * step] = entry{};
    for (int i = 0; silent && i < v.m; ++i) g[i * step] = entry{};
  }

  template <class V, class Q>
  SF_HD void right_hand_side(const V& V_, const cx<Q>* l, const Q* inv, const Q* from, const lane_rows<T, N, LEN>& rows,
                             const arrays& a, int32_t t, state& z) const {
    const bool m_form = LEN == 0 && v.m_form;
    entry *p = a.p + t * v.at_t(v.n), *q = a.q + t * v.at_t(v.len), *w = a.w + t * v.at_t(v.n),
          *x = a.x + t * v.at_t(v.len);
    cx<Q> u[N], y[N];
    const auto wide_side = [&](int i) { return number<Q>(q[i * a.step]); };
    narrow_product<N>(V_, N, len(), wide_side, y);
    sf::solve<N>(l, inv, from, N, y);
    loop<N>(0, N, [&](int i) { u[i] = number<Q>(p[i * a.step]); });
    sf::solve<N>(l, inv, from, N, u);
    loop<N>(0, N, [&](int i) {
      z.slope -= double(y[i].re) * double(u[i].re) + double(y[i].im) * double(u[i].im);
      if (!single()) p[i * a.step] = entry_of<T>(u[i]);
      if (!single() || !m_form) w[i * a.step] = entry_of<T>(y[i]);
    });
    if (!m_form && !v.dh) return;
    loop<LEN>(0, len(), [&](int m) {
      cx<Q> xm[1], rm[1];
      wide_product<1, N>(V_, N, m, u, xm);
      wide_product<1, N>(V_, N, m, y, rm);
      rm[0] = wide_side(m) - rm[0];
      if (!single() || m_form) x[m * a.step] = entry_of<T>(xm[0]);
      if (!single()) q[m * a.step] = entry_of<T>(rm[0]);
      if (single() && v.dh)
        loop<N>(0, N, [&](int i) {
          cx<Q> d = {Q(0), Q(0)};
          add<times::conj_b>(d, u[i], rm[0]);
          sub<times::conj_b>(d, y[i], xm[0]);
          a.h[rows.at(i, m)] = entry_of<T>(m_form ? conj(d) : d);
        });
    });
  }

  // dV of one channel, entry by entry; it grows in global memory over chunks of right-hand sides.
  SF_HD void channel_slope(thread_place w, slice at, int32_t t0, int32_t tc, const memory& s) const {
    const arrays a = arrays_of(s, w.g);
    const bool m_form = LEN == 0 && v.m_form;
    entry* out = v.dh + (at.first + w.g) * v.k * v.m;
    for (int32_t e = w.p; e < v.k * v.m; e += work.lanes) {
      const int32_t row = by_m(e), col = e - row * v.m, i = m_form ? col : row, m = m_form ? row : col;
      cx<T> d = {T(0), T(0)};
      for (int32_t t = 0; t < tc; ++t) {
        const int32_t n_at = i * a.step + t * v.at_t(v.n), w_at = m * a.step + t * v.at_t(v.len);
        add<times::conj_b>(d, number<T>(a.p[n_at]), number<T>(a.q[w_at]));
        sub<times::conj_b>(d, number<T>(a.w[n_at]), number<T>(a.x[w_at]));
      }
      if (m_form) d = conj(d);
      if (t0) d = d + number<T>(out[e]);
      out[e] = s.flag[w.g * work.lanes] ? entry{} : entry_of<T>(d);
    }
  }
};

}  // namespace sf::cuda
