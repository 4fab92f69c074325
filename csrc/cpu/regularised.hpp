// The CPU worker behind rzf_precode, its vector-Jacobian product and lmmse_equalise: W channels side by side, one per
// SIMD lane. A pack of channels is transposed into lanes, each lane's Gram matrix is factored once and serves every
// right-hand side, and results are transposed back. Three arithmetics share the algebra of small_matrix.hpp; a lane
// takes the one its own regulariser asks for, so that a result never depends on its neighbours:
//   plain     the type of the data; a regulariser >= 1e-3 of the mean diagonal keeps the condition number harmless
//   double    complex64 channels with a smaller regulariser
//   pivoted   regularisers within rounding of zero, where singular channels must be found
#pragma once
#include <stdlib.h>

#include "../common/kernels.hpp"
#include "../common/small_matrix.hpp"
#include "parallel.hpp"
#include "transpose.hpp"

namespace sf {
inline namespace SF_NS {

constexpr double singular_tolerance(int n, bool single) {  // of pivots relative to the largest diagonal
  const double own = 4.0 * n * 2.220446049250313e-16, root32 = 4.0 * n * 1.1920928955078125e-7;
  return single && root32 * root32 > own ? root32 * root32 : own;
}

// Lanes [half*width(Q), ...) of a tile of cx<pack<T, W>>, in arithmetic type Q; `put` writes only lanes of the mask.
template <class T, class Q>
struct lanes_of;
template <class T, int W>
struct lanes_of<T, pack<T, W>> {
  using Q = pack<T, W>;
  static constexpr int width = W;
  int half = 0;
  SF_HD Q get(const Q& p) const { return p; }
  template <class M>
  SF_HD void put(Q& p, Q q, M mask) const {
    p = select(mask, q, p);
  }
  template <class M>
  SF_HD void add_to(double* sum, Q q, M mask) const {
    typedef T half_v __attribute__((vector_size(native_width<double> * sizeof(T)), aligned(sizeof(T)), may_alias));
    using D = pack<double, native_width<double>>;
    const Q live = select(mask, q, Q(T(0)));
    for (int i = 0; i < W; i += native_width<double>) {
      const half_v part = reinterpret_cast<const half_v*>(&live)[i / native_width<double>];
      (D::load(sum + i) + D(__builtin_convertvector(part, typename D::V))).store(sum + i);
    }
  }
};
template <int WD>
struct lanes_of<float, pack<double, WD>> {
  using P = pack<float, 2 * WD>;
  using Q = pack<double, WD>;
  using H = typename vec_of<float, WD>::V;
  using HU = typename vec_of<float, WD>::VU;
  static constexpr int width = WD;
  int half;
  SF_HD Q get(const P& p) const {
    const H h = reinterpret_cast<const HU*>(&p)[half];
    return widen(h);
  }
  template <class M>
  SF_HD void put(P& p, Q q, M mask) const {
    HU& h = reinterpret_cast<HU*>(&p)[half];
    h = rounded_half(select(mask, q, widen(H(h))));
  }
  template <class M>
  SF_HD void add_to(double* sum, Q q, M mask) const {
    (Q::load(sum + half * WD) + select(mask, q, Q(0.0))).store(sum + half * WD);
  }
};

// V as the algebra reads it: the channel tile, or its adjoint (conjugated when it was loaded).
template <class L, class P>
struct narrow_rows {
  static constexpr int width = L::width;
  const cx<P>* tile;
  int row, col;  // strides in the tile
  L lanes;
  using Q = typename L::Q;
  SF_HD cx<Q> operator()(int i, int m) const {
    const cx<P>& c = tile[i * row + m * col];
    return {lanes.get(c.re), lanes.get(c.im)};
  }
};

// Where a factor lives: registers for compiled sizes, the worker's scratch beyond.
template <class Q, int N>
struct factored {
  cx<Q> l[N > 1 ? N * (N - 1) / 2 : 1], u[N], w[N];
  Q inv[N], diag[N];
  static constexpr Q* from = nullptr;
  template <class Worker>
  SF_HD explicit factored(Worker&) {}
};
template <class Q>
struct factored<Q, 0> {
  cx<Q>*l, *square_a, *u, *w;
  Q *inv, *diag, *from;
  template <class Worker>
  SF_HD explicit factored(Worker& worker) {
    const int64_t n = worker.n;
    cx<Q>* p = reinterpret_cast<cx<Q>*>(worker.work);
    const auto take = [&](int64_t count) { return (p += count) - count; };
    l = take(n * n), square_a = take(n * n), u = take(n), w = take(n);
    inv = reinterpret_cast<Q*>(take(n)), diag = reinterpret_cast<Q*>(take(n)), from = reinterpret_cast<Q*>(take(n));
  }
};

// Sizes of a problem, n x len the narrow and wide side of V, and strides of right-hand sides (K entries each) and
// results (M entries) in their tiles. S > 0: square channels with right-hand sides one after the other, known when
// compiled.
template <int S>
struct problem {
  static constexpr int k = S, m = S, n = S, len = S, s_i = 1, s_t = S, x_i = 1, x_t = S;
  static constexpr bool m_form = false;
  int t;
  explicit problem(const rzf_args& a) : t(int(a.t)) {}
  static bool serves(const rzf_args& a) { return a.k == S && a.m == S && !a.m_form && (a.rows || a.t == 1) && a.s; }
};
template <>
struct problem<0> {
  int k, m, t, n, len, s_i, s_t, x_i, x_t;
  bool m_form;
  explicit problem(const rzf_args& a)
      : k(int(a.k)),
        m(int(a.m)),
        t(int(a.t)),
        n(a.m_form ? m : k),
        len(a.m_form ? k : m),
        s_i(a.rows ? 1 : t),
        s_t(a.rows ? k : 1),
        x_i(a.rows ? 1 : t),
        x_t(a.rows ? m : 1),
        m_form(a.m_form) {}
};

template <class T, int S = 0>
struct regularised : problem<S> {
  using problem<S>::k;
  using problem<S>::m;
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
  const bool factor_only;  // right-hand sides and results stay where they lie (solve_tail.hpp)
  cx<P>*h, *s, *x, *g, *dh, *ds, *work;
  P reg;
  int64_t same_from = 0, same_until = 0;  // channels that share `reg`
  double* da;                             // [W] of the pack at hand, summed over right-hand sides in double
  D energy[2];
  P info, *spoilt;  // of the channel; 1 for a right-hand side [t] (or all of them) whose result is not finite
  P* noise;         // lmmse_equalise: effective noise variance [n of symbols]
  void* memory;

  explicit regularised(const rzf_args& args, bool alone = false) : problem<S>(args), a(args), factor_only(alone) {
    const int64_t columns = alone ? 0 : t, km = int64_t(k) * m, kt = k * columns, mt = m * columns;
    const int64_t entries = 2 * km + 2 * kt + 2 * mt + 2 * int64_t(n) * n + 6 * n + m + t + 8;
    if (posix_memalign(&memory, 64, size_t(entries) * sizeof(cx<P>))) abort();
    cx<P>* p = static_cast<cx<P>*>(memory);
    auto take = [&](int64_t count) { return (p += count) - count; };
    h = take(km), s = take(kt), x = take(mt), g = take(mt), dh = take(km), ds = take(kt);
    noise = reinterpret_cast<P*>(take(m)), spoilt = reinterpret_cast<P*>(take(t)),
    da = reinterpret_cast<double*>(take(2)), work = p;
    if (!a.s && !alone)
      for (int i = 0; i < k * t; ++i) s[i] = {P(T(i / t == i % t ? 1 : 0)), P(T(0))};  // unit symbols, K = T
    energy[0] = energy[1] = D(0.0);
  }
  ~regularised() { free(memory); }
  regularised(const regularised&) = delete;

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

  void load(int64_t first, int count) {
    const T *hp = static_cast<const T*>(a.h), *sp = static_cast<const T*>(a.s), *ap = static_cast<const T*>(a.alpha);
    const int64_t kt = 2 * int64_t(k) * t;
    fetch_ahead(true);  // what the pack before has left
    reads[0] = ahead(hp, 2 * a.h_b, first), reads[1] = ahead(sp, kt, first);
    fetch_ahead();
    load_lanes<2 * S * S>(hp + 2 * first * a.h_b, 2 * a.h_b, 2 * int64_t(k) * m, count, &h->re);
    if (m_form)
      for (int i = 0; i < k * m; ++i) h[i].im = P(T(0)) - h[i].im;
    fetch_ahead();
    if (sp && !factor_only) load_lanes<2 * S>(sp + first * kt, kt, kt, count, &s->re);
    info = P(T(0));
    if (same_from <= first && first + count <= same_until) return;
    const int64_t run = first / a.alpha_run;
    same_from = run * a.alpha_run, same_until = same_from + a.alpha_run;
    reg = P(ap[run]);
    if (first + count <= same_until) return;
    for (int i = 0; i < W; ++i) reg.v[i] = ap[(first + (i < count ? i : count - 1)) / a.alpha_run];
    same_until = same_from;
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
    const narrow_rows<lanes_of<T, Q>, P> v{h, m_form ? 1 : m, m_form ? m : 1, part};
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
  SF_HD cx<Q>* spare() const {  // [n], of the same 64-byte packs
    return reinterpret_cast<cx<Q>*>(dh);
  }

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
        const int64_t at = (first + i) * samples + j;
        if (a.info) a.info[at] = code;
        if (code == 0) continue;
        note_lowest(code < 0 ? shared.spoilt : shared.bad, at);
        __atomic_fetch_add(&shared.count, 1, __ATOMIC_RELAXED);
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
inline void with_size(int64_t n, const F& f) {
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
