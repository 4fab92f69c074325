// Small complex matrices, one per lane: Gram matrix, Cholesky factor (plain and diagonally pivoted), solves and the
// products around them. A lane type Q is a SIMD pack (W matrices side by side) or one float or double (a CUDA thread).
//
// A = V V^H + reg I with V [n x len] ("narrow" n rows, "wide" len columns) behind an accessor v(i, m). RZF's K-form has
// V = H; its M-form, and LMMSE equalisation, have V = H^H. Throughout A = L L^H: l holds the strictly lower triangle
// row by row, inv the reciprocals of the diagonal. A failing pivot gets inv = 0: its row drops out of every solve.
#pragma once
#include "lane.hpp"

namespace sf {
inline namespace SF_NS {

template <class Q>
struct cx {
  Q re, im;
  friend SF_HD cx operator*(cx a, Q s) { return {a.re * s, a.im * s}; }
  friend SF_HD cx operator+(cx a, cx b) { return {a.re + b.re, a.im + b.im}; }
  friend SF_HD cx operator-(cx a, cx b) { return {a.re - b.re, a.im - b.im}; }
};

template <class Q>
SF_HD cx<Q> conj(cx<Q> a) {
  return {a.re, Q(0) - a.im};
}
template <class Q>
SF_HD Q square(cx<Q> a) {
  return a.re * a.re + a.im * a.im;
}
template <class Q>
SF_HD Q inner(cx<Q> a, cx<Q> b) {  // Re(conj(a) b)
  return a.re * b.re + a.im * b.im;
}
template <class Q, class M>
SF_HD cx<Q> select(M mask, cx<Q> a, cx<Q> b) {
  return {select(mask, a.re, b.re), select(mask, a.im, b.im)};
}

enum class times { plain, conj_a, conj_b };

// acc += a b, conj(a) b or a conj(b); `sub` subtracts. Four multiply-adds, no negation.
template <times How = times::plain, class Q>
SF_HD void add(cx<Q>& acc, cx<Q> a, cx<Q> b) {
  acc.re = acc.re + a.re * b.re;
  acc.im = How == times::conj_b ? acc.im + a.im * b.re : acc.im + a.re * b.im;
  acc.re = How == times::plain ? acc.re - a.im * b.im : acc.re + a.im * b.im;
  acc.im = How == times::plain    ? acc.im + a.im * b.re
           : How == times::conj_a ? acc.im - a.im * b.re
                                  : acc.im - a.re * b.im;
}
template <times How = times::plain, class Q>
SF_HD void sub(cx<Q>& acc, cx<Q> a, cx<Q> b) {
  acc.re = acc.re - a.re * b.re;
  acc.im = How == times::conj_b ? acc.im - a.im * b.re : acc.im - a.re * b.im;
  acc.re = How == times::plain ? acc.re + a.im * b.im : acc.re - a.im * b.im;
  acc.im = How == times::plain    ? acc.im - a.im * b.re
           : How == times::conj_a ? acc.im + a.im * b.re
                                  : acc.im + a.re * b.im;
}

SF_HD constexpr int lower(int i, int j) { return i * (i - 1) / 2 + j; }  // of the strictly lower triangle

// f(begin), ..., f(end - 1): unrolled for the sizes that live in registers, a plain loop beyond.
template <int N, class F>
SF_HD void loop(int begin, int end, const F& f) {
  if constexpr (N > 0 && N <= 4) {
  SF_UNROLL
    for (int i = begin; i < end; ++i) f(i);
  } else {
    for (int i = begin; i < end; ++i) f(i);
  }
}
// The rows of V fit in registers up to four of them; beyond, tiles of two rows by two columns do.
template <int N>
constexpr int tile_rows = N > 0 && N <= 4 ? N : 2;

// diag_i = reg + |v_i|^2; returns the largest, and their mean.
template <int N, class V, class Q>
SF_HD Q diagonal(const V& v, int n_, int len, Q reg, Q* diag, Q& mean) {
  const int n = N > 0 ? N : n_;
  Q top = Q(0), sum = Q(0);
  loop<N>(0, n, [&](int i) {
    Q d = reg;
    for (int m = 0; m < len; ++m) d = d + square(v(i, m));
    diag[i] = d;
    sum = sum + d;
    top = select(d > top, d, top);
  });
  mean = sum / Q(n);
  return top + (mean - mean);  // NaN or Inf in any row spoils it
}

// acc_ij = [sum_m v_i conj(v_j)] - sum_{k<j0} l_ik conj(l_jk) for rows i0.., columns j0..
template <int BI, int BJ, class V, class Q>
SF_HD void gram_tile(const V& v, int len, int i0, int j0, const cx<Q>* l, cx<Q> (&acc)[BI][BJ]) {
  const bool same = i0 == j0;
  SF_UNROLL
  for (int i = 0; i < BI; ++i) {
    SF_UNROLL
    for (int j = 0; j < BJ; ++j) acc[i][j] = {Q(0), Q(0)};
  }
  for (int m = 0; m < len; ++m) {
    cx<Q> a[BI], b[BJ];
    SF_UNROLL
    for (int i = 0; i < BI; ++i) a[i] = v(i0 + i, m);
    SF_UNROLL
    for (int j = 0; j < BJ; ++j) b[j] = v(j0 + j, m);
    SF_UNROLL
    for (int i = 0; i < BI; ++i) {
      SF_UNROLL
      for (int j = 0; j < BJ; ++j)
        if (!same || j < i) add<times::conj_b>(acc[i][j], a[i], b[j]);
    }
  }
  for (int k = 0; k < j0; ++k) {
    SF_UNROLL
    for (int i = 0; i < BI; ++i) {
      SF_UNROLL
      for (int j = 0; j < BJ; ++j)
        if (!same || j < i) sub<times::conj_b>(acc[i][j], l[lower(i0 + i, k)], l[lower(j0 + j, k)]);
    }
  }
}

// Column j of the factor has pivot p: its reciprocal root, or 0 where it fails; info keeps the first failing column.
template <class Q>
SF_HD Q root(Q p, Q bound, int j, Q& info) {
  const auto good = (p > bound) & (Q(largest(p)) > p);
  info = select(good | (info > Q(0)), info, Q(j + 1));
  return select(good, inverse_root(p), Q(0));
}

template <int B, class Q>
SF_HD void factor_diagonal(cx<Q> (&acc)[B][B], Q (&d)[B], Q bound, int j0, cx<Q>* l, Q* inv, Q& info) {
  SF_UNROLL
  for (int j = 0; j < B; ++j) {
    const Q r = root(d[j], bound, j0 + j, info);
    inv[j0 + j] = r;
    SF_UNROLL
    for (int i = j + 1; i < B; ++i) {
      acc[i][j] = acc[i][j] * r;
      l[lower(j0 + i, j0 + j)] = acc[i][j];
      d[i] = d[i] - square(acc[i][j]);
      SF_UNROLL
      for (int k = j + 1; k < i; ++k) sub<times::conj_b>(acc[i][k], acc[i][j], acc[k][j]);
    }
  }
}

template <int BI, class V, class Q>
SF_HD void factor_rows(const V& v, int len, int i0, const Q* diag, Q bound, cx<Q>* l, Q* inv, Q& info) {
  constexpr int BJ = 2;
  for (int j0 = 0; j0 < i0; j0 += BJ) {  // left of the diagonal every tile is two columns wide
    cx<Q> acc[BI][BJ];
    gram_tile<BI, BJ>(v, len, i0, j0, l, acc);
    const cx<Q> l10 = l[lower(j0 + 1, j0)];
    SF_UNROLL
    for (int i = 0; i < BI; ++i) {
      const cx<Q> first = acc[i][0] * inv[j0];
      sub<times::conj_b>(acc[i][1], first, l10);
      l[lower(i0 + i, j0)] = first;
      l[lower(i0 + i, j0 + 1)] = acc[i][1] * inv[j0 + 1];
    }
  }
  cx<Q> acc[BI][BI];
  Q d[BI];
  gram_tile<BI, BI>(v, len, i0, i0, l, acc);
  SF_UNROLL
  for (int i = 0; i < BI; ++i) {
    d[i] = diag[i0 + i];
    for (int k = 0; k < i0; ++k) d[i] = d[i] - square(l[lower(i0 + i, k)]);
  }
  factor_diagonal<BI>(acc, d, bound, i0, l, inv, info);
}

// L of V V^H + reg I, left-looking over row tiles; diag already holds the diagonal. info: 0 or 1 + first bad column.
template <int N, class V, class Q>
SF_HD void factor(const V& v, int n_, int len, const Q* diag, Q bound, cx<Q>* l, Q* inv, Q& info) {
  const int n = N > 0 ? N : n_;
  constexpr int B = tile_rows<N>;
  int i0 = 0;
  for (; i0 + B <= n; i0 += B) factor_rows<B>(v, len, i0, diag, bound, l, inv, info);
  if constexpr (N == 0 || N > 4)
    if (i0 < n) factor_rows<1>(v, len, i0, diag, bound, l, inv, info);
}

// Swap a and b in the lanes of the mask.
template <class Q, class M>
SF_HD void swap_where(M mask, cx<Q>& a, cx<Q>& b) {
  const cx<Q> t = select(mask, b, a);
  b = select(mask, a, b);
  a = t;
}

// V V^H in full, with the diagonal given.
template <int N, class V, class Q>
SF_HD void gram(const V& v, int n, int len, const Q* diag, cx<Q>* a) {
  loop<N>(0, n, [&](int i) {
    a[i * n + i] = {diag[i], Q(0)};
    loop<N>(0, i, [&](int j) {
      cx<Q> g = {Q(0), Q(0)};
      for (int m = 0; m < len; ++m) add<times::conj_b>(g, v(i, m), v(j, m));
      a[i * n + j] = g;
      a[j * n + i] = conj(g);
    });
  });
}

// Lane by lane, bring the largest remaining diagonal to place j (rows and columns); returns it. from[j]: where it was.
template <int N, class Q>
SF_HD Q pivot(int n, int j, cx<Q>* a, Q* from) {
  Q best = a[j * n + j].re, p = Q(j);
  loop<N>(j + 1, n, [&](int c) {
    const auto more = a[c * n + c].re > best;
    best = select(more, a[c * n + c].re, best);
    p = select(more, Q(c), p);
  });
  from[j] = p;
  loop<N>(j + 1, n, [&](int c) {
    const auto here = p == Q(c);
    loop<N>(0, n, [&](int k) { swap_where(here, a[j * n + k], a[c * n + k]); });
    loop<N>(0, n, [&](int k) { swap_where(here, a[k * n + j], a[k * n + c]); });
  });
  return best;
}

// The same factor with diagonal pivoting, so that no singular matrix slips through. `a` is scratch [n][n].
template <int N, class V, class Q>
SF_HD void factor_pivoted(const V& v, int n_, int len, const Q* diag, Q bound, cx<Q>* a, Q* from, cx<Q>* l, Q* inv,
                          Q& info) {
  const int n = N > 0 ? N : n_;
  gram<N>(v, n, len, diag, a);
  loop<N>(0, n, [&](int j) {
    const Q best = pivot<N>(n, j, a, from);
    const auto failed = info > Q(0);  // after a failing pivot nothing larger is left
    const Q r = root(best, bound, j, info);
    inv[j] = select(failed, Q(0), r);
    loop<N>(j + 1, n, [&](int i) { a[i * n + j] = a[i * n + j] * inv[j]; });
    loop<N>(j + 1, n, [&](int i) {
      a[i * n + i].re = a[i * n + i].re - square(a[i * n + j]);
      loop<N>(j + 1, i, [&](int k) {
        sub<times::conj_b>(a[i * n + k], a[i * n + j], a[k * n + j]);
        a[k * n + i] = conj(a[i * n + k]);
      });
    });
  });
  loop<N>(1, n, [&](int i) { loop<N>(0, i, [&](int j) { l[lower(i, j)] = a[i * n + j]; }); });
}

// b = A^-1 b in place. `from` holds the pivoting, null without it.
template <int N, class Q>
SF_HD void solve(const cx<Q>* l, const Q* inv, const Q* from, int n_, cx<Q>* b) {
  const int n = N > 0 ? N : n_;
  if (from)
    loop<N>(0, n, [&](int j) { loop<N>(j + 1, n, [&](int c) { swap_where(from[j] == Q(c), b[j], b[c]); }); });
  loop<N>(0, n, [&](int j) {  // column by column: the updates of a column are independent
    b[j] = b[j] * inv[j];
    loop<N>(j + 1, n, [&](int i) { sub(b[i], l[lower(i, j)], b[j]); });
  });
  loop<N>(0, n, [&](int i) {
    const int j = n - 1 - i;
    b[j] = b[j] * inv[j];
    loop<N>(0, j, [&](int k) { sub<times::conj_a>(b[k], l[lower(j, k)], b[j]); });
  });
  if (from)
    loop<N>(0, n, [&](int i) {
      const int j = n - 1 - i;
      loop<N>(j + 1, n, [&](int c) { swap_where(from[j] == Q(c), b[j], b[c]); });
    });
}

// x_m = sum_i conj(v_im) u_i for the B wide entries from m0 on
template <int B, int N, class V, class Q>
SF_HD void wide_product(const V& v, int n_, int m0, const cx<Q>* u, cx<Q> (&x)[B]) {
  const int n = N > 0 ? N : n_;
  SF_UNROLL
  for (int m = 0; m < B; ++m) x[m] = {Q(0), Q(0)};
  loop<N>(0, n, [&](int i) {
    SF_UNROLL
    for (int m = 0; m < B; ++m) add<times::conj_a>(x[m], v(i, m0 + m), u[i]);
  });
}

// p_i = sum_m v_im g(m) for the B narrow entries from i0 on
template <int B, class V, class G, class Q>
SF_HD void narrow_block(const V& v, int len, int i0, const G& g, cx<Q>* p) {
  cx<Q> acc[B];
  SF_UNROLL
  for (int i = 0; i < B; ++i) acc[i] = {Q(0), Q(0)};
  for (int m = 0; m < len; ++m) {
    const cx<Q> b = g(m);
    SF_UNROLL
    for (int i = 0; i < B; ++i) add(acc[i], v(i0 + i, m), b);
  }
  SF_UNROLL
  for (int i = 0; i < B; ++i) p[i0 + i] = acc[i];
}
template <int N, class V, class G, class Q>
SF_HD void narrow_product(const V& v, int n_, int len, const G& g, cx<Q>* p) {
  const int n = N > 0 ? N : n_;
  constexpr int B = N > 0 && N < 4 ? N : 4;
  int i0 = 0;
  for (; i0 + B <= n; i0 += B) narrow_block<B>(v, len, i0, g, p);
  for (; i0 < n; ++i0) narrow_block<1>(v, len, i0, g, p);
}

// 1 - diag(G H) of an equaliser's column h: never less than noise alone leaves, where the difference has no digits.
template <class Q>
SF_HD Q left_by(Q gain, Q reg, Q norm) {
  const Q rest = Q(1.0f) - gain, least = reg / (reg + norm);
  return select(rest > least, rest, least);
}

}  // namespace SF_NS
}  // namespace sf
