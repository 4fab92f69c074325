// likelihood_score where a block has too few slots to fill the lanes along them: W blocks side by side instead, one per
// lane. Every lane does the same sums in the same order wherever its block stands in the batch.
#pragma once

#include "../common/kernels.hpp"
#include "../common/small_matrix.hpp"
#include "around.hpp"
#include "packs.hpp"
#include "parallel.hpp"
#include "scratch.hpp"
#include "transpose.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct score_lanes {
  static constexpr int W = native_width<T>, WD = native_width<double>, parts = W / WD, tile = 4;
  using P = pack<T, W>;
  using D = pack<double, WD>;
  using Z = cx<P>;

  const block_args& a;
  const int u, nr, nt, t, m;    // m = U*Nt streams
  Z *h, *x, *y, *dx, *gh, *gx;  // [U,Nr,Nt], [U,Nt,T], [Nr,T] (then the residual), ...
  scratch<Z> memory;
  P seen;  // 0 in lanes whose results are finite

  explicit score_lanes(const block_args& args)
      : a(args), u(int(a.u)), nr(int(a.nr)), nt(int(a.nt)), t(int(a.t)), m(u * nt) {
    memory.allocate(2 * nr * m + 3 * m * t + nr * t);
    Z* p = memory;
    auto take = [&](int n) { return (p += n) - n; };
    h = take(nr * m), x = take(m * t), y = take(nr * t), dx = take(m * t), gh = take(nr * m), gx = take(m * t);
  }

  // Block `first` on of user v, where `entries` complex numbers make a block: a user's blocks are K apart, items
  // b_step.
  transposer<T, W> lanes(const void* data, int64_t b_step, int v, int64_t entries, int64_t first, int count) const {
    const T* base = static_cast<const T*>(data) + 2 * v * a.k * entries;
    if (a.k == 1 || a.b == 1 || b_step == a.k * entries) {
      const int64_t gap = a.k == 1 ? b_step : entries;
      transposer<T, W> from(base + 2 * first * gap, 2 * gap, count);
      if (gap == entries) from.next = from.from[0] + 2 * W * entries;
      return from;
    }
    transposer<T, W> from(base, 0, count);
    for (int i = 0; i < W; ++i) {
      const int64_t at = first + (i < count ? i : count - 1);
      from.from[i] = base + 2 * (at / a.k * b_step + at % a.k * entries);
    }
    return from;
  }
  void load(const void* data, int64_t b_step, int users, int entries, int64_t first, int count, Z* to) const {
    for (int v = 0; v < users; ++v)
      lanes(data, b_step, v, entries, first, count).load(0, 2 * int64_t(entries), &to[v * entries].re);
  }
  void store(void* data, int entries, int64_t first, int count, const Z* z) const {
    for (int v = 0; v < u; ++v)
      lanes(data, u * a.k * entries, v, entries, first, count).store(0, 2 * int64_t(entries), &z[v * entries].re);
  }

  // H from H^H
  void load_adjoint(int64_t first, int count) {
    load(a.h, a.h_b, u, nr * nt, first, count, gh);
    for (int v = 0; v < u; ++v)
      for (int r = 0; r < nr; ++r)
        for (int c = 0; c < nt; ++c) h[(v * nr + r) * nt + c] = conjugate(gh[(v * nt + c) * nr + r]);
  }
  static SF_HD Z conjugate(Z z) { return {z.re, P(-z.im.v)}; }

  // base - H X for all rows, slots and lanes, into `out` [Nr,T]; base null is zero, and then the sign is left out too.
  template <int R>
  SF_HD void residual_rows(const Z* xs, const Z* base, int r, int j, Z* out) const {
    Z acc[R];
    SF_UNROLL
    for (int i = 0; i < R; ++i) acc[i] = base ? base[(r + i) * t + j] : Z{P(T(0)), P(T(0))};
    for (int v = 0; v < u; ++v)
      for (int c = 0; c < nt; ++c) {
        const Z s = xs[(v * nt + c) * t + j];
        SF_UNROLL
        for (int i = 0; i < R; ++i) sub(acc[i], h[(v * nr + r + i) * nt + c], s);
      }
    SF_UNROLL
    for (int i = 0; i < R; ++i) out[(r + i) * t + j] = acc[i];
  }
  void residual(const Z* xs, const Z* base, Z* out) const {
    for (int j = 0; j < t; ++j) {
      int r = 0;
      for (; r + tile <= nr; r += tile) residual_rows<tile>(xs, base, r, j, out);
      for (; r < nr; ++r) residual_rows<1>(xs, base, r, j, out);
    }
  }

  SF_HD void keep(Z& to, Z v, P scale) {
    to = v * scale;
    seen = seen + (to.re - to.re) + (to.im - to.im);
  }

  // H^H R, streams [c, c + C) of user v
  template <int C>
  SF_HD void x_score(int v, int c, int j, P scale) {
    Z acc[C];
    SF_UNROLL
    for (int i = 0; i < C; ++i) acc[i] = {P(T(0)), P(T(0))};
    for (int r = 0; r < nr; ++r) {
      const Z s = y[r * t + j];
      SF_UNROLL
      for (int i = 0; i < C; ++i) add<times::conj_a>(acc[i], h[(v * nr + r) * nt + c + i], s);
    }
    SF_UNROLL
    for (int i = 0; i < C; ++i) keep(gx[(v * nt + c + i) * t + j], acc[i], scale);
  }
  void scores(P scale) {
    for (int v = 0; v < u; ++v)
      for (int j = 0; j < t; ++j) {
        int c = 0;
        for (; c + tile <= nt; c += tile) x_score<tile>(v, c, j, scale);
        for (; c < nt; ++c) x_score<1>(v, c, j, scale);
      }
    for (int v = 0; v < u; ++v)
      for (int r = 0; r < nr; ++r)
        for (int c = 0; c < nt; ++c) {
          Z acc{P(T(0)), P(T(0))};
          for (int j = 0; j < t; ++j) add<times::conj_b>(acc, y[r * t + j], x[(v * nt + c) * t + j]);
          keep(gh[(v * nr + r) * nt + c], acc, scale);
        }
  }

  // Lanes [q * WD, (q + 1) * WD) in double
  SF_HD static D part(const P& p, int q) {
    using H = typename vec_of<T, WD>::VU;
    const H h = *reinterpret_cast<const H*>(reinterpret_cast<const T*>(&p) + q * WD);
    if constexpr (sizeof(T) == 8)
      return D(h);
    else
      return widen(h);
  }
  // |z|^2 of n entries per lane, in double: one part of the lanes
  SF_HD static D energy_part(const Z* z, int n, int q) {
    D sum(0.0);
    for (int j = 0; j < 2 * n; ++j) {
      const D d = part((&z->re)[j], q);
      sum = sum + d * d;
    }
    return sum;
  }
  // ... of all lanes, to out[lane * step]
  SF_HD static void energy(const Z* z, int n, int count, double* out, int64_t step) {
    for (int q = 0; q < parts; ++q) {
      const D sum = energy_part(z, n, q);
      for (int i = 0; i < WD && q * WD + i < count; ++i) out[(q * WD + i) * step] = sum.v[i];
    }
  }

  SF_HD static P scales(const block_args& a, int64_t first, int count) {
    P scale(T(1));
    if (a.noise_var && !a.noise_var_b)
      scale = P(T(1.0 / double(*static_cast<const T*>(a.noise_var))));
    else if (a.noise_var)
      for (int i = 0; i < W; ++i) {
        const int64_t item = (first + (i < count ? i : count - 1)) / a.k;
        scale.v[i] = T(1.0 / double(static_cast<const T*>(a.noise_var)[item * a.noise_var_b]));
      }
    return scale;
  }

  void blocks(int64_t first, int count, int64_t& lowest) {
    const int64_t step = 2 + u;
    double* e = a.energies + first * step;
    seen = P(T(0));
    a.h_adjoint ? load_adjoint(first, count) : load(a.h, a.h_b, u, nr * nt, first, count, h);
    load(a.x, a.x_b, u, nt * t, first, count, x);
    load(a.y, a.y_b, 1, nr * t, first, count, y);
    residual(x, y, y);
    energy(y, nr * t, count, e, step);
    scores(scales(a, first, count));
    store(a.out_h, nr * nt, first, count, gh);
    store(a.out_x, nt * t, first, count, gx);
    for (int i = 0; i < count; ++i)
      for (int v = 0; v <= u; ++v) e[i * step + 1 + v] = 0;
    if (a.probe) {
      load(a.probe, a.probe_b, u, nt * t, first, count, dx);
      for (int v = 0; v < u; ++v) energy(dx + v * nt * t, nt * t, count, e + 2 + v, step);
      residual(dx, nullptr, y);
      energy(y, nr * t, count, e + 1, step);
    }
    for (int i = count - 1; i >= 0; --i) {
      double total = e[i * step] += double(seen.v[i]);  // 0, or NaN where a result is not finite
      for (int v = 0; v <= u; ++v) total += e[i * step + 1 + v];
      if (!(total - total == 0)) note_lowest(lowest, first + i);
    }
  }
};

// One user, one antenna on either side, one slot, one block an item: lanes along the batch without memory in between.
// The arithmetic is that of score_lanes.
template <class T>
struct score_singles {
  using lanes = score_lanes<T>;
  using P = typename lanes::P;
  using D = typename lanes::D;
  using Z = typename lanes::Z;
  static constexpr int W = lanes::W, WD = lanes::WD;
  const block_args& a;

  template <int... I>
  static SF_HD Z split(P lo, P hi, int_list<I...>) {
    return {P(__builtin_shufflevector(lo.v, hi.v, (2 * I)...)), P(__builtin_shufflevector(lo.v, hi.v, (2 * I + 1)...))};
  }
  template <int First, int... I>  // of the 2W reals of W entries
  static SF_HD P mixed(Z z, int_list<I...>) {
    return P(__builtin_shufflevector(z.re.v, z.im.v, (First + I / 2 + I % 2 * W)...));
  }
  // Entries `first` on, `step` apart; lanes past the last repeat it.
  static SF_HD Z load(const void* data, int64_t step, int64_t first, int count) {
    const T* p = static_cast<const T*>(data) + 2 * first * step;
    if (count == W && step == 1) return split(P::load(p), P::load(p + W), make_list<W>());
    Z z;
    transposer<T, W>(p, 2 * step, count).load(0, 2, &z.re);
    return z;
  }
  static SF_HD void store(void* data, int64_t first, int count, Z z) {
    T* p = static_cast<T*>(data) + 2 * first;
    const int n = 2 * count;
    put(p, mixed<0>(z, make_list<W>()), n < W ? n : W);
    if (n > W) put(p + W, mixed<W / 2>(z, make_list<W>()), n - W);
  }

  void blocks(int64_t first, int count, int64_t& lowest) const {
    Z h = load(a.h, a.h_b, first, count), r = load(a.y, a.y_b, first, count);
    if (a.h_adjoint) h = lanes::conjugate(h);
    const Z x = load(a.x, a.x_b, first, count), zero{P(T(0)), P(T(0))};
    sub(r, h, x);
    Z gx = zero, gh = zero;
    add<times::conj_a>(gx, h, r), add<times::conj_b>(gh, r, x);
    const P scale = lanes::scales(a, first, count);
    gx = gx * scale, gh = gh * scale;
    store(a.out_x, first, count, gx), store(a.out_h, first, count, gh);
    const P seen = (gx.re - gx.re) + (gx.im - gx.im) + (gh.re - gh.re) + (gh.im - gh.im);
    const D most(sizeof(T) == 4 ? 3.4028234e38 : largest(0.0));
    T* energy = static_cast<T*>(a.energy) + first;
    uint32_t good = 0;
    for (int q = 0; q < lanes::parts; ++q) {
      const D e = lanes::energy_part(&r, 1, q) + lanes::part(seen, q);  // NaN where a result is not finite
      good |= (((e - e) == D(0.0)) & ~(e > most)).bits() << q * WD;
      const int n = count - q * WD < WD ? count - q * WD : WD;
      const pack<T, WD> rounded(narrow(e));
      n == WD ? rounded.store(energy + q * WD) : rounded.store_first(energy + q * WD, n > 0 ? n : 0);
    }
    if ((good & low_bits(count)) != low_bits(count))
      note_lowest(lowest, first + __builtin_ctz(~good));
  }
  static SF_HD typename vec_of<T, WD>::V narrow(D e) {
    if constexpr (sizeof(T) == 8)
      return e.v;
    else
      return rounded_half(e);
  }
};

inline bool single_entries(const block_args& a) {
  return a.u == 1 && a.k == 1 && a.nr == 1 && a.nt == 1 && a.t == 1 && !a.probe;
}

template <class T>
void score_single_entries(block_args& a) {
  constexpr int W = score_singles<T>::W;
  a.bad = -1;
  parallel_for(a.pool, (a.b + W - 1) / W, 8192 / W, [&](int64_t begin, int64_t end) {
    const score_singles<T> worker{a};
    for (int64_t i = begin * W; i < end * W && i < a.b; i += W)
      worker.blocks(i, a.b - i < W ? int(a.b - i) : W, a.bad);
  });
}

// Lanes along the slots stay half empty with so few of them; a block that outgrows the first-level cache W times over
// gains nothing from being beside others.
template <class T>
bool few_slots(const block_args& a) {
  constexpr int WC = native_width<T> / 2;
  const int64_t entries = a.u * a.nr * a.nt;
  return (2 * a.t <= WC + 2 && entries <= 256) || (a.t <= 8 && entries * a.t <= 16);
}

template <class T>
void score_in_lanes(block_args& a) {
  constexpr int W = score_lanes<T>::W;
  a.bad = -1;
  const int64_t items = a.b * a.k, packs = (items + W - 1) / W, m = a.u * a.nt, reals = 2 * int64_t(sizeof(T)) * items;
  prepare_result(a.out_h, reals * a.nr * m), prepare_result(a.out_x, reals * m * a.t);
  const int64_t each = W * (8 + (a.nr * m + (a.nr + m) * a.t) / 2) + 3 * a.nr * m * a.t;  // ns of a pack
  parallel_for(a.pool, packs, 20000 / each + 1, [&](int64_t begin, int64_t end) {
    score_lanes<T> worker(a);
    for (int64_t i = begin * W; i < end * W && i < items; i += W)
      worker.blocks(i, items - i < W ? int(items - i) : W, a.bad);
  });
}

}  // namespace SF_NS
}  // namespace sf
