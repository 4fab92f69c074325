// rzf_precode, its vector-Jacobian product and lmmse_equalise for channels of at most 4 narrow rows: rzf_lanes.cuh.
#pragma once
#include "rzf_lanes.cuh"

namespace sf::cuda {

// x = V^H A^-1 s (K-form) or A^-1 V s (M-form)
template <class T, int N, int LEN>
struct precode_lanes {
  static constexpr int max_threads = 128, min_ctas = 0;
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
      cta.phase([&](thread_place w) {
        if (w.g >= at.count) return;
        solve(w, at, t0, tc, m, regs[w.id]);
        m.flag[w.id] = !regs[w.id].good;
        if (work.lanes == 1) conclude(w, at, m, regs[w.id]);
      });
      if (work.lanes > 1)
        cta.phase([&](thread_place w) {
          if (w.p == 0 && w.g < at.count) conclude(w, at, m, regs[w.id]);
        });
      cta.phase([&](thread_place w) {
        work.save(work.of_m, w.id, at.count, tc, v.out_x + at.first * work.of_m.channel + t0 * work.of_m.step, m,
                  work.at.x);
      });
    }
    if (v.t > work.chunk)
      cta.phase([&](thread_place w) { // chunks that were written before another one spoilt the channel
        if (w.g >= at.count || !m.flag[w.g * work.lanes]) return;
        for (int32_t e = w.p; e < v.m * v.t; e += work.lanes) v.out_x[(at.first + w.g) * v.m * v.t + e] = entry{};
      });
    if (v.scale == 0) return;
    cta.phase([&](thread_place w) {
      m.part[w.id] = w.g < at.count && !m.flag[w.g * work.lanes] ? regs[w.id].energy : 0.0;
    });
    sum_threads(cta, m.part);
    cta.last([&](thread_place w) {
      if (w.id == 0) v.partial[cta.index()] = summed(m.part, work.threads);
    });
  }

  SF_HD void solve(thread_place w, slice at, int32_t t0, int32_t tc, const memory& m, state& z) const {
    entry* slot = m.slots + w.g * work.at.pitch;
    const bool m_form = LEN == 0 && v.m_form;
    const int32_t len = LEN > 0 ? LEN : v.len;
    const lane_rows<T, N, LEN> rows(slot + work.at.h, v);
    with_factor<false>(rows, len, v.reg(at.first + w.g), [&](const auto& V, const auto* l, const auto* inv,
                                                               const auto* from, int32_t bad) {
      using Q = std::remove_cv_t<std::remove_reference_t<decltype(*inv)>>;
      z.info = bad;
      for (int32_t t = w.p; t < tc; t += work.lanes) {
        const entry* s = slot + work.at.s + t * v.at_t(v.k);
        entry* x = slot + work.at.x + t * v.at_t(v.m);
        const int32_t i_step = v.at_i(work.chunk);
        const auto symbol = [&](int i) {
          return v.s ? number<Q>(s[i * i_step]) : cx<Q>{Q(i == t0 + t ? 1 : 0), Q(0)};
        };
        const auto put = [&](int i, cx<Q> value) {
          const entry e = entry_of<T>(value);
          x[i * i_step] = e;
          z.good = z.good && finite(e);
          if (v.scale > 0) add_square(z.energy, e.c[0]);
        };
        cx<Q> u[N];
        if (m_form) {
          narrow_product<N>(V, N, len, symbol, u);
          sf::solve<N>(l, inv, from, N, u);
          loop<N>(0, N, [&](int i) { put(i, u[i]); });
        } else {
          loop<N>(0, N, [&](int i) { u[i] = symbol(i); });
          sf::solve<N>(l, inv, from, N, u);
          SF_UNROLL
          for (int i = 0; i < len; ++i) {
            cx<Q> y[1];
            wide_product<1, N>(V, N, i, u, y);
            put(i, y[0]);
          }
        }
      }
    });
  }

  SF_HD void conclude(thread_place w, slice at, const memory& m, state& z) const {
    for (int32_t j = 1; j < work.lanes; ++j) z.good = z.good && !m.flag[w.id + j];
    const auto verdict = v.settle(z.info, z.good, v.reg(at.first + w.g));
    m.flag[w.id] = !verdict.keep;
    if (v.info) v.info[at.first + w.g] = verdict.info;
  }
};

}  // namespace sf::cuda
