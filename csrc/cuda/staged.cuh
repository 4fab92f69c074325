// blockdiag_adjoint and likelihood_score for every size the small kernels leave: blocks are staged through shared
// memory in chunks of rows, streams and time slots, and each product is cut into register tiles that any thread can
// take:
//   R  = Y - H X   4 rows x CT slots      (score; the adjoint has R = Y)
//   GX = H^H R     2 streams x CT slots
//   GH = R X^H     2 rows x 2 streams     (score)
// A block that fits is one chunk, so every input is read once and every output written once. Otherwise GX grows over
// row chunks and GH over slot chunks in global memory; a tile always belongs to the same thread, so no atomics are
// needed. Tile rows are interleaved (row, row + rows/4, ...) and rows padded to an odd number of pieces: no bank
// conflicts.
#pragma once
#include "cta.cuh"

namespace sf::cuda {

struct chunks {
  int32_t rows, streams, slots;
};

template <class T, int CT, bool Score>
struct staged {
  static constexpr int max_threads = 256, min_ctas = Score ? 2 : 0, RT = 4, lanes = 16;
  using Col = one_col<T>;
  using entry = wide<T, 1>;
  blocks<T> v;
  split s;  // one segment
  chunks c;

  struct memory {  // scale, H [rows][h_row], X [streams][row], R [rows][row] of one block; energy partials reuse H, X,
                   // R
    T* scale;
    entry *h, *x, *r;
    double *part, *lane;
    int32_t h_row, row, bytes;
    SF_HD memory(unsigned char* p, const chunks& c, int32_t per_block, int32_t g) {
      h_row = c.streams | 1, row = odd_row(c.slots, CT);
      const int32_t h_size = (c.rows * h_row + 1) / 2 * 2, x_size = Score ? c.streams * row : 0;
      const int32_t data = (h_size + x_size + c.rows * row) * int32_t(sizeof(entry));
      const int32_t sums = Score ? (per_block + lanes) * int32_t(sizeof(double)) : 0;
      bytes = ((sums > data ? sums : data) + 15) / 16 * 16 + 16;
      scale = reinterpret_cast<T*>(p + g * bytes);
      h = reinterpret_cast<entry*>(p + g * bytes + 16), x = h + h_size, r = x + x_size;
      part = reinterpret_cast<double*>(h), lane = part + per_block;
    }
  };
  int32_t shared_bytes() const { return s.group * memory(nullptr, c, s.per_block, 0).bytes; }

  struct state {
    double energy;
  };
  struct work {  // thread p of block i, at (b, k), with the block's shared memory
    int32_t p;
    int64_t i;
    spot at;
    memory m;
  };
  struct chunk {  // first row, stream and slot, and how many of each
    int32_t r0, m0, t0, rows, streams, slots;
  };
  SF_HD static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
  SF_HD chunk chunk_at(int32_t r0, int32_t m0, int32_t t0) const {
    return {r0, m0, t0, least(c.rows, v.nr - r0), least(c.streams, v.m - m0), least(c.slots, v.t - t0)};
  }

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    auto regs = cta.template registers<state>();
    const auto each = [&](const auto& f) {  // a phase for the threads that have a block
      cta.phase([&](thread_place t) {
        const int64_t i = cta.index() * s.group + t.g;
        if (i < v.n) f(work{t.p, i, v.at(i), memory(cta.shared(), c, s.per_block, t.g)}, regs[t.id]);
      });
    };
    pass<false>(each);
    if constexpr (Score) {
      reduce(each, 0);
      if (!v.probe) return;
      pass<true>(each);
      reduce(each, 1);
      for (int32_t user = 0; user < v.u; ++user) {
        each([&](const work& w, state& z) {
          const entry* d = v.probe_of(w.at) + user * v.x_u;
          for (int32_t e = w.p; e < v.nt * v.t; e += s.per_block) add_square(z.energy, d[e].c[0]);
        });
        reduce(each, 2 + user);
      }
    }
  }

  // Probing: R = -H dX and its energy only.
  template <bool Probing, class Each>
  SF_HD void pass(const Each& each) const {
    for (int32_t t0 = 0; t0 < v.t; t0 += c.slots)
      for (int32_t r0 = 0; r0 < v.nr; r0 += c.rows) {
        for (int32_t m0 = 0; m0 < v.m; m0 += c.streams) {
          const chunk k = chunk_at(r0, m0, t0);
          each([&](const work& w, state&) { stage<Probing>(w, k); });
          if (Score || m0 == 0) each([&](const work& w, state& z) { residual<Probing>(w, k, z); });
        }
        if constexpr (!Probing)
          for (int32_t m0 = 0; m0 < v.m; m0 += c.streams) {
            const chunk k = chunk_at(r0, m0, t0);
            if (v.m > c.streams) each([&](const work& w, state&) { stage<Probing>(w, k); });
            each([&](const work& w, state&) { products(w, k); });
          }
      }
  }

  template <bool Probing>
  SF_HD void stage(const work& w, const chunk& k) const {
    const entry* h = v.h_of(w.at);
    for (int32_t e = w.p; e < k.rows * k.streams; e += s.per_block) {
      const int32_t r = e / k.streams, q = e - r * k.streams;
      w.m.h[r * w.m.h_row + q] = h[v.first_stream(k.m0 + q).h + (k.r0 + r) * v.nt];
    }
    if constexpr (Score) {
      const entry* x = (Probing ? v.probe_of(w.at) : v.x_of(w.at)) + k.t0;
      const int32_t pieces = k.slots / CT;
      for (int32_t e = w.p; e < k.streams * pieces; e += s.per_block) {
        const int32_t q = e / pieces, col = e - q * pieces;
        store<CT>(w.m.x + q * w.m.row + col * CT, load<CT>(x + v.first_stream(k.m0 + q).x + col * CT));
      }
      if (w.p == 0) *w.m.scale = v.scale(w.at.b);
    }
  }

  template <bool Probing>
  SF_HD void residual(const work& w, const chunk& k, state& z) const {
    const int32_t step = ceil_div(k.rows, RT), pieces = k.slots / CT;
    const entry* y = Probing ? nullptr : v.y_of(w.at) + k.t0;
    SF_NO_UNROLL
    for (int32_t e = w.p; e < step * pieces; e += s.per_block) {
      const int32_t row = e / pieces, col = (e - row * pieces) * CT;
      product<Col, false> p[RT][CT];
      SF_UNROLL
      for (int i = 0; i < RT; ++i)
        SF_UNROLL
        for (int j = 0; j < CT; ++j) p[i][j] = product<Col, false>::zero();
      if constexpr (Score) {
        const entry *hs[RT], *xs = w.m.x + col;
        SF_UNROLL
        for (int i = 0; i < RT; ++i) hs[i] = w.m.h + least(row + i * step, k.rows - 1) * w.m.h_row;
        multiply(p, k.streams, [&](int i, int64_t q) { return scalar(hs[i][q]); }, xs, w.m.row);
      }
      SF_UNROLL
      for (int i = 0; i < RT; ++i) {
        const int32_t r = row + i * step;
        if (r >= k.rows) continue;
        entry* out = w.m.r + r * w.m.row + col;
        wide<T, CT> sum{};
        if (k.m0)
          sum = load<CT>(out);
        else if (!Probing)
          sum = load<CT>(y + int64_t(k.r0 + r) * v.t + col);
        SF_UNROLL
        for (int j = 0; j < CT; ++j) {
          sum.c[j] = sum.c[j] - p[i][j].value();
          if (Score && k.m0 + k.streams == v.m) add_square(z.energy, sum.c[j]);
        }
        store<CT>(out, sum);
      }
    }
  }

  // multiply_tile with the rows of `b` in shared memory, CT entries a load
  template <int N, bool Conj, class A>
  SF_HD static void multiply(product<Col, Conj> (&p)[N][CT], int32_t n, const A& a, const entry* b, int32_t row) {
    wide<T, CT> piece{};
    multiply_tile<Col>(p, n, a, [&](int64_t q, int j) {
      if (j == 0) piece = load<CT>(b + int32_t(q) * row);
      return piece.c[j];
    });
  }

  SF_HD void products(const work& w, const chunk& k) const {
    const int32_t pairs = ceil_div(k.streams, 2), pieces = k.slots / CT, row_pairs = ceil_div(k.rows, 2);
    const int32_t x_tiles = pairs * pieces, h_tiles = Score ? row_pairs * pairs : 0;
    const T scale = Score ? *w.m.scale : T(1);
    SF_NO_UNROLL
    for (int32_t e = w.p; e < x_tiles + h_tiles; e += s.per_block) {
      if (e < x_tiles)
        x_tile(w, k, e / pieces, pairs, e % pieces * CT, scale);
      else if constexpr (Score)
        h_tile(w, k, (e - x_tiles) / pairs, row_pairs, (e - x_tiles) % pairs, pairs, scale);
    }
  }

  SF_HD void x_tile(const work& w, const chunk& k, int32_t q0, int32_t pairs, int32_t col, T scale) const {
    product<Col, true> p[2][CT];
    const entry* hs[2];
    SF_UNROLL
    for (int i = 0; i < 2; ++i) {
      hs[i] = w.m.h + least(q0 + i * pairs, k.streams - 1);
      SF_UNROLL
      for (int j = 0; j < CT; ++j) p[i][j] = product<Col, true>::zero();
    }
    const auto h_at = [&](int i, int64_t r) { return scalar(hs[i][int32_t(r) * w.m.h_row]); };
    multiply(p, k.rows, h_at, w.m.r + col, w.m.row);
    SF_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (q0 + i * pairs >= k.streams) continue;
      entry* out = v.out_x_of(w.at) + v.first_stream(k.m0 + q0 + i * pairs).x + k.t0 + col;
      wide<T, CT> sum{};
      if (k.r0) sum = load<CT>(out);
      SF_UNROLL
      for (int j = 0; j < CT; ++j) {
        const Col g = p[i][j].value();
        sum.c[j] = sum.c[j] + Col{g.re * scale, g.im * scale};
      }
      store<CT>(out, sum);
    }
  }

  SF_HD void h_tile(const work& w, const chunk& k, int32_t r0, int32_t row_pairs, int32_t q0, int32_t pairs,
                    T scale) const {
    product<Col, true> p[2][2];
    const entry *rs[2], *xs[2];
    SF_UNROLL
    for (int i = 0; i < 2; ++i) {
      rs[i] = w.m.r + least(r0 + i * row_pairs, k.rows - 1) * w.m.row;
      xs[i] = w.m.x + least(q0 + i * pairs, k.streams - 1) * w.m.row;
      p[i][0] = p[i][1] = product<Col, true>::zero();
    }
    outer_tile<CT>(p, k.slots / CT, rs, xs);
    SF_UNROLL
    for (int i = 0; i < 2; ++i)
      SF_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int32_t row = r0 + i * row_pairs, q = q0 + j * pairs;
        if (row >= k.rows || q >= k.streams) continue;
        entry* out = v.out_h_of(w.at) + v.first_stream(k.m0 + q).h + (k.r0 + row) * v.nt;
        const Col g = p[i][j].value();
        const Col before = k.t0 ? out->c[0] : Col::zero();
        *out = {{before + Col{g.re * scale, g.im * scale}}};
      }
  }

  // The block's energy: per thread, per lane, then one sum, always in the same order.
  template <class Each>
  SF_HD void reduce(const Each& each, int32_t column) const {
    const int32_t width = least(lanes, s.per_block);
    each([&](const work& w, state& z) { w.m.part[w.p] = z.energy, z.energy = 0; });
    each([&](const work& w, state&) {
      if (w.p >= width) return;
      double sum = 0;
      for (int32_t j = w.p; j < s.per_block; j += width) sum += w.m.part[j];
      w.m.lane[w.p] = sum;
    });
    each([&](const work& w, state&) {
      if (w.p) return;
      double sum = 0;
      for (int32_t j = 0; j < width; ++j) sum += w.m.lane[j];
      v.energies[w.i * (2 + v.u) + column] = sum;
    });
  }
};

}  // namespace sf::cuda
