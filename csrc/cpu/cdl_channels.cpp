// H = sum_r gains_r a_rx(r) a_tx(r)^T, a(turns)_i = exp(j 2 pi turns (i - (n-1)/2)): the channel of R rays between two
// uniform linear arrays. Steering vectors are built W rays at a time by doubling, from sines in double precision. The
// phases are centred, so elements k and n-1-k of one array are conjugate: with P = sum g cos and Q = sum g sin the two
// columns are P + jQ and P - jQ, at half the products of a complex matrix product.
#include "../common/kernels.hpp"
#include "../common/small_matrix.hpp"
#include "parallel.hpp"
#include "scratch.hpp"
#include "transpose.hpp"
#include "turns.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
struct ray_sum {
  static constexpr int W = native_width<T>, RB = 64;      // rays of a block: its tables stay in the first cache
  static constexpr int TJ = W * sizeof(T) == 64 ? 4 : 2;  // columns of a tile: four accumulators each
  using P = pack<T, W>;
  using C = cx<P>;
  cdl_args& a;
  int64_t lanes, padded, others, half;  // the array along the SIMD lanes, and half of the other one
  bool swapped;                         // the lanes hold tx

  explicit ray_sum(cdl_args& args) : a(args) {
    const int64_t plain = (a.nr + W - 1) / W * a.nt, turned = (a.nt + W - 1) / W * a.nr;
    swapped = turned < plain;
    lanes = swapped ? a.nt : a.nr, others = swapped ? a.nr : a.nt;
    padded = (lanes + W - 1) / W * W;
    half = ((others + 1) / 2 + TJ - 1) / TJ * TJ;
  }

  struct tables_of {
    C* z;      // one steering vector, half of it, W rays side by side
    P* row;    // a lane pack's whole result, or a steering vector with gains
    P* sums;   // [padded/W][half][4]: re and im of P, then of Q
    T* waves;  // [half][2][RB]: cosines and sines of the other array
    T* rays;   // [RB][2][padded]: gains times the lanes' array, re and im
  };

  // z[k] = exp(j 2 pi turns (k + 1/2)) (n even) or exp(j 2 pi turns k) (n odd), k < (n+1)/2, for W rays.
  void steering(const T* turns, int64_t n, C* z) const {
    double_packs<T> first, power;
    unit_phases(turns, 0.5, first), unit_phases(turns, 1.0, power);
    z[0] = n % 2 ? C{P(T(1)), P(T(0))} : narrow<T>(first);
    for (int64_t m = 1, h = (n + 1) / 2; m < h; m *= 2) {
      const C w = narrow<T>(power);
      for (int64_t k = 0; k < m && k + m < h; ++k) {
        const C v = z[k];
        z[k + m] = {v.re * w.re - v.im * w.im, v.re * w.im + v.im * w.re};
      }
      square(power);
    }
  }

  // Tables of rays [first, first + n) of one item, in groups of W; rays past the end have gain zero.
  void tables(int64_t item, int64_t first, int64_t n, const tables_of& s) const {
    const T* gains = static_cast<const T*>(a.gains) + 2 * (item * a.r + first);
    const T* lane_turns = static_cast<const T*>(swapped ? a.tx : a.rx) + item * a.r + first;
    const T* other_turns = static_cast<const T*>(swapped ? a.rx : a.tx) + item * a.r + first;
    for (int64_t r = 0; r < n; r += W) {
      const int count = n - r < W ? int(n - r) : W;
      alignas(64) T turns[W], re[W], im[W];
      for (int i = 0; i < W; ++i) re[i] = i < count ? gains[2 * (r + i)] : T(0);
      for (int i = 0; i < W; ++i) im[i] = i < count ? gains[2 * (r + i) + 1] : T(0);
      P::load_first(other_turns + r, count).store(turns);
      steering(turns, others, s.z);
      for (int64_t k = 0; k < (others + 1) / 2; ++k) {
        s.z[k].re.store(s.waves + 2 * k * RB + r);
        s.z[k].im.store(s.waves + (2 * k + 1) * RB + r);
      }
      P::load_first(lane_turns + r, count).store(turns);
      steering(turns, lanes, s.z);
      const C g = {P::load(re), P::load(im)};
      P *row_re = s.row, *row_im = s.row + lanes;
      for (int64_t k = 0; k < (lanes + 1) / 2; ++k) {
        const C z = s.z[k];
        const P rr = g.re * z.re, ii = g.im * z.im, ri = g.re * z.im, ir = g.im * z.re;
        const int64_t up = lanes / 2 + k, down = (lanes - 1) / 2 - k;
        row_re[up] = rr - ii, row_im[up] = ir + ri;
        row_re[down] = rr + ii, row_im[down] = ir - ri;
      }
      const transposer<T, W> to(s.rays + 2 * r * padded, 2 * padded, W);
      to.store(0, lanes, row_re), to.store(padded, lanes, row_im);
    }
  }

  // TJ columns of one lane pack over the rays of a block.
  SF_HD void tile(const T* rays, const T* waves, int64_t n, P* sums) const {
    P acc[4 * TJ];
    SF_UNROLL
    for (int i = 0; i < 4 * TJ; ++i) acc[i] = sums[i];
    for (int64_t r = 0; r < n; ++r) {
      const P re = P::load(rays + 2 * r * padded), im = P::load(rays + (2 * r + 1) * padded);
      SF_UNROLL
      for (int j = 0; j < TJ; ++j) {
        const P c(waves[2 * j * RB + r]), s(waves[(2 * j + 1) * RB + r]);
        acc[4 * j] = acc[4 * j] + re * c, acc[4 * j + 1] = acc[4 * j + 1] + im * c;
        acc[4 * j + 2] = acc[4 * j + 2] + re * s, acc[4 * j + 3] = acc[4 * j + 3] + im * s;
      }
    }
    SF_UNROLL
    for (int i = 0; i < 4 * TJ; ++i) sums[i] = acc[i];
  }

  // One lane pack's results: column k and its mirror; returns zero unless something is not finite.
  P finish(int64_t item, int64_t l, const tables_of& s) const {
    T* out = static_cast<T*>(a.out) + 2 * item * a.nr * a.nt;
    const P* sums = s.sums + l * half * 4;
    P spoilt(T(0));
    for (int64_t k = 0; k < (others + 1) / 2; ++k) {
      const P *p = sums + 4 * k, *q = p + 2;
      P *up = s.row + 2 * (others / 2 + k), *down = s.row + 2 * ((others - 1) / 2 - k);
      up[0] = p[0] - q[1], up[1] = p[1] + q[0];
      down[0] = p[0] + q[1], down[1] = p[1] - q[0];
      for (int i = 0; i < 2; ++i) spoilt = spoilt + (up[i] - up[i]) + (down[i] - down[i]);
    }
    const int count = lanes - l * W < W ? int(lanes - l * W) : W;
    if (!swapped) {
      transposer<T, W>(out + 2 * l * W * a.nt, 2 * a.nt, count).store(0, 2 * others, s.row);
      return spoilt;
    }
    for (int64_t j = 0; j < others; ++j)
      for (int i = 0; i < count; ++i) {
        out[2 * (j * a.nt + l * W + i)] = s.row[2 * j].v[i];
        out[2 * (j * a.nt + l * W + i) + 1] = s.row[2 * j + 1].v[i];
      }
    return spoilt;
  }

  void item(int64_t b, const tables_of& s) const {
    memset(static_cast<void*>(s.sums), 0, size_t(padded / W * half * 4) * sizeof(P));
    for (int64_t first = 0; first < a.r; first += RB) {
      const int64_t n = a.r - first < RB ? a.r - first : RB;
      tables(b, first, n, s);
      for (int64_t l = 0; l < padded / W; ++l)
        for (int64_t k = 0; k < half; k += TJ)
          tile(s.rays + l * W, s.waves + 2 * k * RB, n, s.sums + (l * half + k) * 4);
    }
    P spoilt(T(0));
    for (int64_t l = 0; l < padded / W; ++l) spoilt = spoilt + finish(b, l, s);
    if (!(spoilt.sum() == T(0))) note_lowest(a.bad, b);
  }

  void run() const {
    a.bad = -1;
    const int64_t wide = lanes > others ? lanes : others;
    const int64_t packs = 2 * ((wide + 1) / 2) + 2 * wide + padded / W * half * 4, reals = 2 * RB * (half + padded);
    const int64_t work = a.r * padded * half + 1;
    parallel_for(a.pool, a.b, 1 + 65536 / work, [&](int64_t begin, int64_t end) {
      scratch<P> memory;
      memory.allocate_zeros(packs + reals / W);  // padding rows and lanes are read, so they must be numbers
      tables_of s;
      s.z = reinterpret_cast<C*>(static_cast<P*>(memory));
      s.row = memory + (wide + 1) / 2 * 2;
      s.sums = s.row + 2 * wide;
      s.waves = reinterpret_cast<T*>(s.sums + padded / W * half * 4);
      s.rays = s.waves + 2 * RB * half;
      for (int64_t b = begin; b < end; ++b) item(b, s);
    });
  }
};

void cdl_channels(cdl_args& a) { a.is_double ? ray_sum<double>(a).run() : ray_sum<float>(a).run(); }

}  // namespace SF_NS
}  // namespace sf
