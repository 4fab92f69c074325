// rzf_precode and its vector-Jacobian product with a team of threads per channel: rzf_teams.cuh.
#pragma once
#include "rzf_teams.cuh"

namespace sf::cuda {

// Right-hand sides and gradients of one channel, straight from global memory; t counts from the chunk's first, t0.
// Silent ones read as zero.
template <class T>
struct team_inputs {
  const channels<T>& v;
  int64_t channel;
  int32_t t0;
  power_slope<T> power;
  uint32_t silent;
  SF_HD bool heard(int32_t t) const { return !(silent >> t & 1); }
  template <class Q>
  SF_HD cx<Q> symbol(int32_t i, int32_t t) const {
    if (!v.s) return {Q(i == t0 + t ? 1 : 0), Q(0)};
    return heard(t) ? number<Q>(v.s[channel * v.k * v.t + i * v.at_i(v.t) + (t0 + t) * v.at_t(v.k)])
                    : cx<Q>{Q(0), Q(0)};
  }
  template <class Q>
  SF_HD cx<Q> gradient(int32_t m, int32_t t) const {
    const int64_t e = channel * v.m * v.t + m * v.at_i(v.t) + (t0 + t) * v.at_t(v.m);
    if (!heard(t)) return {Q(0), Q(0)};
    return number<Q>(v.scale > 0 ? sloped(power, v.g[e], v.x[e]) : v.g[e]);
  }
  // Bits of the right-hand sides in which thread p of `lanes` finds a symbol that is not finite
  SF_HD uint32_t spoilt(int32_t p, int32_t lanes, int32_t tc) const {
    uint32_t bits = 0;
    if (!v.s) return bits;
    const wide<T, 1>* s = v.s + channel * v.k * v.t;
    if (v.rows)
      for (int32_t t = 0; t < tc; ++t)
        for (int32_t i = p; i < v.k; i += lanes) bits |= uint32_t(!finite(s[(t0 + t) * v.k + i])) << t;
    else
      for (int32_t e = p; e < v.k * v.t; e += lanes) bits |= finite(s[e]) ? 0u : ~0u;
    return bits;
  }
};

template <class T, bool Large>
struct precode_team {
  static constexpr int max_threads = 128, min_ctas = Large ? 1 : sizeof(T) == 4 ? 4 : 3;
  static constexpr bool always_double = false;
  using state = typename team_work<T, Large>::state;
  using work = typename team_work<T, Large>::work;
  team_work<T, Large> team;

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    auto regs = cta.template registers<state>();
    for (int64_t unit = cta.index(); unit < team.v.units; unit += team.ctas) {
      const slice where = team.v.at(unit);
      team.unit(cta, where, regs, *this);
      if (!team.v.rows) finish_streams(cta, where, regs);
      if (team.v.scale > 0) add_up(cta, unit, where, regs);
    }
  }

  template <class Q, bool Pivoted, class Cta, class Each>
  SF_HD void matrices(const Cta& cta, const Each& each) const {
    const channels<T>& v = team.v;
    team.template factor<Q, Pivoted>(cta, each);
    for (int32_t t0 = 0; t0 < v.t; t0 += team.lay.chunk) {
      const int32_t tc = least(team.lay.chunk, v.t - t0);
      each([&](const work& w, state&) {
        const team_inputs<T> in{v, w.channel, t0, {}, 0};
        team.own_rows(w, [&](int32_t i) {
          for (int32_t c = 0; c < tc; ++c) {
            const auto symbol = [&](int32_t j) { return in.template symbol<Q>(j, c); };
            team.template b<Q>(w, i, c) =
                entry_of<Q>(v.m_form ? team.template narrow_entry<Q>(w, i, symbol) : symbol(i));
          }
        });
      });
      team.template solve<Q, Pivoted>(each, tc);
      int32_t* flag = team.flags(cta.shared());
      each([&](const work& w, state& z) {
        uint32_t bits = 0;
        for (int32_t c = 0; c < tc; ++c) {
          const auto put = [&](int32_t m, cx<Q> x) {
            const wide<T, 1> e = entry_of<T>(x);
            out(w.channel, m, t0 + c) = e;
            bits |= uint32_t(!finite(e)) << c;
          };
          if (v.m_form)
            team.own_rows(w, [&](int32_t i) { put(i, number<Q>(team.template b<Q>(w, i, c))); });
          else
            team.own_wide(w, [&](int32_t m) { put(m, team.template wide_entry<Q>(w, m, c)); });
        }
        flag[w.id] = int32_t(bits), z.good = z.good && !bits;
      });
      if (v.rows) each([&](const work& w, state& z) { finish_samples(w, z, t0, tc, team.team_bits(w, flag)); });
    }
  }
  SF_HD wide<T, 1>& out(int64_t channel, int32_t m, int32_t t) const {
    return team.v.out_x[channel * team.v.m * team.v.t + m * team.v.at_i(team.v.t) + t * team.v.at_t(team.v.m)];
  }

  SF_HD void finish_samples(const work& w, state& z, int32_t t0, int32_t tc, uint32_t spoilt) const {
    for (int32_t c = 0; c < tc; ++c) {
      const auto verdict = team.settle(w, !(spoilt >> c & 1));
      if (team.v.info && w.p == 0) team.v.info[w.channel * team.v.t + t0 + c] = verdict.info;
      const int32_t size = team.v.m_form ? team.v.n : team.v.len;  // the entries that this thread has written
      for (int32_t m = w.p; m < size; m += team.lanes) keep_or_clear(z, verdict.keep, out(w.channel, m, t0 + c));
    }
  }
  SF_HD void keep_or_clear(state& z, bool keep, wide<T, 1>& e) const {
    if (!keep)
      e = wide<T, 1>{};
    else if (team.v.scale > 0)
      add_square(z.sum, e.c[0]);
  }
  template <class Cta, class Regs>
  SF_HD void finish_streams(const Cta& cta, const slice& where, Regs& regs) const {
    int32_t* flag = team.flags(cta.shared());
    cta.phase([&](thread_place t) { flag[t.id] = !regs[t.id].good; });
    cta.phase([&](thread_place t) {
      if (t.g >= where.count) return;
      const work w = team.locate(cta, where, t);
      const auto verdict = team.settle(w, !team.team_bits(w, flag));
      if (team.v.info && w.p == 0) team.v.info[w.channel] = verdict.info;
      const int32_t size = team.v.m * team.v.t;
      for (int32_t e = w.p; e < size; e += team.lanes)
        keep_or_clear(regs[t.id], verdict.keep, team.v.out_x[w.channel * size + e]);
    });
  }
  template <class Cta, class Regs>
  SF_HD void add_up(const Cta& cta, int64_t unit, const slice& where, Regs& regs) const {
    double* part = team.parts(cta.shared());
    cta.phase([&](thread_place t) { part[t.id] = t.g < where.count ? regs[t.id].sum : 0.0; });
    sum_threads(cta, part);
    cta.phase([&](thread_place t) {
      if (t.id == 0) team.v.partial[unit] = summed(part, team.threads);
    });
  }
};

// The same products as vjp_lanes: u in columns 0.. of b, w in columns chunk.., x and r in the wide arrays.
template <class T, bool Large>
struct vjp_team {
  static constexpr int max_threads = 128, min_ctas = Large ? 1 : sizeof(T) == 4 ? 4 : 3;
  static constexpr bool always_double = false;
  using state = typename team_work<T, Large>::state;
  using work = typename team_work<T, Large>::work;
  team_work<T, Large> team;

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
      auto power = power_slope<T>::none();
      if (team.v.scale > 0) {
        sum_partials(cta, part, team.v.partial + where.item * team.v.dots, team.v.dots);
        power = power_slope<T>::of(team.v.scale, team.v.norm[where.item], summed(part, team.threads));
      }
      team.unit(cta, where, regs, with_power{*this, power});
      cta.phase([&](thread_place t) { part[t.id] = regs[t.id].sum; });
      cta.phase([&](thread_place t) {
        if (t.p || t.g >= where.count) return;
        double sum = 0;
        for (int32_t j = 0; j < team.lanes; ++j) sum += part[t.id + j];
        team.v.da[where.first + t.g] = team.settle(team.locate(cta, where, t), true).keep ? sum : 0.0;
      });
    }
  }

  template <class Q, bool Pivoted, class Cta, class Each>
  SF_HD void matrices(const Cta& cta, const Each& each, power_slope<T> power) const {
    team.template factor<Q, Pivoted>(cta, each);
    const int32_t chunk = team.lay.chunk;
    for (int32_t t0 = 0; t0 < team.v.t; t0 += chunk) {
      const int32_t tc = least(chunk, team.v.t - t0);
      int32_t* flag = team.flags(cta.shared());
      each([&](const work& w, state&) {
        flag[w.id] = int32_t(team_inputs<T>{team.v, w.channel, t0, power, 0}.spoilt(w.p, team.lanes, tc));
      });
      each([&](const work& w, state& z) {
        z.silent = team.team_bits(w, flag);
        const team_inputs<T> in{team.v, w.channel, t0, power, z.silent};
        team.own_rows(w, [&](int32_t i) {
          for (int32_t c = 0; c < tc; ++c) {
            const auto symbol = [&](int32_t j) { return in.template symbol<Q>(j, c); };
            const auto gradient = [&](int32_t j) { return in.template gradient<Q>(j, c); };
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
    const team_inputs<T> in{team.v, w.channel, t0, power, z.silent};
    const int32_t chunk = team.lay.chunk;
    const bool keep = team.settle(w, true).keep;
    const auto put = [&](int32_t i, int32_t c, cx<Q> d) {
      if (team.v.ds)
        team.v.ds[w.channel * team.v.k * team.v.t + i * team.v.at_i(team.v.t) + (t0 + c) * team.v.at_t(team.v.k)] =
            keep ? entry_of<T>(d) : wide<T, 1>{};
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
          const cx<Q> q = team.v.m_form ? in.template symbol<Q>(m, c) : in.template gradient<Q>(m, c);
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
    const bool keep = team.settle(w, true).keep;
    for (int32_t e = w.p; e < team.v.k * team.v.m; e += team.lanes) {
      const int32_t row = team.by_m(e), col = e - row * team.v.m, i = team.v.m_form ? col : row,
                    m = team.v.m_form ? row : col;
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

}  // namespace sf::cuda
