// s_hat = diag(G H)^-1 G y with G = (H^H H + v I)^-1 H^H, and the noise variance left after that scaling.
#include "equalise_columns.hpp"
#include "one_channel.hpp"

namespace sf {
inline namespace SF_NS {

// In double throughout: diag(G H) and 1 - diag(G H) both matter, at low and at high SNR.
template <class Feed>
struct equalise_job {
  static constexpr bool always_double = true;
  Feed& feed;
  template <int N, class Worker, class V, class Q, class M>
  SF_HD void run(Worker& w, const V& v, const cx<Q>* l, const Q* inv, const Q* from, cx<Q>* u, cx<Q>* z, M mask) const {
    serve(feed, w, v, [&](const V& part, bool first) SF_LAMBDA {
      if (first) gains<N>(w, part, l, inv, from, z, mask);
      solve_sides<N>(w, part, l, inv, from, u, mask);
    });
  }

  // 1 / diag(G H) of every symbol, and the noise that is left on it: of the channel, whatever was received.
  template <int N, class Worker, class V, class Q, class M>
  SF_HD static void gains(Worker& w, const V& v, const cx<Q>* l, const Q* inv, const Q* from, cx<Q>* z, M mask) {
    const int n = N > 0 ? N : w.n;
    const Q one(1.0f), none(0.0f), never(__builtin_inff()), silent(0x1p-1022), reg = v.lanes.get(w.reg);
    Q* const per_gain = w.template per_gain<Q>();
    const auto put = [&](int i, Q gain, Q rest) {  // diag(G H) and 1 - diag(G H)
      const auto heard = gain > silent;            // else nothing is known of the symbol
      const Q inverse = one / gain;
      per_gain[i] = select(heard, inverse, none);
      v.lanes.put(w.noise[i], select(heard, rest * inverse, never), mask);
    };
    if (w.m_form) {
      for (int i = 0; i < n; ++i) {
        loop<N>(0, n, [&](int j) { z[j] = {j == i ? one : none, none}; });
        solve<N>(l, inv, from, n, z);
        const auto row = [&](int m) { return conj(v(i, m)); };
        cx<Q>* column = w.template spare<Q>();  // of V V^H: (V V^H) A^-1 and v A^-1 both, so neither is a difference
        narrow_product<N>(v, n, w.len, row, column);
        Q gain(0.0f);
        loop<N>(0, n, [&](int j) { gain = gain + inner(z[j], column[j]); });
        put(i, gain, reg * z[i].re);
      }
    } else {
      for (int m = 0; m < w.len; ++m) {
        loop<N>(0, n, [&](int j) { z[j] = v(j, m); });
        solve<N>(l, inv, from, n, z);
        Q gain(0.0f), norm(0.0f);
        loop<N>(0, n, [&](int j) { gain = gain + inner(v(j, m), z[j]), norm = norm + inner(v(j, m), v(j, m)); });
        put(m, gain, left_by(gain, reg, norm));
      }
    }
  }

  template <int N, class Worker, class V, class Q, class M>
  SF_HD static void solve_sides(Worker& w, const V& v, const cx<Q>* l, const Q* inv, const Q* from, cx<Q>* u, M mask) {
    const int n = N > 0 ? N : w.n;
    const Q* const per_gain = w.template per_gain<Q>();
    const int s_t = w.s_t, x_t = w.x_t, len = w.len, sides = w.t;
    const auto* y = w.s;
    auto* x = w.x;
    for (int t = 0; t < sides; ++t, y += s_t, x += x_t) {
      const auto received = [&](int i) { return cx<Q>{v.lanes.get(y[i].re), v.lanes.get(y[i].im)}; };
      const auto put = [&](int i, cx<Q> biased) {
        v.lanes.put(x[i].re, biased.re * per_gain[i], mask);
        v.lanes.put(x[i].im, biased.im * per_gain[i], mask);
      };
      if (w.m_form) {
        narrow_product<N>(v, n, len, received, u);
        solve<N>(l, inv, from, n, u);
        loop<N>(0, n, [&](int i) { put(i, u[i]); });
      } else {
        loop<N>(0, n, [&](int i) { u[i] = received(i); });
        solve<N>(l, inv, from, n, u);
        for (int m = 0; m < len; ++m) {
          cx<Q> biased[1];
          wide_product<1, N>(v, n, m, u, biased);
          put(m, biased[0]);
        }
      }
    }
  }
};

template <class T>
struct equaliser {
  using R = regularised<T>;
  using P = typename R::P;
  rzf_args& a;
  const units u;
  explicit equaliser(rzf_args& args) : a(args), u(args.n, 1, args.k * args.m, R::W) {}

  SF_HD void ask(R&, int64_t) const {}
  void put(R& w, int64_t i, int count) const {
    w.settle(w.x);
    w.note(a, i, count);
    w.write(a.out_x, w.m, i, count, w.x);
    write_noise(w, i, count);
  }
  void close(R&, int64_t) const {}
  void write_noise(R& w, int64_t i, int count) const {
    P* noise = w.noise_tile();
    const auto singular = ~(w.info == P(T(0)));
    for (int t = 0; t < w.t; ++t) {
      const auto lost = singular | ~(w.spoilt[t] == P(T(0)));
      for (int m = 0; m < w.m; ++m) noise[t * w.m + m] = select(lost, P(T(__builtin_inf())), w.noise[m]);
    }
    T* at = static_cast<T*>(a.out_noise) + a.m * (i * a.t + w.from);
    store_lanes<0>(at, a.m * a.t, int64_t(w.m) * w.t, count, noise);
  }

  template <int N>
  void solve_lanes(R& w, int64_t b, int64_t e) const {
    in_lanes<N>(w, u.begin(b), u.end(e - 1));
  }
  template <int N>
  void in_lanes(R& w, int64_t begin, int64_t end) const {
    serve_all<N, equalise_job>(feed<equaliser, R>(*this, w, begin, end), w);
  }

  template <int N>
  void operator()() const {
    if (side_by_side(a, R::W)) return by_channel<equaliser, N>(a, R::W);
    parallel_for(a.pool, u.chunks, 1, [&](int64_t b, int64_t e) {
      R w(a);
      solve_lanes<N>(w, b, e);
    });
  }
};

// One channel at a time, lanes along columns; runs of channels that solve_columns.hpp leaves take the lanes.
template <class T>
void equalise_in_columns(rzf_args& a) {
  if (a.shared) as_one_channel(a);
  const auto in_lanes = [&](rzf_args& some, int64_t begin, int64_t end) {
    typename equaliser<T>::R w(some);
    equaliser<T>(some).template in_lanes<0>(w, begin, end);
  };
  if (equalise_columns<T>::filters(a))
    return solve_pieces<equalise_columns<T>>(a, [&](rzf_args& one) { in_lanes(one, 0, one.n); });
  parallel_for(a.pool, a.n, 1, [&](int64_t b, int64_t e) {
    equalise_columns<T> w(a);
    solve_or_leave(
        b, e, [&](int64_t i) { return w.solve(i, 0, a.t); }, [&](int64_t i, int64_t j) { in_lanes(a, i, j); });
  });
}

void lmmse_equalise(rzf_args& a) {
  if (equalise_columns_serves(a)) return a.is_double ? equalise_in_columns<double>(a) : equalise_in_columns<float>(a);
  const int64_t n = a.m_form ? a.m : a.k;
  a.is_double ? with_size(n, equaliser<double>(a)) : with_size(n, equaliser<float>(a));
}

}  // namespace SF_NS
}  // namespace sf
