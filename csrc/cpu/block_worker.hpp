// The CPU worker behind blockdiag_apply, blockdiag_adjoint and likelihood_score.
//
// One channel block is a pair of skinny complex products. Time slots are the SIMD direction; slots are taken in chunks
// of CT <= 3 packs (24 slots of complex64 with AVX-512) and antennas in tiles of RT rows, so that a tile of the
// residual lives in registers: R never reaches memory beyond one tile in L1. Per chunk the U users' codewords are
// packed side by side (M = U*Nt rows, zero-padded to whole packs); per tile follow
//   R = Y - H X       multiply_tile over m            (residual)
//   GX += H^H R       adjoint_tile, kept as product   (score_x)
//   GH += R X^H       channel_score                   (score_h)
// so every flop is an FMA on full packs.
#pragma once
#include "../common/columns.hpp"
#include "../common/kernels.hpp"
#include "around.hpp"
#include "channel_score.hpp"
#include "codeword_panel.hpp"
#include "parallel.hpp"
#include "scratch.hpp"
#include "single_stream.hpp"
#include "square_sums.hpp"

namespace sf {
inline namespace SF_NS {

enum class mode { apply, adjoint, score, probe };  // probe: energy of H X alone

// Panels: blocks of many rows, whose sums over rows stay in registers (codeword_panel.hpp). A worker of its own, since
// code beside that of small blocks costs them registers.
template <class T, bool Panels>
struct block_worker {
  static constexpr int W = native_width<T>, WC = W / 2, max_ct = 3;
  static constexpr int max_rt = packed_tile_rows;
  static constexpr int panel_rows = 32;  // of R in cache, where there are that many
  using Col = pack_cols<T, W>;
  using Fwd = product<Col, false>;
  using Adj = product<Col, true>;

  const block_args& a;
  int64_t M;  // streams
  channel_score<T> channel;
  const T* xs;     // X of a chunk [M][CT*W]
  T *packed, *hs;  // room for it, and for H [Nr][2M] (U > 1)
  T* gx;           // GX accumulators [M][CT][2*W]
  T* rs;           // a tile or a panel of R [panel_rows][CT*W]
  scratch<T> memory;
  int64_t x_row;                  // reals of X per row of a block, rounded up
  bool spread;                    // look ahead: for smaller blocks it costs as much as it gains
  Col bad;                        // 0 until a result is not finite, then NaN
  square_sums residual, through;  // |R|^2 and |H dX|^2 of a block
  const around_caches around_y = result(a.out_y, a.nr, a.t), around_x = result(a.out_x, M, a.t),
                      around_h = result(a.out_h, a.nr* a.u, a.nt);
  around_caches result(const void* p, int64_t rows, int64_t columns) const {
    return goes_around<T>(p, 2 * a.b * a.k * rows * columns, 2 * columns, max_ct * W);
  }

  // Channels and channel scores of blocks `first` on, `user` blocks apart per user, kept in cache: where they stand in
  // for the arrays of `a`.
  struct slab {
    const T* h;
    T* gh;
    int64_t user, first;
  } near{};

  explicit block_worker(const block_args& args) : a(args), M(args.u * args.nt), channel(M) {
    x_row = (2 * a.nt * a.t + a.nr - 1) / a.nr, spread = a.nr * a.nt >= 16;
    const int64_t row = max_ct * W, turned = max_ct * WC * channel.MV * W, of_gh = a.nr * channel.MV * W;
    memory.allocate(3 * M * row + turned + 2 * M * a.nr + of_gh + panel_rows * row + 8 * W);
    T* p = memory;
    auto take = [&](int64_t n) {
      T* q = p;
      p += (n + W - 1) / W * W;
      return q;
    };
    packed = take(M * row), channel.xt = take(turned), hs = take(2 * M * a.nr), channel.gh = take(of_gh);
    gx = take(2 * M * row), rs = take(panel_rows * row);
    xs = packed, channel.xs = xs;
  }

  int64_t near_block(int64_t u, int64_t k) const { return 2 * (u * near.user + k - near.first) * a.nr * a.nt; }
  const T* h_of(int64_t b, int64_t u, int64_t k) const {
    if (near.h) return near.h + near_block(u, k);
    return static_cast<const T*>(a.h) + 2 * (b * a.h_b + (u * a.k + k) * a.nr * a.nt);
  }
  T* gh_of(int64_t b, int64_t u, int64_t k) const {
    if (near.gh) return near.gh + near_block(u, k);
    return static_cast<T*>(a.out_h) + 2 * ((b * a.u + u) * a.k + k) * a.nr * a.nt;
  }
  static const T* x_of(const block_args& a, const void* x, int64_t stride, int64_t b, int64_t u, int64_t k) {
    return static_cast<const T*>(x) + 2 * (b * stride + (u * a.k + k) * a.nt * a.t);
  }

  // H from H^H, eight rows at a time so that the lines written to stay in the first-level cache.
  void unpack_adjoint(const T* src, T* dst, int64_t row) const {
    using pair = pack<T, 2>;
    const int64_t rows = a.nr, columns = a.nt;
    for (int64_t r0 = 0; r0 < rows; r0 += 8) {
      const int64_t n = rows - r0 < 8 ? rows - r0 : 8;
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t r = r0; r < r0 + n; ++r) {
          const pair z = pair::load(src + 2 * (c * rows + r));
          const typename pair::V w = {z.v[0], -z.v[1]};
          pair(w).store(dst + r * row + 2 * c);
        }
    }
  }

  // Several users' channels side by side as [Nr][M]; one user's block is used where it lies.
  const T* pack_h(int64_t b, int64_t k) {
    if (a.h_adjoint) {
      for (int64_t u = 0; u < a.u; ++u) unpack_adjoint(h_of(b, u, k), hs + 2 * u * a.nt, 2 * M);
      return hs;
    }
    if (a.u == 1) return h_of(b, 0, k);
    for (int64_t u = 0; u < a.u; ++u) {
      const T* src = h_of(b, u, k);
      for (int64_t r = 0; r < a.nr; ++r)
        for (int64_t j = 0; j < 2 * a.nt; ++j) hs[2 * (r * M + u * a.nt) + j] = src[2 * r * a.nt + j];
    }
    return hs;
  }

  // The users' codewords side by side as [M][CT*W]; one user's whole rows are used where they lie, on whole lines.
  template <int CT>
  void pack_x(const void* x, int64_t stride, int64_t b, int64_t k, int64_t t0, int n) {
    const int64_t users = a.u, rows = a.nt, slots = a.t, next_user = 2 * a.k * rows * slots;
    const T* src = x_of(a, x, stride, b, 0, k) + 2 * t0;
    xs = packed;
    if (users == 1 && slots == CT * WC && uintptr_t(src) % 64 == 0) xs = src;
    channel.xs = xs;
    if (xs == src) return;
    T* to = packed;
    for (int64_t u = 0; u < users; ++u, src += next_user)
      for (int64_t m = 0; m < rows; ++m)
        for (int c = 0; c < CT; ++c, to += W) Col::load_first(src + 2 * m * slots + c * W, Col::left(n, c)).store(to);
  }

  // Where one chunk of one block reads and writes, and what it adds up.
  struct place {
    const T *h, *y;
    int64_t y_next;      // reals to the next block's y, fetched while this block is worked on
    T *out_y, *out_x;    // out_x: user 0's first row of this chunk
    int64_t out_x_user;  // reals between users
    int n;               // slots in this chunk
    bool first_chunk;
    T scale;
  };

  // What the rest of memory still has to bring for this block and the next: a share of it is asked for with every tile
  // of rows, as many lines as arrive meanwhile. A burst would fill the core's line buffers and hold up the loads behind
  // it.
  struct span {
    const T* p = nullptr;
    int64_t reals = 0, user = 0, row = 0;  // of one user, between users, and per row of the block
  };
  span next_h, next_x, fill_h, fill_x;  // `fill_*`: lines that results will be written to

  template <int Write>
  SF_HD void fetch_share(const span& s, int64_t first, int64_t last) const {
    if (!s.p) return;
    const int64_t from = first * s.row, to = last * s.row < s.reals ? last * s.row : s.reals;
    for (int64_t u = 0; u < a.u; ++u)
      for (int64_t j = from; j < to; j += int64_t(64 / sizeof(T))) __builtin_prefetch(s.p + u * s.user + j, Write, 2);
  }
  template <mode Mode>
  void look_ahead(int64_t b, int64_t k) {
    const int64_t hb = 2 * a.nr * a.nt, xb = 2 * a.nt * a.t, h_user = 2 * (near.h ? near.user : a.k) * a.nr * a.nt;
    next_h = {h_of(b, 0, k) + hb, hb, h_user, 2 * a.nt};
    if (Mode == mode::score && !around_h) fill_h = {gh_of(b, 0, k), hb, h_user, 2 * a.nt};
    next_x = {x_of(a, a.x, a.x_b, b, 0, k) + xb, xb, a.k * xb, x_row};
    if (Mode == mode::score && !around_x)
      fill_x = {static_cast<T*>(a.out_x) + (b * a.u * a.k + k) * xb, xb, a.k * xb, x_row};
  }

  // GX accumulators of one user between tiles of rows; the last tile turns them into the scaled result.
  struct gx_rows {
    T *acc, *dst;
    int64_t t;
    int n;
    bool first, last, around;
    T scale;
    Col* seen;
    template <int CT>
    struct of {
      const gx_rows s;
      SF_HD Adj get(int64_t m, int c) const {
        const T* p = s.acc + (m * CT + c) * 2 * W;
        return s.first ? Adj::zero() : Adj{pack<T, W>::load(p), pack<T, W>::load(p + W)};
      }
      SF_HD void set(int64_t m, int c, const Adj& q) const {
        if (s.last) {
          const Col v = q.value() * s.scale;
          put_columns(v, s.dst + 2 * m * s.t + c * W, Col::left(s.n, c), s.around);
          *s.seen = *s.seen + (v - v);
        } else {
          T* p = s.acc + (m * CT + c) * 2 * W;
          q.a.store(p), q.b.store(p + W);
        }
      }
    };
  };

  gx_rows rows_of(const place& at, int64_t u, int ct, int n, bool first, bool last, Col* seen) const {
    return {gx + u * a.nt * ct * 2 * W, at.out_x + u * at.out_x_user, a.t, n, first, last, around_x, at.scale, seen};
  }

  // Whole: the chunk's slots fill their packs. Alone: R goes to its panel, which does the rest.
  template <mode Mode, int RT, int CT, bool Whole, bool Alone = false>
  void row_tile(const place& at, int64_t r0) {
    // locals: whatever is stored might be a member otherwise
    const int64_t streams = M, slots = a.t, y_next = at.y_next;
    const T *h = at.h + 2 * r0 * streams, *x = xs, *y = at.y ? at.y + 2 * r0 * slots : nullptr;
    T* const tile = Alone ? rs + r0 % panel_rows * CT * W : rs;
    T* const out_y = at.out_y ? at.out_y + 2 * r0 * slots : nullptr;
    const int n = Whole ? CT * WC : at.n;
    const bool around = around_y;
    const auto h_at = [=](int i, int64_t m)
                          SF_LAMBDA { return scalar2<T>{h[2 * (i * streams + m)], h[2 * (i * streams + m) + 1]}; };
    constexpr bool energetic = Mode == mode::score || Mode == mode::probe;
    Col r[RT][CT];
    if constexpr (Mode != mode::adjoint) {
      Fwd p[RT][CT];
    SF_UNROLL
      for (int i = 0; i < RT; ++i)
        SF_UNROLL
      for (int c = 0; c < CT; ++c) p[i][c] = Fwd::zero();
      multiply_tile(p, streams, h_at, [=](int64_t m, int c) SF_LAMBDA { return Col::load(x + (m * CT + c) * W); });
      SF_UNROLL
      for (int i = 0; i < RT; ++i)
        SF_UNROLL
      for (int c = 0; c < CT; ++c) r[i][c] = p[i][c].value();
    }
    if ((Mode == mode::score || Mode == mode::apply) && spread && at.first_chunk) {
      fetch_share<0>(next_h, r0, r0 + RT), fetch_share<0>(next_x, r0, r0 + RT);
      fetch_share<1>(fill_h, r0, r0 + RT), fetch_share<1>(fill_x, r0, r0 + RT);
    }
    Col seen = Col::zero();
    SF_UNROLL
    for (int i = 0; i < RT; ++i)
      SF_UNROLL
    for (int c = 0; c < CT; ++c) {
      const int64_t offset = 2 * i * slots + c * W;
      if constexpr (Mode == mode::score) __builtin_prefetch(y + offset + y_next);
      if constexpr (Mode == mode::adjoint) {  // by way of members, or GCC would load Y again for every product
        const T* from = at.y + 2 * (r0 + i) * a.t + c * W;
        __builtin_prefetch(from + at.y_next);
        r[i][c] = Col::load_first(from, Col::left(at.n, c));
      }
      if constexpr (Mode == mode::score) r[i][c] = Col::load_first(y + offset, Col::left(n, c)) - r[i][c];
      if constexpr (Mode == mode::apply) {
        if (!around) __builtin_prefetch(out_y + offset + y_next, 1, 2);
        put_columns(r[i][c], out_y + offset, Col::left(n, c), around);
        seen = seen + (r[i][c] - r[i][c]);
      }
      if constexpr (energetic) r[i][c].store(tile + (i * CT + c) * W);
    }
    if constexpr (Alone) return;
    if constexpr (energetic) (Mode == mode::score ? residual : through).add(tile, RT * CT * W);
    if constexpr (Mode == mode::score || Mode == mode::adjoint) {
      const bool last = r0 + RT == a.nr;
      for (int64_t u = 0; u < a.u; ++u) {
        const gx_rows rows{gx + u * a.nt * CT * 2 * W, at.out_x + u * at.out_x_user, slots, n,
                           r0 == 0, last, around_x, at.scale, &seen};
        const int64_t m0 = u * a.nt;
        const auto h_user = [=](int i, int64_t m) SF_LAMBDA { return h_at(i, m0 + m); };
        adjoint_tile<Col>(r, a.nt, h_user, typename gx_rows::template of<CT>{rows});
      }
    }
    bad = bad + seen;
    if constexpr (Mode == mode::score) channel.template add<RT, CT>(r, tile, r0, n, at.first_chunk);
  }

  template <mode Mode, int CT, bool Whole>
  void all_rows(const place& at) {
    int64_t r = 0;
    for (; r + max_rt <= a.nr; r += max_rt) row_tile<Mode, max_rt, CT, Whole>(at, r);
    for (; r + 2 <= a.nr; r += 2) row_tile<Mode, 2, CT, Whole>(at, r);
    for (; r < a.nr; ++r) row_tile<Mode, 1, CT, Whole>(at, r);
  }

  // As all_rows, a panel of rows at a time
  template <mode Mode, int CT, bool Whole>
  void panels(const place& at) {
    constexpr bool score = Mode == mode::score;
    const int n = Whole ? CT * WC : at.n;
    Col seen = Col::zero();
    for (int64_t r0 = 0; r0 < a.nr; r0 += panel_rows) {
      const int64_t rows = a.nr - r0 < panel_rows ? a.nr - r0 : panel_rows;
      if constexpr (score) {
        in_tiles(0, rows, [&](auto tile, int64_t r) SF_LAMBDA {
          row_tile<Mode, decltype(tile)::value, CT, Whole, true>(at, r0 + r);
        });
        residual.add(rs, rows * CT * W);
      }
      for (int64_t u = 0; u < a.u; ++u) {
        const T *h = at.h + 2 * (r0 * M + u * a.nt), *r = score ? rs : at.y + 2 * r0 * a.t;
        const codeword_panel<Col, CT, score || Whole, !score> of{
            h, r, rows, 2 * M, score ? CT * W : 2 * a.t, u == 0 ? at.y_next : 0, n};
        of.add(a.nt, typename gx_rows::template of<CT>{rows_of(at, u, CT, n, r0 == 0, r0 + rows == a.nr, &seen)});
      }
      if constexpr (score)
        in_tiles(0, rows, [&](auto tile, int64_t r) SF_LAMBDA {
          channel.template add_loaded<decltype(tile)::value, CT>(rs + r * CT * W, r0 + r, n, at.first_chunk);
        });
    }
    bad = bad + seen;
  }
  template <mode Mode, int CT>
  void all_rows(const place& at) {
    if constexpr (Panels && Mode != mode::probe)
      return at.n == CT * WC ? panels<Mode, CT, true>(at) : panels<Mode, CT, false>(at);
    if constexpr (Mode != mode::adjoint)  // as in row_tile
      if (at.n == CT * WC) return all_rows<Mode, CT, true>(at);
    all_rows<Mode, CT, false>(at);
  }

  void store_gh(int64_t b, int64_t k, T scale) {
    const bool flat = a.u == 1 && channel.row == 2 * a.nt;  // rows follow one another here and there
    const int64_t rows = flat ? 1 : a.nr, entries = flat ? a.nr * a.nt : a.nt, next = channel.row;
    const bool around = around_h && !near.gh;
    Col seen = Col::zero();
    for (int64_t u = 0; u < a.u; ++u) {
      const T* src = channel.gh + 2 * u * a.nt;
      T* dst = gh_of(b, u, k);
      for (int64_t r = 0; r < rows; ++r, src += next, dst += 2 * entries)
        for (int64_t m = 0; m < entries; m += WC) {
          const int n = entries - m < WC ? int(entries - m) : WC;
          const Col v = Col::load_first(src + 2 * m, n) * scale;
          put_columns(v, dst + 2 * m, n, around);
          seen = seen + (v - v);
        }
    }
    bad = bad + seen;
  }

  template <mode Mode, int CT>
  void chunk(int64_t b, int64_t k, const T* h, int64_t t0, int n, T scale, double* energy) {
    place at{h, nullptr, 2 * a.nr * a.t, nullptr, nullptr, 2 * a.k * a.nt * a.t, n, t0 == 0, scale};
    const int64_t y_block = 2 * (k * a.nr * a.t + t0);
    if constexpr (Mode == mode::apply) at.out_y = static_cast<T*>(a.out_y) + 2 * b * a.k * a.nr * a.t + y_block;
    if constexpr (Mode != mode::apply) {
      at.y = static_cast<const T*>(a.y) + 2 * b * a.y_b + y_block;
      at.out_x = static_cast<T*>(a.out_x) + 2 * ((b * a.u * a.k + k) * a.nt * a.t + t0);
    }
    if constexpr (Mode != mode::adjoint) pack_x<CT>(a.x, a.x_b, b, k, t0, n);
    if (Mode == mode::score && channel.transposed()) channel.template transpose<CT>();
    all_rows<Mode, CT>(at);
    if (Mode == mode::score && a.probe) {
      pack_x<CT>(a.probe, a.probe_b, b, k, t0, n);
      for (int64_t u = 0; u < a.u; ++u) energy[2 + u] += square_sum(xs + u * a.nt * CT * W, a.nt * CT * W);
      all_rows<mode::probe, CT>(at);
    }
  }

  T scale_of(int64_t b) const {
    return a.noise_var ? T(1.0 / double(static_cast<const T*>(a.noise_var)[b * a.noise_var_b])) : T(1);
  }

  template <mode Mode>
  void block(int64_t b, int64_t k, double* energy) {
    const T scale = Mode == mode::score ? scale_of(b) : T(1);
    const T* h = pack_h(b, k);
    if (spread && Mode != mode::adjoint) look_ahead<Mode>(b, k);
    if (Mode == mode::score && a.probe)
      for (int64_t u = 0; u < a.u; ++u) energy[2 + u] = 0;
    bad = Col::zero(), residual = through = square_sums();
    for (int64_t t0 = 0; t0 < a.t; t0 += max_ct * WC) {
      const int n = a.t - t0 < max_ct * WC ? int(a.t - t0) : max_ct * WC;
      if (n > 2 * WC)
        chunk<Mode, 3>(b, k, h, t0, n, scale, energy);
      else if (n > WC)
        chunk<Mode, 2>(b, k, h, t0, n, scale, energy);
      else
        chunk<Mode, 1>(b, k, h, t0, n, scale, energy);
    }
    if constexpr (Mode == mode::score) store_gh(b, k, scale);
    residual.taint(bad.v);
    energy[0] = residual.sum();
    if (Mode == mode::score && a.probe) energy[1] = through.sum();
  }

  // Blocks [k, last) of item b. Returns the first one with a result or an energy that is not finite, or -1.
  template <mode Mode>
  int64_t run(int64_t b, int64_t k, int64_t last, double* energies) {
    if (Mode == mode::score && M == 1) return run_stream(b, k, last, energies);
    int64_t found = -1;
    for (; k < last; ++k) {
      block<Mode>(b, k, energies);
      double total = energies[0];
      if (Mode == mode::score && a.probe)
        for (int64_t e = 1; e < 2 + a.u; ++e) total += energies[e];
      if (total - total != 0 && found < 0) found = k;
      if (a.energies) energies += 2 + a.u;
    }
    return found;
  }
  int64_t run_stream(int64_t b, int64_t k, int64_t last, double* energies) {
    const int64_t step = a.h_adjoint ? 1 : last - k;  // H from H^H is made one block at a time
    int64_t found = -1;
    for (; k < last; k += step, energies += 3 * step) {
      const T* y = static_cast<const T*>(a.y) + 2 * (b * a.y_b + k * a.nr * a.t);
      const T* probe = a.probe ? x_of(a, a.probe, a.probe_b, b, 0, k) : nullptr;
      T* out_x = static_cast<T*>(a.out_x) + 2 * (b * a.k + k) * a.t;
      const single_stream<T> blocks{pack_h(b, k), x_of(a, a.x, a.x_b, b, 0, k), y, probe, gh_of(b, 0, k), out_x,
                                    channel.gh, a.nr, a.t, scale_of(b), around_x};
      const int64_t bad = blocks.run(step, energies);
      if (bad >= 0 && found < 0) found = k + bad;
    }
    return found;
  }
};

}  // namespace SF_NS
}  // namespace sf
