// lmmse_equalise: s_hat = diag(G H)^-1 G y and 1/diag(G H) - 1 with G = (H^H H + v I)^-1 H^H, a thread (rzf_lanes.cuh)
// or a team of threads (rzf_teams.cuh) per channel. In double throughout: diag(G H) and 1 - diag(G H) both matter.
#pragma once
#include "rzf_lanes.cuh"
#include "rzf_team_ops.cuh"

namespace sf::cuda {

// An equalised symbol; of a silent column nothing is known.
template <class T>
SF_HD wide<T, 1> unbiased(cx<double> biased, double gain) {
  return gain > 0 ? entry_of<T>(cx<double>{biased.re / gain, biased.im / gain})
                  : entry_of<T>(cx<double>{0.0 * biased.re, 0.0 * biased.im});
}

template <class T, int N, int LEN>
struct equalise_lanes {
  static constexpr int max_threads = 128, min_ctas = lane_ctas<T, N>;
  using entry = wide<T, 1>;
  using memory = typename lane_work<T>::memory;
  channels<T> v;
  lane_work<T> work;
  divisor by_m;

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    const slice at = v.at(cta.index());
    const memory m = work.in(cta.shared());
    cta.loads([&](thread_place w) {
      work.load(work.of_h, w.id, at.count, 1, v.h + at.first * v.h_b, m.slots, work.at.h);
      work.load(work.of_k, w.id, at.count, 1, v.s + at.first * v.k, m.slots, work.at.s);
    });
    cta.phase([&](thread_place w) {
      if (w.g >= at.count) return;
      if (LEN == 0 && v.m_form) work.conjugate(w, m.slots, v.k * v.m);  // a channel has one thread here
      solve(w, at, m);
    });
    cta.last([&](thread_place w) {
      work.save(work.of_m, w.id, at.count, 1, v.out_x + at.first * v.m, m, work.at.x);
      for (int32_t e = w.id; e < at.count * v.m; e += work.threads) {
        const int32_t g = by_m(e), i = e - g * v.m;
        const T* noise = reinterpret_cast<const T*>(m.slots + g * work.at.pitch + work.at.g);
        v.out_noise[at.first * v.m + e] = m.flag[g] ? T(__builtin_inf()) : noise[i];
      }
    });
  }

  SF_HD void solve(thread_place w, slice at, const memory& m) const {
    entry *slot = m.slots + w.g * work.at.pitch, *s = slot + work.at.s, *x = slot + work.at.x;
    T* noise = reinterpret_cast<T*>(slot + work.at.g);
    const bool m_form = LEN == 0 && v.m_form;
    const int32_t len = LEN > 0 ? LEN : v.len;
    const T reg = v.reg(at.first + w.g);
    int32_t info = 0;
    bool good = true;
    const auto put = [&](int i, cx<double> biased, double gain, double rest) {  // diag(G H) and 1 - diag(G H)
      x[i] = unbiased<T>(biased, gain), good = good && finite(x[i]);
      noise[i] = T(gain > 0 ? rest / gain : __builtin_inf());
    };
    with_factor<true>(lane_rows<T, N, LEN>(slot + work.at.h, v), len, reg,
                      [&](const auto& V, const auto* l, const auto* inv, const auto* from, int32_t bad) {
                        info = bad;
                        m_form ? estimate_m(V, len, reg, l, inv, from, s, put)
                               : estimate_k(V, len, reg, l, inv, from, s, put);
                      });
    const auto verdict = v.settle(info, good, reg);
    m.flag[w.id] = verdict.info != 0;
    if (v.info) v.info[at.first + w.g] = verdict.info;
  }

  template <class V, class Put>
  SF_HD static void estimate_m(const V& V_, int32_t len, double reg, const cx<double>* l, const double* inv,
                               const double* from, const entry* y, const Put& put) {
    cx<double> u[N], z[N];
    narrow_product<N>(V_, N, len, [&](int i) { return number<double>(y[i]); }, u);
    sf::solve<N>(l, inv, from, N, u);
    loop<N>(0, N, [&](int i) {
      loop<N>(0, N, [&](int j) { z[j] = {j == i ? 1.0 : 0.0, 0.0}; });
      sf::solve<N>(l, inv, from, N, z);
      double gain = 0;  // (A^-1 V V^H)_ii = sum_m (V^H z)*_m (V^H)_mi: no difference of large numbers
      for (int m = 0; m < len; ++m) {
        cx<double> c[1];
        wide_product<1, N>(V_, N, m, z, c);
        const cx<double> own = V_(i, m);
        gain += c[0].re * own.re - c[0].im * own.im;
      }
      put(i, u[i], gain, reg * z[i].re);
    });
  }
  template <class V, class Put>
  SF_HD static void estimate_k(const V& V_, int32_t len, double reg, const cx<double>* l, const double* inv,
                               const double* from, const entry* y, const Put& put) {
    cx<double> u[N], z[N];
    loop<N>(0, N, [&](int i) { u[i] = number<double>(y[i]); });
    sf::solve<N>(l, inv, from, N, u);
    for (int m = 0; m < len; ++m) {
      cx<double> biased[1];
      wide_product<1, N>(V_, N, m, u, biased);
      loop<N>(0, N, [&](int j) { z[j] = V_(j, m); });
      sf::solve<N>(l, inv, from, N, z);
      double gain = 0, norm = 0;
      loop<N>(0, N, [&](int j) { gain += inner(V_(j, m), z[j]), norm += inner(V_(j, m), V_(j, m)); });
      put(m, biased[0], gain, left_by(gain, reg, norm));
    }
  }
};

// Column 0 of b is y's; the others are unit vectors (M-form) or columns of V (K-form), for diag(G H).
template <class T, bool Large>
struct equalise_team {
  static constexpr int max_threads = 128, min_ctas = Large ? 1 : sizeof(T) == 4 ? 4 : 3;
  static constexpr bool always_double = true;
  using state = typename team_work<T, Large>::state;
  using work = typename team_work<T, Large>::work;
  team_work<T, Large> team;

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    auto regs = cta.template registers<state>();
    int32_t* flag = team.flags(cta.shared());
    for (int64_t unit = cta.index(); unit < team.v.units; unit += team.ctas) {
      const slice where = team.v.at(unit);
      team.unit(cta, where, regs, *this);
      cta.phase([&](thread_place t) { flag[t.id] = !regs[t.id].good; });
      cta.phase([&](thread_place t) {
        if (t.g >= where.count) return;
        const work w = team.locate(cta, where, t);
        const auto verdict = team.settle(w, !team.team_bits(w, flag));
        if (team.v.info && t.p == 0) team.v.info[where.first + t.g] = verdict.info;
        for (int32_t m = t.p; verdict.info && m < team.v.m; m += team.lanes) {
          team.v.out_x[(where.first + t.g) * team.v.m + m] = wide<T, 1>{};
          team.v.out_noise[(where.first + t.g) * team.v.m + m] = T(__builtin_inf());
        }
      });
    }
  }

  template <class Q, bool Pivoted, class Cta, class Each>
  SF_HD void matrices(const Cta& cta, const Each& each) const {
    team.template factor<Q, Pivoted>(cta, each);
    const int32_t all = 1 + team.v.m;  // y, and one column for each symbol
    for (int32_t c0 = 0; c0 < all; c0 += team.lay.chunk) {
      const int32_t cc = least(team.lay.chunk, all - c0);
      each([&](const work& w, state&) {
        const team_inputs<T> in{team.v, w.channel, 0, {}, 0};
        const auto received = [&](int32_t j) { return in.template symbol<Q>(j, 0); };
        team.own_rows(w, [&](int32_t i) {
          for (int32_t c = 0; c < cc; ++c) {
            const int32_t j = c0 + c - 1;
            cx<Q> x = {Q(i == j ? 1 : 0), Q(0)};
            if (j < 0)
              x = team.v.m_form ? team.template narrow_entry<Q>(w, i, received) : received(i);
            else if (!team.v.m_form)
              x = team.template row<Q>(w, i, j);
            team.template b<Q>(w, i, c) = entry_of<Q>(x);
          }
        });
      });
      team.template solve<Q, Pivoted>(each, cc);
      each([&](const work& w, state&) { before_scaling<Q>(w, c0, cc); });
      each([&](const work& w, state& z) { scaled<Q>(w, z, c0, cc); });
    }
  }

  // V^H A^-1 of the M-form, and the biased estimates
  template <class Q>
  SF_HD wide<Q, 1>& wide_at(const work& w, int32_t m, int32_t c) const {
    return team.template at<Q>(w, team.lay.w0, m * team.lay.w_row + c);
  }
  template <class Q>
  SF_HD wide<Q, 1>& biased(const work& w, int32_t m) const {
    return team.template at<Q>(w, team.lay.w1, m);
  }
  template <class Q>
  SF_HD void before_scaling(const work& w, int32_t c0, int32_t cc) const {
    if (c0 == 0 && team.v.m_form) team.own_rows(w, [&](int32_t i) { biased<Q>(w, i) = team.template b<Q>(w, i, 0); });
    team.own_wide(w, [&](int32_t m) {
      if (c0 == 0 && !team.v.m_form) biased<Q>(w, m) = entry_of<Q>(team.template wide_entry<Q>(w, m, 0));
      for (int32_t c = c0 == 0; team.v.m_form && c < cc; ++c)
        wide_at<Q>(w, m, c) = entry_of<Q>(team.template wide_entry<Q>(w, m, c));
    });
  }
  template <class Q>
  SF_HD void scaled(const work& w, state& z, int32_t c0, int32_t cc) const {
    for (int32_t c = w.p + (c0 == 0); c < cc; c += team.lanes) {
      const int32_t j = c0 + c - 1;
      Q gain(0), rest(0);
      if (team.v.m_form) {  // (A^-1 V V^H)_jj = sum_m (V^H z)*_m (V^H)_mj: no difference of large numbers
        for (int32_t m = 0; m < team.v.len; ++m) {
          const cx<Q> a = number<Q>(wide_at<Q>(w, m, c)), own = team.template row<Q>(w, j, m);
          gain += a.re * own.re - a.im * own.im;
        }
        rest = Q(team.v.reg(w.channel)) * number<Q>(team.template b<Q>(w, j, c)).re;
      } else {
        Q norm(0);
        for (int32_t i = 0; i < team.v.n; ++i) {
          const cx<Q> own = team.template row<Q>(w, i, j);
          gain += inner(own, number<Q>(team.template b<Q>(w, i, c))), norm += inner(own, own);
        }
        rest = left_by(gain, Q(team.v.reg(w.channel)), norm);
      }
      const wide<T, 1> e = unbiased<T>(number<Q>(biased<Q>(w, j)), gain);
      team.v.out_x[w.channel * team.v.m + j] = e;
      team.v.out_noise[w.channel * team.v.m + j] = T(gain > 0 ? rest / gain : __builtin_inf());
      z.good = z.good && finite(e);
    }
  }
};

}  // namespace sf::cuda
