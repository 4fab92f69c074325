// rzf_precode, its vector-Jacobian product and lmmse_equalise with a team of threads per channel: rzf_teams.cuh.
#pragma once
#include "rzf_teams.cuh"

namespace sf::cuda {

// Right-hand sides and gradients of one channel, straight from global memory.
template <class T>
struct team_inputs {
  const channels<T>& v;
  int64_t channel;
  power_slope<T> power;
  template <class Q>
  SF_HD cx<Q> symbol(int32_t i, int32_t t) const {
    if (!v.s) return {Q(i == t ? 1 : 0), Q(0)};
    return number<Q>(v.s[channel * v.k * v.t + i * v.at_i(v.t) + t * v.at_t(v.k)]);
  }
  template <class Q>
  SF_HD cx<Q> gradient(int32_t m, int32_t t) const {
    const int64_t e = channel * v.m * v.t + m * v.at_i(v.t) + t * v.at_t(v.m);
    return number<Q>(v.scale > 0 ? power(v.g[e], v.x[e]) : v.g[e]);
  }
};

template <class T>
struct precode_team {
  static constexpr int max_threads = 128, min_ctas = 1;
  static constexpr bool always_double = false;
  using state = typename team_work<T>::state;
  using work = typename team_work<T>::work;
  team_work<T> team;

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    auto regs = cta.template registers<state>();
    for (int64_t unit = cta.index(); unit < team.v.units; unit += team.ctas) {
      const slice where = team.v.at(unit);
      team.unit(cta, where, regs, *this);
      finish(cta, where, unit, regs);
    }
  }

  template <class Q, bool Pivoted, class Cta, class Each>
  SF_HD void matrices(const Cta& cta, const Each& each) const {
    team.template factor<Q, Pivoted>(cta, each);
    for (int32_t t0 = 0; t0 < team.v.t; t0 += team.lay.chunk) {
      const int32_t tc = least(team.lay.chunk, team.v.t - t0);
      each([&](const work& w, state&) {
        const team_inputs<T> in{team.v, w.channel, {}};
        team.own_rows(w, [&](int32_t i) {
          for (int32_t c = 0; c < tc; ++c) {
            const auto symbol = [&](int32_t j) { return in.template symbol<Q>(j, t0 + c); };
            team.template b<Q>(w, i, c) =
                entry_of<Q>(team.v.m_form ? team.template narrow_entry<Q>(w, i, symbol) : symbol(i));
          }
        });
      });
      team.template solve<Q, Pivoted>(each, tc);
      each([&](const work& w, state& z) {
        const auto put = [&](int32_t m, int32_t c, cx<Q> x) {
          const wide<T, 1> e = entry_of<T>(x);
          team.v.out_x[w.channel * team.v.m * team.v.t + m * team.v.at_i(team.v.t) + (t0 + c) * team.v.at_t(team.v.m)] = e;
          z.good = z.good && finite(e);
          if (team.v.scale > 0) add_square(z.sum, e.c[0]);
        };
        for (int32_t c = 0; c < tc; ++c) {
          if (team.v.m_form)
            team.own_rows(w, [&](int32_t i) { put(i, c, number<Q>(team.template b<Q>(w, i, c))); });
          else
            team.own_wide(w, [&](int32_t m) { put(m, c, team.template wide_entry<Q>(w, m, c)); });
        }
      });
    }
  }

  template <class Cta, class Regs>
  SF_HD void finish(const Cta& cta, const slice& where, int64_t unit, Regs& regs) const {
    double* part = team.parts(cta.shared());
    int32_t* flag = team.flags(cta.shared());
    cta.phase([&](thread_place t) { flag[t.id] = !regs[t.id].good; });
    cta.phase([&](thread_place t) {
      if (t.g >= where.count) return;
      const auto verdict = team.conclude(cta, where, t, flag);
      if (team.v.info && t.p == 0) team.v.info[where.first + t.g] = verdict.info;
      if (!verdict.keep)
        for (int64_t e = t.p; e < int64_t(team.v.m) * team.v.t; e += team.lanes)
          team.v.out_x[(where.first + t.g) * team.v.m * team.v.t + e] = wide<T, 1>{};
      part[t.id] = verdict.keep ? regs[t.id].sum : 0.0;
    });
    if (team.v.scale == 0) return;
    if (where.count < team.v.group)
      cta.phase([&](thread_place t) {
        if (t.g >= where.count) part[t.id] = 0;
      });
    sum_threads(cta, part);
    cta.phase([&](thread_place t) {
      if (t.id == 0) team.v.partial[unit] = summed(part, team.threads);
    });
  }
};

// The same products as vjp_lanes: u in columns 0.. of b, w in columns chunk.., x and r in the wide arrays.
template <class T>
struct vjp_team {
  static constexpr int max_threads = 128, min_ctas = 1;
  static constexpr bool always_double = false;
  using state = typename team_work<T>::state;
  using work = typename team_work<T>::work;
  team_work<T> team;

  struct with_power {  // what team_work::unit runs
    static constexpr bool always_double = false;
    const vjp_team& body;
    power_slope<T> power;
    template <class Q, bool Pivoted, class Cta, class Each>
    SF_HD void matrices(const Cta& cta, const Each& each) const {
      body.template matrices<Q, Pivoted>(cta, each, power);
    }
  };

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    auto regs = cta.template registers<state>();
    double* part = team.parts(cta.shared());
    for (int64_t unit = cta.index(); unit < team.v.units; unit += team.ctas) {
      const slice where = team.v.at(unit);
      power_slope<T> power{T(1), T(0)};
      if (team.v.scale > 0) {
        sum_partials(cta, part, team.v.partial + where.item * team.v.dots, team.v.dots);
        const double norm = team.v.norm[where.item];
        power = {norm > 0 ? T(team.v.scale / norm) : T(0), T(summed(part, team.threads) / (team.v.scale * team.v.scale))};
      }
      team.unit(cta, where, regs, with_power{*this, power});
      cta.phase([&](thread_place t) { part[t.id] = regs[t.id].sum; });
      cta.phase([&](thread_place t) {
        if (t.p || t.g >= where.count) return;
        double sum = 0;
        for (int32_t j = 0; j < team.lanes; ++j) sum += part[t.id + j];
        team.v.da[where.first + t.g] = team.keeps(team.locate(cta, where, t)) ? sum : 0.0;
      });
    }
  }

  template <class Q, bool Pivoted, class Cta, class Each>
  SF_HD void matrices(const Cta& cta, const Each& each, power_slope<T> power) const {
    team.template factor<Q, Pivoted>(cta, each);
    const int32_t chunk = team.lay.chunk;
    for (int32_t t0 = 0; t0 < team.v.t; t0 += chunk) {
      const int32_t tc = least(chunk, team.v.t - t0);
      each([&](const work& w, state&) {
        const team_inputs<T> in{team.v, w.channel, power};
        team.own_rows(w, [&](int32_t i) {
          for (int32_t c = 0; c < tc; ++c) {
            const auto symbol = [&](int32_t j) { return in.template symbol<Q>(j, t0 + c); };
            const auto gradient = [&](int32_t j) { return in.template gradient<Q>(j, t0 + c); };
            const cx<Q> u = team.v.m_form ? gradient(i) : symbol(i);
            const cx<Q> y = team.v.m_form ? team.template narrow_entry<Q>(w, i, symbol)
                                     : team.template narrow_entry<Q>(w, i, gradient);
            team.template b<Q>(w, i, c) = entry_of<Q>(u), team.template b<Q>(w, i, chunk + c) = entry_of<Q>(y);
          }
        });
      });
      team.template solve<Q, Pivoted>(each, chunk + tc);
      each([&](const work& w, state& z) { sides<Q>(w, z, power, t0, tc); });
      if (team.v.dh) each([&](const work& w, state&) { channel_slope<Q>(w, t0, tc); });
    }
  }

  template <class Q>
  SF_HD void sides(const work& w, state& z, power_slope<T> power, int32_t t0, int32_t tc) const {
    const team_inputs<T> in{team.v, w.channel, power};
    const int32_t chunk = team.lay.chunk;
    const bool keep = team.keeps(w);
    const auto put = [&](int32_t i, int32_t c, cx<Q> d) {
      if (team.v.ds)
        team.v.ds[w.channel * team.v.k * team.v.t + i * team.v.at_i(team.v.t) + (t0 + c) * team.v.at_t(team.v.k)] = keep ? entry_of<T>(d) : wide<T, 1>{};
    };
    for (int32_t c = 0; c < tc; ++c) {
      team.own_rows(w, [&](int32_t i) {
        const cx<Q> u = number<Q>(team.template b<Q>(w, i, c)), y = number<Q>(team.template b<Q>(w, i, chunk + c));
        z.sum -= double(y.re) * double(u.re) + double(y.im) * double(u.im);
        if (!team.v.m_form) put(i, c, y);
      });
      if (team.v.m_form || team.v.dh)
        team.own_wide(w, [&](int32_t m) {
          const cx<Q> x = team.template wide_entry<Q>(w, m, c);
          if (team.v.m_form) put(m, c, x);
          if (!team.v.dh) return;
          const cx<Q> q = team.v.m_form ? in.template symbol<Q>(m, t0 + c) : in.template gradient<Q>(m, t0 + c);
          team.template at<Q>(w, team.lay.w0, m * team.lay.w_row + c) = entry_of<Q>(x);
          team.template at<Q>(w, team.lay.w1, m * team.lay.w_row + c) =
              entry_of<Q>(q - team.template wide_entry<Q>(w, m, chunk + c));
        });
    }
  }

  // dV = sum_t u r^H - w x^H, entry by entry; it grows in global memory over chunks of right-hand sides.
  template <class Q>
  SF_HD void channel_slope(const work& w, int32_t t0, int32_t tc) const {
    wide<T, 1>* out = team.v.dh + w.channel * team.v.k * team.v.m;
    const bool keep = team.keeps(w);
    for (int32_t e = w.p; e < team.v.k * team.v.m; e += team.lanes) {
      const int32_t row = team.by_m(e), col = e - row * team.v.m, i = team.v.m_form ? col : row, m = team.v.m_form ? row : col;
      cx<Q> d = {Q(0), Q(0)};
      for (int32_t c = 0; c < tc; ++c) {
        const int32_t at = m * team.lay.w_row + c;
        add<times::conj_b>(d, number<Q>(team.template b<Q>(w, i, c)),
                           number<Q>(team.template at<Q>(w, team.lay.w1, at)));
        sub<times::conj_b>(d, number<Q>(team.template b<Q>(w, i, team.lay.chunk + c)),
                           number<Q>(team.template at<Q>(w, team.lay.w0, at)));
      }
      if (team.v.m_form) d = conj(d);
      if (t0) d = d + number<Q>(out[e]);
      out[e] = keep ? entry_of<T>(d) : wide<T, 1>{};
    }
  }
};

// Column 0 of b is y's; the others are unit vectors (M-form) or columns of V (K-form), for diag(G H).
template <class T>
struct equalise_team {
  static constexpr int max_threads = 128, min_ctas = 1;
  static constexpr bool always_double = true;
  using state = typename team_work<T>::state;
  using work = typename team_work<T>::work;
  team_work<T> team;

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
        const auto verdict = team.conclude(cta, where, t, flag);
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
        const team_inputs<T> in{team.v, w.channel, {}};
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
        for (int32_t i = 0; i < team.v.n; ++i)
          gain += inner(team.template row<Q>(w, i, j), number<Q>(team.template b<Q>(w, i, c)));
        rest = Q(1) - gain;
      }
      const cx<Q> u = number<Q>(biased<Q>(w, j));
      const wide<T, 1> e = entry_of<T>(cx<Q>{u.re / gain, u.im / gain});
      team.v.out_x[w.channel * team.v.m + j] = e, team.v.out_noise[w.channel * team.v.m + j] = T(rest / gain);
      z.good = z.good && finite(e);
    }
  }
};

}  // namespace sf::cuda
