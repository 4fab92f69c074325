// What regularised.hpp is made of: how arithmetic of another width reads and writes a tile of channels side by side,
// where a factor lives, and the sizes of a problem.
#pragma once
#include "../common/kernels.hpp"
#include "../common/small_matrix.hpp"

namespace sf {
inline namespace SF_NS {

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

// The same from a copy in the wider type, where it is read so often that converting once pays.
template <class L>
struct wide_rows {
  static constexpr int width = L::width;
  using Q = typename L::Q;
  const cx<Q>* tile;
  int row, col;
  L lanes;
  SF_HD cx<Q> operator()(int i, int m) const { return tile[i * row + m * col]; }
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
// results (M entries) in their tiles, which hold `most` right-hand sides, `t` of them at hand. S > 0: square channels
// with right-hand sides one after the other, known when compiled.
inline int sides_at_once(const rzf_args& a) {  // of vectors, a leading dimension; a factor costs as much as n / 2
  const int64_t most = 16 * (a.m_form ? a.m : a.k);
  return int(a.rows && a.t > 2 * most ? most : a.t);
}
template <int S>
struct problem {
  static constexpr int k = S, m = S, n = S, len = S, s_i = 1, s_t = S, x_i = 1, x_t = S;
  static constexpr bool m_form = false;
  const int most;
  int t;
  explicit problem(const rzf_args& a) : most(sides_at_once(a)), t(most) {}
  static bool serves(const rzf_args& a) { return a.k == S && a.m == S && !a.m_form && (a.rows || a.t == 1) && a.s; }
};
template <>
struct problem<0> {
  const int k, m, most, n, len, s_i, s_t, x_i, x_t;
  const bool m_form;
  int t;
  explicit problem(const rzf_args& a)
      : k(int(a.k)),
        m(int(a.m)),
        most(sides_at_once(a)),
        n(a.m_form ? m : k),
        len(a.m_form ? k : m),
        s_i(a.rows ? 1 : most),
        s_t(a.rows ? k : 1),
        x_i(a.rows ? 1 : most),
        x_t(a.rows ? m : 1),
        m_form(a.m_form),
        t(most) {}
};

}  // namespace SF_NS
}  // namespace sf
