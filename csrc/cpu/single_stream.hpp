// likelihood_score of blocks that a single stream goes through, one after another. X and i X stay in registers: the
// residual is two multiply-adds an entry and the channel's score two dot products a row, with nothing to turn
// afterwards.
#pragma once
#include "../common/columns.hpp"
#include "around.hpp"
#include "square_sums.hpp"
#include "sums.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct single_stream {
  static constexpr int W = native_width<T>, WC = W / 2, max_rt = packed_tile_rows;
  using Col = pack_cols<T, W>;
  using Adj = product<Col, true>;
  using tile_entries = pack<T, 2 * max_rt>;

  const T *h, *x, *y, *probe;  // H [Nr], X [T], Y [Nr,T], dX [T] or null: of the first block, the others follow
  T *gh, *gx;                  // R X^H scale [Nr], H^H R scale [T]
  T* sums;                     // of R X^H between chunks of slots: room for Nr
  const int64_t nr, t;
  const T scale;
  const bool around;  // GX goes around the caches

  // What one block adds up: |R|^2, |H dX|^2, |dX|^2; 0 where every result is finite, else NaN.
  struct totals {
    square_sums residual, through, probe;
    Col bad_columns = Col::zero();
    tile_entries bad_rows = tile_entries(T(0));
  };
  struct chunk {  // n slots from t0 on
    int64_t t0;
    int n;
    bool first, last;
  };
  enum class fit { only, whole, part };  // a chunk is all of a row's slots; fills its packs; or need not

  template <fit Fit>
  SF_HD static Col entries(const T* p, int n, int c) {
    return Fit == fit::part ? Col::load_first(p + c * W, Col::left(n, c)) : Col::load(p + c * W);
  }
  template <fit Fit, int CT>
  SF_HD static void stream(const T* from, const chunk& s, Col (&z)[CT], Col (&iz)[CT]) {
    SF_UNROLL
    for (int c = 0; c < CT; ++c) z[c] = entries<Fit>(from + 2 * s.t0, s.n, c), iz[c] = turned(z[c]);
  }
  SF_HD scalar2<T> channel(int64_t r) const { return {h[2 * r], h[2 * r + 1]}; }

  // Rows [r0, r0 + RT) of R, and what they add: to q = H^H R, to their own entries of R X^H and to |R|^2.
  template <int RT, fit Fit, int CT>
  SF_HD void rows(const chunk& s, const Col (&z)[CT], const Col (&iz)[CT], int64_t r0, Adj (&q)[CT], totals& sum) const {
    const int64_t slots = Fit == fit::only ? CT * WC : t;
    const T* from = y + 2 * (r0 * slots + s.t0);
    Col r[RT][CT];
    SF_UNROLL
    for (int i = 0; i < RT; ++i)
      SF_UNROLL
    for (int c = 0; c < CT; ++c) {
      __builtin_prefetch(from + 2 * (2 * nr + i) * slots + c * W);  // of the block after the next
      r[i][c] = entries<Fit>(from + 2 * i * slots, s.n, c);
      r[i][c] = r[i][c] - z[c] * channel(r0 + i).re;
      r[i][c] = r[i][c] - iz[c] * channel(r0 + i).im;
    }
    SF_UNROLL
    for (int i = 0; i < RT; ++i)
      SF_UNROLL
    for (int c = 0; c < CT; ++c) sum.residual.add(r[i][c].v), q[c].add(channel(r0 + i), r[i][c]);
    pack<T, W> dots[2 * RT];
    SF_UNROLL
    for (int i = 0; i < RT; ++i) inner_columns(r[i], z, iz, dots[2 * i], dots[2 * i + 1]);
    auto g = sums_of_few(dots);
    if (Fit != fit::only) {
      if (!s.first) g = g + pack<T, 2 * RT>::load(sums + 2 * r0);
      if (!s.last) return g.store(sums + 2 * r0);
    }
    g = g * pack<T, 2 * RT>(scale);
    g.store(gh + 2 * r0);
    if constexpr (RT == max_rt)
      sum.bad_rows = sum.bad_rows + (g - g);
    else
      sum.bad_rows.v[0] += (g - g).sum();
  }

  template <int CT, fit Fit>
  SF_HD void scores(const chunk& s, totals& sum) const {
    Col z[CT], iz[CT];
    Adj q[CT];
    stream<Fit>(x, s, z, iz);
    SF_UNROLL
    for (int c = 0; c < CT; ++c) q[c] = Adj::zero();
    int64_t r = 0;
    for (; r + max_rt <= nr; r += max_rt) rows<max_rt, Fit>(s, z, iz, r, q, sum);
    for (; r < nr; ++r) rows<1, Fit>(s, z, iz, r, q, sum);
    SF_UNROLL
    for (int c = 0; c < CT; ++c) {
      const Col v = q[c].value() * scale;
      put_columns(v, gx + 2 * s.t0 + c * W, Fit == fit::part ? Col::left(s.n, c) : WC, around);
      sum.bad_columns = sum.bad_columns + (v - v);
    }
  }
  template <int CT, fit Fit>
  SF_HD void probe_energies(const chunk& s, totals& sum) const {
    Col z[CT], iz[CT];
    stream<Fit>(probe, s, z, iz);
    SF_UNROLL
    for (int c = 0; c < CT; ++c) sum.probe.add(z[c].v);
    for (int64_t r = 0; r < nr; ++r) SF_UNROLL
    for (int c = 0; c < CT; ++c) {
      const Col real = z[c] * channel(r).re;
      sum.through.add((real + iz[c] * channel(r).im).v);
    }
  }
  template <int CT, fit Fit>
  SF_HD void slots(const chunk& s, totals& sum) const {
    scores<CT, Fit>(s, sum);
    if (probe) probe_energies<CT, Fit>(s, sum);
  }

  // All chunks of a block: CT packs each, unless part of a pack is left.
  template <int CT, fit Fit>
  SF_HD void block(totals& sum) const {
    if constexpr (Fit == fit::only) return slots<CT, Fit>({0, CT * WC, true, true}, sum);
    for (int64_t t0 = 0; t0 < t; t0 += CT * WC) {
      const int n = t - t0 < CT * WC ? int(t - t0) : CT * WC;
      const chunk s{t0, n, t0 == 0, t0 + n == t};
      if (Fit == fit::part && n <= WC)
        slots<1, Fit>(s, sum);
      else if (Fit == fit::part && CT > 2 && n <= 2 * WC)
        slots<2, Fit>(s, sum);
      else
        slots<CT, Fit>(s, sum);
    }
  }
  // On a copy, whose members no store can change, and a function for each width, to keep few values alive.
  template <int CT, fit Fit>
  __attribute__((noinline)) static int64_t blocks(const single_stream& first, int64_t n, double* energy) {
    const int64_t nr = first.nr, t = first.t;
    const T *h = first.h, *x = first.x, *y = first.y, *probe = first.probe;
    T *gh = first.gh, *gx = first.gx;
    int64_t bad = -1;
    for (int64_t i = 0; i < n; ++i, energy += 3) {
      totals sum;
      single_stream{h, x, y, probe, gh, gx, first.sums, nr, t, first.scale, first.around}.template block<CT, Fit>(sum);
      sum.residual.taint(sum.bad_columns.v);
      energy[0] = sum.residual.sum() + double(sum.bad_rows.sum());
      double total = energy[0];
      if (probe) energy[1] = sum.through.sum(), energy[2] = sum.probe.sum(), total += energy[1] + energy[2];
      if (total - total != 0 && bad < 0) bad = i;
      h += 2 * nr, gh += 2 * nr, x += 2 * t, gx += 2 * t, y += 2 * nr * t;
      if (probe) probe += 2 * t;
    }
    return bad;
  }

  // n blocks; of each the energies |R|^2, |H dX|^2, |dX|^2. Returns the first one with a result that is not finite, or
  // -1.
  int64_t run(int64_t n, double* energy) const {
    if (t == 3 * WC) return blocks<3, fit::only>(*this, n, energy);
    if (t == 2 * WC) return blocks<2, fit::only>(*this, n, energy);
    if (t == WC) return blocks<1, fit::only>(*this, n, energy);
    if (t % (3 * WC) == 0) return blocks<3, fit::whole>(*this, n, energy);
    if (t % (2 * WC) == 0) return blocks<2, fit::whole>(*this, n, energy);
    return blocks<3, fit::part>(*this, n, energy);
  }
};

}  // namespace SF_NS
}  // namespace sf
