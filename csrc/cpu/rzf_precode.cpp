// x = H^H (H H^H + a I)^-1 s with its total-power scale, and the vector-Jacobian product from the same factor.
#include "regularised.hpp"
#include "solve_columns.hpp"
#include "solve_tail.hpp"

namespace sf {
inline namespace SF_NS {

struct precode_job {
  static constexpr bool always_double = false;
  template <int N, class Worker, class V, class Q, class M>
  SF_HD void run(Worker& w, const V& v, const cx<Q>* l, const Q* inv, const Q* from, cx<Q>* u, cx<Q>*, M mask) const {
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

// Hands every lane's factor to the tail, which solves that channel alone with lanes along its right-hand sides.
template <class T>
struct tail_job {
  static constexpr bool always_double = false;
  const tail_worker<T>& tail;
  int64_t first;
  int count;
  template <int N, class Worker, class V, class Q, class M>
  void run(Worker& w, const V& v, const cx<Q>* l, const Q* inv, const Q* from, cx<Q>*, cx<Q>*, M mask) const {
    using R = decltype(Q{}.sum());
    const int n = N > 0 ? N : w.n, lane0 = v.lanes.half * V::width, live = count - lane0 < V::width ? count - lane0 : V::width;
    const int64_t stride = tail.stride(n), diagonal = n * (n - 1);
    R* own = reinterpret_cast<R*>(tail.factors);
    const transposer<R, V::width> lanes(own, stride, live);
    lanes.store(0, diagonal, &l->re);
    lanes.store(diagonal, n, inv);
    if (from) lanes.store(diagonal + n, n, from);
    for (int i = 0; i < live; ++i, own += stride) {
      if (!mask[i]) continue;
      const int lane = lane0 + i;
      const bool singular = w.info.v[lane] > 0 || (w.a.refuse_zero && w.reg.v[lane] == 0);
      const lane_factor<R> f{own, own + diagonal, from ? own + diagonal + n : nullptr};
      if (singular && !w.a.pinv)
        tail.silence(first + lane);
      else
        w.spoilt[0].v[lane] = T(tail.run(first + lane, f) ? 0 : 1);
    }
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
          cx<Q> d = t ? cx<Q>{v.lanes.get(c.re), v.lanes.get(c.im)} : cx<Q>{Q(0.0f), Q(0.0f)};
          add<times::conj_b>(d, u[i], r[0]);
          sub<times::conj_b>(d, z[i], x[0]);
          put(c, d);
        });
      }
    }
  }
};

template <class T, int S = 0>
struct precoder {
  using R = regularised<T, S>;
  using P = typename R::P;
  rzf_args& a;
  const units u;

  explicit precoder(rzf_args& args, int width = R::W) : a(args), u(args.n, args.items, args.k * args.m, width) {}

  // The tail takes channels whose right-hand sides and results cost more to transpose than it does; sizes alone decide.
  static bool many_columns(const rzf_args& a) {
    return !a.rows && a.t >= 8 && (a.m_form ? a.k : a.m) * a.t >= 192;
  }

  template <int N>
  double forward_tail(R& w, const tail_worker<T>& tail, int64_t begin, int64_t end) const {
    double energy = 0;
    for (int64_t i = begin; i < end; i += R::W) {
      const int count = end - i < R::W ? int(end - i) : R::W;
      w.load(i, count);
      w.spoilt[0] = P(T(0));
      w.template solve_lanes<N>(tail_job<T>{tail, i, count});
      w.refuse();
      w.note(a, i, count);
      if (a.scale > 0)
        for (int c = 0; c < count; ++c) energy += square_sum(tail.out(i + c), 2 * a.m * a.t);
    }
    return energy;
  }

  template <int N>
  double forward(R& w, int64_t begin, int64_t end) const {
    const int64_t mt = 2 * a.m * a.t;
    for (int64_t i = begin; i < end; i += R::W) {
      const int count = end - i < R::W ? int(end - i) : R::W;
      w.load(i, count);
      w.writes[0] = w.ahead(a.out_x, mt, i);
      w.template solve_lanes<N>(precode_job());
      w.settle(w.x);
      w.note(a, i, count);
      if (a.scale > 0) w.add_energy(w.x, int(a.m * a.t), count);
      store_lanes<2 * S>(static_cast<T*>(a.out_x) + i * mt, mt, count, &w.x->re);
    }
    return a.scale > 0 ? w.take_energy() : 0;
  }

  void scale_unit(const double* partial, int64_t unit) const {
    const int64_t item = unit / u.chunks, mt = 2 * a.m * a.t;
    double e = 0;
    for (int64_t c = 0; c < u.chunks; ++c) e += partial[item * u.chunks + c];
    a.norm[item] = __builtin_sqrt(e);
    const T f = e > 0 ? T(a.scale / __builtin_sqrt(e)) : T(0);
    T* x = static_cast<T*>(a.out_x);
    for (int64_t j = u.begin(unit) * mt; j < u.end(unit) * mt; ++j) x[j] *= f;
  }

  template <int N>
  void operator()() const {
    if constexpr (N == 4 && S == 0)
      if (problem<N>::serves(a)) return precoder<T, N>(a).template operator()<N>();
    const int64_t n_units = a.items * u.chunks;
    double* partial = static_cast<double*>(malloc(size_t(n_units) * sizeof(double)));
    const bool columns = many_columns(a);
    const auto solve_units = [&](int64_t b, int64_t e, const auto& after) {
      R w(a, columns);
      if (columns) {
        const tail_worker<T> tail(a);
        for (; b < e; ++b) partial[b] = forward_tail<N>(w, tail, u.begin(b), u.end(b)), after(b);
      } else {
        for (; b < e; ++b) partial[b] = forward<N>(w, u.begin(b), u.end(b)), after(b);
      }
    };
    if (a.scale > 0 && a.items >= 4) {  // an item's result is scaled while it is still in cache
      parallel_for(a.pool, a.items, 1, [&](int64_t b, int64_t e) {
        solve_units(b * u.chunks, e * u.chunks, [&](int64_t unit) {
          if ((unit + 1) % u.chunks) return;
          for (int64_t c = unit + 1 - u.chunks; c <= unit; ++c) scale_unit(partial, c);
        });
      });
    } else {
      parallel_for(a.pool, n_units, 1,
                   [&](int64_t b, int64_t e) { solve_units(b, e, [](int64_t) {}); });
      if (a.scale > 0)
        parallel_for(a.pool, n_units, 1, [&](int64_t b, int64_t e) {
          for (; b < e; ++b) scale_unit(partial, b);
        });
    }
    free(partial);
  }
};

template <class T, int S = 0>
struct precoder_vjp {
  using R = regularised<T, S>;
  using P = typename R::P;
  rzf_args& a;
  const units u;

  explicit precoder_vjp(rzf_args& args) : a(args), u(args.n, args.items, args.k * args.m, R::W) {}

  // Re<x, g> over a unit: with x already scaled, d(unscaled) = c (g - x Re<x, g>/scale^2), c = scale/norm.
  double dot(int64_t unit) const {
    const T *x = static_cast<const T*>(a.x), *g = static_cast<const T*>(a.g);
    const int64_t mt = 2 * a.m * a.t, end = u.end(unit) * mt;
    double sum[8] = {0};
    for (int64_t j = u.begin(unit) * mt; j < end; ++j) sum[j & 7] += double(x[j]) * double(g[j]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  }

  template <int N>
  void backward(R& w, int64_t begin, int64_t end, T c, T along) const {
    const int64_t mt = 2 * a.m * a.t, kt = 2 * a.k * a.t, km = 2 * a.k * a.m;
    for (int64_t i = begin; i < end; i += R::W) {
      const int count = end - i < R::W ? int(end - i) : R::W;
      w.load(i, count);
      w.reads[2] = w.ahead(a.g, mt, i), w.writes[0] = w.ahead(a.dh, km, i), w.writes[1] = w.ahead(a.ds, kt, i);
      load_lanes<2 * S>(static_cast<const T*>(a.g) + i * mt, mt, mt, count, &w.g->re);
      if (a.scale > 0) {
        load_lanes<2 * S>(static_cast<const T*>(a.x) + i * mt, mt, mt, count, &w.x->re);
        for (int64_t j = 0; j < w.m * w.t; ++j) w.g[j] = (w.g[j] - w.x[j] * P(along)) * P(c);
      }
      silence(w);
      for (int j = 0; j < R::W; ++j) w.da[j] = 0;
      w.template solve_lanes<N>(vjp_job());
      finish(w);
      if (a.ds) store_lanes<2 * S>(static_cast<T*>(a.ds) + i * kt, kt, count, &w.ds->re);
      if (a.dh) store_lanes<2 * S * S>(static_cast<T*>(a.dh) + i * km, km, count, &w.dh->re);
      for (int j = 0; j < count; ++j) a.da[i + j] = w.da[j];
    }
  }

  // A right-hand side whose result was set to zero takes no part: zero symbols and a zero cotangent.
  void silence(R& w) const {
    const cx<P> zero = {P(T(0)), P(T(0))};
    auto fine = w.finite(w.s, 0, w.s_i, w.s_t, w.k);
    for (int t = 0; t < w.t; ++t) {
      if (t && a.rows) fine = w.finite(w.s, t, w.s_i, w.s_t, w.k);
      if (!any_lane(~fine)) continue;
      for (int i = 0; i < w.k; ++i) w.s[i * w.s_i + t * w.s_t] = select(fine, w.s[i * w.s_i + t * w.s_t], zero);
      for (int i = 0; i < w.m; ++i) w.g[i * w.x_i + t * w.x_t] = select(fine, w.g[i * w.x_i + t * w.x_t], zero);
    }
  }

  // Channels whose result was set to zero have zero gradients; the M-form's dH was accumulated as its conjugate.
  void finish(R& w) const {
    if (a.refuse_zero) w.info = select(w.reg == P(T(0)), P(T(1)), w.info);
    const auto live = w.info == P(T(0));
    if (w.m_form && a.dh)
      for (int64_t j = 0; j < w.k * w.m; ++j) w.dh[j].im = P(T(0)) - w.dh[j].im;
    if (a.pinv || !any_lane(~live)) return;
    const cx<P> zero = {P(T(0)), P(T(0))};
    for (int64_t j = 0; j < w.k * w.t; ++j) w.ds[j] = select(live, w.ds[j], zero);
    for (int64_t j = 0; j < w.k * w.m; ++j) w.dh[j] = select(live, w.dh[j], zero);
    for (int i = 0; i < R::W; ++i)
      if (!live[i]) w.da[i] = 0;
  }

  template <int N>
  void operator()() const {
    if constexpr (N == 4 && S == 0)
      if (problem<N>::serves(a)) return precoder_vjp<T, N>(a).template operator()<N>();
    const int64_t n_units = a.items * u.chunks;
    double* partial = static_cast<double*>(malloc(size_t(n_units) * sizeof(double)));
    if (a.scale > 0)
      parallel_for(a.pool, n_units, 1, [&](int64_t b, int64_t e) {
        for (; b < e; ++b) partial[b] = dot(b);
      });
    parallel_for(a.pool, n_units, 1, [&](int64_t b, int64_t e) {
      R w(a);
      for (; b < e; ++b) {
        T c(1), along(0);
        if (a.scale > 0) {
          const int64_t item = b / u.chunks;
          double sum = 0;
          for (int64_t j = 0; j < u.chunks; ++j) sum += partial[item * u.chunks + j];
          c = a.norm[item] > 0 ? T(a.scale / a.norm[item]) : T(0), along = T(sum / (a.scale * a.scale));
        }
        backward<N>(w, u.begin(b), u.end(b), c, along);
      }
    });
    free(partial);
  }
};

// One channel at a time, lanes along columns; runs of channels that solve_columns.hpp leaves take the lanes.
template <class T>
struct column_precoder : precoder<T> {
  using precoder<T>::a, precoder<T>::u;
  explicit column_precoder(rzf_args& args) : precoder<T>(args, 1) {}

  __attribute__((noinline)) void in_lanes(int64_t begin, int64_t end) const {
    typename precoder<T>::R w(a);
    this->template forward<0>(w, begin, end);
  }
  void solve_range(int64_t begin, int64_t end) const {
    precode_columns<T> w(a);
    solve_or_leave(
        begin, end, [&](int64_t i) { return w.solve(i); }, [&](int64_t i, int64_t j) { in_lanes(i, j); });
  }
  double energy(int64_t unit) const {
    const int64_t mt = 2 * a.m * a.t;
    double e = 0;
    for (int64_t i = u.begin(unit); i < u.end(unit); ++i) e += square_sum(static_cast<const T*>(a.out_x) + i * mt, mt);
    return e;
  }
  void operator()() const {
    const int64_t n_units = a.items * u.chunks;
    double* partial = a.scale > 0 ? static_cast<double*>(malloc(size_t(n_units) * sizeof(double))) : nullptr;
    parallel_for(a.pool, n_units, 1, [&](int64_t b, int64_t e) {
      solve_range(u.begin(b), u.end(e - 1));
      for (; partial && b < e; ++b) partial[b] = energy(b);
    });
    if (partial)
      parallel_for(a.pool, n_units, 1, [&](int64_t b, int64_t e) {
        for (; b < e; ++b) this->scale_unit(partial, b);
      });
    free(partial);
  }
};

static int64_t bytes_of(const rzf_args& a, int64_t reals) { return reals * (a.is_double ? 8 : 4); }

void rzf_precode(rzf_args& a) {
  prepare_result(a.out_x, bytes_of(a, 2 * a.n * a.m * a.t));
  if (solve_columns_serves(a)) return a.is_double ? column_precoder<double>(a)() : column_precoder<float>(a)();
  const int64_t n = a.m_form ? a.m : a.k;
  a.is_double ? with_size(n, precoder<double>(a)) : with_size(n, precoder<float>(a));
}
void rzf_precode_vjp(rzf_args& a) {
  prepare_result(a.dh, bytes_of(a, 2 * a.n * a.k * a.m)), prepare_result(a.ds, bytes_of(a, 2 * a.n * a.k * a.t));
  const int64_t n = a.m_form ? a.m : a.k;
  a.is_double ? with_size(n, precoder_vjp<double>(a)) : with_size(n, precoder_vjp<float>(a));
}

}  // namespace SF_NS
}  // namespace sf
