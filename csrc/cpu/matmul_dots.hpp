// mimo_matmul where B is one column and both operands run along K in memory: every entry is a dot product, with lanes
// along K. A tile of rows, of one item or of several, keeps two packs of sums a row; one tree adds up all of them.
#pragma once
#include "../common/columns.hpp"
#include "matmul_operand.hpp"
#include "matmul_scalar.hpp"
#include "parallel.hpp"

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

template <int D, class T, int W, int... I>
SF_HD pack<T, W> add_halves(pack<T, W> a, pack<T, W> b, int_list<I...>) {
  return pack<T, W>(__builtin_shufflevector(a.v, b.v, ((I & D) == 0 ? I : W + I - D)...)) +
         pack<T, W>(__builtin_shufflevector(a.v, b.v, ((I & D) == 0 ? I + D : W + I)...));
}
// Lane l: the sum over the lanes of p[l], W packs side by side. Halves, quarters, ... are added as in pack::sum.
template <int D = 1, class T, int W>
SF_HD pack<T, W> sums_of(const pack<T, W>* p) {
  if constexpr (D == W)
    return p[0];
  else
    return add_halves<D>(sums_of<2 * D>(p), sums_of<2 * D>(p + D), make_list<W>());
}
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
  static constexpr int ahead = 4096 / int(sizeof(T));            // reals; as in scaled_rows
  using Col = pack_cols<T, W>;

  const matmul_args& g;
  const operand<T> a, b;
  Col seen = Col::zero();

  static bool takes(const matmul_args& g) {
    return g.n == 1 && g.k >= 2 * WC && (g.a_col == 1 || g.k == 1) && (g.b_row == 1 || g.k == 1);
  }
  explicit dot_rows(const matmul_args& args)
      : g(args),
        a(args, args.a, args.a_step, args.a_row, args.a_col),
        b(args, args.b, args.b_step, args.b_row, args.b_col) {}

  // Rows [row, row + count) of all items' rows one after the other; a short tile repeats its last row.
  SF_HD void tile(int64_t row, int count, T* out) {
    const T *ap[R], *xp[R];
    int64_t item = row / g.m, r = row - item * g.m;
    const T *of_a = a.at(item), *of_x = b.at(item);
    for (int i = 0; i < R; ++i) {
      ap[i] = of_a + 2 * r * a.row, xp[i] = of_x;
      if (i + 1 >= count) continue;
      if (++r == g.m) r = 0, ++item, of_a = a.at(item), of_x = b.at(item);
    }
    dots<T, W, Conj> p[R];
    SF_UNROLL
    for (int i = 0; i < R; ++i) p[i] = dots<T, W, Conj>::zero();
    const int64_t reals = 2 * g.k;
    int64_t j = 0;
    for (; j + W <= reals; j += W) SF_UNROLL
      for (int i = 0; i < R; ++i) {
        __builtin_prefetch(ap[i] + j + ahead, 0, 2);
        p[i].add(Col::load(ap[i] + j), Col::load(xp[i] + j));
      }
    if (j < reals) SF_UNROLL
      for (int i = 0; i < R; ++i)
        p[i].add(Col::load_first(ap[i] + j, int(reals - j) / 2), Col::load_first(xp[i] + j, int(reals - j) / 2));
    const Col v = values(p);
    seen = seen + (v - v);
    (g.conj_b ? conjugate(v) : v).store_first(out, count);
  }

  void run(int64_t begin, int64_t end, int64_t& lowest) {
    T* out = static_cast<T*>(g.out);
    for (int64_t i = begin; i < end; i += R) tile(i, end - i < R ? int(end - i) : R, out + 2 * i);
    if (!(seen.v.sum() == 0)) note_lowest(lowest, first_spoilt(out, begin, end, 2) / g.m);
  }
};

}  // namespace SF_NS
}  // namespace sf
