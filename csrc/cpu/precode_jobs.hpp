// What rzf_precode and its vector-Jacobian product do with the factor of a pack of channels.
#pragma once
#include "one_channel.hpp"
#include "regularised.hpp"
#include "solve_tail.hpp"

namespace sf {
inline namespace SF_NS {

template <class Feed>
struct precode_job {
  static constexpr bool always_double = false;
  Feed& feed;
  template <int N, class Worker, class V, class Q, class M>
  SF_HD void run(Worker& w, const V& v, const cx<Q>* l, const Q* inv, const Q* from, cx<Q>* u, cx<Q>*, M mask) const {
    serve(feed, w, v, [&](const V& part, bool) SF_LAMBDA { solve_sides<N>(w, part, l, inv, from, u, mask); });
  }
  template <int N, class Worker, class V, class Q, class M>
  SF_HD static void solve_sides(Worker& w, const V& v, const cx<Q>* l, const Q* inv, const Q* from, cx<Q>* u, M mask) {
    for (int t = 0; t < w.t; ++t) {
      const auto* s = w.s + t * w.s_t;
      auto* x = w.x + t * w.x_t;
      const auto symbol = [&](int i) {
        const auto& c = s[i * w.s_i];
        return cx<Q>{v.lanes.get(c.re), v.lanes.get(c.im)};
      };
      const auto put = [&](int i, cx<Q> value) {
        v.lanes.put(x[i * w.x_i].re, value.re, mask);
        v.lanes.put(x[i * w.x_i].im, value.im, mask);
      };
      if (w.m_form) {
        narrow_product<N>(v, w.n, w.len, symbol, u);
        solve<N>(l, inv, from, w.n, u);
        w.fetch_ahead();
        loop<N>(0, N > 0 ? N : w.n, [&](int i) { put(i, u[i]); });
      } else {
        loop<N>(0, N > 0 ? N : w.n, [&](int i) { u[i] = symbol(i); });
        solve<N>(l, inv, from, w.n, u);
        w.fetch_ahead();
        each_block<N>(w, v, u, put);
      }
    }
  }
  template <int N, class Worker, class V, class Q, class Put>
  SF_HD static void each_block(Worker& w, const V& v, const cx<Q>* u, const Put& put) {
    int m = 0;
    for (; m + 4 <= w.len; m += 4) {
      cx<Q> x[4];
      wide_product<4, N>(v, w.n, m, u, x);
    SF_UNROLL
      for (int j = 0; j < 4; ++j) put(m + j, x[j]);
    }
    for (; m < w.len; ++m) {
      cx<Q> x[1];
      wide_product<1, N>(v, w.n, m, u, x);
      put(m, x[0]);
    }
  }
};

// Hands every lane's factor to the tail, which solves that channel alone with lanes along its right-hand sides: channels
// [first, last), a pack of them, or with `shared` any number that have the factor of lane 0.
template <class T>
struct tail_job {
  static constexpr bool always_double = false;
  const tail_worker<T>& tail;
  rzf_args& notes;
  const int64_t first, last;
  const bool shared;

  template <int N, class Worker, class V, class Q, class M>
  void run(Worker& w, const V& v, const cx<Q>* l, const Q* inv, const Q* from, cx<Q>*, cx<Q>*, M mask) const {
    using R = decltype(Q{}.sum());
    if (shared && v.lanes.half) return;
    const int n = N > 0 ? N : w.n, lane0 = v.lanes.half * V::width;
    const int64_t rest = shared ? 1 : last - first - lane0, stride = tail.stride(n), diagonal = n * (n - 1);
    const int live = rest < V::width ? int(rest) : V::width;
    R* own = reinterpret_cast<R*>(tail.factors);
    const transposer<R, V::width> lanes(own, stride, live);
    lanes.store(0, diagonal, &l->re);
    lanes.store(diagonal, n, inv);
    if (from) lanes.store(diagonal + n, n, from);
    const auto factor = [&](int i) {
      const R* p = own + i * stride;
      return lane_factor<R>{p, p + diagonal, from ? p + diagonal + n : nullptr};
    };
    if (shared) {
      w.info = typename Worker::P(w.info.v[0]);
      for (int64_t i = first; i < last; i += Worker::W) {
        const int count = last - i < Worker::W ? int(last - i) : Worker::W;
        for (int lane = 0; lane < count; ++lane) solve(w, lane, i + lane, factor(0));
        w.refuse();
        w.note(notes, i, count);
      }
    } else {
      for (int i = 0; i < live; ++i)
        if (mask[i]) solve(w, lane0 + i, first + lane0 + i, factor(i));
    }
  }
  template <class Worker, class R>
  SF_HD void solve(Worker& w, int lane, int64_t channel, const lane_factor<R>& f) const {
    const bool singular = w.info.v[lane] > 0 || (w.a.refuse_zero && w.reg.v[lane] == 0);
    w.spoilt[0].v[lane] = T(0);
    if (singular && !w.a.pinv)
      tail.silence(channel);
    else
      w.spoilt[0].v[lane] = T(tail.run(channel, f) ? 0 : 1);
  }
};

// With p narrow and q wide (K-form: s and g; M-form: g and s):
//   u = A^-1 p,  w = A^-1 V q,  x = V^H u,  r = q - V^H w,  dV = u r^H - w x^H,  d reg = -Re w^H u
// and the gradient of s is w in the K-form, x in the M-form.
struct vjp_job {
  static constexpr bool always_double = false;
  template <int N, class Worker, class V, class Q, class M>
  SF_HD void run(Worker& w, const V& v, const cx<Q>* l, const Q* inv, const Q* from, cx<Q>* u, cx<Q>* z, M mask) const {
    const int n = N > 0 ? N : w.n;
    const bool adj = w.m_form;
    const auto put = [&](auto& c, cx<Q> value) {
      v.lanes.put(c.re, value.re, mask);
      v.lanes.put(c.im, value.im, mask);
    };
    for (int t = 0; t < w.t; ++t) {
      const auto *p = adj ? w.g + t * w.x_t : w.s + t * w.s_t, *q = adj ? w.s + t * w.s_t : w.g + t * w.x_t;
      const int p_i = adj ? w.x_i : w.s_i, q_i = adj ? w.s_i : w.x_i;
      auto* ds = w.ds + t * w.s_t;
      const auto wide = [&](int m) { return cx<Q>{v.lanes.get(q[m * q_i].re), v.lanes.get(q[m * q_i].im)}; };
      loop<N>(0, n, [&](int i) { u[i] = {v.lanes.get(p[i * p_i].re), v.lanes.get(p[i * p_i].im)}; });
      solve<N>(l, inv, from, n, u);
      narrow_product<N>(v, n, w.len, wide, z);
      solve<N>(l, inv, from, n, z);
      w.fetch_ahead();
      Q slope(0.0f);
      loop<N>(0, n, [&](int i) { slope = slope - inner(z[i], u[i]); });
      v.lanes.add_to(w.da, slope, mask);
      if (!adj) loop<N>(0, n, [&](int i) { put(ds[i * w.s_i], z[i]); });
      if (!adj && !w.a.dh) continue;
      for (int m = 0; m < w.len; ++m) {
        cx<Q> x[1], r[1];
        wide_product<1, N>(v, n, m, u, x);
        if (adj) put(ds[m * w.s_i], x[0]);
        if (!w.a.dh) continue;
        wide_product<1, N>(v, n, m, z, r);
        w.fetch_ahead();
        r[0] = wide(m) - r[0];
        loop<N>(0, n, [&](int i) {
          auto& c = w.dh[i * v.row + m * v.col];
          cx<Q> d = w.from + t ? cx<Q>{v.lanes.get(c.re), v.lanes.get(c.im)} : cx<Q>{Q(0.0f), Q(0.0f)};
          add<times::conj_b>(d, u[i], r[0]);
          sub<times::conj_b>(d, z[i], x[0]);
          put(c, d);
        });
      }
    }
  }
};

}  // namespace SF_NS
}  // namespace sf
