// A team of threads per matrix, for more than 4 narrow rows or long ones: thread p owns rows p, p + lanes, ... of the
// factor, in shared memory. Each phase below is one column for all rows at once. The arithmetic is chosen per matrix as
// in rzf_lanes.cuh; a pass of the CTA serves the matrices of one arithmetic while the others wait. Large matrices (more
// than 32 rows, or too long for shared memory) are correct rather than fast: a CTA each, pivoted in double, in a
// workspace of the CTA's own in global memory.
#pragma once
#include "channels.cuh"

namespace sf::cuda {

constexpr int32_t most_team_rows = 32;    // a thread has one row at most, unless the matrix is large
constexpr int32_t most_team_columns = 8;  // right-hand sides at a time, a bit each

// Byte offsets in a team's memory, sized for double: V; columns of L below the diagonal [n][l_row]; its diagonal;
// reciprocals of its roots; right-hand sides [n][b_row]; two wide arrays [len][w_row]; pivots; the failing one.
struct team_layout {
  int64_t v, l, diag, inv, b, w0, w1, order, rank, info, bytes;
  int32_t v_row, l_row, b_row, w_row;  // row lengths in entries: odd, so that rows fall into different banks
  int32_t chunk, columns;              // right-hand sides at a time; columns of b

  team_layout(const rzf_args& a, int32_t chunk_, int32_t columns_, bool wide_arrays)
      : chunk(chunk_), columns(columns_) {
    const int64_t entry = a.is_double ? 16 : 8, n = a.m_form ? a.m : a.k, len = a.m_form ? a.k : a.m;
    v_row = a.m_form ? int32_t(a.m) : int32_t(a.m) | 1;
    l_row = int32_t(n) | 1, b_row = columns_ | 1, w_row = chunk_ | 1;
    int64_t at = 0;
    const auto take = [&](int64_t size) { return (at += (size + 15) / 16 * 16) - (size + 15) / 16 * 16; };
    v = take(a.k * v_row * entry), l = take(n * l_row * 16), diag = take(n * 8), inv = take(n * 8);
    b = take(n * b_row * 16), w0 = take(wide_arrays ? len * w_row * 16 : 0),
    w1 = take(wide_arrays ? len * w_row * 16 : 0);
    order = take(n * 4), rank = take(n * 4), info = take(4);
    bytes = (at + 127) / 128 * 128 + 64;  // neighbouring teams half the banks apart
  }
};

enum arithmetic : int32_t { plain, in_double, pivoted };

template <class T, bool Large>
struct team_work {
  using entry = wide<T, 1>;
  static constexpr bool single = sizeof(T) == 4;
  channels<T> v;
  team_layout lay;
  int32_t lanes, threads;
  int64_t ctas;              // of the launch; each takes every ctas-th unit
  unsigned char* workspace;  // of large matrices
  divisor by_m;

  struct state {
    arithmetic mode;
    int32_t info;  // while factoring; then in the team's memory
    bool good;
    uint32_t silent;    // right-hand sides of the chunk whose symbols are not finite
    double limit, sum;  // least pivot; the energy of x, or the slope of the regulariser
  };
  struct work {  // thread p of the team on `channel`
    int32_t p, id;
    int64_t channel;
    unsigned char* memory;
  };

  // Shared memory before the teams': numbers to sum, and a flag a thread.
  SF_HD static int32_t part_bytes(int32_t n) { return ((n + sum_lanes) * 8 + 15) / 16 * 16; }
  SF_HD static int32_t front(int32_t n) { return part_bytes(n) + (n * 4 + 15) / 16 * 16; }
  SF_HD double* parts(unsigned char* shared) const { return reinterpret_cast<double*>(shared); }
  SF_HD int32_t* flags(unsigned char* shared) const { return reinterpret_cast<int32_t*>(shared + part_bytes(threads)); }

  // ---- one team's memory ----
  template <class Q>
  SF_HD wide<Q, 1>& at(const work& w, int64_t array, int32_t index) const {
    return reinterpret_cast<wide<Q, 1>*>(w.memory + array)[index];
  }
  template <class Q>
  SF_HD Q& real(const work& w, int64_t array, int32_t i) const {
    return reinterpret_cast<Q*>(w.memory + array)[i];
  }
  SF_HD int32_t& whole(const work& w, int64_t array, int32_t i) const {
    return reinterpret_cast<int32_t*>(w.memory + array)[i];
  }
  template <class Q>
  SF_HD cx<Q> row(const work& w, int32_t i, int32_t m) const {  // V, conjugated where it lies in the M-form
    const int32_t index = v.m_form ? m * lay.v_row + i : i * lay.v_row + m;
    return number<Q>(at<T>(w, lay.v, index));
  }
  template <class Q>
  SF_HD wide<Q, 1>& l(const work& w, int32_t i, int32_t j) const {
    return at<Q>(w, lay.l, i * lay.l_row + j);
  }
  template <class Q>
  SF_HD wide<Q, 1>& b(const work& w, int32_t i, int32_t column) const {
    return at<Q>(w, lay.b, i * lay.b_row + column);
  }

  // ---- what the operations do over their rows ----
  template <class F>
  SF_HD void own_rows(const work& w, const F& f) const {
    for (int32_t i = w.p; i < v.n; i += lanes) f(i);
  }
  template <class F>
  SF_HD void own_wide(const work& w, const F& f) const {
    for (int32_t m = w.p; m < v.len; m += lanes) f(m);
  }
  template <class Q>
  SF_HD cx<Q> wide_entry(const work& w, int32_t m, int32_t column) const {  // sum_i conj(v_im) b_i
    cx<Q> x = {Q(0), Q(0)};
    for (int32_t i = 0; i < v.n; ++i) add<times::conj_a>(x, row<Q>(w, i, m), number<Q>(b<Q>(w, i, column)));
    return x;
  }
  template <class Q, class G>
  SF_HD cx<Q> narrow_entry(const work& w, int32_t i, const G& g) const {  // sum_m v_im g(m)
    cx<Q> x = {Q(0), Q(0)};
    for (int32_t m = 0; m < v.len; ++m) add(x, row<Q>(w, i, m), g(m));
    return x;
  }
  template <class Q>
  SF_HD void diagonal_of(const work& w) const {
    own_rows(w, [&](int32_t i) {
      Q d = Q(v.reg(w.channel));
      for (int32_t m = 0; m < v.len; ++m) d = d + square(row<Q>(w, i, m));
      real<Q>(w, lay.diag, i) = d;
    });
  }
  template <class Q>
  SF_HD Q largest_diagonal(const work& w, Q& mean) const {  // NaN or Inf in any row spoils it
    Q top(0), sum(0);
    for (int32_t i = 0; i < v.n; ++i) {
      const Q d = real<Q>(w, lay.diag, i);
      sum = sum + d, top = d > top ? d : top;
    }
    mean = sum / Q(v.n);
    return top + (mean - mean);
  }

  // L of the matrices in a plain arithmetic: thread p forms row p, four columns of the Gram matrix at a time.
  template <class Q, class Cta, class Each>
  SF_HD void factor_rows(const Cta& cta, const Each& each) const {
    struct columns {
      cx<Q> c[4];
    };
    auto regs = cta.template registers<columns>();
    for (int32_t j0 = 0; j0 < v.n; j0 += 4) SF_UNROLL
      for (int c = 0; c < 4; ++c) {
        if (j0 + c >= v.n) continue;
        each([&](const work& w, state& z) {
          if (w.p < j0 + c || w.p >= v.n) return;
          auto& acc = regs[w.id].c;
          if (c == 0) gram_columns(w, j0, acc);
          const int32_t j = j0 + c;
          const Q r = root(real<Q>(w, lay.diag, j), Q(z.limit), j, z);
          if (w.p == j) real<Q>(w, lay.inv, j) = r;
          if (j == v.n - 1) publish(w, z);  // the last row has met every pivot
          if (w.p == j) return;
          SF_UNROLL
          for (int k = 0; k < c; ++k) sub<times::conj_b>(acc[c], acc[k], number<Q>(l<Q>(w, j, j0 + k)));
          acc[c] = acc[c] * r;
          l<Q>(w, w.p, j) = entry_of<Q>(acc[c]);
          real<Q>(w, lay.diag, w.p) = real<Q>(w, lay.diag, w.p) - square(acc[c]);
        });
      }
  }
  template <class Q>
  SF_HD void gram_columns(const work& w, int32_t j0, cx<Q> (&acc)[4]) const {
    int32_t other[4];  // past the last row: that one again, computed and not used
    SF_UNROLL
    for (int c = 0; c < 4; ++c) acc[c] = {Q(0), Q(0)}, other[c] = least(j0 + c, v.n - 1);
    for (int32_t m = 0; m < v.len; ++m) {
      const cx<Q> own = row<Q>(w, w.p, m);
      SF_UNROLL
      for (int c = 0; c < 4; ++c) add<times::conj_b>(acc[c], own, row<Q>(w, other[c], m));
    }
    for (int32_t k = 0; k < j0; ++k) {
      const cx<Q> own = number<Q>(l<Q>(w, w.p, k));
      SF_UNROLL
      for (int c = 0; c < 4; ++c) sub<times::conj_b>(acc[c], own, number<Q>(l<Q>(w, other[c], k)));
    }
  }
  template <class Q>
  SF_HD static Q root(Q p, Q bound, int32_t j, state& z) {
    Q info(z.info);
    const Q r = sf::root(p, bound, j, info);
    z.info = int32_t(info);
    return r;
  }

  SF_HD void publish(const work& w, const state& z) const {
    whole(w, lay.info, 0) = z.limit == z.limit ? z.info : -1;  // -1: V is not finite
  }

  // L with diagonal pivoting: rows stay where they are, order[j] is the pivot of step j and rank[i] the step of row i.
  template <class Each>
  SF_HD void factor_pivoted(const Each& each) const {
    using Q = double;
    each([&](const work& w, state&) { own_rows(w, [&](int32_t i) { whole(w, lay.rank, i) = v.n; }); });
    for (int32_t j = 0; j < v.n; ++j) {
      each([&](const work& w, state& z) {
        if (w.p) return;
        int32_t best = -1;
        for (int32_t i = 0; i < v.n; ++i)
          if (whole(w, lay.rank, i) == v.n &&
              (best < 0 || real<Q>(w, lay.diag, i) > real<Q>(w, lay.diag, best))) best = i;
        whole(w, lay.order, j) = best, whole(w, lay.rank, best) = j;
        const bool failed = z.info > 0;  // nothing larger is left
        const Q r = root(real<Q>(w, lay.diag, best), z.limit, j, z);
        real<Q>(w, lay.inv, j) = failed ? Q(0) : r;
        publish(w, z);
      });
      each([&](const work& w, state&) {
        const int32_t q = whole(w, lay.order, j);
        own_rows(w, [&](int32_t i) {
          if (whole(w, lay.rank, i) < v.n) return;
          cx<Q> acc = {Q(0), Q(0)};
          for (int32_t m = 0; m < v.len; ++m) add<times::conj_b>(acc, row<Q>(w, i, m), row<Q>(w, q, m));
          for (int32_t k = 0; k < j; ++k)
            sub<times::conj_b>(acc, number<Q>(l<Q>(w, i, k)), number<Q>(l<Q>(w, q, k)));
          acc = acc * real<Q>(w, lay.inv, j);
          l<Q>(w, i, j) = entry_of<Q>(acc);
          real<Q>(w, lay.diag, i) = real<Q>(w, lay.diag, i) - square(acc);
        });
      });
    }
  }

  template <class Q, bool Pivoted, class Cta, class Each>
  SF_HD void factor(const Cta& cta, const Each& each) const {
    if constexpr (Pivoted)
      factor_pivoted(each);
    else
      factor_rows<Q>(cta, each);
  }

  // b = A^-1 b. Each row's right-hand side is scaled by its pivot only where it is read, so that one phase a column does.
  template <class Q, bool Pivoted, class Each>
  SF_HD void solve(const Each& each, int32_t columns) const {
    const auto row_of = [&](const work& w, int32_t j) { return Pivoted ? whole(w, lay.order, j) : j; };
    const auto step_of = [&](const work& w, int32_t i) { return Pivoted ? whole(w, lay.rank, i) : i; };
    const auto update = [&](const work& w, int32_t i, int32_t q, cx<Q> factor) {
      for (int32_t c = 0; c < columns; ++c) {
        cx<Q> y = number<Q>(b<Q>(w, i, c));
        sub(y, factor, number<Q>(b<Q>(w, q, c)));
        b<Q>(w, i, c) = entry_of<Q>(y);
      }
    };
    for (int32_t j = 0; j + 1 < v.n; ++j)
      each([&](const work& w, state&) {
        const int32_t q = row_of(w, j);
        own_rows(w, [&](int32_t i) {
          if (step_of(w, i) > j) update(w, i, q, number<Q>(l<Q>(w, i, j)) * real<Q>(w, lay.inv, j));
        });
      });
    each([&](const work& w, state&) {
      own_rows(w, [&](int32_t i) {
        const Q r = real<Q>(w, lay.inv, step_of(w, i));
        for (int32_t c = 0; c < columns; ++c) b<Q>(w, i, c) = entry_of<Q>(number<Q>(b<Q>(w, i, c)) * (r * r));
      });
    });
    for (int32_t j = v.n - 1; j > 0; --j)
      each([&](const work& w, state&) {
        const int32_t q = row_of(w, j);
        own_rows(w, [&](int32_t i) {
          const int32_t step = step_of(w, i);
          if (step < j) update(w, i, q, conj(number<Q>(l<Q>(w, q, step))) * real<Q>(w, lay.inv, step));
        });
      });
  }

  // ---- one unit: stage V, choose arithmetics, and run op.matrices<Q, Pivoted>(..) for those that occur ----
  template <class Cta>
  SF_HD work locate(const Cta& cta, const slice& where, thread_place t) const {
    unsigned char* memory = Large ? workspace + cta.index() * lay.bytes
                                  : cta.shared() + front(threads) + t.g * int32_t(lay.bytes);
    return {t.p, t.id, where.first + t.g, memory};
  }
  template <class Cta, class Regs, class Op>
  SF_HD void unit(const Cta& cta, const slice& where, Regs& regs, const Op& op) const {
    constexpr bool has_plain = single && !Op::always_double && !Large;
    constexpr arithmetic rest = Large ? pivoted : in_double;
    cta.loads([&](thread_place t) {
      regs[t.id] = {has_plain ? plain : rest, 0, true, 0, 0, 0};
      if (t.g < where.count) stage(locate(cta, where, t));
    });
    const auto in_mode = [&](thread_place t, arithmetic mode) { return t.g < where.count && regs[t.id].mode == mode; };
    const auto occurs = [&](arithmetic mode) {
      return cta.any([&](thread_place t) { return in_mode(t, mode); });
    };
    const auto each_in = [&](arithmetic mode) {
      return [&, mode](const auto& f) {
        cta.phase([&](thread_place t) {
          if (in_mode(t, mode)) f(locate(cta, where, t), regs[t.id]);
        });
      };
    };
    if (v.m_form)
      cta.phase([&](thread_place t) {
        if (t.g >= where.count) return;
        const work w = locate(cta, where, t);
        for (int32_t e = t.p; e < v.k * v.m; e += lanes) at<T>(w, lay.v, e).c[0].im = -at<T>(w, lay.v, e).c[0].im;
      });
    if constexpr (has_plain) {
      each_in(plain)([&](const work& w, state&) { diagonal_of<T>(w); });
      const bool more = cta.any([&](thread_place t) {
        return in_mode(t, plain) && needs_double(locate(cta, where, t), regs[t.id]);
      });
      if (occurs(plain)) op.template matrices<T, false>(cta, each_in(plain));
      if (!more) return;
    }
    each_in(rest)([&](const work& w, state&) { diagonal_of<double>(w); });
    const bool pivots = cta.any([&](thread_place t) {
      return in_mode(t, rest) && needs_pivots(locate(cta, where, t), regs[t.id]);
    });
    if constexpr (!Large)
      if (occurs(in_double)) op.template matrices<double, false>(cta, each_in(in_double));
    if (pivots) op.template matrices<double, true>(cta, each_in(pivoted));
  }
  // ---- after the factor: whose results count ----
  SF_HD typename channels<T>::verdict settle(const work& w, bool good) const {
    return v.settle(whole(w, lay.info, 0), good, v.reg(w.channel));
  }
  // The bits that any thread of the team has set in its flag
  SF_HD uint32_t team_bits(const work& w, const int32_t* flag) const {
    uint32_t bits = 0;
    for (int32_t j = 0; j < lanes; ++j) bits |= uint32_t(flag[w.id - w.p + j]);
    return bits;
  }

  SF_HD bool needs_double(const work& w, state& z) const {
    T mean;
    const T top = largest_diagonal<T>(w, mean);
    z.limit = double(top - top);
    if (T(1e-3) * mean > v.reg(w.channel)) z.mode = in_double;
    return z.mode == in_double;
  }
  SF_HD bool needs_pivots(const work& w, state& z) const {
    double mean;
    const double top = largest_diagonal<double>(w, mean), bound = top * singular_part(v.n, single);
    z.limit = top - top;
    if (!Large && double(v.reg(w.channel)) > bound) return false;
    z.mode = pivoted, z.limit = bound;
    return true;
  }

  SF_HD void stage(const work& w) const {
    const entry* from = v.h + w.channel * v.h_b;
    for (int32_t e = w.p; e < v.k * v.m; e += lanes) {
      const int32_t k = by_m(e);
      entry* to = &at<T>(w, lay.v, k * lay.v_row + e - k * v.m);
      if constexpr (Large)
        *to = from[e];
      else
        copy_async<1>(to, from + e);
    }
  }
};

}  // namespace sf::cuda
