// s_hat = diag(G H)^-1 G y with G = (H^H H + v I)^-1 H^H, and the noise variance left after that scaling.
#include "regularised.hpp"
#include "solve_columns.hpp"

namespace sf {
inline namespace SF_NS {

// In double throughout: diag(G H) and 1 - diag(G H) both matter, at low and at high SNR.
struct equalise_job {
  static constexpr bool always_double = true;
  template <int N, class Worker, class V, class Q, class M>
  SF_HD void run(Worker& w, const V& v, const cx<Q>* l, const Q* inv, const Q* from, cx<Q>* u, cx<Q>* z, M mask) const {
    const int n = N > 0 ? N : w.n;
    const Q one(1.0f), reg = v.lanes.get(w.reg);
    const auto received = [&](int i) { return cx<Q>{v.lanes.get(w.s[i].re), v.lanes.get(w.s[i].im)}; };
    const Q none(0.0f), never(__builtin_inff());
    const auto put = [&](int i, cx<Q> biased, Q gain, Q rest) {  // diag(G H) and 1 - diag(G H)
      const auto heard = gain > none;                            // a silent column: nothing is known of its symbol
      v.lanes.put(w.x[i].re, select(heard, biased.re / gain, none), mask);
      v.lanes.put(w.x[i].im, select(heard, biased.im / gain, none), mask);
      v.lanes.put(w.noise[i], select(heard, rest / gain, never), mask);
    };
    if (w.a.m_form)
      narrow_product<N>(v, n, w.len, received, u);
    else
      loop<N>(0, n, [&](int i) { u[i] = received(i); });
    solve<N>(l, inv, from, n, u);
    if (w.a.m_form) {
      for (int i = 0; i < n; ++i) {
        loop<N>(0, n, [&](int j) { z[j] = {j == i ? one : Q(0.0f), Q(0.0f)}; });
        solve<N>(l, inv, from, n, z);
        const auto row = [&](int m) { return conj(v(i, m)); };
        cx<Q>* column = w.template spare<Q>();  // of V V^H: (V V^H) A^-1 and v A^-1 both, so neither is a difference
        narrow_product<N>(v, n, w.len, row, column);
        Q gain(0.0f);
        loop<N>(0, n, [&](int j) { gain = gain + inner(z[j], column[j]); });
        put(i, u[i], gain, reg * z[i].re);
      }
    } else {
      for (int m = 0; m < w.len; ++m) {
        cx<Q> biased[1];
        wide_product<1, N>(v, n, m, u, biased);
        loop<N>(0, n, [&](int j) { z[j] = v(j, m); });
        solve<N>(l, inv, from, n, z);
        Q gain(0.0f), norm(0.0f);
        loop<N>(0, n, [&](int j) { gain = gain + inner(v(j, m), z[j]), norm = norm + inner(v(j, m), v(j, m)); });
        put(m, biased[0], gain, left_by(gain, reg, norm));
      }
    }
  }
};

template <class T>
struct equaliser {
  using R = regularised<T>;
  using P = typename R::P;
  rzf_args& a;

  template <int N>
  void operator()() const {
    const units u(a.n, 1, a.k * a.m, R::W);
    parallel_for(a.pool, u.chunks, 1, [&](int64_t b, int64_t e) {
      R w(a);
      for (int64_t i = u.begin(b); b < e; ++b, i = u.begin(b))
        for (; i < u.end(b); i += R::W) pack_at<N>(w, i, u.end(b) - i < R::W ? int(u.end(b) - i) : R::W);
    });
  }
  template <int N>
  void pack_at(R& w, int64_t i, int count) const {
    w.load(i, count);
    w.template solve_lanes<N>(equalise_job());
    w.settle(w.x);
    const auto live = (w.info == P(T(0))) & (w.spoilt[0] == P(T(0)));
    for (int64_t j = 0; j < a.m; ++j) w.noise[j] = select(live, w.noise[j], P(T(__builtin_inf())));
    w.note(a, i, count);
    transposer<T, R::W>(static_cast<T*>(a.out_x) + i * 2 * a.m, 2 * a.m, count).store(0, 2 * a.m, &w.x->re);
    transposer<T, R::W>(static_cast<T*>(a.out_noise) + i * a.m, a.m, count).store(0, a.m, w.noise);
  }
};

// One channel at a time, lanes along columns; runs of channels that solve_columns.hpp leaves take the lanes.
template <class T>
void equalise_in_columns(rzf_args& a) {
  const auto in_lanes = [&](int64_t begin, int64_t end) {
    const equaliser<T> lanes{a};
    typename equaliser<T>::R w(a);
    constexpr int width = equaliser<T>::R::W;
    for (; begin < end; begin += width)
      lanes.template pack_at<0>(w, begin, end - begin < width ? int(end - begin) : width);
  };
  parallel_for(a.pool, a.n, 1, [&](int64_t b, int64_t e) {
    equalise_columns<T> w(a);
    solve_or_leave(b, e, [&](int64_t i) { return w.solve(i); }, in_lanes);
  });
}

void lmmse_equalise(rzf_args& a) {
  if (equalise_columns_serves(a)) return a.is_double ? equalise_in_columns<double>(a) : equalise_in_columns<float>(a);
  const int64_t n = a.m_form ? a.m : a.k;
  a.is_double ? with_size(n, equaliser<double>{a}) : with_size(n, equaliser<float>{a});
}

}  // namespace SF_NS
}  // namespace sf
