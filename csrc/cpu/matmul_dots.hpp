// mimo_matmul where B is one column and both operands run along K in memory: every entry is a dot product, with lanes
// along K. A tile of rows, of one item or of several, keeps two packs of sums a row; one tree adds up all of them.
#pragma once
#include "../common/columns.hpp"
#include "matmul_operand.hpp"
#include "matmul_scalar.hpp"
#include "parallel.hpp"
#include "sums.hpp"

namespace sf {
inline namespace SF_NS {

// sum over the columns of a x, or conj(a) x: the same two products of reals, of which one changes signs at the end.
template <class T, int W, bool Conj>
struct dots {
  pack<T, W> same, crossed;
  SF_HD static dots zero() { return {pack<T, W>(T(0)), pack<T, W>(T(0))}; }
  SF_HD void add(pack_cols<T, W> a, pack_cols<T, W> x) {
    same = same + a.v * x.v;
    crossed = crossed + a.v * swap_pairs(x.v);
  }
  SF_HD pack<T, W> re() const { return Conj ? same : pack<T, W>(T(0)) - same * turn_signs<T, W>(); }
  SF_HD pack<T, W> im() const { return Conj ? pack<T, W>(T(0)) - crossed * turn_signs<T, W>() : crossed; }
};

template <class T, int W, bool Conj>
SF_HD pack_cols<T, W> values(const dots<T, W, Conj> (&q)[W / 2]) {
  pack<T, W> p[W];
  SF_UNROLL
  for (int i = 0; i < W / 2; ++i) p[2 * i] = q[i].re(), p[2 * i + 1] = q[i].im();
  return {sums_of(p)};
}

template <class T, bool Conj>
struct dot_rows {
  static constexpr int W = native_width<T>, WC = W / 2, R = WC;  // R rows have as many sums as a pack has lanes
  using Col = pack_cols<T, W>;
  using P = pack<T, W>;

  const matmul_args& g;
  const operand<T> a, b;
  const int64_t whole, rest;  // reals in packs, and behind them
  const lane_mask<T, W> fresh;  // lanes of the last pack that are not in the one before, too

  static bool takes(const matmul_args& g) {
    return g.n == 1 && g.k >= (g.m == 1 ? 2 : 2 * WC) && g.a_col == 1 && g.b_row == 1;  // K = 1: scaled_rows
  }
  explicit dot_rows(const matmul_args& args)
      : g(args),
        a(args, args.a, args.a_step, args.a_row, args.a_col),
        b(args, args.b, args.b_step, args.b_row, args.b_col),
        whole(2 * args.k / W * W),
        rest(2 * args.k - whole),
        fresh(lane_mask<T, W>::from_bits(~low_bits(W - int(rest)))) {}

  SF_HD Col last(const T* p) const { return {select(fresh, P::load(p + whole + rest - W), P(T(0)))}; }

  // Rows at ap[i] times columns at xp[i]
  template <bool AsksX>
  SF_HD Col tile(const T* const (&ap)[R], const T* const (&xp)[R]) const {
    constexpr int ahead = (AsksX ? 1024 : 4096) / int(sizeof(T));  // bytes, as measured
    dots<T, W, Conj> p[R];
    const auto step = [&](int i, int64_t j) SF_LAMBDA {
      __builtin_prefetch(ap[i] + j + ahead, 0, 2);
      if (AsksX) __builtin_prefetch(xp[i] + j + ahead, 0, 2);
      p[i].add(Col::load(ap[i] + j), Col::load(xp[i] + j));
    };
    SF_UNROLL
    for (int i = 0; i < R; ++i) p[i] = dots<T, W, Conj>::zero();
    if (whole <= 2 * W) {
      for (int64_t j = 0; j < whole; j += W) SF_UNROLL
      for (int i = 0; i < R; ++i) step(i, j);
    } else {
      SF_UNROLL
      for (int i = 0; i < R; ++i)  // row after row, as the hardware's prefetching expects
        for (int64_t j = 0; j < whole; j += W) step(i, j);
    }
    if (rest && whole) {
      SF_UNROLL
      for (int i = 0; i < R; ++i) p[i].add(last(ap[i]), last(xp[i]));
    } else if (rest) {
      SF_UNROLL
      for (int i = 0; i < R; ++i) p[i].add(Col::load_first(ap[i], int(rest) / 2), Col::load_first(xp[i], int(rest) / 2));
    }
    return values(p);
  }

  // Rows [i, end) of all items' rows one after the other; in the last tile the last one again. AsksX: few enough share a
  // column that asking for it once for each of them is no loss.
  template <bool AsksX, class Keep>
  SF_HD void rows(int64_t i, int64_t end, const Keep& keep) const {
    int64_t item = i / g.m, r = i - item * g.m;
    const T *of_a = a.at(item), *of_x = b.at(item), *ap[R], *xp[R];
    for (; i < end; i += R) {
      for (int l = 0; l < R; ++l) {
        ap[l] = of_a + 2 * r * a.row, xp[l] = of_x;
        if (i + l + 1 >= end) continue;
        if (++r == g.m) r = 0, ++item, of_a = a.at(item), of_x = b.at(item);
      }
      keep(tile<AsksX>(ap, xp), i, end - i < R ? int(end - i) : R);
    }
  }

  void run(int64_t begin, int64_t end, int64_t& lowest) {
    T* out = static_cast<T*>(g.out);
    Col seen = Col::zero();
    const auto keep = [&](Col v, int64_t row, int count) SF_LAMBDA {
      seen = seen + (v - v);
      (g.conj_b ? conjugate(v) : v).store_first(out + 2 * row, count);
    };
    const T *ap[R], *xp[R];
    int64_t i = begin;
    if (g.m == 1 && g.dims == 1) {
      const int64_t to_a = 2 * a.step[0], to_x = 2 * b.step[0];
      const T *pa = a.p + i * to_a, *px = b.p + i * to_x;
      for (; i + R <= end; i += R, pa += R * to_a, px += R * to_x) {
        SF_UNROLL
        for (int l = 0; l < R; ++l) ap[l] = pa + l * to_a, xp[l] = px + l * to_x;
        keep(tile<true>(ap, xp), i, R);
      }
    }
    if (i < end) g.m <= 2 ? rows<true>(i, end, keep) : rows<false>(i, end, keep);
    if (!(seen.v.sum() == 0)) note_lowest(lowest, first_spoilt(out, begin, end, 2) / g.m);
  }
};

}  // namespace SF_NS
}  // namespace sf
