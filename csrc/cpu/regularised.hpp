// The CPU worker behind rzf_precode, its vector-Jacobian product and lmmse_equalise: W channels side by side, one per
// SIMD lane. A pack of channels is transposed into lanes, each lane's Gram matrix is factored once and serves every
// right-hand side, and results are transposed back. Three arithmetics share the algebra of small_matrix.hpp; a lane
// takes the one its own regulariser asks for, so that a result never depends on its neighbours:
//   plain     the type of the data; a regulariser >= 1e-3 of the mean diagonal keeps the condition number harmless
//   double    complex64 channels with a smaller regulariser
//   pivoted   regularisers within rounding of zero, where singular channels must be found
#pragma once
#include "channel_lanes.hpp"
#include "parallel.hpp"
#include "scratch.hpp"
#include "transpose.hpp"

namespace sf {
inline namespace SF_NS {

constexpr double singular_tolerance(int n, bool single) {  // of pivots relative to the largest diagonal
  const double own = 4.0 * n * 2.220446049250313e-16, root32 = 4.0 * n * 1.1920928955078125e-7;
  return single && root32 * root32 > own ? root32 * root32 : own;
}

template <class T, int S = 0>
struct regularised : problem<S> {
  using problem<S>::k;
  using problem<S>::m;
  using problem<S>::most;
  using problem<S>::t;
  using problem<S>::n;
  using problem<S>::len;
  using problem<S>::s_i;
  using problem<S>::s_t;
  using problem<S>::x_i;
  using problem<S>::x_t;
  using problem<S>::m_form;
  static constexpr int W = native_width<T>;
  static constexpr bool single = sizeof(T) == 4;
  using P = pack<T, W>;
  using D = pack<double, native_width<double>>;
  using mask_p = lane_mask<T, W>;

  const rzf_args& a;
  cx<P>*h, *s, *x, *g, *dh, *ds, *work;
  P reg;
  int64_t from = 0;                       // the first of the `t` right-hand sides at hand
  int64_t same_from = 0, same_until = 0;  // channels that share `reg`
  double* da;                             // [W] of the pack at hand, summed over right-hand sides in double
  D energy[2];
  P info, *spoilt;  // of the channel; 1 for a right-hand side (or all of them) whose result is not finite
  P* noise;         // lmmse_equalise: effective noise variance [n of symbols]
  scratch<cx<P>> memory;

  // `factor_only`: right-hand sides and results stay where they lie (solve_tail.hpp).
  explicit regularised(const rzf_args& args, bool factor_only = false) : problem<S>(args), a(args) {
    const int64_t columns = factor_only ? 0 : most, km = int64_t(k) * m, kt = k * columns, mt = m * columns;
    const int64_t entries = 2 * km + 2 * kt + 2 * mt + 2 * int64_t(n) * n + 6 * n + m + columns + 9;
    memory.allocate(entries);
    cx<P>* p = memory;
    auto take = [&](int64_t count) { return (p += count) - count; };
    h = take(km), s = take(kt), x = take(mt), g = take(mt), dh = take(km), ds = take(kt);
    noise = reinterpret_cast<P*>(take(m)), spoilt = reinterpret_cast<P*>(take(columns + 1)),
    da = reinterpret_cast<double*>(take(2)), work = p;
    if (!a.s && !factor_only)
      for (int i = 0; i < k * t; ++i) s[i] = {P(T(i / t == i % t ? 1 : 0)), P(T(0))};  // unit symbols, K = T
    energy[0] = energy[1] = D(0.0);
  }

  // What the fourth pack after this one will touch, asked for an eighth at a time while this one is computed: in one
  // burst the requests would fill the core's line buffers, and the loads of this pack would wait behind them.
  struct stream {
    const char *p = nullptr, *stop = nullptr;
    int64_t share = 0;
  };
  stream reads[3], writes[2];  // `writes` ask for lines to keep

  SF_HD stream ahead(const void* p, int64_t reals, int64_t first) const {
    const int64_t i = first + 4 * W, bytes = W * reals * int64_t(sizeof(T));
    if (p == nullptr || i + W > a.n) return {};
    const char* c = static_cast<const char*>(p) + i * reals * int64_t(sizeof(T));
    return {c, c + bytes, (bytes + 511) / 512 * 64};
  }
  template <int Write>
  SF_HD static void fetch(stream& s, bool all) {
    const char* stop = all || s.stop - s.p < s.share ? s.stop : s.p + s.share;
    for (; s.p < stop; s.p += 64) __builtin_prefetch(s.p, Write, 2);
  }
  SF_HD void fetch_ahead(bool all = false) {
    for (stream& s : reads) fetch<0>(s, all);
    for (stream& s : writes) fetch<1>(s, all);
  }

  void ask(int64_t first) {
    fetch_ahead(true);  // what the pack before has left
    reads[0] = ahead(a.h, 2 * a.h_b, first), reads[1] = ahead(a.s, 2 * a.k * a.t, first);
    fetch_ahead();
  }
  void load(int64_t first, int count) {
    const T *hp = static_cast<const T*>(a.h), *ap = static_cast<const T*>(a.alpha);
    ask(first);
    load_lanes<2 * S * S>(hp + 2 * first * a.h_b, 2 * a.h_b, 2 * int64_t(k) * m, count, &h->re);
    if (m_form)
      for (int i = 0; i < k * m; ++i) h[i].im = P(T(0)) - h[i].im;
    fetch_ahead();
    info = P(T(0));
    if (same_from <= first && first + count <= same_until) return;
    const int64_t run = first / a.alpha_run;
    same_from = run * a.alpha_run, same_until = same_from + a.alpha_run;
    reg = P(ap[run]);
    if (first + count <= same_until) return;
    for (int i = 0; i < W; ++i) reg.v[i] = ap[(first + (i < count ? i : count - 1)) / a.alpha_run];
    same_until = same_from;
  }

  // Right-hand sides of a pack of channels into tile s: the `t` from `from` on, as many as it holds.
  SF_HD void take_piece(int64_t first, int count) {
    t = a.t - from < most ? int(a.t - from) : most;
    if (a.s) read(a.s, k, first, count, s);
  }
  // `entries` of every right-hand side at hand of every channel, between memory and a tile
  SF_HD void read(const void* p, int64_t entries, int64_t first, int count, cx<P>* tile) const {
    const T* at = static_cast<const T*>(p) + 2 * entries * (first * a.t + from);
    load_lanes<2 * S>(at, 2 * entries * a.t, 2 * entries * t, count, &tile->re);
  }
  SF_HD void write(void* p, int64_t entries, int64_t first, int count, const cx<P>* tile) const {
    T* at = static_cast<T*>(p) + 2 * entries * (first * a.t + from);
    store_lanes<2 * S>(at, 2 * entries * a.t, 2 * entries * t, count, &tile->re);
  }

  // Every arithmetic some lane asks for, each writing its own lanes: job.run(scope) with the factor in the scope.
  template <int N, class Job>
  void solve_lanes(Job job) {
    mask_p small = P(T(0)) == P(T(0));
    if constexpr (single && !Job::always_double) {
      small = in_single<N>(job);
    }
    if (!any_lane(small)) return;
    using Q = D;
    for (int half = 0; half < W / lanes_of<T, Q>::width; ++half) in_double<Q, N>(half, small, job);
  }
  template <int N, class Job>
  SF_HD mask_p in_single(Job job) {  // the lanes it leaves to double
    factored<P, N> f(*this);
    const narrow_rows<lanes_of<T, P>, P> v{h, m_form ? 1 : m, m_form ? m : 1, {}};
    P mean;
    const P top = diagonal<N>(v, n, len, reg, f.diag, mean);
    fetch_ahead();
    const mask_p small = ~(reg > P(T(1e-3)) * mean);  // NaN too: the pivoted path finds it
    if (any_lane(~small)) run<P, N, false>(v, f, ~small, top - top, job);
    return small;
  }
  template <class Q, int N, class Job>
  void in_double(int half, mask_p small, Job job) {
    const lanes_of<T, Q> part{half};
    const Q mine = part.get(select(small, P(T(1)), P(T(0)))), r = part.get(reg);
    if (!any_lane(mine > Q(0.0))) return;
    const int row = m_form ? 1 : m, col = m_form ? m : 1;
    if constexpr (single && Job::always_double) {
      cx<Q>* wide = reinterpret_cast<cx<Q>*>(dh);
      for (int i = 0; i < k * m; ++i) wide[i] = {part.get(h[i].re), part.get(h[i].im)};
      in_arithmetic<Q, N>(wide_rows<lanes_of<T, Q>>{wide, row, col, part}, mine, r, job);
    } else {
      in_arithmetic<Q, N>(narrow_rows<lanes_of<T, Q>, P>{h, row, col, part}, mine, r, job);
    }
  }
  template <class Q, int N, class V, class Job>
  SF_HD void in_arithmetic(const V& v, Q mine, Q r, Job job) {
    factored<Q, N> f(*this);
    Q mean;
    const Q top = diagonal<N>(v, n, len, r, f.diag, mean);
    const Q bound = top * Q(singular_tolerance(n, single));
    const auto plain = (mine > Q(0.0)) & (r > bound);
    const auto pivoted = (mine > Q(0.0)) & ~(r > bound);
    if (any_lane(plain)) run<Q, N, false>(v, f, plain, top - top, job);
    if (any_lane(pivoted)) pivoted_lanes(v, pivoted, r, bound, job);
  }
  template <class V, class Q, class M, class Job>
  __attribute__((noinline)) void pivoted_lanes(const V& v, M mask, Q r, Q bound, Job job) {
    factored<Q, 0> f(*this);
    Q mean;
    diagonal<0>(v, n, len, r, f.diag, mean);
    run<Q, 0, true>(v, f, mask, bound, job);
  }
  template <class Q, int N, bool Pivoted, class V, class M, class Job>
  SF_HD void run(const V& v, factored<Q, N>& f, M mask, Q bound, Job job) {
    Q bad(0.0f);
    if constexpr (Pivoted)
      factor_pivoted<N>(v, n, len, f.diag, bound, f.square_a, f.from, f.l, f.inv, bad);
    else
      factor<N>(v, n, len, f.diag, bound, f.l, f.inv, bad);
    fetch_ahead();
    if (any_lane(bad > Q(0.0f))) v.lanes.put(info, bad, mask);
    job.template run<N>(*this, v, f.l, f.inv, Pivoted ? f.from : nullptr, f.u, f.w, mask);
  }

  template <class Q>
  SF_HD cx<Q>* spare() const {  // [n of at most k], of the same 64-byte packs
    return reinterpret_cast<cx<Q>*>(ds);
  }
  template <class Q>
  SF_HD Q* per_gain() const {  // lmmse_equalise: 1 / diag(G H), [n of symbols]
    return reinterpret_cast<Q*>(g);
  }
  SF_HD P* noise_tile() const { return reinterpret_cast<P*>(g) + m; }  // [t][m], behind those

  // NaN or Inf among the entries of right-hand side j (its own sample with `rows`, else all streams share their fate).
  lane_mask<T, W> finite(const cx<P>* tile, int j, int entry, int column, int entries) const {
    P sum(T(0));
    for (int c = a.rows ? j : 0; c < (a.rows ? j + 1 : t); ++c)
      for (int i = 0; i < entries; ++i) {
        const cx<P>& z = tile[i * entry + c * column];
        sum = sum + (z.re - z.re) + (z.im - z.im);
      }
    return sum == P(T(0));
  }

  void refuse() {
    if (a.refuse_zero) info = select((info == P(T(0))) & (reg == P(T(0))), P(T(m + 1)), info);
  }

  // A channel without inverse, or a result that is not finite, gives zeros; info and `spoilt` say which.
  void settle(cx<P>* out) {
    refuse();
    const mask_p served = a.pinv ? P(T(0)) == P(T(0)) : info == P(T(0));
    mask_p fine = finite(out, 0, x_i, x_t, m);
    for (int j = 0; j < t; ++j) {
      if (j && a.rows) fine = finite(out, j, x_i, x_t, m);
      spoilt[j] = select(fine, P(T(0)), P(T(1)));
      const mask_p keep = fine & served;
      if (any_lane(~keep))
        for (int i = 0; i < m; ++i)
          out[i * x_i + j * x_t] = select(keep, out[i * x_i + j * x_t], cx<P>{P(T(0)), P(T(0))});
    }
  }

  void note(rzf_args& shared, int64_t first, int count) {
    const int samples = a.rows ? t : 1;
    P any = info;
    for (int j = 0; j < samples; ++j) any = any + spoilt[j];
    if (!a.info && !any_lane(any > P(T(0)))) return;
    for (int i = 0; i < count; ++i)
      for (int j = 0; j < samples; ++j) {
        const int32_t code = info.v[i] > 0 ? int32_t(info.v[i]) : spoilt[j].v[i] > 0 ? -1 : 0;
        const int64_t at = a.rows ? (first + i) * a.t + from + j : first + i;
        if (a.info) a.info[at] = code;
        if (code == 0) continue;
        note_lowest(code < 0 ? shared.spoilt : shared.bad, at);
        if (code > 0) __atomic_fetch_add(&shared.count, 1, __ATOMIC_RELAXED);
      }
  }

  void add_energy(const cx<P>* z, int entries, int count) {
    P live(T(1));
    for (int i = count; i < W; ++i) live.v[i] = T(0);
    for (int half = 0; half < W / lanes_of<T, D>::width; ++half) {
      const lanes_of<T, D> part{half};
      D e(0.0);
      for (int i = 0; i < entries; ++i) e = e + square(cx<D>{part.get(z[i].re), part.get(z[i].im)});
      energy[half] = energy[half] + e * part.get(live);
    }
  }
  double take_energy() {
    const double e = W > native_width<double> ? energy[0].sum() + energy[1].sum() : energy[0].sum();
    energy[0] = energy[1] = D(0.0);
    return e;
  }
};

// Compiled sizes of the narrow side; every other size runs the same code with n at run time.
template <class F>
inline void with_size(int64_t n, F&& f) {
  switch (n) {
    case 1:
      return f.template operator()<1>();
    case 2:
      return f.template operator()<2>();
    case 3:
      return f.template operator()<3>();
    case 4:
      return f.template operator()<4>();
    case 8:
      return f.template operator()<8>();
    case 16:
      return f.template operator()<16>();
    default:
      return f.template operator()<0>();
  }
}

// Slices of the batch: `items` share a power scale each, `chunk` whole packs are one unit of work. Boundaries count
// from the start of an item, so sums are the same whatever the batch or the number of threads.
struct units {
  int64_t per_item, chunk, chunks;
  units(int64_t total, int64_t items, int64_t entries, int width) : per_item(total / items) {
    const int64_t packs = entries >= 256 ? 1 : entries <= 16 ? 16 : 256 / entries;
    chunk = packs * width, chunks = (per_item + chunk - 1) / chunk;
  }
  int64_t begin(int64_t unit) const { return unit / chunks * per_item + unit % chunks * chunk; }
  int64_t end(int64_t unit) const {
    const int64_t e = (unit % chunks + 1) * chunk;
    return unit / chunks * per_item + (e < per_item ? e : per_item);
  }
};

}  // namespace SF_NS
}  // namespace sf
