// x = H^H (H H^H + a I)^-1 s with its total-power scale, and the vector-Jacobian product from the same factor.
#include "../common/power_scale.hpp"
#include "channel_filter.hpp"
#include "one_channel.hpp"
#include "precode_jobs.hpp"
#include "solve_columns.hpp"
#include "square_sums.hpp"

namespace sf {
inline namespace SF_NS {

template <class T, int S = 0>
struct precoder {
  using R = regularised<T, S>;
  rzf_args& a;
  const units u;
  scratch<double> partial;  // energy of every unit
  bool at_once = false;     // scale an item with its last unit

  explicit precoder(rzf_args& args, int width = R::W) : a(args), u(args.n, args.items, args.k * args.m, width) {}
  void prepare() {
    if (a.scale > 0) partial.allocate(a.items * u.chunks);
  }

  // The tail takes channels whose right-hand sides and results cost more to transpose than it does; sizes alone decide.
  static bool many_columns(const rzf_args& a) { return !a.rows && a.t >= 8 && (a.m_form ? a.k : a.m) * a.t >= 192; }

  double energy_of(int64_t unit) const {  // of results that are in memory
    const int64_t mt = 2 * a.m * a.t;
    double e = 0;
    for (int64_t i = u.begin(unit); i < u.end(unit); ++i) e += square_sum(static_cast<const T*>(a.out_x) + i * mt, mt);
    return e;
  }
  // Energies of vectors that may be solved side by side are summed in an order that is the same in both ways.
  bool apart() const { return may_lie_side_by_side(a); }

  SF_HD void ask(R& w, int64_t i) const { w.writes[0] = w.ahead(a.out_x, 2 * a.m * a.t, i); }
  SF_HD void put(R& w, int64_t i, int count) const {
    w.settle(w.x);
    w.note(a, i, count);
    if (a.scale > 0 && !apart()) w.add_energy(w.x, w.m * w.t, count);
    w.write(a.out_x, w.m, i, count, w.x);
  }
  void close(R& w, int64_t unit) const {
    if (a.scale > 0) close(unit, apart() ? energy_of(unit) : w.take_energy());
  }
  void close(int64_t unit, double energy) const {
    partial[unit] = energy;
    if (!at_once || (unit + 1) % u.chunks) return;
    for (int64_t c = unit + 1 - u.chunks; c <= unit; ++c) scale_unit(c);
  }

  // Units [b, e)
  template <int N>
  void solve_lanes(R& w, int64_t b, int64_t e) const {
    serve_all<N, precode_job>(feed<precoder, R>(*this, w, u.begin(b), u.end(b), b, e), w);
  }
  template <int N>
  void solve_tails(int64_t b, int64_t e) const {
    R w(a, true);
    const tail_worker<T> tail(a);
    const bool shared = one_channel(a);
    if (shared) {
      w.load(0, a.n < R::W ? int(a.n) : R::W);
      w.template solve_lanes<N>(tail_job<T>{tail, a, u.begin(b), u.end(e - 1), true});
    }
    for (; b < e; ++b) {
      for (int64_t i = u.begin(b), end = u.end(b); !shared && i < end; i += R::W) {
        const int count = end - i < R::W ? int(end - i) : R::W;
        w.load(i, count);
        w.template solve_lanes<N>(tail_job<T>{tail, a, i, i + count, false});
        w.refuse();
        w.note(a, i, count);
      }
      if (a.scale > 0) close(b, energy_of(b));
    }
  }

  void scale_unit(int64_t unit) const {
    const int64_t item = unit / u.chunks, mt = 2 * a.m * a.t;
    double e = 0;
    for (int64_t c = 0; c < u.chunks; ++c) e += partial[item * u.chunks + c];
    a.norm[item] = __builtin_sqrt(e);
    const auto scaled = power_scale<T>::of(a.scale, a.norm[item]);
    T* x = static_cast<T*>(a.out_x);
    for (int64_t j = u.begin(unit) * mt; j < u.end(unit) * mt; ++j) x[j] = scaled(x[j]);
  }
  void scale_all() const {
    if (a.scale > 0) all_units([&](int64_t unit) { scale_unit(unit); });
  }
  template <class Each>
  void all_units(const Each& each) const {
    parallel_for(a.pool, a.items * u.chunks, 1, [&](int64_t b, int64_t e) {
      for (; b < e; ++b) each(b);
    });
  }

  template <int N>
  void operator()() {
    if constexpr (N == 4 && S == 0)
      if (problem<N>::serves(a)) return precoder<T, N>(a).template operator()<N>();
    prepare();
    const bool tails = many_columns(a), vectors = side_by_side(a, R::W);
    at_once = a.scale > 0 && a.items >= 4 && !vectors;  // an item's result is scaled while it is still in cache
    const auto solve_units = [&](int64_t b, int64_t e) {
      if (tails) return solve_tails<N>(b, e);
      R w(a);
      solve_lanes<N>(w, b, e);
    };
    if (vectors) {
      by_channel<precoder, N>(a, R::W);
      if (a.scale > 0) all_units([&](int64_t unit) { partial[unit] = energy_of(unit); });
    } else if (at_once) {
      parallel_for(a.pool, a.items, 1, [&](int64_t b, int64_t e) { solve_units(b * u.chunks, e * u.chunks); });
    } else {
      parallel_for(a.pool, a.items * u.chunks, 1, solve_units);
    }
    if (!at_once) scale_all();
  }
};

template <class T, int S = 0>
struct precoder_vjp {
  using R = regularised<T, S>;
  using P = typename R::P;
  rzf_args& a;
  const units u;

  explicit precoder_vjp(rzf_args& args) : a(args), u(args.n, args.items, args.k * args.m, R::W) {}

  // Re<x, g> over a unit, of the scaled x: for power_slope.
  double dot(int64_t unit) const {
    const T *x = static_cast<const T*>(a.x), *g = static_cast<const T*>(a.g);
    const int64_t mt = 2 * a.m * a.t, end = u.end(unit) * mt;
    double sum[8] = {0};
    for (int64_t j = u.begin(unit) * mt; j < end; ++j) sum[j & 7] += double(x[j]) * double(g[j]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  }

  template <int N>
  void backward(R& w, int64_t begin, int64_t end, const power_slope<T>& slope) const {
    const int64_t mt = 2 * a.m * a.t, kt = 2 * a.k * a.t, km = 2 * a.k * a.m;
    for (int64_t i = begin; i < end; i += R::W) {
      const int count = end - i < R::W ? int(end - i) : R::W;
      w.load(i, count);
      w.reads[2] = w.ahead(a.g, mt, i), w.writes[0] = w.ahead(a.dh, km, i), w.writes[1] = w.ahead(a.ds, kt, i);
      for (int j = 0; j < R::W; ++j) w.da[j] = 0;
      for (w.from = 0; w.from < a.t; w.from += w.t) {
        w.take_piece(i, count);
        w.read(a.g, w.m, i, count, w.g);
        if (a.scale > 0) {
          w.read(a.x, w.m, i, count, w.x);
          for (int64_t j = 0; j < w.m * w.t; ++j) w.g[j] = {slope(w.g[j].re, w.x[j].re), slope(w.g[j].im, w.x[j].im)};
        }
        silence(w);
        w.template solve_lanes<N>(vjp_job());
        drop(w, w.ds, w.k * w.t);
        if (a.ds) w.write(a.ds, w.k, i, count, w.ds);
      }
      finish(w);
      if (a.dh) store_lanes<2 * S * S>(static_cast<T*>(a.dh) + i * km, km, km, count, &w.dh->re);
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
  void drop(R& w, cx<P>* gradient, int64_t entries) const {
    if (a.refuse_zero) w.info = select(w.reg == P(T(0)), P(T(1)), w.info);
    const auto live = w.info == P(T(0));
    if (a.pinv || !any_lane(~live)) return;
    for (int64_t j = 0; j < entries; ++j) gradient[j] = select(live, gradient[j], cx<P>{P(T(0)), P(T(0))});
    for (int i = 0; i < R::W; ++i)
      if (!live[i]) w.da[i] = 0;
  }
  void finish(R& w) const {
    if (w.m_form && a.dh)
      for (int64_t j = 0; j < w.k * w.m; ++j) w.dh[j].im = P(T(0)) - w.dh[j].im;
    drop(w, w.dh, a.dh ? w.k * w.m : 0);
  }

  template <int N>
  void operator()() const {
    if constexpr (N == 4 && S == 0)
      if (problem<N>::serves(a)) return precoder_vjp<T, N>(a).template operator()<N>();
    const int64_t n_units = a.items * u.chunks;
    const scratch<double> partial(n_units);
    if (a.scale > 0)
      parallel_for(a.pool, n_units, 1, [&](int64_t b, int64_t e) {
        for (; b < e; ++b) partial[b] = dot(b);
      });
    parallel_for(a.pool, n_units, 1, [&](int64_t b, int64_t e) {
      R w(a);
      for (; b < e; ++b) {
        auto slope = power_slope<T>::none();
        if (a.scale > 0) {
          const int64_t item = b / u.chunks;
          double sum = 0;
          for (int64_t j = 0; j < u.chunks; ++j) sum += partial[item * u.chunks + j];
          slope = power_slope<T>::of(a.scale, a.norm[item], sum);
        }
        backward<N>(w, u.begin(b), u.end(b), slope);
      }
    });
  }
};

// One channel at a time, lanes along columns; runs of channels that solve_columns.hpp leaves take the lanes.
template <class T>
struct column_precoder : precoder<T> {
  using R = typename precoder<T>::R;
  using precoder<T>::a, precoder<T>::u;
  explicit column_precoder(rzf_args& args) : precoder<T>(args, 1) {}

  __attribute__((noinline)) void in_lanes(int64_t begin, int64_t end) const {
    R w(a);
    serve_all<0, precode_job>(feed<precoder<T>, R>(*this, w, begin, end), w);
  }
  void solve_range(int64_t begin, int64_t end) const {
    precode_columns<T> w(a);
    solve_or_leave(begin, end, [&](int64_t i) { return w.solve(i); }, [&](int64_t i, int64_t j) { in_lanes(i, j); });
  }
  void operator()() {
    this->prepare();
    parallel_for(a.pool, a.items * u.chunks, 1, [&](int64_t b, int64_t e) {
      solve_range(u.begin(b), u.end(e - 1));
      for (; a.scale > 0 && b < e; ++b) this->close(b, this->energy_of(b));
    });
    this->scale_all();
  }
};

// Vectors of one channel, of a batch that has no other: its precoding matrix and a product.
template <class T>
void precode_shared(rzf_args& a) {
  as_one_channel(a);
  solve_pieces<shared_precoder<T>>(a, [](rzf_args& one) { column_precoder<T>(one).in_lanes(0, one.n); });
}

static int64_t bytes_of(const rzf_args& a, int64_t reals) { return reals * (a.is_double ? 8 : 4); }

void rzf_precode(rzf_args& a) {
  prepare_result(a.out_x, bytes_of(a, 2 * a.n * a.m * a.t));
  if (a.shared) return a.is_double ? precode_shared<double>(a) : precode_shared<float>(a);
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
