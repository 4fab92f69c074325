// likelihood_score for small blocks (Nr <= RT, M = U*Nt compiled in): one thread per CT time slots, a CTA of many
// blocks.
//
//   load      X and Y columns to registers, 8 or 16 bytes each and all in flight together; H to shared memory
//   residual  R = Y - H X in registers; H^H R straight from them to global memory; R and X also to shared memory
//   outer     R X^H from shared memory, one thread per 2 x GC entries
//
// Why shared memory for R X^H: it sums over time slots, that is over threads. Shuffling costs 2*RT*M reals over a group
// of T/CT lanes (12 for T = 24, no power of two): at best 31 exchanges per 32 sums in a full warp, about 160
// instructions a thread for 4x4x24. Here a thread stores (RT + M)*CT entries (8 stores for 4x4) and two of three
// threads read 3 rows of T entries (36 loads of 16 bytes): a third of the instructions, any T, and the sums run in slot
// order, so the result depends on nothing but the block. Traffic is the minimum: every input is read once, every output
// written once, R never leaves the CTA.
#pragma once
#include "cta.cuh"

namespace sf::cuda {

template <class T, int RT, int M, int CT>
struct score_columns {
  static constexpr int max_threads = 128, min_ctas = 0, GC = M >= 8 ? 2 : 1;
  static constexpr int row_pairs = RT / 2, out_tiles = row_pairs * (M / GC);
  static constexpr int h_entries = RT * M + 2;  // 2: another bank for every block of the CTA
  using Col = one_col<T>;
  using entry = wide<T, 1>;
  blocks<T> v;
  split s;  // per_block = T/CT threads, one segment

  struct memory {  // of one CTA: scale and block index per block, energy partials, then H, R, X per block
    double* energy;
    int64_t* out_h;
    T* scale;
    entry* data;
    int32_t row, block;
    SF_HD memory(unsigned char* p, const score_columns& body, int32_t threads) {
      const int32_t g = body.s.group;
      row = odd_row(body.v.t, CT), block = h_entries + (RT + M) * row;
      data = reinterpret_cast<entry*>(p);
      energy = reinterpret_cast<double*>(p + (g * block * int32_t(sizeof(entry)) + 15) / 16 * 16);
      out_h = reinterpret_cast<int64_t*>(energy + threads * body.v.energy_count());
      scale = reinterpret_cast<T*>(out_h + g);
    }
    SF_HD entry* h(int32_t g) const { return data + g * block; }
    SF_HD entry* r(int32_t g) const { return data + g * block + h_entries; }
    SF_HD entry* x(int32_t g) const { return data + g * block + h_entries + RT * row; }
  };
  int32_t shared_bytes(int32_t threads) const {
    const memory m(nullptr, *this, threads);
    return int32_t(reinterpret_cast<intptr_t>(m.scale + s.group));
  }

  struct state {
    wide<T, CT> x[M], r[RT];
    spot at;
  };
  struct x_writer {  // adjoint_tile's output: scaled, straight to global memory
    entry* out;
    const int64_t (&row)[M];
    T scale;
    wide<T, CT> (&w)[M];
    SF_HD product<Col, true> get(int64_t, int) const { return product<Col, true>::zero(); }
    SF_HD void set(int64_t m, int c, const product<Col, true>& q) const {
      const Col z = q.value();
      w[m].c[c] = {z.re * scale, z.im * scale};
      if (c == CT - 1) store<CT>(out + row[m], w[m]);
    }
  };

  template <class Cta>
  SF_HD void operator()(const Cta& cta) const {
    auto regs = cta.template registers<state>();
    const memory mem(cta.shared(), *this, cta.threads());
    const int64_t first = cta.index() * s.group;
    cta.phase([&](thread_place w) {
      if (first + w.g < v.n) load_block(first + w.g, w, mem, regs[w.id]);
    });
    cta.phase([&](thread_place w) {
      if (first + w.g >= v.n) return;
      mem.energy[w.id] = residual(w, mem, regs[w.id]);
      if (v.probe) probe(w, mem, regs[w.id], mem.energy + cta.threads() + w.id, cta.threads());
    });
    cta.last([&](thread_place w) {
      const int64_t left = v.n - first;
      const int32_t blocks_here = left < s.group ? int32_t(left) : s.group;
    SF_NO_UNROLL
      for (int32_t q = w.id; q < blocks_here * out_tiles; q += cta.threads()) outer(q / out_tiles, q % out_tiles, mem);
      const int32_t columns = v.energy_count();
      SF_NO_UNROLL
      for (int32_t q = cta.threads() - 1 - w.id; q < blocks_here * columns; q += cta.threads()) {
        const int32_t g = q / columns, e = q - g * columns;
        const double* part = mem.energy + e * cta.threads() + g * s.per_block;
        double sum = 0;
        for (int32_t c = 0; c < s.per_block; ++c) sum += part[c];
        v.energies[(first + g) * (2 + v.u) + e] = sum;
      }
    });
  }

  SF_HD void load_block(int64_t i, thread_place p, const memory& mem, state& z) const {
    z.at = v.at(i);
    const entry* x = v.x_of(z.at) + p.p * CT;
    const entry* y = v.y_of(z.at) + p.p * CT;
    stream m = v.first_stream(0);
    SF_UNROLL
    for (int q = 0; q < M; ++q) {
      z.x[q] = load<CT>(x + m.x);
      v.next(m);
    }
    SF_UNROLL
    for (int r = 0; r < RT; ++r) {
      z.r[r] = wide<T, CT>{};
      if (r < v.nr) z.r[r] = load<CT>(y + int64_t(r) * v.t);
    }
    const entry* h = v.h_of(z.at);
    SF_NO_UNROLL
    for (int32_t e = p.p; e < RT * M; e += s.per_block) {  // rows past the last one are zero, and so is their R
      const int32_t r = e / M, q = e % M;
      entry w{};
      if (r < v.nr) w = h[v.first_stream(q).h + r * v.nt];
      mem.h(p.g)[e] = w;
    }
    if (p.p == 0) mem.scale[p.g] = v.scale(z.at.b), mem.out_h[p.g] = v.out_h_of(z.at) - v.out_h;
  }

  // sum_m H[r][m] x[m] of this thread's columns
  SF_HD void forward(product<Col, false> (&q)[RT][CT], const entry* h, const wide<T, CT> (&x)[M]) const {
    SF_UNROLL
    for (int r = 0; r < RT; ++r)
      SF_UNROLL
      for (int c = 0; c < CT; ++c) q[r][c] = product<Col, false>::zero();
    multiply_tile<Col>(
        q, M, [&](int r, int64_t m) { return scalar(h[r * M + m]); }, [&](int64_t m, int c) { return x[m].c[c]; });
  }

  SF_HD double residual(thread_place p, const memory& mem, state& z) const {
    const entry* h = mem.h(p.g);
    product<Col, false> q[RT][CT];
    forward(q, h, z.x);
    Col r[RT][CT];
    double sum = 0;
    SF_UNROLL
    for (int i = 0; i < RT; ++i) {
      SF_UNROLL
      for (int c = 0; c < CT; ++c) {
        r[i][c] = z.r[i].c[c] - q[i][c].value();
        z.r[i].c[c] = r[i][c];
        add_square(sum, r[i][c]);
      }
      store<CT>(mem.r(p.g) + i * mem.row + p.p * CT, z.r[i]);
    }
    int64_t x_row[M];
    stream m = v.first_stream(0);
    SF_UNROLL
    for (int j = 0; j < M; ++j) {
      store<CT>(mem.x(p.g) + j * mem.row + p.p * CT, z.x[j]);
      x_row[j] = m.x;
      v.next(m);
    }
    adjoint_tile<Col>(
        r, M, [&](int i, int64_t j) { return scalar(h[i * M + j]); },
        x_writer{v.out_x_of(z.at) + p.p * CT, x_row, mem.scale[p.g], z.x});
    return sum;
  }

  // Energies of the probe: part[0] of sum_u H_u dX_u, part[(1 + u)*stride] of dX_u.
  SF_HD void probe(thread_place p, const memory& mem, state& z, double* part, int32_t stride) const {
    const entry* d = v.probe_of(z.at) + p.p * CT;
    stream m = v.first_stream(0);
    double sum = 0;
    double* user = part + stride;
    SF_UNROLL
    for (int j = 0; j < M; ++j) {
      z.x[j] = load<CT>(d + m.x);
      SF_UNROLL
      for (int c = 0; c < CT; ++c) add_square(sum, z.x[j].c[c]);
      v.next(m);
      if (m.j == 0) *user = sum, sum = 0, user += stride;
    }
    product<Col, false> q[RT][CT];
    forward(q, mem.h(p.g), z.x);
    sum = 0;
    SF_UNROLL
    for (int i = 0; i < RT; ++i)
      SF_UNROLL
      for (int c = 0; c < CT; ++c) add_square(sum, q[i][c].value());
    *part = sum;
  }

  SF_HD void outer(int32_t g, int32_t tile, const memory& mem) const {
    const int32_t pair = tile / (M / GC), m0 = tile % (M / GC);
    const entry *r[2], *x[GC];
    product<Col, true> q[2][GC];
    SF_UNROLL
    for (int i = 0; i < 2; ++i) r[i] = mem.r(g) + (pair + i * row_pairs) * mem.row;
    SF_UNROLL
    for (int c = 0; c < GC; ++c) {
      x[c] = mem.x(g) + (m0 + c * (M / GC)) * mem.row;
      q[0][c] = q[1][c] = product<Col, true>::zero();
    }
    outer_tile<CT>(q, s.per_block, r, x);
    const T scale = mem.scale[g];
    entry* out = v.out_h + mem.out_h[g];
    SF_UNROLL
    for (int i = 0; i < 2; ++i)
      SF_UNROLL
      for (int c = 0; c < GC; ++c) {
        const int32_t row = pair + i * row_pairs;
        const Col z = q[i][c].value();
        if (row < v.nr) out[v.first_stream(m0 + c * (M / GC)).h + row * v.nt] = {{{z.re * scale, z.im * scale}}};
      }
  }
};

}  // namespace sf::cuda
